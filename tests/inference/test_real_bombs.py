"""Time bombs that are real models, and a model that crashes when it is unloaded.

A runtime without loops over frames gives few ways to go wrong by itself: a stateful cell whose state doubles with every
frame is right for 127 of them and infinite from then on, and a reset does not defuse it, since its manifest says that
it keeps its state. Crashes, hangs and slowness after N calls, and the death at unloading, are played by stand-ins for
the worker (`standin_worker.py`, and the one below), since no real model does them on demand.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from line_rig import Rig
from odd_models import running_sum

pytestmark = pytest.mark.process

DIES_UNLOADING = """
import os, sys
from modelagent.inference import answers, worker
from modelagent.inference.interpreter import Model
Model.close = lambda self: os.abort()
import json
worker.main(json.loads(sys.argv[1]))
"""


def stage(rig: Rig, version: str, *, factor: float, confirmed: bool) -> str:
    made = rig.root / version
    model = running_sum(factor)
    manifest = tiny_models.write_slot(made, model, size=(3, 3), change={"stateful": True, "canary.samples": 0})
    made.rename(rig.model_dir / "slots" / manifest.digest)
    if confirmed:
        (rig.model_dir / "slots" / manifest.digest / "confirmed").touch()
    return manifest.digest


def test_a_real_model_that_is_right_for_127_frames_ends_in_the_fallback(tmp_path: Path) -> None:
    with Rig(tmp_path, "tiny") as rig:
        good = stage(rig, "1.0.0", factor=0.0, confirmed=True)
        bomb = stage(rig, "1.1.0", factor=2.0, confirmed=False)
        rig.link("fallback", good)
        rig.link("current", good)
        rig.frames(np.tile(np.array([[[1.0, 0.0, 0.0]]], np.float32), (50, 1, 1)))
        rig.start(fps=100.0, queue=2000)
        rig.wait(lambda: rig.running() == good and rig.total("done") > 5)
        rig.link("current", bomb)
        rig.wait(lambda: rig.health()["fell_back"] is not None, 40.0)
        assert (rig.health()["fell_back"]["from"], rig.health()["fell_back"]["code"]) == (bomb, "not-finite")
        rig.wait(lambda: rig.running() == good)
        assert rig.counts(bomb)["done"] == 127, "the doubled state leaves float32 at the 128th"
        assert rig.total("faulted") == 0, "the frame had its result from the fallback"
        assert rig.stop() == 0


def test_a_model_that_crashes_when_unloaded_hurts_nobody(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=100.0, queue=2000, worker_argv=[sys.executable, "-c", DIES_UNLOADING])
        rig.wait(lambda: rig.running() == old and rig.total("done") > 5)
        first = rig.worker()
        rig.link("current", new)
        rig.wait(lambda: rig.running() == new and rig.counts(new)["done"] > 20)
        rig.wait(lambda: not Path(f"/proc/{first}").exists())
        assert sum(rig.counts(old)["faults"].values()) == sum(rig.counts(new)["faults"].values()) == 0
        assert rig.stop() == 0
        assert len({row["frame"] for row in rig.rows()}) == len(rig.rows())
        assert {row["outcome"] for row in rig.rows()} <= {"ok", "dropped"}
