"""`modelagent fleet`: every device that the broker knows, and commands to one, a group or all.

This file knows the retained status, replies, and how to show and count them. It does not know what a command does.

    modelagent fleet                                        # version, phase, reason and age of each device
    modelagent fleet --group lab --phase Probation --watch
    modelagent fleet command --group lab pin 1.2.0          # waits for each device's answer, at most so long

It runs wherever the broker can be reached; `[mqtt]` of the settings file, or options, say where that is. A device that
is offline is shown as it was when last heard of.
"""

import fnmatch
import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from modelagent.cli import EXIT_CODES, FAILED, OK, REFUSED, UNREACHABLE, Frame, json_option
from modelagent.cli.operator import Operator
from modelagent.cli.show import span, table
from modelagent.cli.values import number
from modelagent.errors import UsageError
from modelagent.inputs.commands import VERBS, WATCH
from modelagent.inputs.config import Mqtt, load, parse, parse_duration
from modelagent.sinks.log import escape

QUIET_S: Final = 1.0  # no further retained status for this long: that was all
COLUMNS: Final = ("device", "is", "model", "version", "phase", "reason", "age")
_MAX_STATUS: Final = 256 * 1024  # bytes
_SENT: Final = tuple(verb for verb in VERBS if verb not in (WATCH, "install", "label", "history", "explain"))
Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which devices and models are meant; an empty field means any."""

    device: str = ""
    group: str = ""
    model: str = ""
    version: str = ""
    phase: str = ""
    online: bool | None = None
    unwell: bool = False

    def rows(self, name: str, status: Status, now: float) -> list[tuple[list[str], str]]:
        """The table's lines of one device, each with its level; none when it is not meant."""
        online = bool(status.get("online"))
        if not fnmatch.fnmatchcase(name, self.device or "*") or (self.online is not None and online != self.online):
            return []
        if self.group and self.group not in _texts(status.get("groups")):
            return []
        models = status.get("models")
        known = models if isinstance(models, Mapping) and models else {"": {}}
        rows = []
        for model, told in known.items():
            entry = told if isinstance(told, Mapping) else {}
            running = entry.get("running")
            version = _text(running.get("version")) if isinstance(running, Mapping) else ""
            phase = _text(entry.get("phase"))
            wrong = _text(entry.get("health")) or next(iter(_texts(entry.get("alarms"))), "")
            if (
                (self.model and model != self.model)
                or (self.version and version != self.version)
                or (self.phase and phase.lower() != self.phase.lower())
                or (self.unwell and online and not wrong)
            ):
                continue
            reason = wrong or _text(entry.get("reason"))
            shown = [name, "online" if online else "offline", _text(model), version, phase, reason, _age(status, now)]
            rows.append((shown, "alarm" if wrong else "" if online else "warning"))
        return rows


def _broker(frame: Frame, given: Mapping[str, Any]) -> Mqtt:
    """The broker of the settings file, or of the options; those win."""
    document: dict[str, Any] = {}
    if frame.config.exists():
        document = load(frame.config).mqtt.model_dump(mode="json", exclude_none=True)
    tls = document.get("tls", {}) | {key: str(given[key]) for key in ("ca", "cert", "key") if given[key]}
    document |= {key: given[key] for key in ("host", "port", "prefix", "username") if given[key]}
    if given["password_file"]:
        document["password_file"] = str(given["password_file"])
    settings = parse({"mqtt": document | {"tls": tls}}, frame.config).mqtt
    if not settings.host:
        told = "names none in [mqtt] host" if frame.config.exists() else "is not there"
        raise UsageError(
            f"no broker: {frame.config} {told}; give --host, or the settings file by --config",
            code="no-broker",
        )
    return settings


_FILE: Final = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)


@click.group(invoke_without_command=True, epilog=EXIT_CODES)
@click.option("--host", default="", help="The broker; otherwise [mqtt] host of the settings.")
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="Its port.")
@click.option("--prefix", default="", help="First part of every topic.")
@click.option("--ca", type=_FILE, default=None, help="PEM of the broker's authority.")
@click.option("--cert", type=_FILE, default=None, help="PEM of your certificate.")
@click.option("--key", type=_FILE, default=None, help="PEM of its key.")
@click.option("--username", default="", help="Where the broker asks for a name.")
@click.option("--password-file", type=_FILE, default=None, help="Its first line is the password.")
@click.option("--device", default="", metavar="PATTERN", help="Only devices of this name; * and ? stand for others.")
@click.option("--group", default="", help="Only devices of this group.")
@click.option("--model", "-m", default="", help="Only this model.")
@click.option("--version", default="", help="Only where this version runs.")
@click.option("--phase", default="", help="Only in this phase: Idle, Deferred, Probation, ...")
@click.option("--online/--offline", default=None, help="Only those that are connected, or are not.")
@click.option("--unwell", is_flag=True, help="Only those that are offline, raise an alarm or have sick inference.")
@click.option("--watch", is_flag=True, help="Go on, and show what changes.")
@click.option("--wait", type=number, default=10.0, show_default=True, help="At most so many seconds to ask the broker.")
@json_option
@click.pass_context
def fleet(ctx: click.Context, /, *, watch: bool, wait: float, **given: Any) -> None:
    """All devices, and commands to one, a group or all.

    Shows what each device's retained status says. Exit code 1 when a device that is shown is offline or unwell.
    """
    frame: Frame = ctx.obj
    chosen = ("device", "group", "model", "version", "phase", "online", "unwell")
    choice = Choice(**{key: given[key] for key in chosen})
    if ctx.invoked_subcommand is not None:
        if choice != Choice() or watch:
            raise UsageError(
                f"the options that choose rows stand without a command; `{ctx.invoked_subcommand}` has its own",
                code="bad-option",
            )
        ctx.meta["broker"] = lambda: _broker(frame, given)  # asked only when it is no call for help
        return
    settings = _broker(frame, given)
    with Operator(settings) as operator:
        operator.hear(f"{settings.prefix}/+/status")
        known = dict(statuses(operator, settings.prefix, quiet=QUIET_S, limit=wait))
        if watch:
            _follow(frame, operator, settings.prefix, known, choice)
            return
    rows = _rows(known, choice)
    if frame.json:
        click.echo(json.dumps(_document(known, choice), indent=1))
    elif rows:
        table(COLUMNS, [row for row, _ in rows], [level for _, level in rows])
    else:
        click.echo("no device" if not known else f"none of {len(known)} devices is meant")
    raise SystemExit(FAILED if any(level for _, level in rows) else OK)


def statuses(
    operator: Operator, prefix: str, *, quiet: float | None = None, limit: float | None = None
) -> Iterator[tuple[str, Status]]:
    """Device and status of each status message; an empty one (a device that was removed) comes as {}."""
    for topic, payload in operator.messages(quiet=quiet, limit=limit):
        head, _, tail = topic.removeprefix(f"{prefix}/").partition("/")
        if tail != "status" or len(payload) > _MAX_STATUS:
            continue
        try:
            document = json.loads(payload) if payload else {}
        except (ValueError, RecursionError):
            document = {"online": False, "models": {"": {"health": "its status is no JSON"}}}
        if isinstance(document, dict):
            yield head, document


def _rows(known: Mapping[str, Status], choice: Choice) -> list[tuple[list[str], str]]:
    now = time.time()
    return [row for name in sorted(known) if known[name] for row in choice.rows(name, known[name], now)]


def _document(known: Mapping[str, Status], choice: Choice) -> dict[str, Any]:
    now = time.time()
    meant = [name for name in sorted(known) if known[name] and choice.rows(name, known[name], now)]
    return {"schema": 1, "at": now, "devices": [{**known[name], "device": name} for name in meant]}


def _follow(frame: Frame, operator: Operator, prefix: str, known: dict[str, Status], choice: Choice) -> None:
    """Show what is known and what changes, until interrupted: a living table, or in a pipe a line a change."""
    news = statuses(operator, prefix)
    if frame.json:
        for name, status in [*known.items()]:
            if choice.rows(name, status, time.time()):
                click.echo(json.dumps({**status, "device": name}))
        for name, status in news:
            if not status or choice.rows(name, status, time.time()):
                click.echo(json.dumps({**status, "device": name}))
    elif sys.stdout.isatty():
        _live(operator, prefix, known, choice)
    else:
        for row, _ in _rows(known, choice):
            click.echo("  ".join(row))
        for name, status in news:
            for row, _ in choice.rows(name, status, time.time()) if status else ():
                click.echo("  ".join(row))


def _live(operator: Operator, prefix: str, known: dict[str, Status], choice: Choice) -> None:
    from rich.live import Live  # noqa: PLC0415 - only where somebody looks

    from modelagent.cli.show import rich_table  # noqa: PLC0415 - the same

    def drawn() -> Any:
        rows = _rows(known, choice)
        return rich_table(COLUMNS, [row for row, _ in rows], [level for _, level in rows])

    with Live(drawn(), auto_refresh=False) as live:
        while True:
            # A second at most, so that ages grow; all that came in it is drawn at once.
            known.update(statuses(operator, prefix, quiet=None, limit=1.0))
            live.update(drawn(), refresh=True)


@fleet.command(epilog=EXIT_CODES)
@click.option("--device", "devices", multiple=True, metavar="ID", help="This device; may be given several times.")
@click.option("--group", default="", help="Every device of this group.")
@click.option("--all", "everybody", is_flag=True, help="Every device.")
@click.option("--model", "-m", default="", help="The model; needed where a device has several.")
@click.option("--id", "id_", default="", metavar="ID", help="The command's own id: sent again, it is not done again.")
@click.option(
    "--expires", default="", metavar="DURATION", help="Worth nothing after so long, such as 10m; else for ever."
)
@click.option("--time-limit", default="10s", show_default=True, metavar="DURATION", help="For the answers to come.")
@click.option("--yes", is_flag=True, help="Do not ask before a group or all are commanded.")
@json_option
@click.argument("verb", type=click.Choice(_SENT))
@click.argument("argument", default="")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    devices: tuple[str, ...],
    group: str,
    everybody: bool,
    model: str,
    id_: str,
    expires: str,
    time_limit: str,
    yes: bool,
    verb: str,
    argument: str,
) -> None:
    """Command one device, a group or all, and collect the answers.

    Devices that are online are waited for; one that is offline gets the command when it connects, if that is soon
    enough for the broker and for --expires. Exit code 3 when a device refuses, 4 when one does not answer.
    """
    frame: Frame = ctx.obj
    if sum((bool(devices), bool(group), everybody)) != 1:
        raise UsageError("give one of --device, --group and --all", code="bad-option")
    request: dict[str, Any] = {"id": id_ or f"fleet-{secrets.token_hex(8)}", "verb": verb}
    request |= {key: value for key, value in (("model", model), ("argument", argument)) if value}
    if expires:
        request["expires"] = time.time() + _seconds(expires, "--expires")
    limit = _seconds(time_limit, "--time-limit")
    settings: Mqtt = ctx.meta["broker"]()
    targets = [f"{name}/cmd" for name in devices] or [f"group/{group}/cmd" if group else "all/cmd"]
    with Operator(settings) as operator:
        operator.hear(f"{settings.prefix}/+/status", f"{settings.prefix}/+/reply")
        known = dict(statuses(operator, settings.prefix, quiet=QUIET_S, limit=10.0))
        meant = set(devices) or {n for n, s in known.items() if s and (not group or group in _texts(s.get("groups")))}
        awaited = {name for name in meant if known.get(name, {}).get("online") or name in devices}
        if not (devices or yes) and sys.stdin.isatty():
            click.confirm(f"{verb} {argument}".rstrip() + f": {len(meant)} devices. Go on?", abort=True, err=True)
        for target in targets:
            operator.publish(f"{settings.prefix}/{target}", json.dumps(request).encode())
        answers = _collect(operator, settings.prefix, request["id"], awaited, limit)
    _print(frame, request, answers, awaited, meant)


def _collect(
    operator: Operator, prefix: str, id_: str, awaited: set[str], limit: float
) -> dict[str, Mapping[str, Any]]:
    """The first answer of each device, until all that are awaited have answered or the time is over."""
    answers: dict[str, Mapping[str, Any]] = {}
    for topic, payload in operator.messages(limit=limit):
        name, _, tail = topic.removeprefix(f"{prefix}/").partition("/")
        if tail != "reply" or name in answers:
            continue
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get("id") == id_:
            answers[name] = document
            if awaited <= answers.keys():
                break
    return answers


def _print(
    frame: Frame,
    request: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Any]],
    awaited: set[str],
    meant: set[str],
) -> None:
    rows = []
    for name in sorted(meant | answers.keys()):
        said = answers.get(name)
        if said is not None:
            status, reason = _text(said.get("status")), _text(said.get("reason"))
            level = "" if status in ("accepted", "done") else "alarm"
            rows.append(([name, status, reason + (" (as answered before)" if said.get("duplicate") else "")], level))
        elif name in awaited:
            rows.append(([name, "silent", "no answer in time; ask again with the same --id"], "warning"))
        else:
            rows.append(([name, "offline", "gets it when it connects"], "warning"))
    silent = sorted(awaited - answers.keys())
    words = [_text(said.get("status")) for said in answers.values()]
    if frame.json:
        document = {"id": request["id"], "answers": dict(sorted(answers.items())), "silent": silent}
        click.echo(json.dumps({**document, "offline": sorted(meant - awaited - answers.keys())}, indent=1))
    else:
        if rows:
            table(("device", "answer", "reason"), [row for row, _ in rows], [level for _, level in rows])
        count = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))) or "no answer"
        click.echo(f"{request['id']}: {count}" + (f", {len(silent)} silent" if silent else ""))
    failed, refused = "failed" in words, "refused" in words
    raise SystemExit(FAILED if failed else REFUSED if refused else UNREACHABLE if silent or not rows else OK)


def _seconds(text: str, option: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: allowed: {error}", code="bad-option") from error


def _text(value: object) -> str:
    return escape(value)[:200] if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [_text(entry) for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _age(status: Status, now: float) -> str:
    try:
        return span(now - datetime.fromisoformat(str(status["time"])).timestamp())
    except (KeyError, ValueError, OverflowError):
        return "?"
