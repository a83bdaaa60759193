"""The sequential test: error rates and delays by simulation."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.judges.sequential import Decision, Sprt

LABELS = Sprt(p0=0.10, p1=0.20, alpha=0.01, beta=0.05)
PAIRS = Sprt(p0=0.5, p1=0.7, alpha=0.01, beta=0.05)


def _first_decisions(
    test: Sprt, p: float, *, trials: int, length: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each trial the number of outcomes until the first decision, and which: 1 HIGH, -1 LOW, 0 none."""
    yes = np.random.default_rng(seed).random((trials, length)) < p
    steps = np.where(yes, test.evidence(1, 0), test.evidence(0, 1))
    paths = np.cumsum(steps, axis=1)
    crossed = np.where(paths >= test.upper, 1, np.where(paths <= test.lower, -1, 0))
    first = np.argmax(crossed != 0, axis=1)
    which = crossed[np.arange(trials), first]
    return np.where(which != 0, first + 1, length), which


def test_a_doubled_error_is_found_within_the_promised_labels() -> None:
    delay, which = _first_decisions(LABELS, 0.20, trials=4000, length=4000, seed=1)
    assert np.median(delay[which == 1]) <= 110
    assert np.mean(which == -1) <= 0.05
    assert np.mean(which == 0) == 0


def test_a_normal_error_is_condemned_at_most_one_time_in_a_hundred() -> None:
    delay, which = _first_decisions(LABELS, 0.10, trials=8000, length=4000, seed=2)
    assert np.mean(which == 1) <= 0.01
    assert np.mean(delay) == pytest.approx(80, abs=12)


def test_looking_for_ever_without_accepting_keeps_the_promise_too() -> None:
    yes = np.random.default_rng(3).random((3000, 5000)) < 0.10
    paths = np.cumsum(np.where(yes, LABELS.evidence(1, 0), LABELS.evidence(0, 1)), axis=1)
    assert np.mean(paths.max(axis=1) >= LABELS.upper) <= 0.01  # Ville


@pytest.mark.parametrize(("loss", "expected"), [(0.04, 474), (0.06, 258)])
def test_the_paired_test_takes_as_many_frames_as_published(loss: float, expected: int) -> None:
    discordance = 0.08
    share = (discordance + loss) / 2 / discordance  # of discordant pairs that the old model wins
    delay, which = _first_decisions(PAIRS, share, trials=3000, length=3000, seed=4)
    frames = np.mean(delay[which == 1]) / discordance
    assert np.mean(which == 1) >= 0.95
    assert frames == pytest.approx(expected, rel=0.12)


def test_equal_models_are_condemned_at_most_one_time_in_a_hundred() -> None:
    _, which = _first_decisions(PAIRS, 0.5, trials=8000, length=3000, seed=5)
    assert np.mean(which == 1) <= 0.01


def test_correlated_outcomes_break_the_promise_and_thinning_mends_it() -> None:
    generator = np.random.default_rng(6)
    scenes = generator.random((2000, 400)) < 0.10
    every_frame = np.repeat(scenes, 10, axis=1)  # ten frames a scene, all right or all wrong

    def condemned(outcomes: npt.NDArray[np.bool_]) -> float:
        steps = np.where(outcomes, LABELS.evidence(1, 0), LABELS.evidence(0, 1))
        return float(np.mean(np.cumsum(steps, axis=1).max(axis=1) >= LABELS.upper))

    assert condemned(every_frame) > 0.10
    assert condemned(every_frame[:, ::10]) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 2000)


@given(st.integers(0, 500), st.integers(0, 5000))
def test_more_of_the_bad_outcome_never_clears_and_more_of_the_good_never_condemns(yes: int, no: int) -> None:
    order = {Decision.LOW: 0, Decision.OPEN: 1, Decision.HIGH: 2}
    here = order[LABELS.decide(yes, no)]
    assert order[LABELS.decide(yes + 1, no)] >= here
    assert order[LABELS.decide(yes, no + 1)] <= here


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_test_and_its_mirror_agree(yes: int, no: int) -> None:
    mirror = Sprt(p0=0.3, p1=0.5, alpha=0.01, beta=0.05)
    assert PAIRS.evidence(yes, no) == pytest.approx(-mirror.evidence(no, yes))


@pytest.mark.parametrize(
    ("p0", "p1", "alpha", "beta"), [(0.2, 0.1, 0.01, 0.05), (0.0, 0.1, 0.01, 0.05), (0.1, 0.2, 0.0, 0.05)]
)
def test_what_is_no_test_is_refused(p0: float, p1: float, alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"needed|between"):
        Sprt(p0, p1, alpha, beta)
