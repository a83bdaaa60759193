"""Blocks of words: whatever goes in comes back, in every width, with and without a base."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelagent.delta import DeltaError, words
from modelagent.delta.form import STREAM, ZSTD

WIDTHS = (1, 2, 4, 8)
KEYS = {1: (0, 0), 2: (10, 5), 4: (23, 8), 8: (0, 0)}


def back(data: bytes, count: int, width: int, old: words.Words | None, key: words.Key) -> words.Words:
    stream = io.BytesIO(data)
    found = words.decode(stream.read, count, width, old, key)
    assert stream.read() == b""
    return found


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, words.Words, words.Words]:
    width = draw(st.sampled_from(WIDTHS))
    kind = words.word_type(width)
    old = draw(arrays.arrays(kind, st.integers(1, 300)))
    step = draw(arrays.arrays(kind, old.shape, elements=st.one_of(st.just(0), st.integers(0, 3)), fill=st.just(0)))
    return width, old, old + step


@settings(max_examples=150, deadline=None)
@given(block=blocks())
def test_a_block_comes_back(block: tuple[int, words.Words, words.Words]) -> None:
    width, old, new = block
    for base in (None, old):
        data = words.encode(new, base, KEYS[width])
        assert np.array_equal(back(data, new.size, width, base, KEYS[width]), new)


@pytest.mark.parametrize("width", WIDTHS)
def test_small_steps_either_way_take_few_bits(width: int) -> None:
    random = np.random.default_rng(0)
    kind = words.word_type(width)
    old = random.integers(0, 256**width, 50_000, kind, endpoint=False)
    new = old + random.choice(np.array([0, 1, 256**width - 1], kind), old.size, p=[0.9, 0.05, 0.05])
    data = words.encode(new, old, KEYS[width])
    ideal = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.05)) * old.size / 8
    assert len(data) < 1.2 * ideal
    assert np.array_equal(back(data, new.size, width, old, KEYS[width]), new)


def test_sorting_by_exponent_is_used_where_it_saves() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(0.0, 1.0, 60_000).astype(np.float32)
    old = weights.view(np.uint32)
    new = (weights + random.normal(0.0, 1e-3, weights.size).astype(np.float32)).view(np.uint32)
    with_key = words.encode(new, old, (23, 8))
    assert len(with_key) < 0.99 * len(words.encode(new, old, (0, 0)))
    assert np.array_equal(back(with_key, new.size, 4, old, (23, 8)), new)


def test_noise_takes_no_more_than_itself_and_a_few_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    assert len(words.encode(noise, None, (0, 0))) < noise.nbytes + 64


def test_a_compressed_part_that_states_another_length_is_refused_unread() -> None:
    bomb = words.deflate(bytes(50_000_000), level=3)
    with pytest.raises(DeltaError, match="50000000 bytes, expected 10"):
        words.inflate(bomb, 10)
    with pytest.raises(DeltaError):
        words.inflate(bomb + b"more", 50_000_000)


@pytest.mark.parametrize(
    "block",
    [b"", b"\x04", b"\x01", b"\x00\x09", b"\x00\x00" + STREAM.pack(9, 1), b"\x00\x00" + STREAM.pack(ZSTD, 400)],
)
def test_a_malformed_block_is_refused(block: bytes) -> None:
    stream = io.BytesIO(block + bytes(500))

    with pytest.raises(DeltaError):
        words.decode(stream.read, 100, 1, None, (0, 0)) if block else words.inflate(block, 1)
