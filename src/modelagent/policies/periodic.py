"""How often to check, by the clock alone: a fixed interval, spread over the fleet by each device's seed.

This file knows the interval. It does not know quality signals (`feedback`) or calendars (`cron`).

    Periodic(interval_s=6 * 3600, jitter=0.1).answer(Question.CHECK, facts, {})   # Allow, or Wait(until=...)

Checks missed while the device was off are made up once, spread over the first minutes, so that a plant that is
switched on at seven does not ask its server four hundred times at seven.
"""

from dataclasses import dataclass
from typing import Final

from modelagent.core.verdicts import Allow, Wait
from modelagent.policies import Answer, Facts, Gate, Memory, Question, fraction, span
from modelagent.policies.localtime import show

MAKE_UP_S: Final = 600.0  # seconds over which missed checks are spread after a start


@dataclass(frozen=True, slots=True)
class Periodic:
    """Check every `interval_s` seconds or up to `jitter` of that later; never earlier, unless asked."""

    interval_s: float
    jitter: float = 0.1

    def answer(self, question: Question, facts: Facts, _memory: Memory) -> Answer:
        """Speaks of checks only."""
        if question is not Question.CHECK:
            return Answer()
        period = self.interval_s * (1.0 + self.jitter * fraction(facts.seed, "interval"))
        due = due_after(facts, period, spread=min(MAKE_UP_S, self.jitter * self.interval_s))
        return Answer((due_gate("interval", facts, due, f"every {span(period)}"),))


def due_after(facts: Facts, period: float, spread: float) -> float:
    """Unix seconds of the next check, `period` seconds after the last one.

    Due at once: the first check ever, and after a clock that was set back to before the last check.
    """
    last, now = facts.last_check, facts.at.wall
    if last is None or last > now:
        return now
    return made_up(last + period, facts, spread)


def made_up(due: float, facts: Facts, spread: float) -> float:
    """A time that passed while the device was off comes once, within `spread` seconds after the start."""
    if facts.started is not None and due < facts.started <= facts.at.wall:
        return facts.started + spread * fraction(facts.seed, "make-up")
    return due


def due_gate(name: str, facts: Facts, due: float, how: str) -> Gate:
    """The gate of anything that is due at some time, unless somebody asks for a check before."""
    last, now = facts.last_check, facts.at.wall
    saw = f"last check {'never' if last is None else show(last)}, {how}"
    asked = facts.asked_check
    if asked is not None and (last is None or last < asked):
        return Gate(name, Allow("a check was asked for", name), saw, facts.at)
    if due <= now:
        return Gate(name, Allow("the check is due", name), saw, facts.at)
    return Gate(name, Wait(due, f"the next check is due at {show(due)}", name), saw, facts.at)
