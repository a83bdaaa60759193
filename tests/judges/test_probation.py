"""The probation's judge: what reverts, what only alarms, how it ends, and how often it errs."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Counts
from modelagent.core.verdicts import Standing
from modelagent.judges.probation import ProbationCriteria, judge_probation

CRITERIA = ProbationCriteria(frames=500, busy_s=60, limit_frames=5000, limit_busy_s=600)
ENOUGH = Counts(frames=500, done=500, busy_s=60)


def test_it_counts_until_enough_and_then_it_is_good() -> None:
    early = judge_probation(Counts(frames=12, done=12, busy_s=3), CRITERIA)
    assert (early.standing, early.reason) == (Standing.OPEN, "12 of 500 frames, 3 of 60 s with frames")
    assert judge_probation(replace(ENOUGH, busy_s=59), CRITERIA).standing is Standing.OPEN
    assert judge_probation(replace(ENOUGH, done=499), CRITERIA).standing is Standing.OPEN
    good = judge_probation(ENOUGH, CRITERIA)
    assert (good.standing, good.drift) == (Standing.GOOD, "")


def test_one_hard_fault_is_enough() -> None:
    verdict = judge_probation(Counts(frames=40, done=39, faults=1), CRITERIA)
    assert verdict.standing is Standing.BAD
    assert verdict.reason == "1 hard fault (crash, hang or NaN) in 40 frames"


def test_the_previous_model_being_better_on_the_same_frames_condemns() -> None:
    counts = Counts(60, 60, busy_s=8, right=21, wrong=34, both_right=20, only_old=25, only_new=1, both_wrong=9)
    verdict = judge_probation(counts, CRITERIA)
    assert verdict.standing is Standing.BAD
    assert "25 only it has right, 1 only this one" in verdict.reason


def test_an_input_that_hurts_both_alike_alarms_and_reverts_nothing() -> None:
    counts = replace(ENOUGH, right=60, wrong=60, both_right=55, only_new=6, only_old=5, both_wrong=54)
    verdict = judge_probation(counts, CRITERIA)
    assert verdict.standing is Standing.GOOD
    assert "60 of 120 labelled frames are wrong (50.0 %, normal is 10.0 %)" in verdict.drift
    assert "the input changed" in verdict.drift


def test_errors_alone_never_revert_whatever_their_number() -> None:
    verdict = judge_probation(replace(ENOUGH, right=0, wrong=500), CRITERIA)
    assert verdict.standing is Standing.GOOD
    assert "no previous model" in verdict.drift


def test_no_drift_is_called_while_the_previous_model_may_yet_prove_better() -> None:
    counts = replace(ENOUGH, right=80, wrong=40, both_right=75, only_new=2, only_old=9, both_wrong=34)
    verdict = judge_probation(counts, CRITERIA)
    assert (verdict.standing, verdict.drift) == (Standing.OPEN, "")
    assert "the previous model is ahead 9 to 2" in verdict.reason
    late = judge_probation(replace(counts, done=5000, busy_s=600), CRITERIA)
    assert late.standing is Standing.GOOD
    assert "undecided at the limit of 5000 frames, kept" in late.reason


def test_wanted_labels_are_waited_for_up_to_the_limit() -> None:
    wanting = replace(CRITERIA, labels=50)
    verdict = judge_probation(replace(ENOUGH, right=10), wanting)
    assert (verdict.standing, "10 of 50 labelled frames" in verdict.reason) == (Standing.OPEN, True)
    assert judge_probation(replace(ENOUGH, right=50), wanting).standing is Standing.GOOD
    late = judge_probation(replace(ENOUGH, done=5000, busy_s=600, right=10), wanting)
    assert late.standing is Standing.GOOD
    assert "undecided at the limit" in late.reason
    # many frames in little time with frames are not the limit
    assert judge_probation(replace(ENOUGH, done=9000, busy_s=599), wanting).standing is Standing.OPEN


def test_a_decided_comparison_needs_no_more_labels() -> None:
    counts = replace(ENOUGH, right=40, both_right=20, only_new=20)
    assert judge_probation(counts, replace(CRITERIA, labels=1000)).standing is Standing.GOOD


COUNTS = st.builds(
    Counts,
    frames=st.integers(0, 10_000),
    done=st.integers(0, 10_000),
    busy_s=st.integers(0, 1000),
    faults=st.integers(0, 2),
    right=st.integers(0, 300),
    wrong=st.integers(0, 300),
    both_right=st.integers(0, 300),
    only_new=st.integers(0, 100),
    only_old=st.integers(0, 100),
    both_wrong=st.integers(0, 300),
)


@given(COUNTS)
def test_one_more_loss_never_saves_and_one_more_win_never_condemns(counts: Counts) -> None:
    here = judge_probation(counts, CRITERIA).standing
    if here is Standing.BAD:
        worse = replace(counts, only_old=counts.only_old + 1)
        assert judge_probation(worse, CRITERIA).standing is Standing.BAD
    else:
        better = replace(counts, only_new=counts.only_new + 1)
        assert judge_probation(better, CRITERIA).standing is not Standing.BAD


@given(COUNTS)
def test_only_faults_and_the_comparison_condemn(counts: Counts) -> None:
    alike = replace(counts, faults=0, only_old=min(counts.only_old, counts.only_new))
    assert judge_probation(alike, CRITERIA).standing is not Standing.BAD


@given(COUNTS)
def test_an_idle_line_changes_nothing(counts: Counts) -> None:
    assert judge_probation(counts, CRITERIA) == judge_probation(replace(counts), CRITERIA)


def _simulate(p: list[float], *, trials: int, frames: int, seed: int) -> tuple[float, float, float]:
    """Shares of BAD and of drift alarms, and the median number of labelled frames until BAD.

    `p`: chances of both right, only new, only old, both wrong. Judged every ten labelled frames, as health would.
    """
    draws = np.random.default_rng(seed).multinomial(10, p, size=(trials, frames // 10)).cumsum(axis=1)
    bad, drift, delays = 0, 0, []
    for trial in draws.tolist():
        alarmed = False
        for number, (both_right, only_new, only_old, both_wrong) in enumerate(trial, start=1):
            counts = Counts(
                frames=number * 10,
                done=number * 10,
                right=both_right + only_new,
                wrong=only_old + both_wrong,
                both_right=both_right,
                only_new=only_new,
                only_old=only_old,
                both_wrong=both_wrong,
            )
            verdict = judge_probation(counts, CRITERIA)
            alarmed = alarmed or bool(verdict.drift)
            if verdict.standing is Standing.BAD:
                bad += 1
                delays.append(number * 10)
                break
        drift += alarmed
    return bad / trials, drift / trials, float(np.median(delays)) if delays else float("inf")


def test_an_equal_model_on_normal_input_is_left_alone() -> None:
    bad, drift, _ = _simulate([0.86, 0.04, 0.04, 0.06], trials=800, frames=1000, seed=1)
    assert bad + drift <= 0.01 + 3 * (0.01 * 0.99 / 800) ** 0.5


def test_a_model_that_is_lost_on_the_new_input_is_found_quickly() -> None:
    # as the demo: the camera slipped; 26 % against 95 %
    bad, drift, median = _simulate([0.25, 0.01, 0.70, 0.04], trials=200, frames=300, seed=2)
    assert bad == 1.0
    assert drift <= 0.01
    assert median <= 40


def test_a_loss_of_ten_points_is_found_and_not_called_drift() -> None:
    bad, drift, median = _simulate([0.80, 0.03, 0.13, 0.04], trials=200, frames=1500, seed=3)
    assert bad >= 0.95
    assert drift <= 0.05
    assert median <= 250


def test_an_input_that_hurts_both_alike_alarms_in_nearly_every_case_and_reverts_in_none() -> None:
    bad, drift, _ = _simulate([0.52, 0.06, 0.06, 0.36], trials=400, frames=600, seed=4)
    assert bad <= 0.01
    assert drift >= 0.95
