"""`modelagent status`: what runs on this device, and why nothing else does.

This file knows how to put two witnesses together: health says what runs, the updater says what it wants and why it
waits. It does not know the deployment's rules. The running version is never read from a link.

    modelagent status                 # exit 1 with an alarm, or when inference gives no sign of life
    modelagent status --json | jq .models.digits.running.version

With the updater down, its state is read from disk, and the answer says so (exit 4).
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from modelagent.cli import EXIT_CODES, FAILED, OK, UNREACHABLE, Frame, json_option, one_model_option
from modelagent.cli.show import ago, coloured, short, span
from modelagent.cli.talk import models_of, settings_of, view
from modelagent.errors import AgentError
from modelagent.inputs.config import Settings
from modelagent.inputs.health import STALE_S, read

_MAX_HEALTH = 4 * 1024 * 1024  # bytes


@click.command(epilog=EXIT_CODES)
@one_model_option
@json_option
@click.pass_obj
def status(frame: Frame, model: str) -> None:
    """What runs, and why nothing else does."""
    settings = settings_of(frame)
    document = gather(settings, models_of(settings, model))
    if frame.json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo("\n".join(_lines(document)))
    code = OK
    if any(entry["unhealthy"] for entry in document["models"].values()):
        code = FAILED
    if not document["updater"]["answers"]:
        code = UNREACHABLE
    raise SystemExit(code)


def gather(settings: Settings, names: list[str]) -> dict[str, Any]:
    """The whole status as JSON-like data: `device`, `updater` {answers, reason}, `models` {name: ...}."""
    now = time.time()
    known: Mapping[str, Any] = {}
    extra: dict[str, Any] = {}
    try:
        answer = view(settings, "status")  # of all: what the settings name now may be new to an updater that runs
        result = answer.get("result") or {}
        known = result.get("models", {})
        extra = {key: value for key, value in result.items() if key != "models"}
        updater = {"answers": True, "reason": str(answer.get("reason", ""))}
    except AgentError as error:
        updater = {"answers": False, "reason": error.message}
        known = {name: _from_disk(settings, name) for name in names}
    return {
        "schema": 1,
        "device": settings.device.id,
        "at": now,
        "updater": updater,
        **{key: value for key, value in extra.items() if key not in {"schema", "device", "at", "updater"}},
        "models": {name: _one(settings, name, known.get(name) or {}, now) for name in names},
    }


def _one(settings: Settings, name: str, said: Mapping[str, Any], now: float) -> dict[str, Any]:
    health, silence = _health(settings.paths.health(name))
    running = (health or {}).get("running")
    entry: dict[str, Any] = {
        "running": running,
        "since": None,
        "inference": {
            "alive": not silence,
            "reason": silence,
            "idle": (health or {}).get("idle", ""),
            "refused": (health or {}).get("refused"),
            "fell_back": (health or {}).get("fell_back"),
            "source": (health or {}).get("source"),
            "results": (health or {}).get("results"),
            "counters": ((health or {}).get("counters") or {}).get((running or {}).get("digest")),
        },
        **{key: value for key, value in said.items() if key not in {"running", "inference", "unhealthy"}},
    }
    if running is not None and not silence:
        entry["since"] = now - max(0.0, time.monotonic() - float(running.get("since_mono", 0.0)))
    entry["unhealthy"] = _complaints(entry)
    return entry


def _complaints(entry: Mapping[str, Any]) -> list[str]:
    found = [str(alarm) for alarm in entry.get("alarms") or []]
    if not entry["inference"]["alive"]:
        found.append(f"inference: {str(entry['inference']['reason']).removeprefix('inference ')}")
    elif entry["running"] is None:
        found.append(f"nothing runs: {entry['inference']['idle'] or 'no model is loaded'}")
    return found


def _health(path: Path) -> tuple[Mapping[str, Any] | None, str]:
    """The health record, and why it is not to be believed ("" when it is)."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_HEALTH))
        # The boot id is not compared: systemd-nspawn shows its services another one than it shows us. Age tells.
        reading = read(found, str(found.get("boot_id", "")) if isinstance(found, dict) else "")
    except FileNotFoundError:
        return None, "inference has written no health file; is it running?"
    except OSError as error:
        return None, f"{path}: {error.strerror}; read it as a member of the agent's group"
    except (ValueError, RecursionError):
        return None, f"{path}: not a whole health file"
    document = reading.document
    if document is None:
        return None, f"{path}: {reading.reason}"
    # The monotonic clock is the same for writer and reader, no clock step can deceive, and another boot's does not fit.
    age = time.monotonic() - float(document.get("mono", 0.0))
    if age < -1.0:
        return None, f"{path}: the record is from an earlier boot"
    if age > STALE_S:
        return document, f"no sign of life for {span(age)}"
    return document, ""


def _from_disk(settings: Settings, name: str) -> dict[str, Any]:
    """What the updater wrote last, in the same words that it would use."""
    from modelagent.core.describe import describe  # noqa: PLC0415 - only with the updater down
    from modelagent.core.state import State  # noqa: PLC0415 - the same
    from modelagent.steps.journal import Journal  # noqa: PLC0415 - the same

    journal = Journal(settings.paths.state_dir, name, State)
    try:
        state = journal.peek()
    except AgentError as error:
        return {"phase": None, "waiting": f"its state cannot be read: {error}"}
    if state is None:
        written = journal.path.exists()
        return {"phase": None, "waiting": "its state is unreadable" if written else "no state was written yet"}
    return describe(state)


# ---- for people ----------------------------------------------------------------------------------------------


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    updater = document["updater"]
    yield click.style(f"device {document['device']}", bold=True)
    if not updater["answers"]:
        yield coloured(f"updater does not answer: {updater['reason']}", "warning")
        yield coloured("what follows is what it wrote last", "warning")
    if document.get("settings_problem"):
        yield coloured(f"settings: {document['settings_problem']}", "warning")
    broker = document.get("broker")
    if broker and (broker["problem"] or not broker["connected"]):
        yield coloured(f"broker: {'' if broker['connected'] else 'not '}connected: {broker['problem']}", "warning")
    yield from _way(document.get("repository") or {})
    for name, entry in document["models"].items():
        yield ""
        yield click.style(name, bold=True)
        for label, text, level in _facts(entry, document["at"]):
            yield f"  {label:<10} {coloured(text, level)}"


def _way(repository: Mapping[str, Any]) -> Iterator[str]:
    """What is unusual about the way to the repository: the clock, mirrors set aside, sticks, the day's bytes."""
    clock = repository.get("clock")
    if clock and not clock["believed"]:
        yield coloured(f"clock: {clock['reason']}", "warning")
    for name, code in (repository.get("set_aside") or {}).items():
        yield coloured(f"source set aside: {name} ({code}); asked last for a week", "warning")
    for name in repository.get("attached") or []:
        yield f"bundle attached: {name}"
    left = repository.get("budget_left")
    if left is not None:
        yield coloured(f"downloads: {left / 1e6:.1f} MB left today", "" if left else "warning")


def _facts(entry: Mapping[str, Any], now: float) -> Iterator[tuple[str, str, str]]:
    yield "runs", _running(entry, now), "" if entry["inference"]["alive"] and entry["running"] else "warning"
    source = entry["inference"]["source"] or {}
    counters = entry["inference"]["counters"] or {}
    if counters:
        rate = f"{source.get('rate_fps', 0):.1f} frames/s, " if source else ""
        faults = sum((counters.get("faults") or {}).values())
        yield (
            "frames",
            f"{rate}{counters.get('done', 0)} done, {counters.get('dropped', 0)} dropped, {faults} faults",
            "",
        )
    results = entry["inference"]["results"] or {}
    if results.get("lost"):
        yield (
            "results",
            f"{results.get('written', 0)} written, {results['lost']} lost; inference's log says why",
            "warning",
        )
    for key in ("refused", "fell_back"):
        told = entry["inference"][key]
        if told:
            yield (
                key.replace("_", " "),
                f"{short(str(told.get('digest') or told.get('from')))}: {told['reason']}",
                "warn",
            )
    phase = str(entry.get("phase") or "unknown")
    evidence = entry.get("evidence")
    if evidence:
        phase += f": {evidence['done']} frames, {evidence['seconds']} s, {evidence['faults']} faults"
    yield "phase", phase, ""
    if entry.get("waiting"):
        yield "waiting", str(entry["waiting"]), ""
    for key in ("candidate", "standby", "fallback"):
        if entry.get(key):
            yield key, f"{entry[key]['version']}  {short(entry[key]['digest'])}", ""
    if entry.get("pin"):
        yield "pinned", f"to {entry['pin']['version']} by {entry['pin']['by']}", ""
    if entry.get("hold"):
        yield (
            "held",
            f"by {entry['hold']['by']}" + (f": {entry['hold']['reason']}" if entry["hold"]["reason"] else ""),
            "",
        )
    for block in entry.get("blocks") or []:
        yield "blocked", f"{block['version']}  {block['cause']}: {block['reason']}", ""
    for late in entry.get("postponed") or []:
        yield "postponed", f"{late['version']}  until {ago(late['until'], now)}: {late['reason']}", ""
    check = entry.get("check")
    if check:
        text = f"{ago(check['last_ok'], now)}, channel {entry.get('channel')}"
        if check["error"]:
            text += f"; last try {ago(check['last_try'], now)} failed: {check['error']}"
        yield "checked", text, "warning" if check["error"] else ""
        for note in check.get("notes") or []:
            yield "repository", str(note), "warning"
    for complaint in entry["unhealthy"]:
        yield "alarm", complaint, "alarm"


def _running(entry: Mapping[str, Any], now: float) -> str:
    running, inference = entry["running"], entry["inference"]
    if running is None:
        return f"nothing: {inference['idle'] or inference['reason'] or 'no model is loaded'}"
    named = f"{running.get('version') or '?'}  {short(str(running.get('digest')))}"
    current = entry.get("current") or {}
    if current.get("digest") == running.get("digest"):
        named += "  confirmed" if current.get("confirmed") else "  on probation"
    if entry["since"]:
        named += f"  since {span(now - entry['since'])}"
    return named if inference["alive"] else f"{named}  ({inference['reason']})"
