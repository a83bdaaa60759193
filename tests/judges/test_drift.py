"""The charts: run lengths by simulation, and what they refuse."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from modelagent.judges import drift


def _bernoulli_delays(
    chart: drift.BernoulliChart, p: float, *, trials: int, length: int, seed: int, stable: int = 0
) -> list[int]:
    """Outcomes until the alarm in each trial; `length` when there was none. The same recursion, vectorised.

    Before them come `stable` outcomes at p0; trials that alarm in those are left out.
    """
    generator = np.random.default_rng(seed)
    up, down = math.log(chart.p1 / chart.p0), math.log((1 - chart.p1) / (1 - chart.p0))
    value, first, quiet = np.zeros(trials), np.full(trials, length), np.ones(trials, bool)
    for _ in range(stable):
        value = np.maximum(0.0, value + np.where(generator.random(trials) < chart.p0, up, down))
        quiet &= value < chart.threshold
    for number in range(1, length + 1):
        value = np.maximum(0.0, value + np.where(generator.random(trials) < p, up, down))
        first = np.where((first == length) & (value >= chart.threshold), number, first)
    return [int(item) for item in first[quiet]]


def test_the_chart_is_the_recursion_it_says() -> None:
    chart = drift.BernoulliChart(0.1, 0.2, 7.0)
    value = 0.0
    for yes in np.random.default_rng(0).random(300) < 0.15:
        chart = chart.after(bool(yes))
        value = max(0.0, value + (math.log(2.0) if yes else math.log(0.8 / 0.9)))
    assert chart.value == pytest.approx(value)
    assert chart.count == 300


def test_a_doubled_error_is_found_in_a_median_of_a_hundred_and_seventeen_outcomes() -> None:
    chart = drift.BernoulliChart(0.10, 0.20, 7.0)
    delays = _bernoulli_delays(chart, 0.20, trials=3000, length=2000, seed=1, stable=500)
    assert np.median(delays) == pytest.approx(117, rel=0.1)
    assert np.mean(delays) <= 150  # a chart that starts at zero is the slowest there is


def test_false_alarms_are_as_rare_as_stated() -> None:
    chart = drift.BernoulliChart(0.10, 0.20, 7.0)
    delays = _bernoulli_delays(chart, 0.10, trials=1000, length=2000, seed=2)
    assert 0.01 <= np.mean([delay < 2000 for delay in delays]) <= 0.08


def test_the_threshold_keeps_the_run_length_it_was_asked_for() -> None:
    chart = drift.BernoulliChart(0.10, 0.20, drift.threshold_for(300.0))
    delays = _bernoulli_delays(chart, 0.10, trials=1000, length=20_000, seed=3)
    assert np.mean(delays) >= 300.0
    with pytest.raises(ValueError, match="run length"):
        drift.threshold_for(1.0)


def test_what_is_no_chart_is_refused() -> None:
    with pytest.raises(ValueError, match="p0 < p1"):
        drift.BernoulliChart(0.2, 0.1, 7.0)


def test_a_baseline_needs_a_hundred_values_that_differ() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        drift.freeze([1.0, 2.0] * 49)
    with pytest.raises(ValueError, match="the same"):
        drift.freeze([1.0] * 100)
    frozen = drift.freeze([1.0, 3.0] * 50)
    assert (frozen.mean, frozen.count) == (2.0, 100)
    assert frozen.deviation == pytest.approx(np.std([1.0, 3.0] * 50, ddof=1))


def _run_lengths(threshold: float, shift: float, *, trials: int, length: int, seed: int) -> npt.NDArray[np.int64]:
    values = np.random.default_rng(seed).normal(shift, 1.0, size=(length, trials))
    high, low, first = np.zeros(trials), np.zeros(trials), np.full(trials, length)
    for number, row in enumerate(values, start=1):
        high, low = np.maximum(0.0, high + row - 0.5), np.maximum(0.0, low - row - 0.5)
        first = np.where((first == length) & (np.maximum(high, low) >= threshold), number, first)
    return first


def test_the_textbook_threshold_alarms_every_465_values_and_the_formula_knows() -> None:
    assert drift.run_length(0.5, 5.0) == pytest.approx(465, rel=0.02)
    assert np.mean(_run_lengths(5.0, 0.0, trials=1500, length=5000, seed=4)) == pytest.approx(465, rel=0.1)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_the_delay_is_as_stated(shift: float) -> None:
    simulated = np.mean(_run_lengths(8.0, shift, trials=1500, length=3000, seed=5))
    assert drift.run_length(0.5, 8.0, shift) == pytest.approx(simulated, rel=0.12)


def test_with_a_frozen_baseline_a_stable_stream_alarms_rarely() -> None:
    generator = np.random.default_rng(6)
    alarms = 0
    for _ in range(60):
        chart = drift.Chart(drift.freeze(generator.normal(3.0, 2.0, 100).tolist()), threshold=12.0)
        for value in generator.normal(3.0, 2.0, 2000):
            chart = chart.after(float(value))
            if chart.alarm:
                alarms += 1
                break
    assert alarms <= 6  # 2 % expected; 6 of 60 has a chance below one in a thousand


def test_the_direction_is_told() -> None:
    baseline = drift.Baseline(0.0, 1.0, 100)
    up = down = drift.Chart(baseline)
    for _ in range(30):
        up, down = up.after(1.0), down.after(-1.0)
    assert (up.alarm, down.alarm, drift.Chart(baseline).alarm) == ("higher", "lower", "")
    assert up.high == down.low
