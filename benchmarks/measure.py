"""What the figures share: their form, order statistics, and how busy the machine was with other things.

This file knows numbers and /proc. It does not know what is measured.

    Figure("loop.digits.added_us", "us", "<= 50").met(31.0)        # True
    with Foreign() as foreign: ...; foreign.cores                   # processors that others kept busy meanwhile
"""

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class NotHereError(Exception):
    """These figures cannot be measured here; the text says why and what to do."""


class Measured(NamedTuple):
    """A value and, in words, how it was had: counts, medians, conditions."""

    value: float
    how: str


class Figure(NamedTuple):
    """One figure: a name that never changes, its unit, and the aim ("<= 50", ">= 0.97", "" for none)."""

    name: str
    unit: str
    aim: str

    def met(self, value: float) -> bool | None:
        """Whether the aim is met; None without one."""
        if not self.aim:
            return None
        sign, bound = self.aim.split()
        return {"<=": value <= float(bound), ">=": value >= float(bound)}[sign]


class Group(NamedTuple):
    """Figures that come out of one measurement; `measure(folder)` gives a value for each, or raises NotHereError."""

    figures: tuple[Figure, ...]
    measure: Callable[[Path], Mapping[str, Measured]]


class Foreign:
    """Processors kept busy by processes that are not ours, while the block ran.

    Ours are this process and every child that has ended, with its own children; so end them within the block.
    """

    def __init__(self) -> None:
        self.cores = 0.0
        self._before = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._before = self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, busy, own = (after - before for after, before in zip(self._look(), self._before, strict=True))
        self.cores = max(0.0, (busy - own) / wall) if wall > 0 else 0.0

    @staticmethod
    def _look() -> tuple[float, float, float]:
        # proc_stat(5): user nice system idle iowait irq softirq steal; neither idle nor iowait is work.
        numbers = [int(text) for text in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        busy = (sum(numbers) - numbers[3] - numbers[4]) / _TICKS
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            own += usage.ru_utime + usage.ru_stime
        return time.monotonic(), busy, own


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
