"""From a network to a .tflite file: one signature, fixed shapes, stable names, one of four formats.

This file knows tensorflow's converter and litert-quantizer. It does not know what the network learnt.

    data = convert(source, network, "int8", samples, io="float32", names=Names(("scan",), ("probabilities",)))

Keras models and SavedModels go through tensorflow's converter; a .tflite file goes through litert-quantizer, which
works on the file itself and needs no tensorflow. Batch size is 1, as on the device.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelagent.build import graph, toolbox
from modelagent.build.data import Samples
from modelagent.build.source import Source, feed
from modelagent.errors import UsageError

SIGNATURE: Final = "serving_default"
_IDENTIFIER: Final = re.compile(r"\W+")


@dataclass(frozen=True, slots=True)
class Names:
    """What inputs and outputs are called, in order; empty: as the source calls them."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def convert(
    source: Source,
    network: Any,
    kind: str,
    samples: Samples,
    *,
    io: str = "float32",
    names: Names | None = None,
    shapes: Sequence[Sequence[int]] = (),
) -> bytes:
    """Make the file.

    Args:
        source: where it came from; its SavedModel or .tflite is taken where `network` is None.
        network: a Keras model of either generation, or None.
        kind: float32, float16, dynamic or int8.
        samples: representative samples, for int8.
        io: type of inputs and outputs of an int8 file: float32 keeps the contract of a float model.
        names: of the tensors.
        shapes: of the inputs, batch included, where the source leaves some open.

    Raises:
        UsageError: `cannot-convert`, with the tool's own words.
    """
    names = names or Names()
    if network is None and source.tflite is not None:
        made = _requantise(graph.arrange(source.tflite, names.inputs, names.outputs), kind, samples, io)
        return graph.polish(made, names.inputs, names.outputs)
    tf = toolbox.tensorflow()
    with tempfile.TemporaryDirectory(prefix="modelagent-build-") as folder:
        saved = Path(folder) / "saved"
        try:
            given, found = (
                _save_keras(tf, network, saved, names, shapes)
                if network is not None
                else _save_again(tf, source.saved, saved, names, shapes)
            )
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved), signature_keys=[SIGNATURE])
            _set_format(tf, converter, kind, samples=samples, io=io, given=given)
            with toolbox.quiet():
                data = bytes(converter.convert())
        except UsageError:
            raise
        except Exception as error:  # the converter raises whatever its layers raise
            said = [line for line in str(error).strip().splitlines() if line.strip()]
            raise UsageError(
                f"{source.name}: the converter cannot write it as {kind}: {said[0] if said else repr(error)}; see "
                "https://ai.google.dev/edge/litert for the operators that it knows",
                code="cannot-convert",
            ) from error
    data = graph.arrange(data, given, found)
    present, produced = graph.order(data)
    # The converter may leave out what nothing depends on; then its own names stay.
    return graph.polish(
        data, present if set(present) == set(given) else (), produced if set(produced) == set(found) else ()
    )


def _save_keras(
    tf: Any, network: Any, folder: Path, names: Names, shapes: Sequence[Sequence[int]]
) -> tuple[list[str], list[str]]:
    inputs = list(network.inputs)
    given = _named(names.inputs, [item.name for item in inputs], "input")
    outputs = _named(names.outputs, ["output"] * len(network.outputs), "output")
    fixed = _fixed([tuple(item.shape) for item in inputs], shapes)
    specs = [
        tf.TensorSpec(shape, tf.as_dtype(item.dtype), name=name)
        for shape, item, name in zip(fixed, inputs, given, strict=True)
    ]

    def serve(*tensors: Any) -> dict[str, Any]:
        answers = tf.nest.flatten(network(feed(network, tensors), training=False))
        return dict(zip(outputs, answers, strict=True))

    _save(tf, serve, specs, folder, keep=network)
    return given, outputs


def _save_again(
    tf: Any, saved: Path | None, folder: Path, names: Names, shapes: Sequence[Sequence[int]]
) -> tuple[list[str], list[str]]:
    """A SavedModel with its first signature at fixed shapes."""
    loaded = tf.saved_model.load(str(saved))
    signatures = dict(loaded.signatures)
    if not signatures:
        raise UsageError(f"{saved}: it has no signature; save it with one (serving_default)", code="cannot-convert")
    function = signatures.get(SIGNATURE) or next(iter(signatures.values()))
    _, wanted = function.structured_input_signature
    # A signature has names and no order: the alphabet's, or that of a plan which uses the very same names.
    taken, produced = _ordered(names.inputs, wanted), _ordered(names.outputs, function.structured_outputs)
    given = _named(names.inputs, taken, "input")
    outputs = _named(names.outputs, produced, "output")
    fixed = _fixed([tuple(wanted[name].shape.as_list()) for name in taken], shapes)
    specs = [
        tf.TensorSpec(shape, wanted[old].dtype, name=name) for shape, old, name in zip(fixed, taken, given, strict=True)
    ]

    def serve(*tensors: Any) -> dict[str, Any]:
        answers = function(**dict(zip(taken, tensors, strict=True)))
        return {name: answers[old] for name, old in zip(outputs, produced, strict=True)}

    _save(tf, serve, specs, folder, keep=loaded)
    return given, outputs


def _ordered(wanted: Sequence[str], found: Iterable[str]) -> list[str]:
    return list(wanted) if sorted(wanted) == sorted(found) else sorted(found)


def _save(tf: Any, serve: Any, specs: list[Any], folder: Path, *, keep: Any) -> None:
    module = tf.Module()
    module.kept = keep
    # Keras 3 hides its variables from tensorflow's tracking, and an untracked one is left out of the file (every
    # answer is then NaN), so they are named one by one. A SavedModel that was loaded tracks its own.
    held = getattr(keep, "variables", [])
    module.held = [item if isinstance(item, tf.Variable) else item.value for item in held]
    module.serve = tf.function(serve, input_signature=specs)
    with toolbox.quiet():
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})


def _set_format(tf: Any, converter: Any, kind: str, *, samples: Samples, io: str, given: Sequence[str]) -> None:
    if kind == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":

        def representative() -> Iterator[Any]:
            for index in range(len(samples)):
                yield {name: array[index : index + 1] for name, array in zip(given, samples.inputs, strict=True)}

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)


def _requantise(data: bytes, kind: str, samples: Samples, io: str) -> bytes:
    """Quantise a .tflite file as it is."""
    if kind == "float32":
        return data
    tool = toolbox.quantizer()
    quantizer = _part(tool, "quantizer")
    operation, algorithm = quantizer.qtyping.TFLOperationName, quantizer.AlgorithmName
    work = quantizer.Quantizer(bytearray(data))
    everything = {"regex": ".*", "operation_name": operation.ALL_SUPPORTED}
    try:
        with toolbox.quiet():
            if kind == "float16":
                work.add_weight_only_config(num_bits=16, algorithm_key=algorithm.FLOAT_CASTING, **everything)
                return bytes(work.quantize().quantized_model)
            if kind == "dynamic":
                work.add_dynamic_config(num_bits=8, **everything)
                return bytes(work.quantize().quantized_model)
            work.add_static_config(activation_num_bits=8, weight_num_bits=8, **everything)
            if io == "float32":
                for edge in (operation.INPUT, operation.OUTPUT):
                    work.update_quantization_recipe(".*", edge, algorithm_key=algorithm.NO_QUANTIZE)
            elif io != "int8":
                raise ValueError(f"inputs of type {io} are not offered by litert-quantizer")
            return bytes(work.quantize(work.calibrate(_calibration(data, samples))).quantized_model)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        said = str(error).strip().splitlines()
        raise UsageError(
            f"litert-quantizer cannot write this .tflite file as {kind}: {said[0] if said else repr(error)}; start "
            "from the Keras model instead",
            code="cannot-convert",
        ) from error


def _calibration(data: bytes, samples: Samples) -> Mapping[str | None, Any]:
    names, _ = graph.order(data)
    rows = [
        {name: array[index : index + 1] for name, array in zip(names, samples.inputs, strict=True)}
        for index in range(len(samples))
    ]
    signatures = graph.inspect(data).signatures
    return {signatures[0] if signatures else None: rows}


def _part(tool: Any, name: str) -> Any:
    return getattr(tool, name, None) or __import__(f"{tool.__name__}.{name}", fromlist=[name])


def _named(wanted: tuple[str, ...], found: list[str], kind: str) -> list[str]:
    """Names of tensors: what was asked for, else what the source says, made into identifiers and told apart."""
    if wanted:
        if len(wanted) != len(found):
            raise UsageError(
                f"{kind} names {', '.join(wanted)}: the network has {len(found)}; give as many", code="names"
            )
        return list(wanted)
    clean = [_IDENTIFIER.sub("_", name.split(":")[0]).strip("_") or kind for name in found]
    return [name if clean.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(clean)]


def _fixed(found: Sequence[tuple[int | None, ...]], shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    if shapes and len(shapes) != len(found):
        raise UsageError(f"{len(shapes)} shapes for {len(found)} inputs; give one each", code="shapes")
    result = []
    for index, shape in enumerate(found):
        wanted = shapes[index] if shapes else [1, *shape[1:]]
        if len(wanted) != len(shape) or any(
            size is None or (have is not None and place > 0 and size != have)
            for place, (size, have) in enumerate(zip(wanted, shape, strict=True))
        ):
            raise UsageError(
                f"input {index}: its shape is {list(shape)}, and {list(wanted)} does not fix it; give whole numbers "
                "for what is open (model.shapes)",
                code="shapes",
            )
        result.append([int(size) for size in wanted if size is not None])
    return result


def representative(train: Samples, count: int) -> Samples:
    """The first samples of the training part: it was shuffled when it was split."""
    return train.take(np.arange(min(count, len(train)), dtype=np.int64))
