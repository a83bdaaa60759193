"""Did a step do anything? Some tools silently do nothing to some models; this is where that is noticed.

This file knows what each step promises about the file that comes out. It is told what is inside both files and judges;
it runs nothing.

    remarks = judge(parse("prune:sparsity=0.5+int8"), baseline, found)
    [remark.text for remark in remarks if remark.idle]      # steps that changed nothing
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelagent.build.chains import Step
from modelagent.build.graph import Inside

# A step that reaches less than this share of what it promised did nothing; below the second, it is said to be partial.
_IDLE: Final = 0.02
_WHOLE: Final = 0.90


@dataclass(frozen=True, slots=True)
class Remark:
    """What one step did. `idle`: nothing, although it was asked to; a variant with one is never chosen."""

    step: str
    idle: bool
    text: str


def judge(steps: Sequence[Step], baseline: Inside, found: Inside) -> list[Remark]:
    """One remark a step that did nothing or only a part.

    Args:
        steps: the chain.
        baseline: the float32 file of the source.
        found: the file of this chain.
    """
    remarks = [_JUDGES[step.kind](step, baseline, found) for step in steps if step.kind in _JUDGES]
    return [remark for remark in remarks if remark is not None]


def _prune(step: Step, baseline: Inside, found: Inside) -> Remark | None:
    wanted = float(step.options["sparsity"])
    # Rounding to 8 bits makes zeros too, so the gain is held against the baseline and not against none.
    gained = found.zeros - baseline.zeros
    if gained < _IDLE:
        return Remark("prune", True, f"prune did nothing: {found.zeros:.1%} of the weights are zero, as before")
    if found.zeros < wanted * _WHOLE:
        return Remark(
            "prune",
            False,
            f"prune: {found.zeros:.1%} of all weights are zero, {wanted:.0%} was asked for (depthwise and other "
            "small kernels are spared)",
        )
    return None


def _distil(_step: Step, baseline: Inside, found: Inside) -> Remark | None:
    if found.numbers >= baseline.numbers:
        return Remark(
            "distil",
            found.numbers == baseline.numbers and _data(found) == _data(baseline),
            f"distil: the student has {found.numbers} weights, the teacher {baseline.numbers}: nothing gets smaller",
        )
    return None


def _format(kind: str, types: tuple[str, ...], found: Inside) -> Remark | None:
    if not found.weights:
        return Remark(kind, True, f"{kind} did nothing: the model has no weights")
    share = found.share(*types)
    if share < _IDLE:
        return Remark(kind, True, f"{kind} did nothing: all {len(found.weights)} weight tensors are still float32")
    left = [item for item in found.weights if item.dtype not in types]
    if share < _WHOLE:
        names = ", ".join(item.name.split("/")[-1] for item in left[:3]) + (", ..." if len(left) > 3 else "")
        return Remark(
            kind,
            False,
            f"{kind} took {share:.0%} of the weights; {len(left)} tensors are left as they were ({names}): most tools "
            "spare those below 1,024 numbers and operators that they do not know",
        )
    return None


def _float16(_step: Step, _baseline: Inside, found: Inside) -> Remark | None:
    return _format("float16", ("float16",), found)


def _dynamic(_step: Step, _baseline: Inside, found: Inside) -> Remark | None:
    return _format("dynamic", ("int8", "uint8"), found)


def _int8(_step: Step, _baseline: Inside, found: Inside) -> Remark | None:
    remark = _format("int8", ("int8", "uint8"), found)
    if remark is not None:
        return remark
    total = sum(found.operators.values())
    if found.float_operators:
        return Remark("int8", False, f"int8: {found.float_operators} of {total} operators still compute in float")
    return None


def _data(found: Inside) -> list[bytes]:
    return [item.data for item in found.weights]


_JUDGES: Final = {
    "prune": _prune,
    "distil": _distil,
    "float16": _float16,
    "dynamic": _dynamic,
    "int8": _int8,
}
