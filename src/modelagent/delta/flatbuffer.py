"""Where a .tflite file keeps its weights: the few fields of the schema that a delta needs, read without trust.

This file knows TensorFlow Lite's flatbuffer schema (version 3): Model.subgraphs, Model.buffers, SubGraph.tensors,
Tensor.{shape, type, buffer, name, quantization}, Buffer.{data, offset, size}. It does not know what the weights mean.

    for item in read_constants(data):
        item.name, item.shape, item.dtype, item.span        # ('conv/kernel', (8, 3, 3, 1), 'int8', Span(4096, 72))

Each offset is checked before it is followed, each count before it is believed; a vector of a size that the file
cannot hold is refused at once, so that no hostile file costs more than time and memory proportional to its own size.
(Flatbuffers: a table begins with the signed distance back to its vtable; a vtable is its own size, the table's size,
and one 16-bit distance for each field, 0 where the field is absent.)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from modelagent.delta import DeltaError

Buffer = bytes | bytearray | memoryview
DTYPES: Final = {  # TensorType -> name and bytes of an element; others (strings, 4-bit, complex) stay unnamed bytes
    0: ("float32", 4),
    1: ("float16", 2),
    2: ("int32", 4),
    3: ("uint8", 1),
    4: ("int64", 8),
    6: ("bool", 1),
    7: ("int16", 2),
    9: ("int8", 1),
    10: ("float64", 8),
    12: ("uint64", 8),
    15: ("uint32", 4),
    16: ("uint16", 2),
    18: ("bfloat16", 2),
}
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS: Final = 0
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTISATION = 0, 1, 2, 3, 4
_DATA, _OFFSET, _SIZE = 0, 1, 2
_MIN, _MAX, _SCALE, _ZERO_POINT, _AXIS = 0, 1, 2, 3, 6
_MAX_RANK: Final = 16


class Span(NamedTuple):
    """A piece of the file: where it begins and how many bytes it has."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant tensor, or one of the vectors that quantise a tensor.

    `part` is `data`, `scale`, `zero_point`, `min` or `max`; `subgraph` and `name` say of which tensor. `scales` is
    the span of the float32 scales of the data, one for each index of `axis`, where there are several.
    """

    subgraph: int
    name: bytes
    part: str
    shape: tuple[int, ...]
    dtype: str
    width: int  # bytes of one element
    span: Span
    scales: Span | None = None
    axis: int = 0


def read_constants(data: Buffer) -> list[Constant]:
    """Every constant in the file, in the file's own order of tensors; a buffer that several tensors share comes once.

    Raises:
        DeltaError: the bytes are no readable .tflite file.
    """
    reader = _Reader(memoryview(data))
    found: list[Constant] = []
    seen: set[Span] = set()
    for constant in _walk(reader):
        if constant.span.length and constant.span not in seen:
            seen.add(constant.span)
            found.append(constant)
    return found


def _walk(reader: "_Reader") -> Iterator[Constant]:
    if reader.size < 8 or bytes(reader.data[4:8]) != b"TFL3":
        raise DeltaError("found no .tflite file: its identifier is missing")
    model = reader.table(reader.pointer(0))
    buffers = reader.tables(model, _MODEL_BUFFERS)
    budget = reader.size  # a table may be named many times: bound the work by the size of the file
    for index, subgraph in enumerate(reader.tables(model, _MODEL_SUBGRAPHS)):
        for tensor in reader.tables(reader.table(subgraph), _SUBGRAPH_TENSORS):
            budget -= 4
            if budget < 0:
                raise DeltaError("found more tensors than the file has room for")
            yield from _tensor(reader, index, reader.table(tensor), buffers)


def _tensor(reader: "_Reader", subgraph: int, table: "_Table", buffers: list[int]) -> Iterator[Constant]:
    name = reader.vector(table, _NAME, 1)
    text = b"" if name is None else bytes(reader.data[name.offset : name.offset + min(name.length, 1024)])
    shape = reader.integers(table, _SHAPE, _MAX_RANK)
    kind = reader.scalar(table, _TYPE, "b", 0)
    number = reader.scalar(table, _BUFFER, "I", 0)
    scales: Span | None = None
    axis = 0
    where = reader.child(table, _QUANTISATION)
    if where is not None:
        quantisation = reader.table(where)
        scales = reader.vector(quantisation, _SCALE, 4)
        axis = reader.scalar(quantisation, _AXIS, "i", 0)
        for part, field, dtype, width in (
            ("scale", _SCALE, "float32", 4),
            ("zero_point", _ZERO_POINT, "int64", 8),
            ("min", _MIN, "float32", 4),
            ("max", _MAX, "float32", 4),
        ):
            span = reader.vector(quantisation, field, width)
            if span is not None:
                yield Constant(subgraph, text, part, (span.length // width,), dtype, width, span)
    if not 0 < number < len(buffers):  # buffer 0 is empty by definition; an absent one is the runtime's to refuse
        return
    span = _content(reader, reader.table(buffers[number]))
    if span is None:
        return
    dtype, width = DTYPES.get(kind, ("", 1))
    count = 1
    for extent in shape:
        count *= max(0, extent)
    if not dtype or count * width != span.length:  # packed, sparse or wrong: just bytes
        dtype, width, shape, scales = "bytes", 1, (span.length,), None
    if scales is not None and not (0 <= axis < len(shape) and scales.length == 4 * shape[axis] and shape[axis] > 1):
        scales = None
    yield Constant(subgraph, text, "data", shape, dtype, width, span, scales, axis)


def _content(reader: "_Reader", table: "_Table") -> Span | None:
    """The bytes of a buffer: inside the flatbuffer, or, in files above 2 GB, behind it."""
    offset = reader.scalar(table, _OFFSET, "Q", 0)
    if offset > 1:
        size = reader.scalar(table, _SIZE, "Q", 0)
        if offset + size > reader.size:
            raise DeltaError(f"found a buffer of {size} bytes at {offset}, the file ends at {reader.size}")
        return Span(offset, size)
    return reader.vector(table, _DATA, 1)


class _Table(NamedTuple):
    """A table: where it is, where its vtable is, and how many fields the vtable speaks of."""

    place: int
    vtable: int
    fields: int


class _Reader:
    """Checked reads from one flatbuffer."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.size = len(data)

    def read(self, kind: str, offset: int) -> int:
        """One little-endian whole number."""
        if not 0 <= offset <= self.size - struct.calcsize(kind):
            raise DeltaError(f"found an offset to {offset}, the file ends at {self.size}")
        value: int = struct.unpack_from("<" + kind, self.data, offset)[0]
        return value

    def pointer(self, offset: int) -> int:
        """What a forward offset at `offset` points to."""
        distance = self.read("I", offset)
        if distance == 0 or offset + distance >= self.size:
            raise DeltaError(f"found an offset of {distance} at {offset}, the file ends at {self.size}")
        return offset + distance

    def table(self, place: int) -> _Table:
        """The table at `place`."""
        vtable = place - self.read("i", place)
        length = self.read("H", vtable)
        if length < 4 or length % 2 or vtable + length > self.size:
            raise DeltaError(f"found a vtable of {length} bytes at {vtable}")
        return _Table(place, vtable, (length - 4) // 2)

    def field(self, table: _Table, field: int) -> int | None:
        """Where a field is, or None where the table has none."""
        if field >= table.fields:
            return None
        distance = self.read("H", table.vtable + 4 + 2 * field)
        return table.place + distance if distance else None

    def scalar(self, table: _Table, field: int, kind: str, default: int) -> int:
        """A whole number in a table."""
        place = self.field(table, field)
        return default if place is None else self.read(kind, place)

    def child(self, table: _Table, field: int) -> int | None:
        """Where the table is that a field points to."""
        place = self.field(table, field)
        return None if place is None else self.pointer(place)

    def vector(self, table: _Table, field: int, width: int) -> Span | None:
        """The span of a vector's elements; None where it is absent."""
        place = self.child(table, field)
        if place is None:
            return None
        count = self.read("I", place)
        if count * width > self.size - place - 4:
            raise DeltaError(f"found a vector of {count} elements at {place}, the file ends at {self.size}")
        return Span(place + 4, count * width)

    def integers(self, table: _Table, field: int, limit: int) -> tuple[int, ...]:
        """A vector of int32."""
        span = self.vector(table, field, 4)
        if span is None:
            return ()
        if span.length > 4 * limit:
            raise DeltaError(f"found a tensor of {span.length // 4} dimensions, allowed are {limit}")
        return struct.unpack_from(f"<{span.length // 4}i", self.data, span.offset)

    def tables(self, table: _Table, field: int) -> list[int]:
        """Where the tables of a vector of tables are."""
        span = self.vector(table, field, 4)
        if span is None:
            return []
        return [self.pointer(place) for place in range(span.offset, span.offset + span.length, 4)]
