"""Result sinks: one file each. This page is what they all share: the row, the interface, the thread between.

It knows that a result must never wait for a sink. It does not know what a sink is made of.

    outlet = Outlet(SqliteSink(path, max_bytes=64 << 20))
    outlet.put(row)                # from the serving thread: never waits, never fails
    outlet.lost                    # rows that a slow, full or broken sink cost
    outlet.close(2.0)              # writes what waits, as far as the time allows
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

_log = logging.getLogger(__name__)

_BATCH: Final = 1000  # rows handed over at once
_GATHER: Final = 0.1  # seconds to wait for more rows, so that a busy line costs ten writes a second
_WAIT: Final = 10_000  # rows that may wait; at 200 a second the sink may stand still for 50 s
_COMPLAIN: Final = 60.0  # seconds between two complaints about the same sink


class Row(NamedTuple):
    """One result, written once for every frame.

    `id` is unique for ever (`<epoch>-<number>`), `frame` the source's name of the frame, `wall` Unix seconds of the
    result, `digest` and `version` the release that made it (empty for a frame that none saw). `outcome` is `ok`;
    `faulted` (it killed two workers, or the output was not finite); `dropped` (the queue was full); or `refused`
    (its shape or type does not fit). `detail` is what a decision has beyond a class and a score: see readout.py.
    """

    id: str
    frame: str
    wall: float
    model: str
    digest: str
    version: str
    prediction: int | None
    label: str
    confidence: float | None
    latency_us: float | None
    outcome: str
    detail: dict[str, Any] | None = None


class ResultSink(Protocol):
    """Writes rows. Used by one thread only, which also opens it by its first `write`."""

    name: str

    def write(self, rows: Sequence[Row]) -> None:
        """Write all rows or none.

        Raises:
            OSError: the rows are not written; the next call may succeed.
        """

    def close(self) -> None:
        """Let go of files; a later `write` opens them again."""


class Drain(Protocol):
    """Where rows go: an Outlet, or the rules."""

    @property
    def lost(self) -> int:
        """Rows that came to nothing."""

    @property
    def written(self) -> int:
        """Rows that did not."""

    def put(self, row: Row) -> None:
        """Take a row: never waits, never fails."""

    def close(self, timeout: float) -> None:
        """Finish within so many seconds."""


class Outlet:
    """A sink behind a bounded queue and a thread of its own."""

    def __init__(self, sink: ResultSink, *, capacity: int = _WAIT) -> None:
        self.lost = 0
        self.written = 0
        self._sink = sink
        self._rows: deque[Row] = deque()
        self._capacity = capacity
        self._some = threading.Event()
        self._stop = threading.Event()
        self._complained = -_COMPLAIN
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """Take a row; when too many wait it is lost and counted."""
        if len(self._rows) >= self._capacity:
            self.lost += 1
            return
        self._rows.append(row)
        if not self._some.is_set():
            self._some.set()

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds; what is left is lost."""
        self._stop.set()
        self._some.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._stop.wait(_GATHER)
            self._some.clear()
            while self._rows:
                self._write()
            if self._stop.is_set():
                break
        with contextlib.suppress(OSError):
            self._sink.close()

    def _write(self) -> None:
        count = min(len(self._rows), _BATCH)
        batch = [self._rows[index] for index in range(count)]
        try:
            self._sink.write(batch)
            self.written += count
        except Exception as error:  # noqa: BLE001 - a sink is a plug-in: no fault of one may end its thread for good
            self.lost += count
            now = time.monotonic()
            if now - self._complained >= _COMPLAIN:
                self._complained = now
                text = error if isinstance(error, OSError) else repr(error)
                _log.warning("sink %s: %s; %d results lost so far", self._sink.name, text, self.lost)
        # Only now, so that what is being written still counts against the capacity.
        for _ in range(count):
            self._rows.popleft()
