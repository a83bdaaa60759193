"""What is counted of each version, and the histograms.

This file counts and prints. It does not know what the counts mean or who judges them.

    tally = Tally()
    with tally.lock: tally.of(digest).done += 1
    tally.report()                            # the `counters` of health.json

Counts are cumulative for one run of the process (its epoch); whoever wants evidence takes differences.
"""

import threading
from bisect import bisect_left
from collections import OrderedDict
from typing import Any, Final

# Microseconds, three per decade from 10 us to 10 s; the last bucket has no upper bound.
LATENCY_BOUNDS: Final = (*(step * 10**power for power in range(1, 7) for step in (1, 2, 5)), 10**7)
CONFIDENCE_BOUNDS: Final = tuple(round(0.05 * step, 2) for step in range(1, 21))
FAULTS: Final = ("crash", "hang", "not-finite", "leak", "slow", "recovered")
LABELS: Final = ("right", "wrong", "unknown", "late", "duplicate")
_VERSIONS: Final = 8  # kept; older ones have been judged long ago
_CLASSES: Final = 1000  # different classes counted per version; the rest are summed up as "other"


class Histogram:
    """Counts per bucket: bucket i holds values up to and including bounds[i], the last one all larger ones."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def report(self) -> dict[str, Any]:
        """For health.json."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


class Counts:
    """Of one version."""

    def __init__(self) -> None:
        self.done = 0
        self.dropped = 0
        self.refused = 0
        self.faulted = 0
        self.faults = dict.fromkeys(FAULTS, 0)
        self.labels = dict.fromkeys(LABELS, 0)
        self.samples = dict.fromkeys(("right", "wrong"), 0)  # labels, but one of neighbouring frames: for the judges
        self.busy_s = 0
        self.unsteady_s = 0
        self.latency = Histogram(LATENCY_BOUNDS)
        self.confidence = Histogram(CONFIDENCE_BOUNDS)
        self.classes: dict[int, int] = {}
        self._second = -1
        self._unsteady = -1

    def busy(self, mono: float) -> None:
        """A frame came at that moment (seconds since boot)."""
        second = int(mono)
        if second != self._second:
            self._second = second
            self.busy_s += 1

    def recovered(self, mono: float) -> None:
        """A frame that came at that moment failed, and succeeded when it was run again: once a second is enough."""
        self.faults["recovered"] += 1
        second = int(mono)
        if second > self._unsteady:
            self._unsteady = second
            self.unsteady_s += 1

    def decided(self, prediction: int | None, confidence: float | None, latency_us: float) -> None:
        """A frame has its result."""
        self.done += 1
        self.latency.add(latency_us)
        if confidence is not None:
            self.confidence.add(confidence)
        if prediction is not None:
            if prediction not in self.classes and len(self.classes) >= _CLASSES:
                prediction = -1
            self.classes[prediction] = self.classes.get(prediction, 0) + 1

    def report(self) -> dict[str, Any]:
        """For health.json. `frames` are all that came while this version was the one to run."""
        return {
            "frames": self.done + self.dropped + self.refused + self.faulted,
            "done": self.done,
            "dropped": self.dropped,
            "refused": self.refused,
            "faults": dict(self.faults),
            "faulted": self.faulted,
            "busy_s": self.busy_s,
            "unsteady_s": self.unsteady_s,
            "latency_us": self.latency.report(),
            "confidence": self.confidence.report(),
            "classes": {("other" if k < 0 else str(k)): n for k, n in self.classes.items()},
            "labels": dict(self.labels),
            "samples": dict(self.samples),
        }


class Tally:
    """Counts of the last versions. Hold `lock` while changing what `of` returns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._versions: OrderedDict[str, Counts] = OrderedDict()

    def of(self, digest: str) -> Counts:
        """The counts of that version, made when first asked for."""
        counts = self._versions.get(digest)
        if counts is not None:
            self._versions.move_to_end(digest)  # the version that runs is never the one to go, however old it is
        else:
            counts = self._versions[digest] = Counts()
            if len(self._versions) > _VERSIONS:
                self._versions.popitem(last=False)
        return counts

    def report(self) -> dict[str, Any]:
        """For health.json; frames that came before any version ran are under the empty digest."""
        with self.lock:
            return {digest: counts.report() for digest, counts in self._versions.items()}
