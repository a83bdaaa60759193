"""`modelagent run [inference|updater|metrics]`: the agent's processes.

This file knows which process is started how, where its log goes, and which settings it starts with when the file
turns out bad. It does not know what a process does, and imports the one that is asked for alone.

    modelagent run                    # both, as children of this process: containers, development
    modelagent run updater            # one of them: what the systemd units start

A process keeps the last good settings in its own directory: after a bad edit it starts with those and says so. With
nothing remembered it starts nothing (exit 2).
"""

import logging
import os
import sys
import tomllib
from pathlib import Path
from typing import Final

import click

from modelagent.cli import EXIT_CODES, Frame
from modelagent.sinks.log import configure

ROLES: Final = ("inference", "updater")
_log = logging.getLogger("modelagent")


@click.command(epilog=EXIT_CODES)
@click.argument("role", type=click.Choice((*ROLES, "metrics")), required=False)
@click.pass_obj
def run(frame: Frame, role: str | None) -> None:
    """Run the agent: inference and updater, or one of them.

    The role metrics serves Prometheus's page beside them. Without ROLE the first two run as children of this process:
    they are started again when they crash, and end when it ends (SIGTERM, Ctrl-C). SIGHUP makes them read the
    settings again (in a terminal it ends them, since the terminal has gone).
    """
    if role is None:
        raise SystemExit(_supervise(frame.config))
    from modelagent.supervisor import PARENT  # noqa: PLC0415 - only here

    if PARENT in os.environ:
        from modelagent.children import bind_to_parent  # noqa: PLC0415 - only under a supervisor

        bind_to_parent(int(os.environ.pop(PARENT)))
    raise SystemExit(_run(role, frame.config))


def _supervise(config: Path) -> int:
    from modelagent.inputs.config import load_or_recall  # noqa: PLC0415 - the single roles take another way
    from modelagent.supervisor import supervise  # noqa: PLC0415 - the same

    # With a bad file each child goes on with what it remembers; where nothing is remembered none is started.
    configure(load_or_recall(config, own_directory("updater", config)).settings.log.level, "supervisor")
    program = [sys.executable, "-m", "modelagent", "--config", str(config), "run"]
    return supervise({role: [*program, role] for role in ROLES}, log=_log.info)


def _run(role: str, config: Path) -> int:
    from modelagent.inputs.config import load_or_recall, remember  # noqa: PLC0415 - the supervisor takes another way

    own = own_directory(role, config)
    loaded = load_or_recall(config, own)
    settings = loaded.settings
    configure(settings.log.level, role)
    if loaded.problem:
        _log.error("the settings are bad, going on with the last good ones: %s", loaded.problem)
    elif role != "metrics":  # which writes nothing, and has inference's memory to fall back on
        own = settings.paths.state_dir if role == "updater" else settings.paths.inference_dir
        try:
            own.mkdir(parents=True, exist_ok=True)
            remember(settings, own)
        except OSError as error:
            _log.warning("%s: the settings could not be remembered there: %s", own, error.strerror)
    # Where a reload reads again: the same file, whatever way it was named.
    os.environ["MODELAGENT_CONFIG"] = str(config)
    if role == "updater":
        from modelagent.updater import run as run_updater  # noqa: PLC0415 - each process imports its own alone

        return run_updater(settings, loaded.problem)
    if role == "metrics":
        from modelagent.metrics import run as run_metrics  # noqa: PLC0415 - the same

        return run_metrics(settings)
    from modelagent.inference.loop import run_inference  # noqa: PLC0415 - the same

    return run_inference(settings)


def own_directory(role: str, config: Path) -> Path:
    """Where this process remembers settings, found without believing the file that may be bad.

    systemd says it (STATE_DIRECTORY); else the file's [paths], if that much of it can be read; else the default.
    """
    named = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if named.startswith("/"):
        return Path(named)
    key, default = {
        "updater": ("state_dir", "/var/lib/modelagent"),
        "inference": ("inference_dir", "/var/lib/modelagent-inference"),
        "metrics": ("inference_dir", "/var/lib/modelagent-inference"),
    }[role]
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8")).get("paths", {}).get(key, default)
    except (OSError, ValueError, AttributeError):
        found = default
    return Path(found) if isinstance(found, str) and found.startswith("/") else Path(default)
