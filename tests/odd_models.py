"""Real models of shapes that a classifier has not, as TFLite files without signatures.

positives()     # y = the places where x > 0: its size is known only afterwards
two()           # sum and difference of two inputs
elastic()       # y = x + x for any number of columns
running_sum()   # y = x + the y before: keeps state between frames
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

import tiny_models


def positives() -> bytes:
    """y = the places where x [1, 6] is positive: [k, 2] int64, k is known only afterwards."""
    graph = tiny_models.Graph()
    x = graph.tensor("x", (1, 6))
    zero = graph.constant("zero", np.zeros(1, np.float32))
    found = graph.tensor("found", (1, 6), schema.TensorType.BOOL)
    y = graph.tensor("y", (0, 2), schema.TensorType.INT64)
    graph.operator(schema.BuiltinOperator.GREATER, [x, zero], [found])
    graph.operator(schema.BuiltinOperator.WHERE, [found], [y])
    return graph.finish([x], [y])


def two() -> bytes:
    """sum = a + b, difference = a - b, all [1, 3]."""
    graph = tiny_models.Graph()
    a, b = graph.tensor("a", (1, 3)), graph.tensor("b", (1, 3))
    add, sub = graph.tensor("sum", (1, 3)), graph.tensor("difference", (1, 3))
    graph.operator(
        schema.BuiltinOperator.ADD, [a, b], [add], schema.AddOptionsT(), kind=schema.BuiltinOptions.AddOptions
    )
    graph.operator(
        schema.BuiltinOperator.SUB, [a, b], [sub], schema.SubOptionsT(), kind=schema.BuiltinOptions.SubOptions
    )
    return graph.finish([a, b], [add, sub])


def elastic() -> bytes:
    """y = x + x for any number of columns."""
    graph = tiny_models.Graph()
    x, y = graph.tensor("x", (1, 1)), graph.tensor("y", (1, 1))
    for index in (x, y):
        graph.graph.tensors[index].shapeSignature = [1, -1]
    graph.operator(schema.BuiltinOperator.ADD, [x, x], [y], schema.AddOptionsT(), kind=schema.BuiltinOptions.AddOptions)
    return graph.finish([x], [y])


def running_sum(factor: float = 1.0) -> bytes:
    """y = x + factor times the y of the frame before, [1, 3]: an RNN cell whose hidden state is a variable tensor."""
    graph = tiny_models.Graph()
    x, y = graph.tensor("x", (1, 3)), graph.tensor("y", (1, 3))
    state = graph.tensor("state", (1, 3))
    graph.graph.tensors[state].isVariable = True
    one = np.eye(3, dtype=np.float32)
    weights = [graph.constant("input_weights", one), graph.constant("recurrent_weights", one * np.float32(factor))]
    bias = graph.constant("bias", np.zeros(3, np.float32))
    graph.operator(
        schema.BuiltinOperator.RNN, [x, *weights, bias, state], [y], schema.RNNOptionsT(),
        kind=schema.BuiltinOptions.RNNOptions,
    )  # fmt: skip
    return graph.finish([x], [y])
