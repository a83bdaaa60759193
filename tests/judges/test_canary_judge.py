"""The canary's judge on made-up evidence: gates, their order, their words."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.judges.canary import CanaryEvidence, ModelRun, Problem, Sample, judge_canary
from modelagent.manifest import Canary, Limits

LIMITS = Limits(latency_ms=10.0, latency_ratio=2.0, memory_mb=100.0, load_s=5.0)


def criteria(n: int, *, margin: float = 0.05, floor: float = 0.5) -> Canary:
    return Canary(metric="accuracy", margin=margin, confidence=0.95, floor=floor, samples=n)


def model(right: list[bool], *, us: float = 1000.0, version: str = "2") -> ModelRun:
    samples = tuple(
        Sample(index, us + index % 7, True, 1 if good else 0, 1, 0.9, 0.9) for index, good in enumerate(right)
    )
    return ModelRun(version, version, samples, has_labels=True, load_ms=5.0, warmup_ms=1.0, peak_kb=50_000)


def evidence(new: list[bool], old: list[bool] | None, *, run: int = 1) -> CanaryEvidence:
    baseline = None if old is None else model(old, version="1")
    return CanaryEvidence(model(new), baseline, run=run, at=5000.0, alone="" if baseline else "nothing runs")


def paired(n: int, both: int, only_new: int, only_old: int) -> tuple[list[bool], list[bool]]:
    neither = n - both - only_new - only_old
    new = [True] * both + [True] * only_new + [False] * only_old + [False] * neither
    old = [True] * both + [False] * only_new + [True] * only_old + [False] * neither
    return new, old


def test_pass_fail_and_insufficient_in_words_of_numbers() -> None:
    good = judge_canary(evidence(*paired(300, 270, 8, 6)), criteria(300), LIMITS)
    assert good.outcome is Outcome.PASS
    assert good.reason.startswith("92.7 % against 92.0 % on the same 300 samples; between ")
    worse = judge_canary(evidence(*paired(300, 240, 2, 40)), criteria(300), LIMITS)
    assert worse.outcome is Outcome.FAIL
    assert not worse.hard
    assert "80.7 % against 93.3 %" in worse.reason
    assert "points lower, allowed 5.0" in worse.reason
    unclear = judge_canary(evidence(*paired(60, 50, 3, 4)), criteria(60), LIMITS)
    assert unclear.outcome is Outcome.INSUFFICIENT
    assert "about 400 samples would decide it" in unclear.reason
    assert "60 support" in unclear.reason


def test_the_words_give_shares_interval_and_what_was_allowed() -> None:
    verdict = judge_canary(evidence(*paired(300, 258, 4, 21)), criteria(300), LIMITS)
    words = "87.3 % against 93.0 % on the same 300 samples; between 3.1 and 8.7 points lower, allowed 5.0"
    assert verdict.reason.startswith(words)
    assert verdict.outcome is Outcome.INSUFFICIENT  # the limit lies inside the interval


def test_the_floor_comes_before_the_comparison() -> None:
    new, old = paired(100, 30, 10, 0)
    verdict = judge_canary(evidence(new, old), criteria(100), LIMITS)
    assert (verdict.outcome, verdict.evidence["gate"]) == (Outcome.FAIL, "floor")
    assert "40.0 % right on 100 samples, the floor is 50.0 %" in verdict.reason


def test_alone_only_the_absolute_gates_speak() -> None:
    verdict = judge_canary(evidence([True] * 60, None), criteria(60), LIMITS)
    assert verdict.outcome is Outcome.PASS
    assert verdict.reason.endswith("compared with nothing: nothing runs")


def test_without_labels_nothing_is_compared_and_it_says_so() -> None:
    blind = ModelRun("2", "2", tuple(Sample(i, 1000.0, True, 1, None, 0.9, 0.9) for i in range(50)))
    verdict = judge_canary(CanaryEvidence(blind, blind, 1, 0.0), criteria(50), LIMITS)
    assert verdict.outcome is Outcome.PASS
    assert "no labels" in verdict.reason


def test_nan_is_hard() -> None:
    found = evidence(*paired(50, 50, 0, 0))
    samples = (*found.candidate.samples[:49], replace(found.candidate.samples[49], finite=False, prediction=None))
    verdict = judge_canary(replace(found, candidate=replace(found.candidate, samples=samples)), criteria(50), LIMITS)
    assert (verdict.outcome, verdict.hard, verdict.evidence["gate"]) == (Outcome.FAIL, True, "finite")


@pytest.mark.parametrize(
    ("code", "hard"),
    [("crash", True), ("hang", True), ("not-finite", True), ("memory", True), ("contract", False), ("load", False)],
)
def test_a_problem_decides_at_once(code: str, hard: bool) -> None:
    run = ModelRun("2", "2", problem=Problem(code, "it did this", "loading"))
    verdict = judge_canary(CanaryEvidence(run, None, 1, 0.0), criteria(50), LIMITS)
    assert (verdict.outcome, verdict.hard, verdict.reason) == (Outcome.FAIL, hard, "it did this")


def test_slow_is_again_twice_with_growing_waits_then_failed() -> None:
    found = evidence(*paired(200, 195, 2, 2))
    slow = replace(found, candidate=model([True] * 200, us=4000.0))
    verdicts = [judge_canary(replace(slow, run=run), criteria(200), LIMITS) for run in (1, 2, 3)]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.AGAIN, Outcome.AGAIN, Outcome.FAIL]
    assert [verdict.retry_at for verdict in verdicts] == [5600.0, 6200.0, 0.0]
    assert "p50 of one inference is 4.00 ms against 1.00 ms, 4.0 times; allowed 2.0 times" in verdicts[2].reason
    assert not verdicts[2].hard


def test_a_few_slow_samples_are_the_scheduler_and_not_the_model() -> None:
    found = evidence(*paired(200, 200, 0, 0))
    samples = tuple(replace(s, us=9000.0) if s.index % 25 == 0 else s for s in found.candidate.samples)
    verdict = judge_canary(replace(found, candidate=replace(found.candidate, samples=samples)), criteria(200), LIMITS)
    assert verdict.outcome is Outcome.PASS


def test_three_times_nothing_is_nothing() -> None:
    found = evidence(*paired(200, 200, 0, 0))
    quick = replace(found, candidate=model([True] * 200, us=60.0), baseline=model([True] * 200, us=20.0))
    assert judge_canary(quick, criteria(200), LIMITS).outcome is Outcome.PASS


def test_absolute_latency_load_time_and_memory_are_promises_too() -> None:
    found = evidence([True] * 200, None)
    late = replace(found, candidate=model([True] * 200, us=12_000.0))
    assert judge_canary(late, criteria(200), LIMITS).evidence["gate"] == "latency"
    lazy = replace(found, candidate=replace(found.candidate, load_ms=6000.0))
    assert judge_canary(lazy, criteria(200), LIMITS).evidence["gate"] == "load-time"
    fat = judge_canary(replace(late, candidate=replace(late.candidate, peak_kb=150 * 1024)), criteria(200), LIMITS)
    assert (fat.outcome, fat.evidence["gate"], fat.hard) == (Outcome.FAIL, "memory", False)
    assert "150 MB, promised is 100 MB" in fat.reason


def test_an_insufficient_set_is_not_run_again_for_its_latency() -> None:
    found = evidence(*paired(60, 50, 3, 4))
    slow = replace(found, candidate=replace(found.candidate, load_ms=6000.0))
    assert judge_canary(slow, criteria(60), LIMITS).outcome is Outcome.INSUFFICIENT


def test_workers_that_read_different_labels_are_not_believed() -> None:
    found = evidence(*paired(50, 50, 0, 0))
    assert found.baseline is not None
    other = tuple(replace(s, label=2) if s.index == 7 else s for s in found.baseline.samples)
    verdict = judge_canary(replace(found, baseline=replace(found.baseline, samples=other)), criteria(50), LIMITS)
    assert (verdict.outcome, verdict.hard) == (Outcome.FAIL, True)
    assert "number 7" in verdict.reason


def test_fewer_samples_than_promised_are_refused() -> None:
    verdict = judge_canary(evidence([True] * 10, None), criteria(300), LIMITS)
    assert verdict.reason == "the sample set holds 10 samples, its manifest promises 300"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 200), st.randoms())
def test_the_order_of_the_samples_does_not_matter(only_new: int, only_old: int, n: int, random: object) -> None:
    new, old = paired(n, n - only_new - only_old, only_new, only_old)
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = judge_canary(evidence(new, old), criteria(n), LIMITS)
    other = judge_canary(evidence([new[i] for i in order], [old[i] for i in order]), criteria(n), LIMITS)
    assert (one.outcome, one.reason) == (other.outcome, other.reason)


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0.01, 0.2), st.floats(0.0, 0.1))
def test_a_wider_margin_never_turns_a_pass_away(only_new: int, only_old: int, margin: float, more: float) -> None:
    found = evidence(*paired(120, 120 - only_new - only_old, only_new, only_old))
    order = {Outcome.FAIL: 0, Outcome.INSUFFICIENT: 1, Outcome.PASS: 2}
    narrow = judge_canary(found, criteria(120, margin=margin), LIMITS).outcome
    wide = judge_canary(found, criteria(120, margin=margin + more), LIMITS).outcome
    assert order[wide] >= order[narrow]


def scored(
    metric: str, values: Sequence[tuple[float, ...]], labels: Sequence[int | None], version: str = "2"
) -> ModelRun:
    samples = tuple(
        Sample(index, 1000.0, True, label, label, 0.9, 0.9, numbers)
        for index, (numbers, label) in enumerate(zip(values, labels, strict=True))
    )
    return ModelRun(version, version, samples, has_labels=metric != "agreement", load_ms=5.0, peak_kb=50_000)


def test_an_error_is_judged_in_its_own_unit() -> None:
    wanted = Canary(metric="mae", margin=0.05, confidence=0.95, floor=1.0, samples=100)
    old = scored("mae", [(0.40 + 0.001 * (k % 7),) for k in range(100)], [None] * 100, "1")

    def judge(error: float) -> CanaryVerdict:
        new = scored("mae", [(error + 0.001 * (k % 5),) for k in range(100)], [None] * 100)
        return judge_canary(CanaryEvidence(new, old, run=1, at=0.0), wanted, LIMITS)

    good, worse, broken = judge(0.41), judge(0.50), judge(1.50)
    assert good.outcome is Outcome.PASS
    assert good.reason.startswith("mean absolute error 0.412 against 0.403 on the same 100 samples; between ")
    assert (worse.outcome, worse.evidence["gate"]) == (Outcome.FAIL, "not-worse")
    assert "more, allowed 0.05" in worse.reason
    assert (broken.outcome, broken.evidence["gate"]) == (Outcome.FAIL, "floor")
    assert "at most 1 is allowed" in broken.reason


def test_too_few_samples_for_the_bootstrap_are_insufficient_whatever_they_say() -> None:
    wanted = Canary(metric="f1", margin=0.5, confidence=0.95, floor=0.0, samples=20)
    run = scored("f1", [()] * 20, [k % 2 for k in range(20)])
    verdict = judge_canary(CanaryEvidence(run, run, run=1, at=0.0), wanted, LIMITS)
    assert verdict.outcome is Outcome.INSUFFICIENT
    assert "at least 50 are needed" in verdict.reason


def test_a_class_that_is_lost_fails_though_the_whole_looks_well() -> None:
    wanted = replace(criteria(300, margin=0.2), class_floors={"*": 0.5, "1": 0.9})

    def judge(right_of_class_1: int) -> CanaryVerdict:
        labels = [0] * 270 + [1] * 30
        said = [0] * 270 + [1] * right_of_class_1 + [0] * (30 - right_of_class_1)
        samples = tuple(
            Sample(k, 1000.0, True, mine, label, 0.9, 0.9)
            for k, (mine, label) in enumerate(zip(said, labels, strict=True))
        )
        run = ModelRun("2", "2", samples, has_labels=True, load_ms=5.0, peak_kb=50_000)
        return judge_canary(CanaryEvidence(run, None, run=1, at=0.0, alone="alone"), wanted, LIMITS)

    lost = judge(15)
    assert (lost.outcome, lost.evidence["gate"]) == (Outcome.FAIL, "class-floor")
    assert "class 1: 15 of 30 right" in lost.reason
    assert judge(25).outcome is Outcome.PASS, "25 of 30 may well be 90 % of all"


def test_outputs_are_held_against_the_reference_where_nobody_knows_the_truth() -> None:
    wanted = Canary(metric="agreement", margin=0.05, confidence=0.95, floor=0.95, samples=400)

    def judge(same: int) -> CanaryVerdict:
        run = scored("agreement", [(1.0, 0.01)] * same + [(0.0, 0.7)] * (400 - same), [None] * 400)
        return judge_canary(CanaryEvidence(run, run, run=1, at=0.0), wanted, LIMITS)

    assert judge(396).outcome is Outcome.PASS
    assert "396 of 400 outputs agree with the reference" in judge(396).reason
    assert judge(383).outcome is Outcome.INSUFFICIENT
    assert (judge(370).outcome, judge(370).evidence["gate"]) == (Outcome.FAIL, "floor")
