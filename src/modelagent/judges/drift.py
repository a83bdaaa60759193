"""Later: has something changed, at a time nobody knows?

This file knows two cumulative-sum charts and how often each alarms without cause. It does not know what is measured
nor what an alarm leads to (the feedback policy and a report; a revert only by the operator's wish).

    chart = BernoulliChart(p0=0.10, p1=0.20, threshold=threshold_for(run_length=1000))
    for wrong in labels: chart = chart.after(wrong)
    chart.alarm

Charts are frozen values, so they can be stored and continued. The outcomes must be thinned: thirty frames a second of
the same scene are not thirty samples (one per event, or per some seconds).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

MIN_BASELINE: Final = 100  # with fewer the chart mistakes the error of its own baseline for a change


@dataclass(frozen=True, slots=True)
class BernoulliChart:
    """Log-likelihood-ratio CUSUM for yes/no outcomes: p0 is normal, p1 is the level that must be found.

    S becomes max(0, S + log of the likelihood ratio); alarm at S >= threshold. Page, "Continuous inspection schemes",
    Biometrika 41 (1954) 100-115; optimal by Moustakides, Annals of Statistics 14 (1986) 1379-1387.
    """

    p0: float
    p1: float
    threshold: float
    value: float = 0.0
    count: int = 0  # outcomes seen

    def __post_init__(self) -> None:
        """Refuse what is no chart.

        Raises:
            ValueError: naming the values.
        """
        if not 0.0 < self.p0 < self.p1 < 1.0 or self.threshold <= 0.0:
            raise ValueError(f"0 < p0 < p1 < 1 and a threshold above 0 are needed, not {self}")

    def after(self, yes: bool) -> Self:
        """The chart after one more outcome."""
        ratio = self.p1 / self.p0 if yes else (1.0 - self.p1) / (1.0 - self.p0)
        value = max(0.0, self.value + math.log(ratio))
        return dataclasses.replace(self, value=value, count=self.count + 1)

    def after_many(self, yes: int, no: int) -> Self:
        """The chart after outcomes whose order is not known, spread evenly; ends early at an alarm."""
        chart, total = self, yes + no
        for number in range(total):
            chart = chart.after((number + 1) * yes // total > number * yes // total)
            if chart.alarm:
                break
        return chart

    @property
    def alarm(self) -> bool:
        """Whether the level has changed."""
        return self.value >= self.threshold


def threshold_for(run_length: float) -> float:
    """Threshold of a likelihood-ratio CUSUM whose mean run to a false alarm is at least `run_length` outcomes.

    h = ln(run length): Lorden, "Procedures for reacting to a change in distribution", Annals of Mathematical
    Statistics 42 (1971) 1897-1908, theorem 2. A bound; the true run is several times longer.
    """
    if run_length <= 1.0:
        raise ValueError(f"a run length above 1 is needed, not {run_length}")
    return math.log(run_length)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A frozen normal state: mean and standard deviation of at least `MIN_BASELINE` thinned values."""

    mean: float
    deviation: float
    count: int


def freeze(values: Sequence[float]) -> Baseline:
    """Take the normal state from values seen while all was well.

    Raises:
        ValueError: for fewer than `MIN_BASELINE` values, or for values that are all the same.
    """
    if len(values) < MIN_BASELINE:
        raise ValueError(f"a baseline needs at least {MIN_BASELINE} values, not {len(values)}; wait for more")
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    if variance <= 0.0:
        raise ValueError("all values of the baseline are the same; this measure cannot show a change")
    return Baseline(mean, math.sqrt(variance), len(values))


@dataclass(frozen=True, slots=True)
class Chart:
    """Two-sided tabular CUSUM of a real value against a frozen baseline, in units of its standard deviation.

    `allowance` is half the shift that shall be found, `threshold` the alarm level. Montgomery, "Introduction to
    Statistical Quality Control", 9.1. The textbook's threshold 5 alarms once in 465 values without cause; with a
    baseline of 100 values, whose own error counts, 10 or more is needed for thousands.
    """

    baseline: Baseline
    allowance: float = 0.5
    threshold: float = 10.0
    high: float = 0.0
    low: float = 0.0
    count: int = 0

    def after(self, value: float) -> Self:
        """The chart after one more value."""
        z = (value - self.baseline.mean) / self.baseline.deviation
        high = max(0.0, self.high + z - self.allowance)
        low = max(0.0, self.low - z - self.allowance)
        return dataclasses.replace(self, high=high, low=low, count=self.count + 1)

    @property
    def alarm(self) -> str:
        """Which way it changed: `higher`, `lower`, or an empty string while nothing has."""
        if self.high >= self.threshold:
            return "higher"
        return "lower" if self.low >= self.threshold else ""


def run_length(allowance: float, threshold: float, shift: float = 0.0) -> float:
    """Mean number of values to an alarm of a two-sided chart whose baseline is exact.

    Siegmund's approximation, "Sequential Analysis" (1985), 2.6, with the usual correction of 1.166 for the overshoot;
    the two sides combine as 1/L = 1/L_high + 1/L_low.

    Args:
        allowance: as in `Chart`.
        threshold: as in `Chart`.
        shift: true change of the mean in standard deviations; 0 gives the mean run to a false alarm.
    """
    return 1.0 / (1.0 / _one_sided(shift - allowance, threshold) + 1.0 / _one_sided(-shift - allowance, threshold))


def _one_sided(drift: float, threshold: float) -> float:
    height = threshold + 1.166
    if abs(drift) < 1e-9:
        return height * height
    exponent = min(700.0, -2.0 * drift * height)  # beyond 700 the run is longer than any device lives
    return (math.exp(exponent) + 2.0 * drift * height - 1.0) / (2.0 * drift * drift)
