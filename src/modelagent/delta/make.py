"""Old and new file -> delta: pair the tensors, choose for each the cheapest way, keep the smallest whole.

This file knows how tensors of two models belong together and what the choices are. It does not know releases.

    delta = make(old, new)                  # bytes of .tflite files (others work, and give less)
    delta = make(None, new)                 # the new file, compressed: for devices without a base

What was made has been applied again here, so what is returned is right. Layout, order and number of tensors may
differ between the files: a tensor is found by subgraph, name, part, shape and type; those that are left over by
shape and type alone, the most similar first. A constant without a partner is coded on its own or left in the rest,
which zstd matches against the old file's rest.
"""

import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from modelagent.delta import DeltaError, form, words
from modelagent.delta.flatbuffer import Buffer, Constant, read_constants
from modelagent.delta.rebuild import blocks, rebuild

_SMALLEST: Final = 256  # bytes; below, the rest is cheaper than a place in the table
_SMALLEST_SAME: Final = 1 << 14  # the same for what did not change: zstd finds that in the old rest
_SAMPLE: Final = 4096  # words of a tensor that are compared to find its likeness
_LIKELY: Final = 64  # leftover tensors of one shape that are compared each with each
_KEYS: Final = {"float32": (23, 8), "float16": (10, 5), "bfloat16": (7, 8)}  # the exponent: shift, bits
_LARGE: Final = 1 << 30  # bytes; zstd cannot look back further


class _Pair(NamedTuple):
    """One constant of the new file, with its partner in the old one if it has any."""

    new: Constant
    old: Constant | None


def make(old: Buffer | None, new: Buffer) -> bytes:
    """Make a delta.

    Args:
        old: the base, None for none.
        new: the file to make.

    Returns:
        The smallest delta found.

    Raises:
        DeltaError: it would be no smaller than the new file itself.
    """
    base = b"" if old is None else bytes(old)
    target = bytes(new)
    best = min(_candidates(base, target), key=len)
    if len(best) >= len(target):
        raise DeltaError(f"the smallest delta has {len(best)} bytes, the file itself {len(target)}")
    made = io.BytesIO()
    rebuild(None if old is None else io.BytesIO(base), io.BytesIO(best), made, len(target))
    if made.getvalue() != target:
        raise AssertionError("a delta that was just made does not give the file it was made from")
    return best


def _candidates(base: bytes, target: bytes) -> Iterable[bytes]:
    """Deltas by tensors and by bytes alone."""
    aligned = None
    try:
        pairs = _paired(read_constants(base) if base else [], read_constants(target), base, target)
        aligned = _compose(base, target, _lanes(base, target, pairs))
        yield aligned
    except DeltaError:
        pass  # not both are .tflite files: bytes can still be matched
    if aligned is not None and len(words.deflate(target, _within(base, target), level=3)) > 2 * len(aligned):
        return  # the slow way could not win
    yield _compose(base, target, ())


def _compose(base: bytes, target: bytes, lanes: Sequence[form.Lane]) -> bytes:
    raw = form.dump_table(lanes)
    table = words.deflate(raw)
    rest = _join(target, form.new_gaps(lanes, len(target)))
    packed = words.deflate(rest, _join(base, form.old_gaps(lanes, len(base))) if base else b"")
    header = form.Header(len(base), len(target), len(table), len(raw), len(packed))
    parts = [header.dump(), table, packed]
    for lane in lanes:
        kind = words.word_type(lane.width)
        for pieces in blocks(lane):
            after = np.frombuffer(_join(target, [(p.new, p.words * lane.width) for p in pieces]), kind)
            before = None
            if lane.based:
                before = np.frombuffer(_join(base, [(p.old, p.words * lane.width) for p in pieces]), kind)
            parts.append(words.encode(after, before, (lane.key_shift, lane.key_bits)))
    return b"".join(parts)


def _lanes(base: bytes, target: bytes, pairs: Sequence[_Pair]) -> list[form.Lane]:
    """Choose for each constant: as a difference, on its own, or in the rest. Like goes with like."""
    chosen: dict[tuple[str, int, bool], list[tuple[float, form.Region]]] = defaultdict(list)
    covered = [pair.old.span for pair in pairs if pair.old is not None]  # by and large: this only serves to estimate
    rest = _join(base, form.gaps(covered, len(base))) if base else b""
    end = 0
    for pair in sorted(pairs, key=lambda pair: pair.new.span):
        span, width = pair.new.span, pair.new.width
        if span.length < _SMALLEST or span.length % width or span.offset < end:
            continue
        kind = words.word_type(width)
        after = np.frombuffer(target, kind, span.length // width, span.offset)
        alone = words.guess(after, None)
        cost = alone
        if pair.old is not None:
            before = np.frombuffer(base, kind, span.length // width, pair.old.span.offset)
            if span.length < _SMALLEST_SAME and np.array_equal(before, after):
                continue
            cost = words.guess(after, before)
        elif len(words.deflate(after.tobytes(), rest, level=3)) < alone:
            continue
        based = pair.old is not None and cost <= alone
        old = pair.old.span.offset if based and pair.old is not None else 0
        region = form.Region(old, span.offset, span.length // width)
        family = pair.new.dtype if pair.new.dtype in _KEYS else ""
        chosen[family, width, based].append((min(cost, alone) / span.length, region))
        end = span.offset + span.length
        if sum(map(len, chosen.values())) >= form.MAX_REGIONS // 4:
            break
    lanes = []
    for (family, width, based), found in sorted(chosen.items()):
        shift, bits = _KEYS.get(family, (0, 0)) if based else (0, 0)
        found.sort(key=lambda item: (round(item[0], 1), item[1].new))
        lanes.append(form.Lane(width, based, shift, bits, tuple(region for _, region in found)))
    return lanes


def _paired(old: Sequence[Constant], new: Sequence[Constant], base: bytes, target: bytes) -> list[_Pair]:
    """Find each new constant's partner."""
    exact: dict[tuple[object, ...], list[Constant]] = defaultdict(list)
    for constant in old:
        exact[_names(constant)].append(constant)
    pairs = []
    lonely: dict[tuple[object, ...], list[Constant]] = defaultdict(list)
    for constant in new:
        partners = exact.get(_names(constant))
        if partners:
            pairs.append(_Pair(constant, partners.pop(0)))
        else:
            lonely[_form(constant)].append(constant)
    left: dict[tuple[object, ...], list[Constant]] = defaultdict(list)
    for constant in itertools.chain.from_iterable(exact.values()):
        left[_form(constant)].append(constant)
    for shape, constants in lonely.items():
        pairs += _by_likeness(left[shape], constants, base, target)
    return pairs


def _by_likeness(old: Sequence[Constant], new: Sequence[Constant], base: bytes, target: bytes) -> list[_Pair]:
    """Pair constants of one shape: the most similar first; beyond a number, in the files' order."""
    if not old or max(len(old), len(new)) > _LIKELY:
        return [_Pair(n, o) for n, o in itertools.zip_longest(new, old[: len(new)])]
    costs = sorted(
        (words.guess(_sample(n, target), _sample(o, base)), i, j)
        for (i, n), (j, o) in itertools.product(enumerate(new), enumerate(old))
    )
    partner: dict[int, int] = {}
    for _, i, j in costs:
        if i not in partner and j not in partner.values():
            partner[i] = j
    return [_Pair(n, old[partner[i]] if i in partner else None) for i, n in enumerate(new)]


def _sample(constant: Constant, data: bytes) -> words.Words:
    count = min(_SAMPLE, constant.span.length // constant.width)
    return np.frombuffer(data, words.word_type(constant.width), count, constant.span.offset)


def _names(constant: Constant) -> tuple[object, ...]:
    return (constant.subgraph, constant.name, *_form(constant))


def _form(constant: Constant) -> tuple[object, ...]:
    return (constant.part, constant.shape, constant.dtype)


def _join(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(data[place : place + size] for place, size in spans)


def _within(base: bytes, target: bytes) -> bytes:
    return base if len(base) + len(target) <= _LARGE else b""
