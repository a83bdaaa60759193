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
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from modelagent.inference.archive import Archive
from modelagent.inference.counters import Tally
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame
from modelagent.inference.results import Drain, Row

_SPANS = 20_000  # remembered; labels that come later than so many samples count once more at worst


class _Recent:
    """The last results, in arrays of fixed size: memory is the same after a minute and after a year."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._numbers = array("q", [0]) * capacity
        self._predictions = array("q", [0]) * capacity
        self._monos = array("d", [0.0]) * capacity
        self._labelled = bytearray(capacity)
        self._digests = [""] * capacity

    def add(self, number: int, digest: str, prediction: int | None, mono: float) -> None:
        place = number % self._capacity
        self._numbers[place] = number
        self._predictions[place] = -1 if prediction is None else prediction
        self._monos[place] = mono
        self._labelled[place] = 0
        self._digests[place] = digest

    def find(self, number: int) -> int | None:
        """The place of a result, None when it is forgotten."""
        place = number % self._capacity
        return place if self._numbers[place] == number else None

    def take(self, place: int) -> tuple[str, int, float, bool]:
        """Digest, prediction, moment, and whether it had a label before; it has one now."""
        before = bool(self._labelled[place])
        self._labelled[place] = 1
        return self._digests[place], self._predictions[place], self._monos[place], before


class Records:
    """The results of one model in one run of the process.

    Args:
        model: its name.
        epoch: names this run; the first part of every id.
        outlets: where rows go.
        recent: results remembered for labels.
        horizon: seconds after which a label is late.
        archive: earlier results; None: labels are joined to what is in memory alone.
        thin_s: of labelled frames within so many seconds one is counted as a sample; 0: every one.
    """

    def __init__(
        self,
        model: str,
        epoch: str,
        outlets: Sequence[Drain],
        *,
        recent: int,
        horizon: float,
        thin_s: float = 0.0,
        archive: Archive | None = None,
    ) -> None:
        self.tally = Tally()
        self.outlets = tuple(outlets)
        self.last: tuple[str, float] | None = None
        self._model = model
        self._epoch = epoch
        self._number = 0
        self._recent = _Recent(recent)
        self._horizon = horizon
        self._thin_s = thin_s
        self._archive = archive
        self._sampled: OrderedDict[int, None] = OrderedDict()  # spans of `thin_s` that have their sample

    def done(self, frame: Frame, digest: str, version: str, decision: Decision, latency_us: float) -> str:
        """A frame has its result; returns the id."""
        wall = time.time()
        with self.tally.lock:
            self._number += 1
            name = f"{self._epoch}-{self._number}"
            counts = self.tally.of(digest)
            counts.busy(frame.mono)
            counts.decided(decision.prediction, decision.confidence, latency_us)
            self._recent.add(self._number, digest, decision.prediction, frame.mono)
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
            decision.detail,
        )
        for outlet in self.outlets:
            outlet.put(row)
        if frame.answer is not None:
            frame.answer(row)
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
        if frame.answer is not None:
            frame.answer(row)

    def fault(self, digest: str, code: str) -> None:
        """A version crashed, hung or gave NaN, and the blame is its own."""
        with self.tally.lock:
            self.tally.of(digest).faults[code] += 1

    def recovered(self, digest: str, mono: float) -> None:
        """The runtime failed on a frame of that moment, and did it when it was asked again."""
        with self.tally.lock:
            self.tally.of(digest).recovered(mono)

    def label(
        self, name: str, *, label: int | None, right: bool | None, running: str, again: bool = False
    ) -> bool | None:
        """Join one label to its result and count it for the version that made the result.

        Args:
            name: the result's id.
            label: the true class, or None where only `right` is known.
            right: whether the prediction was right, or None where `label` is known.
            running: the version that labels of no known result are counted under.
            again: it may have been read by an earlier run: then a repetition is none of the sender's.

        Returns:
            Whether the prediction was right; None when the label could not be joined.
        """
        epoch, _, digits = name.rpartition("-")
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else 0
        with self.tally.lock:
            place = self._recent.find(number) if epoch == self._epoch and number else None
            if place is not None:
                digest, prediction, mono, before = self._recent.take(place)
                if self._archive is not None:
                    self._archive.mark(name)
        if place is None:
            return self._label_earlier(name, epoch, number, label=label, right=right, running=running, again=again)
        with self.tally.lock:
            counts = self.tally.of(digest)
            labels = counts.labels
            if before:
                labels["duplicate"] += 1
                return None
            if time.monotonic() - mono > self._horizon:
                labels["late"] += 1
                return None
            verdict = right if right is not None else label == prediction
            labels["right" if verdict else "wrong"] += 1
            if self._is_sample(mono):
                counts.samples["right" if verdict else "wrong"] += 1
            return verdict

    def _label_earlier(
        self, name: str, epoch: str, number: int, *, label: int | None, right: bool | None, running: str, again: bool
    ) -> bool | None:
        """A label of an earlier run's result, or of one that is no longer in memory."""
        earlier = self._archive.find(name) if self._archive is not None and number else None
        with self.tally.lock:
            if earlier is None or self._archive is None:
                # A number that was never given out is nobody's; what an earlier run gave out and no file has is late.
                known = bool(epoch and number) and (epoch != self._epoch or number <= self._number)
                if not again:
                    self.tally.of(running).labels["late" if known else "unknown"] += 1
                return None
            if not self._archive.mark(name):
                if not again:
                    self.tally.of(earlier.digest).labels["duplicate"] += 1
                return None
            counts = self.tally.of(earlier.digest)
            if time.time() - earlier.wall > self._horizon:
                counts.labels["late"] += 1
                return None
            verdict = right if right is not None else label == earlier.prediction
            counts.labels["right" if verdict else "wrong"] += 1
            # Wall seconds and seconds since boot must not share a span.
            if self._is_sample(-earlier.wall):
                counts.samples["right" if verdict else "wrong"] += 1
            return verdict

    def _is_sample(self, mono: float) -> bool:
        """Whether this labelled frame is the first of its span: neighbours show the same scene."""
        if self._thin_s <= 0.0:
            return True
        span = int(mono / self._thin_s)
        if span in self._sampled:
            return False
        self._sampled[span] = None
        if len(self._sampled) > _SPANS:
            self._sampled.popitem(last=False)
        return True

    def close(self, timeout: float) -> None:
        """Write out what waits."""
        deadline = time.monotonic() + timeout
        for outlet in self.outlets:
            outlet.close(max(0.0, deadline - time.monotonic()))
