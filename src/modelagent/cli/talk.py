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

from modelagent.cli import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    FAILED,
    OK,
    REFUSED,
    UNREACHABLE,
    Frame,
    json_option,
    model_option,
    say_error,
)
from modelagent.cli.follow import Ending, Look, Wait, follow
from modelagent.cli.run import own_directory
from modelagent.errors import AgentError, UsageError
from modelagent.inputs.config import Settings, load, load_or_recall
from modelagent.inputs.control import ask
from modelagent.inputs.fields import parse_duration
from modelagent.inputs.schema import Paths
from modelagent.sinks.log import escape

PATIENCE: Final = 10.0  # seconds for the first answer; the updater answers at once and works afterwards
_CODES: Final = {"done": OK, "accepted": OK, "failed": FAILED, "refused": REFUSED}


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A time as in the settings: seconds, or "1h30m"."""
    if value is None:
        return None
    try:
        return parse_duration(float(value) if value.replace(".", "", 1).isdecimal() else value)
    except ValueError as error:
        raise click.BadParameter(f"found {value!r}; allowed: {error}", ctx, param) from error


WAIT: Final = click.option("--wait", is_flag=True, help="Wait until it is over; the exit code says how it ended.")
TIMEOUT: Final = click.option(
    "--timeout", callback=_seconds, metavar="TIME", help='Wait, but at most so long ("90s", "2h"); then exit 1.'
)


@dataclass(frozen=True, slots=True)
class Command:
    """What every steering command is given; both may be empty."""

    model: str = ""
    id: str = ""
    wait: bool = False  # follow it to its end
    timeout: float = float("inf")  # seconds for that


def settings_of(frame: Frame) -> Settings:
    """The settings in force: those of the file or, where it is bad, the last good ones, as the agent itself does.

    UsageError, which names file, key and what is allowed, where none are known to belong to that file.
    """
    directory = own_directory("updater", frame.config)
    if directory == Paths().state_dir and frame.config != DEFAULT_CONFIG:
        return load(frame.config)  # a file that does not say whose it is must not be taken for this machine's
    loaded = load_or_recall(frame.config, directory)
    if loaded.problem:
        click.echo(f"modelagent: {loaded.problem}\nmodelagent: going on with the last good settings", err=True)
    return loaded.settings


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
    look = looker(settings, model)
    ending = None
    try:
        before = look("status") if command.wait else {}
        answer = ask(settings.paths.control_socket, question, PATIENCE)
        if command.wait and answer.get("status") == "accepted":
            if not frame.json:
                _print(frame, answer, f"{model}: {verb}")
            ending = follow(look, Wait(verb, before, argument), command.timeout, teller(frame, model))
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    if ending is not None:
        _end(frame, answer, model, ending)
    _print(frame, answer, f"{model}: {verb}")
    raise SystemExit(_CODES.get(str(answer.get("status")), FAILED))


def looker(settings: Settings, model: str) -> Look:
    """What the updater says of one model, by verb (status, explain)."""

    def look(verb: str) -> Mapping[str, Any]:
        result = view(settings, verb, model).get("result") or {}
        told: Mapping[str, Any] = (result.get("models") or {}).get(model) or {}
        return told

    return look


def steering(function: Callable[..., Any]) -> click.Command:
    """The options of every steering command, gathered in one `command` argument."""
    return _command(function, ())


def lasting(function: Callable[..., Any]) -> click.Command:
    """As `steering`, for a command that is accepted first and ends later: with `--wait` and `--timeout`."""
    return _command(function, (WAIT, TIMEOUT))


def _command(function: Callable[..., Any], options: tuple[Callable[[Any], Any], ...]) -> click.Command:
    def wrapped(
        frame: Frame, /, model: str, id_: str, *, wait: bool = False, timeout: float | None = None, **rest: Any
    ) -> Any:
        limit = float("inf") if timeout is None else timeout
        return function(frame, Command(model, id_, wait or timeout is not None, limit), **rest)

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
        *reversed(options),
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


def teller(frame: Frame, model: str) -> Callable[[str], None]:
    """Who is told what happens meanwhile; for JSON nobody, it is one document."""
    return lambda line: None if frame.json else click.echo(f"{model}: {escape(line)}")


def _end(frame: Frame, answer: Mapping[str, Any], model: str, ending: Ending) -> NoReturn:
    if frame.json:
        click.echo(json.dumps({**answer, "over": ending.over, "good": ending.good, "outcome": ending.text}, indent=1))
    else:
        word = "done" if ending.good else "failed" if ending.over else "waiting"
        click.echo(f"{model}: {word}: {escape(ending.text)}", err=not ending.good)
    raise SystemExit(OK if ending.good else FAILED)


def _print(frame: Frame, answer: Mapping[str, Any], what: str) -> None:
    status, reason = str(answer.get("status", "failed")), str(answer.get("reason", ""))
    if frame.json:
        click.echo(json.dumps(answer, indent=1))
        return
    again = " (as answered before)" if answer.get("duplicate") else ""
    line = f"{what} {status}{again}" + (f": {reason}" if reason else "")
    click.echo(line, err=status not in {"done", "accepted"})
