"""How slow inference has been lately: p95 of the last minute or two, out of counts that only grow.

This file knows the latency histogram of a health record. It does not know what is too slow.

    recent = RecentLatency()
    recent.p95_ms(reading.document, mono)        # 41.0, or None while there is too little to say
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

_WINDOW_S: Final = 60.0
_LEAST: Final = 20  # results below which a p95 says nothing
_SHARE: Final = 0.95
_MOST: Final = 2**53  # no count grows so far, and beyond it arithmetic fails


@dataclass(frozen=True, slots=True)
class _Mark:
    key: tuple[str, str]  # epoch and digest: counts of another one are not comparable
    mono: float
    counts: tuple[int, ...]


class RecentLatency:
    """Remembers two looks, a minute apart; what was counted since the older one is recent."""

    def __init__(self) -> None:
        self._older: _Mark | None = None
        self._newer: _Mark | None = None

    def p95_ms(self, document: Mapping[str, Any] | None, mono: float) -> float | None:
        """Milliseconds, by the upper bound of the bucket; None when not known, infinite above the last bound."""
        found = _histogram(document)
        if found is None:
            self._older = self._newer = None
            return None
        key, bounds, counts = found
        if self._older is None or self._older.key != key or len(self._older.counts) != len(counts):
            self._older = self._newer = _Mark(key, mono, counts)
        elif self._newer is not None and mono - self._newer.mono >= _WINDOW_S:
            self._older, self._newer = self._newer, _Mark(key, mono, counts)
        recent = [max(0, now - then) for now, then in zip(counts, self._older.counts, strict=True)]
        total = sum(recent)
        if total < _LEAST:
            return None
        place = next(n for n, sofar in enumerate(accumulate(recent)) if sofar >= _SHARE * total)
        return bounds[place] / 1000.0 if place < len(bounds) else float("inf")


def _histogram(document: Mapping[str, Any] | None) -> tuple[tuple[str, str], list[float], tuple[int, ...]] | None:
    """Epoch and digest, bounds (microseconds) and counts of what runs; None for a record that has none."""
    try:
        digest = str((document or {})["running"]["digest"])
        latency = (document or {})["counters"][digest]["latency_us"]
        bounds, counts = [float(bound) for bound in latency["bounds"]], tuple(int(n) for n in latency["counts"])
        epoch = str((document or {})["epoch"])
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    good = len(counts) == len(bounds) + 1 and all(0 <= count < _MOST for count in counts)
    return ((epoch, digest), bounds, counts) if good else None
