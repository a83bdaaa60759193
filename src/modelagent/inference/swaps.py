"""What each change of version cost: the time without a result, and the memory.

This file keeps the account. It does not know why a version changed.

    swaps = Swaps()
    swaps.stopped()                       # the old one had to stop first: there was no memory for both
    swaps.begun(worker, gap_s=0.021)      # the new one has its first result
    swaps.report()                        # {"count": 1, "last": {"from": ..., "to": ..., "gap_s": 0.021, ...}}
"""

import time
from typing import Any

from modelagent.inference.workers import Worker


class Swaps:
    """One model's."""

    def __init__(self) -> None:
        self._count = 0
        self._digest = ""  # of the last result
        self._size_kb = 0  # of its worker
        self._overlap = True
        self._last: dict[str, Any] | None = None

    def stopped(self) -> None:
        """The swap that comes is one without both in memory."""
        self._overlap = False

    def begun(self, worker: Worker, gap_s: float) -> None:
        """A worker that took over has its first result, `gap_s` seconds after the last one before it."""
        size_kb = worker.child.resident_kb() or 0
        if self._digest and worker.digest != self._digest:
            self._count += 1
            self._last = {
                "from": self._digest,
                "to": worker.digest,
                "gap_s": round(gap_s, 6),
                "overlap": self._overlap,
                "peak_kb": size_kb + self._size_kb if self._overlap else max(size_kb, self._size_kb),
                "wall": time.time(),
            }
        self._digest, self._size_kb, self._overlap = worker.digest, size_kb, True

    def report(self) -> dict[str, Any]:
        """For health."""
        return {"count": self._count, "last": self._last}
