"""`modelagent install BUNDLE`: take a release from a file or directory, by the same steps and checks as from a server.

This file knows how to ask and what to wait for. It does not know what a bundle holds; the updater looks at it.

    modelagent install /media/stick/digits.modelagent
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from modelagent.cli import EXIT_CODES, FAILED, OK, REFUSED, UNREACHABLE, Frame, json_option, one_model_option, say_error
from modelagent.cli.follow import Ending, Wait, follow
from modelagent.cli.talk import PATIENCE, TIMEOUT, WAIT, looker, models_of, request, settings_of, teller
from modelagent.errors import AgentError
from modelagent.inputs.control import ask
from modelagent.sinks.log import escape

_WAIT_S: Final = 60.0  # for the check; the rest takes as long as canary and probation do


@click.command(epilog=EXIT_CODES)
@one_model_option
@click.option("--no-wait", is_flag=True, help="Do not even wait until the bundle has been looked at.")
@TIMEOUT
@WAIT
@json_option
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.pass_obj
def install(frame: Frame, *, bundle: Path, model: str, wait: bool, timeout: float | None, no_wait: bool) -> None:
    """Take a release from a bundle: a stick, a file, a directory.

    BUNDLE is what `modelagent repo bundle` wrote; a copy of the repository will do, too. It is checked as if it came
    from the server, and goes through canary and probation as always; windows and waves are lifted. A bundle older
    than what this device has seen is not believed, but its files are taken where metadata that was verified before
    lists them. The command ends when the bundle has been looked at; with --wait, when what it brought runs or does not.
    """
    settings = settings_of(frame)
    place, verb = str(bundle.absolute()), "update" if wait or timeout is not None else "check"
    limit = _WAIT_S if verb == "check" else float("inf") if timeout is None else timeout
    looks = {name: looker(settings, name) for name in models_of(settings, model)}
    found: dict[str, Ending] = {}
    try:
        waits = {name: Wait(verb, look("status"), "") for name, look in looks.items()}
        said = ask(settings.paths.control_socket, request("install", model or None, place, ""), PATIENCE)
        status, reason = str(said.get("status")), str(said.get("reason", ""))
        if status not in {"accepted", "done"}:
            say_error(frame, reason, str(said.get("code", status)))
            raise SystemExit(REFUSED if status == "refused" else FAILED)
        if not frame.json:
            click.echo(f"{bundle}: {status}: {reason}")
        if not no_wait:
            for name, look in looks.items():
                ending = follow(look, waits[name], limit, teller(frame, name))
                found[name] = _judged(ending, look("status"), place)
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    if frame.json:
        click.echo(json.dumps({**said, "models": {name: asdict(ending) for name, ending in found.items()}}, indent=1))
    else:
        for name, ending in found.items():
            click.echo(f"{name}: {escape(ending.text)}", err=not ending.good)
    raise SystemExit(OK if all(ending.good for ending in found.values()) else FAILED)


def _judged(ending: Ending, told: Mapping[str, Any], place: str) -> Ending:
    """The ending, with what the check had against the bundle.

    An offer may have come from elsewhere: a bundle that was refused and changed nothing is no success.
    """
    against = [str(note) for note in (told.get("check") or {}).get("notes") or [] if place in str(note)]
    if not against:
        return ending
    helps = told.get("candidate") is not None or told.get("standby") is not None
    return Ending(ending.good and helps, "; ".join([ending.text, *against]), ending.over)
