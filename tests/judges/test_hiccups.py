"""Frames that fail now and then and succeed when run again: what is normal, how soon too many are found, how rarely
a version that is no worse than the confirmed one is blamed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Counts
from modelagent.core.verdicts import Standing
from modelagent.judges.probation import ProbationCriteria, hiccups, judge_probation

CRITERIA = ProbationCriteria(frames=500, busy_s=60, limit_frames=5000, limit_busy_s=600)
ENOUGH = Counts(frames=500, done=500, busy_s=60)
ALPHA = CRITERIA.alpha * 0.05


def standing(unsteady: int, busy: int, criteria: ProbationCriteria = CRITERIA) -> Standing:
    counts = Counts(frames=busy * 30, done=busy * 30, busy_s=busy, unsteady_s=unsteady)
    return judge_probation(counts, criteria).standing


def test_one_hiccup_is_none_and_many_are_too_many() -> None:
    assert standing(1, 60) is Standing.GOOD
    assert standing(6, 60) is Standing.BAD
    verdict = judge_probation(replace(ENOUGH, unsteady_s=9), CRITERIA)
    assert verdict.reason == (
        "it fails now and then: in 9 of 60 s with frames one failed at first; normal are 0.5 %; "
        "chance of that by luck below 0.0005"
    )
    assert verdict.evidence["flaky"] == "high"


def test_a_suspicion_is_waited_out_up_to_the_limit() -> None:
    verdict = judge_probation(replace(ENOUGH, unsteady_s=3), CRITERIA)
    assert verdict.standing is Standing.OPEN
    assert "in 3 of 60 s with frames one failed at first, which is not yet proof" in verdict.reason
    assert standing(3, 140) is Standing.GOOD, "it did not come again"
    late = judge_probation(replace(ENOUGH, done=5000, busy_s=600, unsteady_s=14), CRITERIA)
    assert late.standing is Standing.GOOD
    assert late.reason.startswith("undecided at the limit of 5000 frames, kept: in 14 of 600 s")
    strict = judge_probation(
        replace(ENOUGH, done=5000, busy_s=600, unsteady_s=14), replace(CRITERIA, undecided_good=False)
    )
    assert strict.standing is Standing.BAD


def test_what_the_confirmed_version_has_had_is_normal_on_this_device() -> None:
    assert hiccups(0.005, 0.05, 0, 0) == (0.005, 0.05)
    assert hiccups(0.005, 0.05, 0, 10_000) == (0.005, 0.05), "a perfect one does not make the rule stricter"
    assert hiccups(0.005, 0.05, 10, 86_400) == (0.005, 0.05)
    p0, p1 = hiccups(0.005, 0.05, 360, 3600)
    assert p0 == pytest.approx(0.109, abs=0.002)
    assert p1 == pytest.approx(0.56, abs=0.02), "ten times the odds"
    lenient = replace(CRITERIA, fault_p0=p0, fault_p1=p1)
    assert standing(8, 60) is Standing.BAD
    assert standing(8, 60, lenient) is not Standing.BAD
    assert standing(40, 60, lenient) is Standing.BAD


@given(st.floats(1e-4, 0.2), st.floats(1.5, 50.0), st.integers(0, 5000), st.integers(0, 5000))
def test_the_two_rates_are_a_test_whatever_is_known(p0: float, factor: float, unsteady: int, busy: int) -> None:
    p1 = min(0.99, p0 * factor)
    low, high = hiccups(p0, p1, unsteady, busy)
    assert p0 <= low < high < 1.0


@given(st.integers(0, 60), st.integers(1, 600))
def test_one_more_hiccup_never_saves(unsteady: int, busy: int) -> None:
    unsteady = min(unsteady, busy - 1)
    if standing(unsteady, busy) is Standing.BAD:
        assert standing(unsteady + 1, busy) is Standing.BAD


def simulate(rate: float, criteria: ProbationCriteria, trials: int, seconds: int, seed: int) -> tuple[int, float]:
    """How many of `trials` probations go back, looked at every second, and the median second of it."""
    draws = (np.random.default_rng(seed).random((trials, seconds)) < rate).cumsum(axis=1)
    up = math.log(criteria.fault_p1 / criteria.fault_p0)
    down = math.log((1 - criteria.fault_p1) / (1 - criteria.fault_p0))
    second = np.arange(1, seconds + 1)
    high = draws * up + (second - draws) * down >= -math.log(ALPHA)
    delays = np.where(high.any(axis=1), high.argmax(axis=1) + 1, np.inf)
    # The shipped judge says the same where this closed form first does.
    for trial in np.flatnonzero(high.any(axis=1))[:20]:
        moment = int(delays[trial])
        assert standing(int(draws[trial, moment - 1]), moment, criteria) is Standing.BAD
        assert standing(int(draws[trial, moment - 2]), moment - 1, criteria) is not Standing.BAD or moment == 1
    return int(high.any(axis=1).sum()), float(np.median(delays))


def test_operating_characteristics() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    false, _ = simulate(CRITERIA.fault_p0, CRITERIA, 20_000, 1200, 1)
    assert scipy_stats.binom.cdf(false, 20_000, ALPHA) < 0.999, "no more than the budget of this test"
    found, delay = simulate(0.05, CRITERIA, 2000, 1200, 2)
    assert found >= 0.95 * 2000
    assert delay <= 110
    found, delay = simulate(0.30, CRITERIA, 2000, 120, 3)
    assert found == 2000
    assert delay <= 20


def test_a_version_no_worse_than_a_confirmed_one_that_stumbles_too_is_left_alone() -> None:
    """Both stumble in 3 % of the seconds; the confirmed one was watched for an hour before, each time anew."""
    generator = np.random.default_rng(4)
    false = 0
    for known in generator.binomial(3600, 0.03, size=400).tolist():
        p0, p1 = hiccups(CRITERIA.fault_p0, CRITERIA.fault_p1, known, 3600)
        bad, _ = simulate(0.03, replace(CRITERIA, fault_p0=p0, fault_p1=p1), 50, 600, int(generator.integers(1 << 30)))
        false += bad
    assert false <= 0.001 * 400 * 50
    # Without that knowledge nearly every one would be blamed for the device's own weakness.
    assert simulate(0.03, CRITERIA, 500, 600, 5)[0] > 250


def test_bursts_within_a_second_count_once() -> None:
    from modelagent.inference.counters import Counts as Tallied  # noqa: PLC0415 - beside the judge's own

    counts = Tallied()
    for frame in range(90):  # three seconds, every frame of the middle one fails at first
        counts.busy(10.0 + frame / 30.0)
        if 30 <= frame < 60:
            counts.recovered(10.0 + frame / 30.0)
    report = counts.report()
    assert (report["busy_s"], report["unsteady_s"], report["faults"]["recovered"]) == (3, 1, 30)
