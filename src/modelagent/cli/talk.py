"""Speaking with the updater over its control socket, and saying its answer with the right exit code.

This file knows the socket's place, requests and answers. It does not know what a verb does.

    steer(frame, Command(model="digits"), "hold", argument="audit week")      # prints; exits 0, 1, 3 or 4
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import click

from modelagent.cli import EXIT_CODES, FAILED, OK, REFUSED, UNREACHABLE, Frame, json_option, model_option, say_error
from modelagent.errors import AgentError, UsageError
from modelagent.inputs.config import Settings, load
from modelagent.inputs.control import ask

PATIENCE: Final = 10.0  # seconds for the first answer; the updater answers at once and works afterwards
_CODES: Final = {"done": OK, "accepted": OK, "failed": FAILED, "refused": REFUSED}


@dataclass(frozen=True, slots=True)
class Command:
    """What every steering command is given; both may be empty."""

    model: str = ""
    id: str = ""


def settings_of(frame: Frame) -> Settings:
    """The settings that this command was given; UsageError names file, key and what is allowed."""
    return load(frame.config)


def model_of(settings: Settings, asked: str) -> str:
    """The model that is meant: the one asked for, or the only one there is; else UsageError names them all."""
    names = ", ".join(settings.models) or "none"
    if asked:
        if asked not in settings.models:
            raise UsageError(f"--model {asked}: the settings know no such model; known: {names}", code="unknown-model")
        return asked
    if len(settings.models) != 1:
        raise UsageError(f"--model is needed, since the settings name not one model but: {names}", code="which-model")
    return next(iter(settings.models))


def models_of(settings: Settings, asked: str) -> list[str]:
    """The model asked for, or all."""
    return [model_of(settings, asked)] if asked else list(settings.models)


def view(settings: Settings, verb: str, model: str | None = None, argument: str = "") -> Mapping[str, Any]:
    """Ask what changes nothing; AgentError when the updater does not answer."""
    question = request(verb, model, argument, "")
    return ask(settings.paths.control_socket, question, PATIENCE)


def steer(frame: Frame, command: Command, verb: str, *, argument: str = "", **more: object) -> NoReturn:
    """Send a command, print the answer and end with its exit code."""
    settings = settings_of(frame)
    model = model_of(settings, command.model)
    question = request(verb, model, argument, command.id) | more
    try:
        answer = ask(settings.paths.control_socket, question, PATIENCE)
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    _print(frame, answer, f"{model}: {verb}")
    raise SystemExit(_CODES.get(str(answer.get("status")), FAILED))


def steering(function: Callable[..., Any]) -> click.Command:
    """The options of every steering command, gathered in one `command` argument."""

    def wrapped(frame: Frame, /, model: str, id_: str, **rest: Any) -> Any:
        return function(frame, Command(model, id_), **rest)

    wrapped.__doc__, wrapped.__name__ = function.__doc__, function.__name__
    decorated = click.pass_obj(wrapped)
    # A command's own options and arguments stand before the common ones.
    decorated.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
    for option in (
        json_option,
        click.option(
            "--id", "id_", default="", metavar="ID", help="The command's own id: sent again, it is not done again."
        ),
        model_option,
    ):
        decorated = option(decorated)
    return click.command(epilog=EXIT_CODES)(decorated)


def request(verb: str, model: str | None, argument: str, id_: str) -> dict[str, Any]:
    """A request as the control socket takes it; an empty id makes a new one."""
    document: dict[str, Any] = {"id": id_ or f"cli-{secrets.token_hex(8)}", "verb": verb}
    if model is not None:
        document["model"] = model
    if argument:
        document["argument"] = argument
    return document


def _print(frame: Frame, answer: Mapping[str, Any], what: str) -> None:
    status, reason = str(answer.get("status", "failed")), str(answer.get("reason", ""))
    if frame.json:
        click.echo(json.dumps(answer, indent=1))
        return
    again = " (as answered before)" if answer.get("duplicate") else ""
    line = f"{what} {status}{again}" + (f": {reason}" if reason else "")
    click.echo(line, err=status not in {"done", "accepted"})
