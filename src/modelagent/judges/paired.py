"""Two models, the same samples: how far apart are they, and how many samples does it take to tell?

This file knows the statistics of paired right/wrong answers. It does not know models, manifests or verdicts.

    tango_lower(b=4, c=9, n=300, confidence=0.95)    # -0.037: the new model loses at most 3.7 points
    sample_size(margin=0.05, discordance=0.10, alpha=0.05, power=0.90)    # 343 samples

Throughout: `b` samples that only the new model has right, `c` that only the old one has, `n` samples in all. The
samples that both have right or wrong carry no information about the difference, except that there are many of them.
"""

import math


def normal_quantile(p: float) -> float:
    """The standard normal's quantile at 0 < p < 1, to about 1e-14: Newton's method on the error function."""
    if not 0.0 < p < 1.0:
        raise ValueError(f"a probability strictly between 0 and 1 is needed, not {p}")
    if p > 0.5:
        return -normal_quantile(1.0 - p)
    # From the far left Newton's method on a convex function would overshoot; start from the tail's leading term.
    x = -math.sqrt(-2.0 * math.log(2.0 * p)) if p < 0.5 else 0.0
    for _ in range(60):
        density = math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
        error = 0.5 * math.erfc(-x / math.sqrt(2.0)) - p
        # Halley's correction by the curvature, f''/f' = -x, keeps the steps safe in the tail.
        step = error / density
        x -= step / (1.0 + 0.5 * x * step)
        if abs(step) < 1e-15 * max(1.0, abs(x)):
            break
    return x


def tango_lower(b: int, c: int, n: int, confidence: float) -> float:
    """One-sided lower confidence bound of (accuracy of the new - accuracy of the old), paired.

    The score interval of Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998) 891-908: invert the score test, whose variance is taken
    under the difference being tested. Defined for b = c = 0, where a Wald interval has no width.

    Args:
        b: samples that only the new model has right.
        c: samples that only the old model has right.
        n: all samples.
        confidence: one-sided, for instance 0.95.

    Returns:
        A difference from -1 to 1; -1 when there are no samples.
    """
    _check(b, c, n)
    if n == 0:
        return -1.0
    z = normal_quantile(confidence)
    return _invert(b, c, n, z)


def tango_upper(b: int, c: int, n: int, confidence: float) -> float:
    """One-sided upper confidence bound of the difference; see `tango_lower`."""
    return 0.0 - tango_lower(c, b, n, confidence)


def tango_statistic(b: int, c: int, n: int, difference: float) -> float:
    """The score statistic for a true `difference`, standard normal when it is the true one.

    Positive when the samples say more than `difference`. At -1 and 1, where the restricted variance vanishes, it is
    infinite unless the samples are just so.
    """
    excess = b - c - n * difference
    variance = n * (2.0 * _restricted(b, c, n, difference) + difference * (1.0 - difference))
    if variance <= 0.0:
        return 0.0 if excess == 0.0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def _restricted(b: int, c: int, n: int, difference: float) -> float:
    """Maximum-likelihood probability of `c` when P(b) - P(c) is held at `difference` (Tango 1998, equation 7)."""
    linear = (2.0 * n - b + c) * difference - b - c
    constant = -c * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8.0 * n * constant))
    # The same root written so that it never subtracts two nearly equal numbers.
    value = (root - linear) / (4.0 * n) if linear <= 0.0 else -2.0 * constant / (linear + root)
    return max(0.0, -difference, value)


def _invert(b: int, c: int, n: int, z: float) -> float:
    low, high = -1.0, (b - c) / n  # the statistic falls from +inf to 0 over this range
    if z <= 0.0:
        low, high = high, 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if tango_statistic(b, c, n, middle) > z:
            low = middle
        else:
            high = middle
    return low


def sample_size(margin: float, discordance: float, alpha: float = 0.05, power: float = 0.90) -> int:
    """Samples needed so that a model that is truly equal passes a margin with the wanted power.

    N = (z_alpha + z_power)^2 * discordance / margin^2 (Lachenbruch and Lynch, Statistics in Medicine 17 (1998)
    2207-2217, at a true difference of zero).

    Args:
        margin: allowed loss, a share such as 0.05.
        discordance: share of samples that exactly one of the two models has right.
        alpha: chance that a model just as bad as the margin passes.
        power: chance that an equal model passes.
    """
    if margin <= 0.0:
        raise ValueError(f"a margin above 0 is needed, not {margin}: no finite set proves exact equality")
    if discordance <= 0.0:
        return 1
    z = normal_quantile(1.0 - alpha) + normal_quantile(power)
    return math.ceil(z * z * discordance / (margin * margin))


def supportable_margin(n: int, discordance: float, alpha: float = 0.05, power: float = 0.90) -> float:
    """The smallest margin that `n` samples can support; the inverse of `sample_size`. 1 when there are none."""
    if n <= 0:
        return 1.0
    z = normal_quantile(1.0 - alpha) + normal_quantile(power)
    return min(1.0, z * math.sqrt(max(0.0, discordance) / n))


def quantile_bounds(values: list[float], q: float, confidence: float) -> tuple[float, float]:
    """Distribution-free bounds of a quantile, from order statistics (David and Nagaraja, "Order Statistics", 7.1).

    Args:
        values: at least one number, in any order.
        q: which quantile, for instance 0.95.
        confidence: of each bound by itself.

    Returns:
        Lower and upper bound; the smallest or largest value (which then bounds nothing) where there are too few.
    """
    ordered = sorted(values)
    n = len(ordered)
    # P(X_(k) > quantile) = P(fewer than k of n fall below it): the binomial's distribution function at k - 1.
    below = 0.0
    lower, upper = 0, n - 1
    for k in range(n):
        chance = math.comb(n, k) * q**k * (1.0 - q) ** (n - k) if n <= 500 else _binomial(n, k, q)
        if below <= 1.0 - confidence:
            lower = k  # value number k (from 0) lies above the quantile with at most this chance
        below += chance
        if below >= confidence:
            upper = k
            break
    return ordered[max(0, lower - 1)], ordered[upper]


def _binomial(n: int, k: int, p: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def _check(b: int, c: int, n: int) -> None:
    if b < 0 or c < 0 or b + c > n:
        raise ValueError(f"counts must not be negative and at most n: b={b}, c={c}, n={n}")
