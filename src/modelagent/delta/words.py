"""The arithmetic on blocks of words, forwards and back (docs/delta-format.md, section 4).

This file knows how one block of at most 2^18 words becomes bytes and comes back. It does not know files or offsets.

    data = encode(new, old, key)                  # arrays of the same unsigned type; old None: without a base
    decode(read, new.size, 4, old, key) == new    # read(n) gives the next n bytes

Differences are taken on unsigned words of the tensor's width and folded (zigzag), so that small steps either way have
small values. Byte p of every word forms plane p; a plane of few frequent values is packed several to a byte, with
the others listed behind: a Huffman code spends at least one bit on a symbol, however sure it is. What zstd sees then
is one homogeneous sequence a plane. Sorting a block by the exponent of the old floats brings together the words whose
differences are of one size: the step of a retraining is about the same for large weights and small ones, so the
exponent says how many bits of the difference are there. The reader has the same exponents and undoes it.
"""

from collections.abc import Callable
from itertools import product
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import zstandard

from modelagent.delta import DeltaError, form
from modelagent.delta.form import FILL, MASKED, RAW, SORTED, STREAM, ZSTD

Words = npt.NDArray[np.unsignedinteger]
Bytes = npt.NDArray[np.uint8]
Read = Callable[[int], bytes]  # exactly so many bytes, or DeltaError
Dictionary = zstandard.ZstdCompressionDict
Key = tuple[int, int]  # shift and bits of the sort key in the old word

# (values of a symbol, symbols in a byte); the largest value says: look it up behind.
PACKINGS: Final = ((256, 1), (2, 8), (3, 5), (4, 4), (6, 3), (16, 2))
_PLACE_BITS: Final = (form.BLOCK - 1).bit_length()
_CHUNK: Final = 1 << 17  # bytes for which zstd makes one Huffman table
_TRIED: Final = 2  # variants and packings that are really compressed, the most promising by entropy
_WORTH: Final = 1.015  # sorting and masking cost the reader time: each has to save more than this
_UNPACK: Final = tuple(
    np.stack([np.arange(256) // base**place % base for place in range(each)], axis=1).astype(np.uint8)
    for base, each in PACKINGS
)


def dictionary(base: bytes | bytearray) -> Dictionary | None:
    """What a zstd frame may refer to; zstd takes a copy."""
    # Below eight bytes zstd ignores a dictionary on one side; both must do the same.
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(base) >= 8 else None


def word_type(width: int) -> np.dtype[np.unsignedinteger]:
    """The unsigned type of a word."""
    return np.dtype(f"<u{width}")


# --- reading -------------------------------------------------------------------------------------------------------


def inflate(data: bytes, length: int, base: Dictionary | None = None) -> bytes:
    """One zstd frame of exactly `length` bytes; `base` is what it may refer to.

    Raises:
        DeltaError: it is damaged, or of another length.
    """
    try:
        stated = zstandard.frame_content_size(data)
        if stated != length:
            raise DeltaError(f"found a compressed part of {stated} bytes, expected {length}")
        decompressor = zstandard.ZstdDecompressor(dict_data=base, max_window_size=1 << 31)
        found = decompressor.decompress(data, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"a compressed part is damaged ({error})") from error
    if len(found) != length:
        raise DeltaError(f"a compressed part has {len(found)} bytes, expected {length}")
    return found


def decode(read: Read, count: int, width: int, old: Words | None, key: Key) -> Words:
    """Read one block.

    Args:
        read: gives the delta's next bytes.
        count: words in the block.
        width: bytes of a word.
        old: the base's words; None where the lane has none.
        key: of the lane.

    Returns:
        The new words.

    Raises:
        DeltaError: the block is damaged.
    """
    flags = read(1)[0]
    if flags & ~(SORTED | MASKED) or (flags & SORTED and (old is None or not key[1])):
        raise DeltaError(f"found a block with the flags {flags}")
    changed: npt.NDArray[np.bool_] | None = None
    here = count
    if flags & MASKED:
        bits = _read_stream(read, -(-count // 8))
        changed = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        here = int(np.count_nonzero(changed))
    planes = np.empty((here, width), np.uint8)
    for place in range(width):
        planes[:, place] = _read_plane(read, here)
    words = cast("Words", planes.reshape(-1).view(word_type(width)))
    if changed is not None:
        spread = np.zeros(count, words.dtype)
        spread[changed] = words
        words = spread
    if old is None:
        return _rotate(words, back=True)
    if flags & SORTED:
        spread = np.empty_like(words)
        spread[_order(old, key)] = words
        words = spread
    folded = np.bitwise_and(words, 1)
    np.negative(folded, out=folded)
    words = np.right_shift(words, 1)
    np.bitwise_xor(words, folded, out=words)
    np.add(words, old, out=words)
    return words


def _read_plane(read: Read, count: int) -> Bytes:
    packing = read(1)[0]
    if packing >= len(PACKINGS):
        raise DeltaError(f"found a plane with the packing {packing}")
    base, each = PACKINGS[packing]
    packed = _read_stream(read, -(-count // each))
    if packing == 0:
        return packed
    if base == 2:
        symbols = np.unpackbits(packed, count=count, bitorder="little")
    else:
        symbols = np.take(_UNPACK[packing], packed, axis=0).reshape(-1)[:count]
    others = np.flatnonzero(symbols == base - 1)
    symbols[others] = _read_stream(read, others.size) + np.uint8(base - 1)
    return symbols


def _read_stream(read: Read, length: int) -> Bytes:
    stored, size = STREAM.unpack(read(STREAM.size))
    if stored == FILL and size == 1:
        return np.full(length, read(1)[0], np.uint8)
    if stored == RAW and size == length:
        return np.frombuffer(read(size), np.uint8)
    if stored == ZSTD and size < length:
        return np.frombuffer(inflate(read(size), length), np.uint8)
    raise DeltaError(f"found a stream stored as {stored} in {size} bytes, expected {length} bytes")


# --- writing -------------------------------------------------------------------------------------------------------


def deflate(data: bytes, base: bytes = b"", *, level: int = 19) -> bytes:
    """One zstd frame, as small as zstd makes it; `base` is what it may refer to."""
    window = max(10, min(31, (len(data) + len(base)).bit_length()))
    large = window > 22
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), dict_size=len(base), window_log=window, enable_ldm=large, write_checksum=False
    )
    return zstandard.ZstdCompressor(dict_data=dictionary(base), compression_params=parameters).compress(data)


def encode(new: Words, old: Words | None, key: Key) -> bytes:
    """Write one block in the smallest of the ways that look promising."""
    words = _rotate(new) if old is None else _folded(new, old)
    orders: list[Words] = [words]
    if old is not None and key[1]:
        orders.append(words[_order(old, key)])
    variants: list[tuple[float, int, Words]] = []
    for (flag, ordered), mask in product(zip((0, SORTED), orders, strict=False), (0, MASKED)):
        cost = 0.0
        kept = ordered
        if mask:
            changed = ordered != 0
            if changed.all():
                continue
            kept = ordered[changed]
            cost = _entropy(np.packbits(changed, bitorder="little"))
        cost += sum(min(_costs(plane)) for plane in _planes(kept))
        variants.append((cost * _toll(flag | mask), flag | mask, ordered))
    variants.sort(key=lambda item: item[0])
    written = [_write(ordered, flags) for _, flags, ordered in variants[:_TRIED]]
    return min(written, key=lambda data: len(data) * _toll(data[0]))


def _toll(flags: int) -> float:
    return _WORTH ** flags.bit_count()


def guess(new: Words, old: Words | None) -> float:
    """About how many bytes `encode` will need, quickly."""
    words = _rotate(new) if old is None else _folded(new, old)
    return sum(min(_costs(plane)) for plane in _planes(words))


def _write(words: Words, flags: int) -> bytes:
    out = [bytes((flags,))]
    if flags & MASKED:
        changed = words != 0
        out.append(_stream(np.packbits(changed, bitorder="little")))
        words = words[changed]
    for plane in _planes(words):
        costs = _costs(plane)
        promising = sorted(range(len(PACKINGS)), key=costs.__getitem__)[:_TRIED]
        out.append(min((_write_plane(plane, packing) for packing in promising), key=len))
    return b"".join(out)


def _write_plane(plane: Bytes, packing: int) -> bytes:
    if packing == 0:
        return b"\0" + _stream(plane)
    packed, behind = _pack(plane, packing)
    return bytes((packing,)) + _stream(packed) + _stream(behind)


def _stream(data: Bytes) -> bytes:
    if data.size and (data == data[0]).all():
        return STREAM.pack(FILL, 1) + data[:1].tobytes()
    raw = data.tobytes()
    best = raw
    if _entropy(data) < 0.99 * data.size:
        # Short matches pay in some planes and mislead zstd in others.
        for shortest in (3, 7):
            parameters = zstandard.ZstdCompressionParameters.from_level(
                19, source_size=len(raw), min_match=shortest, write_checksum=False
            )
            best = min(best, zstandard.ZstdCompressor(compression_params=parameters).compress(raw), key=len)
    return STREAM.pack(RAW if best is raw else ZSTD, len(best)) + best


def _planes(words: Words) -> list[Bytes]:
    table = words.view(np.uint8).reshape(-1, words.itemsize)
    return [np.ascontiguousarray(table[:, place]) for place in range(words.itemsize)]


def _pack(plane: Bytes, packing: int) -> tuple[Bytes, Bytes]:
    base, each = PACKINGS[packing]
    symbols = np.minimum(plane, base - 1)
    behind = plane[plane >= base - 1] - np.uint8(base - 1)
    table = np.zeros(-(-plane.size // each) * each, np.uint8)
    table[: plane.size] = symbols
    packed = np.zeros(table.size // each, np.uint8)
    for place in reversed(range(each)):
        packed = packed * np.uint8(base) + table[place::each]
    return packed, behind


def _costs(plane: Bytes) -> list[float]:
    """Bytes by entropy for each packing."""
    found = [_entropy(plane)]
    for packing in range(1, len(PACKINGS)):
        packed, behind = _pack(plane, packing)
        found.append(_entropy(packed) + _entropy(behind))
    return found


def _entropy(data: Bytes) -> float:
    """Bytes that a code of whole bits would need for each of zstd's chunks."""
    total = 0.0
    for start in range(0, data.size, _CHUNK):
        counts = np.bincount(data[start : start + _CHUNK])
        counts = counts[counts > 0]
        size = int(counts.sum())
        bits = float(size * np.log2(size) - (counts * np.log2(counts)).sum()) if len(counts) > 1 else 0.0
        total += max(bits, size if len(counts) > 1 else 0.0) / 8 + len(counts) / 2
    return min(total, float(data.size))


# --- both ----------------------------------------------------------------------------------------------------------


def _folded(new: Words, old: Words) -> Words:
    step = np.subtract(new, old)
    sign = np.negative(np.right_shift(step, 8 * step.itemsize - 1))
    return cast("Words", np.bitwise_xor(np.left_shift(step, 1), sign))


def _rotate(words: Words, *, back: bool = False) -> Words:
    """Rotate by one bit: the sign of a float goes last, and its exponent fills the first byte."""
    top = 8 * words.itemsize - 1
    left, right = (top, 1) if back else (1, top)
    return cast("Words", np.bitwise_or(np.left_shift(words, left), np.right_shift(words, right)))


def _order(old: Words, key: Key) -> npt.NDArray[np.uint32]:
    """The places of the words in the order of their keys; within a key as they come."""
    shift, bits = key
    # Key and place in one number: sorting those is several times as quick as a stable argsort.
    found = np.bitwise_and(np.right_shift(old, shift), (1 << bits) - 1).astype(np.uint32)
    found <<= np.uint32(_PLACE_BITS)
    found |= np.arange(found.size, dtype=np.uint32)
    found.sort()
    found &= np.uint32((1 << _PLACE_BITS) - 1)
    return found
