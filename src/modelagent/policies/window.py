"""In which hours of the week to download and to switch.

This file knows weekly windows in a time zone. It does not know what is to be downloaded. "Now" lifts windows; it is
a person's word, and recorded as such by whoever asks.

    Windows(("Mon-Fri 22:00-05:00",), ("Sun 03:00-04:00",), "Europe/Madrid").answer(Question.ACQUIRE, facts, {})

A window is open while the local clock shows a time in it: an hour that comes twice counts twice, and a window that
lies wholly in a skipped hour does not open that day.
"""

import re
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from modelagent.core.verdicts import Allow, Wait
from modelagent.errors import UsageError
from modelagent.policies import Answer, Facts, Gate, Memory, Question
from modelagent.policies.localtime import instant_of, local_of, show, zone_of

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM: Final = re.compile(r"(?:(?P<days>\S+) +)?(?P<h1>\d\d):(?P<m1>\d\d)-(?P<h2>\d\d):(?P<m2>\d\d)")
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """A span of local time that begins on each of `days` (0 is Monday); minutes of the day, the end may be the next."""

    days: frozenset[int]
    start: int
    stop: int  # more than 1440 when it ends on the next day

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Read "Mon-Fri 22:00-05:00", "Sat,Sun 00:00-24:00" or "01:00-04:00"; UsageError otherwise."""
        form = _FORM.fullmatch(text.strip().lower())
        try:
            if form is None:
                raise ValueError("its form")
            start, stop = (_minutes(form[f"h{n}"], form[f"m{n}"]) for n in (1, 2))
            if start == 1440:
                raise ValueError("a start at 24:00")
            days = _days(form["days"]) if form["days"] else frozenset(range(7))
        except ValueError as error:
            raise UsageError(
                f'window "{text}": found {error}; allowed is one such as "Mon-Fri 22:00-05:00" or "01:00-04:00"',
                code="window",
            ) from error
        return cls(days, start, stop if stop > start else stop + 1440)

    def spans(self, day: date) -> tuple[datetime, datetime] | None:
        """Local start and end of the window that begins on `day`, if one does."""
        if day.weekday() not in self.days:
            return None
        midnight = datetime.combine(day, time())
        return midnight + timedelta(minutes=self.start), midnight + timedelta(minutes=self.stop)


@dataclass(frozen=True, slots=True)
class Windows:
    """Weekly windows for downloads and, apart from them, for switching; none for a question means always."""

    download: tuple[str, ...] = ()
    activate: tuple[str, ...] = ()
    zone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _windows: dict[Question, tuple[Window, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", zone_of(self.zone))
        texts = {Question.ACQUIRE: self.download, Question.ACTIVATE: self.activate}
        windows = {question: tuple(Window.parse(text) for text in of) for question, of in texts.items()}
        object.__setattr__(self, "_windows", windows)

    def answer(self, question: Question, facts: Facts, _memory: Memory) -> Answer:
        """Speaks of downloads and switching."""
        if question not in self._windows:
            return Answer()
        windows = self._windows[question]
        texts = self.download if question is Question.ACQUIRE else self.activate
        saw = f"{', '.join(texts) or 'always open'} ({self.zone})"
        now, lifted = facts.at.wall, False
        if not windows:
            verdict: Allow | Wait = Allow("no windows are set", "window")
        elif is_open(windows, now, self._zone):
            verdict = Allow("the window is open", "window")
        elif facts.now:
            verdict, lifted = Allow('closed, and lifted by "now"', "window"), True
        elif facts.back:
            verdict = Allow("the window is closed; going back is never delayed", "window")
        else:
            opens = opening(windows, now, self._zone)
            verdict = Wait(opens, f"the window opens at {show(opens, self._zone)}", "window")
        return Answer((Gate("window", verdict, saw, facts.at, lifted=lifted),))


def is_open(windows: tuple[Window, ...], wall: float, zone: ZoneInfo) -> bool:
    """Whether the local clock shows a time in one of the windows."""
    local = local_of(wall, zone)
    spans = (window.spans(day) for window in windows for day in (local.date() - _DAY, local.date()))
    return any(span[0] <= local < span[1] for span in spans if span is not None)


def opening(windows: tuple[Window, ...], wall: float, zone: ZoneInfo) -> float:
    """Unix seconds at which a window opens next, seen from a moment in which none is open."""
    today = local_of(wall, zone).date()
    starts = []
    # Two weeks: one opening of a weekly window may fall into a skipped hour.
    for day in (today + n * _DAY for n in range(-1, 15)):
        for window in windows:
            span = window.spans(day)
            if span is not None:
                start = instant_of(span[0], zone)
                if start > wall and is_open(windows, start, zone):
                    starts.append(start)
        if starts:
            break
    # The hour that comes twice may reopen a window that the first pass had closed.
    return min([*starts, *_reopening(windows, wall, zone)], default=wall + _DAY.total_seconds())


def _reopening(windows: tuple[Window, ...], wall: float, zone: ZoneInfo) -> list[float]:
    minute = 60 - wall % 60
    if datetime.fromtimestamp(wall, zone).utcoffset() == datetime.fromtimestamp(wall + 7200, zone).utcoffset():
        return []
    times = (wall + minute + 60 * n for n in range(120))
    return [at for at in times if is_open(windows, at, zone)][:1]


def _minutes(hours: str, minutes: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > 1440:
        raise ValueError(f"{hours}:{minutes}")
    return total


def _days(text: str) -> frozenset[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        for name in (first, last):
            if name not in _DAYS:
                raise ValueError(f"day {name!r}")
        start, stop = _DAYS.index(first), _DAYS.index(last)
        chosen.update(day % 7 for day in range(start, stop + 1 + (7 if stop < start else 0)))
    return frozenset(chosen)
