"""What a model's outputs mean, as the manifest says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference.readout import readout
from modelagent.manifest import Canary, Limits, Manifest, Tensor

SCORES = Tensor("y", (1, 3), "float32", None)
BASE = Manifest(
    digest="0" * 64,
    length=1,
    model="m",
    version="1",
    number=1,
    floor=0,
    issued=0.0,
    parent=None,
    files=(),
    runtime_min=None,
    runtime_max=None,
    delegate="cpu",
    hardware=(),
    stateful=False,
    inputs=(SCORES,),
    outputs=(SCORES,),
    labels=("cat", "dog"),
    preprocess={"kind": "none"},
    postprocess={"kind": "raw"},
    canary=Canary("accuracy", 0.05, 0.95, 0.5, 0),
    limits=Limits(1.0, 2.0, 100.0, 1.0),
    card={},
)


def read(after: dict[str, Any], outputs: list[Any], inputs: list[Any] | None = None, *, many: int = 1) -> Any:
    manifest = replace(BASE, postprocess=after, outputs=(SCORES,) * many)
    return readout(manifest)([np.asarray(output, np.float32) for output in outputs], inputs or [])


def test_the_best_classes_come_with_their_scores() -> None:
    found = read({"kind": "classification", "softmax": True, "top": 2}, [[[0.0, 2.0, 1.0]]])
    assert (found.prediction, found.label) == (1, "dog")
    assert [entry[:2] for entry in found.detail["top"]] == [[1, "dog"], [2, "2"]]
    total = np.exp([0.0, 2.0, 1.0]).sum()
    assert found.detail["top"][0][2] == pytest.approx(np.exp(2.0) / total, rel=1e-5)
    assert found.confidence == pytest.approx(np.exp(2.0) / total, rel=1e-5)


BOXES = [[[0, 0, 1, 1], [0, 0, 1, 0.9], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]]


def test_boxes_as_the_detection_operator_gives_them() -> None:
    after = {"kind": "detection", "boxes": 0, "classes": 1, "scores": 2, "count": 3, "min_score": 0.3}
    found = read(after, [BOXES, [[0, 0, 1, 1]], [[0.9, 0.8, 0.4, 0.99]], [3]], many=4)
    assert [box["score"] for box in found.detail["boxes"]] == [pytest.approx(s) for s in (0.9, 0.8, 0.4)]
    assert (found.prediction, found.label, found.detail["boxes"][2]["label"]) == (0, "cat", "dog")
    merged = read({**after, "nms": 0.5}, [BOXES, [[0, 0, 1, 1]], [[0.9, 0.8, 0.4, 0.99]], [3]], many=4)
    assert [box["class"] for box in merged.detail["boxes"]] == [0, 1]
    one = read({**after, "most": 1}, [BOXES, [[0, 0, 1, 1]], [[0.9, 0.8, 0.4, 0.99]], [3]], many=4)
    assert len(one.detail["boxes"]) == 1


def test_boxes_with_scores_per_class_and_no_boxes_at_all() -> None:
    scores = [[[0.1, 0.7], [0.6, 0.2], [0.1, 0.1], [0.0, 0.0]]]
    found = read({"kind": "detection", "boxes": 0, "scores": 1}, [BOXES, scores], many=2)
    assert [(box["label"], round(box["score"], 3)) for box in found.detail["boxes"]] == [("dog", 0.7), ("cat", 0.6)]
    none = read({"kind": "detection", "boxes": 0, "scores": 1}, [np.zeros((1, 0, 4)), np.zeros((1, 0, 2))], many=2)
    assert (none.prediction, none.detail) == (None, {"boxes": []})


def test_regression_names_its_values() -> None:
    found = read({"kind": "regression", "scale": 2, "offset": 1, "names": ["length_mm"]}, [[[1.0, 3.0]]])
    assert found.detail == {"values": {"length_mm": 3.0, "1": 7.0}}
    assert (found.prediction, found.confidence) == (None, 3.0)


def test_an_anomaly_is_a_score_or_a_distance_above_its_threshold() -> None:
    assert read({"kind": "anomaly", "threshold": 0.3}, [[[0.31]]])[:2] == (1, "anomaly")
    assert read({"kind": "anomaly", "threshold": 0.3}, [[[0.3 - 1e-6]]])[:2] == (0, "normal")
    after = {"kind": "anomaly", "threshold": 1.0, "score": "distance"}
    found = read(after, [[[1.0, 1.0, 1.0]]], [np.array([[1.0, 1.0, 4.0]], np.float32)])
    assert (found.prediction, found.confidence) == (1, pytest.approx(3.0))


@pytest.mark.parametrize(
    "after",
    [
        {"kind": "poetry"},
        {"kind": "classification", "top": 0},
        {"kind": "classification", "topk": 3},
        {"kind": "detection", "boxes": 4},
        {"kind": "detection", "min_score": "high"},
        {"kind": "regression", "names": "x"},
        {"kind": "anomaly"},
        {"kind": "anomaly", "threshold": 1, "score": "feeling"},
        {"kind": "raw", "softmax": True},
    ],
)
def test_unknown_wishes_are_the_releases_fault(after: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="published again"):
        read(after, [])


def test_what_is_finite_before_is_finite_after() -> None:
    most = float(np.finfo(np.float32).max)
    found = read({"kind": "regression", "scale": 1e30}, [[[most, -most, 0.0]]])
    assert np.isfinite(list(found.detail["values"].values())).all()
    after = {"kind": "anomaly", "threshold": 0.3, "score": "distance"}
    found = read(after, [[[most] * 3]], [np.full((1, 3), -most, np.float32)])
    assert np.isfinite(found.confidence)
    assert found.label == "anomaly"


def test_no_count_at_all_is_no_box() -> None:
    after = {"kind": "detection", "boxes": 0, "classes": 1, "scores": 2, "count": 3}
    found = read(after, [[[[0.0, 0.0, 1.0, 1.0]]], [[1.0]], [[0.9]], []], many=4)
    assert found.detail == {"boxes": []}


def test_a_distance_needs_equal_shapes() -> None:
    odd = replace(
        BASE,
        postprocess={"kind": "anomaly", "threshold": 1, "score": "distance"},
        inputs=(Tensor("x", (1, 4), "float32", None),),
    )
    with pytest.raises(ModelError, match="shape"):
        readout(odd)
