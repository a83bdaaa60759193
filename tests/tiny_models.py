"""Tiny .tflite files written byte by byte, so that tests need neither tensorflow nor a download.

    write_slot(tmp_path / "slot", linear(np.eye(4)), samples=x, labels=y)     # a whole slot around a model

The flatbuffer classes are those that ai_edge_litert ships. Every model takes `x` float32 [1, n] and gives `y` float32
[1, m].
"""

import hashlib
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from modelagent import manifest

Floats = npt.NDArray[np.float32]


class Graph:
    """One subgraph being written: tensors, constants and operators in order."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: int = schema.TensorType.FLOAT32) -> int:
        """Add a tensor without data; returns its index."""
        item = schema.TensorT()
        item.name, item.shape, item.type, item.buffer = name.encode(), list(shape), dtype, 0
        self.graph.tensors.append(item)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, values: npt.NDArray[Any]) -> int:
        """Add a float32 or int32 constant; returns its index."""
        dtype = schema.TensorType.FLOAT32 if values.dtype.kind == "f" else schema.TensorType.INT32
        index = self.tensor(name, values.shape, dtype)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[index].buffer = len(self.model.buffers) - 1
        return index

    def operator(
        self,
        code: int,
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        *,
        kind: int = 0,
        version: int = 1,
    ) -> None:
        """Add an operator."""
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
        self.model.operatorCodes.append(entry)
        item = schema.OperatorT()
        item.opcodeIndex = len(self.model.operatorCodes) - 1
        item.inputs, item.outputs = inputs, outputs
        item.builtinOptions, item.builtinOptionsType = options, kind
        self.graph.operators.append(item)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The file's bytes."""
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def linear(weights: npt.NDArray[Any], *, bias: npt.NDArray[Any] | None = None) -> bytes:
    """y = x @ weights + bias; NaN in the weights gives NaN for every input."""
    graph = Graph()
    x = graph.tensor("x", (1, weights.shape[0]))
    y = graph.tensor("y", (1, weights.shape[1]))
    _dense(graph, x, y, weights, bias)
    return graph.finish([x], [y])


def root(weights: npt.NDArray[Any]) -> bytes:
    """y = sqrt(x @ weights): NaN for some inputs, not for zeros."""
    graph = Graph()
    x = graph.tensor("x", (1, weights.shape[0]))
    h = graph.tensor("h", (1, weights.shape[1]))
    y = graph.tensor("y", (1, weights.shape[1]))
    _dense(graph, x, h, weights, None)
    graph.operator(schema.BuiltinOperator.SQRT, [h], [y])
    return graph.finish([x], [y])


def heavy(weights: npt.NDArray[Any], *, elements: int) -> bytes:
    """The same as `linear`, and on the way a tensor of `elements` float32 is filled and summed (memory, time)."""
    graph = Graph()
    n, m = weights.shape
    x = graph.tensor("x", (1, n))
    h = graph.tensor("h", (1, m))
    wide = graph.tensor("wide", (elements // m, m))
    total = graph.tensor("total", (1, m))
    zero = graph.tensor("zero", (1, m))
    y = graph.tensor("y", (1, m))
    _dense(graph, x, h, weights, None)
    shape = graph.constant("shape", np.array([elements // m, m], np.int32))
    graph.operator(schema.BuiltinOperator.BROADCAST_TO, [h, shape], [wide], version=2)
    keep = schema.ReducerOptionsT()
    keep.keepDims = True
    axis = graph.constant("axis", np.array([0], np.int32))
    graph.operator(
        schema.BuiltinOperator.REDUCE_MAX, [wide, axis], [total], keep, kind=schema.BuiltinOptions.ReducerOptions
    )
    graph.operator(
        schema.BuiltinOperator.SUB, [total, h], [zero], schema.SubOptionsT(), kind=schema.BuiltinOptions.SubOptions
    )
    graph.operator(
        schema.BuiltinOperator.ADD, [zero, h], [y], schema.AddOptionsT(), kind=schema.BuiltinOptions.AddOptions
    )
    return graph.finish([x], [y])


def _dense(graph: Graph, x: int, y: int, weights: npt.NDArray[Any], bias: npt.NDArray[Any] | None) -> None:
    w = graph.constant(f"w{y}", np.ascontiguousarray(weights.T, np.float32))
    inputs = [x, w]
    if bias is not None:
        inputs.append(graph.constant(f"b{y}", np.asarray(bias, np.float32)))
    options = schema.FullyConnectedOptionsT()
    graph.operator(
        schema.BuiltinOperator.FULLY_CONNECTED, inputs, [y], options, kind=schema.BuiltinOptions.FullyConnectedOptions
    )


def write_slot(
    slot: Path,
    model: bytes,
    *,
    size: tuple[int, int],
    samples: npt.NDArray[Any] | None = None,
    labels: npt.NDArray[Any] | None = None,
    change: dict[str, Any] | None = None,
) -> manifest.Manifest:
    """Write a whole slot around a model of `size` (inputs, outputs); `change` overrides keys of the manifest.

    A key of `change` is a path such as `canary.margin`.
    """
    slot.mkdir(parents=True)
    files = {"model": ("model.tflite", model)}
    if samples is not None:
        arrays: dict[str, npt.NDArray[Any]] = {"input_0": samples}
        if labels is not None:
            arrays["labels"] = labels.astype(np.int64)
        np.savez(slot / "canary.npz", **arrays)  # type: ignore[arg-type]
        files["canary"] = ("canary.npz", (slot / "canary.npz").read_bytes())
    for name, data in files.values():
        (slot / name).write_bytes(data)
    document: dict[str, Any] = {
        "schema": 1,
        "model": "tiny",
        "version": slot.name,
        "number": 1,
        "floor": 0,
        "issued": "2026-01-01T00:00:00Z",
        "parent": None,
        "files": {
            role: {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)} for role, (_, data) in files.items()
        },
        "runtime": {"min": None, "max": None},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "inputs": [{"name": "x", "shape": [1, size[0]], "dtype": "float32", "quantisation": None}],
        "outputs": [{"name": "y", "shape": [1, size[1]], "dtype": "float32", "quantisation": None}],
        "labels": [str(number) for number in range(size[1])],
        "preprocess": {"kind": "none"},
        "postprocess": {"kind": "classification", "softmax": False},
        "canary": {
            "metric": "accuracy",
            "margin": 0.05,
            "confidence": 0.95,
            "floor": 0.5,
            "samples": 0 if samples is None else len(samples),
        },
        "limits": {"latency_ms": 50.0, "latency_ratio": 3.0, "memory_mb": 200.0, "load_s": 10.0},
        "card": {},
    }
    for path, value in (change or {}).items():
        *parents, last = path.split(".")
        table: Any = document
        for parent in parents:
            table = table[int(parent) if parent.isdigit() else parent]
        table[last] = value
    data = manifest.dump(document)
    (slot / "manifest.json").write_bytes(data)
    return manifest.parse(data)
