"""Deltas that lie: nothing but DeltaError comes of them, memory stays bounded, and no byte outside is written."""

import io
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_models import build, network, retrained
from modelagent.delta import DeltaError, form, words
from modelagent.delta.make import make
from modelagent.delta.rebuild import rebuild

WEIGHTS = network(width=24)
OLD = build(WEIGHTS)
NEW = build(retrained(WEIGHTS, step=0.05), reverse=True)
DELTA = make(OLD, NEW)
MIB = 1 << 20


def outcome(delta: bytes, *, length: int = len(NEW), old: bytes = OLD) -> bytes | None:
    """The result; None where it was refused. Anything but DeltaError fails the test, and so does too much memory."""
    new = io.BytesIO()
    tracemalloc.start()
    try:
        rebuild(io.BytesIO(old), io.BytesIO(delta), new, length)
    except DeltaError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * (length + len(old)) + 12 * MIB
    assert len(new.getvalue()) <= length
    return new.getvalue()


def test_the_true_delta_is_taken() -> None:
    assert outcome(DELTA) == NEW


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(DELTA) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(DELTA)
    for place, value in changes:
        data[place] = value
    outcome(bytes(data))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(DELTA) - 1))
def test_a_delta_cut_anywhere_is_refused(length: int) -> None:
    assert outcome(DELTA[:length]) is None


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, len(DELTA)), stop=st.integers(0, len(DELTA)), put=st.binary(max_size=40))
def test_spliced_deltas(start: int, stop: int, put: bytes) -> None:
    outcome(DELTA[: min(start, stop)] + put + DELTA[max(start, stop) :])


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), header=st.booleans())
def test_random_bytes(data: bytes, header: bool) -> None:
    outcome((DELTA[: form.HEADER.size] if header else b"") + data)


def composed(
    lanes: Sequence[form.Lane], *, raw: bytes | None = None, rest: bytes = b"", blocks: bytes = b"", length: int = 0
) -> bytes:
    table = form.dump_table(lanes) if raw is None else raw
    packed, rested = words.deflate(table), words.deflate(rest)
    header = form.Header(len(OLD), length or len(NEW), len(packed), len(table), len(rested))
    return header.dump() + packed + rested + blocks


REGION = form.Region


@pytest.mark.parametrize(
    ("lanes", "message"),
    [
        ([form.Lane(4, True, 0, 0, (REGION(0, 0, 10), REGION(0, 36, 10)))], "overlap"),
        ([form.Lane(4, True, 0, 0, (REGION(0, 0, 10),)), form.Lane(1, False, 0, 0, (REGION(0, 39, 1),))], "overlap"),
        ([form.Lane(4, True, 0, 0, (REGION(len(OLD) - 39, 0, 10),))], "the old file has"),
        ([form.Lane(4, True, 0, 0, (REGION(0, len(NEW) - 39, 10),))], "the new file has"),
        ([form.Lane(4, True, 0, 0, (REGION(0, 0, 2**39),))], "the new file has"),
        ([form.Lane(4, True, 0, 0, (REGION(0, 0, 0),))], "0 words"),
        ([form.Lane(3, True, 0, 0, ())], "3 byte words"),
        ([form.Lane(4, True, 30, 8, ())], "key 8 bits from 30"),
        ([form.Lane(1, True, 0, 0, ())] * 65, "found 65"),
    ],
)
def test_tables_that_lie(lanes: Sequence[form.Lane], message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        form.parse_table(form.dump_table(lanes), len(OLD), len(NEW))
    assert outcome(composed(lanes)) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\xff" * 12,
        form.dump_table([form.Lane(4, True, 0, 0, (REGION(4, 4, 4),))]) + b"\0",
        # The first region would begin before the file.
        b"\x01\x04\x01\x00\x00\x01\x07\x04\x00",
        b"\x01\x04\x02\x00\x00\x00",
        # More regions than anybody may have.
        b"\x01\x04\x01\x00\x00\xff\xff\xff\x7f",
    ],
)
def test_tables_that_are_none(raw: bytes) -> None:
    with pytest.raises(DeltaError):
        form.parse_table(raw, len(OLD), len(NEW))
    assert outcome(composed([], raw=raw)) is None


@pytest.mark.parametrize(
    "numbers",
    [
        (len(OLD), 2**63, 10, 10, 10),
        (2**63, len(NEW), 10, 10, 10),
        (len(OLD), len(NEW), 2**32 - 1, 10, 10),
        (len(OLD), len(NEW), 10, 2**32 - 1, 10),
        (len(OLD), len(NEW), 10, 10, 2**63),
    ],
)
def test_headers_that_name_huge_lengths_take_no_memory(numbers: tuple[int, ...]) -> None:
    data = form.HEADER.pack(form.MAGIC, *numbers) + bytes(100)
    new = io.BytesIO()
    tracemalloc.start()
    try:
        with pytest.raises(DeltaError):
            rebuild(io.BytesIO(OLD), io.BytesIO(data), new, len(NEW))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_compression_bomb_is_not_unpacked() -> None:
    bomb = words.deflate(bytes(200 * MIB), level=1)
    table = words.deflate(form.dump_table([]))
    header = form.Header(len(OLD), len(NEW), len(table), len(form.dump_table([])), len(bomb))
    assert outcome(header.dump() + table + bomb) is None
    region = form.Lane(1, False, 0, 0, (REGION(0, 0, 100),))
    stream = b"\0\0" + form.STREAM.pack(form.ZSTD, 99) + bomb[:99]
    assert outcome(composed([region], rest=bytes(len(NEW) - 100), blocks=stream)) is None


def test_another_format_says_so() -> None:
    with pytest.raises(DeltaError, match="of format 2, this agent reads format 1"):
        rebuild(io.BytesIO(OLD), io.BytesIO(DELTA[:7] + b"\x02" + DELTA[8:]), io.BytesIO(), len(NEW))


def test_a_frame_with_no_length_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(DeltaError):
        words.inflate(frame, 100)


def test_blocks_of_every_flag_and_packing_are_read_or_refused() -> None:
    random = np.random.default_rng(0)
    lane = form.Lane(2, True, 10, 5, (REGION(0, 0, 64),))
    for flags in range(6):
        for packing in range(7):
            block = bytes((flags, packing)) + form.STREAM.pack(form.RAW, 64) + random.bytes(300)
            outcome(composed([lane], rest=bytes(len(NEW) - 128), blocks=block))
