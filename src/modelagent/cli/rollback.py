"""`modelagent rollback`: leave the running version for the newest confirmed one on disk.

This file knows the two ways: asking the updater, or, with it down, doing the same step in its stead under its lock
and as its user. It does not know how a revert is done.

    modelagent rollback --reason "wrong readings on line 2"
    modelagent rollback --offline          # no network, no updater, expired metadata, a full disk: it works
"""

import json
import os
from pathlib import Path

import click

from modelagent.cli import REFUSED, Frame
from modelagent.cli.talk import Command, lasting, model_of, settings_of, steer
from modelagent.errors import UsageError


@lasting
@click.option("--reason", default="", help="Kept in the history and shown with the block.")
@click.option("--offline", is_flag=True, help="Do it without the updater, which must not be running.")
def rollback(frame: Frame, command: Command, *, reason: str, offline: bool) -> None:
    """Leave the running version for the newest confirmed one.

    The version that is left is blocked by cause "operator", until lifted by hand or by a pin. Without a confirmed
    version to go to the command is refused. --offline needs neither updater nor network, and may be called by root.
    """
    if not offline:
        steer(frame, command, "rollback", argument=reason)
    if reason or command.id or command.wait:
        raise UsageError("--offline takes none of --reason, --id and --wait", code="bad-option")
    settings = settings_of(frame)
    model = model_of(settings, command.model)
    from modelagent.updater import rollback_offline  # noqa: PLC0415 - heavy, and needed by this way alone

    become_owner(settings.paths.state_dir, settings.paths.run_dir)
    try:
        told = rollback_offline(settings, model)
    except UsageError as error:  # refused by the machine's own rules, not a wrong command line
        _print(frame, model, "refused", error.message)
        raise SystemExit(REFUSED) from error
    _print(frame, model, "done", told)


def become_owner(directory: Path, run_dir: Path) -> None:
    """As root, go on as the user that owns `directory`, so that nothing in it comes to belong to root.

    `run_dir`, where the lock is, goes with the updater (RuntimeDirectory=), and its user could not make it anew.
    """
    if os.geteuid() != 0 or not directory.exists():
        return
    owner = directory.stat()
    if owner.st_uid != 0:
        if not run_dir.exists():
            run_dir.mkdir(0o750)
            os.chown(run_dir, owner.st_uid, owner.st_gid)
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _print(frame: Frame, model: str, status: str, reason: str) -> None:
    if frame.json:
        click.echo(json.dumps({"status": status, "model": model, "reason": reason}, indent=1))
    else:
        line = f"{model}: offline rollback {status}" + (f": {reason}" if reason else "")
        click.echo(line, err=status != "done")
