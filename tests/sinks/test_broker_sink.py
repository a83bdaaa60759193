"""Notes as events for the broker."""

import json
from collections.abc import Mapping
from typing import Any

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks.mqtt import EVIDENCE_MAX, BrokerSink

AT = Instant(1_700_000_000.25, 1.0, "boot")


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.status: Mapping[str, Any] = {}

    def report(self, tail: str, document: Mapping[str, Any]) -> None:
        self.events.append((tail, document))

    def set_status(self, document: Mapping[str, Any]) -> None:
        self.status = document


def test_each_note_is_one_event_with_its_own_id() -> None:
    recorder = Recorder()
    sink = BrokerSink(recorder, "9f2c")
    sink.send("digits", AT, [Note("activated", "1.1.0 runs", version="1.1.0"), Note("drift", "x", level="alarm")])
    (tail, first), (_, second) = recorder.events
    assert tail == "event"
    assert first == {
        "schema": 1,
        "id": "9f2c-1",
        "time": "2023-11-14T22:13:20.250+00:00",
        "model": "digits",
        "kind": "activated",
        "level": "info",
        "text": "1.1.0 runs",
        "version": "1.1.0",
    }
    assert (second["id"], second["level"]) == ("9f2c-2", "alarm")
    json.dumps([first, second])


def test_evidence_goes_along_unless_it_is_huge() -> None:
    recorder = Recorder()
    sink = BrokerSink(recorder, "e")
    sink.send("digits", AT, [Note("a", "", evidence={"n": 300}), Note("b", "", evidence={"x": "y" * EVIDENCE_MAX})])
    assert recorder.events[0][1]["evidence"] == {"n": 300}
    assert "evidence" not in recorder.events[1][1]


def test_a_wild_clock_does_not_stop_an_event() -> None:
    recorder = Recorder()
    BrokerSink(recorder, "e").send("digits", Instant(1e18, 1.0, "boot"), [Note("a", "")])
    assert recorder.events[0][1]["time"] == "1e+18"


def test_the_status_passes_through() -> None:
    recorder = Recorder()
    BrokerSink(recorder, "e").set_status({"models": {}})
    assert recorder.status == {"models": {}}
