"""The canary's judge: is the candidate, on this device and on the signed samples, not worse than what runs?

This file knows the gates, their order and their numbers. It does not know how the evidence was gathered.

    verdict = judge_canary(evidence, manifest.canary, manifest.limits)
    verdict.outcome     # PASS, FAIL, INSUFFICIENT or AGAIN
    verdict.reason      # "87.3 % against 93.1 % on the same 300 samples; between 3.1 and 8.4 points lower, allowed 5.0"

The gates, in order: loads, contract, finite, floor, class floors, not worse (paired non-inferiority) or agreement with
reference outputs, latency, memory, unload. The first gate that fails decides; what the others say is reported beside
it. "Not worse" is never "no significant difference", which little data always gives: the candidate passes when the
lower confidence bound of the paired difference lies above -margin, fails when the upper bound lies below it, and is
insufficient in between (shares of right answers: Tango 1998, see `paired.py`; other metrics: the paired bootstrap of
`metrics.py`). The floor is compared with the observed value: the samples are the release's own definition of it, not
a sample of something else. A class has few samples, so its floor is broken only when the upper bound of its recall
lies below it, at a confidence that is shared between the classes. Latency depends on what else the device does, so it
stays a suspicion until three runs agree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.judges.metrics import (
    LEAST_SAMPLES,
    NAMES,
    Scored,
    complete,
    difference,
    is_right,
    is_share,
    lower_is_better,
    measure,
    upper_share,
    wilson,
)
from modelagent.judges.paired import (
    quantile_bounds,
    sample_size,
    supportable_margin,
    tango_lower,
    tango_upper,
)
from modelagent.manifest import Canary, Limits

MAX_RUNS: Final = 3  # latency: a suspicion in each of so many runs at separate times is a failure
FIRST_WAIT: Final = 600.0  # seconds until the second run; doubled for the third
NOTICEABLE_US: Final = 200.0  # a slowdown of less than this is below the scheduler's noise, whatever the ratio
LATENCY_CONFIDENCE: Final = 0.95
HARD: Final = frozenset({"crash", "hang", "not-finite", "memory", "inconsistent"})


@dataclass(frozen=True, slots=True)
class Sample:
    """What one model said of one sample. `prediction` None: no class. `values`: see `metrics.Scored`."""

    index: int
    us: float
    finite: bool
    prediction: int | None
    label: int | None
    score: float
    confidence: float
    values: tuple[float, ...] = ()

    @property
    def scored(self) -> Scored:
        """As a metric takes it."""
        return Scored(self.label, self.prediction, self.values)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a model's run ended early.

    `code`: hash, contract, load, warmup, not-finite, memory, canary, invoke, crash, hang, inconsistent; `doing` says
    during what.
    """

    code: str
    reason: str
    doing: str = ""


@dataclass(frozen=True, slots=True)
class ModelRun:
    """Everything one worker showed of one model."""

    digest: str
    version: str
    samples: tuple[Sample, ...] = ()
    has_labels: bool = False
    load_ms: float = 0.0
    warmup_ms: float = 0.0
    peak_kb: int = 0
    runtime: str = ""
    delegate: str = ""
    cage: str = ""  # what the kernel said held the worker
    problem: Problem | None = None

    def scored(self, metric: str) -> list[Scored]:
        """The samples as the metric takes them; none when they lack what it needs."""
        found = [sample.scored for sample in self.samples]
        return found if complete(metric, found) else []


@dataclass(frozen=True, slots=True)
class CanaryEvidence:
    """One run of the canary.

    `baseline` None: there is nothing to compare with, and `alone` says why. `run` counts from 1, `at` is Unix seconds.
    """

    candidate: ModelRun
    baseline: ModelRun | None
    run: int
    at: float
    alone: str = ""


@dataclass(frozen=True, slots=True)
class _Gate:
    name: str
    outcome: Outcome
    text: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    hard: bool = False


def judge_canary(evidence: CanaryEvidence, criteria: Canary, limits: Limits) -> CanaryVerdict:
    """Judge one run.

    Args:
        evidence: what both workers showed.
        criteria: the candidate's manifest: metric, margin, confidence, floor, samples.
        limits: the candidate's manifest: latency, memory, load time.

    Returns:
        The verdict; `evidence` holds every gate with its numbers, as plain JSON data.
    """
    problem = _problem(evidence.candidate)
    if problem is not None:
        gates: Sequence[_Gate] = [problem]
    else:
        gates = [
            _loads(evidence.candidate),
            _finite(evidence.candidate),
            *_complete(evidence, criteria),
            *_floor(evidence.candidate, criteria),
            *_not_worse(evidence, criteria),
            *_latency(evidence, limits),
            _memory(evidence.candidate, limits),
        ]
    deciding = _deciding(gates)
    outcome = deciding.outcome if deciding is not None else Outcome.PASS
    reason = deciding.text if deciding is not None else _praise(gates, evidence)
    return CanaryVerdict(
        outcome=outcome,
        reason=reason,
        hard=deciding is not None and deciding.hard and outcome is Outcome.FAIL,
        retry_at=evidence.at + FIRST_WAIT * 2 ** (evidence.run - 1) if outcome is Outcome.AGAIN else 0.0,
        peak_kb=evidence.candidate.peak_kb,
        evidence={
            "gate": deciding.name if deciding is not None else "",
            "run": evidence.run,
            "at": evidence.at,
            "alone": evidence.alone,
            "candidate": _summary(evidence.candidate, criteria),
            "baseline": None if evidence.baseline is None else _summary(evidence.baseline, criteria),
            "gates": [
                {"gate": gate.name, "outcome": gate.outcome.value, "text": gate.text, **gate.numbers} for gate in gates
            ],
        },
    )


def _deciding(gates: Sequence[_Gate]) -> _Gate | None:
    """The first failure; else the first that is insufficient; else the first that wants another run."""
    for outcome in (Outcome.FAIL, Outcome.INSUFFICIENT, Outcome.AGAIN):
        for gate in gates:
            if gate.outcome is outcome:
                return gate
    return None


def _problem(run: ModelRun) -> _Gate | None:
    if run.problem is None:
        return None
    name = {"contract": "contract", "not-finite": "finite", "memory": "memory", "canary": "samples"}.get(
        run.problem.code, "loads" if run.problem.doing in ("", "loading") else run.problem.doing
    )
    numbers = {"code": run.problem.code, "doing": run.problem.doing}
    return _Gate(name, Outcome.FAIL, run.problem.reason, numbers, hard=run.problem.code in HARD)


def _loads(run: ModelRun) -> _Gate:
    numbers = {"load_ms": run.load_ms, "warmup_ms": run.warmup_ms}
    return _Gate("loads", Outcome.PASS, f"loaded in {run.load_ms + run.warmup_ms:.0f} ms", numbers)


def _finite(run: ModelRun) -> _Gate:
    bad = [sample.index for sample in run.samples if not sample.finite]
    if bad:
        text = f"NaN or infinite output on {len(bad)} of {len(run.samples)} samples, the first is number {bad[0]}"
        return _Gate("finite", Outcome.FAIL, text, {"not_finite": len(bad), "first": bad[0]}, hard=True)
    return _Gate("finite", Outcome.PASS, f"finite on all {len(run.samples)} samples")


def _complete(evidence: CanaryEvidence, criteria: Canary) -> list[_Gate]:
    """Both models must have seen the samples that the manifest promises, with the same labels."""
    found = len(evidence.candidate.samples)
    if found != criteria.samples:
        text = f"the sample set holds {found} samples, its manifest promises {criteria.samples}"
        return [_Gate("samples", Outcome.FAIL, text, {"found": found, "promised": criteria.samples})]
    if evidence.baseline is None:
        return []
    pairs = zip(evidence.candidate.samples, evidence.baseline.samples, strict=False)
    disagree = [new.index for new, old in pairs if (new.index, new.label) != (old.index, old.label)]
    if disagree or len(evidence.baseline.samples) != found:
        text = "the two workers read different samples or labels from the same signed file, so one of them lies" + (
            f"; the first is number {disagree[0]}" if disagree else ""
        )
        return [_Gate("samples", Outcome.FAIL, text, {"code": "inconsistent"}, hard=True)]
    return []


def _floor(run: ModelRun, criteria: Canary) -> list[_Gate]:
    scored = run.scored(criteria.metric)
    if not scored:
        return []
    n, value = len(scored), measure(criteria.metric, scored)
    key = criteria.metric if criteria.metric != "agreement" else "share"
    numbers: dict[str, object] = {key: _plain(value), "floor": criteria.floor, "n": n}
    if lower_is_better(criteria.metric):
        text = f"{NAMES[criteria.metric]} {value:.4g} on {n} samples, at most {criteria.floor:.4g} is allowed"
        broken = value > criteria.floor
    else:
        what = "right" if criteria.metric == "accuracy" else f"({_name(criteria.metric)})"
        text = f"{_percent(value)} {what} on {n} samples, the floor is {_percent(criteria.floor)}"
        broken = not value >= criteria.floor  # so that NaN breaks it
    gates = [_Gate("floor", Outcome.FAIL if broken else Outcome.PASS, text, numbers)]
    if criteria.metric == "agreement":
        gates.append(_agreement(scored, criteria))
    return gates + _class_floors(run, criteria)


def _agreement(scored: Sequence[Scored], criteria: Canary) -> _Gate:
    """Outputs against those of the reference, where nobody knows the truth."""
    n = len(scored)
    same = sum(is_right("agreement", sample) for sample in scored)
    low, _ = wilson(same, n, criteria.confidence)
    worst = max((sample.values[1] for sample in scored if len(sample.values) > 1), default=0.0)
    text = (
        f"{same} of {n} outputs agree with the reference, at least {_percent(low)} of all would; wanted are "
        f"{_percent(criteria.floor)}; the largest difference is {worst:.3g}"
    )
    numbers: dict[str, object] = {"same": same, "n": n, "lower": low, "wanted": criteria.floor, "worst": worst}
    return _Gate("agreement", Outcome.PASS if low >= criteria.floor else Outcome.INSUFFICIENT, text, numbers)


def _class_floors(run: ModelRun, criteria: Canary) -> list[_Gate]:
    """Recall of each class that has a floor."""
    if not criteria.class_floors:
        return []
    tallies: dict[int, list[int]] = {}
    for sample in run.samples:
        if sample.label is not None:
            tally = tallies.setdefault(sample.label, [0, 0])
            tally[0] += sample.scored.right
            tally[1] += 1
    floors = {
        name: floor
        for name in tallies
        if (floor := criteria.class_floors.get(str(name), criteria.class_floors.get("*"))) is not None
    }
    gates = []
    for name, floor in sorted(floors.items()):
        right, n = tallies[name]
        # Each class may break its floor by chance: one budget for all of them (Bonferroni).
        most = upper_share(right, n, 1.0 - (1.0 - criteria.confidence) / len(floors))
        text = f"class {name}: {right} of {n} right, so at most {_percent(most)}; its floor is {_percent(floor)}"
        numbers: dict[str, object] = {"class": name, "right": right, "n": n, "upper": most, "floor": floor}
        gates.append(_Gate("class-floor", Outcome.FAIL if most < floor else Outcome.PASS, text, numbers))
    return gates


def _not_worse(evidence: CanaryEvidence, criteria: Canary) -> list[_Gate]:
    if evidence.baseline is None or criteria.metric == "agreement":
        return []
    new = evidence.candidate.scored(criteria.metric)
    old = evidence.baseline.scored(criteria.metric)
    if not new or len(new) != len(old):
        return []
    if is_share(criteria.metric):
        return [_compare_shares(new, old, criteria)]
    return [_compare_values(new, old, criteria, evidence.candidate.digest)]


def _compare_shares(new: Sequence[Scored], old: Sequence[Scored], criteria: Canary) -> _Gate:
    n, metric = len(new), criteria.metric
    pairs = [(is_right(metric, ours), is_right(metric, theirs)) for ours, theirs in zip(new, old, strict=True)]
    b = sum(ours and not theirs for ours, theirs in pairs)
    c = sum(theirs and not ours for ours, theirs in pairs)
    low = tango_lower(b, c, n, criteria.confidence)
    high = tango_upper(b, c, n, criteria.confidence)
    mine, other = sum(ours for ours, _ in pairs) / n, sum(theirs for _, theirs in pairs) / n
    prefix = "" if metric == "accuracy" else f"{_name(metric)}: "
    text = (
        f"{prefix}{_percent(mine)} against {_percent(other)} on the same {n} samples; {_between(low, high)}, "
        f"allowed {criteria.margin * 100:.1f}"
    )
    numbers: dict[str, object] = {
        "n": n,
        "metric": metric,
        "only_new": b,
        "only_old": c,
        f"{metric}_new": mine,
        f"{metric}_old": other,
        "lower": low,
        "upper": high,
        "margin": criteria.margin,
        "confidence": criteria.confidence,
    }
    return _judged((low, high), criteria.margin, text, _missing(b, c, n, criteria), numbers)


def _compare_values(new: Sequence[Scored], old: Sequence[Scored], criteria: Canary, seed: str) -> _Gate:
    n, metric = len(new), criteria.metric
    found = difference(metric, new, old, confidence=criteria.confidence, seed=seed)
    if lower_is_better(metric):
        text = (
            f"{NAMES[metric]} {found.new:.4g} against {found.old:.4g} on the same {n} samples; "
            f"{_between_errors(found.low, found.high)}, allowed {criteria.margin:.4g}"
        )
    else:
        text = (
            f"{_name(metric)}: {_percent(found.new)} against {_percent(found.old)} on the same {n} samples; "
            f"{_between(found.low, found.high)}, allowed {criteria.margin * 100:.1f}"
        )
    numbers: dict[str, object] = {
        "n": n,
        "metric": metric,
        f"{metric}_new": _plain(found.new),
        f"{metric}_old": _plain(found.old),
        "lower": _plain(found.low),
        "upper": _plain(found.high),
        "margin": criteria.margin,
        "confidence": criteria.confidence,
        "resamples": found.resamples,
        "seed": seed,
    }
    if n < LEAST_SAMPLES:
        few = f": {n} samples are too few for this metric's bounds, at least {LEAST_SAMPLES} are needed"
        return _Gate("not-worse", Outcome.INSUFFICIENT, text + few, numbers)
    missing = ": neither shown to keep the limit nor to break it; more samples would decide it"
    return _judged((found.low, found.high), criteria.margin, text, missing, numbers)


def _judged(
    bounds: tuple[float, float], margin: float, text: str, missing: str, numbers: Mapping[str, object]
) -> _Gate:
    low, high = bounds
    if low > -margin:
        return _Gate("not-worse", Outcome.PASS, text, numbers)
    if high < -margin:
        return _Gate("not-worse", Outcome.FAIL, text, numbers)
    return _Gate("not-worse", Outcome.INSUFFICIENT, text + missing, numbers)


def _missing(b: int, c: int, n: int, criteria: Canary) -> str:
    """What would have made the set sufficient, from the discordance that was seen."""
    alpha = 1.0 - criteria.confidence
    discordance = max(b + c, 1) / n
    margin = supportable_margin(n, discordance, alpha)
    wanted = sample_size(criteria.margin, discordance, alpha) if criteria.margin > 0.0 else 0
    more = f"about {wanted} samples would decide it" if wanted > n else "the two are too close to that limit"
    return f": neither shown to keep the limit nor to break it ({more}; {n} support {margin * 100:.1f} points)"


def _latency(evidence: CanaryEvidence, limits: Limits) -> list[_Gate]:
    new, old = evidence.candidate, evidence.baseline
    gates = []
    took_s = (new.load_ms + new.warmup_ms) / 1e3
    numbers: dict[str, object] = {"load_s": took_s, "limit_s": limits.load_s}
    text = f"loading and warming up took {took_s:.2f} s, promised is {limits.load_s:.2f} s"
    gates.append(_suspect("load-time", evidence.run, text, numbers, bad=took_s > limits.load_s))
    if not new.samples:
        return gates
    ours = [sample.us for sample in new.samples]
    least, _ = quantile_bounds(ours, 0.95, LATENCY_CONFIDENCE)
    numbers = {"p95_us": _quantile(ours, 0.95), "p95_lower_us": least, "limit_ms": limits.latency_ms}
    text = f"p95 of one inference is {_time(_quantile(ours, 0.95))}, promised is {limits.latency_ms:.2f} ms"
    gates.append(_suspect("latency", evidence.run, text, numbers, bad=least > limits.latency_ms * 1e3))
    if old is None or not old.samples:
        return gates
    theirs = [sample.us for sample in old.samples]
    for name, q in (("latency-p50", 0.50), ("latency-p95", 0.95)):
        mine, other = _quantile(ours, q), _quantile(theirs, q)
        # Slower only if that is so at the ends of both intervals that speak for the candidate.
        least, _ = quantile_bounds(ours, q, LATENCY_CONFIDENCE)
        _, most = quantile_bounds(theirs, q, LATENCY_CONFIDENCE)
        slower = least > limits.latency_ratio * most and least - most > NOTICEABLE_US
        text = (
            f"p{q * 100:.0f} of one inference is {_time(mine)} against {_time(other)}, "
            f"{mine / max(other, 1e-9):.1f} times; allowed {limits.latency_ratio:.1f} times"
        )
        numbers = {
            "new_us": mine,
            "old_us": other,
            "new_lower_us": least,
            "old_upper_us": most,
            "limit": limits.latency_ratio,
        }
        gates.append(_suspect(name, evidence.run, text, numbers, bad=slower))
    return gates


def _time(us: float) -> str:
    return f"{us / 1e3:.2f} ms" if us >= 100.0 else f"{us:.1f} us"


def _suspect(name: str, run: int, text: str, numbers: Mapping[str, object], *, bad: bool) -> _Gate:
    if not bad:
        return _Gate(name, Outcome.PASS, text, numbers)
    if run < MAX_RUNS:
        return _Gate(name, Outcome.AGAIN, f"{text}; run {run} of {MAX_RUNS}, tried again later", numbers)
    return _Gate(name, Outcome.FAIL, f"{text}; in each of {MAX_RUNS} runs", numbers)


def _memory(run: ModelRun, limits: Limits) -> _Gate:
    peak = run.peak_kb / 1024.0
    numbers = {"peak_mb": peak, "limit_mb": limits.memory_mb}
    text = f"peak memory of the worker is {peak:.0f} MB, promised is {limits.memory_mb:.0f} MB"
    return _Gate("memory", Outcome.FAIL if peak > limits.memory_mb else Outcome.PASS, text, numbers)


def _praise(gates: Sequence[_Gate], evidence: CanaryEvidence) -> str:
    found = {gate.name: gate.text for gate in gates}
    if "not-worse" in found:
        return found["not-worse"]
    why = evidence.alone or ("there is a reference" if "agreement" in found else "the samples have no labels")
    return f"{found.get('agreement', found.get('floor', found['loads']))}; compared with nothing: {why}"


def _summary(run: ModelRun, criteria: Canary) -> dict[str, object]:
    times = [sample.us for sample in run.samples]
    scored = run.scored(criteria.metric) if is_share(criteria.metric) else []
    return {
        "digest": run.digest,
        "version": run.version,
        "runtime": run.runtime,
        "delegate": run.delegate,
        "cage": run.cage,
        "n": len(run.samples),
        "right": sum(is_right(criteria.metric, sample) for sample in scored) if scored else None,
        "load_ms": run.load_ms,
        "warmup_ms": run.warmup_ms,
        "p50_us": _quantile(times, 0.50),
        "p95_us": _quantile(times, 0.95),
        "peak_kb": run.peak_kb,
        "problem": None if run.problem is None else {"code": run.problem.code, "reason": run.problem.reason},
    }


def _quantile(values: Sequence[float], q: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _plain(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def _name(metric: str) -> str:
    return NAMES.get(metric, metric)


def _between_errors(low: float, high: float) -> str:
    """An interval of how much better an error is, in its unit: -0.3..-0.1 is "between 0.1 and 0.3 more"."""
    if high <= 0.0:
        return f"between {-high:.3g} and {-low:.3g} more"
    if low >= 0.0:
        return f"between {low:.3g} and {high:.3g} less"
    return f"between {-low:.3g} more and {high:.3g} less"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _between(low: float, high: float) -> str:
    """An interval of a difference, in points, for a person: -0.084..-0.031 is "between 3.1 and 8.4 points lower"."""
    down, up = -low * 100.0, high * 100.0
    if high <= 0.0:
        return f"between {-up:.1f} and {down:.1f} points lower"
    if low >= 0.0:
        return f"between {-down:.1f} and {up:.1f} points higher"
    return f"between {down:.1f} points lower and {up:.1f} higher"
