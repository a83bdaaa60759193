"""Answers with reasons: what a policy or a judge says.

This file knows the shapes of answers and how they combine. It does not know who asks, when, or of what.

    all_of([Allow(), Wait(until=t, reason="metered link", gate="link")])   ->  the Wait
    all_of([])                                                             ->  Deny: an empty combination refuses
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Allow:
    """Go ahead. `reason` says why, `gate` which policy spoke."""

    reason: str = ""
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. `until`: Unix seconds at which to ask again (the facts may allow it earlier)."""

    until: float
    reason: str
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Deny:
    """No, until the facts or the settings change."""

    reason: str
    gate: str = ""


Verdict = Allow | Wait | Deny


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest of several answers: Deny over Wait (the latest) over Allow. None at all is a refusal."""
    answers = list(verdicts)
    if not answers:
        return Deny(reason="no policy is configured for this question", gate="policy")
    for answer in answers:
        if isinstance(answer, Deny):
            return answer
    waits = [answer for answer in answers if isinstance(answer, Wait)]
    if waits:
        return max(waits, key=lambda wait: wait.until)
    return answers[-1]


class Outcome(Enum):
    """What the canary says of a candidate."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INSUFFICIENT = "insufficient"
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """The canary's answer.

    `hard` marks crash, hang and NaN, which block the model file and not only the release. `evidence` is plain
    JSON-like data: every number that led here. `retry_at` (Unix seconds) belongs to AGAIN. `peak_kb` is the most memory
    that the candidate's worker had, KiB; 0 where nobody measured.
    """

    outcome: Outcome
    reason: str
    hard: bool = False
    retry_at: float = 0.0
    evidence: Mapping[str, object] = field(default_factory=dict)
    peak_kb: int = 0


class Standing(Enum):
    """What the probation judge says of the running candidate."""

    OPEN = "open"  # not decided yet
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class SteadyVerdict:
    """The drift judge's answer about a confirmed version: `alarm` says what changed, empty while nothing has.

    `compare`: the settings ask that the previous version be run on the same frames and be gone back to if it is better.
    """

    alarm: str = ""
    compare: bool = False
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbationVerdict:
    """The probation judge's answer; `drift` is an alarm about the input, beside the standing, never a verdict."""

    standing: Standing
    reason: str
    drift: str = ""
    evidence: Mapping[str, object] = field(default_factory=dict)
