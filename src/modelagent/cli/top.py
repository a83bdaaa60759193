"""`modelagent top`: the device at a glance, renewed every second.

This file knows the table and how rates come from two looks. It does not know where numbers are read
(`metrics/reading.py` does).

    modelagent top                    # until Ctrl-C
    modelagent top --once             # one picture, for scripts and tests
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from modelagent.cli import EXIT_CODES, Frame, json_option
from modelagent.cli.talk import settings_of
from modelagent.metrics.reading import ModelView, Reader, View

if TYPE_CHECKING:
    from rich.console import Group

_COLUMNS: Final = ("model", "version", "phase", "frames/s", "p50", "p99", "queue", "dropped", "faults", "memory")


@click.command(epilog=EXIT_CODES)
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.2, 60.0), help="Seconds.")
@json_option
@click.pass_obj
def top(frame: Frame, once: bool, interval: float) -> None:
    """What each model does now, renewed every second.

    Versions, phases, rates, latencies, queues, faults and memory. Ctrl-C ends it.
    """
    reader = Reader(settings_of(frame))
    if frame.json:
        click.echo(json.dumps(asdict(reader.read()), indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not for the list of commands
    from rich.live import Live  # noqa: PLC0415 - the same

    console = Console()
    before, at = reader.read(), time.monotonic()
    if once:
        time.sleep(interval)
        now = reader.read()
        console.print(picture(before, now, time.monotonic() - at))
        return
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                now, moment = reader.read(), time.monotonic()
                live.update(picture(before, now, moment - at), refresh=True)
                before, at = now, moment
        except KeyboardInterrupt:
            return


def picture(before: View, now: View, seconds: float) -> "Group":
    """The table, with rates over the time between two looks."""
    from rich.console import Group  # noqa: PLC0415 - not for the list of commands
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(title=None, expand=False)
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if number < 3 else "right")
    notes = []
    if now.updater:
        notes.append(Text(f"updater: {now.updater}", style="yellow"))
    for name, model in now.models.items():
        table.add_row(*_row(name, before.models.get(name), model, seconds))
        if model.silence:
            notes.append(Text(f"{name}: {model.silence}", style="yellow"))
        elif (model.health or {}).get("idle"):
            notes.append(Text(f"{name}: {(model.health or {})['idle']}", style="yellow"))
        waiting = model.state.get("waiting")
        if waiting:
            notes.append(Text(f"{name}: {waiting}"))
    return Group(Text(f"device {now.device}", style="bold"), table, *notes)


def _row(name: str, before: ModelView | None, model: ModelView, seconds: float) -> list[str]:
    health = model.health or {}
    running = health.get("running") or {}
    counts = (health.get("counters") or {}).get(running.get("digest")) or {}
    earlier_health = (before.health if before is not None else None) or {}
    earlier = (earlier_health.get("counters") or {}).get(running.get("digest")) or {}
    same = earlier_health.get("epoch") == health.get("epoch")
    # Between two records, not between two looks: a record is up to a second old.
    span = float(health.get("mono", 0.0)) - float(earlier_health.get("mono", 0.0)) if same else seconds
    done = int(counts.get("done", 0)) - (int(earlier.get("done", 0)) if same else 0)
    source = health.get("source") or {}
    memory = ((health.get("worker") or {}).get("rss_kb")) or 0
    return [
        name,
        str(running.get("version") or "-"),
        str(model.state.get("phase") or "-"),
        f"{done / span:.1f}" if span > 0 and same else "-",
        _latency(counts, 0.5),
        _latency(counts, 0.99),
        f"{source.get('queue', 0)}/{source.get('capacity', 0)}",
        str(source.get("dropped", 0)),
        str(sum((counts.get("faults") or {}).values())),
        f"{memory / 1024:.0f} MB" if memory else "-",
    ]


def _latency(counts: Mapping[str, Any], share: float) -> str:
    """The upper bound of the bucket that holds this share of all results."""
    histogram = counts.get("latency_us") or {}
    bounds, numbers = histogram.get("bounds") or [], histogram.get("counts") or []
    total, passed = sum(numbers), 0
    for bound, number in zip(bounds, numbers, strict=False):
        passed += number
        if total and passed >= share * total:
            return f"≤{bound / 1000:g} ms" if bound >= 1000 else f"≤{bound:g} us"
    return "-" if not total else ">10 s"
