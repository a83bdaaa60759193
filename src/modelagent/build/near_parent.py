"""Update-aware compression: a file that is as good as the new network and near the published parent.

This file knows how changes of weights are rounded and how the coarsest rounding is found. It does not know the schema
(`pairing.py`), the format of updates, nor how a model is run: it is handed a function that measures a file.

    found = make(parent, plain, rules, measure=measure)     # bytes of .tflite files; UsageError where it cannot be
    found.data                                              # what is signed: devices need nothing new
    rounded(pair, 0.25)                                     # one tensor's numbers, changes in steps of a quarter

What a device fetches is the difference of words (docs/delta-format.md), so three things are cheap: a number that is the
parent's; a change that is one of few; and, in floats, a change whose lowest bits are zero. The result is the parent's
file, quantisation parameters included, in which changes are rounded to a step. The step is a share of the parent's
spread (root mean square), of each output channel in floats, of the tensor in whole numbers, whose scales are already
those of channels. Nothing is drawn: the same files and samples give the same bytes.

A coarser step must hold two things on the validation samples. The metric: its paired lower bound against the network
without this step is above minus the margin. And `keep`: of what training changed in the outputs (sum of absolute
differences), this share must arrive; where the metric alone decides, a parent that is good enough already is always the
smallest update, and the training was for nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.build import scoring
from modelagent.build.chains import NEAR
from modelagent.build.evaluate import FailedError, Measured
from modelagent.build.evidence import Remark
from modelagent.build.pairing import Array, Family, Pair
from modelagent.delta import words
from modelagent.errors import UsageError

# Shares of the parent's spread, finest first; 0: the network's own numbers, infinite: the parent's.
LADDER: Final = (0.0, *(2.0 ** (half / 2) for half in range(-20, 3)), float("inf"))
FROZEN: Final = len(LADDER) - 1
WORTH: Final = 0.95  # of the plain update; one that saves less is not worth a worse network
_COARSER: Final = 2  # rungs that a single tensor is tried further
_TRIED: Final = 0.01  # of the update; a tensor that could save less is not worth an evaluation
_LAYOUTS: Final = {"float32": (np.uint32, 24, 23), "float16": (np.uint16, 11, 10)}  # words, precision, mantissa


@dataclass(frozen=True, slots=True)
class Rules:
    """What a rounding must hold, and how long is searched.

    `margin` in the metric's unit, `confidence` one-sided, `keep` a share of the outputs' change, `evaluations` of files
    in the search; `zeros`: those of the network stay zeros (it was pruned).
    """

    metric: str
    margin: float
    confidence: float = 0.95
    keep: float = 0.5
    evaluations: int = 24
    zeros: bool = False


@dataclass(frozen=True, slots=True)
class Near:
    """The file, and what was done: the common step, tensors that are the parent's, the share of change that arrived."""

    data: bytes
    step: float
    steps: tuple[float, ...]  # one a tensor; infinite: the parent's
    frozen: int
    kept: float
    loss: float  # of the metric, against the network without this step
    loss_bound: float
    clipped: int  # numbers that the parent's scales cannot hold
    evaluations: int

    def told(self) -> dict[str, Any]:
        """For the card and report.json."""
        return {
            "step": round(self.step, 6),
            "tensors": len(self.steps),
            "parents_tensors": self.frozen,
            "change_kept": round(self.kept, 4),
            "loss": round(self.loss, 6),
            "loss_bound": round(-self.loss_bound, 6),
            "clipped": self.clipped,
            "evaluations": self.evaluations,
        }


Told = Callable[[str], None]
Measure = Callable[[bytes], Measured]  # with the numbers of output 0


def make(parent: bytes, plain: bytes, rules: Rules, *, measure: Measure, told: Told | None = None) -> Near:
    """Find the coarsest rounding that holds the rules.

    Args:
        parent: the published file.
        plain: the new network in the same format.
        rules: what must hold.
        measure: runs a file over the validation samples.
        told: hears of progress.

    Raises:
        UsageError: `no-pair`: not the same graph; `no-gain`: the rules cannot be held, or there is nothing to round.
    """
    family = Family(parent, plain)
    if all(np.array_equal(pair.old, pair.new) for pair in family.pairs):
        raise _refused("every weight is the parent's already")
    search = _Search(family, rules, _Judge(family, parent, plain, rules, measure), told or (lambda _: None))
    rungs, step = search.run()
    data = search.file(rungs)
    kept, change, bound = search.judge.seen[hashlib.sha256(data).digest()]
    return Near(
        data=data,
        step=step,
        steps=tuple(LADDER[rung] for rung in rungs),
        frozen=sum(np.array_equal(pair.old, search.values(pair, rung)) for pair, rung in search.each(rungs)),
        kept=kept,
        loss=0.0 - change,
        loss_bound=bound,
        clipped=sum(pair.clipped for pair in family.pairs),
        evaluations=search.judge.count,
    )


def remark(found: Near, plain: int, near: int, size: int) -> Remark:
    """What the step saved, for a person; idle where that is next to nothing.

    Args:
        found: what was made.
        plain: bytes of the update to the file without this step.
        near: bytes of the update to the file with it.
        size: bytes of the file.
    """
    saved = f"delta {plain / size:.1%} -> {near / size:.1%} of the file ({plain} -> {near} bytes)"
    if near > WORTH * plain:
        return Remark(NEAR, True, f"{NEAR} did nothing: {saved}")
    clipped = f", {found.clipped} numbers are beyond the parent's scales" if found.clipped else ""
    return Remark(
        NEAR,
        False,
        f"{NEAR}: {saved}; steps of {found.step:.3g} of the parent's spread, {found.frozen} of {len(found.steps)} "
        f"tensors are the parent's, {found.kept:.0%} of the change arrives{clipped}; {found.evaluations} files tried",
    )


def rounded(pair: Pair, step: float, *, zeros: bool = False) -> Array:
    """One tensor, its changes rounded.

    Args:
        pair: the parent's numbers and the network's.
        step: share of the parent's spread; 0 is the network's numbers, infinite the parent's.
        zeros: keep the network's zeros.

    Returns:
        Numbers of the parent's type and shape. None is farther from the network's than half of `bounds(pair, step)`.
    """
    if step == float("inf"):
        found = pair.old
    elif step == 0.0 or not (np.isfinite(pair.old).all() and np.isfinite(pair.new).all()):
        return pair.new
    elif pair.old.dtype.kind == "f":
        found = _floats(pair.old, pair.new, bounds(pair, step))
    else:
        width = int(bounds(pair, step))
        change = pair.new.astype(np.int64) - pair.old.astype(np.int64)
        near = pair.old.astype(np.int64) + np.rint(change / width).astype(np.int64) * width
        # Never beyond what the two files hold themselves: a kernel may count on symmetric weights.
        least = min(int(pair.old.min()), int(pair.new.min()))
        most = max(int(pair.old.max()), int(pair.new.max()))
        found = np.clip(near, least, most).astype(pair.old.dtype)
    return np.where(pair.new == pair.zero, pair.new, found) if zeros else found


def bounds(pair: Pair, step: float) -> Array:
    """The step in the tensor's own unit; whole numbers have one of at least 1, floats one an output channel."""
    values = pair.old.astype(np.float64) - pair.zero.astype(np.float64)
    if pair.old.dtype.kind != "f":
        return np.asarray(max(1.0, np.rint(step * _spread(values, None))))
    channels = None
    if values.ndim > 1:
        # Depthwise kernels have their channels last, all others first.
        channel = values.ndim - 1 if values.shape[0] == 1 else 0
        channels = tuple(axis for axis in range(values.ndim) if axis != channel)
    return np.asarray(step * _spread(values, channels))


def _spread(values: npt.NDArray[np.float64], axes: tuple[int, ...] | None) -> Any:
    return np.sqrt(np.mean(np.square(values), axis=axes, keepdims=axes is not None)) if values.size else 0.0


def _floats(old: Array, new: Array, step: Array) -> Array:
    """Changes in whole steps of words, the largest power of two that the step holds."""
    kind, precision, mantissa = _LAYOUTS[old.dtype.name]
    exact_old, exact_new = old.astype(np.float64), new.astype(np.float64)
    half = np.broadcast_to(step / 2, old.shape)
    small = np.abs(exact_new - exact_old) <= half
    before = old.view(kind).astype(np.int64)
    change = new.view(kind).astype(np.int64) - before
    _, exponent = np.frexp(np.maximum(np.abs(exact_old), np.abs(exact_new)))
    with np.errstate(divide="ignore"):
        room = np.floor(np.log2(np.maximum(2 * half, 1e-300))) - (exponent - precision)
    bits = np.clip(room, 0, mantissa).astype(np.int64)
    found = np.where(small, old, new)
    left = ~small & (bits > 0)
    while left.any():
        width = np.left_shift(np.int64(1), bits)
        near = (before + np.floor_divide(change + width // 2, width) * width) % (1 << (8 * old.itemsize))
        tried = near.astype(kind).view(old.dtype)
        with np.errstate(invalid="ignore"):
            # Across the edge of a binade words are twice as far apart, and across zero they are no neighbours at all.
            good = left & (np.abs(tried.astype(np.float64) - exact_new) <= half)
        found = np.where(good, tried, found)
        bits = np.maximum(bits - 1, 0)  # a shift by less than nothing has no meaning
        left = left & ~good & (bits > 0)
    return found


class _Judge:
    """Measures files and says whether they hold the rules. Counts, and remembers what it saw."""

    def __init__(self, family: Family, parent: bytes, plain: bytes, rules: Rules, measure: Measure) -> None:
        self._rules, self._measure = rules, measure
        self.count = 3
        self._plain = measure(plain)
        _, bound = scoring.change(rules.metric, self._plain.scored, self._plain.scored, rules.confidence)
        if bound <= -rules.margin:
            raise _refused(
                f"{len(self._plain.scored)} validation samples cannot show a margin of {rules.margin:g} (a file beside "
                f"itself has the bound {-bound:.4g}); state a wider one or give more samples"
            )
        self._fine = self._numbers(measure(family.write([pair.new for pair in family.pairs])))
        self._whole = self._apart(measure(parent))
        if self._whole == 0.0:
            raise _refused("it answers every validation sample exactly as the parent does")
        self.seen: dict[bytes, tuple[float, float, float]] = {}  # sha256 -> kept, change, bound

    def holds(self, data: bytes) -> bool:
        """Whether the file holds the rules; costs one evaluation."""
        self.count += 1
        try:
            found = self._measure(data)
        except FailedError:
            return False
        change, bound = scoring.change(self._rules.metric, found.scored, self._plain.scored, self._rules.confidence)
        kept = 1.0 - self._apart(found) / self._whole
        self.seen[hashlib.sha256(data).digest()] = (kept, change, bound)
        return bound > -self._rules.margin and kept >= self._rules.keep

    def _apart(self, found: Measured) -> float:
        """How far the outputs are from those of the network at the parent's quantisation parameters."""
        return float(np.abs(self._numbers(found) - self._fine).sum())

    @staticmethod
    def _numbers(found: Measured) -> npt.NDArray[np.float64]:
        assert found.numbers is not None, "they were asked for"  # noqa: S101
        return found.numbers.astype(np.float64)


class _Search:
    """Bisection over one step for all, then tensor by tensor, the dearest first."""

    def __init__(self, family: Family, rules: Rules, judge: _Judge, told: Told) -> None:
        self.judge = judge
        self._family, self._rules, self._told = family, rules, told
        self._left = rules.evaluations
        self._made: dict[tuple[int, int], Array] = {}

    def run(self) -> tuple[list[int], float]:
        """Rungs of the ladder, one a pair, and the step that all have in common before tensors are taken singly."""
        count = len(self._family.pairs)
        if not self._holds([0] * count, "the parent's quantisation parameters"):
            raise _refused(
                "with the parent's quantisation parameters it does not stay within the margin of "
                f"{self._rules.margin:g}"
            )
        low, high = 0, FROZEN
        if self._rules.keep == 0.0 and self._holds([FROZEN] * count, "the parent"):
            raise _refused(
                f"on {self._rules.metric} the parent itself is within the margin of {self._rules.margin:g}: there is "
                "nothing to release; state a narrower margin, or keep above 0"
            )
        while high - low > 1 and self._left:
            middle = (low + high) // 2
            if self._holds([middle] * count, f"changes in steps of {LADDER[middle]:.3g}"):
                low = middle
            else:
                high = middle
        rungs = [low] * count
        for further in (FROZEN, _COARSER):
            costs = [self._cost(index, rung) for index, rung in enumerate(rungs)]
            for index in sorted(range(count), key=costs.__getitem__, reverse=True):
                rung = FROZEN if further == FROZEN else min(FROZEN - 1, rungs[index] + further)
                if not self._left or costs[index] - self._cost(index, rung) < _TRIED * sum(costs):
                    continue
                what = "as the parent's" if rung == FROZEN else f"in steps of {LADDER[rung]:.3g}"
                tried = [*rungs[:index], rung, *rungs[index + 1 :]]
                if set(tried) != {FROZEN} and self._holds(tried, f"{self._family.pairs[index].name} {what}"):
                    rungs = tried
        return rungs, LADDER[low]

    def values(self, pair: Pair, rung: int) -> Array:
        """One tensor at one rung."""
        key = (id(pair), rung)
        if key not in self._made:
            self._made[key] = rounded(pair, LADDER[rung], zeros=self._rules.zeros)
        return self._made[key]

    def each(self, rungs: Sequence[int]) -> list[tuple[Pair, int]]:
        """Pairs with their rungs."""
        return list(zip(self._family.pairs, rungs, strict=True))

    def file(self, rungs: Sequence[int]) -> bytes:
        """The file of these rungs."""
        return self._family.write([self.values(pair, rung) for pair, rung in self.each(rungs)])

    def _holds(self, rungs: Sequence[int], what: str) -> bool:
        self._left -= 1
        self._told(f"{what}, {self._left} evaluations left")
        return self.judge.holds(self.file(rungs))

    def _cost(self, index: int, rung: int) -> float:
        """About how many bytes of the update are this tensor's."""
        pair = self._family.pairs[index]
        found = self.values(pair, rung)
        if np.array_equal(found, pair.old):
            return 0.0
        kind = words.word_type(found.itemsize)
        flat = [np.ascontiguousarray(array).reshape(-1).view(kind) for array in (found, pair.old)]
        return words.guess(flat[0], flat[1])


def _refused(why: str) -> UsageError:
    return UsageError(f"near-parent: {why}; leave the step out for this release", code="no-gain")
