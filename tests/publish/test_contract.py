"""What devices would refuse is refused at the desk: every kind of preprocess and postprocess, good and nonsense."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny_models
from modelagent.cli import main

pytestmark = pytest.mark.process
RANDOM = np.random.RandomState(3)
FRAMES = RANDOM.rand(300, 4).astype(np.float32)
WEIGHTS = np.eye(4, dtype=np.float32)
LABELS = FRAMES.argmax(axis=1).astype(np.int64)
GREY = RANDOM.randint(0, 256, (300, 2, 2, 3)).astype(np.uint8)


def add(place: Path, document: Mapping[str, Any], *words: str, code: int = 0, **arrays: Any) -> dict[str, Any]:
    """`repo add` of a model that gives its four inputs back, with this manifest above it."""
    (place / "m.tflite").write_bytes(tiny_models.linear(WEIGHTS))
    np.savez(place / "c.npz", **(arrays or {"input_0": FRAMES, "labels": LABELS}))
    (place / "above.json").write_text(json.dumps(document))
    (place / "count").write_text(str(int((place / "count").read_text()) + 1) if (place / "count").exists() else "1")
    typed = ["repo", "add", str(place / "m.tflite"), "--model", "line", "--version", (place / "count").read_text()]
    typed += ["--canary", str(place / "c.npz"), "--manifest", str(place / "above.json"), "--deltas", "0", "--json"]
    result = CliRunner().invoke(main, [*typed, "--repo", str(place / "r"), "--keys", str(place / "k"), *words])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    words = ["repo", "init", "--model", "line", "--repo", str(tmp_path / "r"), "--keys", str(tmp_path / "k")]
    assert CliRunner().invoke(main, words).exit_code == 0
    return tmp_path


GOOD: list[dict[str, Any]] = [
    {"preprocess": {"kind": "none"}},
    {"preprocess": {"kind": "scale", "mean": 0.5, "scale": 2}},
    {"preprocess": {"kind": "each", "inputs": [{"kind": "scale", "mean": [0, 0, 0, 0], "scale": 1}]}},
    {"postprocess": {"kind": "classification", "softmax": True, "top": 3}},
    {"postprocess": {"kind": "detection", "boxes": 0, "scores": 0}, "canary": {"metric": "accuracy", "samples": 0}},
    {"postprocess": {"kind": "regression", "scale": 2, "offset": 1, "names": ["a"]}, "canary": {"samples": 0}},
    {"postprocess": {"kind": "anomaly", "threshold": 0.5, "score": "distance"}, "canary": {"metric": "accuracy"}},
    {"postprocess": {"kind": "raw"}},
    {"stateful": True},
    {"delegate": "edgetpu"},
]


def test_every_kind_can_be_published(place: Path) -> None:
    for document in GOOD:
        # Kinds that name no class are judged by a metric that asks for none.
        wanted = dict(document)
        if wanted.get("postprocess", {}).get("kind") in ("detection", "regression", "anomaly", "raw"):
            wanted["canary"] = {"metric": "mae", "margin": 0.1, "floor": 1.0}
            told = add(place, wanted, input_0=FRAMES, labels=FRAMES)
        else:
            told = add(place, wanted)
        assert told["digest"], document


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"preprocess": {"kind": "blur"}}, "preprocess.kind"),
        ({"preprocess": {"kind": "scale", "mean": "dark", "scale": 1}}, "preprocess.mean"),
        ({"preprocess": {"kind": "scale", "mean": 0}}, "preprocess.scale"),
        ({"preprocess": {"kind": "scale", "mean": [0, 0, 0], "scale": 1}}, "3 channels"),
        ({"preprocess": {"kind": "image"}}, "one picture with 1 or 3 channels"),
        ({"preprocess": {"kind": "each", "inputs": []}}, "a list of 1 tables"),
        ({"preprocess": {"kind": "each", "inputs": [{"kind": "each"}]}}, "preprocess.inputs[0].kind"),
        ({"postprocess": {"kind": "poetry"}}, "postprocess.kind"),
        ({"postprocess": {"kind": "classification", "softmax": 3}}, "postprocess.softmax"),
        ({"postprocess": {"kind": "classification", "top": 0}}, "postprocess.top"),
        ({"postprocess": {"kind": "detection", "boxes": 5}}, "postprocess.boxes"),
        ({"postprocess": {"kind": "regression", "scale": "much"}}, "postprocess.scale"),
        ({"postprocess": {"kind": "regression", "names": "a"}}, "postprocess.names"),
        ({"postprocess": {"kind": "anomaly"}}, "postprocess.threshold"),
        ({"postprocess": {"kind": "anomaly", "threshold": 1, "score": "smell"}}, "postprocess.score"),
        ({"postprocess": {"kind": "raw", "colour": 1}}, "postprocess.colour"),
        ({"stateful": "often"}, "stateful"),
        ({"delegate": "Edge TPU"}, "delegate"),
        ({"canary": {"floor": 1.0, "metric": "balanced-accuracy"}, "labels": []}, ""),
        ({"limits": {"memory_mb": 1.0}}, "memory"),
    ],
)
def test_nonsense_of_every_kind_is_refused_before_any_device_hears_of_it(
    place: Path, document: dict[str, Any], word: str
) -> None:
    if not word:
        wrong = (LABELS + 1) % 4
        told = add(place, document, code=2, input_0=FRAMES, labels=wrong)
        word = "the floor is 100.0 %"
    else:
        told = add(place, document, code=2)
    assert told["code"] in ("contract", "manifest")
    assert word in told["error"]
    status = CliRunner().invoke(
        main, ["repo", "status", "--json", "--repo", str(place / "r"), "--keys", str(place / "k")]
    )
    assert json.loads(status.stdout)["models"] == {"line": []}


def test_frames_that_do_not_fit_the_preparation_are_refused(place: Path) -> None:
    scale = {"preprocess": {"kind": "scale", "mean": 0, "scale": 1}}
    assert "frame" in add(place, scale, code=2, input_0=FRAMES[:, :3], labels=LABELS)["error"]
    assert add(place, scale, input_0=(FRAMES * 255).astype(np.uint8), labels=LABELS)["number"] == 1


def test_words_alone_are_checked_where_the_tensors_are_stated(place: Path) -> None:
    tensor = [{"name": "x", "shape": [1, 2, 2, 3], "dtype": "float32", "quantisation": None}]
    stated: dict[str, Any] = {"inputs": tensor, "outputs": tensor, "preprocess": {"kind": "image", "fit": "pad"}}
    assert add(place, stated, input_0=GREY, labels=LABELS)["number"] == 1
    stated["preprocess"]["fit"] = "tight"
    assert "preprocess.fit" in add(place, stated, code=2, input_0=GREY, labels=LABELS)["error"]


def test_another_metric_as_it_is_typed(place: Path) -> None:
    words = ("--metric", "mae", "--margin", "0.1", "--floor-accuracy", "0.5")
    assert add(place, {}, *words, input_0=FRAMES, labels=FRAMES)["number"] == 1
    assert "--margin" in add(place, {}, "--metric", "mae", code=2, input_0=FRAMES, labels=FRAMES)["error"]
    assert add(place, {}, "--metric", "f1")["number"] == 2
    agrees = ("--metric", "agreement", "--tolerance", "0.01", "--floor-accuracy", "0.95")
    assert add(place, {}, *agrees, input_0=FRAMES, reference=FRAMES)["number"] == 3
    assert add(place, {}, *agrees, code=2, input_0=FRAMES, reference=FRAMES + 1)["code"] == "contract"
