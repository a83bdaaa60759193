"""Whether the device is in a condition for it: link, power, load, room, and the application's own word.

This file knows conditions on single facts, each for the questions it is put before. It does not know how facts are
measured. A fact that is not known holds nothing up.

    Conditional((least("memory", "memory_available_mb", 64, " MB", {Question.CANARY}),))

A condition that has closed opens again only when the fact has moved clearly to the good side (`opens_at`), or has been
good for `settle_s`; otherwise a value that wavers around its limit would start and abandon a download each minute.
Waiting is bounded: once something has waited for `max_wait_s` the gate speaks up, and lets it go ahead if it is so
configured and not `hard`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from modelagent.core.verdicts import Allow, Verdict, Wait
from modelagent.policies import WORDS, Answer, Facts, Gate, Memory, Past, Question, elapsed, span

MAX_WAIT_S: Final = 7 * 86400.0
RECHECK_S: Final = 60.0  # a fact that changes by itself is looked at again after this
_PENDING: Final = 6.0
_ACQUIRE: Final = frozenset({Question.ACQUIRE})
_ON_LINK: Final = frozenset({Question.CHECK, Question.ACQUIRE})
_AT_WORK: Final = frozenset({Question.CANARY, Question.ACTIVATE})


@dataclass(frozen=True, slots=True)
class Condition:
    """One fact, and what it must be.

    `fact` names a number in `reading`; it is good up to `limit` (`at_most`) or from `limit` on. `opens_at` is where a
    closed gate opens again. `hard` conditions protect the device: after `max_wait_s` they are told about like all
    others, and never overridden.
    """

    name: str
    fact: str
    limit: float
    opens_at: float
    at_most: bool
    unit: str
    questions: frozenset[Question]
    because: str
    hard: bool = False
    settle_s: float = 0.0
    max_wait_s: float = MAX_WAIT_S
    go_ahead: bool = False  # after max_wait_s, where the condition is not hard

    def good(self, value: float, closed: bool) -> bool:
        """Whether the value lets pass, given that the gate was closed or not."""
        bound = self.opens_at if closed else self.limit
        return value <= bound if self.at_most else value >= bound


def most(
    name: str,
    fact: str,
    limit: float,
    unit: str,
    questions: Iterable[Question],
    *,
    because: str = "",
    hard: bool = False,
    slack: float = 0.1,
) -> Condition:
    """The fact must be at most `limit`; closed, the gate opens at a tenth (`slack`) below it."""
    because = because or f"{name} is high"
    return Condition(
        name, fact, limit, limit - abs(limit) * slack, True, unit, frozenset(questions), because, hard=hard
    )


def least(
    name: str,
    fact: str,
    limit: float,
    unit: str,
    questions: Iterable[Question],
    *,
    because: str = "",
    hard: bool = False,
    slack: float = 0.1,
) -> Condition:
    """The fact must be at least `limit`; closed, the gate opens at a tenth (`slack`) above it."""
    because = because or f"{name} is low"
    return Condition(
        name, fact, limit, limit + abs(limit) * slack, False, unit, frozenset(questions), because, hard=hard
    )


def link_up(questions: Iterable[Question] = _ON_LINK, settle_s: float = 5.0) -> Condition:
    """There must be a way out; checks and downloads wait for it."""
    return Condition("link", "link_up", 1, 1, False, "", frozenset(questions), "the link is down", True, settle_s)


def unmetered(questions: Iterable[Question] = _ACQUIRE, settle_s: float = 30.0) -> Condition:
    """Not while the link is metered."""
    because = "the link is metered"
    return Condition("metered", "metered", 0, 0, True, "", frozenset(questions), because, False, settle_s)


def on_mains(questions: Iterable[Question], settle_s: float = 30.0) -> Condition:
    """Not on battery."""
    because = "the device runs on its battery"
    return Condition("mains", "on_ac", 1, 1, False, "", frozenset(questions), because, True, settle_s)


def undisturbed(questions: Iterable[Question] = _AT_WORK) -> Condition:
    """Nothing is tried or switched while the application asks not to be disturbed; only it can lift that."""
    because = "the application asks not to be disturbed"
    return Condition("inhibit", "inhibited", 0, 0, True, " files", frozenset(questions), because, True)


def room(reserve_mb: float) -> Condition:
    """Downloads wait until `reserve_mb` would be left afterwards; retried only when space has grown."""
    because = "too little disk space would be left"
    return least("disk", "disk_left_mb", reserve_mb, " MB", _ACQUIRE, because=because, hard=True)


def budget() -> Condition:
    """Downloads wait when the day's bytes are used up; the transfer itself would refuse them."""
    because = "today's byte budget is used up"
    return least("budget", "budget_left", 1, " bytes", _ACQUIRE, because=because, slack=0.0, hard=True)


@dataclass(frozen=True, slots=True)
class Conditional:
    """All conditions, each before its own questions. None at all lets everything pass."""

    conditions: tuple[Condition, ...] = ()
    recheck_s: float = RECHECK_S

    def answer(self, question: Question, facts: Facts, memory: Memory) -> Answer:
        """A gate for each condition before this question, or one that says there is none."""
        here = [condition for condition in self.conditions if question in condition.questions]
        if not here:
            return Answer((Gate("conditions", Allow("no conditions are set", "conditions"), "", facts.at),))
        waited_key = f"{question.value}/waiting for conditions"
        changes: dict[str, Past] = {}
        gates: list[Gate] = []
        # What something waits for is looked at more often than what nobody needs at present.
        wanted = facts.pending is not None and question is not Question.CHECK and question in facts.pending
        recheck_s = self.recheck_s / _PENDING if wanted else self.recheck_s
        for condition in here:
            key = f"{question.value}/{condition.name}/state"
            past = memory.get(key)
            verdict, saw, now = _judge(condition, facts, past, recheck_s)
            changes[key] = now
            gates.append(Gate(condition.name, verdict, saw, facts.at))
        waits = any(isinstance(gate.verdict, Wait) for gate in gates)
        waits = waits and (facts.pending is None or question in facts.pending)
        before = memory.get(waited_key)
        if not waits or before is None or before.kind != "waiting":
            changes[waited_key] = before = Past("waiting" if waits else "going", facts.at)
        if waits:
            waited = elapsed(before.since, facts.at)
            pairs = zip(gates, here, strict=True)
            gates = [_bounded(gate, condition, question, waited, facts.at.wall) for gate, condition in pairs]
        return Answer(tuple(gates), changes)


def _bounded(gate: Gate, condition: Condition, question: Question, waited: float, now: float) -> Gate:
    """The gate of something that has waited for `waited` seconds in all, whichever conditions held it up meanwhile."""
    if not isinstance(gate.verdict, Wait):
        return gate
    left = condition.max_wait_s - waited
    if left > 0:
        return replace(gate, verdict=replace(gate.verdict, until=min(gate.verdict.until, now + left)))
    bound = span(condition.max_wait_s)
    loud = f"{WORDS[question]} has waited for more than {bound}: {condition.because}"
    if condition.go_ahead and not condition.hard:
        allowed = Allow(f"going ahead although {condition.because}: more than {bound} have passed", gate.name)
        return replace(gate, verdict=allowed, loud=loud, lifted=True)
    told = replace(gate.verdict, reason=f"{gate.verdict.reason}; it has waited for more than {bound}")
    return replace(gate, verdict=told, loud=loud)


def reading(facts: Facts, name: str) -> float | None:
    """The number behind a condition's `fact`; None when it is not known."""
    match name:
        case "inhibited":
            return float(len(facts.inhibited))
        case "disk_left_mb":
            return None if facts.disk_free_mb is None else facts.disk_free_mb - (facts.needed_mb or 0.0)
        case "rate_kbps":
            return None if facts.rate_bps is None else facts.rate_bps / 1000.0
        case "load_per_cpu":
            return None if facts.load1 is None else facts.load1 / (facts.cpus or 1)
        case "p95_share":
            known = facts.p95_ms is not None and facts.p95_budget_ms
            return (facts.p95_ms or 0.0) / (facts.p95_budget_ms or 1.0) if known else None
        case "battery":
            return None if facts.on_ac else facts.battery_percent
        case _:
            value: float | None = getattr(facts, name)
            return None if value is None else float(value)


def _judge(condition: Condition, facts: Facts, past: Past | None, recheck_s: float) -> tuple[Verdict, str, Past]:
    """The answer, what was seen, and what to remember: open, closed, or good again and settling."""
    at = facts.at
    value = reading(facts, condition.fact)
    if value is None:
        return Allow("not known here", condition.name), "not known", Past("open", at)
    state = past.kind if past is not None else "open"
    saw = "yes" if value else "no"
    if condition.unit:
        saw = f"{value:.6g}{condition.unit}, {'at most' if condition.at_most else 'at least'} {condition.limit:g}"
    if condition.fact == "inhibited" and facts.inhibited:
        saw = ", ".join(facts.inhibited[:5])
    if not condition.good(value, state == "closed"):
        since = past.since if past is not None and state == "closed" else at
        reason = f"{condition.because} ({saw})" if condition.unit else condition.because
        return Wait(at.wall + recheck_s, reason, condition.name), saw, Past("closed", since, value)
    if past is not None and state != "open" and condition.settle_s > 0:
        since = past.since if state == "settling" else at
        left = condition.settle_s - elapsed(since, at)
        if left > 0:
            reason = f"{condition.because} no longer, but only for a moment"
            return Wait(at.wall + left, reason, condition.name), saw, Past("settling", since, value)
    return Allow("", condition.name), saw, Past("open", at, value)
