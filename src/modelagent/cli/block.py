"""`modelagent block list|add|lift`: what is never activated here, and why.

This file knows how to word blocks. It does not know what is blocked for which reason: the updater does.

    modelagent block list
    modelagent block lift 1.2.0       # a withdrawal is lifted by signed data only, and refused here
"""

import json
from typing import NoReturn

import click

from modelagent.cli import EXIT_CODES, OK, UNREACHABLE, Frame, json_option, one_model_option
from modelagent.cli.show import moment, short, table
from modelagent.cli.status import gather
from modelagent.cli.talk import Command, models_of, settings_of, steer, steering


@click.group(epilog=EXIT_CODES)
def block() -> None:
    """List, add and lift blocks."""


@block.command("list", epilog=EXIT_CODES)
@one_model_option
@json_option
@click.pass_obj
def list_(frame: Frame, model: str) -> None:
    """List what is blocked here, with the cause.

    Causes: failed (its own canary, shadow or probation; lifted by hand), operator (rolled back or blocked by hand;
    lifted by hand or by a pin), withdrawn (by the publisher; lifted by signed data only).
    """
    settings = settings_of(frame)
    document = gather(settings, models_of(settings, model))
    rows = [{"model": name, **b} for name, entry in document["models"].items() for b in entry.get("blocks") or []]
    if frame.json:
        click.echo(json.dumps({"updater": document["updater"], "blocks": rows}, indent=1))
    elif rows:
        table(
            ["model", "version", "digest", "cause", "since", "reason"],
            [
                [
                    b["model"],
                    b["version"],
                    short(b["digest"]),
                    b["cause"],
                    moment(b["at"]) if b.get("at") else "",
                    b["reason"],
                ]
                for b in rows
            ],
        )
    elif document["updater"]["answers"]:
        click.echo("nothing is blocked")
    if not frame.json and not document["updater"]["answers"]:
        unread = [entry["waiting"] for entry in document["models"].values() if entry.get("phase") is None]
        told = unread[0] if unread else f"what it wrote last names {len(rows) or 'no'} blocks"
        click.echo(f"modelagent: {document['updater']['reason']}; {told}", err=True)
    raise SystemExit(OK if document["updater"]["answers"] else UNREACHABLE)


@steering
@click.argument("version")
def add(frame: Frame, command: Command, version: str) -> NoReturn:
    """Block a version (or digest) by hand.

    If VERSION runs now, use rollback.
    """
    steer(frame, command, "block", argument=version)


@steering
@click.argument("version")
def lift(frame: Frame, command: Command, version: str) -> NoReturn:
    """Lift a block: VERSION (or its digest) may be tried again."""
    steer(frame, command, "lift", argument=version)


block.add_command(add)
block.add_command(lift)
