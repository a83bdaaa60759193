"""From a model's outputs to a decision, as the manifest's `postprocess` declares it.

This file knows the arithmetic: dequantise, softmax, the best classes, boxes, values, the distance from normal. It does
not know where decisions go.

    read = readout(manifest)                    # ModelError: something unknown is asked for
    read(outputs, inputs)                       # Decision(prediction=7, label="7", confidence=0.98, detail=None)

{"kind": "classification", "softmax": bool, "top": 1}    the best class of output 0; with `top` above 1 the best so many
{"kind": "detection", "boxes": 0, "classes": 1, "scores": 2, "count": 3, "min_score": 0.5, "most": 20, "nms": 0.5}
    numbers of the outputs, as TFLite_Detection_PostProcess gives them ([n, 4] top, left, bottom, right). Without
    `classes` the scores are [n, classes]; with `nms` boxes of a class that overlap more are merged into the best.
{"kind": "regression", "scale": 1, "offset": 0, "names": ["length_mm"]}    every value of output 0, times scale plus
    offset; `confidence` is the first one, so that rules can look at it
{"kind": "anomaly", "threshold": 0.3, "score": "value" | "distance"}    the first value of output 0, or its mean squared
    distance from input 0; class 1 ("anomaly") above the threshold, else 0 ("normal")
{"kind": "raw"}    decides nothing
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from modelagent.inference.prepare import Array, bad, numbers
from modelagent.manifest import Manifest, Tensor

_KINDS: Final = ("classification", "detection", "regression", "anomaly", "raw")
_SCORES: Final = ("value", "distance")
_MOST: Final = 100  # boxes, classes or values that one result may list
_KNOWN: Final = {
    "classification": {"softmax", "top"},
    "detection": {"boxes", "classes", "scores", "count", "min_score", "most", "nms"},
    "regression": {"scale", "offset", "names"},
    "anomaly": {"threshold", "score"},
    "raw": set[str](),
}


class Decision(NamedTuple):
    """What a model says of one frame; all empty for {"kind": "raw"}.

    `confidence` is the score of the best class: a probability where the manifest says softmax or the model ends in
    one. `detail` is what does not fit these: {"top": [...]}, {"boxes": [...]} or {"values": {...}}.
    """

    prediction: int | None
    label: str
    confidence: float | None
    detail: dict[str, Any] | None = None


NOTHING: Final = Decision(None, "", None)
Readout = Callable[[Sequence[Array], Sequence[Array]], Decision]


def readout(manifest: Manifest) -> Readout:
    """The function of outputs and inputs that decides.

    Raises:
        ModelError: `contract`.
    """
    after = manifest.postprocess
    kind = after.get("kind")
    if kind not in _KINDS:
        raise bad("postprocess.kind", kind, _KINDS)
    for key in sorted(set(after) - _KNOWN[kind] - {"kind"}):
        raise bad(f"postprocess.{key}", "an unknown key", sorted(_KNOWN[kind]) or ("none",))
    if kind == "raw":
        return lambda _outputs, _inputs: NOTHING
    kinds: dict[str, Callable[[Manifest], Readout]] = {
        "classification": _Classes,
        "detection": _Boxes,
        "regression": _Values,
        "anomaly": _Anomaly,
    }
    return kinds[str(kind)](manifest)


def dequantise(array: Array, tensor: Tensor) -> Array:
    """Output values as floating point; as they are where the tensor is not quantised."""
    if tensor.quantisation is not None and tensor.quantisation[0] and array.dtype.kind in "iu":
        scale, zero_point = tensor.quantisation
        return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return array


class _Classes:
    def __init__(self, manifest: Manifest) -> None:
        self._tensor = manifest.outputs[0]
        self._exact = self._tensor.quantisation is None
        self._labels = manifest.labels
        self._softmax = manifest.postprocess.get("softmax", False)
        if not isinstance(self._softmax, bool):
            raise bad("postprocess.softmax", self._softmax, ("true", "false"))
        self._top = _whole(manifest.postprocess, "top", 1, low=1, high=_MOST)

    def __call__(self, outputs: Sequence[Array], _inputs: Sequence[Array]) -> Decision:
        scores = outputs[0].reshape(-1)
        if not scores.size:
            return NOTHING
        if not self._exact:
            scores = dequantise(scores, self._tensor)
        best = int(scores.argmax())
        top = scores[best]
        # The largest of a softmax is 1 / sum(exp(x - max)): no second array of probabilities is needed.
        confidence = float(1.0 / np.exp(scores - top).sum()) if self._softmax else float(top)
        if self._top == 1:
            return Decision(best, name_of(self._labels, best), confidence)
        if self._softmax:
            scores = np.exp(scores - top) * confidence
        order = np.argsort(-scores, kind="stable")[: self._top]
        listed = [[int(k), name_of(self._labels, int(k)), round(float(scores[k]), 6)] for k in order]
        return Decision(best, name_of(self._labels, best), confidence, {"top": listed})


class _Boxes:
    def __init__(self, manifest: Manifest) -> None:
        after, self._tensors = manifest.postprocess, manifest.outputs
        self._labels = manifest.labels
        last = len(self._tensors) - 1
        self._boxes = _whole(after, "boxes", 0, low=0, high=last)
        self._scores = _whole(after, "scores", min(2, last), low=0, high=last)
        self._classes = _whole(after, "classes", 0, low=0, high=last) if "classes" in after else None
        self._count = _whole(after, "count", 0, low=0, high=last) if "count" in after else None
        self._least = _number(after, "min_score", 0.5)
        self._most = _whole(after, "most", 20, low=1, high=_MOST)
        self._nms = _number(after, "nms", 1.0)

    def __call__(self, outputs: Sequence[Array], _inputs: Sequence[Array]) -> Decision:
        boxes = self._value(outputs, self._boxes).reshape(-1, 4)
        scores = self._value(outputs, self._scores)
        if self._classes is None:
            scores = scores.reshape(len(boxes), -1) if len(boxes) else scores.reshape(0, 1)
            classes = scores.argmax(axis=1)
            scores = scores.max(axis=1)
        else:
            scores = scores.reshape(-1)
            classes = np.rint(self._value(outputs, self._classes).reshape(-1)).astype(np.intp)
        count = min(len(boxes), len(scores), len(classes))
        if self._count is not None:
            said = self._value(outputs, self._count).reshape(-1)
            count = min(count, max(0, int(said[0]))) if said.size else 0
        order = np.argsort(-scores[:count], kind="stable")
        order = order[scores[order] >= self._least]
        kept: list[int] = []
        for place in order.tolist():
            if len(kept) == self._most:
                break
            rivals = [other for other in kept if classes[other] == classes[place]]
            if self._nms >= 1.0 or all(_overlap(boxes[place], boxes[other]) <= self._nms for other in rivals):
                kept.append(place)
        listed: list[dict[str, Any]] = [
            {
                "class": int(classes[place]),
                "label": name_of(self._labels, int(classes[place])),
                "score": round(float(scores[place]), 6),
                "box": [round(float(edge), 6) for edge in boxes[place]],
            }
            for place in kept
        ]
        if not listed:
            return Decision(None, "", None, {"boxes": []})
        return Decision(listed[0]["class"], listed[0]["label"], float(scores[kept[0]]), {"boxes": listed})

    def _value(self, outputs: Sequence[Array], number: int) -> Array:
        return dequantise(outputs[number], self._tensors[number])


class _Values:
    def __init__(self, manifest: Manifest) -> None:
        after = manifest.postprocess
        self._tensor = manifest.outputs[0]
        self._scale = numbers({"scale": after.get("scale", 1)}, "scale", "postprocess")
        self._offset = numbers({"offset": after.get("offset", 0)}, "offset", "postprocess")
        names = after.get("names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise bad("postprocess.names", names, ("a list of names",))
        self._names = tuple(names)

    def __call__(self, outputs: Sequence[Array], _inputs: Sequence[Array]) -> Decision:
        # In double width: a finite output times its scale is to be finite too.
        found = dequantise(outputs[0].reshape(-1), self._tensor)[:_MOST].astype(np.float64)
        values = [float(value) for value in np.atleast_1d(found * self._scale + self._offset)]
        if not values:
            return Decision(None, "", None, {"values": {}})
        named = {(self._names[k] if k < len(self._names) else str(k)): value for k, value in enumerate(values)}
        return Decision(None, "", values[0], {"values": named})


class _Anomaly:
    def __init__(self, manifest: Manifest) -> None:
        after = manifest.postprocess
        self._inputs, self._tensor = manifest.inputs, manifest.outputs[0]
        self._threshold = _number(after, "threshold", None)
        self._distance = after.get("score", "value")
        if self._distance not in _SCORES:
            raise bad("postprocess.score", self._distance, _SCORES)
        shapes = manifest.inputs[0].shape[1:], self._tensor.shape[1:]
        if self._distance == "distance" and shapes[0] != shapes[1]:
            raise bad("postprocess.score", "distance", ("distance only where output 0 has the shape of input 0",))

    def __call__(self, outputs: Sequence[Array], inputs: Sequence[Array]) -> Decision:
        found = dequantise(outputs[0].reshape(-1), self._tensor).astype(np.float32, copy=False)
        if self._distance == "distance":
            given = dequantise(inputs[0].reshape(-1), self._inputs[0]).astype(np.float32, copy=False)
            with np.errstate(over="ignore"):
                score = float(np.square(found - given).mean())
            if not math.isfinite(score):
                score = float(np.square(found.astype(np.float64) - given).mean())
        else:
            score = float(found[0]) if found.size else 0.0
        strange = score > self._threshold
        return Decision(int(strange), "anomaly" if strange else "normal", score)


def name_of(labels: Sequence[str], number: int) -> str:
    """The class's name, or its number where it has none."""
    return labels[number] if 0 <= number < len(labels) else str(number)


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return float(height * width / both) if both > 0 else 0.0


def _whole(table: Mapping[str, Any], key: str, default: int, *, low: int, high: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad(f"postprocess.{key}", value, (f"a whole number from {low} to {high}",))
    return value


def _number(table: Mapping[str, Any], key: str, default: float | None) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(f"postprocess.{key}", value, ("a number",))
    return float(value)
