"""What isolation costs in memory: a worker that serves MobileNetV2, against the bare runtime with the same model.

This file knows one figure. Both processes hold the same model and have run it; what is counted is their whole resident
memory, shared libraries in full on both sides.
"""

import re
import time
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.bare import Bare
from benchmarks.figures.loop import model_file
from benchmarks.measure import Figure, Group, Measured
from benchmarks.stand import Stand

_SETTLE_S: Final = 3.0


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    return float(found.group(1)) / 1024 if found else 0.0


def resident(folder: Path) -> dict[str, Measured]:
    """`worker.rss_ratio`."""
    model = model_file(folder)
    frames = folder / "mnv2_frames.npz"
    random = np.random.RandomState(1)
    np.savez(frames, input_0=random.randint(-128, 128, (4, 224, 224, 3)).astype(np.int8))
    with Bare(model, frames) as bare, Stand(folder / "worker") as stand:
        bare.run(1.0)
        alone = _resident_mb(bare.pid)
        digest = stand.add_slot("bench", model, bare.contract, version="1", number=1)
        stand.point("bench", "current", digest)
        stand.configure({"bench": {"source": {"kind": "replay", "path": str(frames), "fps": 20.0}}})
        stand.start("inference")
        health = stand.wait("bench", lambda found: found["running"])
        time.sleep(_SETTLE_S)
        worker = _resident_mb(int(health["running"]["worker_pid"]))
    size = model.stat().st_size / 1e6
    how = f"worker {worker:.1f} MB, bare runtime with its frames {alone:.1f} MB; int8, {size:.1f} MB"
    return {"worker.rss_ratio": Measured(worker / alone, how)}


GROUPS: Final = (Group((Figure("worker.rss_ratio", "ratio", "<= 1.1"),), resident),)
