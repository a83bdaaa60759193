"""When to check, by the calendar: a cron line in a time zone.

This file knows cron lines. It does not know intervals. It is apart from `periodic` because the calculator it uses
(APScheduler's trigger) costs 3 MB of memory that devices without a cron line do not pay.

    Cron("30 2 * * mon-fri", "Europe/Madrid").answer(Question.CHECK, facts, {})

The trigger calculates on wall-clock time; `localtime` turns that into instants, so that 02:30 counts once on the day
it comes twice, and comes at the next valid instant on the day it is skipped.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from modelagent.errors import UsageError
from modelagent.policies import Answer, Facts, Memory, Question, fraction
from modelagent.policies.localtime import instant_of, local_of, zone_of
from modelagent.policies.periodic import due_gate, made_up

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final = ("minute", "hour", "day", "month", "day_of_week")
# Forty years hold every date that exists, on every weekday.
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2010, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cron:
    """Check when the cron line says, up to `spread_s` seconds later, by the device's seed.

    Five fields: minute, hour, day, month, weekday (0 and 7 are Sunday, names are allowed). As in cron(8), a day and a
    weekday that are both given are alternatives. Raises UsageError for a line that is wrong or never comes true.
    """

    line: str
    zone: str = "UTC"
    spread_s: float = 300.0
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _triggers: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", zone_of(self.zone))
        object.__setattr__(self, "_triggers", _parse(self.line))

    def answer(self, question: Question, facts: Facts, _memory: Memory) -> Answer:
        """Speaks of checks only."""
        if question is not Question.CHECK:
            return Answer()
        last, now = facts.last_check, facts.at.wall
        if last is None or last > now:
            due = now
        else:
            later = self.spread_s * fraction(facts.seed, "cron")
            # The base is the time the line names, not the check that came `later` after it: else a check that was
            # asked for in between would count as the spread one. One second absorbs rounding.
            due = made_up(self.after(last - later + 1.0) + later, facts, self.spread_s)
        return Answer((due_gate("cron", facts, due, f'by "{self.line}" ({self.zone})'),))

    def after(self, wall: float) -> float:
        """The first instant (Unix seconds) after `wall` at which the line comes true."""
        local = local_of(wall, self._zone)
        while True:
            local = _next(self._triggers, local)
            instant = instant_of(local, self._zone)
            if instant > wall:
                return instant


def _next(triggers: tuple[Any, ...], local: datetime) -> datetime:
    """The next wall-clock time after `local`; the calculator is told it is UTC, which has no jumps."""
    start = local.replace(microsecond=0, tzinfo=UTC) + timedelta(seconds=1)
    times = (trigger.get_next_fire_time(None, start) for trigger in triggers)
    found: datetime = min(time for time in times if time is not None)
    return found.replace(tzinfo=None)


def _parse(line: str) -> tuple[Any, ...]:
    parts = line.lower().split()
    if len(parts) != len(_FIELDS):
        raise _refused(line, f"{len(parts)} fields")
    values = dict(zip(_FIELDS, parts, strict=True))
    both = not values["day"].startswith("*") and not values["day_of_week"].startswith("*")
    variants = [{**values, "day": "*"}, {**values, "day_of_week": "*"}] if both else [values]
    triggers = []
    try:
        for variant in variants:
            fields = {**variant, "day_of_week": _weekdays(variant["day_of_week"])}
            settings = {"second": 0, "timezone": UTC, "start_date": _FIRST, "jitter": None}
            trial = CronTrigger(**fields, **settings, end_date=_LAST)
            if trial.get_next_fire_time(None, _FIRST) is not None:
                triggers.append(CronTrigger(**fields, **settings))
    except (ValueError, TypeError) as error:
        raise _refused(line, str(error)) from error
    if not triggers:
        raise _refused(line, "a date that never comes")
    return tuple(triggers)


def _weekdays(text: str) -> str:
    """Cron's weekdays (0 or 7 is Sunday) as names: the calculator counts from Monday, and knows no 6-1."""
    if text.startswith("*"):
        step = int(text[2:]) if text.startswith("*/") else 1
        return ",".join(_DAYS[0::step]) if step > 1 else text
    chosen: set[int] = set()
    for part in text.split(","):
        span, _, every = part.partition("/")
        first, _, last = span.partition("-")
        start, stop = _weekday(first), _weekday(last or first)
        stop += 7 if stop < start else 0
        chosen.update(day % 7 for day in range(start, stop + 1, int(every or 1)))
    return ",".join(_DAYS[day] for day in sorted(chosen))


def _weekday(text: str) -> int:
    day = _DAYS.index(text[:3]) if text[:1].isalpha() else int(text)
    if not 0 <= day <= 7:
        raise ValueError(f"weekday {text}")
    return day


def _refused(line: str, found: str) -> UsageError:
    return UsageError(
        f'cron line "{line}": found {found}; allowed are five fields: minute hour day month weekday, such as '
        '"30 2 * * mon-fri"',
        code="cron",
    )
