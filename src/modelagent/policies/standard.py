"""The policies that the settings file asks for, put together.

This file knows which settings make which policy. It does not read settings: anything with these attributes will do.

    policies = standard(settings.policy, disk_reserve_mb=settings.limits.disk_reserve_mb)
    compose(Question.CHECK, policies, facts, memory)

A question's conditions are its own: what holds a download up need not hold a canary up. Link, byte budget and disk
space hold for everyone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from modelagent.policies import Policy, Question
from modelagent.policies.conditional import (
    RECHECK_S,
    Condition,
    Conditional,
    budget,
    least,
    link_up,
    most,
    on_mains,
    room,
    undisturbed,
    unmetered,
)
from modelagent.policies.feedback import Feedback, Sooner
from modelagent.policies.periodic import Periodic
from modelagent.policies.rollout import Rollout
from modelagent.policies.window import Windows

SOFT: Final = ("metered", "rate", "load", "pressure", "queue", "latency")  # gates that max_wait may overrule


class Conditions(Protocol):
    """One of the sections `[policy.check]`, `.download`, `.canary` and `.activate`; 0 means "any"."""

    @property
    def unmetered(self) -> bool:
        """Only while the link is not metered."""

    @property
    def min_rate_kbps(self) -> float:
        """Kilobits a second of recent transfers."""

    @property
    def on_mains(self) -> bool:
        """Not on battery."""

    @property
    def min_battery_percent(self) -> int:
        """When not on mains."""

    @property
    def max_load(self) -> float:
        """Load average per CPU."""

    @property
    def max_pressure(self) -> float:
        """Percent of the last 10 s in which a task waited for a CPU."""

    @property
    def min_free_memory_mb(self) -> int:
        """Available memory."""

    @property
    def max_temperature_c(self) -> float:
        """Of the hottest sensor."""

    @property
    def max_queue(self) -> float:
        """Share of inference's queue that is filled."""

    @property
    def max_p95(self) -> float:
        """Inference's p95, as a share of what the running version promises."""

    @property
    def undisturbed(self) -> bool:
        """Not while an inhibit file lies there."""

    @property
    def max_wait(self) -> float:
        """Seconds after which waiting becomes loud."""

    @property
    def go_ahead(self) -> Sequence[str]:
        """Gates that give way then; of `SOFT`."""


class Wishes(Protocol):
    """The `[policy]` section: seconds, shares, zone, windows, and each question's conditions."""

    @property
    def check_interval(self) -> float:
        """Seconds between two checks."""

    @property
    def jitter(self) -> float:
        """Share of the interval that is spread."""

    @property
    def check_cron(self) -> str:
        """Cron line instead of the interval; empty: none."""

    @property
    def feedback(self) -> bool:
        """Whether quality moves the interval."""

    @property
    def check_floor(self) -> float:
        """Seconds between two checks at least, whatever the signals do."""

    @property
    def check_ceiling(self) -> float:
        """Seconds up to which calm lengthens the interval; 0: the interval itself."""

    @property
    def timezone(self) -> str:
        """Zone of windows and cron line."""

    @property
    def download_windows(self) -> tuple[str, ...]:
        """When to download."""

    @property
    def activate_windows(self) -> tuple[str, ...]:
        """When to switch."""

    @property
    def check(self) -> Conditions:
        """Before a check."""

    @property
    def download(self) -> Conditions:
        """Before and during a download."""

    @property
    def canary(self) -> Conditions:
        """Before and during a canary."""

    @property
    def activate(self) -> Conditions:
        """Before an activation."""


def standard(wishes: Wishes, disk_reserve_mb: float, *, recheck_s: float = RECHECK_S) -> tuple[Policy, ...]:
    """The policies of the settings file; together they have something to say on every question.

    Args:
        wishes: the section `[policy]`.
        disk_reserve_mb: what a download leaves free, in megabytes.
        recheck_s: after so many seconds a fact that stands in the way is looked at again.
    """
    sections = {
        Question.CHECK: wishes.check,
        Question.ACQUIRE: wishes.download,
        Question.CANARY: wishes.canary,
        Question.ACTIVATE: wishes.activate,
    }
    conditions: list[Condition] = []
    for question, section in sections.items():
        for condition in (*_of_all(question, disk_reserve_mb), *_of_one(question, section)):
            bounded = replace(condition, max_wait_s=section.max_wait, go_ahead=condition.name in section.go_ahead)
            conditions.append(bounded)
    return (
        schedule(wishes),
        Windows(wishes.download_windows, wishes.activate_windows, wishes.timezone),
        Conditional(tuple(conditions), recheck_s),
        Rollout(),
    )


def schedule(wishes: Wishes) -> Policy:
    """When to check: by the interval or the calendar, and by how well the model does."""
    interval, jitter = wishes.check_interval, wishes.jitter
    # An interval that is shorter than the floor is a person's word, and becomes the floor.
    floor = min(wishes.check_floor or interval, interval)
    if wishes.check_cron:
        from modelagent.policies.cron import Cron  # noqa: PLC0415 - its calculator costs 3 MB that others do not pay

        cron = Cron(wishes.check_cron, wishes.timezone)
        if not wishes.feedback:
            return cron
        return Sooner((cron, Feedback(floor, interval, interval, jitter, signals_only=True)))
    if wishes.feedback:
        return Feedback(floor, interval, max(interval, wishes.check_ceiling), jitter)
    return Periodic(interval, jitter)


def _of_all(question: Question, disk_reserve_mb: float) -> Iterable[Condition]:
    if question in (Question.CHECK, Question.ACQUIRE):
        yield link_up({question})
    if question is Question.ACQUIRE:
        yield budget()
        yield room(disk_reserve_mb)


def _of_one(question: Question, wanted: Conditions) -> Iterable[Condition]:
    here = {question}
    if wanted.unmetered:
        yield unmetered(here)
    if wanted.min_rate_kbps > 0:
        because = "the link has been slow"
        yield least("rate", "rate_kbps", wanted.min_rate_kbps, " kbit/s", here, because=because)
    if wanted.on_mains:
        yield on_mains(here)
    if wanted.min_battery_percent > 0:
        limit, because = float(wanted.min_battery_percent), "the battery is low"
        yield least("battery", "battery", limit, " %", here, because=because, hard=True)
    if wanted.max_load > 0:
        because = "the processors are busy"
        yield most("load", "load_per_cpu", wanted.max_load, " per CPU", here, because=because, slack=0.2)
    if wanted.max_pressure > 0:
        because = "tasks wait for the processors"
        yield most("pressure", "psi_cpu", wanted.max_pressure, " %", here, because=because, slack=0.2)
    if wanted.min_free_memory_mb > 0:
        limit, because = float(wanted.min_free_memory_mb), "too little memory is free"
        yield least("memory", "memory_available_mb", limit, " MB", here, because=because, hard=True)
    if wanted.max_temperature_c > 0:
        # Degrees Celsius have no true zero: a tenth of the limit would be too much or too little.
        because = "the device is hot"
        hot = most("temperature", "temperature_c", wanted.max_temperature_c, " °C", here, because=because, hard=True)
        yield replace(hot, opens_at=hot.limit - 3.0)
    if wanted.max_queue > 0:
        because = "inference's frames are queueing"
        yield most("queue", "queue_fill", wanted.max_queue, " of the queue", here, because=because, slack=0.5)
    if wanted.max_p95 > 0:
        because = "inference is slow"
        yield most("latency", "p95_share", wanted.max_p95, " of what is promised", here, because=because)
    if wanted.undisturbed:
        yield undisturbed(here)
