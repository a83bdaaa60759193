"""The log's lines, and that no sink can hurt another."""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import pytest

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks import Sinks
from modelagent.sinks.log import LogSink, configure, escape, is_journal

AT = Instant(1_700_000_000.0, 1.0, "boot")
NOTE = Note("activated", "1.1.0 runs", version="1.1.0", phase="Probation", evidence={"gap_ms": [1, 2], "none": None})


@pytest.fixture(autouse=True)
def _root_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


@pytest.mark.parametrize(("level", "prefix"), [("info", "<6>"), ("warning", "<4>"), ("alarm", "<2>"), ("odd", "<6>")])
def test_the_journal_gets_priorities(level: str, prefix: str) -> None:
    stream = io.StringIO()
    configure("info", "updater", stream, journal=True)
    LogSink().send("digits", AT, [Note("drift", "the input changed", level=level)])
    assert stream.getvalue() == f"{prefix}digits: drift: the input changed\n"


def test_a_person_gets_time_level_and_facts() -> None:
    stream = io.StringIO()
    configure("info", "updater", stream)
    LogSink().send("digits", AT, [NOTE])
    stamp, level, rest = stream.getvalue().split(maxsplit=2)
    assert stamp.endswith("Z")
    assert level == "info"
    assert rest == "updater: digits: activated: 1.1.0 runs (version=1.1.0 phase=Probation gap_ms=[1, 2])\n"


def test_the_level_is_kept_and_may_be_changed() -> None:
    stream = io.StringIO()
    configure("warning", "updater", stream)
    LogSink().send("digits", AT, [NOTE])
    assert stream.getvalue() == ""
    configure("info", "updater", stream)
    LogSink().send("digits", AT, [NOTE])
    assert len(stream.getvalue().splitlines()) == 1


def test_a_message_from_outside_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    configure("info", "updater", stream, journal=True)
    logging.getLogger("x").warning("asked by %s", "me\n<2>all is lost\x1b[2J")
    assert stream.getvalue() == "<4>asked by me\\n<2>all is lost\\x1b[2J\n"
    assert escape("grüße \ud800") == "grüße \\ud800"


def test_every_line_of_a_traceback_has_its_priority() -> None:
    stream = io.StringIO()
    configure("info", "updater", stream, journal=True)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    assert all(line.startswith("<3>") for line in stream.getvalue().splitlines())


def test_the_journal_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w", encoding="utf-8") as stream:
        status = os.fstat(stream.fileno())
        assert not is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(stream)
    assert not is_journal(io.StringIO())


def test_a_failing_sink_is_counted_and_hurts_nobody() -> None:
    class Broken:
        name = "broken"

        def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
            raise OSError("no space left")

    class Kept:
        name = "kept"

        def __init__(self) -> None:
            self.notes: list[Note] = []

        def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
            self.notes += notes

    kept = Kept()
    configure("error", "updater", sys.stderr)
    sinks = Sinks([Broken(), kept])
    sinks.send("digits", AT, [NOTE])
    sinks.send("digits", AT, [NOTE])
    assert sinks.failures == {"broken": 2, "kept": 0}
    assert kept.notes == [NOTE, NOTE]
