"""What a metric needs of one sample: numbers made of a model's outputs and the sample's truth.

This file knows how each metric of the manifest looks at outputs, labels and references. It does not add anything up:
`judges/metrics.py` does, and says what each number means.

    values = Values(manifest.canary.metric, tensors=manifest.outputs, tolerance=0.01)
    values.of(outputs, inputs, truth)            # [1.0] for top-3: the label is among the best three

Outputs and inputs are those of batch 1, in the model's own types; quantised ones are compared as the numbers they mean.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import ModelError
from modelagent.inference.readout import dequantise
from modelagent.manifest import Tensor

Array = npt.NDArray[Any]

_CLASSES: Final = 64  # of a segmentation: what one answer to the parent has room for
LABELLED: Final = ("accuracy", "balanced-accuracy", "f1", "auc", "anomaly-auc")  # one class index a sample


class Values:
    """One metric, applied to sample after sample.

    Args:
        metric: of `manifest.METRICS`.
        tensors: the model's outputs as its manifest declares them.
        inputs: its inputs, for the distance of an anomaly score.
        tolerance: largest difference from a reference that still agrees.
        classes: whether the outputs are scores of classes, so that agreement means the same best class.
    """

    def __init__(
        self, metric: str, *, tensors: Sequence[Tensor], inputs: Sequence[Tensor], tolerance: float, classes: bool
    ) -> None:
        self._metric = metric
        self._tensors = tensors
        self._inputs = inputs
        self._tolerance = tolerance
        self._classes = classes

    def of(self, outputs: Sequence[Array], inputs: Sequence[Array], truth: Array | None) -> list[float]:
        """The numbers of one sample; none where there is no truth to compare with.

        Args:
            outputs: of the model.
            inputs: that were given to it.
            truth: the label, the target or, for `agreement`, the reference of output 0; None without one.

        Raises:
            ModelError: `canary`, when truth and output do not fit each other.
        """
        metric = self._metric
        if metric in ("accuracy", "balanced-accuracy", "f1"):
            return []
        found = dequantise(outputs[0], self._tensors[0])
        if metric == "auc":
            return [float(found.reshape(-1)[-1])]
        if metric == "anomaly-auc":
            return [self._anomaly(found, inputs)]
        if truth is None:
            return []
        if metric.startswith("top-"):
            best = np.argsort(-found.reshape(-1), kind="stable")[: int(metric[4:])]
            return [float(int(truth) in best)]
        if metric == "mean-iou":
            return self._overlap(found, truth)
        target = truth.astype(np.float64).reshape(-1)
        flat = found.astype(np.float64).reshape(-1)
        if target.shape != flat.shape:
            raise self._bad(f"{target.size} numbers of truth", f"{flat.size}, as output 0 has")
        error = np.abs(flat - target)
        if metric == "agreement":
            worst = float(error.max()) if error.size else 0.0
            same = flat.argmax() == target.argmax() if self._classes else worst <= self._tolerance
            return [float(same), worst]
        return [float((error if metric == "mae" else error * error).mean())]

    def _anomaly(self, found: Array, inputs: Sequence[Array]) -> float:
        """The first value of output 0, or its mean squared distance from input 0 where the model gives that back."""
        if found.shape != inputs[0].shape or found.size == 1:
            return float(found.reshape(-1)[0])
        given = dequantise(inputs[0], self._inputs[0])
        return float(np.mean((found.astype(np.float64) - given) ** 2))

    def _overlap(self, found: Array, truth: Array) -> list[float]:
        mask = found[0] if found.ndim > truth.ndim else found
        mask = mask.argmax(axis=-1) if mask.ndim > truth.ndim else np.rint(mask).astype(np.int64)
        if mask.shape != truth.shape:
            raise self._bad(f"a mask of shape {list(truth.shape)}", f"{list(mask.shape)}, as output 0 gives")
        names = np.union1d(np.unique(mask), np.unique(truth))
        if len(names) > _CLASSES:
            raise self._bad(f"{len(names)} classes", f"at most {_CLASSES}")
        numbers: list[float] = []
        for name in names:
            ours, theirs = mask == name, truth == name
            numbers += [float(name), float((ours & theirs).sum()), float((ours | theirs).sum())]
        return numbers

    def _bad(self, found: str, allowed: str) -> ModelError:
        return ModelError(
            f"metric {self._metric}: found {found}, allowed is {allowed}; publish it with a fitting sample set",
            code="canary",
        )
