"""What each change of version cost: the time without a result, and the memory.

This file keeps the account. It does not know why a version changed.

    swaps = Swaps()
    swaps.stopped("memory", available_kb=80_000, needed_kb=120_000)    # nobody serves from now on
    swaps.begun(worker, gap_s=0.021)      # the new one has its first result
    swaps.report()                        # {"count": 1, "last": {"from": ..., "to": ..., "gap_s": 0.021, ...}}

`gap_s` lies between two results, however rare frames are; `without_s` is how long no worker was there to give one: 0
where the new one was loaded beside the old one.
"""

import time
from typing import Any, Final

from modelagent.inference.workers import Worker

BESIDE: Final = "beside"  # both in memory, switched at a frame boundary
MEMORY: Final = "memory"  # no memory for both: the old one stopped, then the new one was loaded
FAULT: Final = "fault"  # the old one failed
IDLE: Final = "idle"  # for a while nothing was to run


class Swaps:
    """One model's."""

    def __init__(self) -> None:
        self._count = 0
        self._digest = ""  # of the last result
        self._size_kb = 0  # of its worker
        self._how = BESIDE
        self._since = 0.0  # when it stopped, seconds since boot
        self._room: dict[str, int] = {}
        self._last: dict[str, Any] | None = None

    def stopped(self, why: str, *, available_kb: int = 0, needed_kb: int = 0) -> None:
        """Nobody serves from now on, and why; for MEMORY with what was available and what was needed, KiB."""
        if self._how == BESIDE:  # the first reason is the one: a load that fails later changes nothing about it
            self._how, self._since = why, time.monotonic()
            self._room = {"available_kb": available_kb, "needed_kb": needed_kb} if why == MEMORY else {}

    def serves(self, worker: Worker) -> None:
        """A worker has been handed over; one of the version that stopped makes good what stopped it."""
        if worker.digest == self._digest:
            self._how, self._room = BESIDE, {}

    def begun(self, worker: Worker, gap_s: float) -> None:
        """A worker that took over has its first result, `gap_s` seconds after the last one before it."""
        size_kb = worker.child.resident_kb() or 0
        if self._digest and worker.digest != self._digest:
            overlap = self._how == BESIDE
            self._count += 1
            self._last = {
                "from": self._digest,
                "to": worker.digest,
                "gap_s": round(gap_s, 6),
                "how": self._how,
                "without_s": 0.0 if overlap else round(max(0.0, worker.since - self._since), 6),
                "overlap": overlap,
                "peak_kb": size_kb + self._size_kb if overlap else max(size_kb, self._size_kb),
                "wall": time.time(),
                **self._room,
            }
        self._digest, self._size_kb = worker.digest, size_kb
        self._how, self._room = BESIDE, {}

    def report(self) -> dict[str, Any]:
        """For health."""
        return {"count": self._count, "last": self._last}
