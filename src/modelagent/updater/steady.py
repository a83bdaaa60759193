"""Watching a confirmed version: two charts over what health counts, kept over restarts.

This file knows how counts become a baseline and then a chart, and where both are kept. It does not know what an alarm
leads to: it is told to the machine, and its strength to the feedback policy.

    steady = Steady(state_dir / "steady" / "digits.json")
    steady.take(runs, settings.drift).alarm       # "58 of 120 labelled results are wrong, normal is 3.1 %: ..."
    steady.hiccups(digest)                        # (3, 86400): a frame failed at first in 3 s of a day with frames
    steady.quality_drop, steady.drift             # 0 (calm) to 1 (alarm), None while the baseline is not complete

A baseline is frozen once it is complete and belongs to one version: another version begins anew. The error rate that
counts as normal is the upper bound of the baseline's, so that a baseline that was lucky does not cry wolf for ever.
How often it has hiccups is added up from its first second in peace: what the next version is judged by.
What came while nobody looked (inference restarted, updater down) is missing from the charts, never counted twice.
"""

import contextlib
import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from modelagent.core.events import Runs
from modelagent.core.verdicts import SteadyVerdict
from modelagent.durable import have_directory, write_atomic
from modelagent.errors import UNREADABLE
from modelagent.judges.drift import BernoulliChart, Chart, freeze, threshold_for
from modelagent.judges.metrics import wilson

_log = logging.getLogger("modelagent.updater")
_SURE: Final = 0.80  # of the bound that is taken as the normal error rate
_LEAST_RATE: Final = 0.005  # a baseline without errors says little about how few there are
_MOST_RATE: Final = 0.98
_BLOCKS: Final = 100  # mean confidences that say what is normal
_THRESHOLD: Final = 12.0  # of the confidence chart: one false alarm in 50 stable streams of 1,000 blocks
_SAVE_S: Final = 60.0


class Wishes(Protocol):
    """The section `[models.<name>.drift]`."""

    @property
    def enabled(self) -> bool:
        """Watch labelled errors."""

    @property
    def baseline(self) -> int:
        """Labelled results that say what is normal."""

    @property
    def factor(self) -> float:
        """Error rate to be found, in multiples of the normal one."""

    @property
    def run_length(self) -> int:
        """Labelled results from one false alarm to the next."""

    @property
    def confidence(self) -> bool:
        """Watch the mean confidence."""

    @property
    def block(self) -> float:
        """Seconds that give one mean confidence."""

    @property
    def revert(self) -> bool:
        """Compare with the previous version after an alarm."""


@dataclass
class _Memory:
    """What is kept on disk."""

    digest: str = ""
    right: int = 0  # of the baseline
    wrong: int = 0
    value: float = 0.0  # of the chart of errors
    count: int = 0
    errors: int = 0  # since the baseline
    means: list[float] = field(default_factory=list)
    high: float = 0.0
    low: float = 0.0
    blocks: int = 0
    busy_s: int = 0  # seconds with frames
    unsteady_s: int = 0  # of these, in which a frame failed at first
    alarmed: float = 0.0  # Unix seconds, 0: never


class Steady:
    """The charts of one model. A file that cannot be read or written costs their memory, nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = _Memory()
        self._seen: dict[str, tuple[int, int]] = {}  # epoch -> right, wrong
        self._seconds: tuple[str, int, int] | None = None  # epoch, with frames, unsteady
        self._block: tuple[str, float, int, int] | None = None  # epoch, begun, confident, confidence
        self._saved = 0.0
        self._drift: float | None = None
        self._drop: float | None = None
        self._loud = False  # an alarm is on
        with contextlib.suppress(*UNREADABLE):
            self._memory = _Memory(**json.loads(path.read_bytes()))

    @property
    def quality_drop(self) -> float | None:
        """How near the errors are to an alarm, 0 to 1; None while nothing is known."""
        return self._drop

    @property
    def drift(self) -> float | None:
        """How near the confidence is to an alarm, 0 to 1; None while nothing is known."""
        return self._drift

    def hiccups(self, digest: str | None) -> tuple[int, int]:
        """Seconds in which that confirmed version had a hiccup, and its seconds with frames; zeros if unknown."""
        memory = self._memory
        return (memory.unsteady_s, memory.busy_s) if digest and digest == memory.digest else (0, 0)

    @property
    def alarmed(self) -> float | None:
        """When the last alarm was raised, Unix seconds."""
        return self._memory.alarmed or None

    def take(self, event: Runs, wishes: Wishes) -> SteadyVerdict:
        """Take in one health record of the confirmed version that runs."""
        memory = self._memory
        if event.digest != memory.digest:
            self._memory = memory = _Memory(digest=event.digest or "", alarmed=memory.alarmed)
            self._seen.clear()
            self._block = self._drift = self._drop = self._seconds = None
        self._count_seconds(event)
        errors = self._errors(event, wishes) if wishes.enabled else ""
        shift = self._confidence(event, wishes) if wishes.confidence else ""
        begins = bool(errors or shift) and not self._loud
        self._loud = bool(errors or shift)
        if begins:
            memory.alarmed = event.at.wall
        if begins or event.at.mono - self._saved >= _SAVE_S:
            self._save(event.at.mono)
        alarm = "; ".join(text for text in (errors, shift) if text)
        numbers: dict[str, object] = {
            "baseline_wrong": memory.wrong,
            "baseline": memory.right + memory.wrong,
            "labelled": memory.count,
            "wrong": memory.errors,
            "quality_drop": self._drop,
            "blocks": memory.blocks,
            "drift": self._drift,
        }
        # Only errors can be compared: nobody knows which of two confidences is the better one.
        return SteadyVerdict(alarm, wishes.revert and bool(errors), numbers) if alarm else SteadyVerdict()

    def _count_seconds(self, event: Runs) -> None:
        before, counts = self._seconds, event.counts
        self._seconds = (event.epoch, counts.busy_s, counts.unsteady_s)
        if before is not None and before[0] == event.epoch:
            self._memory.busy_s += max(0, counts.busy_s - before[1])
            self._memory.unsteady_s += max(0, counts.unsteady_s - before[2])

    def _errors(self, event: Runs, wishes: Wishes) -> str:
        memory, counts = self._memory, event.counts
        before = self._seen.get(event.epoch)
        self._seen = {event.epoch: (counts.right, counts.wrong)}
        if before is None:  # nobody knows what of it was counted before
            return ""
        right, wrong = max(0, counts.right - before[0]), max(0, counts.wrong - before[1])
        known = memory.right + memory.wrong
        if known < wishes.baseline:
            memory.right += right
            memory.wrong += wrong
            return ""
        _, usual = wilson(memory.wrong, known, _SURE)
        usual = max(_LEAST_RATE, usual)
        bad = min(_MOST_RATE, max(usual * wishes.factor, usual + 0.02))
        if bad - usual < 0.01:  # hardly anything is right: there is nothing left to lose
            return ""
        chart = BernoulliChart(
            usual,
            bad,
            threshold_for(wishes.run_length),
            memory.value,
        ).after_many(wrong, right)
        memory.value = chart.value
        memory.count += right + wrong
        memory.errors += wrong
        self._drop = min(1.0, chart.value / chart.threshold)
        if not chart.alarm:
            return ""
        memory.value = min(memory.value, 1.5 * chart.threshold)  # so that better times can end the alarm
        now = (
            f"{memory.errors} of {memory.count} labelled results are wrong ({memory.errors / memory.count * 100:.1f} %)"
        )
        return f"{now}, normal are {memory.wrong} of {known} ({memory.wrong / known * 100:.1f} %)"

    def _confidence(self, event: Runs, wishes: Wishes) -> str:
        memory, counts, now = self._memory, event.counts, event.at.mono
        block = self._block
        if block is None or block[0] != event.epoch or counts.confident < block[2] or now < block[1]:
            self._block = (event.epoch, now, counts.confident, counts.confidence)
            return self._say_shift()
        number = counts.confident - block[2]
        if now - block[1] < wishes.block or number == 0:
            return self._say_shift()
        self._block = (event.epoch, now, counts.confident, counts.confidence)
        mean = (counts.confidence - block[3]) / number / 1000.0
        memory.blocks += 1
        if len(memory.means) < _BLOCKS:
            memory.means.append(mean)
            return ""
        chart = self._chart(_THRESHOLD)
        if chart is None:
            return ""
        chart = chart.after(mean)
        most = 1.5 * _THRESHOLD
        memory.high, memory.low = min(most, chart.high), min(most, chart.low)
        return self._say_shift()

    def _chart(self, threshold: float) -> Chart | None:
        """None where all blocks were alike to the last digit: such a measure shows nothing."""
        memory = self._memory
        if len(memory.means) < _BLOCKS:
            return None
        with contextlib.suppress(ValueError):
            return Chart(freeze(memory.means), threshold=threshold, high=memory.high, low=memory.low)
        return None

    def _say_shift(self) -> str:
        chart = self._chart(_THRESHOLD)
        if chart is None:
            return ""
        self._drift = min(1.0, max(chart.high, chart.low) / _THRESHOLD)
        if not chart.alarm:
            return ""
        return f"the mean confidence has become {chart.alarm} than its normal {chart.baseline.mean:.3f}"

    def _save(self, mono: float) -> None:
        self._saved = mono
        document: dict[str, Any] = dataclasses.asdict(self._memory)
        try:
            have_directory(self._path.parent)
            write_atomic(self._path, json.dumps(document).encode(), durable=False)
        except OSError as error:
            _log.warning("%s: the drift charts are not kept: %s", self._path, error.strerror)
