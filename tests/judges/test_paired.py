"""Paired statistics: against oracles, by simulation, and by their symmetries."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from modelagent.judges import paired


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(b, c, n) with b + c <= n."""
    n = draw(st.integers(1, 2000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@given(st.floats(1e-10, 1.0 - 1e-10))
def test_the_normal_quantile_is_scipys(p: float) -> None:
    assert paired.normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-9, abs=1e-12)


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="strictly between"):
        paired.normal_quantile(1.0)


def _restricted_by_search(b: int, c: int, n: int, difference: float) -> float:
    """P(c) at which the trinomial likelihood is largest when P(b) = P(c) + difference: no formula, only a search."""

    def loss(q: float) -> float:
        p = q + difference
        rest = 1.0 - p - q
        terms = [(b, p), (c, q), (n - b - c, rest)]
        if any(k > 0 and share <= 0.0 for k, share in terms):
            return 1e12
        return -sum(k * math.log(share) for k, share in terms if k > 0)

    low, high = max(0.0, -difference), (1.0 - difference) / 2.0
    return float(optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)


@pytest.mark.parametrize(
    ("b", "c", "n"), [(4, 9, 300), (0, 5, 50), (12, 12, 100), (1, 0, 20), (30, 60, 400), (7, 2, 1000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_tangos_bounds_are_where_the_score_test_just_rejects(b: int, c: int, n: int, confidence: float) -> None:
    z = stats.norm.ppf(confidence)

    def score(difference: float) -> float:
        q = _restricted_by_search(b, c, n, difference)
        return (b - c - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))

    low, high = paired.tango_lower(b, c, n, confidence), paired.tango_upper(b, c, n, confidence)
    assert score(low) == pytest.approx(z, abs=1e-4)
    assert score(high) == pytest.approx(-z, abs=1e-4)


@pytest.mark.parametrize("n", [1, 10, 300])
def test_without_discordant_pairs_the_bound_has_a_closed_form(n: int) -> None:
    z = stats.norm.ppf(0.95)
    assert paired.tango_lower(0, 0, n, 0.95) == pytest.approx(-z * z / (n + z * z))


@given(counts(), st.floats(0.5, 0.999))
def test_swapping_the_models_turns_the_interval_round(found: tuple[int, int, int], confidence: float) -> None:
    b, c, n = found
    assert paired.tango_lower(b, c, n, confidence) == pytest.approx(-paired.tango_upper(c, b, n, confidence), abs=1e-12)


@given(counts(), st.floats(0.55, 0.999))
def test_the_interval_holds_the_observed_difference(found: tuple[int, int, int], confidence: float) -> None:
    b, c, n = found
    low, high = paired.tango_lower(b, c, n, confidence), paired.tango_upper(b, c, n, confidence)
    assert -1.0 <= low <= (b - c) / n + 1e-9
    assert (b - c) / n - 1e-9 <= high <= 1.0


@given(counts())
def test_one_more_win_never_lowers_the_bound(found: tuple[int, int, int]) -> None:
    b, c, n = found
    if b + c < n:
        assert paired.tango_lower(b + 1, c, n, 0.95) >= paired.tango_lower(b, c, n, 0.95) - 1e-12
        assert paired.tango_lower(b, c + 1, n, 0.95) <= paired.tango_lower(b, c, n, 0.95) + 1e-12


@given(counts(), st.floats(0.5, 0.99), st.floats(0.0, 0.009))
def test_more_confidence_never_narrows_the_interval(
    found: tuple[int, int, int], confidence: float, more: float
) -> None:
    b, c, n = found
    assert paired.tango_lower(b, c, n, confidence + more) <= paired.tango_lower(b, c, n, confidence) + 1e-12


def test_no_samples_prove_nothing_and_impossible_counts_are_refused() -> None:
    assert paired.tango_lower(0, 0, 0, 0.95) == -1.0
    assert paired.tango_upper(0, 0, 0, 0.95) == 1.0
    with pytest.raises(ValueError, match="b=5, c=6"):
        paired.tango_lower(5, 6, 10, 0.95)


def test_sample_sizes_are_those_of_the_rule() -> None:
    assert [paired.sample_size(0.02, d) for d in (0.04, 0.10)] == [857, 2141]
    assert [paired.sample_size(0.03, d) for d in (0.04, 0.10)] == [381, 952]
    assert [paired.sample_size(0.05, d) for d in (0.04, 0.10)] == [138, 343]
    with pytest.raises(ValueError, match="exact equality"):
        paired.sample_size(0.0, 0.1)
    assert paired.sample_size(0.05, 0.0) == 1
    assert paired.supportable_margin(0, 0.1) == 1.0


@given(st.floats(0.01, 0.2), st.floats(0.01, 0.5))
def test_sample_size_and_margin_are_each_others_inverse(margin: float, discordance: float) -> None:
    n = paired.sample_size(margin, discordance)
    assert paired.supportable_margin(n, discordance) <= margin * (1 + 1e-9)
    assert n <= 1 or paired.supportable_margin(n - 1, discordance) >= margin * (1 - 1e-9)


@pytest.mark.parametrize("n", [100, 300, 700])
@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantile_bounds_cover_as_often_as_they_say(n: int, q: float) -> None:
    draws = np.random.default_rng(n).exponential(size=(1500, n))
    true = stats.expon.ppf(q)
    bounds = [paired.quantile_bounds(list(row), q, 0.95) for row in draws]
    below = np.mean([low <= true for low, _ in bounds])
    above = np.mean([high >= true for _, high in bounds])
    # 1500 trials at 0.95 have a standard error of 0.006; order statistics are coarse, so more is fine.
    assert below >= 0.95 - 3 * 0.006
    assert above >= 0.95 - 3 * 0.006


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80), st.sampled_from([0.5, 0.9, 0.95]))
def test_quantile_bounds_are_ordered_values_whatever_the_order(values: list[float], q: float) -> None:
    low, high = paired.quantile_bounds(values, q, 0.95)
    assert low in values
    assert high in values
    assert low <= high
    assert paired.quantile_bounds(values[::-1], q, 0.95) == (low, high)


# -- operating characteristics: the table in the docs and the aims --------------------------------------------

TRIALS = 4000


def _pass_rate(n: int, margin: float, discordance: float, difference: float, seed: int) -> tuple[float, float]:
    """Shares of trials that pass and that fail, when the new model is `difference` better."""
    p = [(discordance + difference) / 2, (discordance - difference) / 2, 1.0 - discordance]
    draws = np.random.default_rng(seed).multinomial(n, p, size=TRIALS)
    verdicts: dict[tuple[int, int], tuple[bool, bool]] = {}
    passed = failed = 0
    for b, c, _ in draws.tolist():
        if (b, c) not in verdicts:
            low, high = paired.tango_lower(b, c, n, 0.95), paired.tango_upper(b, c, n, 0.95)
            verdicts[b, c] = (low > -margin, high < -margin)
        passed += verdicts[b, c][0]
        failed += verdicts[b, c][1]
    return passed / TRIALS, failed / TRIALS


@pytest.mark.parametrize(
    ("n", "margin", "discordance"),
    [(200, 0.02, 0.10), (300, 0.05, 0.10), (400, 0.05, 0.10), (1000, 0.02, 0.04), (1000, 0.05, 0.10)],
)
def test_a_model_just_at_the_margin_passes_at_most_one_time_in_twenty(
    n: int, margin: float, discordance: float
) -> None:
    passed, _ = _pass_rate(n, margin, discordance, -margin, seed=n)
    # nominal 0.05; the score test's true size for these n lies between 0.044 and 0.053, plus 3 standard errors
    assert passed <= 0.053 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize(
    ("n", "margin", "discordance", "expected"),
    [
        (100, 0.05, 0.10, 0.43),
        (200, 0.02, 0.04, 0.36),
        (300, 0.01, 0.04, 0.20),
        (300, 0.02, 0.10, 0.28),
        (300, 0.05, 0.10, 0.84),
        (500, 0.02, 0.04, 0.68),
        (500, 0.05, 0.10, 0.96),
        (1000, 0.02, 0.10, 0.63),
        (1000, 0.02, 0.04, 0.93),
    ],
)
def test_an_equal_model_passes_as_often_as_the_table_says(
    n: int, margin: float, discordance: float, expected: float
) -> None:
    passed, _ = _pass_rate(n, margin, discordance, 0.0, seed=n + 1)
    assert passed == pytest.approx(expected, abs=0.03)


def test_pass_and_fail_rates_fall_and_rise_with_the_true_loss() -> None:
    rates = [_pass_rate(400, 0.05, 0.12, -loss, seed=9) for loss in (0.0, 0.025, 0.05, 0.10)]
    passed, failed = zip(*rates, strict=True)
    assert list(passed) == sorted(passed, reverse=True)
    assert list(failed) == sorted(failed)
    assert passed[0] > 0.85
    assert 0.30 < passed[1] < 0.60  # half the margin: mostly insufficient, which keeps the running model
    assert failed[0] < 0.001
    assert failed[3] > 0.80
    assert passed[3] < 0.001
