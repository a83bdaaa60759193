"""What a change of the model costs the line: gaps between results, and frames lost.

This file knows the three figures of the swap. It moves the `current` link between two confirmed slots as the updater
does, under the real inference process with a paced source, and reads the results that process writes. Each swap is a
whole one: a second worker is started, loaded and warmed, takes over at a frame's boundary, and the old one is ended.
"""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.measure import Figure, Group, Measured, NotHereError, median, quantile
from benchmarks.stand import Stand

_ROOT: Final = Path(__file__).resolve().parents[2]
_FPS: Final = 200.0
_WINDOWS: Final = 24  # of each kind
_WINDOW_S: Final = 2.5  # 500 results: the p99.9 is the longest gap
_SWAPS: Final = int(os.environ.get("BENCH_SWAPS", "1000"))
_QUEUE: Final = 64
_YOUNG: Final = 50  # swaps after which every list and cache has its size


def _prepare(stand: Stand) -> tuple[str, str]:
    """Two confirmed slots of digits (1.1.0 and 1.6.0), the first of them running, frames at `_FPS`; their digests."""
    examples = _ROOT / "examples/digits"
    contract: Mapping[str, Any] = json.loads((examples / "releases.json").read_text(encoding="utf-8"))
    pair = []
    for number, version in ((110, "1.1.0"), (160, "1.6.0")):
        file = examples / "models" / f"digits-{version}.tflite"
        pair.append(stand.add_slot("digits", file, contract, version=version, number=number))
    frames = stand.folder / "frames.npz"
    with np.load(examples / "canary.npz", allow_pickle=False) as canary:
        np.savez(frames, input_0=canary["input_0"])
    source = {"kind": "replay", "path": str(frames), "fps": _FPS, "queue": _QUEUE}
    stand.configure({"digits": {"source": source, "results": {"jsonl": True, "max_mb": 1000}}})
    stand.point("digits", "current", pair[0])
    stand.start("inference")
    stand.wait("digits", lambda health: _runs(health, pair[0]))
    return pair[0], pair[1]


def _runs(health: Mapping[str, Any], digest: str) -> bool:
    return health["running"] is not None and health["running"]["digest"] == digest


def _swap(stand: Stand, digest: str) -> float:
    """Seconds from the rename of the link to health saying that it runs."""
    begun = time.monotonic()
    stand.point("digits", "current", digest)
    stand.wait("digits", lambda health: _runs(health, digest))
    return time.monotonic() - begun


def gap(folder: Path) -> dict[str, Measured]:
    """`swap.gap_ratio`."""
    spans: list[tuple[bool, float, float]] = []
    with Stand(folder / "swap") as stand:
        pair = _prepare(stand)
        time.sleep(2.0)
        for index in range(2 * _WINDOWS):
            with_swap = index % 2 == 1
            begun = time.time()
            if with_swap:
                time.sleep(0.1)
                _swap(stand, pair[(index // 2 + 1) % 2])
            time.sleep(max(0.0, begun + _WINDOW_S - time.time()))
            spans.append((with_swap, begun, time.time()))
        time.sleep(0.5)
        walls = [row["wall"] for row in stand.rows("digits")]
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for with_swap, begun, ended in spans:
        inside = [wall for wall in walls if begun <= wall < ended]
        gaps[with_swap].append(quantile([b - a for a, b in itertools.pairwise(inside)], 0.999))
    ratio = median([a / b for a, b in zip(gaps[True], gaps[False], strict=True)])
    how = (
        f"p99.9 of the time between results at {_FPS:g} fps: median {median(gaps[True]) * 1e3:.1f} ms with a swap, "
        f"{median(gaps[False]) * 1e3:.1f} ms without; median ratio of {_WINDOWS} interleaved pairs of {_WINDOW_S:g} s"
    )
    return {"swap.gap_ratio": Measured(ratio, how)}


def lost(folder: Path) -> dict[str, Measured]:
    """`swap.frames_lost` and `swap.growth_mb`."""
    if _SWAPS < 1:
        raise NotHereError("BENCH_SWAPS is below 1; unset it for 1000 swaps")
    with Stand(folder / "swaps") as stand:
        pair = _prepare(stand)
        seconds, young = [], 0.0
        for index in range(_SWAPS):
            seconds.append(_swap(stand, pair[(index + 1) % 2]))
            if index == min(_YOUNG, _SWAPS - 1):
                young = _resident_mb(stand)
        grown = _resident_mb(stand) - young
        stand.stop_all()
        rows = stand.rows("digits")
    # Between the first and the last served frame: what the queue lost before the first worker was ready, or at the
    # stop, is no swap's doing.
    served = {_number(row) for row in rows if row["outcome"] == "ok"}
    first, last = min(served), max(served)
    times = Counter(number for number in map(_number, rows) if first <= number <= last)
    unserved = last - first + 1 - len(served)
    twice = sum(count - 1 for count in times.values())
    how = (
        f"{_SWAPS} swaps under {last - first + 1} frames at {_FPS:g} fps, queue of {_QUEUE}; dropped, faulted or "
        f"missing {unserved}, recorded twice {twice}; a swap took {median(seconds):.2f} s (median), "
        f"{max(seconds):.2f} s (most)"
    )
    growth = f"resident memory of the inference process after {_SWAPS} swaps and after {min(_YOUNG, _SWAPS)}"
    return {"swap.frames_lost": Measured(unserved + twice, how), "swap.growth_mb": Measured(grown, growth)}


def _resident_mb(stand: Stand) -> float:
    health = stand.health("digits")
    assert health is not None  # noqa: S101 - it runs
    pages = int(Path(f"/proc/{health['pid']}/statm").read_bytes().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _number(row: Mapping[str, Any]) -> int:
    """The source's running number of the frame; its ids end in it."""
    return int(row["frame"].rsplit(":", 1)[1])


GROUPS: Final = (
    Group((Figure("swap.gap_ratio", "ratio", "<= 2"),), gap),
    Group((Figure("swap.frames_lost", "frames", "<= 0"), Figure("swap.growth_mb", "MB", "<= 1")), lost),
)
