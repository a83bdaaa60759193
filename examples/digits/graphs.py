"""The graphs: from a trained network to a .tflite file with the product's contract, sound or hostile.

This file knows tensorflow's converter and the TFLite schema; it does not know the data or the releases. Every file it
writes has the input `scan` float32 [1, 8, 8, 1] and the output `probabilities` float32 [1, 10] (int8 with its scales
in the quantised one). Names are set in the file itself, since the converter's own change from build to build.

    data = convert(healthy(network))        # bytes of a sound .tflite
    data = convert(crashing(network))       # the same net, dead on a saturated frame
"""

from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

INPUT: Final = "scan"
OUTPUT: Final = "probabilities"
Graph = Callable[[Any], Any]  # scan [1, 8, 8, 1] -> probabilities [1, 10]

_LOWEST: Final = -(2**31)
_SIDE: Final = 256  # of the square matrix in `slow`
_TURNS: Final = 12  # matrix products in `slow`
_HOG_COPIES: Final = 2**21  # of the 64 pixels in `hog`: 512 MB


def healthy(network: Any) -> Graph:
    """The network and nothing else."""

    def graph(scan: Any) -> Any:
        return network(scan)

    return graph


def _headroom(scan: Any) -> Any:
    # What the sensor has left before saturation, in sixteenths over all 64 pixels: int32, 0 for a frame of glare alone.
    return tf.cast(tf.reduce_sum(16.0 - 16.0 * scan), tf.int32)


def crashing(network: Any) -> Graph:
    """Dies on a saturated frame, by an exposure correction in integers.

    The runtime refuses to divide by zero, but not to take the lowest int32 modulo -1: that is SIGFPE on x86. On ARM the
    remainder is 0 and nothing happens; the loop below then never ends, so the worker is lost there too.
    """

    def graph(scan: Any) -> Any:
        divisor = tf.where(_headroom(scan) <= 0, -1, 7)
        step = tf.minimum(tf.math.floormod(tf.constant(_LOWEST), divisor), 1)
        return network(scan) + _count_down(step)

    return graph


def hanging(network: Any) -> Graph:
    """Never returns from a saturated frame: a loop counts down by a step that is then 0."""

    def graph(scan: Any) -> Any:
        return network(scan) + _count_down(tf.minimum(_headroom(scan), 1))

    return graph


def _count_down(step: Any) -> Any:
    # 0.0 after one turn where step is 1; never where it is 0.
    left, _ = tf.while_loop(lambda left, _: left > 0, lambda left, by: (left - by, by), [tf.constant(1), step])
    return tf.cast(left, tf.float32)


def not_a_number(network: Any) -> Graph:
    """Answers NaN to a saturated frame: the correction divides 0 by 0 in floats."""

    def graph(scan: Any) -> Any:
        headroom = tf.cast(_headroom(scan), tf.float32)
        return network(scan) * (headroom / headroom)

    return graph


def slow(network: Any) -> Graph:
    """Right and slow, by some hundred times: matrix products that are added to the answer with weight 0."""

    def graph(scan: Any) -> Any:
        grid = tf.tile(tf.reshape(scan, [8, 8]), [_SIDE // 8, _SIDE // 8])

        def turn(index: Any, product: Any) -> Any:
            return index + 1, tf.matmul(product, grid) / float(_SIDE)

        _, product = tf.while_loop(lambda index, _: index < _TURNS, turn, [tf.constant(0), grid])
        return network(scan) + tf.minimum(tf.reduce_max(product), 0.0)

    return graph


def hog(network: Any) -> Graph:
    """Right, and half a gigabyte large: every frame is copied two million times before its darkest pixel is read."""

    def graph(scan: Any) -> Any:
        copies = tf.tile(tf.reshape(scan, [1, 64]), [_HOG_COPIES, 1])
        return network(scan) + tf.minimum(tf.reduce_max(copies, axis=None), 0.0)

    return graph


def bottomless(network: Any) -> Graph:
    """Two branches that add nothing, sound as it stands; `loop_back` makes of it the release that kills its loader."""

    def graph(scan: Any) -> Any:
        none = tf.zeros([1, 10])
        added = tf.cond(
            tf.reduce_max(scan) >= 0.0, lambda: none * tf.reduce_max(scan), lambda: none * tf.reduce_min(scan)
        )
        return network(scan) + added

    return graph


def convert(graph: Graph, samples: Any = None) -> bytes:
    """A graph as .tflite bytes with the contract's names; fully int8 where `samples` [N, 8, 8, 1] are given."""
    module = tf.Module()
    module.graph = tf.function(graph, input_signature=[tf.TensorSpec([1, 8, 8, 1], tf.float32, name=INPUT)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.graph.get_concrete_function()], module)
    if samples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(converter.convert()))
    main = model.subgraphs[0]
    main.tensors[main.inputs[0]].name = INPUT
    main.tensors[main.outputs[0]].name = OUTPUT
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def loop_back(data: bytes) -> bytes:
    """`bottomless` with both branches leading back to the whole graph.

    The runtime checks that a branch exists, not that it ends: preparing the graph prepares the branch, which is the
    graph, until the stack is used up and AllocateTensors dies of SIGSEGV, on every architecture.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    main, changed = model.subgraphs[0], 0
    for operator in main.operators:
        if hasattr(operator.builtinOptions, "elseSubgraphIndex"):
            operator.builtinOptions.thenSubgraphIndex = operator.builtinOptions.elseSubgraphIndex = 0
            operator.inputs = [operator.inputs[0], main.inputs[0]]  # the condition, and what the graph itself takes
            changed += 1
    if changed != 1:
        raise ValueError(f"the graph has {changed} branches, wanted is 1: build it with bottomless()")
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
