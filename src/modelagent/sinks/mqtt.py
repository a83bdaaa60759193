"""The broker as a sink: notes as events, and the retained status.

This file knows the topic's tail. It does not know MQTT: the session that commands come in by sends them.

    sink = BrokerSink(session, "9f2c")                # a text that is new for each start of the process
    sink.send("digits", at, notes)                    # modelagent/<device>/event: {"id": "9f2c-1", "kind": ...}
    sink.set_status({"models": {...}})                # modelagent/<device>/status, retained
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks.event import EVIDENCE_MAX, SCHEMA, Events

__all__ = ["EVIDENCE_MAX", "SCHEMA", "BrokerSink", "Publisher"]


class Publisher(Protocol):
    """The half of the session that sends; both return at once."""

    def report(self, tail: str, document: Mapping[str, Any]) -> None:
        """Queue one event for the topic's `tail`."""

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Replace the retained status."""


class BrokerSink:
    """Notes as events of the device."""

    name = "broker"

    def __init__(self, publisher: Publisher, epoch: str) -> None:
        """`epoch` is new for each start of the process, so that ids never repeat."""
        self._publisher = publisher
        self._events = Events(epoch)

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Queue each note as one event."""
        for note in notes:
            self._publisher.report("event", self._events.document(model, at, note))

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Replace the retained status; the session adds schema, id, device, groups, online, time and dropped."""
        self._publisher.set_status(document)
