"""The reader of .tflite files: what it finds, and that hostile bytes cause nothing but DeltaError."""

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_models import build, network
from modelagent.delta import DeltaError
from modelagent.delta.flatbuffer import read_constants

DIGITS = Path(__file__).resolve().parents[2] / "examples/digits/models"
SMALL = build({"a": np.arange(6, dtype=np.int8).reshape(2, 3)}, scales={"a": (np.array([0.1, 0.2]), 0)})


def test_weights_are_found_by_name_shape_type_and_place() -> None:
    weights = network(dtype=np.float16)
    data = build(weights)
    found = {constant.name.decode(): constant for constant in read_constants(data)}
    assert set(found) == set(weights)
    for name, values in weights.items():
        constant = found[name]
        assert (constant.shape, constant.part) == (values.shape, "data")
        assert constant.dtype == values.dtype.name
        assert data[constant.span.offset :][: constant.span.length] == values.tobytes()


def test_scales_come_with_their_axis() -> None:
    parts = {constant.part: constant for constant in read_constants(SMALL)}
    assert set(parts) == {"data", "scale", "zero_point"}
    assert parts["data"].scales == parts["scale"].span
    assert parts["data"].axis == 0
    place = parts["scale"].span.offset
    assert np.frombuffer(SMALL, np.float32, 2, place).tolist() == pytest.approx([0.1, 0.2])


def test_a_shape_that_does_not_fit_its_bytes_leaves_plain_bytes() -> None:
    data = build({"a": np.zeros((4, 4), np.float32)})
    assert b"\x04\0\0\0\x04\0\0\0" in data
    found = read_constants(data.replace(b"\x04\0\0\0\x04\0\0\0", b"\x04\0\0\0\x05\0\0\0"))
    assert [(constant.dtype, constant.shape) for constant in found] == [("bytes", (64,))]


@pytest.mark.parametrize("path", sorted(DIGITS.glob("*.tflite")), ids=lambda path: path.name)
def test_real_models_are_read(path: Path) -> None:
    data = path.read_bytes()
    found = [constant for constant in read_constants(data) if constant.part == "data"]
    assert sum(constant.span.length for constant in found) > 0.5 * len(data)
    assert not any(constant.dtype == "bytes" for constant in found)


@pytest.mark.parametrize("length", range(0, len(SMALL), 3))
def test_a_file_cut_anywhere_is_refused_or_read(length: int) -> None:
    try:
        found = read_constants(SMALL[:length])
    except DeltaError:
        return
    assert all(constant.span.offset + constant.span.length <= length for constant in found)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=8))
def test_changed_bytes_cause_nothing_but_the_named_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    try:
        found = read_constants(data)
    except DeltaError:
        return
    assert all(0 <= constant.span.offset <= len(data) - constant.span.length for constant in found)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300).map(lambda tail: b"\x10\0\0\0TFL3" + tail))
def test_random_bytes_cause_nothing_but_the_named_error(data: bytes) -> None:
    with contextlib.suppress(DeltaError):
        read_constants(data)


def test_the_named_error_says_what_happens_instead() -> None:
    with pytest.raises(DeltaError, match="full file is used") as caught:
        read_constants(b"\x10\0\0\0TFL4")
    assert caught.value.code == "delta"


def test_one_table_named_very_often_takes_no_more_than_the_file_is_long() -> None:
    # Every tensor of this file is the same table: work must not grow with count times size.
    many = np.zeros(20_000, np.float32)
    data = bytearray(build({"a": many}))
    tracemalloc.start()
    try:
        read_constants(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_vector_longer_than_the_file_is_refused_before_it_is_read() -> None:
    data = bytearray(SMALL)
    hits = 0
    for place in range(0, len(data) - 4, 4):
        changed = bytearray(data)
        changed[place : place + 4] = b"\xff\xff\xff\x7f"
        try:
            read_constants(changed)
        except DeltaError:
            hits += 1
    assert hits > 10
