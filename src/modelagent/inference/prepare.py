"""From a frame to one input of a model, as the manifest's `preprocess` declares it.

This file knows the arithmetic: crop, resize, channels, scale, quantise. It does not know where frames come from, nor
what a model makes of them. numpy only, so that every device computes the same.

    steps = preparations(manifest.preprocess, manifest.inputs)      # ModelError: something unknown is asked for
    steps[0].into(frame, target)                                    # FrameError: this frame does not fit

{"kind": "none"} copies. {"kind": "scale", "mean": m, "scale": s} gives (x - m) * s, with numbers or one number per
channel (the last axis). {"kind": "image", ...} takes pictures of any size, [height, width] or [height, width, 1, 3 or
4], red first:

    "crop": [top, left, bottom, right]      shares of the picture, 0 to 1; default: all of it
    "fit": "stretch" | "crop" | "pad"       where its proportions are not the model's: default stretch
    "method": "bilinear" | "nearest" | "area"       bilinear and nearest sample pixel centres; area averages blocks
    "order": "rgb" | "bgr"                  of three channels; one channel is ITU-R BT.601 luma
    "layout": "hwc" | "chw"                 of the model's input
    "pad": 0                                what fills the rest after "fit": "pad"
    "mean", "scale"                         as above, per channel

{"kind": "each", "inputs": [...]} gives every input its own. A quantised input takes frames of its own dtype as they
are, and floating-point ones as round(x / scale) + zero_point, clipped (LiteRT 8-bit quantisation specification).
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import ModelError, SourceError
from modelagent.manifest import Tensor

Array = npt.NDArray[Any]

_KINDS: Final = ("none", "scale", "image", "each")
_METHODS: Final = ("bilinear", "nearest", "area")
_FITS: Final = ("stretch", "crop", "pad")
_ORDERS: Final = ("rgb", "bgr")
_LAYOUTS: Final = ("hwc", "chw")
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


class FrameError(SourceError):
    """This frame does not fit this model's inputs; the next one may."""


def preparations(before: Mapping[str, Any], inputs: Sequence[Tensor]) -> "tuple[Preparation, ...]":
    """What is done to each input.

    Raises:
        ModelError: `contract` when something unknown is asked for.
    """
    kind = before.get("kind")
    if kind not in _KINDS:
        raise bad("preprocess.kind", kind, _KINDS)
    if kind != "each":
        return tuple(_make(before, tensor, "preprocess") for tensor in inputs)
    parts = before.get("inputs")
    if not isinstance(parts, list) or len(parts) != len(inputs) or not all(isinstance(part, dict) for part in parts):
        raise bad("preprocess.inputs", parts, (f"a list of {len(inputs)} tables",))
    for number, part in enumerate(parts):
        if part.get("kind") not in _KINDS[:-1]:
            raise bad(f"preprocess.inputs[{number}].kind", part.get("kind"), _KINDS[:-1])
    return tuple(
        _make(part, tensor, f"preprocess.inputs[{number}]")
        for number, (part, tensor) in enumerate(zip(parts, inputs, strict=True))
    )


def _make(spec: Mapping[str, Any], tensor: Tensor, place: str) -> "Preparation":
    if spec["kind"] == "image":
        return _Image(spec, tensor, place)
    scaling = None
    if spec["kind"] == "scale":
        scaling = (numbers(spec, "mean", place), numbers(spec, "scale", place))
    return Preparation(tensor, scaling)


class Preparation:
    """Of one input: checks the frame, scales it where asked to, and gives it the tensor's type.

    `plain`: a frame of the tensor's shape and dtype is copied as it is.
    """

    def __init__(self, tensor: Tensor, scaling: tuple[Array, Array] | None) -> None:
        self.tensor = tensor
        self.scaling = scaling
        self.plain = scaling is None
        self.dtype = np.dtype(tensor.dtype)
        # The batch is 1 where it is left open; any other open size is met by whatever comes.
        self._shape = (*(1 if size is None else size for size in tensor.shape[:1]), *tensor.shape[1:])

    def prepare(self, array: Array) -> Array:
        """The frame as the model wants it, with the batch axis; FrameError for a wrong shape or dtype."""
        return self._typed(self._scaled(self._batched(array)))

    def into(self, array: Array, target: Array) -> None:
        """Write the frame straight into the model's input; FrameError for a wrong shape or dtype."""
        np.copyto(target, self.prepare(array))

    def _batched(self, array: Array) -> Array:
        if _fits(array.shape, self._shape):
            return array
        if self._shape[:1] == (1,) and _fits(array.shape, self._shape[1:]):
            return array[np.newaxis]
        raise FrameError(
            f"input {self.tensor.name!r}: a frame of shape {list(array.shape)}, the model takes {list(self._shape)}; "
            "set the source to this shape",
            code="frame",
        )

    def _scaled(self, array: Array) -> Array:
        if self.scaling is None or array.dtype.kind not in "fiu":
            return array
        mean, factor = self.scaling
        if mean.ndim and (not array.ndim or array.shape[-1] % mean.shape[0]):
            raise FrameError(
                f"input {self.tensor.name!r}: preprocess.mean has {mean.shape[0]} channels, the frame's last axis "
                f"{array.shape[-1:]}; set the source to these channels",
                code="frame",
            )
        scaled: Array = (array.astype(np.float32) - mean) * factor
        return scaled

    def _typed(self, array: Array) -> Array:
        if array.dtype == self.dtype:
            return array
        if array.dtype.kind == "f":
            if self.tensor.quantisation is not None and self.tensor.quantisation[0]:
                return quantise(array, self.tensor)
            if self.dtype.kind == "f" and not self.plain:
                return array.astype(self.dtype)
        raise FrameError(
            f"input {self.tensor.name!r}: a frame of {array.dtype}, the model takes {self.dtype}; set the source to "
            "this type, or declare preprocess in the manifest",
            code="frame",
        )


class _Image(Preparation):
    """Pictures of any size."""

    def __init__(self, spec: Mapping[str, Any], tensor: Tensor, place: str) -> None:
        super().__init__(tensor, None)
        self.plain = False
        known = {"kind", "crop", "fit", "method", "order", "layout", "pad", "mean", "scale"}
        for key in sorted(set(spec) - known):
            raise bad(f"{place}.{key}", "an unknown key", sorted(known))
        self._method = _choice(spec, "method", _METHODS, place)
        self._fit = _choice(spec, "fit", _FITS, place)
        self._flip = _choice(spec, "order", _ORDERS, place) == "bgr"
        self._planes = _choice(spec, "layout", _LAYOUTS, place) == "chw"
        self._crop = _crop(spec.get("crop"), place)
        self._pad = float(numbers({"pad": spec.get("pad", 0)}, "pad", place))
        self._mean = numbers(spec, "mean", place) if "mean" in spec else np.zeros((), np.float32)
        self._factor = numbers(spec, "scale", place) if "scale" in spec else np.ones((), np.float32)
        shape = self._shape
        if len(shape) != 4 or None in shape or (shape[1] if self._planes else shape[3]) not in {1, 3}:
            raise bad(
                f"{place}.kind",
                f"image for an input of the shape {list(tensor.shape)}",
                ("an input of one picture with 1 or 3 channels",),
            )
        sizes = [int(size or 1) for size in shape]
        self._channels, self._height, self._width = (
            (sizes[1], sizes[2], sizes[3]) if self._planes else (sizes[3], sizes[1], sizes[2])
        )
        for name, values in (("mean", self._mean), ("scale", self._factor)):
            if np.ndim(values) and len(values) != self._channels:
                raise bad(f"{place}.{name}", f"{len(values)} numbers", (f"{self._channels}, one per channel",))
        self._plain_values = not np.any(self._mean) and bool(np.all(self._factor == 1.0))

    def prepare(self, array: Array) -> Array:
        """See Preparation."""
        picture = self._resized(self._three(array))
        picture = self._coloured(picture)
        # A picture in the tensor's own type that nothing was computed on is taken as it is.
        if not (self._plain_values and picture.dtype == self.dtype):
            picture = picture.astype(np.float32, copy=False)
            if not self._plain_values:
                picture = (picture - self._mean) * self._factor
            if self.dtype.kind in "iu" and not (self.tensor.quantisation and self.tensor.quantisation[0]):
                limits = np.iinfo(self.dtype)
                picture = np.clip(np.rint(picture), limits.min, limits.max)
                picture = picture.astype(self.dtype)
            elif self.dtype.kind in "iu":
                picture = quantise(picture, self.tensor)
            else:
                picture = picture.astype(self.dtype, copy=False)
        if self._planes:
            picture = np.moveaxis(picture, -1, 0)
        return picture[np.newaxis]

    def _three(self, array: Array) -> Array:
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 2:
            array = array[..., np.newaxis]
        if array.ndim != 3 or array.shape[2] not in {1, 3, 4} or not array.size or array.dtype.kind not in "fiu":
            raise FrameError(
                f"input {self.tensor.name!r}: a frame of {array.dtype}{list(array.shape)} is no picture; "
                "the source must give [height, width] or [height, width, channels]",
                code="frame",
            )
        return array[..., :3]

    def _resized(self, array: Array) -> Array:
        top, left, bottom, right = self._crop
        height, width = array.shape[:2]
        array = array[
            int(top * height) : max(int(top * height) + 1, round(bottom * height)),
            int(left * width) : max(int(left * width) + 1, round(right * width)),
        ]
        height, width = array.shape[:2]
        if (height, width) == (self._height, self._width):
            return array
        if self._fit == "stretch":
            return resize(array, self._height, self._width, self._method)
        ratios = (self._height / height, self._width / width)
        ratio = max(ratios) if self._fit == "crop" else min(ratios)
        if self._fit == "crop":
            rows, columns = (
                max(1, min(height, round(self._height / ratio))),
                max(1, min(width, round(self._width / ratio))),
            )
            y, x = (height - rows) // 2, (width - columns) // 2
            return resize(array[y : y + rows, x : x + columns], self._height, self._width, self._method)
        rows = max(1, min(self._height, round(height * ratio)))
        columns = max(1, min(self._width, round(width * ratio)))
        inner = resize(array, rows, columns, self._method)
        framed = np.full((self._height, self._width, array.shape[2]), self._pad, inner.dtype)
        y, x = (self._height - rows) // 2, (self._width - columns) // 2
        framed[y : y + rows, x : x + columns] = inner
        return framed

    def _coloured(self, array: Array) -> Array:
        have = array.shape[2]
        if have == self._channels:
            return array[..., ::-1] if self._flip and have == 3 else array
        if self._channels == 1:
            luma: Array = (array.astype(np.float32, copy=False) @ _LUMA)[..., np.newaxis]
            return np.rint(luma).astype(array.dtype) if array.dtype.kind in "iu" else luma
        return np.repeat(array, 3, axis=2)


def resize(array: Array, height: int, width: int, method: str) -> Array:
    """A picture [h, w, c] at another size; integers are rounded, their dtype is kept."""
    if method == "nearest":
        picked: Array = array[_nearest(array.shape[0], height)[:, np.newaxis], _nearest(array.shape[1], width)]
        return picked
    if method == "area":
        resized = _blocks(_blocks(array.astype(np.float32, copy=False), height, 0), width, 1)
    else:
        resized = _between(_between(array, height, 0), width, 1)
    return np.rint(resized).astype(array.dtype) if array.dtype.kind in "iu" else resized.astype(array.dtype, copy=False)


def _nearest(have: int, want: int) -> Array:
    return np.minimum(((np.arange(want) + 0.5) * (have / want)).astype(np.intp), have - 1)


def _between(array: Array, want: int, axis: int) -> Array:
    have = array.shape[axis]
    if have == want:
        return array.astype(np.float32, copy=False)
    at = np.clip((np.arange(want) + 0.5) * (have / want) - 0.5, 0, have - 1)
    low = at.astype(np.intp)
    weight = (at - low).astype(np.float32).reshape((-1,) + (1,) * (array.ndim - 1 - axis))
    first = array.take(low, axis).astype(np.float32, copy=False)
    second = array.take(np.minimum(low + 1, have - 1), axis).astype(np.float32, copy=False)
    mixed: Array = first + (second - first) * weight
    return mixed


def _blocks(array: Array, want: int, axis: int) -> Array:
    have = array.shape[axis]
    if want >= have:  # there is nothing to average
        return array.take(_nearest(have, want), axis)
    borders = np.rint(np.arange(want) * (have / want)).astype(np.intp)
    counts = np.diff(np.append(borders, have)).astype(np.float32).reshape((-1,) + (1,) * (array.ndim - 1 - axis))
    averaged: Array = np.add.reduceat(array, borders, axis=axis) / counts
    return averaged


def quantise(array: Array, tensor: Tensor) -> Array:
    """Floating-point values as the quantised tensor holds them, clipped to its dtype's range."""
    assert tensor.quantisation is not None, "only called for quantised tensors"  # noqa: S101
    scale, zero_point = tensor.quantisation
    limits = np.iinfo(tensor.dtype)
    with np.errstate(invalid="ignore"):  # a NaN pixel becomes the zero point instead of an arbitrary number
        scaled = np.nan_to_num(np.rint(array / np.float32(scale)), nan=0.0) + zero_point
        quantised: Array = np.clip(scaled, limits.min, limits.max).astype(tensor.dtype)
    return quantised


def numbers(table: Mapping[str, Any], key: str, place: str) -> Array:
    """A number or a list of numbers of the manifest as float32; ModelError for anything else."""
    value = table.get(key)
    with contextlib.suppress(TypeError, ValueError):
        found = np.asarray(value, dtype=np.float32)
        if found.ndim <= 1 and found.size and np.isfinite(found).all():
            return found
    raise bad(f"{place}.{key}", value, ("a number", "a list of numbers, one per channel"))


def bad(key: str, found: object, allowed: Sequence[str]) -> ModelError:
    """What the manifest asks for and this version does not know."""
    return ModelError(
        f"manifest: {key}: found {found!r}, allowed is {' or '.join(allowed)}; the release must be published again",
        code="contract",
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return shape == wanted or (
        len(shape) == len(wanted)
        and all(want is None or have == want for have, want in zip(shape, wanted, strict=True))
    )


def _choice(spec: Mapping[str, Any], key: str, allowed: Sequence[str], place: str) -> str:
    value = spec.get(key, allowed[0])
    if value not in allowed:
        raise bad(f"{place}.{key}", value, allowed)
    return str(value)


def _crop(value: object, place: str) -> tuple[float, float, float, float]:
    if value is None:
        return 0.0, 0.0, 1.0, 1.0
    with contextlib.suppress(TypeError, ValueError):
        top, left, bottom, right = (float(number) for number in value)  # type: ignore[attr-defined]
        if 0.0 <= top < bottom <= 1.0 and 0.0 <= left < right <= 1.0:
            return top, left, bottom, right
    raise bad(f"{place}.crop", value, ("[top, left, bottom, right] with shares from 0 to 1",))
