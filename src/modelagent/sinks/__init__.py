"""Where the updater's notes go: the log, the broker.

This file knows what a sink is and that none may hurt the others. It does not know any of them. History is no sink: it
is written with the state, durably, before the world changes.

    sinks = Sinks([LogSink(), BrokerSink(session, "9f2c")])
    sinks.send("digits", at, notes)          # a sink that fails loses these notes, and is counted
    sinks.failures                           # {"log": 0, "broker": 0}
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from modelagent.core.effects import Note
from modelagent.core.events import Instant

_log = logging.getLogger("modelagent.sinks")


class Sink(Protocol):
    """Takes notes and returns at once; whether anybody reads them steers nothing."""

    @property
    def name(self) -> str:
        """A short stable word, for counting."""

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Pass the notes of one model on; may raise anything, see Sinks."""


class Sinks:
    """Several sinks as one that never fails."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._failures = {sink.name: 0 for sink in self._sinks}

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each sink failed since the start."""
        return dict(self._failures)

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Give the notes to every sink, in order."""
        for sink in self._sinks:
            try:
                sink.send(model, at, notes)
            except Exception as error:  # noqa: BLE001 - the one place where any fault of a plug-in is outlived
                self._failures[sink.name] += 1
                if self._failures[sink.name] == 1:
                    _log.warning("sink %s failed, its notes are lost: %r", sink.name, error)
