"""One line and its loop where a part fails: sources with mistakes, settings that cannot be, threads that end."""

import dataclasses
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from line_rig import Rig
from modelagent.errors import UsageError
from modelagent.inference import line as module
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.line import Line
from modelagent.inference.links import open_slot
from modelagent.inference.loop import Loop
from modelagent.inference.options import LoopOptions, ModelOptions
from modelagent.inference.serving import Server
from modelagent.inference.workers import SERVE, Load, Loader


def options(root: Path, source: SourceOptions | None = None, name: str = "digits") -> ModelOptions:
    return ModelOptions(
        name=name,
        model_dir=root / "models" / name,
        labels_dir=root / "labels",
        keep_dir=root / "keep" / name,
        health=root / "run" / name / "health.json",
        source=source or SourceOptions(),
        sqlite=False,
    )


def wait(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def descriptors() -> set[int]:
    """Numbers in use."""
    return {int(fd.name) for fd in list(Path("/proc/self/fd").iterdir()) if fd.exists()}


class Mistaken(FrameSource):
    """Breaks once by a mistake of its own, and works when it is run again."""

    kind = "mistaken"
    runs = 0

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        self.runs += 1
        if self.runs == 1:
            raise ZeroDivisionError("a mistake")
        put(Frame("one", (np.zeros(1),), 0.0, 0.0))
        stop.wait()


def test_a_source_with_a_mistake_in_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = Mistaken(SourceOptions())
    monkeypatch.setattr(module, "open_source", lambda _options: source)
    monkeypatch.setattr(module, "_SOURCE_PAUSE", 0.01)
    loader = Loader()
    line = Line(options(tmp_path), loader, boot_id="b", epoch="e", wake=lambda: None)
    line.start()
    wait(lambda: line.buffer.received == 1)
    line.stop(time.monotonic() + 5.0)
    loader.close()
    assert source.counts == {"failed": 1}
    assert "a mistake" in caplog.text


def test_settings_that_cannot_be_leave_the_line_with_those_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = options(tmp_path)
    bad = dataclasses.replace(good, source=SourceOptions(kind="http", listen="nowhere"))
    other = options(tmp_path, name="other")
    wishes = [LoopOptions(tmp_path / "lock", (bad, other)), LoopOptions(tmp_path / "lock", (other,))]
    loop = Loop(LoopOptions(tmp_path / "lock", (good,)), reread=lambda: wishes.pop(0))
    for line in vars(loop)["_lines"]:
        line.start()
    loop._reload()
    assert [line.options for line in vars(loop)["_lines"]] == [good, other]
    assert "digits: settings refused" in caplog.text
    loop._reload()
    assert [line.options for line in vars(loop)["_lines"]] == [other]
    loop._end()


def test_a_thread_that_ends_unexpectedly_ends_the_process_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: Server) -> None:
        raise IndexError("a mistake")

    monkeypatch.setattr(Server, "_run", fail)
    hook = threading.excepthook
    assert Loop(LoopOptions(tmp_path / "lock", (options(tmp_path),))).run() == 1
    assert "serve-digits ended: IndexError('a mistake')" in caplog.text
    assert threading.excepthook is hook


def test_a_worker_that_hangs_while_its_successor_comes_keeps_no_frame_at_the_stop(tmp_path: Path) -> None:
    """It is the one to be ended at the stop, and not the one that has been handed over."""
    program = str(Path(__file__).parent.parent / "standin_worker.py")
    rig = Rig(tmp_path / "rig")
    hangs = rig.slot("digits-1.0.0.tflite", confirmed=True, change={"version": "a+bomb-5"})
    rig.link("current", hangs)
    rig.frames(rig.scans())
    with rig:
        rig.start(fps=100.0, hang_s=60.0, worker_argv=[sys.executable, program])
        rig.wait(lambda: rig.total("done") == 4, 60.0)
        (rig.model_dir / "current").unlink()  # nothing is to serve, and what serves hangs
        rig.wait(lambda: rig.health()["link"] is None and rig.health()["source"]["received"] > 20, 60.0)
        assert rig.stop(30.0) == 0
        rows = rig.rows()
        assert rig.health()["source"]["received"] == len(rows)
        assert [row["outcome"] for row in rows].count("ok") == 4
        assert len({row["frame"] for row in rows}) == len(rows)


def test_a_line_whose_source_cannot_be_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match="listen"):
        Line(
            options(tmp_path, SourceOptions(kind="http", listen="nowhere")),
            Loader(),
            boot_id="b",
            epoch="e",
            wake=lambda: None,
        )
    assert threading.active_count() == before


def test_no_descriptor_for_a_worker_is_a_refusal_and_not_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    slot = open_slot(rig.model_dir, rig.slot("digits-1.0.0.tflite", confirmed=True))
    loader, done = Loader(), list[Load]()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = descriptors()
    free = sorted(set(range(limits[0])) - opened)
    for spare in range(9):  # whichever of its descriptors is the one too many
        loader.request(slot, options(tmp_path), purpose=SERVE, done=done.append)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], limits[1]))
        try:
            loader.step(time.monotonic())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(done) == spare + 1
        assert done[-1].worker is None
        assert done[-1].code == "memory"
    assert descriptors() == opened
    loader.close()
