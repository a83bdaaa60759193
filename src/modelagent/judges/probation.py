"""The probation's judge: has the running candidate shown itself worse, good enough, or has the input changed?

This file knows the evidence of live frames and what it proves. It does not know where the counts come from, nor what
is done about the verdict.

    verdict = judge_probation(counts_now - counts_at_activation, criteria)
    verdict.standing    # OPEN, GOOD or BAD
    verdict.drift       # "" or an alarm about the input, beside the standing

What condemns: a hard fault (crash, hang, NaN) at once; frames that fail now and then and succeed when they are run
again, by an SPRT on the seconds with frames in which that happened; and the previous model, run on the *same* frames,
proving better in a sequential McNemar test (an SPRT on the discordant pairs, coin against `pair_p1`): once on labels,
once on time, where a pair is discordant when one model broke its promised time and took more than twice as long as the
other. What alarms only: labelled errors above `error_p0` while the previous model does no better, which says that the
input changed and not that the model is bad. Confidence and class mix decide nothing here. `alpha` is one budget: it is
split over the tests (Bonferroni), so that all of them together revert or alarm without cause at most that often.

Ends are counted in frames and in seconds with frames, never in wall time: an idle line waits. Labels may come when the
probation has long ended well; the same counts then go on being judged, and nothing but the comparison can condemn.
"""

from dataclasses import dataclass
from typing import Final

from modelagent.core.events import Counts
from modelagent.core.verdicts import ProbationVerdict, Standing
from modelagent.judges.metrics import wilson
from modelagent.judges.sequential import Decision, Sprt

# How the comparison by labels, the error rate, the comparison by time and the hiccups share alpha. A doubled error
# rate is to be called within 110 labels. A quarter of alpha is kept back: scenes that last half as long as the
# thinning make the comparisons err more often than they say, and the whole must hold for them too.
_BY_LABELS: Final = 0.15
_BY_ERRORS: Final = 0.5
_BY_TIME: Final = 0.05
_BY_HICCUPS: Final = 0.05
_SURE: Final = 0.95  # of the bound that is taken as the confirmed version's own rate of hiccups
# An undecided comparison holds a good end back once it has this share of what proof needs: one unlucky frame must not.
_LEANING: Final = 0.25


@dataclass(frozen=True, slots=True)
class ProbationCriteria:
    """When a probation ends and what it takes.

    Args:
        frames, busy_s: healthy results and seconds with frames that are enough.
        limit_frames, limit_busy_s: at both, an undecided probation ends all the same,
        undecided_good: well, or else badly.
        labels: labelled frames that are wanted before a good end; 0: none needed.
        pair_p1: share of discordant pairs won by the previous model that must not be missed (0.5 is a tie).
        error_p0, error_p1: error rate that is normal, and one that calls for an alarm.
        min_pairs: paired frames before "both do alike" is believed.
        fault_p0, fault_p1: share of the seconds with frames in which one fails at first that is normal, and one that
            must not be missed; from `hiccups`.
        alpha, beta: chance of a false revert or alarm, of all tests together; chance of missing each.
    """

    frames: int = 500
    busy_s: int = 60
    limit_frames: int = 50_000
    limit_busy_s: int = 86_400
    undecided_good: bool = True
    labels: int = 0
    pair_p1: float = 0.7
    error_p0: float = 0.10
    error_p1: float = 0.20
    min_pairs: int = 30
    fault_p0: float = 0.005
    fault_p1: float = 0.05
    alpha: float = 0.01
    beta: float = 0.05


def hiccups(p0: float, p1: float, unsteady_s: int, busy_s: int) -> tuple[float, float]:
    """The two rates between which hiccups are judged, where the confirmed version is known to have some itself.

    What it has had, by its upper bound, is normal for this device even above `p0`; what must not be missed keeps its
    distance in odds. A version that is no worse than the confirmed one is then left with at most the test's alpha and
    the chance that the bound is too low.

    Args:
        p0: share of seconds that the settings call fine.
        p1: share that they call bad.
        unsteady_s: seconds in which the confirmed version had a hiccup.
        busy_s: of so many with frames.
    """
    own = wilson(unsteady_s, busy_s, _SURE)[1] if 0 < unsteady_s <= busy_s else 0.0
    if own <= p0:
        return p0, p1
    own = min(own, 0.9)
    odds = own / (1.0 - own) * (p1 / (1.0 - p1)) / (p0 / (1.0 - p0))
    return own, odds / (1.0 + odds)


def judge_probation(evidence: Counts, criteria: ProbationCriteria) -> ProbationVerdict:
    """Judge what was seen since the activation.

    The verdict depends on the counts alone, never on their order or on when it is asked (see `sequential.py`).

    Args:
        evidence: differences of counts since the first health record of this activation.
        criteria: from the settings; `error_p0` best from the candidate's own canary.
    """
    paired = Sprt(0.5, criteria.pair_p1, criteria.alpha * _BY_LABELS, criteria.beta)
    timed = Sprt(0.5, criteria.pair_p1, criteria.alpha * _BY_TIME, criteria.beta)
    errors = Sprt(criteria.error_p0, criteria.error_p1, criteria.alpha * _BY_ERRORS, criteria.beta)
    faulty = Sprt(criteria.fault_p0, criteria.fault_p1, criteria.alpha * _BY_HICCUPS, criteria.beta)
    steady_s = max(0, evidence.busy_s - evidence.unsteady_s)
    flaky = faulty.decide(evidence.unsteady_s, steady_s)
    comparison = paired.decide(evidence.only_old, evidence.only_new)
    slower = timed.decide(evidence.slower_new, evidence.slower_old)
    elevated = errors.decide(evidence.wrong, evidence.right) is Decision.HIGH
    pairs = evidence.both_right + evidence.only_new + evidence.only_old + evidence.both_wrong
    lean = paired.evidence(evidence.only_old, evidence.only_new)
    leaning = lean > _LEANING * paired.upper
    numbers: dict[str, object] = {
        "frames": evidence.frames,
        "done": evidence.done,
        "busy_s": evidence.busy_s,
        "faults": evidence.faults,
        "right": evidence.right,
        "wrong": evidence.wrong,
        "pairs": pairs,
        "only_new": evidence.only_new,
        "only_old": evidence.only_old,
        "both_wrong": evidence.both_wrong,
        "paired": comparison.value,
        "paired_evidence": lean,
        "paired_threshold": paired.upper,
        "slower_new": evidence.slower_new,
        "slower_old": evidence.slower_old,
        "slower": slower.value,
        "unsteady_s": evidence.unsteady_s,
        "fault_p0": criteria.fault_p0,
        "flaky": flaky.value,
        "fault_evidence": faulty.evidence(evidence.unsteady_s, steady_s),
        "fault_threshold": faulty.upper,
        "error_evidence": errors.evidence(evidence.wrong, evidence.right),
        "error_threshold": errors.upper,
    }
    drift = _drift(evidence, criteria, pairs) if elevated and _alike(comparison, leaning, pairs, criteria) else ""
    if evidence.faults > 0:
        text = f"{_count(evidence.faults, 'hard fault')} (crash, hang or NaN) in {_count(evidence.frames, 'frame')}"
        return ProbationVerdict(Standing.BAD, text, drift, numbers)
    if flaky is Decision.HIGH:
        text = (
            f"it fails now and then: in {evidence.unsteady_s} of {evidence.busy_s} s with frames one failed at first; "
            f"normal are {criteria.fault_p0 * 100:.1f} %; chance of that by luck below {faulty.alpha:.3g}"
        )
        return ProbationVerdict(Standing.BAD, text, drift, numbers)
    if comparison is Decision.HIGH:
        text = (
            f"the previous model is better on the same {_count(pairs, 'labelled frame')}: {evidence.only_old} only it "
            f"has right, {evidence.only_new} only this one; chance of that by luck below {paired.alpha:.3g}"
        )
        return ProbationVerdict(Standing.BAD, text, drift, numbers)
    if slower is Decision.HIGH:
        text = (
            f"too slow: on {_count(evidence.slower_new, 'frame')} it broke its promised time and took over twice as "
            f"long as the previous model, the other way round on {evidence.slower_old}; chance of that by luck below "
            f"{timed.alpha:.3g}"
        )
        return ProbationVerdict(Standing.BAD, text, drift, numbers)
    shaky = faulty.evidence(evidence.unsteady_s, steady_s) > _LEANING * faulty.upper
    standing, text = _end(evidence, criteria, comparison, leaning, shaky)
    return ProbationVerdict(standing, text, drift, numbers)


def _alike(comparison: Decision, leaning: bool, pairs: int, criteria: ProbationCriteria) -> bool:
    """Whether the previous model does no better: shown, leaning that way over enough pairs, or there is none."""
    return comparison is Decision.LOW or pairs == 0 or (pairs >= criteria.min_pairs and not leaning)


def _drift(evidence: Counts, criteria: ProbationCriteria, pairs: int) -> str:
    labelled = evidence.right + evidence.wrong
    wrong = (
        f"{evidence.wrong} of {labelled} labelled frames are wrong ({evidence.wrong / labelled * 100:.1f} %, normal is "
        f"{criteria.error_p0 * 100:.1f} %)"
    )
    if pairs == 0:
        return (
            f"{wrong}, and no previous model ran on the same frames to tell whether the model or the input is to blame"
        )
    return (
        f"{wrong}, and the previous model does no better on the same {pairs}: the input changed; retraining is wanted"
    )


def _end(
    evidence: Counts, criteria: ProbationCriteria, comparison: Decision, leaning: bool, shaky: bool
) -> tuple[Standing, str]:
    seen = f"{evidence.done} of {criteria.frames} frames, {evidence.busy_s} of {criteria.busy_s} s with frames"
    if evidence.done < criteria.frames or evidence.busy_s < criteria.busy_s:
        return Standing.OPEN, seen
    labelled = evidence.right + evidence.wrong
    missing = ""
    if labelled < criteria.labels and comparison is Decision.OPEN:
        missing = f"{labelled} of {criteria.labels} labelled frames"
    elif leaning and comparison is Decision.OPEN:
        missing = (
            f"the previous model is ahead {evidence.only_old} to {evidence.only_new} on the same labelled frames, "
            "which is not yet proof"
        )
    elif shaky:
        missing = (
            f"in {evidence.unsteady_s} of {evidence.busy_s} s with frames one failed at first, which is not yet proof"
        )
    if not missing:
        return Standing.GOOD, f"no fault in {_count(evidence.done, 'frame')} and {evidence.busy_s} s with frames"
    if evidence.done >= criteria.limit_frames and evidence.busy_s >= criteria.limit_busy_s:
        end = f"undecided at the limit of {criteria.limit_frames} frames"
        if criteria.undecided_good:
            return Standing.GOOD, f"{end}, kept: {missing}"
        return Standing.BAD, f"{end}, left as the settings say: {missing}"
    return Standing.OPEN, f"{seen}; {missing}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
