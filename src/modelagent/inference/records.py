"""Where every frame ends: one row, counted once.

This file knows the row of a result, the counts behind it and the memory of recent results that labels are joined to.
It does not know frames' contents, workers or sinks' insides.

    records = Records("digits", epoch, outlets, recent=20_000, horizon=7 * 86400.0)
    records.done(frame, worker_digest, version, decision, latency_us)      # -> the result's id
    records.lost(frame, digest, version, "dropped")
    records.label("9f2c-17", label=7, right=None, running=digest)

Any thread may call.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from modelagent.inference.counters import Tally
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame
from modelagent.inference.results import Outlet, Row


class _Result(NamedTuple):
    digest: str
    prediction: int | None
    mono: float


class Records:
    """The results of one model in one run of the process.

    Args:
        model: its name.
        epoch: names this run; the first part of every id.
        outlets: where rows go.
        recent: results remembered for labels.
        horizon: seconds after which a label is late.
    """

    def __init__(self, model: str, epoch: str, outlets: Sequence[Outlet], *, recent: int, horizon: float) -> None:
        self.tally = Tally()
        self.outlets = tuple(outlets)
        self.last: tuple[str, float] | None = None
        self._model = model
        self._epoch = epoch
        self._number = 0
        self._recent: OrderedDict[str, _Result | None] = OrderedDict()  # None: has had its label
        self._capacity = recent
        self._horizon = horizon

    def done(self, frame: Frame, digest: str, version: str, decision: Decision, latency_us: float) -> str:
        """A frame has its result; returns the id."""
        wall = time.time()
        with self.tally.lock:
            self._number += 1
            name = f"{self._epoch}-{self._number}"
            counts = self.tally.of(digest)
            counts.busy(frame.mono)
            counts.decided(decision.prediction, decision.confidence, latency_us)
            self._recent[name] = _Result(digest, decision.prediction, frame.mono)
            if len(self._recent) > self._capacity:
                self._recent.popitem(last=False)
        self.last = (name, wall)
        row = Row(
            name,
            frame.id,
            wall,
            self._model,
            digest,
            version,
            decision.prediction,
            decision.label,
            decision.confidence,
            latency_us,
            "ok",
        )
        for outlet in self.outlets:
            outlet.put(row)
        return name

    def lost(self, frame: Frame, digest: str, version: str, outcome: str) -> None:
        """A frame ends without a result: `dropped`, `refused` or `faulted`."""
        with self.tally.lock:
            self._number += 1
            name = f"{self._epoch}-{self._number}"
            counts = self.tally.of(digest)
            counts.busy(frame.mono)
            if outcome == "dropped":
                counts.dropped += 1
            elif outcome == "refused":
                counts.refused += 1
            else:
                counts.faulted += 1
        row = Row(name, frame.id, time.time(), self._model, digest, version, None, "", None, None, outcome)
        for outlet in self.outlets:
            outlet.put(row)

    def fault(self, digest: str, code: str) -> None:
        """A version crashed, hung or gave NaN, and the blame is its own."""
        with self.tally.lock:
            self.tally.of(digest).faults[code] += 1

    def label(self, name: str, *, label: int | None, right: bool | None, running: str) -> bool | None:
        """Join one label to its result and count it for the version that made the result.

        Args:
            name: the result's id.
            label: the true class, or None where only `right` is known.
            right: whether the prediction was right, or None where `label` is known.
            running: the version that labels of no known result are counted under.

        Returns:
            Whether the prediction was right; None when the label could not be joined.
        """
        with self.tally.lock:
            if name not in self._recent:
                known = self._ours(name)
                self.tally.of(running).labels["unknown" if known is None else "late"] += 1
                return None
            result = self._recent[name]
            if result is None:
                self.tally.of(running).labels["duplicate"] += 1
                return None
            if time.monotonic() - result.mono > self._horizon:
                self.tally.of(result.digest).labels["late"] += 1
                return None
            self._recent[name] = None
            verdict = right if right is not None else label is not None and label == result.prediction
            self.tally.of(result.digest).labels["right" if verdict else "wrong"] += 1
            return verdict

    def _ours(self, name: str) -> int | None:
        """The number of a result that is no longer remembered (of this run or of an earlier one), or None."""
        epoch, _, number = name.rpartition("-")
        if not epoch or not number.isdecimal() or (epoch == self._epoch and int(number) > self._number):
            return None
        return int(number)

    def close(self, timeout: float) -> None:
        """Write out what waits."""
        deadline = time.monotonic() + timeout
        for outlet in self.outlets:
            outlet.close(max(0.0, deadline - time.monotonic()))
