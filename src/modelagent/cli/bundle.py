"""`modelagent install BUNDLE`: take a release from a file or directory, by the same steps and checks as from a server.

This file knows how to ask and what to wait for. It does not know what a bundle holds; the updater looks at it.

    modelagent install /media/stick/digits.modelagent
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from modelagent.cli import EXIT_CODES, FAILED, OK, REFUSED, UNREACHABLE, Frame, json_option, model_option, say_error
from modelagent.cli.talk import PATIENCE, models_of, request, settings_of, view
from modelagent.errors import AgentError
from modelagent.inputs.control import ask

_LOOK_S: Final = 0.3
_WAIT_S: Final = 60.0  # for the check; the rest takes as long as canary and probation do


@click.command(epilog=EXIT_CODES)
@model_option
@click.option("--no-wait", is_flag=True, help="Do not wait until the bundle has been looked at.")
@json_option
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.pass_obj
def install(frame: Frame, bundle: Path, model: str, *, no_wait: bool) -> None:
    """Take a release from a bundle: a stick, a file, a directory.

    BUNDLE is what `modelagent repo bundle` wrote; a copy of the repository will do, too. It is checked as if it came
    from the server, and goes through canary and probation as always; windows and waves are lifted. A bundle older
    than what this device has seen is not believed, but its files are taken where metadata that was verified before
    lists them.
    """
    settings = settings_of(frame)
    names = models_of(settings, model)
    began = time.time()
    question = request("install", model or None, str(bundle.absolute()), "")
    try:
        said = ask(settings.paths.control_socket, question, PATIENCE)
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    status, reason = str(said.get("status")), str(said.get("reason", ""))
    if status not in {"accepted", "done"}:
        say_error(frame, reason, str(said.get("code", status)))
        raise SystemExit(REFUSED if status == "refused" else FAILED)
    found: dict[str, Any] = {}
    if not no_wait:
        found = {name: _outcome(frame, name, began) for name in names}
    if frame.json:
        click.echo(json.dumps({**said, "models": found}, indent=1))
    else:
        click.echo(f"{bundle}: {status}: {reason}")
        for name, told in found.items():
            click.echo(f"{name}: {told['text']}")
    raise SystemExit(FAILED if any(told["error"] for told in found.values()) else OK)


def _outcome(frame: Frame, name: str, began: float) -> dict[str, Any]:
    """What came of the check that the bundle caused."""
    settings = settings_of(frame)
    end = time.monotonic() + _WAIT_S
    while True:
        told: Mapping[str, Any] = (view(settings, "status", name).get("result") or {}).get("models", {}).get(name, {})
        check = told.get("check") or {}
        over = check.get("state") != "Checking" and (check.get("last_try") or 0.0) >= began
        if over or time.monotonic() > end:
            break
        time.sleep(_LOOK_S)
    error = str(check.get("error") or "") if over else "it has not been looked at yet; see `modelagent status`"
    offer = (told.get("offer") or {}).get("version")
    text = error or f"offered {offer or 'nothing'}, now {told.get('phase')}"
    return {"error": error, "offer": offer, "phase": told.get("phase"), "text": text}
