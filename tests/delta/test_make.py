"""Whole deltas: pairs of models that were retrained, laid out otherwise, changed in shape, or are none at all."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_models import build, network, retrained
from modelagent.delta import DeltaError
from modelagent.delta.make import make
from modelagent.delta.rebuild import rebuild

DIGITS = Path(__file__).resolve().parents[2] / "examples/digits/models"
DTYPES = (np.float32, np.float16, np.int8, np.uint8, np.int16, np.int32)


def made(old: bytes | None, new: bytes) -> bytes:
    delta = make(old, new)
    result = io.BytesIO()
    rebuild(None if old is None else io.BytesIO(old), io.BytesIO(delta), result, len(new))
    assert result.getvalue() == new
    return delta


def compressed(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=19).compress(data))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("step", [0.0, 1e-3, 0.05, 3.0])
def test_a_retrained_network(dtype: Any, step: float) -> None:
    weights = network(dtype=dtype)
    old, new = build(weights), build(retrained(weights, step=step), description="1.1.0")
    size = len(made(old, new))
    assert size < compressed(new)
    if step == 0.0:
        assert size < 0.02 * len(new) + 300
    if step == 1e-3 and dtype in (np.float32, np.float16):
        assert size < 0.65 * compressed(new)


@pytest.mark.parametrize("dtype", [np.float32, np.int8], ids=["float32", "int8"])
def test_another_layout_costs_next_to_nothing(dtype: Any) -> None:
    weights = network(dtype=dtype)
    later = retrained(weights, step=0.02)
    old, straight, other = build(weights), build(later), build(later, reverse=True)
    assert straight != other
    assert len(made(old, other)) < len(made(old, straight)) + 200


def test_more_classes_leave_the_other_layers_paired() -> None:
    weights = network(width=128)
    wider = {
        **retrained(weights, step=0.01),
        **{key: network(7, width=128, classes=12)[key] for key in ("head", "bias")},
    }
    old, new = build(weights), build(wider, reverse=True)
    share = (12 * 128 + 12) * 4 / len(new)
    assert len(made(old, new)) < (0.75 + share) * len(new)


def test_tensors_that_were_renamed_are_paired_by_likeness() -> None:
    random = np.random.default_rng(0)
    weights = {f"layer{number}": random.normal(0, 1, (64, 64)).astype(np.float32) for number in range(4)}
    later = retrained(weights, step=1e-4)
    renamed = {f"other{number}": later[f"layer{number}"] for number in (2, 0, 3, 1)}
    same = {f"layer{number}": later[f"layer{number}"] for number in range(4)}
    assert len(made(build(weights), build(renamed))) < 1.1 * len(made(build(weights), build(same)))


def test_without_a_base_floats_take_less_than_zstd_makes_of_them() -> None:
    new = build(network(width=256))
    assert len(made(None, new)) < 0.97 * compressed(new)


def test_scales_are_weights_too() -> None:
    random = np.random.default_rng(0)
    kernel = random.integers(-127, 128, (256, 9), np.int8)
    steps = random.uniform(0.01, 0.02, 256).astype(np.float32)
    old = build({"conv": kernel}, scales={"conv": (steps, 0)})
    new = build({"conv": kernel}, scales={"conv": (steps * np.float32(1.0001), 0)})
    assert len(made(old, new)) < steps.nbytes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b"x" * 1000),
        (b"y", b"x" * 1000),
        (b"y" * 7, b"x" * 1000),
        (bytes(range(256)) * 40, b"new" + bytes(range(256)) * 40),
        (build(network()), b"no model at all" * 100),
        (b"no model at all" * 100, build(network())),
    ],
    ids=["empty", "one byte", "seven bytes", "moved", "to no model", "from no model"],
)
def test_files_that_are_no_models_can_be_matched_all_the_same(old: bytes, new: bytes) -> None:
    assert len(made(old, new)) < len(new)


def test_what_saves_nothing_is_refused() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    with pytest.raises(DeltaError, match="the file itself 5000"):
        make(None, noise)


PAIRS = [
    ("digits-1.0.0", "digits-1.1.0"),
    ("digits-1.1.0", "digits-1.2.0"),
    ("digits-1.3.0", "digits-1.3.1"),
    ("digits-1.1.0", "digits-1.1.0-int8"),
    ("digits-1.6.0", "hostile/nan_on_input"),
]


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old} {new}" for old, new in PAIRS])
def test_really_trained_pairs(old: str, new: str) -> None:
    before, after = ((DIGITS / f"{name}.tflite").read_bytes() for name in (old, new))
    assert len(made(before, after)) <= min(compressed(after), len(made(None, after))) + 64


@settings(max_examples=25, deadline=None)
@given(
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    step=st.sampled_from([0.0, 1e-3, 1.0]),
    reverse=st.booleans(),
)
def test_any_two_models_give_a_delta_or_say_that_none_is_worth_it(
    dtypes: tuple[Any, Any], widths: tuple[int, int], step: float, reverse: bool
) -> None:
    old = build(network(1, dtype=dtypes[0], width=widths[0]))
    new = build(retrained(network(1, dtype=dtypes[1], width=widths[1]), step=step), reverse=reverse)
    with contextlib.suppress(DeltaError):
        made(old, new)


def test_regions_cross_the_borders_of_blocks() -> None:
    random = np.random.default_rng(0)
    sizes = (270_000, 5, 1, 262_140)
    weights = {f"t{size}": random.normal(0, 1, size).astype(np.float32) for size in sizes}
    new = retrained(weights, step=1e-4)
    assert len(made(build(weights), build(new, reverse=True))) < 0.75 * 4 * sum(sizes)


def test_a_delta_serves_one_base_only() -> None:
    weights = network()
    old, new = build(weights), build(retrained(weights, step=0.01))
    delta = make(old, new)
    for other in (old + b"\0", old[:-1], b""):
        with pytest.raises(DeltaError, match="is for a file of"):
            rebuild(io.BytesIO(other), io.BytesIO(delta), io.BytesIO(), len(new))
    with pytest.raises(DeltaError, match="expected"):
        rebuild(io.BytesIO(old), io.BytesIO(delta), io.BytesIO(), len(new) + 1)


def test_making_is_deterministic() -> None:
    weights = network()
    old, new = build(weights), build(retrained(weights, step=0.01))
    assert make(old, new) == make(old, new)
