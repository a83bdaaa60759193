"""How often to check, by how well the model does: trouble shortens the interval, calm lengthens it.

This file knows the interval and how signals move it. It does not know how drift or quality are measured.

    Feedback(floor_s=900, start_s=6 * 3600, ceiling_s=86400).answer(Question.CHECK, facts, memory)
    Sooner((Cron("0 3 * * *"), Feedback(signals_only=True)))          # daily, and in trouble more often

Drift or falling quality halves the interval, down to the floor; each calm check lengthens it by a quarter, up to the
ceiling (multiplicative decrease is quick where it matters, slow increase does not forget at once). An alarm asks for
a check as soon as the floor allows: whatever the signals do, checks are never closer together than the floor.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from modelagent.core.verdicts import Allow, Deny, Wait
from modelagent.errors import UsageError
from modelagent.policies import Answer, Facts, Gate, Memory, Past, Policy, Question, fraction
from modelagent.policies.localtime import show
from modelagent.policies.periodic import MAKE_UP_S, due_gate, made_up

_KEY: Final = "feedback/interval"
_WORSE: Final = 0.5  # factor of the interval after trouble
_CALM: Final = 1.25  # factor after a calm check


@dataclass(frozen=True, slots=True)
class Feedback:
    """An interval from `floor_s` to `ceiling_s` that begins at `start_s`; signals count from `trouble` (0..1) on.

    A check comes up to `jitter` of the interval after it, by the device's seed. With `signals_only` it has nothing to
    say in calm, once the interval has grown back to where it began: another schedule counts then.
    """

    floor_s: float = 900.0
    start_s: float = 6 * 3600.0
    ceiling_s: float = 86400.0
    jitter: float = 0.1
    trouble: float = 0.5
    signals_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.floor_s <= self.start_s <= self.ceiling_s:
            raise UsageError(
                f"feedback: found floor {self.floor_s:g}, start {self.start_s:g}, ceiling {self.ceiling_s:g} seconds; "
                "allowed are positive numbers in rising order",
                code="feedback",
            )

    def answer(self, question: Question, facts: Facts, memory: Memory) -> Answer:
        """Speaks of checks only."""
        if question is not Question.CHECK:
            return Answer()
        past = memory.get(_KEY)
        interval = self._clamp(past.value if past is not None else self.start_s)
        last, now = facts.last_check, facts.at.wall
        worse = self._worse(facts)
        changes: dict[str, Past] = {}
        # `kind` holds the check that the interval was last moved for, so that one check moves it once.
        mark = repr(last)
        if past is None:
            changes[_KEY] = Past(mark, facts.at, interval)
        elif past.kind != mark:
            interval = self._clamp(interval * (_WORSE if worse else _CALM))
            changes[_KEY] = Past(mark, facts.at, interval)
        alarmed = facts.alarm is not None and (last is None or facts.alarm > last)
        if self.signals_only and not worse and not alarmed and interval >= self.start_s:
            return Answer((), changes)
        if last is None or last > now:
            due = now
        else:
            wanted = self._clamp(interval * _WORSE) if worse else interval
            period = wanted * (1.0 + self.jitter * fraction(facts.seed, "interval"))
            due = made_up(last + period, facts, min(MAKE_UP_S, self.jitter * self.start_s))
            if alarmed:
                due = min(due, last + self.floor_s)
            due = max(due, last + self.floor_s)
        signals = f"drift {_show(facts.drift)}, quality drop {_show(facts.quality_drop)}"
        how = f"interval {interval:.0f} s of {self.floor_s:.0f} to {self.ceiling_s:.0f}, {signals}"
        if alarmed:
            how += f", an alarm at {show(facts.alarm or 0.0)}: retraining wanted"
        return Answer((due_gate("feedback", facts, due, how),), changes)

    def _clamp(self, interval: float) -> float:
        return min(max(interval, self.floor_s), self.ceiling_s)

    def _worse(self, facts: Facts) -> bool:
        signals = (facts.drift, facts.quality_drop)
        return any(signal is not None and signal >= self.trouble for signal in signals)


@dataclass(frozen=True, slots=True)
class Sooner:
    """Several schedules of which the one that is due first lets a check through; one gate, named after it."""

    schedules: tuple[Policy, ...]

    def answer(self, question: Question, facts: Facts, memory: Memory) -> Answer:
        """Speaks of checks only."""
        gates: list[Gate] = []
        changes: dict[str, Past] = {}
        for schedule in self.schedules:
            answer = schedule.answer(question, facts, memory)
            gates.extend(answer.gates)
            changes.update(answer.memory)
        if not gates:
            return Answer((), changes)
        first = min(gates, key=_due)
        return Answer((replace(first, saw="; ".join(f"{gate.name}: {gate.saw}" for gate in gates)),), changes)


def _due(gate: Gate) -> float:
    """When it lets pass: never, at some time, or already."""
    match gate.verdict:
        case Allow():
            return -math.inf
        case Wait(until=until):
            return until
        case Deny():
            return math.inf


def _show(signal: float | None) -> str:
    return "not known" if signal is None else f"{signal:.2f}"
