"""`modelagent simulate`: what a policy would have done on days that were recorded, or made up.

This file knows how to word a simulation. It does not know policies; the updater's own are asked.

    modelagent simulate --policy /etc/modelagent/modelagent.toml --trace examples/traces/plant.jsonl
    modelagent simulate --policy night.toml --trace days.jsonl --brief     # without the checks
"""

import json
import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click

from modelagent.cli import EXIT_CODES, Frame, json_option
from modelagent.cli.show import coloured, span
from modelagent.errors import UsageError
from modelagent.inputs.config import load
from modelagent.updater.simulation import Days, Entry, gaps
from modelagent.updater.simulation import simulate as replay
from modelagent.updater.traces import MAX_BYTES, Trace, parse


@click.command(epilog=EXIT_CODES)
@click.option(
    "--policy",
    "policy_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A settings file; [policy], [limits] and the model's probation count.",
)
@click.option(
    "--trace",
    "trace_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Days of facts; docs/policies.md has the format, examples/traces some.",
)
@click.option("--brief", is_flag=True, help="Leave the single checks out.")
@json_option
@click.pass_obj
def simulate(frame: Frame, policy_file: Path, trace_file: Path, *, brief: bool) -> None:
    """Replay days in a second: when would this policy have acted, and the bytes.

    The updater's own policies and state machine decide; the device around them is made up. Nothing is fetched.
    """
    settings = load(policy_file)
    trace = parse(_read(trace_file), str(trace_file))
    began = time.process_time()
    days = replay(settings, trace)
    took = time.process_time() - began
    shown = [entry for entry in days.entries if entry.kind != "check" or not brief]
    if frame.json:
        click.echo(json.dumps(_document(days, shown, trace), indent=1))
        return
    zone = ZoneInfo(settings.policy.timezone)
    for entry in shown:
        click.echo(_line(entry, zone))
    click.echo(_summary(days, trace, took))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path}: more than {MAX_BYTES // 2**20} MB; cut the trace into parts", code="trace")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; a trace is a text of JSON lines", code="trace") from error


def _line(entry: Entry, zone: ZoneInfo) -> str:
    moment = datetime.fromtimestamp(entry.wall, zone).strftime("%a %Y-%m-%d %H:%M:%S")
    size = f" ({_size(entry.bytes)})" if entry.bytes else ""
    return f"{moment}  {coloured(f'{entry.kind:<11}', entry.level)} {entry.text}{size}"


def _summary(days: Days, trace: Trace, took: float) -> str:
    between = gaps(days.checks)
    apart = f", {span(between[0])} to {span(between[1])} apart" if between else ""
    return (
        f"\n{trace.days:g} days: {len(days.checks)} checks{apart}; {days.downloads} downloads, {days.activations} "
        f"activations, {_size(days.bytes)} over the link\n{days.steps} steps in {took:.2f} s"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.0f} kB"


def _document(days: Days, shown: list[Entry], trace: Trace) -> dict[str, object]:
    return {
        "days": trace.days,
        "checks": len(days.checks),
        "downloads": days.downloads,
        "activations": days.activations,
        "bytes": days.bytes,
        "entries": [
            {"wall": entry.wall, "kind": entry.kind, "text": entry.text, "bytes": entry.bytes, "level": entry.level}
            for entry in shown
        ],
    }
