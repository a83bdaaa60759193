"""What the agent costs per frame: the real inference process against the bare Interpreter, side by side.

This file knows the four figures of the loop. Both sides run the same model on the same frames, as fast as they can, in
windows that alternate: while the bare loop runs, the inference process is stopped (SIGSTOP), so the two never
compete and drift of the machine falls on both.
"""

import importlib.util
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from benchmarks.bare import Bare
from benchmarks.measure import Figure, Group, Measured, NotHereError, median
from benchmarks.stand import Stand, own_environment

_ROOT: Final = Path(__file__).resolve().parents[2]
_WINDOWS: Final = 7
_SECONDS: Final = 2.0


def _digits_frames(folder: Path) -> Path:
    path = folder / "digits_frames.npz"
    with np.load(_ROOT / "examples/digits/canary.npz", allow_pickle=False) as canary:
        np.savez(path, input_0=canary["input_0"])
    return path


def _side_by_side(folder: Path, model: Path, frames: Path) -> list[tuple[float, float]]:
    """Seconds per frame (bare, loop) for each pair of windows."""
    pairs = []
    with Bare(model, frames) as bare, Stand(folder / "loop") as stand:
        digest = stand.add_slot("bench", model, bare.contract, version="1", number=1)
        stand.point("bench", "current", digest)
        source = {"kind": "replay", "path": str(frames), "fps": 0.0, "overflow": "block"}
        stand.configure({"bench": {"source": source}})
        process = stand.start("inference")
        stand.wait("bench", lambda health: _done(health, digest) > 0)
        for _ in range(_WINDOWS):
            process.send_signal(signal.SIGSTOP)
            alone = bare.run(_SECONDS)
            process.send_signal(signal.SIGCONT)
            pairs.append((alone, _loop_window(stand, digest)))
    return pairs


def _done(health: Mapping[str, Any], digest: str) -> int:
    return int(health["counters"].get(digest, {}).get("done", 0))


def _loop_window(stand: Stand, digest: str) -> float:
    # The health record is the clock: frames done and the moment, from one process, about once a second.
    seen = stand.health("bench")
    start_seq = seen["seq"] if seen is not None else 0
    first = stand.wait("bench", lambda health: health["seq"] > start_seq)
    last = stand.wait("bench", lambda health: health["mono"] - first["mono"] >= _SECONDS, pause=0.05)
    return float(last["mono"] - first["mono"]) / (_done(last, digest) - _done(first, digest))


def model_file(folder: Path, dtype: str = "int8") -> Path:
    """MobileNetV2 in int8 or float32, built once; NotHereError where it cannot be."""
    model = folder / f"mnv2_{dtype}.tflite"
    if not model.exists():
        if importlib.util.find_spec("tensorflow") is None:
            raise NotHereError(
                "tensorflow is missing and MobileNetV2 was never built here; install it, or run "
                f"`python -m benchmarks.mobilenet {model}` where it is installed"
            )
        subprocess.run(
            [sys.executable, "-m", "benchmarks.mobilenet", str(model)],
            cwd=_ROOT,
            env=own_environment(),
            check=True,
            capture_output=True,
        )
    return model


def pictures(count: int, dtype: str = "int8") -> npt.NDArray[Any]:
    """Random frames for MobileNetV2, [count, 224, 224, 3]."""
    random = np.random.RandomState(1)
    if dtype == "float32":
        return random.rand(count, 224, 224, 3).astype(np.float32)
    return random.randint(-128, 128, (count, 224, 224, 3)).astype(np.int8)


def mobilenet(folder: Path, dtype: str) -> dict[str, Measured]:
    """`loop.mnv2_<dtype>.ratio`."""
    model = model_file(folder, dtype)
    frames = folder / "mnv2_frames.npz"
    np.savez(frames, input_0=pictures(16, dtype))
    pairs = _side_by_side(folder, model, frames)
    ratio = median([alone / loop for alone, loop in pairs])
    rates = f"{1 / median([a for a, _ in pairs]):.0f} and {1 / median([b for _, b in pairs]):.0f} frames/s"
    how = f"bare and loop {rates}; median of {_WINDOWS} alternating windows of {_SECONDS:g} s, one thread"
    return {f"loop.mnv2_{dtype}.ratio": Measured(ratio, how)}


def one_matrix(folder: Path) -> Path:
    """A model of two microseconds: one fully connected layer, float32 [1, 16] to [1, 4]."""
    path = folder / "one_matrix.tflite"
    maker = runpy.run_path(str(_ROOT / "tests/tiny_models.py"))
    path.write_bytes(maker["linear"](np.eye(16, 4, dtype=np.float32)))
    return path


def smallest(folder: Path) -> dict[str, Measured]:
    """`loop.smallest.added_us`."""
    frames = folder / "smallest_frames.npz"
    np.savez(frames, input_0=np.random.RandomState(1).rand(64, 16).astype(np.float32))
    return _added(folder, "loop.smallest.added_us", one_matrix(folder), frames)


def _added(folder: Path, name: str, model: Path, frames: Path) -> dict[str, Measured]:
    pairs = _side_by_side(folder, model, frames)
    added = median([(loop - alone) * 1e6 for alone, loop in pairs])
    times = f"{median([a for a, _ in pairs]) * 1e6:.1f} and {median([b for _, b in pairs]) * 1e6:.1f} us a frame"
    how = (
        f"bare and loop {times} back to back, all included; median of {_WINDOWS} alternating windows of {_SECONDS:g} s"
    )
    return {name: Measured(added, how)}


def digits(folder: Path) -> dict[str, Measured]:
    """`loop.digits.added_us`."""
    model = _ROOT / "examples/digits/models/digits-1.1.0.tflite"
    return _added(folder, "loop.digits.added_us", model, _digits_frames(folder))


GROUPS: Final = (
    Group((Figure("loop.mnv2_int8.ratio", "ratio", ">= 0.98"),), partial(mobilenet, dtype="int8")),
    Group((Figure("loop.mnv2_float32.ratio", "ratio", ">= 0.98"),), partial(mobilenet, dtype="float32")),
    Group((Figure("loop.digits.added_us", "us", "<= 35"),), digits),
    Group((Figure("loop.smallest.added_us", "us", "<= 35"),), smallest),
)
