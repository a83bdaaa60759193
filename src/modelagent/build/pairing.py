"""Two .tflite files of one graph: which numbers belong together, and the parent's file with other numbers in it.

This file knows the TFLite schema. It does not know which numbers are wanted, and runs no model.

    family = Family(parent, network)        # UsageError where they are not the same graph
    family.pairs[0].old, family.pairs[0].new            # equal shapes and types, by the parent's scale and zero point
    family.write([pair.new for pair in family.pairs])   # the parent's file with the network's numbers

Constants are paired by their place in the graph, which is compared whole: operators and their options, connections,
shapes, types, signatures. Names inside the graph are counters of the converter and are not asked; those of inputs and
outputs are the contract, and are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from modelagent.build import graph
from modelagent.errors import UsageError

Array = npt.NDArray[Any]
_FLOATS: Final[Mapping[int, Any]] = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
_WHOLE: Final[Mapping[int, Any]] = {
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
}
_TENSOR: Final = ("shape", "shapeSignature", "type", "isVariable", "hasRank", "sparsity", "variantTensors")


@dataclass(frozen=True)
class Pair:
    """One constant of both files. `new` has the parent's type, scale and zero point; `zero` is what means 0.0.

    `clipped`: how many of the network's numbers the parent's scale cannot hold.
    """

    name: str
    place: tuple[int, int]  # subgraph, tensor
    old: Array
    new: Array
    zero: Array
    clipped: int = 0


class Family:
    """A parent and a network of the same graph.

    Args:
        parent: the published file.
        network: the new one.

    Raises:
        UsageError: `no-pair`; says what differs.
    """

    def __init__(self, parent: bytes, network: bytes) -> None:
        self._bytes = bytearray(parent)
        self._parent, other = graph.unpack(self._bytes), graph.unpack(network)
        _compare(self._parent, other)
        self.pairs: tuple[Pair, ...] = tuple(_pairs(self._parent, other))
        places = [self._tensor(pair).buffer for pair in self.pairs]
        self._views: list[Array] = [self._parent.buffers[place].data for place in places]
        # Writers keep equal vectors once, so that a bias of zeros may be the very bytes of an axis.
        others = [buffer.data for place, buffer in enumerate(self._parent.buffers) if place not in places]
        self._others = [(view, view.copy()) for view in others if isinstance(view, np.ndarray)]

    def write(self, values: Sequence[Array]) -> bytes:
        """The parent's file with these numbers, one array a pair; everything else is the parent's, layout included.

        Where the parent keeps one vector for what is equal in it and not any more, the file is laid out anew.
        """
        contents = [
            np.frombuffer(np.ascontiguousarray(array, pair.old.dtype).tobytes(), np.uint8)
            for pair, array in zip(self.pairs, values, strict=True)
        ]
        before = [view.copy() for view in self._views]
        try:
            for view, data in zip(self._views, contents, strict=True):
                view[:] = data
            kept = all(np.array_equal(view, data) for view, data in self._others)
            if kept and all(map(np.array_equal, self._views, contents)):
                return bytes(self._bytes)
        finally:
            for view, data in zip(self._views, before, strict=True):
                view[:] = data
        return self._apart(contents)

    def _apart(self, contents: Sequence[Array]) -> bytes:
        """Each tensor with a buffer of its own; the writer joins what is equal."""
        model = graph.unpack(bytes(self._bytes))
        for pair, data in zip(self.pairs, contents, strict=True):
            buffer = schema.BufferT()
            buffer.data = data
            tensor = model.subgraphs[pair.place[0]].tensors[pair.place[1]]
            shared = sum(item.buffer == tensor.buffer for part in model.subgraphs for item in part.tensors) > 1
            if shared:
                tensor.buffer = len(model.buffers)
                model.buffers.append(buffer)
            else:
                model.buffers[tensor.buffer] = buffer
        return graph.pack(model, len(self._bytes))

    def _tensor(self, pair: Pair) -> Any:
        return self._parent.subgraphs[pair.place[0]].tensors[pair.place[1]]


def _compare(old: Any, new: Any) -> None:
    """Refuse two files whose graphs differ in anything but numbers and quantisation parameters."""
    codes = [
        [
            (max(item.builtinCode, item.deprecatedBuiltinCode), _plain(item.customCode))
            for item in model.operatorCodes or []
        ]
        for model in (old, new)
    ]
    if codes[0] != codes[1]:
        raise _unlike("their operators differ")
    if len(old.subgraphs) != len(new.subgraphs):
        raise _unlike(f"the parent has {len(old.subgraphs)} subgraphs, the network {len(new.subgraphs)}")
    if not _same(old.signatureDefs or None, new.signatureDefs or None):
        raise _unlike("their signatures differ")
    for one, other in zip(old.subgraphs, new.subgraphs, strict=True):
        if len(one.tensors) != len(other.tensors):
            raise _unlike(f"the parent has {len(one.tensors)} tensors, the network {len(other.tensors)}")
        for edge in ("inputs", "outputs"):
            found = [
                [(int(index), _plain(item.tensors[index].name)) for index in _listed(getattr(item, edge))]
                for item in (one, other)
            ]
            if found[0] != found[1]:
                raise _unlike(f"their {edge} differ in name or order")
        for before, after in zip(one.tensors, other.tensors, strict=True):
            if not all(_same(getattr(before, key), getattr(after, key)) for key in _TENSOR):
                raise _unlike(f"tensor {_plain(after.name)} has another shape or type")
            if not _same(_form(before), _form(after)):
                raise _unlike(f"tensor {_plain(after.name)} is quantised in another way")
        if not _same(one.operators, other.operators):
            raise _unlike("their operators have other options or other connections")


def _pairs(old: Any, new: Any) -> Iterator[Pair]:
    for number, (one, other) in enumerate(zip(old.subgraphs, new.subgraphs, strict=True)):
        for index, (before, after) in enumerate(zip(one.tensors, other.tensors, strict=True)):
            found = [_content(model, tensor) for model, tensor in ((old, before), (new, after))]
            pair = _pair((number, index), before, after, *found)
            if pair is not None:
                yield pair


def _pair(place: tuple[int, int], before: Any, after: Any, old: bytes, new: bytes) -> Pair | None:
    name = _plain(after.name)
    if len(old) != len(new):
        raise _unlike(f"tensor {name} has {len(old)} bytes in the parent, {len(new)} in the network")
    if not old:
        return None
    shape = tuple(int(size) for size in before.shape) if before.shape is not None else ()
    kind = _FLOATS.get(before.type)
    if kind is not None:
        values = [np.frombuffer(data, kind).reshape(shape) for data in (old, new)]
        return Pair(name, place, values[0], values[1], np.zeros((), kind))
    kind = _WHOLE.get(before.type)
    if kind is None or not _scales(before):
        # Shapes, axes, tables, packed numbers: not weights, so the parent's must serve as they are.
        if old != new:
            raise _unlike(f"constant {name}, which is no weight, has other contents")
        return None
    whole = [np.frombuffer(data, kind).reshape(shape) for data in (old, new)]
    (scale, zero), (other_scale, other_zero) = _grid(before, shape), _grid(after, shape)
    if np.array_equal(scale, other_scale) and np.array_equal(zero, other_zero):
        return Pair(name, place, whole[0], whole[1], zero.astype(kind))
    wanted = np.rint((whole[1] - other_zero.astype(np.float64)) * other_scale / scale) + zero
    limits = np.iinfo(kind)
    # Kernels may count on symmetric weights: where the parent leaves out the lowest number, so does its child.
    lowest = limits.min + 1 if limits.min < 0 and int(whole[0].min()) > limits.min else limits.min
    held = np.clip(wanted, lowest, limits.max)
    return Pair(name, place, whole[0], held.astype(kind), zero.astype(kind), int(np.count_nonzero(held != wanted)))


def _grid(tensor: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scale and zero point, shaped so that they go with the numbers."""
    found = tensor.quantization
    scale = np.asarray(found.scale, np.float32).astype(np.float64)
    zero = np.zeros(len(scale), np.int64) if found.zeroPoint is None else np.asarray(found.zeroPoint, np.int64)
    axis = int(found.quantizedDimension)
    wide = len(scale) > 1
    if not (scale > 0).all() or len(zero) != len(scale) or (wide and len(scale) != shape[axis]):
        raise _unlike(f"tensor {_plain(tensor.name)} has scales that cannot be read")
    form = [len(scale) if wide and place == axis else 1 for place in range(len(shape))]
    return scale.reshape(form), zero.reshape(form)


def _form(tensor: Any) -> tuple[Any, ...]:
    """How a tensor is quantised, without the numbers."""
    found = tensor.quantization
    count = _scales(tensor)
    return (count, int(found.quantizedDimension) if count > 1 else 0, None if found is None else found.details)


def _scales(tensor: Any) -> int:
    found = tensor.quantization
    return 0 if found is None or found.scale is None else len(found.scale)


def _content(model: Any, tensor: Any) -> bytes:
    buffer = model.buffers[tensor.buffer]
    if (buffer.offset or 0) > 1:
        raise _unlike("weights lie outside the flatbuffer, as in files above 2 GB, which this step does not read")
    return b"" if tensor.buffer == 0 or buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def _same(one: Any, other: Any) -> bool:
    """Whether two values of the generated classes are equal; an absent vector is an empty one."""
    if isinstance(one, np.ndarray | list | tuple) or isinstance(other, np.ndarray | list | tuple):
        first, second = map(_listed, (one, other))
        return len(first) == len(second) and all(map(_same, first, second))
    if hasattr(one, "__dict__"):
        return type(one) is type(other) and all(_same(value, vars(other)[key]) for key, value in vars(one).items())
    return bool(one == other)


def _listed(vector: Any) -> list[Any]:
    return [] if vector is None else list(vector)


def _plain(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _unlike(found: str) -> UsageError:
    return UsageError(
        f"near-parent: the parent and this network do not pair: {found}; build it from the parent's architecture and "
        "through the parent's chain, or leave the step out",
        code="no-pair",
    )
