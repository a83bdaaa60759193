"""What happened, as one document: the same for the broker, for watchers and for whoever reads a schema.

This file knows how a note becomes an event. It does not know where events go.

    numbered = Events("9f2c")                              # a text that is new for each start of the process
    numbered.document("digits", at, Note("activated", "1.1.0 runs"))
    # {"schema": 1, "id": "9f2c-1", "time": "2026-...", "model": "digits", "kind": "activated", ...}

Every event has an id, because it may be delivered twice: who counts events counts ids. Described by
`modelagent/schemas/event.schema.json`.
"""

from datetime import UTC, datetime
from typing import Any, Final

from modelagent.core.effects import Note
from modelagent.core.events import Instant

SCHEMA: Final = 1
EVIDENCE_MAX: Final = 8192  # characters; the whole evidence is in the history, on the device


class Events:
    """Makes documents and numbers them."""

    def __init__(self, epoch: str) -> None:
        """`epoch` is new for each start of the process, so that ids never repeat."""
        self._epoch = epoch
        self._count = 0

    def document(self, model: str, at: Instant, note: Note) -> dict[str, Any]:
        """One note as an event."""
        self._count += 1
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "id": f"{self._epoch}-{self._count}",
            "time": iso(at.wall),
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
        return document


def iso(wall: float) -> str:
    """A moment in UTC, to the millisecond; a clock that is far out of range is shown as the number it gives."""
    try:
        return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):
        return str(wall)
