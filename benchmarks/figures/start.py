"""How soon a device that is switched on has its first result.

This file knows one figure. It starts the inference process as systemd does and compares the moment with the time
stamp that the first result carries. The first start is not counted: it writes byte code where an install has it.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.measure import Figure, Group, Measured, median
from benchmarks.stand import Stand

_ROOT: Final = Path(__file__).resolve().parents[2]
_STARTS: Final = 9


def first_result(folder: Path) -> dict[str, Measured]:
    """`start.first_result_s`."""
    examples = _ROOT / "examples/digits"
    contract = json.loads((examples / "releases.json").read_text(encoding="utf-8"))
    with Stand(folder / "start") as stand:
        digest = stand.add_slot(
            "digits", examples / "models/digits-1.1.0.tflite", contract, version="1.1.0", number=110
        )
        stand.point("digits", "current", digest)
        frames = stand.folder / "frames.npz"
        with np.load(examples / "canary.npz", allow_pickle=False) as canary:
            np.savez(frames, input_0=canary["input_0"])
        source = {"kind": "replay", "path": str(frames), "fps": 30.0}
        stand.configure({"digits": {"source": source, "results": {"jsonl": True}}})
        seconds = [_start(stand) for _ in range(_STARTS + 1)][1:]
    how = f"median of {_STARTS} starts of the inference process, slowest {max(seconds):.2f} s; byte code in place"
    return {"start.first_result_s": Measured(median(seconds), how)}


def _start(stand: Stand) -> float:
    stand.forget("digits")
    begun = time.time()
    process = stand.start("inference")
    rows: list[dict[str, Any]] = []
    while not rows:
        if time.time() - begun > 30.0:
            raise TimeoutError(f"no result within 30 s; see {stand.folder}/inference.log")
        time.sleep(0.02)
        rows = stand.rows("digits")
    stand.stop(process)
    return float(rows[0]["wall"]) - begun


GROUPS: Final = (Group((Figure("start.first_result_s", "s", "<= 1.0"),), first_result),)
