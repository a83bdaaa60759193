"""`modelagent explain`: each gate's answer at this moment, with its reason.

This file knows how to word answers. It does not know any gate.

    modelagent explain -m digits      # download: wait until 22:00 (window): outside Mon-Fri 22:00-05:00
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from modelagent.cli import EXIT_CODES, REFUSED, UNREACHABLE, Frame, json_option, model_option, say_error
from modelagent.cli.show import ago, coloured
from modelagent.cli.talk import models_of, settings_of, view
from modelagent.errors import AgentError

_LEVELS = {"allow": "ok", "wait": "warning", "deny": "alarm"}


@click.command(epilog=EXIT_CODES)
@model_option
@json_option
@click.pass_obj
def explain(frame: Frame, model: str) -> None:
    """Why is something happening, or not: each gate's present answer.

    Only the running updater can say; what it decided earlier, and why, is in the history.
    """
    settings = settings_of(frame)
    names = models_of(settings, model)
    try:
        answer = view(settings, "explain", names[0] if len(names) == 1 else None)
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    if answer.get("status") != "done":
        say_error(frame, str(answer.get("reason", "")), str(answer.get("code", "refused")))
        raise SystemExit(REFUSED)
    result = answer.get("result") or {}
    if frame.json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo("\n".join(_lines(result.get("models", {}), time.time())))


def _lines(models: Mapping[str, Mapping[str, Any]], now: float) -> Iterator[str]:
    for name, told in models.items():
        yield click.style(f"{name}: {told.get('phase')}", bold=True)
        if told.get("waiting"):
            yield f"  waiting: {told['waiting']}"
        for gate, answer in told.items():
            if isinstance(answer, Mapping) and "answer" in answer:
                yield f"  {gate:<10} {_verdict(answer, now)}"
        for question, gates in (told.get("gates") or {}).items():
            yield from _gates(question, gates, now)


def _gates(question: str, gates: object, now: float) -> Iterator[str]:
    if not isinstance(gates, list):
        return
    for answer in gates:
        if isinstance(answer, Mapping) and "answer" in answer:
            yield f"    {question}: {_verdict(answer, now)}"


def _verdict(answer: Mapping[str, Any], now: float) -> str:
    word = str(answer["answer"])
    until = f" {ago(answer['until'], now)}" if answer.get("until") else ""
    gate = f" ({answer['gate']})" if answer.get("gate") else ""
    reason = f": {answer['reason']}" if answer.get("reason") else ""
    return coloured(word, _LEVELS.get(word, "")) + until + gate + reason
