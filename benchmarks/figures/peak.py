"""What a second model costs in memory: for the moment of a swap, and for as long as several are served.

This file knows three figures. All are proportional set sizes (a page that n processes share counts as 1/n in each)
of the inference process and its workers, so sums are what the device really gives. A worker is a process of its own,
and its interpreter and numpy are private to it: that share does not depend on the model and is named beside each value.
"""

import re
import runpy
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from benchmarks.bare import Bare
from benchmarks.figures.loop import model_file, pictures
from benchmarks.measure import Figure, Group, Measured, median
from benchmarks.stand import Stand, family

_ROOT: Final = Path(__file__).resolve().parents[2]
_SWAPS: Final = 6
_MODELS: Final = 8
_SETTLE_S: Final = 3.0


def _pss_mb(pid: int) -> float:
    """Of the process and all its descendants; one that ends meanwhile counts as nothing."""
    total = 0.0
    for one in family(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += float(found.group(1)) / 1024 if found else 0.0
    return total


class _Peak:
    """The largest sum seen while the block ran, looked at every few milliseconds."""

    def __init__(self, pid: int) -> None:
        self.mb = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.004):
            try:
                self.mb = max(self.mb, _pss_mb(self._pid))
            except OSError:  # a worker ended between two looks
                continue


def _runs(digest: str, health: dict[str, Any]) -> bool:
    return health["running"] is not None and health["running"]["digest"] == digest


def _second(folder: Path, model: Path, frames: Path) -> float:
    """MB that a swap between two releases of this model takes at its peak, above the time without one."""
    with Bare(model, frames) as bare, Stand(folder / "peak") as stand:
        pair = [stand.add_slot("bench", model, bare.contract, version=str(n), number=n) for n in (1, 2)]
        stand.point("bench", "current", pair[0])
        stand.configure({"bench": {"source": {"kind": "replay", "path": str(frames), "fps": 10.0}}})
        process = stand.start("inference")
        stand.wait("bench", partial(_runs, pair[0]))
        extra = []
        for index in range(_SWAPS):
            time.sleep(_SETTLE_S / 2)
            rest = _pss_mb(process.pid)
            with _Peak(process.pid) as peak:
                digest = pair[(index + 1) % 2]
                stand.point("bench", "current", digest)
                stand.wait("bench", partial(_runs, digest))
                time.sleep(0.2)
            extra.append(peak.mb - rest)
    return median(extra)


def _smallest(folder: Path) -> tuple[Path, Path]:
    """A model of a few bytes, and frames for it."""
    model, frames = folder / "one_matrix.tflite", folder / "one_matrix_frames.npz"
    model.write_bytes(runpy.run_path(str(_ROOT / "tests/tiny_models.py"))["linear"](np.eye(16, 4, dtype=np.float32)))
    np.savez(frames, input_0=np.zeros((4, 16), np.float32))
    return model, frames


def during_swap(folder: Path) -> dict[str, Measured]:
    """`swap.peak_ratio` and `swap.peak_model_ratio`."""
    model, frames = model_file(folder, "float32"), folder / "mnv2_frames.npz"
    np.savez(frames, input_0=pictures(4, "float32"))
    whole = _second(folder, model, frames)
    empty = _second(folder, *_smallest(folder))
    size = model.stat().st_size / 2**20
    how = (
        f"median of {_SWAPS} swaps, MobileNetV2 float32 of {size:.1f} MB: {whole:.1f} MB above rest, of which a worker "
        f"with next to no model is {empty:.1f} MB"
    )
    return {
        "swap.peak_ratio": Measured(whole / size, how),
        "swap.peak_model_ratio": Measured((whole - empty) / size, f"the same without the worker itself; {how}"),
    }


def several(folder: Path) -> dict[str, Measured]:
    """`models.each_mb`."""
    model, frames = _smallest(folder)
    found = []
    with Bare(model, frames) as bare:
        for count in (1, _MODELS):
            with Stand(folder / "models") as stand:
                names = [f"model{number}" for number in range(count)]
                for name in names:
                    digest = stand.add_slot(name, model, bare.contract, version="1", number=1)
                    stand.point(name, "current", digest)
                source = {"kind": "replay", "path": str(frames), "fps": 10.0}
                stand.configure({name: {"source": source} for name in names})
                process = stand.start("inference")
                for name in names:
                    stand.wait(name, lambda health: health["running"])
                time.sleep(_SETTLE_S)
                found.append(_pss_mb(process.pid))
    each = (found[1] - found[0]) / (_MODELS - 1)
    how = f"{_MODELS} models {found[1]:.1f} MB, one {found[0]:.1f} MB, each next to nothing in size, at 10 fps each"
    return {"models.each_mb": Measured(each, how)}


GROUPS: Final = (
    Group((Figure("swap.peak_ratio", "ratio", "<= 3"), Figure("swap.peak_model_ratio", "ratio", "<= 3")), during_swap),
    Group((Figure("models.each_mb", "MB", ""),), several),
)
