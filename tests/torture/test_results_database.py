"""The results database is overwritten with rubbish, or has no room to grow: real inference goes on, frame by frame."""

import shutil
from pathlib import Path

import pytest

from line_rig import Rig

pytestmark = pytest.mark.process


def frames_go_on(rig: Rig, digest: str, many: int = 100) -> None:
    done = rig.counts(digest)["done"]
    rig.wait(lambda: rig.counts(digest).get("done", 0) >= done + many, 30.0)


def test_rubbish_in_the_open_database(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        digest = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", digest)
        rig.frames(rig.scans()[:50])
        rig.start(fps=100.0)
        rig.wait(lambda: rig.counts(digest).get("done", 0) > 50, 30.0)
        for path in rig.keep_dir.glob("results.db*"):
            with path.open("r+b") as file:
                file.write(b"rubbish " * 600)
        frames_go_on(rig, digest)
        worker = rig.worker()
        frames_go_on(rig, digest)
        assert rig.worker() == worker, "not even the worker was changed"
        assert rig.stop() == 0


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not installed")
def test_no_room_for_results(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        digest = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", digest)
        rig.frames(rig.scans()[:50])
        rig.start(wrapper=["prlimit", "--fsize=40000"], fps=200.0)
        rig.wait(lambda: rig.counts(digest).get("done", 0) > 50, 30.0)
        rig.wait(lambda: "results" in rig.log(), 30.0)
        frames_go_on(rig, digest, 400)
        assert rig.stop() == 0
        assert sum(path.stat().st_size for path in rig.keep_dir.glob("results*")) <= 4 * 40_000
