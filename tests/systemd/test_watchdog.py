"""What systemd is told by the inference process: ready, progress, reload."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from line_rig import Rig
from modelagent.inference.line import Line


def line(*, now: float = 1000.0, **changed: float | bool | None) -> Line:
    """A line that serves 10 frames a second and has just finished one, but for what is `changed`."""
    facts: dict[str, Any] = {
        "beat": now,
        "progress": now,
        "delivered": now,
        "waiting": 0,
        "patience": 30.0,
        "serves": True,
    } | changed
    worker = SimpleNamespace(hang_s=2.0)
    made = SimpleNamespace(
        handover=SimpleNamespace(
            active=worker if facts["serves"] else None, running=worker if facts["serves"] else None
        ),
        server=SimpleNamespace(beat=facts["beat"], progress=facts["progress"]),
        buffer=range(int(facts["waiting"])),
        _source=SimpleNamespace(patience=facts["patience"]),
        _delivered=facts["delivered"],
    )
    made._source_overdue = lambda at: Line._source_overdue(cast("Line", made), at)
    return cast("Line", made)


def test_finished_frames_feed_the_watchdog() -> None:
    assert Line.alive(line(), 1001.0)


def test_a_thread_that_does_not_come_round_starves_it() -> None:
    assert not Line.alive(line(beat=980.0), 1000.0)


def test_a_frame_that_waits_before_a_worker_that_serves_starves_it() -> None:
    assert not Line.alive(line(progress=980.0, waiting=3), 1000.0)


def test_frames_that_wait_while_nothing_can_serve_do_not() -> None:
    assert Line.alive(line(progress=0.0, waiting=3, serves=False), 1000.0)


def test_a_source_that_stopped_delivering_starves_it() -> None:
    assert Line.alive(line(delivered=980.0), 1000.0)
    assert not Line.alive(line(delivered=960.0), 1000.0)


def test_how_long_a_source_may_be_silent_is_its_own_to_say() -> None:
    assert Line.alive(line(delivered=100.0, patience=1000.0), 1000.0)
    assert not Line.alive(line(delivered=100.0, patience=1000.0), 1101.0)


@pytest.mark.parametrize("excuse", [{"delivered": None}, {"patience": float("inf")}, {"waiting": 5}])
def test_a_source_that_is_broken_ended_unpaced_or_held_back_does_not(excuse: dict[str, Any]) -> None:
    assert Line.alive(line(**{"delivered": 0.0, **excuse}), 1000.0)


class Unit:
    """The inference process as systemd would start it, and what it says on the notify socket."""

    def __init__(self, root: Path) -> None:
        self.rig = Rig(root)
        self.config = root / "etc" / "modelagent.toml"
        self.config.parent.mkdir()
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(root / "notify"))
        self._socket.settimeout(0.2)
        self.write(fps=50.0)
        (root / "run").mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modelagent", "--config", str(self.config), "run", "inference"],
            env=os.environ | {"NOTIFY_SOCKET": str(root / "notify")},
        )

    def write(self, *, fps: float) -> None:
        """Settings with another frame rate."""
        root = self.rig.root
        self.config.write_text(
            f'[paths]\nstate_dir = "{root}/state"\ninference_dir = "{root}/keep"\n'
            f'run_dir = "{root}/run"\ninference_run_dir = "{root}/run"\n'
            f'[models.digits.source]\nkind = "replay"\npath = "{self.rig.source}"\nfps = {fps}\n'
        )

    def listen(self, word: str, limit: float = 20.0) -> None:
        """Wait until a line with `word` has been said after everything heard before."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                lines = self._socket.recv(65536).decode().split("\n")
            except TimeoutError:
                continue
            self.heard += lines
            if any(word in line for line in lines):
                return
        raise AssertionError(f"{word} was not said within {limit:g} s, but {self.heard[-20:]}")

    def rate(self) -> float:
        """The source's rate, as health says."""
        return float((self.rig.health().get("source") or {}).get("rate_fps", 0.0))

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(10)
        self._socket.close()


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    made = Unit(tmp_path)
    yield made
    made.end()


@pytest.mark.process
def test_ready_status_watchdog_and_reload_over_the_notify_socket(unit: Unit) -> None:
    unit.listen("READY=1")
    unit.listen("no model yet")
    unit.listen("WATCHDOG=1")
    unit.rig.frames(unit.rig.scans())
    unit.rig.link("current", unit.rig.slot("digits-1.0.0.tflite", confirmed=True))
    unit.listen("STATUS=digits: 1.0.0 runs")

    unit.write(fps=80.0)
    unit.process.send_signal(signal.SIGHUP)
    unit.listen("RELOADING=1")
    unit.listen("READY=1")
    unit.rig.wait(lambda: unit.rate() == 80.0)
    assert unit.process.poll() is None

    unit.config.write_text("[paths]\nstate_dir = 5\n")
    unit.process.send_signal(signal.SIGHUP)
    unit.listen("RELOADING=1")
    unit.listen("READY=1")
    assert unit.rate() == 80.0, "a bad edit changes nothing"
    before = unit.rig.health()["seq"]
    unit.rig.wait(lambda: unit.rig.health()["seq"] > before)


@pytest.mark.process
def test_a_worker_of_another_version_ends_the_loop_and_blames_no_model(tmp_path: Path) -> None:
    other = tmp_path / "worker.py"
    other.write_text(
        "import json, sys, modelagent\n"
        "modelagent.__version__ = '99.0.0'\n"
        "from modelagent.inference import worker\n"
        "worker.main(json.loads(sys.argv[1]))\n"
    )
    with Rig(tmp_path / "rig") as rig:
        rig.link("current", rig.slot("digits-1.0.0.tflite", confirmed=False))
        rig.frames(rig.scans())
        rig.start(fps=50.0, worker_argv=[sys.executable, str(other)])
        assert rig.process is not None
        assert rig.process.wait(20) == 1
        assert "modelagent was replaced while it ran" in rig.log()
        assert not rig.health().get("refused")
