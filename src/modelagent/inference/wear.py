"""Workers that wear out: memory that only grows, inferences that take ever longer.

This file knows when that is so. It does not know what is done about it, and reads no clock and no file.

    wear = Wear(limit_mb=200.0, latency_ms=50.0)        # what the release promises
    wear.look(rss_kb=48_000, invoke_us=900.0, frames=200)      # once a second: "" | "leak" | "slow"; `reason` says more

A worker is compared with itself: what it took when it was young. So a device that is slow as a whole, or a release
that promised too little, wears nobody out: a fresh worker would be no better. Leaking is a resident size above the
promise and a quarter above its own start. Slow is an inference above the promise and eight times its own start, for
five looks in a row.
"""

from typing import Final

_YOUNG: Final = 100  # frames after which it is what it will be
_GROWN: Final = 1.25  # times its size when young
_SLOWER: Final = 8.0  # times its time when young
_LOOKS: Final = 5


class Wear:
    """One worker's."""

    def __init__(self, *, limit_mb: float, latency_ms: float) -> None:
        self.reason = ""
        self._limit_kb = limit_mb * 1024.0
        self._limit_us = latency_ms * 1000.0
        self._young_kb = 0
        self._young_us = 0.0
        self._slow = 0

    def look(self, *, rss_kb: int, invoke_us: float, frames: int) -> str:
        """Look at it.

        Args:
            rss_kb: resident memory now.
            invoke_us: what an inference takes lately.
            frames: how many it has done.
        """
        if frames < _YOUNG:
            return ""
        if not self._young_kb:
            self._young_kb, self._young_us = max(rss_kb, 1), max(invoke_us, 1.0)
            return ""
        if rss_kb > max(self._limit_kb, _GROWN * self._young_kb):
            self.reason = (
                f"it takes {rss_kb // 1024} MB, {self._young_kb // 1024} MB when it was young, "
                f"promised are {self._limit_kb / 1024:.0f} MB"
            )
            return "leak"
        slow = invoke_us > max(self._limit_us, _SLOWER * self._young_us)
        self._slow = self._slow + 1 if slow else 0
        if self._slow >= _LOOKS:
            self.reason = (
                f"an inference takes {invoke_us / 1000:.1f} ms, {self._young_us / 1000:.1f} ms when it was young, "
                f"promised are {self._limit_us / 1000:.0f} ms"
            )
            return "slow"
        return ""
