"""From a frame to the model's inputs, and from its outputs to a decision, as the manifest declares both.

This file knows the arithmetic: quantise, scale, dequantise, softmax, the best class. It does not know where frames
come from or where decisions go.

    decider = Decider(manifest)                      # ModelError when the manifest asks for something unknown
    binding = decider.bind(exchange.inputs, exchange.outputs)
    binding.fill(frame.arrays)                       # FrameError: this frame does not fit this model
    ...
    binding.decide()                                 # Decision(prediction=7, label="7", confidence=0.98)

`preprocess`: {"kind": "none"} copies; {"kind": "scale", "mean": m, "scale": s} gives (x - m) * s, with numbers or
one number per channel (the last axis). A quantised input tensor takes frames of its own dtype as they are, and
floating-point ones as round(x / scale) + zero_point, clipped (LiteRT 8-bit quantisation specification).
`postprocess`: {"kind": "classification", "softmax": bool} takes the best class of output 0; {"kind": "raw"} decides
nothing.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from modelagent.errors import ModelError, SourceError
from modelagent.inference.exchange import Array, fixed_shape
from modelagent.manifest import Manifest, Tensor

_PREPROCESS: Final = ("none", "scale")
_POSTPROCESS: Final = ("classification", "raw")


class FrameError(SourceError):
    """This frame does not fit this model's inputs; the next one may."""


class Decision(NamedTuple):
    """What a model says of one frame; all empty for {"kind": "raw"}.

    `confidence` is the score of the best class: a probability where the manifest says softmax or the model ends in
    one.
    """

    prediction: int | None
    label: str
    confidence: float | None


_NOTHING: Final = Decision(None, "", None)


class Decider:
    """The manifest's arithmetic.

    Raises:
        ModelError: `contract` when `preprocess` or `postprocess` is of no known kind or lacks a value.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.labels = manifest.labels
        before = manifest.preprocess
        after = manifest.postprocess
        kind = before.get("kind")
        if kind not in _PREPROCESS:
            raise _bad("preprocess.kind", kind, _PREPROCESS)
        self.scaling: tuple[Array, Array] | None = None
        if kind == "scale":
            self.scaling = (_numbers(before, "mean"), _numbers(before, "scale"))
        self.kind = after.get("kind")
        if self.kind not in _POSTPROCESS:
            raise _bad("postprocess.kind", self.kind, _POSTPROCESS)
        self.softmax = after.get("softmax", False)
        if not isinstance(self.softmax, bool):
            raise _bad("postprocess.softmax", self.softmax, ("true", "false"))

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> "Binding":
        """Tie the arithmetic to the arrays that the model reads and writes."""
        return Binding(self, inputs, outputs)

    def prepare(self, index: int, array: Array) -> Array:
        """Input `index` as the model wants it, of batch 1.

        Args:
            index: which input.
            array: one sample, with or without the leading axis of 1.

        Raises:
            FrameError: `frame` for a wrong shape or dtype.
        """
        tensor = self.inputs[index]
        shape = fixed_shape(tensor)
        if array.shape != shape:
            if shape[:1] != (1,) or array.shape != shape[1:]:
                raise FrameError(
                    f"input {tensor.name!r}: a frame of shape {list(array.shape)}, the model takes {list(shape)}; "
                    "set the source to this shape",
                    code="frame",
                )
            array = array[np.newaxis]
        wanted = np.dtype(tensor.dtype)
        if self.scaling is not None and array.dtype.kind in "fiu":
            mean, factor = self.scaling
            if mean.ndim and (not array.ndim or array.shape[-1] % mean.shape[0]):
                raise FrameError(
                    f"input {tensor.name!r}: preprocess.mean has {mean.shape[0]} channels, the frame's last axis "
                    f"{array.shape[-1:]}; set the source to these channels",
                    code="frame",
                )
            array = (array.astype(np.float32) - mean) * factor
        if array.dtype == wanted:
            return array
        if array.dtype.kind == "f" and tensor.quantisation is not None and tensor.quantisation[0]:
            return quantise(array, tensor)
        if array.dtype.kind == "f" and wanted.kind == "f" and self.scaling is not None:
            return array.astype(wanted)
        raise FrameError(
            f"input {tensor.name!r}: a frame of {array.dtype}, the model takes {wanted}; set the source to this "
            "type, or declare preprocess in the manifest",
            code="frame",
        )

    def decide(self, outputs: Sequence[Array]) -> Decision:
        """The decision on one sample's outputs."""
        if self.kind == "raw":
            return _NOTHING
        scores = dequantise(outputs[0].reshape(-1), self.outputs[0])
        best = int(scores.argmax())
        top = scores[best]
        # The largest of a softmax is 1 / sum(exp(x - max)): no second array of probabilities is needed.
        confidence = float(1.0 / np.exp(scores - top).sum()) if self.softmax else float(top)
        return Decision(best, self.labels[best] if best < len(self.labels) else str(best), confidence)


class Binding:
    """One worker's arrays: fills its inputs and reads its outputs."""

    __slots__ = ("_decider", "_outputs", "_plain", "_targets")

    def __init__(self, decider: Decider, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        self._decider = decider
        self._targets = tuple(inputs)
        self._outputs = tuple(outputs)
        # The common case in one comparison and one copy: same shape, same dtype, nothing to compute.
        self._plain: tuple[tuple[Array, tuple[int, ...], np.dtype[Any]], ...] | None = None
        if decider.scaling is None:
            views = tuple(view[0] if view.shape[:1] == (1,) and view.ndim > 1 else view for view in inputs)
            self._plain = tuple((view, view.shape, view.dtype) for view in views)

    def fill(self, arrays: Sequence[Array]) -> None:
        """Write one frame into the model's inputs.

        Raises:
            FrameError: `frame`; some inputs may have been written.
        """
        if len(arrays) != len(self._targets):
            raise FrameError(
                f"a frame of {len(arrays)} arrays, the model takes {len(self._targets)} inputs; set the source to "
                "give them all",
                code="frame",
            )
        if self._plain is not None:
            for (view, shape, dtype), array in zip(self._plain, arrays, strict=True):
                if array.shape != shape or array.dtype != dtype:
                    break
                view[...] = array
            else:
                return
        for index, array in enumerate(arrays):
            np.copyto(self._targets[index], self._decider.prepare(index, array))

    def decide(self) -> Decision:
        """The decision on what the outputs hold now."""
        return self._decider.decide(self._outputs)

    def release(self) -> None:
        """Let go of the arrays, so that their memory can be unmapped."""
        self._targets = self._outputs = ()
        self._plain = None


def quantise(array: Array, tensor: Tensor) -> Array:
    """Floating-point values as the quantised tensor holds them, clipped to its dtype's range."""
    assert tensor.quantisation is not None, "only called for quantised tensors"  # noqa: S101
    scale, zero_point = tensor.quantisation
    limits = np.iinfo(tensor.dtype)
    with np.errstate(invalid="ignore"):  # a NaN pixel becomes the zero point instead of an arbitrary number
        scaled = np.nan_to_num(np.rint(array / np.float32(scale)), nan=0.0) + zero_point
        quantised: Array = np.clip(scaled, limits.min, limits.max).astype(tensor.dtype)
    return quantised


def dequantise(array: Array, tensor: Tensor) -> Array:
    """Output values as floating point; as they are where the tensor is not quantised."""
    if tensor.quantisation is not None and tensor.quantisation[0] and array.dtype.kind in "iu":
        scale, zero_point = tensor.quantisation
        return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return array


def _numbers(table: Any, key: str) -> Array:
    value = table.get(key)
    with contextlib.suppress(TypeError, ValueError):
        numbers = np.asarray(value, dtype=np.float32)
        if numbers.ndim <= 1 and numbers.size and np.isfinite(numbers).all():
            return numbers
    raise _bad(f"preprocess.{key}", value, ("a number", "a list of numbers, one per channel"))


def _bad(key: str, found: object, allowed: Sequence[str]) -> ModelError:
    return ModelError(
        f"manifest: {key}: found {found!r}, allowed is {' or '.join(allowed)}; the release must be published again",
        code="contract",
    )
