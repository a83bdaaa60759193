"""`modelagent watch`: news of the control socket as lines, for people and for programs."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelagent import cli
from modelagent.cli import main
from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.errors import UsageError
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.control import ControlServer
from modelagent.sinks.watch import WatchSink

AT = Instant(1_700_000_000.0, 1.0, "boot")
MODELS = {"digits": {"phase": "Idle", "waiting": ""}, "gauge": {"phase": "Deferred", "waiting": "on hold"}}


def submit(request: Request, reply: Reply) -> None:
    reply(answer(request.id, "done"))


def view(request: Request) -> Mapping[str, Any]:
    if request.model == "missing":
        raise UsageError("no model 'missing' here", code="no-model")
    return {"models": MODELS}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    (tmp_path / "modelagent.toml").write_text(
        f"[paths]\nrun_dir = '{tmp_path}'\n[models.digits]\n[models.gauge]\n[models.missing]\n"
    )
    with ControlServer(tmp_path / "control.sock", Desk(submit=submit, view=view, now=lambda: 0.0)) as running:
        yield running


def wait_until(true: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def watch(tmp_path: Path, server: ControlServer, count: int, *options: str) -> list[str]:
    """The lines that a watcher prints: `count` while three things happen, and what comes when the updater ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modelagent", "--config", str(tmp_path / "modelagent.toml"), "watch", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
    )
    try:
        wait_until(lambda: server.watchers == 1)
        sink = WatchSink(server.broadcast, "e1")
        sink.send("digits", AT, [Note("activated", "1.1.0 runs", version="1.1.0")])
        sink.send("gauge", AT, [Note("drift", "the input\n\x1b[31mchanged", level="alarm")])
        sink.set_status({"models": MODELS | {"digits": {"phase": "Probation", "waiting": "on probation"}}})
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(count)]
        server.stop()
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == cli.UNREACHABLE
    if "--json" not in options:
        assert "the updater has ended" in error
    return "".join([*lines, out]).splitlines()


@pytest.mark.process
def test_people_get_a_line_for_each_piece_of_news(tmp_path: Path, server: ControlServer) -> None:
    lines = [line.partition("  ")[2] for line in watch(tmp_path, server, 5)]
    assert lines == [
        "digits is in Idle",
        "gauge is in Deferred: on hold",
        "digits 1.1.0: activated: 1.1.0 runs",
        r"gauge: drift: the input\n\x1b[31mchanged",
        "digits is in Probation: on probation",
    ]


@pytest.mark.process
def test_programs_get_a_document_for_each(tmp_path: Path, server: ControlServer) -> None:
    documents = [json.loads(line) for line in watch(tmp_path, server, 3, "--json", "-m", "digits")]
    assert [next(iter(document)) for document in documents] == ["status", "event", "status", "error"]
    assert documents[1]["event"]["kind"] == "activated"


def test_a_refusal_and_an_absent_updater_are_said(tmp_path: Path, server: ControlServer) -> None:
    arguments = ["--config", str(tmp_path / "modelagent.toml"), "watch", "-m", "missing"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == cli.UNREACHABLE
    assert "no model 'missing' here" in result.stderr
    server.stop()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == cli.UNREACHABLE
    assert "is not running" in result.stderr
