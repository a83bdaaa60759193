"""How good a variant is by the plan's metric, how sure that is, and how much worse than another it may be.

This file knows what a value, an interval and a bound are made of. The metrics themselves are the devices' own
(`judges/metrics.py`), so that a desk and a device never disagree about what "F1" is. It runs nothing.

    value("f1", scored)                             # 0.94
    interval("f1", scored)                          # (0.91, 0.96), 95 %, two-sided
    change("f1", new, old, 0.95)                    # (-0.01, -0.03): better counts positively, one-sided lower bound
    samples_for("mae", scored, margin=0.2)          # how many samples can speak for such a margin

Shares of right answers have Wilson's interval and Tango's paired bound; everything else has the bootstrap's percentiles
(Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), 13.3).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, pstdev
from typing import Any, Final

import numpy as np

from modelagent.errors import UsageError
from modelagent.judges import metrics
from modelagent.judges.metrics import Scored
from modelagent.judges.paired import normal_quantile, tango_lower
from modelagent.manifest import METRICS

RESAMPLES: Final = 1000
POWER: Final = 0.80
# A reference model's outputs are no labels: such releases are published from files, with `repo add`.
OFFERED: Final = tuple(name for name in METRICS if name != "agreement")
VALUES: Final = ("mae", "rmse")  # whose truth is numbers
MASKS: Final = ("mean-iou",)  # whose truth is a class a pixel
TWO_CLASSES: Final = ("auc", "anomaly-auc")


def by_class(metric: str) -> bool:
    """Whether the largest number of output 0 is an answer, so that it can be told by class what was confused."""
    return metric not in (*VALUES, *MASKS, "anomaly-auc")


def value(metric: str, scored: Sequence[Scored]) -> float:
    """The metric of these samples.

    Raises:
        UsageError: `metric`: it is not defined on them.
    """
    found = metrics.measure(metric, scored)
    if math.isnan(found) or not metrics.complete(metric, scored):
        raise UsageError(
            f"{metrics.NAMES.get(metric, metric)} is not defined on these {len(scored)} samples; an area under the "
            "ROC curve, for instance, takes samples of class 0 and of class 1 in every part",
            code="metric",
        )
    return found


def interval(metric: str, scored: Sequence[Scored], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the metric."""
    if metrics.is_share(metric):
        right = sum(metrics.is_right(metric, sample) for sample in scored)
        return wilson(right, len(scored), confidence)
    measure = metrics.prepare(metric, scored)
    random = np.random.RandomState(len(scored))
    even = np.full(len(scored), 1.0 / len(scored))
    drawn = (measure(random.multinomial(len(scored), even).tolist()) for _ in range(RESAMPLES))
    found = sorted(one for one in drawn if not math.isnan(one))
    tail = (1.0 - confidence) / 2.0
    last = len(found) - 1
    return found[round(tail * last)], found[round((1.0 - tail) * last)]


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share (Wilson, Journal of the American Statistical Association 22, 1927, 209-212)."""
    return metrics.wilson(right, count, 0.5 + confidence / 2.0)


def change(
    metric: str, new: Sequence[Scored], old: Sequence[Scored], confidence: float = 0.95, *, seed: str = "build"
) -> tuple[float, float]:
    """(how much better `new` is, its one-sided lower bound), in the metric's unit; errors count negatively."""
    if not metrics.is_share(metric):
        found = metrics.difference(metric, new, old, confidence=confidence, seed=seed)
        sign = -1.0 if metrics.lower_is_better(metric) else 1.0
        return sign * (found.new - found.old), found.low
    pairs = [(metrics.is_right(metric, a), metrics.is_right(metric, b)) for a, b in zip(new, old, strict=True)]
    only_new, only_old = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return (only_new - only_old) / len(pairs), tango_lower(only_new, only_old, len(pairs), confidence)


def samples_for(metric: str, scored: Sequence[Scored], margin: float, confidence: float = 0.95) -> int:
    """How many samples can show that an error rises by less than `margin`, of errors like these.

    Two models whose errors differ between samples as much as one model's do: N >= ((z_a + z_b) * deviation / margin)^2.
    For metrics that are no errors the publisher's rule holds, which needs no samples (`publish/canaries.py`).

    Args:
        metric: mae or rmse.
        scored: what one model did.
        margin: in the metric's unit.
        confidence: one-sided, of the verdict.
    """
    if margin <= 0:
        return 2**53
    deviation = pstdev([sample.values[0] for sample in scored])
    if metric == "rmse":
        # The root's slope at this error carries the deviation of the squares over to the root.
        deviation /= 2.0 * max(metrics.measure(metric, scored), 1e-12)
    needed = math.ceil(((normal_quantile(confidence) + NormalDist().inv_cdf(POWER)) * deviation / margin) ** 2)
    return max(needed, metrics.LEAST_SAMPLES)


def shown(metric: str, number: float) -> str:
    """A value for people: per cent, or a number where the metric is an error."""
    return f"{number:.4g}" if metrics.lower_is_better(metric) else f"{number:.2%}"


def name(metric: str) -> str:
    """The metric's name for people."""
    return metrics.NAMES.get(metric, metric)


def scored(labels: Any, answers: Sequence[int], values: Sequence[Sequence[float]]) -> tuple[Scored, ...]:
    """What a child told of each sample, as the metrics take it; `labels` are classes, targets or masks."""
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    return tuple(
        Scored(int(label) if classes else None, answer, tuple(numbers))
        for label, answer, numbers in zip(labels, answers, values, strict=True)
    )
