"""The broker as a sink: notes as events, and the retained status.

This file knows the two documents. It does not know MQTT: the session that commands come in by sends them.

    sink = BrokerSink(session, "9f2c")                # a text that is new for each start of the process
    sink.send("digits", at, notes)                    # modelagent/<device>/event: {"id": "9f2c-1", "kind": ...}
    sink.set_status({"models": {...}})                # modelagent/<device>/status, retained

Every event has an id, because the broker may deliver it twice: who counts events counts ids.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from modelagent.core.effects import Note
from modelagent.core.events import Instant

SCHEMA: Final = 1
EVIDENCE_MAX: Final = 8192  # characters; the whole evidence is in the history, on the device


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
        self._epoch = epoch
        self._count = 0

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Queue each note as one event."""
        for note in notes:
            self._count += 1
            document: dict[str, Any] = {
                "schema": SCHEMA,
                "id": f"{self._epoch}-{self._count}",
                "time": _iso(at.wall),
                "model": model,
                "kind": note.kind,
                "level": note.level,
                "text": note.text,
            }
            for key in ("version", "digest", "phase", "origin"):
                if value := getattr(note, key):
                    document[key] = value
            if note.evidence and len(repr(note.evidence)) <= EVIDENCE_MAX:
                document["evidence"] = dict(note.evidence)
            self._publisher.report("event", document)

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Replace the retained status; the session adds schema, device and online."""
        self._publisher.set_status(document)


def _iso(wall: float) -> str:
    try:
        return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):
        return str(wall)
