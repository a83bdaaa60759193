"""How good a model is on labelled samples, and how far two models are apart on the same ones.

This file knows the metrics of the manifest and the paired bootstrap. It does not know models, gates or verdicts.

    measure("f1", [Scored(label=3, prediction=3), ...])                    # 0.94
    difference("mae", new, old, confidence=0.95, seed=digest)   # Difference(new=0.41, old=0.36, low=-0.09, ...)

A metric of right and wrong needs no bootstrap: its differences have Tango's interval (`paired.py`). For all others
samples are drawn again with replacement, the same ones for both models, and the percentiles of the difference are its
bounds (Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), 13.3). Whole samples are drawn, also for areas
under a curve. The draws follow from the release's digest, so every device with the same evidence decides alike.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final

from modelagent.judges.paired import normal_quantile
from modelagent.manifest import ERRORS, SHARES

RESAMPLES: Final = 2000
FEWEST: Final = 400  # resamples for large sets, whose bounds need fewer
_DRAWS: Final = 4_000_000  # in all: a few seconds on a small device
LEAST_SAMPLES: Final = 50  # with fewer the bootstrap's bounds are too narrow
NAMES: Final = {
    "accuracy": "accuracy",
    "agreement": "agreement with the reference",
    "balanced-accuracy": "balanced accuracy",
    "f1": "macro F1",
    "auc": "area under the ROC curve",
    "anomaly-auc": "area under the ROC curve",
    "mean-iou": "mean IoU",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}

Measure = Callable[[Sequence[int]], float]  # how often each sample counts -> the metric, NaN where it is not defined


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's answer to one sample, as far as a metric needs it.

    `values`: top-k, agreement: 1 or 0 first. auc, anomaly-auc: the score of class 1. mae: the mean absolute error of
    the sample's outputs, rmse: the mean squared one. mean-iou: class, intersection, union, for each class in turn.
    """

    label: int | None = None
    prediction: int | None = None
    values: tuple[float, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction is not None and self.prediction == self.label


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two models, and one-sided bounds of how much *better* the new one is (errors count negatively)."""

    new: float
    old: float
    low: float
    high: float
    resamples: int


def is_share(metric: str) -> bool:
    """Whether the metric is a share of right answers, so that pairs have an exact interval."""
    return metric in SHARES


def lower_is_better(metric: str) -> bool:
    """Whether the metric is an error."""
    return metric in ERRORS


def is_right(metric: str, scored: Scored) -> bool:
    """Whether a sample counts as right, for a metric that is a share."""
    return scored.right if metric == "accuracy" else bool(scored.values) and scored.values[0] == 1.0


def complete(metric: str, samples: Sequence[Scored]) -> bool:
    """Whether every sample has what the metric needs: a set without labels has not."""
    if metric in ("accuracy", "balanced-accuracy", "f1"):
        return all(sample.label is not None and sample.prediction is not None for sample in samples)
    if metric in ("auc", "anomaly-auc"):
        return all(sample.label in (0, 1) and len(sample.values) == 1 for sample in samples)
    if metric == "mean-iou":
        return all(sample.values and len(sample.values) % 3 == 0 for sample in samples)
    return all(sample.values for sample in samples)


def measure(metric: str, samples: Sequence[Scored]) -> float:
    """The metric of these samples; NaN where it is not defined (no sample, or an AUC with one class only).

    Raises:
        ValueError: no such metric.
    """
    return prepare(metric, samples)([1] * len(samples))


def prepare(metric: str, samples: Sequence[Scored]) -> Measure:
    """The metric as a function of how often each sample counts, with all that does not change done beforehand."""
    if is_share(metric):
        return _mean([float(is_right(metric, sample)) for sample in samples])
    match metric:
        case "mae":
            return _mean([sample.values[0] for sample in samples])
        case "rmse":
            squared = _mean([sample.values[0] for sample in samples])
            return lambda counts: math.sqrt(value) if (value := squared(counts)) >= 0.0 else math.nan
        case "balanced-accuracy" | "f1":
            return _confusion(samples, _balanced if metric == "balanced-accuracy" else _macro_f1)
        case "auc" | "anomaly-auc":
            return _area(samples)
        case "mean-iou":
            return _overlap(samples)
    raise ValueError(f"no metric is called {metric!r}")


def difference(
    metric: str, new: Sequence[Scored], old: Sequence[Scored], *, confidence: float, seed: str
) -> Difference:
    """How much better the new model is, with one-sided bounds by the paired bootstrap.

    Args:
        metric: of `manifest.METRICS`.
        new: the new model's samples.
        old: the old model's, the same ones in the same order.
        confidence: of each bound by itself.
        seed: names the draws; the release's digest.

    Raises:
        ValueError: no samples, or not as many of both.
    """
    n = len(new)
    if n != len(old) or n == 0:
        raise ValueError(f"the same samples of both models are needed, not {n} and {len(old)}")
    ours, theirs = prepare(metric, new), prepare(metric, old)
    sign = -1.0 if lower_is_better(metric) else 1.0
    resamples = max(FEWEST, min(RESAMPLES, _DRAWS // n))
    found = []
    for number in range(resamples):
        counts = _draw(seed, number, n)
        value = sign * (ours(counts) - theirs(counts))
        if not math.isnan(value):
            found.append(value)
    found.sort()
    ones = [1] * n
    new_value, old_value = ours(ones), theirs(ones)
    if len(found) < FEWEST:
        return Difference(new_value, old_value, -math.inf, math.inf, len(found))
    # The k-th smallest of m values is the quantile k / (m + 1).
    k = max(1, math.floor((1.0 - confidence) * (len(found) + 1)))
    return Difference(new_value, old_value, found[k - 1], found[-k], len(found))


def wilson(right: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided bounds of a share (Wilson, Journal of the American Statistical Association 22 (1927) 209-212)."""
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile(confidence)
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if right == 0 else max(0.0, middle - half)), (1.0 if right == n else min(1.0, middle + half))


def upper_share(right: int, n: int, confidence: float) -> float:
    """Exact one-sided upper bound of a share (Clopper and Pearson, Biometrika 26 (1934) 404-413)."""
    if right >= n:
        return 1.0
    low, high = right / n, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _at_most(right, n, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k), in logarithms."""
    if p >= 1.0:
        return 0.0 if k < n else 1.0
    total = math.lgamma(n + 1)
    return math.fsum(
        math.exp(total - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p))
        for i in range(k + 1)
    )


def _draw(seed: str, number: int, n: int) -> list[int]:
    """How often each of n samples is drawn in resample `number`."""
    stream = hashlib.shake_128(f"modelagent bootstrap\0{seed}\0{number}".encode()).digest(4 * n)
    counts = [0] * n
    for place in range(0, 4 * n, 4):
        # 32 random bits times n, without the top half: unbiased to one part in 2^32 / n.
        counts[(int.from_bytes(stream[place : place + 4], "little") * n) >> 32] += 1
    return counts


def _mean(values: Sequence[float]) -> Measure:
    def run(counts: Sequence[int]) -> float:
        weight = sum(counts)
        return sum(map(mul, values, counts)) / weight if weight else math.nan

    return run


def _confusion(samples: Sequence[Scored], score: Callable[[dict[tuple[int, int], int]], float]) -> Measure:
    cells = [(sample.label if sample.label is not None else -1, sample.prediction) for sample in samples]
    kinds = sorted({(label, -1 if said is None else said) for label, said in cells})
    place = {kind: index for index, kind in enumerate(kinds)}
    where = [place[label, -1 if said is None else said] for label, said in cells]

    def run(counts: Sequence[int]) -> float:
        tally = [0] * len(kinds)
        for index, count in zip(where, counts, strict=True):
            tally[index] += count
        return score({kind: number for kind, number in zip(kinds, tally, strict=True) if number})

    return run


def _balanced(table: dict[tuple[int, int], int]) -> float:
    """Mean recall of the classes that occur."""
    all_of: dict[int, int] = {}
    right: dict[int, int] = {}
    for (label, said), number in table.items():
        all_of[label] = all_of.get(label, 0) + number
        right[label] = right.get(label, 0) + (number if said == label else 0)
    return sum(right[label] / all_of[label] for label in all_of) / len(all_of) if all_of else math.nan


def _macro_f1(table: dict[tuple[int, int], int]) -> float:
    """Mean F1 of the classes that occur or are predicted."""
    classes = {label for label, _ in table} | {said for _, said in table if said >= 0}
    if not classes:
        return math.nan
    total = 0.0
    for name in classes:
        right = table.get((name, name), 0)
        either = sum(number * ((label == name) + (said == name)) for (label, said), number in table.items())
        total += 2.0 * right / either if either else 0.0
    return total / len(classes)


def _area(samples: Sequence[Scored]) -> Measure:
    """Chance that a sample of class 1 scores above one of class 0, ties counting half (Mann and Whitney, 1947)."""
    order = sorted(range(len(samples)), key=lambda index: samples[index].values[0])
    positive = [samples[index].label == 1 for index in order]
    last = [
        place + 1 == len(order) or samples[order[place + 1]].values[0] != samples[index].values[0]
        for place, index in enumerate(order)
    ]

    def run(counts: Sequence[int]) -> float:
        below = wins = here_one = here_zero = ones = 0.0
        for index, one, ends in zip(order, positive, last, strict=True):
            if one:
                here_one += counts[index]
            else:
                here_zero += counts[index]
            if ends:
                wins += here_one * (below + 0.5 * here_zero)
                below += here_zero
                ones += here_one
                here_one = here_zero = 0.0
        return wins / (ones * below) if ones and below else math.nan

    return run


def _overlap(samples: Sequence[Scored]) -> Measure:
    """Mean over the classes of (intersection / union), both summed over all samples."""
    parts: dict[int, tuple[list[float], list[float]]] = {}
    for index, sample in enumerate(samples):
        for place in range(0, len(sample.values), 3):
            name, both, either = sample.values[place : place + 3]
            shared, all_of = parts.setdefault(int(name), ([0.0] * len(samples), [0.0] * len(samples)))
            shared[index], all_of[index] = both, either

    def run(counts: Sequence[int]) -> float:
        shares = []
        for shared, all_of in parts.values():
            if (union := sum(map(mul, all_of, counts))) > 0:
                shares.append(sum(map(mul, shared, counts)) / union)
        return sum(shares) / len(shares) if shares else math.nan

    return run
