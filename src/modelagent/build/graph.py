"""What is inside a .tflite file: operators, constants, and how many of them a step really changed.

This file knows the TFLite schema. It never runs a model, so it may read files that would crash the runtime.

    found = inspect(data)
    found.operators                 # {"CONV_2D": 3, ...}
    found.share("int8")             # 0.97: the share of the weights' numbers that are int8
    found.zeros                     # 0.5: the share of the weights' numbers that are zero
    differences(first, second)      # ["constant conv/kernel: 12 of 864 bytes", ...]

Weights are constants of at least two dimensions and 16 numbers: biases and shapes are not what a step is judged by.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from modelagent.errors import UsageError

_SMALLEST_WEIGHT: Final = 16  # numbers
_DTYPES: Final[dict[str, Any]] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
# Operators that move numbers between types or shapes: one in float says nothing about where arithmetic happens.
_CONVERTERS: Final = {"QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE"}
_ALIGNMENT: Final = 16  # bytes, of weights
_STRIP: Final = "CONVERSION_METADATA"  # names the converter's build, and nothing a device needs


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant tensor: its name, type, how many numbers, how many of them zero, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: int
    zeros: int
    data: bytes

    @property
    def is_weight(self) -> bool:
        """Whether a compression step is judged by it."""
        return len(self.shape) >= 2 and self.numbers >= _SMALLEST_WEIGHT


@dataclass(frozen=True, slots=True)
class Inside:
    """What a file holds. `custom` names operators that no standard runtime has (tensorflow's own begin with Flex)."""

    operators: Mapping[str, int]
    custom: tuple[str, ...]
    constants: tuple[Constant, ...]
    float_operators: int
    signatures: tuple[str, ...]

    @property
    def weights(self) -> tuple[Constant, ...]:
        """The constants that count."""
        return tuple(item for item in self.constants if item.is_weight)

    @property
    def numbers(self) -> int:
        """How many numbers the weights are."""
        return sum(item.numbers for item in self.weights)

    def share(self, *dtypes: str) -> float:
        """Share of the weights' numbers that are of these types, 0 to 1; 0 without weights."""
        return sum(item.numbers for item in self.weights if item.dtype in dtypes) / max(1, self.numbers)

    @property
    def zeros(self) -> float:
        """Share of the weights' numbers that are zero."""
        return sum(item.zeros for item in self.weights) / max(1, self.numbers)


def inspect(data: bytes) -> Inside:
    """Read a file.

    Raises:
        UsageError: `model-file`: no .tflite file.
    """
    model = unpack(data)
    names, builtin = _words(schema.BuiltinOperator), []
    custom = []
    for entry in model.operatorCodes:
        code = max(entry.builtinCode, entry.deprecatedBuiltinCode)
        name = names.get(code, str(code))
        if name == "CUSTOM":
            name = _text(entry.customCode)
            custom.append(name)
        builtin.append(name)
    operators: Counter[str] = Counter()
    constants = []
    floats = 0
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            name = builtin[operator.opcodeIndex]
            operators[name] += 1
            made = [graph.tensors[index] for index in operator.outputs]
            if name not in _CONVERTERS and any(tensor.type == schema.TensorType.FLOAT32 for tensor in made):
                floats += 1
        constants += [found for tensor in graph.tensors if (found := _constant(model, tensor)) is not None]
    return Inside(
        dict(sorted(operators.items())),
        tuple(sorted(custom)),
        tuple(constants),
        floats,
        tuple(_text(entry.signatureKey) for entry in model.signatureDefs or []),
    )


def polish(data: bytes, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> bytes:
    """The same model, smaller: inputs and outputs named as wanted, equal vectors written once, remarks removed.

    The converter's names change from build to build (`StatefulPartitionedCall:0`), and a manifest promises names; a
    remark about the build would make equal networks differ in bytes.

    Args:
        data: the file.
        inputs: in the file's order; none: names stay.
        outputs: the same.
    """
    model = unpack(data)
    main = model.subgraphs[0]
    for wanted, indices in ((inputs, main.inputs), (outputs, main.outputs)):
        if not wanted:
            continue
        if len(wanted) != len(indices):
            raise UsageError(
                f"tensor names {', '.join(wanted)}: the model has {len(indices)} there; give as many", code="names"
            )
        for name, index in zip(wanted, indices, strict=True):
            main.tensors[index].name = name.encode()
    for entry in model.metadata or []:
        if _text(entry.name) == _STRIP:
            model.buffers[entry.buffer].data = None
    model.metadata = [entry for entry in model.metadata or [] if _text(entry.name) != _STRIP]
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.quantization is not None:
                # What calibration saw: for the quantiser's own next step, and nothing a runtime reads.
                tensor.quantization.min = tensor.quantization.max = None
    return pack(model, len(data))


def order(data: bytes) -> tuple[list[str], list[str]]:
    """The signature's names of inputs and outputs, in the order of the graph; tensor names without a signature."""
    model = unpack(data)
    main = model.subgraphs[0]
    found: list[list[str]] = []
    for kind, indices in (("inputs", main.inputs), ("outputs", main.outputs)):
        names = {index: _text(main.tensors[index].name) for index in indices}
        for signature in (model.signatureDefs or [])[:1]:
            names |= {entry.tensorIndex: _text(entry.name) for entry in getattr(signature, kind)}
        found.append([names[index] for index in indices])
    return found[0], found[1]


def arrange(data: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The same model with inputs and outputs in this order, where these are the signature's own names; else untouched.

    The converter puts them in an order of its own, and samples, manifests and devices go by the order alone.
    """
    present = order(data)
    model: Any = None
    for wanted, found, edge in zip((inputs, outputs), present, ("inputs", "outputs"), strict=True):
        if list(wanted) == found or sorted(wanted) != sorted(found) or len(set(found)) < len(found):
            continue
        model = model or unpack(data)
        indices = dict(zip(found, getattr(model.subgraphs[0], edge), strict=True))
        setattr(model.subgraphs[0], edge, [indices[name] for name in wanted])
    return data if model is None else pack(model, len(data))


def shapes(data: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each input, in the order of the graph; -1 where a size is open."""
    model = unpack(data)
    main = model.subgraphs[0]
    found = []
    for name, tensor in zip(order(data)[0], (main.tensors[index] for index in main.inputs), strict=True):
        stated = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        found.append((name, () if stated is None else tuple(int(size) for size in stated)))
    return found


def differences(first: bytes, second: bytes) -> list[str]:
    """What differs between two files, for a person; empty when their bytes are equal."""
    if first == second:
        return []
    before, after = inspect(first), inspect(second)
    told = []
    if before.operators != after.operators:
        told.append(f"operators: {dict(before.operators)} and {dict(after.operators)}")
    old = {item.name: item for item in before.constants}
    new = {item.name: item for item in after.constants}
    if set(old) != set(new):
        told.append(f"names of constants: {len(set(old) ^ set(new))} are in one file only")
    for name in sorted(set(old) & set(new)):
        one, other = old[name].data, new[name].data
        if len(one) != len(other):
            told.append(f"constant {name}: {len(one)} and {len(other)} bytes")
        elif one != other:
            count = sum(a != b for a, b in zip(one, other, strict=True))
            told.append(f"constant {name}: {count} of {len(one)} bytes")
    return told or ["the layout of the file alone: every operator and constant is equal"]


def _constant(model: Any, tensor: Any) -> Constant | None:
    raw = model.buffers[tensor.buffer].data
    if tensor.buffer == 0 or raw is None or not len(raw):
        return None
    dtype = _words(schema.TensorType).get(tensor.type, str(tensor.type))
    data = np.asarray(raw, np.uint8).tobytes()
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    kind = _DTYPES.get(dtype)
    values: npt.NDArray[Any] | None = None
    if kind is not None and len(data) % np.dtype(kind).itemsize == 0:
        values = np.frombuffer(data, kind)
    numbers = int(np.prod(shape)) if shape else 1
    zeros = 0 if values is None else int(np.count_nonzero(values == 0))
    return Constant(_text(tensor.name), dtype.lower(), shape, numbers, zeros, data)


def unpack(data: bytes | bytearray) -> Any:
    """The file as objects of the generated schema; vectors of a bytearray are views into it.

    Raises:
        UsageError: `model-file`: no .tflite file.
    """
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("its mark is missing")
        return schema.ModelT.InitFromObj(
            schema.Model.GetRootAs(data if isinstance(data, bytearray) else bytearray(data), 0)
        )
    except Exception as error:  # the generated reader fails in many ways on foreign bytes
        raise UsageError(f"no .tflite file ({error}); name the right file", code="model-file") from error


def pack(model: Any, about: int) -> bytes:
    """The file of such objects; `about` is how large it will be."""
    builder = _writer()(about)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


@cache
def _words(kind: Any) -> dict[int, str]:
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}


@cache
def _writer() -> Any:
    """The flatbuffer builder, writing equal vectors once and weights at multiples of 16 bytes.

    An int8 file has a zero point of eight bytes for each channel of each weight, nearly all of them zero. The schema
    asks for the alignment (`force_align`), which the generated classes forget.
    """
    # Comes with the runtime, without type information.
    base: Any = import_module("flatbuffers").Builder

    class Writer(base):  # type: ignore[misc]  # see above
        """Shares what may be shared: nothing in a model file is ever changed in place."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._made: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: npt.NDArray[Any]) -> int:  # noqa: N802 - the name is the builder's
            key = (x.dtype.str, x.tobytes())
            if key not in self._made:
                self._made[key] = int(super().CreateNumpyVector(x))
            return self._made[key]

        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803 - as above
            wide = _ALIGNMENT if elemSize == 1 else alignment
            return super().StartVector(elemSize, numElems, wide)

    return Writer
