"""The policies that the settings file asks for, put together.

This file knows which settings make which policy. It does not read settings: anything with these attributes will do.

    policies = standard(settings.policy, disk_reserve_mb=settings.limits.disk_reserve_mb)
    compose(Question.CHECK, policies, facts, memory)
"""

from typing import Protocol

from modelagent.policies import Policy, Question
from modelagent.policies.conditional import (
    Condition,
    Conditional,
    budget,
    least,
    link_up,
    most,
    room,
    undisturbed,
    unmetered,
)
from modelagent.policies.periodic import Periodic
from modelagent.policies.rollout import Rollout
from modelagent.policies.window import Windows


class Wishes(Protocol):
    """The `[policy]` section: seconds, shares, megabytes and degrees; 0 means "any"."""

    @property
    def check_interval(self) -> float:
        """Seconds between two checks."""

    @property
    def jitter(self) -> float:
        """Share of the interval that is spread."""

    @property
    def timezone(self) -> str:
        """Zone of the windows."""

    @property
    def download_windows(self) -> tuple[str, ...]:
        """When to download."""

    @property
    def activate_windows(self) -> tuple[str, ...]:
        """When to switch."""

    @property
    def allow_metered(self) -> bool:
        """Whether to download over a metered link."""

    @property
    def max_load(self) -> float:
        """Load average per CPU."""

    @property
    def min_free_memory_mb(self) -> int:
        """Available memory."""

    @property
    def max_temperature_c(self) -> float:
        """Of the hottest sensor."""

    @property
    def min_battery_percent(self) -> int:
        """When not on mains."""


def standard(wishes: Wishes, disk_reserve_mb: float) -> tuple[Policy, ...]:
    """The policies of the settings file; together they have something to say on every question."""
    canary = {Question.CANARY}
    conditions: list[Condition] = [link_up(), budget(), room(disk_reserve_mb), undisturbed()]
    if not wishes.allow_metered:
        conditions.append(unmetered())
    if wishes.max_load > 0:
        because = "the processors are busy"
        conditions.append(most("load", "load_per_cpu", wishes.max_load, " per CPU", canary, because=because, slack=0.2))
    if wishes.min_free_memory_mb > 0:
        because = "too little memory is free"
        limit = float(wishes.min_free_memory_mb)
        conditions.append(least("memory", "memory_available_mb", limit, " MB", canary, because=because, hard=True))
    if wishes.max_temperature_c > 0:
        because = "the device is hot"
        limit = wishes.max_temperature_c
        conditions.append(most("temperature", "temperature_c", limit, " °C", canary, because=because, hard=True))
    if wishes.min_battery_percent > 0:
        because = "the battery is low"
        limit = float(wishes.min_battery_percent)
        questions = {Question.ACQUIRE, Question.CANARY}
        conditions.append(least("battery", "battery", limit, " %", questions, because=because, hard=True))
    return (
        Periodic(wishes.check_interval, wishes.jitter),
        Windows(wishes.download_windows, wishes.activate_windows, wishes.timezone),
        Conditional(tuple(conditions)),
        Rollout(),
    )
