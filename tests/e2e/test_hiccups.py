"""A version whose runtime fails on one frame in so many, and does it when asked again: real updater, real judge.

The worker is a program that stands in for a runtime: no real model fails on demand and recovers. Everything else is
the product: signed releases, the canary of the real model, the loop, health, the judge's verdict, the way back.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollback_rig import FPS, MODEL, Box, provision

pytestmark = pytest.mark.process

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.1.0 runs, 1.0.0 is behind it."""
    return provision(tmp_path_factory.mktemp("provisioned"))


@pytest.fixture
def box(tmp_path: Path, base: Path) -> Iterator[Box]:
    with Box(tmp_path, base) as made:
        made.start("updater")
        start_inference(made)
        made.serves("1.1.0")
        made.until("the updater answers", made.status)
        yield made


def start_inference(box: Box) -> None:
    """The real loop with the stand-in for its workers."""
    options = {
        "lock": str(box.root / "inference.lock"),
        "name": MODEL,
        "model_dir": str(box.paths["state_dir"] / "models" / MODEL),
        "labels_dir": str(box.paths["state_dir"] / "labels" / MODEL),
        "keep_dir": str(box.paths["inference_dir"] / MODEL),
        "health": str(box.paths["inference_run_dir"] / MODEL / "health.json"),
        "source": {"kind": "replay", "path": str(box.camera), "fps": float(FPS)},
        "queue": 1000,
        "jsonl": True,
        "shadow_share": 1.0,
        "worker_argv": [sys.executable, str(TESTS / "standin_worker.py")],
    }
    with (box.root / "inference.log").open("ab") as log:
        box.processes["inference"] = subprocess.Popen(
            [sys.executable, str(TESTS / "line_rig.py"), json.dumps([options])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
        )


def test_one_frame_in_thirty_is_too_many(box: Box) -> None:
    version = "1.5.0+trip-30"
    box.publish(version, "digits-1.6.0.tflite")
    line = box.told("blocked", version)
    assert "it fails now and then: in " in line["text"]
    box.told("reverted")
    box.serves("1.1.0")
    assert box.history("confirmed", version) == []
    assert box.blocks()[version] == "failed"
    verdict = box.told("probation", version, "bad")["evidence"]
    assert verdict["unsteady_s"] >= 4
    assert verdict["faults"] == 0, "none of them was a hard fault"
    assert box.lost() == [], "each frame has its result all the same"


@pytest.mark.long
def test_a_confirmed_version_that_stumbles_is_only_counted(box: Box) -> None:
    """One frame in five thousand fails at first, which is one second in fifty with frames."""
    version = "1.6.0+trip-5000"
    digest = box.publish(version, "digits-1.6.0.tflite")
    box.told("confirmed", version)
    box.until("the 5000th", lambda: box.health()["counters"][digest]["faults"]["recovered"] >= 1, 120.0)
    assert box.runs() == version
    assert box.blocks() == {}
    assert box.lost() == []
