"""Traces: days of facts as lines of JSON, recorded on a device or made by hand, to replay policies over.

This file knows the format. It does not know what policies make of it. The first line says whose days they are; each
further line changes some facts from then on. Blank lines and lines that begin with # are passed over.

    {"trace": 1, "start": "2026-03-02T00:00:00Z", "days": 30, "running": "1.0.0", "seed": "box-17"}
    {"at": "08:00", "every": "day", "metered": true, "load1": 1.7}
    {"at": "2026-03-04T09:30:00Z", "release": {"version": "1.1.0", "number": 2, "size": 4200000}}
    {"at": 86400, "power": false}

`at` is a time with zone, seconds since the start, or, with `every` (day, weekday, weekend), a time of day in UTC.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from modelagent.core.events import Verb, Wave
from modelagent.errors import UsageError
from modelagent.policies import Facts

SCHEMA: Final = 1
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_CHANGES: Final = 1_000_000
_DAY: Final = 86400.0
_YES_OR_NO: Final = frozenset({"link_up", "metered", "on_ac"})
_NUMBERS: Final = frozenset(
    {
        "rate_bps",
        "budget_left",
        "load1",
        "cpus",
        "psi_cpu",
        "memory_available_mb",
        "temperature_c",
        "battery_percent",
        "disk_free_mb",
        "queue_fill",
        "p95_ms",
        "p95_budget_ms",
        "drift",
        "quality_drop",
    }
)
_OTHER: Final = frozenset({"inhibited", "alarm"})
FACTS: Final = _YES_OR_NO | _NUMBERS | _OTHER
_WORLD: Final = frozenset({"release", "withdrawn", "server", "power", "clock", "want"})
_HEAD: Final = frozenset(
    {"trace", "model", "start", "days", "running", "seed", "groups", "hardware", "fps", "check_bytes", "canary_s"}
)
_EVERY: Final = {"day": range(7), "weekday": range(5), "weekend": range(5, 7)}


@dataclass(frozen=True, slots=True)
class Offered:
    """What the channel names: `canary` and `live` say how it would do on the device."""

    version: str
    number: int
    size: int  # bytes
    canary: str = "pass"
    live: str = "good"
    waves: tuple[Wave, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """From `at` (seconds since the start) on, these hold."""

    at: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    world: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """Whose days they are, and all changes in order of time."""

    start: float  # Unix seconds
    days: float
    model: str = "model"
    running: str = ""
    seed: str = ""
    groups: tuple[str, ...] = ()
    hardware: str = ""
    fps: float = 30.0
    check_bytes: int = 12_000  # of one check that finds nothing new: timestamp, and what a proxy adds
    canary_s: float = 30.0
    changes: tuple[Change, ...] = ()


def parse(text: str, name: str = "trace") -> Trace:
    """Read a trace; raises UsageError that names the line, what was found and what is allowed."""
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise UsageError(f'{name}: empty; the first line is {{"trace": 1, "start": ..., "days": ...}}', code="trace")
    changes: list[Change] = []
    head: Trace | None = None
    for number, line in numbered:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise _Bad("no object", "one JSON object a line")
            if head is None:
                head = _head(entry)
            else:
                changes.extend(_changes(entry, head))
            if len(changes) > MAX_CHANGES:
                raise _Bad(f"more than {MAX_CHANGES} changes", "fewer days, or fewer lines")
        except (_Bad, ValueError, RecursionError) as bad:
            raise UsageError(f"{name}, line {number}: {bad}", code="trace") from bad
    assert head is not None  # noqa: S101 - there was a line
    # Lines of one time hold in their order: the later one wins.
    return _with(head, tuple(sorted(changes, key=lambda change: change.at)))


def line_of(facts: Facts) -> str:
    """The facts of one moment as a line of a trace, for recording; what is not known is null."""
    told: dict[str, Any] = {"at": datetime.fromtimestamp(facts.at.wall, UTC).isoformat(timespec="seconds")}
    for one in fields(Facts):
        if one.name in FACTS - {"alarm"}:
            value = getattr(facts, one.name)
            told[one.name] = list(value) if isinstance(value, tuple) else value
    return json.dumps(told)


class _Bad(Exception):  # noqa: N818 - becomes a UsageError with the line's number
    def __init__(self, found: object, allowed: str) -> None:
        super().__init__(f"found {found}; allowed is {allowed}")


def _head(entry: Mapping[str, Any]) -> Trace:
    if entry.get("trace") != SCHEMA or not set(entry) <= _HEAD or not {"start", "days"} <= set(entry):
        allowed = f'{{"trace": {SCHEMA}, "start": TIME, "days": N}} and perhaps {", ".join(sorted(_HEAD))}'
        raise _Bad(json.dumps(entry)[:120], allowed)
    given = {key: value for key, value in entry.items() if key not in ("trace", "start", "days")}
    for key in ("model", "running", "seed", "hardware"):
        if not isinstance(given.get(key, ""), str):
            raise _Bad(f"{key} {given[key]!r}", "a text")
    for key in ("fps", "check_bytes", "canary_s"):
        if key in given:
            given[key] = _number(key, given[key])
    if "check_bytes" in given:
        given["check_bytes"] = int(given["check_bytes"])
    if "groups" in given:
        given["groups"] = _texts("groups", given["groups"])
    days = _number("days", entry["days"])
    if not 0 < days <= 3660:
        raise _Bad(f"days {days}", "more than none, and at most 3660")
    return Trace(_time("start", entry["start"]), days, **given)


def _with(head: Trace, changes: tuple[Change, ...]) -> Trace:
    kept = {one.name: getattr(head, one.name) for one in fields(Trace)}
    return Trace(**{**kept, "changes": changes})


def _changes(entry: dict[str, Any], head: Trace) -> list[Change]:
    every = entry.pop("every", None)
    at = entry.pop("at", None)
    unknown = set(entry) - FACTS - _WORLD
    if unknown:
        raise _Bad(", ".join(sorted(unknown)), f"at, every, {', '.join(sorted(FACTS | _WORLD))}")
    facts = {key: _fact(key, value) for key, value in entry.items() if key in FACTS}
    world = {key: _of_world(key, value) for key, value in entry.items() if key in _WORLD}
    return [Change(moment, facts, world) for moment in _moments(at, every, head)]


def _moments(at: object, every: object, head: Trace) -> list[float]:
    if every is None:
        if isinstance(at, str):
            return [_time("at", at) - head.start]
        return [_number("at", at)]
    if every not in _EVERY or not isinstance(at, str):
        raise _Bad(f"every {every!r} at {at!r}", f"every {' or '.join(_EVERY)}, at a time of day such as 08:00")
    try:
        clock = datetime.strptime(at, "%H:%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise _Bad(f"at {at!r}", "a time of day such as 08:00 (UTC)") from error
    first = datetime.fromtimestamp(head.start, UTC).replace(hour=clock.hour, minute=clock.minute, second=0)
    days = (first + timedelta(days=n) for n in range(math.ceil(head.days) + 1))
    moments = (day.timestamp() - head.start for day in days if day.weekday() in _EVERY[str(every)])
    return [moment for moment in moments if 0 <= moment <= head.days * _DAY]


def _fact(key: str, value: object) -> object:
    if key == "inhibited":
        return _texts(key, value)
    if key == "alarm" or key in _YES_OR_NO:
        if value is not None and not isinstance(value, bool):
            raise _Bad(f"{key} {value!r}", "true, false, or null for not known")
        return value
    return None if value is None else _number(key, value)


def _of_world(key: str, value: Any) -> object:
    match key:
        case "server" | "power":
            if not isinstance(value, bool):
                raise _Bad(f"{key} {value!r}", "true or false")
            return value
        case "clock":
            return _number(key, value, least=-1e10)
        case "withdrawn":
            return _texts(key, value)
        case "want":
            given = value if isinstance(value, dict) else {"verb": value}
            if set(given) - {"verb", "argument"} or given.get("verb") not in {*Verb.ALL, Verb.ROLLBACK} - {Verb.CONFIG}:
                raise _Bad(f"want {value!r}", "a verb such as update, or an object with verb and argument")
            return (str(given["verb"]), str(given.get("argument", "")))
        case _:
            return None if value is None else _offered(value)


def _offered(value: object) -> Offered:
    allowed = "null, or an object with version, number, size, and perhaps canary, live, waves"
    if not isinstance(value, dict) or not {"version", "number", "size"} <= set(value):
        raise _Bad(f"release {value!r}", allowed)
    if set(value) - {one.name for one in fields(Offered)}:
        raise _Bad(f"release with {', '.join(sorted(value))}", allowed)
    canary, live = value.get("canary", "pass"), value.get("live", "good")
    if canary not in ("pass", "fail", "insufficient") or live not in ("good", "crash"):
        raise _Bad(f"canary {canary!r}, live {live!r}", "canary pass, fail or insufficient; live good or crash")
    waves = []
    for wave in value.get("waves", []):
        if not isinstance(wave, dict) or not {"start", "share"} <= set(wave) <= {
            "start",
            "share",
            "groups",
            "hardware",
        }:
            raise _Bad(f"wave {wave!r}", "an object with start, share, and perhaps groups and hardware")
        names = (_texts(key, wave.get(key, [])) for key in ("groups", "hardware"))
        waves.append(Wave(_time("start", wave["start"]), _number("share", wave["share"]), *names))
    number, size = _number("number", value["number"]), _number("size", value["size"])
    return Offered(str(value["version"]), int(number), int(size), canary, live, tuple(waves))


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Bad(f"{key} {value!r}", "a list of texts")
    return tuple(value)


def _number(key: str, value: object, least: float = 0.0) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or float(value) < least:  # type: ignore[arg-type]  # a number, as was just seen
        raise _Bad(f"{key} {value!r}", f"a number from {least:g}")
    return float(value)  # type: ignore[arg-type]  # the same


def _time(key: str, value: object) -> float:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise _Bad(f"{key} {value!r}", "a time such as 2026-03-02T08:00:00Z") from error
    if moment.tzinfo is None:
        raise _Bad(f"{key} {value!r} without a zone", "a time such as 2026-03-02T08:00:00Z")
    return moment.timestamp()
