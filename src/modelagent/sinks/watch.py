"""Whoever watches as a sink: notes as events over the control socket, and the status when it changes.

This file knows the two kinds of news. It does not know the socket, and costs nothing while nobody watches.

    sink = WatchSink(control.broadcast, "9f2c")       # a text that is new for each start of the process
    sink.send("digits", at, notes)                    # {"event": {"id": "9f2c-w-1", "kind": "activated", ...}}
    sink.set_status(status)                           # {"status": ...}, when it differs from the last one
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks.event import Events


class WatchSink:
    """Notes and status as news."""

    name = "watch"

    def __init__(self, broadcast: Callable[[Mapping[str, Any]], None], epoch: str) -> None:
        """`broadcast` returns at once; `epoch` is new for each start of the process."""
        self._broadcast = broadcast
        self._events = Events(f"{epoch}-w")
        self._status: Mapping[str, Any] = {}

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Tell each note as one event."""
        for note in notes:
            self._broadcast({"event": self._events.document(model, at, note)})

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Tell the status, as the verb `status` gives it, if it is another than before."""
        if document != self._status:
            self._status = dict(document)
            self._broadcast({"status": self._status})
