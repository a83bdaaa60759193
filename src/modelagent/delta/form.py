"""What a delta looks like as bytes: header, table of regions, rest, blocks (docs/delta-format.md is the specification).

This file knows the frame of the format and every bound in it. It does not know what is done with the words.

    form = parse_table(raw, old_length, new_length)     # the table, unpacked and held against both files
    form.lanes[0].regions[0]                            # Region(old=4096, new=4100, words=2304)
    dump_table(form.lanes)                              # the reverse
    gaps(spans, length)                                 # what no region covers: the rest

Nothing here allocates by a number that was read before that number was checked.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from modelagent.delta import DeltaError

FORMAT: Final = 1
MAGIC: Final = b"MADELTA\x01"  # the last byte is the format's version
HEADER: Final = struct.Struct("<8sQQIIQ")  # magic, old and new length, bytes of: packed table, raw table, packed rest
STREAM: Final = struct.Struct("<BI")  # how it is stored, bytes stored
BLOCK: Final = 1 << 18  # words in a block
MAX_TABLE: Final = 1 << 20  # bytes, unpacked
MAX_LANES: Final = 64
MAX_REGIONS: Final = 1 << 16
MAX_LENGTH: Final = 1 << 40
WIDTHS: Final = (1, 2, 4, 8)
RAW, ZSTD, FILL = 0, 1, 2  # how a stream is stored
SORTED, MASKED = 1, 2  # flags of a block


class Header(NamedTuple):
    """The fixed part: lengths in bytes. `old_length` 0 means that no base is needed."""

    old_length: int
    new_length: int
    table_packed: int
    table_raw: int
    rest_packed: int

    def dump(self) -> bytes:
        """As the file begins."""
        return HEADER.pack(MAGIC, *self)


class Region(NamedTuple):
    """`words` words at byte `new` of the new file; where the lane subtracts, those at byte `old` are taken off."""

    old: int
    new: int
    words: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Regions whose words are coded as one sequence.

    `width` is bytes of a word. `based`: the words are differences to the old file's. A block may be sorted by
    `key_bits` bits of the old word from `key_shift` on (the exponent of a float); 0 bits: never.
    """

    width: int
    based: bool
    key_shift: int
    key_bits: int
    regions: tuple[Region, ...]

    @property
    def words(self) -> int:
        """Words in all regions."""
        return sum(region.words for region in self.regions)


def parse_header(data: bytes) -> Header:
    """Read the fixed part.

    Raises:
        DeltaError: too short, another format, or numbers that no delta has.
    """
    if len(data) < HEADER.size:
        raise DeltaError(f"the delta ends after {len(data)} bytes, within its header")
    magic, *numbers = HEADER.unpack_from(data)
    if magic[:-1] != MAGIC[:-1]:
        raise DeltaError("found no delta: its identifier is missing")
    if magic != MAGIC:
        raise DeltaError(f"found a delta of format {magic[-1]}, this agent reads format {FORMAT}")
    header = Header(*numbers)
    if max(header.old_length, header.new_length, header.rest_packed) > MAX_LENGTH or header.table_raw > MAX_TABLE:
        raise DeltaError("the delta's header names lengths that no model has")
    return header


def dump_table(lanes: Sequence[Lane]) -> bytes:
    """Print the table: offsets as differences to where the region before ended."""
    out = bytearray()
    _put(out, len(lanes))
    for lane in lanes:
        out += bytes((lane.width, int(lane.based), lane.key_shift, lane.key_bits))
        _put(out, len(lane.regions))
        end_new = shift = 0
        for region in lane.regions:
            _put(out, _fold(region.new - end_new))
            _put(out, region.words)
            end_new = region.new + region.words * lane.width
            if lane.based:
                _put(out, _fold(region.old - region.new - shift))
                shift = region.old - region.new
    return bytes(out)


def parse_table(raw: bytes, old_length: int, new_length: int) -> tuple[Lane, ...]:
    """Read the table.

    Raises:
        DeltaError: not well formed, a region outside its file, or two regions of the new file that overlap.
    """
    cursor = _Cursor(raw)
    lanes = []
    left = MAX_REGIONS
    for _ in range(cursor.number(MAX_LANES)):
        width, based, key_shift, key_bits = cursor.byte(), cursor.byte(), cursor.byte(), cursor.byte()
        if width not in WIDTHS or based > 1 or key_bits > 8 or key_shift + key_bits > 8 * width:
            raise DeltaError(f"found a lane of {width} byte words, key {key_bits} bits from {key_shift}")
        count = cursor.number(left)
        left -= count
        regions = tuple(_regions(cursor, count, width, (old_length if based else None), new_length))
        lanes.append(Lane(width, bool(based), key_shift, key_bits, regions))
    cursor.done()
    end = 0
    for span in sorted((region.new, region.words * lane.width) for lane in lanes for region in lane.regions):
        if span[0] < end:
            raise DeltaError(f"two regions of the new file overlap at {span[0]}")
        end = span[0] + span[1]
    return tuple(lanes)


def _regions(cursor: "_Cursor", count: int, width: int, old_length: int | None, new_length: int) -> Iterator[Region]:
    end_new = shift = old = 0
    for _ in range(count):
        new = end_new + _unfold(cursor.number(2 * MAX_LENGTH))
        words = cursor.number(MAX_LENGTH)
        end_new = new + words * width
        if words == 0 or new < 0 or end_new > new_length:
            raise DeltaError(f"found a region of {words} words at {new}, the new file has {new_length} bytes")
        if old_length is not None:
            shift += _unfold(cursor.number(2 * MAX_LENGTH))
            old = new + shift
            if old < 0 or old + words * width > old_length:
                raise DeltaError(f"found a region of {words} words at {old}, the old file has {old_length} bytes")
        yield Region(old, new, words)


def gaps(spans: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """What (offset, length) pairs, in any order and overlapping or not, leave uncovered of `length` bytes."""
    found = []
    end = 0
    for offset, size in sorted(spans):
        if offset > end:
            found.append((end, offset - end))
        end = max(end, offset + size)
    if end < length:
        found.append((end, length - end))
    return found


def new_gaps(lanes: Iterable[Lane], length: int) -> list[tuple[int, int]]:
    """What of the new file is in the rest."""
    return gaps(((region.new, region.words * lane.width) for lane in lanes for region in lane.regions), length)


def old_gaps(lanes: Iterable[Lane], length: int) -> list[tuple[int, int]]:
    """What of the old file the rest may refer to."""
    based = (lane for lane in lanes if lane.based)
    return gaps(((region.old, region.words * lane.width) for lane in based for region in lane.regions), length)


class _Cursor:
    """Reads bytes and numbers from the table."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise DeltaError("the delta's table ends too early")
        self._at += 1
        return self._data[self._at - 1]

    def number(self, limit: int) -> int:
        """A whole number, seven bits a byte, lowest first; at most `limit`."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > limit:
                    raise DeltaError(f"found {value} in the delta's table, allowed is at most {limit}")
                return value
        raise DeltaError("found a number of more than nine bytes in the delta's table")

    def done(self) -> None:
        if self._at != len(self._data):
            raise DeltaError(f"the delta's table goes on for {len(self._data) - self._at} bytes after its end")


def _put(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _fold(value: int) -> int:
    return value * 2 if value >= 0 else -value * 2 - 1


def _unfold(value: int) -> int:
    return value >> 1 if value % 2 == 0 else -(value + 1 >> 1)
