"""Small .tflite files whose weights, names, layout and quantisation a test chooses. They are read, never run.

old = build({"conv": kernel, "dense": weights}, scales={"conv": (steps, 0)})
new = build({"conv": kernel + 1, "dense": weights}, reverse=True)        # the same tensors, laid out otherwise
"""

from collections.abc import Mapping
from typing import Any, Final

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

Array = npt.NDArray[Any]
_TYPES: Final = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
}


def build(
    tensors: Mapping[str, Array],
    *,
    scales: Mapping[str, tuple[Array, int]] | None = None,
    reverse: bool = False,
    description: str = "",
) -> bytes:
    """The file's bytes; `scales` gives a tensor its steps and their axis, `reverse` another layout."""
    model = schema.ModelT()
    model.version, model.description = 3, description.encode()
    graph = schema.SubGraphT()
    graph.tensors = []
    model.buffers, model.subgraphs = [schema.BufferT()], [graph]
    for name, values in reversed(list(tensors.items())) if reverse else tensors.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        model.buffers.append(buffer)
        item = schema.TensorT()
        item.name, item.shape, item.type = name.encode(), list(values.shape), _TYPES[values.dtype]
        item.buffer = len(model.buffers) - 1
        if scales and name in scales:
            steps, axis = scales[name]
            item.quantization = schema.QuantizationParametersT()
            item.quantization.scale = steps.astype(np.float32)
            item.quantization.zeroPoint = np.zeros(len(steps), np.int64)
            item.quantization.quantizedDimension = axis
        graph.tensors.append(item)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def network(seed: int = 0, *, dtype: Any = np.float32, width: int = 64, classes: int = 10) -> dict[str, Array]:
    """Weights such as a small network has: normal, of another size in each layer."""
    random = np.random.default_rng(seed)
    shapes = {
        "stem": (width, 3, 3, 8),
        "depth": (1, 3, 3, width),
        "point": (width, 1, 1, width),
        "head": (classes, width),
    }
    found: dict[str, Array] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        values = random.normal(0.0, 0.5 / (number + 1), shape)
        integer = np.issubdtype(dtype, np.integer)
        found[name] = np.clip(values * 80, -127, 127).astype(dtype) if integer else values.astype(dtype)
    found["bias"] = random.normal(0.0, 0.1, classes).astype(np.float32)
    return found


def retrained(weights: Mapping[str, Array], *, step: float, seed: int = 1) -> dict[str, Array]:
    """The same network after some training: every weight moved by about `step` of its layer's spread."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, values in weights.items():
        moved = values.astype(np.float64) + random.normal(0.0, step * (float(np.std(values)) or 1.0), values.shape)
        if np.issubdtype(values.dtype, np.integer):
            limits = np.iinfo(values.dtype)
            moved = np.clip(np.rint(moved), limits.min, limits.max)
        found[name] = moved.astype(values.dtype)
    return found
