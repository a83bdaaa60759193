"""Notes and status as news for watchers."""

from collections.abc import Mapping
from typing import Any

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks.watch import WatchSink

AT = Instant(1_700_000_000.25, 1.0, "boot")


def test_each_note_is_an_event_and_only_a_new_status_is_told() -> None:
    told: list[Mapping[str, Any]] = []
    sink = WatchSink(told.append, "9f2c")
    sink.send("digits", AT, [Note("activated", "1.1.0 runs"), Note("confirmed", "1.1.0")])
    sink.set_status({"models": {}})
    sink.set_status({"models": {}})
    assert [document["event"]["id"] for document in told[:2]] == ["9f2c-w-1", "9f2c-w-2"]
    assert told[2:] == [{"status": {"models": {}}}]
