"""The metrics against scikit-learn and scipy; the bootstrap's bounds by simulation."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from modelagent.judges import metrics
from modelagent.judges.metrics import Scored, difference, measure
from modelagent.manifest import METRICS

CHANCE = np.random.default_rng(5)
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def classes(pairs: list[tuple[int, int]]) -> list[Scored]:
    return [Scored(label, said) for label, said in pairs]


@given(PAIRS)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_class_metrics_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, said = zip(*pairs, strict=True)
    scored = classes(pairs)
    assert measure("accuracy", scored) == pytest.approx(oracle.accuracy_score(truth, said))
    assert measure("balanced-accuracy", scored) == pytest.approx(oracle.balanced_accuracy_score(truth, said))
    assert measure("f1", scored) == pytest.approx(oracle.f1_score(truth, said, average="macro", zero_division=0))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40))
def test_the_area_under_the_curve_is_scikit_learns_ties_included(pairs: list[tuple[int, int]]) -> None:
    truth, scores = zip(*pairs, strict=True)
    scored = [Scored(label, values=(float(score),)) for label, score in pairs]
    for name in ("auc", "anomaly-auc"):
        if len(set(truth)) < 2:
            assert math.isnan(measure(name, scored))
        else:
            assert measure(name, scored) == pytest.approx(oracle.roc_auc_score(truth, scores))


def test_errors_are_scikit_learns() -> None:
    truth, said = CHANCE.normal(size=(60, 3)), CHANCE.normal(size=(60, 3))
    absolute = [Scored(values=(float(row.mean()),)) for row in np.abs(truth - said)]
    squared = [Scored(values=(float(row.mean()),)) for row in (truth - said) ** 2]
    assert measure("mae", absolute) == pytest.approx(oracle.mean_absolute_error(truth, said))
    assert measure("rmse", squared) == pytest.approx(math.sqrt(oracle.mean_squared_error(truth, said)))


def test_top_k_and_agreement_are_shares() -> None:
    scored = [Scored(values=(1.0,)), Scored(values=(0.0,)), Scored(values=(1.0, 0.3)), Scored()]
    for name in ("top-3", "agreement"):
        assert measure(name, scored) == 0.5


def test_mean_iou_is_scikit_learns_jaccard_over_all_pixels() -> None:
    truth, said = CHANCE.integers(0, 4, (20, 8, 8)), CHANCE.integers(0, 4, (20, 8, 8))
    scored = []
    for true, found in zip(truth, said, strict=True):
        values: list[float] = []
        for name in range(4):
            both, either = (true == name) & (found == name), (true == name) | (found == name)
            values += [name, float(both.sum()), float(either.sum())]
        scored.append(Scored(values=tuple(values)))
    assert measure("mean-iou", scored) == pytest.approx(
        oracle.jaccard_score(truth.ravel(), said.ravel(), average="macro")
    )


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_counts_a_sample_as_often_as_it_is_drawn(metric: str) -> None:
    scored = some(metric, 12)
    counts = [int(count) for count in CHANCE.integers(1, 3, 12)]
    repeated = [sample for sample, count in zip(scored, counts, strict=True) for _ in range(count)]
    assert metrics.prepare(metric, scored)(counts) == pytest.approx(measure(metric, repeated))
    assert metrics.complete(metric, scored)
    assert not metrics.complete(metric, [*scored, Scored()])


def some(metric: str, n: int, *, right: float = 0.8, seed: int = 1) -> list[Scored]:
    """Answers of a model that is right so often."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, n)
    good = chance.random(n) < right
    if metric in ("mae", "rmse"):
        return [Scored(values=(float(value),)) for value in chance.exponential(1.0 - right, n)]
    if metric in ("auc", "anomaly-auc"):
        return [Scored(int(label), values=(float(label) + float(chance.normal()) / right,)) for label in labels]
    if metric == "mean-iou":
        return [Scored(values=(0.0, float(k), 10.0, 1.0, float(k) / 2, 8.0)) for k in chance.binomial(8, right, n)]
    return [
        Scored(int(label), int(label) if ok else 1 - int(label), (float(ok),))
        for label, ok in zip(labels, good, strict=True)
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_against_itself_differs_by_nothing(metric: str) -> None:
    scored = some(metric, 60)
    found = difference(metric, scored, scored, confidence=0.95, seed="a")
    assert (found.low, found.high) == (0.0, 0.0)
    assert found.new == found.old


def test_the_same_seed_gives_the_same_bounds_and_swapping_the_models_mirrors_them() -> None:
    new, old = some("f1", 80, right=0.7, seed=1), some("f1", 80, right=0.9, seed=2)
    one = difference("f1", new, old, confidence=0.95, seed="release")
    assert one == difference("f1", new, old, confidence=0.95, seed="release")
    other = difference("f1", old, new, confidence=0.95, seed="release")
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert one.low < one.new - one.old < one.high
    assert one != difference("f1", new, old, confidence=0.95, seed="another")
    with pytest.raises(ValueError, match="the same samples"):
        difference("f1", new, old[:-1], confidence=0.95, seed="x")


def test_an_error_that_grows_counts_as_worse() -> None:
    old = [Scored(values=(0.1 + 0.001 * k,)) for k in range(60)]
    new = [Scored(values=(value.values[0] + 0.5,)) for value in old]
    found = difference("mae", new, old, confidence=0.95, seed="x")
    assert found.high < -0.49
    assert found.new > found.old


def test_bounds_are_those_of_scipys_bootstrap() -> None:
    chance = np.random.default_rng(3)
    ours = chance.normal(0.4, 0.3, 120)
    mine = difference(
        "mae",
        [Scored(values=(float(value),)) for value in ours],
        [Scored(values=(0.0,)) for _ in ours],
        confidence=0.95,
        seed="x",
    )
    theirs = stats.bootstrap(
        (ours,), np.mean, confidence_level=0.90, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert -mine.high == pytest.approx(theirs.low, abs=0.006)
    assert -mine.low == pytest.approx(theirs.high, abs=0.006)


def test_the_bounds_hold_about_as_often_as_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    # A model just as bad as the margin passes in 5 % of all cases; here 200 of them, each drawn 400 times.
    monkeypatch.setattr(metrics, "RESAMPLES", 400)
    chance = np.random.default_rng(11)
    margin, trials, passed = 0.10, 200, 0
    for number in range(trials):
        base = chance.exponential(1.0, 60)
        worse = base + chance.normal(margin, 0.3, 60)
        new = [Scored(values=(float(value),)) for value in worse]
        old = [Scored(values=(float(value),)) for value in base]
        passed += difference("mae", new, old, confidence=0.95, seed=str(number)).low > -margin
    assert passed / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_large_set_takes_seconds_not_minutes() -> None:
    assert metrics.RESAMPLES == 2000
    new, old = some("f1", 10_000, seed=1), some("f1", 10_000, seed=2)
    begun = time.process_time()
    assert difference("f1", new, old, confidence=0.95, seed="x").resamples == 400
    assert time.process_time() - begun < 20.0


@given(st.integers(0, 40), st.integers(1, 40))
def test_bounds_of_a_share_are_scipys(right: int, more: int) -> None:
    n = right + more
    low, high = metrics.wilson(right, n, 0.95)
    theirs = stats.binomtest(right, n)
    assert (low, high) == pytest.approx(tuple(theirs.proportion_ci(0.90, "wilson")), abs=1e-9)
    exact = theirs.proportion_ci(0.90, "exact").high
    assert metrics.upper_share(right, n, 0.95) == pytest.approx(exact, abs=1e-9)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric is called 'fame'"):
        measure("fame", [])
