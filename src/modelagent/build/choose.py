"""Which variant becomes the release, by a stated rule, and why the others do not.

This file knows constraints and figures. It is pure: it measures nothing.

    reasons = refusals(figures, constraints)        # [] when the variant may be chosen
    best(candidates, prefer="size")                 # the rule below

The rule: of the variants that hold every constraint and in which every step did something, the one that is first by
`prefer`; ties go by the other two, in the order size, latency, metric, and then by name. Size is the compressed one,
because that is what the link carries; `update` is what a device fetches that has the parent; latency is the ratio to
the baseline. Losses are in the metric's unit, and what is worse is a loss, also where lower is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelagent.build import scoring
from modelagent.build.plans import MARGIN, Constraints, Parent
from modelagent.judges.metrics import lower_is_better

RULE: Final = "all constraints hold and no step was idle; then first by {prefer}, ties by size, latency, metric, name"
_SAME_LATENCY: Final = 0.05  # ratios closer than this are noise on a machine that does other things too


@dataclass(frozen=True, slots=True)
class Figures:
    """What a variant is judged by. Losses and ratios against the float32 baseline."""

    name: str
    size: int
    compressed: int
    size_ratio: float
    value: float  # of the metric
    loss: float
    loss_bound: float  # one-sided lower bound of how much better this is than the baseline, paired
    latency_ratio: float
    memory_mb: float
    metric: str = "accuracy"
    unsupported: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    update: int | None = None  # bytes that a device with the parent fetches


@dataclass(frozen=True, slots=True)
class AgainstParent:
    """A variant beside the published parent, on the canary samples."""

    size_ratio: float
    latency_ratio: float
    change: float  # better counts positively
    change_bound: float
    samples: int
    metric: str = "accuracy"


def refusals(figures: Figures, wanted: Constraints) -> list[str]:
    """Every reason against a variant; empty when it may be chosen."""
    found = list(figures.idle)
    if figures.unsupported:
        found.append(f"unsupported operators: {', '.join(figures.unsupported)}; no device's runtime has them")
    if wanted.max_bytes is not None and figures.size > wanted.max_bytes:
        found.append(f"too big: {figures.size} bytes, allowed are {wanted.max_bytes:.0f}")
    if wanted.max_size_ratio is not None and figures.size_ratio > wanted.max_size_ratio:
        found.append(f"too big: {figures.size_ratio:.2f} of the baseline, allowed is {wanted.max_size_ratio:.2f}")
    metric = figures.metric

    def shown(number: float) -> str:
        return scoring.shown(metric, number)

    if wanted.max_loss is not None and figures.loss > wanted.max_loss + 1e-12:
        found.append(
            f"not good enough: it loses {shown(figures.loss)} of {scoring.name(metric)}, allowed are "
            f"{shown(wanted.max_loss)}"
        )
    if wanted.margin is not None and figures.loss_bound <= -wanted.margin:
        found.append(
            f"not shown to be good enough: at {wanted.confidence:.0%} confidence it may lose "
            f"{shown(-figures.loss_bound)}, the margin is {shown(wanted.margin)}"
        )
    if wanted.floor is not None:
        error = lower_is_better(metric)
        if figures.value > wanted.floor if error else figures.value < wanted.floor:
            found.append(
                f"not good enough: {scoring.name(metric)} {shown(figures.value)}, at {'most' if error else 'least'} "
                f"{shown(wanted.floor)} is asked for"
            )
    if wanted.max_latency_ratio is not None and figures.latency_ratio > wanted.max_latency_ratio:
        found.append(
            f"too slow: {figures.latency_ratio:.2f} of the baseline's time, allowed is {wanted.max_latency_ratio:.2f}"
        )
    if wanted.max_memory_mb is not None and figures.memory_mb > wanted.max_memory_mb:
        found.append(f"too much memory: {figures.memory_mb:.0f} MB, allowed are {wanted.max_memory_mb:.0f}")
    return found


def parent_refusals(beside: AgainstParent, wanted: Parent, confidence: float) -> list[str]:
    """Bigger, slower or worse than what is published: refused at the desk, not discovered in the field."""
    found = []
    if beside.size_ratio > wanted.max_size_ratio:
        found.append(f"bigger than the parent: {beside.size_ratio:.3f} of it, allowed is {wanted.max_size_ratio:.3f}")
    if beside.latency_ratio > wanted.max_latency_ratio:
        found.append(
            f"slower than the parent: {beside.latency_ratio:.2f} of its time, allowed is {wanted.max_latency_ratio:.2f}"
        )
    margin = MARGIN if wanted.margin is None else wanted.margin
    if beside.change_bound <= -margin:
        found.append(
            f"worse than the parent, or not shown otherwise: {scoring.name(beside.metric)} is "
            f"{scoring.shown(beside.metric, abs(beside.change))} {'better' if beside.change > 0 else 'worse'} on "
            f"{beside.samples} canary samples, and at {confidence:.0%} confidence the loss may be "
            f"{scoring.shown(beside.metric, -beside.change_bound)}; the margin is "
            f"{scoring.shown(beside.metric, margin)}"
        )
    return found


def best(candidates: Sequence[Figures], *, prefer: str) -> Figures | None:
    """The first by the rule; None without candidates."""
    if not candidates:
        return None
    fastest = min(figures.latency_ratio for figures in candidates)

    def keys(figures: Figures) -> tuple[float | str, ...]:
        ranks: dict[str, float] = {
            "size": figures.compressed,
            # In steps, so that noise alone never decides.
            "latency": int((figures.latency_ratio - fastest) / _SAME_LATENCY),
            "metric": figures.value if lower_is_better(figures.metric) else -figures.value,
        }
        if prefer == "update":
            # Without a parent every device fetches the file.
            return (figures.compressed if figures.update is None else figures.update, *ranks.values(), figures.name)
        return (ranks.pop(prefer), *ranks.values(), figures.name)

    return min(candidates, key=keys)


def pareto(figures: Sequence[Figures]) -> set[str]:
    """Names of variants that no other beats or equals in size, metric and latency while being better in one."""

    def point(item: Figures) -> tuple[float, float, float]:
        worth = -item.value if lower_is_better(item.metric) else item.value
        return (item.compressed, -worth, item.latency_ratio)

    return {
        one.name
        for one in figures
        if not any(
            point(other) != point(one) and all(a <= b for a, b in zip(point(other), point(one), strict=True))
            for other in figures
        )
    }
