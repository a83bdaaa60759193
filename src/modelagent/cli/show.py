"""How answers look: words for times and sizes, and tables that are pretty on a terminal and plain in a pipe.

This file knows terminals. It does not know what it shows. rich is imported only when a table goes to a terminal.

    table(["version", "cause"], [["1.2.0", "failed"]])
    ago(now - 840, now)      # "14 min ago"
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

_STEPS = ((86400.0 * 2, 86400.0, "d"), (3600.0 * 2, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))
_COLOURS = {"alarm": "red", "fail": "red", "warning": "yellow", "warn": "yellow", "ok": "green"}


def span(seconds: float) -> str:
    """A duration in one unit, for people: 95 -> "95 s", 7500 -> "2 h"."""
    seconds = abs(seconds)
    for least, unit, word in _STEPS:
        if seconds >= least:
            return f"{seconds / unit:.0f} {word}"
    raise AssertionError(seconds)  # NaN alone comes here


def ago(then: float | None, now: float) -> str:
    """A moment (Unix seconds) seen from `now`: "14 min ago", "in 2 h", "never"."""
    if not then:
        return "never"
    return f"{span(now - then)} ago" if then <= now else f"in {span(then - now)}"


def moment(wall: float) -> str:
    """A moment in local time, for a column."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def short(digest: str) -> str:
    """The beginning of a digest, enough to tell releases apart."""
    return digest[:12]


def coloured(text: str, level: str) -> str:
    """Text in the colour of its level; click leaves the colour out where no terminal reads."""
    colour = _COLOURS.get(level)
    return click.style(text, fg=colour) if colour else text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], levels: Sequence[str] = ()) -> None:
    """Print a table; `levels` (one a row) colours rows on a terminal. In a pipe: columns padded by spaces."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only where somebody looks

        Console().print(rich_table(columns, rows, levels))
        return
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], levels: Sequence[str]) -> Any:
    """The same table as a rich renderable, for a display that is drawn anew."""
    from rich.table import Table  # noqa: PLC0415 - only where somebody looks
    from rich.text import Text  # noqa: PLC0415 - the same

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for index, row in enumerate(rows):
        # Text, not str: square brackets in a reason are no markup.
        style = _COLOURS.get(levels[index], "") if index < len(levels) else ""
        shown.add_row(*(Text(str(cell)) for cell in row), style="" if style == "green" else style)
    return shown
