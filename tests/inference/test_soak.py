"""A swap every two seconds under load, for as long as SOAK_SECONDS says: short among the tests, long as `make soak`."""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from line_rig import Rig

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
PERIOD = 2.0  # seconds from one swap to the next; a load that takes longer delays it
FPS = 200.0


def serves(rig: Rig, digest: str) -> bool:
    return rig.running() == digest


def held(rig: Rig) -> tuple[int, int]:
    """Open descriptors and resident memory in KiB, with one worker and while no file is being written."""
    assert rig.process is not None
    rig.wait(lambda: len(rig.children()) == 1, 60.0)
    place = Path(f"/proc/{rig.process.pid}")
    opened = []
    for _ in range(30):
        opened.append(len(list((place / "fd").iterdir())))
        time.sleep(0.02)
    pages = int((place / "statm").read_text().split()[1])
    return min(opened), pages * os.sysconf("SC_PAGESIZE") // 1024


def test_swaps_without_end_lose_no_frame_and_leave_nothing_behind(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        slots = [rig.slot(f"digits-{version}.tflite", confirmed=True) for version in ("1.0.0", "1.1.0", "1.3.0")]
        rig.link("current", slots[0])
        rig.frames(rig.scans())
        rig.start(fps=FPS, queue=1000, max_bytes=1 << 30)
        rig.wait(lambda: rig.running() == slots[0], 60.0)
        rig.wait(lambda: rig.counts(slots[0]).get("done", 0) > 50, 60.0)
        swaps, longest, before = 0, 0.0, (0, 0)
        due = time.monotonic()
        end = due + SECONDS
        while time.monotonic() < end or swaps < 3:
            swaps += 1
            digest = slots[swaps % 3]
            rig.link("current", digest)
            longest = max(longest, rig.wait(partial(serves, rig, digest), 60.0))
            if swaps == 2:  # what grows only in the beginning has grown
                before = held(rig)
            due = max(due + PERIOD, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        rig.wait(lambda: rig.health()["swaps"]["count"] == swaps, 60.0)
        after = held(rig)
        assert rig.stop() == 0
        rows = rig.rows()
        numbers = [int(row["frame"].rpartition(":")[2]) for row in rows]
        assert sorted(numbers) == list(range(len(rows))), "every frame ends once"
        assert rig.health()["source"]["received"] == len(rows)
        lost = sum(row["outcome"] != "ok" for row in rows)
        assert lost == rig.total("dropped"), "what was not decided is counted as dropped, nothing is faulted or refused"
        gaps = np.diff(sorted(row["wall"] for row in rows if row["outcome"] == "ok"))
        print(
            f"{swaps} swaps in {SECONDS:.0f} s at {FPS:.0f} fps: {len(rows)} frames, each once, {lost} dropped; "
            f"longest gap between results {gaps.max() * 1000:.1f} ms, longest swap {longest:.2f} s; descriptors "
            f"{before[0]} then {after[0]}, memory {before[1] // 1024} MB then {after[1] // 1024} MB"
        )
        assert after[0] <= before[0], "no descriptor is left open"
        assert after[1] - before[1] < 16 << 10, "KiB"
