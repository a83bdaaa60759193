"""Other metrics than accuracy: each is what sklearn says it is, and goes from the plan to a device's canary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn import metrics as oracle

import tiny_models
from modelagent import manifest
from modelagent.build import data, evaluate, pipeline, plans, scoring
from modelagent.build.data import Samples
from modelagent.cli import main
from modelagent.core.verdicts import Outcome
from modelagent.errors import UsageError
from modelagent.judges.metrics import Scored
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.slots import SlotStore

RANDOM = np.random.RandomState(5)
INPUTS = RANDOM.randn(300, 4).astype(np.float32)
WEIGHTS = RANDOM.randn(4, 4).astype(np.float32)
SCORES = INPUTS @ WEIGHTS
CLASSES = np.where(RANDOM.rand(300) < 0.8, SCORES.argmax(axis=1), RANDOM.randint(0, 4, 300)).astype(np.int64)
TARGETS = (SCORES + 0.3 * RANDOM.randn(300, 4)).astype(np.float32)
TWO = (SCORES[:, -1] + RANDOM.randn(300) > 0).astype(np.int64)
MASKS = np.rint(TARGETS).astype(np.int64).clip(0, 3)


def truth(metric: str) -> Any:
    if metric in scoring.VALUES:
        return TARGETS
    if metric in scoring.MASKS:
        return MASKS
    return TWO if metric in scoring.TWO_CLASSES else CLASSES


ORACLES = {
    "accuracy": lambda: oracle.accuracy_score(CLASSES, SCORES.argmax(axis=1)),
    "top-2": lambda: oracle.top_k_accuracy_score(CLASSES, SCORES, k=2),
    "balanced-accuracy": lambda: oracle.balanced_accuracy_score(CLASSES, SCORES.argmax(axis=1)),
    "f1": lambda: oracle.f1_score(CLASSES, SCORES.argmax(axis=1), average="macro"),
    "auc": lambda: oracle.roc_auc_score(TWO, SCORES[:, -1]),
    # The model's outputs have the shape of its inputs, so the score is the distance between them.
    "anomaly-auc": lambda: oracle.roc_auc_score(TWO, ((SCORES - INPUTS) ** 2).mean(axis=1)),
    "mae": lambda: oracle.mean_absolute_error(TARGETS, SCORES),
    "rmse": lambda: oracle.root_mean_squared_error(TARGETS.reshape(-1), SCORES.reshape(-1)),
    "mean-iou": lambda: oracle.jaccard_score(
        MASKS.reshape(-1), np.rint(SCORES).astype(int).reshape(-1), average=None
    ).mean(),
}


@pytest.mark.process
@pytest.mark.parametrize("metric", ORACLES)
def test_a_metric_is_what_sklearn_says(metric: str, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(tiny_models.linear(WEIGHTS))
    found = evaluate.measure(tmp_path / "m.tflite", Samples((INPUTS,), truth(metric), ()), metric=metric)
    assert found.value == pytest.approx(ORACLES[metric](), rel=1e-5)
    low, high = found.interval
    assert low < found.value < high
    assert high - low < 0.2
    assert scoring.change(metric, found.scored, found.scored)[0] == 0.0


def test_the_bootstraps_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.RandomState(2)
    hits = 0
    for _ in range(100):
        scored = [Scored(values=(float(value),)) for value in random.exponential(1.0, 100)]
        low, high = scoring.interval("mae", scored)
        hits += low <= 1.0 <= high
    assert hits >= 86


def test_how_many_samples_show_a_margin_of_an_error() -> None:
    scored = [Scored(values=(float(value),)) for value in np.random.RandomState(2).exponential(1.0, 400)]
    narrow, wide = (scoring.samples_for("mae", scored, margin) for margin in (0.1, 0.2))
    assert narrow == pytest.approx(4 * wide, rel=0.02)
    assert scoring.samples_for("mae", scored, 100.0) == 50  # fewer than the bootstrap takes are never enough
    assert scoring.samples_for("rmse", scored, 0.0) == 2**53


def test_what_is_no_truth_for_a_metric_is_refused(tmp_path: Path) -> None:
    def read(metric: str, labels: Any) -> Samples:
        np.savez(tmp_path / "d.npz", x=INPUTS[: len(labels)], y=labels)
        return data.read(str(tmp_path / "d.npz"), metric)

    assert read("mae", TARGETS).labels.dtype == np.float32
    assert read("mean-iou", MASKS).labels.shape == (300, 4)
    for metric, labels in (
        ("accuracy", TARGETS[:, 0]),
        ("auc", CLASSES),
        ("mean-iou", CLASSES),
        ("mae", np.full(300, np.nan)),
    ):
        with pytest.raises(UsageError) as caught:
            read(metric, labels)
        assert caught.value.code == "data"
    for metric in ("agreement", "beauty"):
        with pytest.raises(UsageError, match=r"evaluate\.metric"):
            plans.make({"evaluate": {"metric": metric}})
    with pytest.raises(UsageError, match=r"choose\.max_loss"):
        plans.make({"evaluate": {"metric": "mae"}})


def test_high_and_low_targets_have_equal_shares_in_every_part() -> None:
    parts = data.split(Samples((INPUTS,), TARGETS[:, :1], ()), seed=1)
    middle = np.median(TARGETS[:, 0])
    for name in data.SHARES:
        assert abs((getattr(parts, name).labels > middle).mean() - 0.5) < 0.06
    assert abs((data.stratified(parts.canary, 40, seed=1).labels > middle).mean() - 0.5) < 0.06


# --- from the plan to a device ----------------------------------------------------------------------------------


def run(*words: str | Path, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["repo", *map(str, words), "--json"])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def write(name: str, metric: str, weights: Any, more: str = "") -> str:
    """A plan around a linear model, in the working directory."""
    Path(f"{name}.tflite").write_bytes(tiny_models.linear(weights))
    shares = "{ train = 0.1, validation = 0.2, canary = 0.7 }"
    Path(f"{name}.toml").write_text(
        f'[model]\nname = "line"\nsource = "{Path.cwd()}/{name}.tflite"\n[data]\nsource = "{Path.cwd()}/data.npz"\n'
        f'shares = {shares}\n[variants]\n[evaluate]\nrounds = 3\nmetric = "{metric}"\n'
        f"[parent]\nmax_latency_ratio = 9\n{more}"
    )
    return f"{name}.toml"


def canary_of(place: Path, version: str) -> tuple[manifest.Manifest, Outcome]:
    """What a device makes of a release: fetched, staged, and its canary run."""
    repository = Repository(place / "repository", KeyRing(place / "keys"))
    release = manifest.parse(repository.manifest_bytes("line", version))
    state = place / f"device-{version}"
    state.mkdir()
    root = (place / "keys" / "root.json").read_bytes()
    acquirer = Acquirer(state, DirectorySource(place / "repository"), root, lambda: repository.ledger.now().timestamp())
    offer = acquirer.check("line", "stable").offer
    assert offer is not None
    assert offer.digest == release.digest
    acquirer.acquire(offer)
    store = SlotStore(state, "line")
    store.stage(offer.digest, state / "incoming", None)
    verdict = CanaryRunner(clock=lambda: 0.0).run(store.path(offer.digest), None, 1, release, lambda: False)
    return release, verdict.outcome


@pytest.mark.process
@pytest.mark.parametrize(
    ("metric", "margin", "kind"),
    [
        ("mae", 0.08, "regression"),
        ("rmse", 0.1, "regression"),
        ("auc", 0.06, "classification"),
        ("f1", 0.06, "classification"),
    ],
)
def test_from_a_plan_to_a_device_by_another_metric(
    metric: str, margin: float, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", x=INPUTS, y=truth(metric))
    run("init", "--model", "line")
    more = "[choose]\nmax_loss = 0.5\n"
    words = ("--channel", "stable", "--margin", str(margin), "--version")
    told = run("release", write("good", metric, WEIGHTS, more), *words, "1")
    release, outcome = canary_of(tmp_path, "1")
    assert (release.canary.metric, release.canary.margin) == (metric, margin)
    assert release.postprocess["kind"] == kind
    assert release.canary.samples == told["canary_samples"] >= 50
    assert outcome is Outcome.PASS
    assert release.card["metrics"]["metric"] == metric
    worse = run("release", write("bad", metric, WEIGHTS[:, ::-1], more), *words, "2", code=3)
    assert "worse than the parent" in str(worse["reasons"])
    report = json.loads(Path("build/release/report.json").read_text())
    assert report["metric"] == metric
    assert ("by_class" in report["variants"][0]) is (kind == "classification")


@pytest.mark.process
def test_an_error_needs_a_margin_in_its_own_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", x=INPUTS, y=TARGETS)
    run("init", "--model", "line")
    plan = write("good", "mae", WEIGHTS, "[choose]\nmax_loss = 0.5\n")
    assert "--margin" in run("release", plan, "--version", "1", code=2)["error"]
    few = run("release", plan, "--version", "1", "--margin", "0.001", code=2)
    assert few["code"] == "small-canary"
    assert run("release", plan, "--version", "1", "--margin", "0.001", "--accept-small-canary")["published"]


@pytest.mark.process
def test_frames_are_prepared_alike_at_the_desk_and_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set holds frames as cameras give them; the plan says how they are scaled."""
    monkeypatch.chdir(tmp_path)
    frames = RANDOM.randint(0, 256, (300, 4)).astype(np.uint8)
    labels = ((frames.astype(np.float32) - 128) / 64 @ WEIGHTS).argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=frames, y=labels)
    run("init", "--model", "line")
    more = '[manifest]\npreprocess = { kind = "scale", mean = 128, scale = 0.015625 }\n'
    run(
        "release", write("good", "accuracy", WEIGHTS, more), "--version", "1", "--channel", "stable", "--margin", "0.06"
    )
    release, outcome = canary_of(tmp_path, "1")
    assert outcome is Outcome.PASS
    assert release.card["metrics"]["canary"] == 1.0
    assert release.preprocess["kind"] == "scale"
    for table, word in (
        ('preprocess = { kind = "scale", mean = "dark", scale = 1 }', "preprocess.mean"),
        ('preprocess = { kind = "image" }', "image for an input of the shape"),
        ('postprocess = { kind = "anomaly" }', "postprocess.threshold"),
        ('colour = "red"', "manifest.colour"),
    ):
        wrong = write("good", "accuracy", WEIGHTS, f"[manifest]\n{table}\n")
        assert word in run("release", wrong, "--version", "2", "--margin", "0.06", code=2)["error"]
    assert list(run("status")["models"]["line"])[-1]["version"] == "1"


@pytest.mark.process
def test_an_area_without_both_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(tiny_models.linear(WEIGHTS))
    with pytest.raises(UsageError, match="not defined"):
        evaluate.measure(tmp_path / "m.tflite", Samples((INPUTS,), np.zeros(300, np.int64), ()), metric="auc")
    plan = plans.make(
        {"model": {"source": str(tmp_path / "m.tflite")}, "data": {"source": f"{__name__}:few"}, "variants": {}}
    )
    assert pipeline.build(plan, tmp_path / "out").chosen is not None


def few() -> dict[str, Any]:
    return {"x": INPUTS, "y": SCORES.argmax(axis=1)}
