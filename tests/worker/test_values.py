"""What a metric takes from one sample's outputs, each against numpy or by hand, and the sets that hold the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference.samples import Samples
from modelagent.inference.values import Values
from modelagent.judges.metrics import Scored, complete
from modelagent.manifest import METRICS, Tensor

FLOATS = (Tensor("y", (1, 4), "float32", None),)
INT8 = (Tensor("y", (1, 4), "int8", (0.5, -10)),)
SCORES = np.array([[0.1, 0.4, 0.3, 0.2]], np.float32)


def values(metric: str, outputs: Any, truth: Any, *, tensors: Any = FLOATS, classes: bool = True) -> list[float]:
    made = Values(metric, tensors=tensors, inputs=FLOATS, tolerance=0.25, classes=classes)
    known = None if truth is None else np.asarray(truth)
    return made.of([np.asarray(outputs)], [np.ones((1, 4), np.float32)], known)


@pytest.mark.parametrize(("k", "label", "right"), [(2, 1, 1.0), (2, 2, 1.0), (2, 3, 0.0), (3, 3, 1.0), (3, 0, 0.0)])
def test_top_k(k: int, label: int, right: float) -> None:
    assert values(f"top-{k}", SCORES, label) == [right]


def test_the_score_of_class_one() -> None:
    assert values("auc", [[0.25]], 1) == [0.25]
    assert values("auc", [[0.25, 0.75]], 0) == [0.75]


def test_an_anomaly_is_the_output_or_the_distance_from_the_input() -> None:
    assert values("anomaly-auc", [[0.25]], 1) == [0.25]
    assert values("anomaly-auc", np.full((1, 4), 3.0, np.float32), 1) == [4.0]


def test_errors_are_means_over_the_outputs_of_a_sample() -> None:
    truth = np.array([0.1, 0.4, 0.3, 1.2], np.float32)
    assert values("mae", SCORES, truth) == [pytest.approx(0.25)]
    assert values("rmse", SCORES, truth) == [pytest.approx(0.25)]
    assert values("rmse", np.array([[1.0, 0.0]]), np.array([0.0, 3.0])) == [5.0]
    assert values("mae", np.array([[-8, -10, -10, -10]], np.int8), np.zeros(4), tensors=INT8) == [0.25]
    with pytest.raises(ModelError, match="3 numbers of truth"):
        values("mae", SCORES, np.zeros(3))


def test_agreement_is_the_same_best_class_or_a_small_difference() -> None:
    assert values("agreement", SCORES, [0.0, 0.9, 0.1, 0.0]) == [1.0, pytest.approx(0.5)]
    assert values("agreement", SCORES, [0.5, 0.4, 0.1, 0.0]) == [0.0, pytest.approx(0.4)]
    assert values("agreement", SCORES, SCORES[0] + 0.2, classes=False) == [1.0, pytest.approx(0.2)]
    assert values("agreement", SCORES, SCORES[0] + 0.3, classes=False)[0] == 0.0


def test_masks_overlap_class_by_class() -> None:
    truth = np.array([[0, 0], [1, 2]])
    scores = np.eye(3, dtype=np.float32)[[[0, 1], [1, 1]]][np.newaxis]
    wanted = [0.0, 1.0, 2.0, 1.0, 1.0, 3.0, 2.0, 0.0, 1.0]
    assert values("mean-iou", scores, truth) == wanted
    assert values("mean-iou", scores.argmax(-1).astype(np.int32), truth) == wanted
    with pytest.raises(ModelError, match="a mask of shape"):
        values("mean-iou", scores, np.zeros((3, 3), np.int64))
    with pytest.raises(ModelError, match="classes, allowed is at most 64"):
        values("mean-iou", np.arange(100).reshape(1, 10, 10), np.zeros((10, 10), np.int64))


@pytest.mark.parametrize("metric", METRICS)
def test_a_set_without_truth_gives_no_metric(metric: str) -> None:
    outputs = np.ones((1, 2, 2)) if metric == "mean-iou" else SCORES
    given = Scored(None, 1, tuple(values(metric, outputs, None)))
    assert not complete(metric, [given])


def test_a_set_may_hold_targets_masks_or_a_reference(tmp_path: Path) -> None:
    inputs = np.zeros((3, 4), np.float32)
    for name, truth in (("labels", np.arange(3.0)), ("labels", np.ones((3, 2, 2), int)), ("reference", np.eye(3))):
        arrays: dict[str, Any] = {"input_0": inputs, name: truth}
        np.savez(tmp_path / "s.npz", **arrays)
        with Samples(tmp_path / "s.npz", 1) as samples:
            assert samples.label(2) is None
            assert len(samples.read(2)) == 1
            found = samples.truth(2)
            assert found is not None
            np.testing.assert_array_equal(found, truth[2])
            np.testing.assert_array_equal(np.asarray(samples.truth(0)), truth[0])
