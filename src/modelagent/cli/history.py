"""`modelagent history`: what happened to which version on this device, and why, with the numbers.

This file knows how to select and show lines. It reads the file and needs no updater. What a line means was written
into it when it happened.

    modelagent history -n 50
    modelagent history --json | jq '.[] | select(.kind == "canary") | .evidence'
"""

import json
from collections.abc import Mapping
from typing import Any

import click

from modelagent.cli import EXIT_CODES, Frame, json_option, one_model_option
from modelagent.cli.show import moment, table
from modelagent.cli.talk import model_of, settings_of
from modelagent.steps.journal import read_history


@click.command(epilog=EXIT_CODES)
@one_model_option
@click.option("-n", "--lines", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many.")
@click.option("--all", "everything", is_flag=True, help="All that are kept.")
@click.option("--version", default="", help="Only lines about this version.")
@click.option("--kind", default="", help="Only lines of this kind: offered, canary, activated, reverted, ...")
@click.option("-v", "--verbose", is_flag=True, help="With the evidence: every number behind a verdict.")
@json_option
@click.pass_obj
def history(frame: Frame, *, model: str, lines: int, everything: bool, version: str, kind: str, verbose: bool) -> None:
    """What happened to which version, and why.

    Oldest first. A line marked "not done" was decided, but the device was cut off before it was carried out.
    """
    settings = settings_of(frame)
    name = model_of(settings, model) if model else None
    chosen = [
        line
        for line in read_history(settings.paths.state_dir, None, name)
        if (not version or line.get("version") == version) and (not kind or line.get("kind") == kind)
    ]
    shown = chosen if everything else chosen[-lines:]
    if frame.json:
        click.echo(json.dumps(shown, indent=1))
    elif not shown:
        click.echo("nothing has happened yet" if not (version or kind or model) else "no such line")
    else:
        _print(shown, several=len(settings.models) > 1, verbose=verbose)


def _print(lines: list[dict[str, Any]], *, several: bool, verbose: bool) -> None:
    columns = ["time", *(["model"] if several else []), "version", "what", "why"]
    rows = []
    for line in lines:
        why = str(line.get("text", ""))
        if line.get("unfinished"):
            why = f"(not done) {why}"
        if line.get("origin"):
            why += f" [{line['origin']}]"
        if verbose and line.get("evidence"):
            why += f" {_evidence(line['evidence'])}"
        rows.append(
            [
                moment(float(line.get("wall", 0.0))),
                *([str(line["model"])] if several else []),
                str(line.get("version") or ""),
                str(line.get("kind", "")),
                why,
            ]
        )
    table(columns, rows, [str(line.get("level", "")) for line in lines])


def _evidence(evidence: Mapping[str, Any]) -> str:
    return json.dumps(evidence, sort_keys=True)
