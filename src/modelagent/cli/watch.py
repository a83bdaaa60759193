"""`modelagent watch`: what the updater on this device does, as it happens.

This file knows how to show news. It does not know what they mean.

    modelagent watch                       # one line now for each model, then one for each event, until Ctrl-C
    modelagent watch --json | jq 'select(.event.level == "alarm")'
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import click

from modelagent.cli import EXIT_CODES, UNREACHABLE, Frame, json_option, one_model_option, say_error
from modelagent.cli.show import coloured, moment
from modelagent.cli.talk import model_of, settings_of
from modelagent.errors import AgentError
from modelagent.inputs.control import converse
from modelagent.sinks.log import escape


@click.command(epilog=EXIT_CODES)
@one_model_option
@json_option
@click.pass_obj
def watch(frame: Frame, model: str) -> None:
    """What happens on this device, as it happens.

    Ends with Ctrl-C, or when the updater does (exit code 4). With --json each line is one document, with the key
    `event` or `status`.
    """
    settings = settings_of(frame)
    name = model_of(settings, model) if model else ""
    request = {"id": f"watch-{secrets.token_hex(4)}", "verb": "watch", **({"model": name} if name else {})}
    phases: dict[str, str] = {}
    try:
        for answer in converse(settings.paths.control_socket, request, None):
            if answer.get("status") != "accepted":
                _end(frame, str(answer.get("reason", "")), str(answer.get("code", "refused")))
            result = answer.get("result")
            news = result if isinstance(result, Mapping) else {}
            if frame.json:
                if _concerns(news, name):
                    click.echo(json.dumps(news))
            else:
                for line in _lines(news, name, phases):
                    click.echo(line)
    except AgentError as error:
        _end(frame, error.message, error.code)
    _end(frame, "the updater has ended; see its log, and watch again once it runs", "down")


def _end(frame: Frame, message: str, code: str) -> NoReturn:
    if frame.json:
        click.echo(json.dumps({"error": message, "code": code}))  # one line, as everything before it
    else:
        say_error(frame, message, code)
    raise SystemExit(UNREACHABLE)


def _concerns(news: Mapping[str, Any], model: str) -> bool:
    event = news.get("event")
    return not (model and isinstance(event, Mapping) and event.get("model") not in (model, ""))


def _lines(news: Mapping[str, Any], model: str, phases: dict[str, str]) -> Iterator[str]:
    event, status = news.get("event"), news.get("status")
    if isinstance(event, Mapping) and _concerns(news, model):
        version = f" {event['version']}" if event.get("version") else ""
        text = f"{_when(event)}  {event.get('model') or 'device'}{version}: {event.get('kind')}: {event.get('text')}"
        yield coloured(escape(text), str(event.get("level", "")))
    if isinstance(status, Mapping):
        for name, told in (status.get("models") or {}).items():
            if model and name != model:
                continue
            line = f"{told.get('phase')}" + (f": {told['waiting']}" if told.get("waiting") else "")
            if phases.get(name) != line:
                phases[name] = line
                yield escape(f"{moment(time.time())}  {name} is in {line}")


def _when(event: Mapping[str, Any]) -> str:
    try:
        return moment(datetime.fromisoformat(str(event.get("time"))).timestamp())
    except (ValueError, OverflowError):
        return str(event.get("time"))
