"""The settings file: read it, refuse it, remember the last good one.

This file knows the file with its drop-ins, and how to refuse a bad one in words that name file, key, what was found
and what is allowed. It does not know who uses a setting, and starts or changes nothing.

    settings = load(Path("/etc/modelagent/modelagent.toml"))     # with conf.d/*.toml beside it, in order of name
    settings.models["digits"].source.fps                         # 30.0

A drop-in changes single keys: tables merge, every other value (lists too) replaces the one before it.
"""

import difflib
import json
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel, ValidationError

from modelagent.durable import write_atomic
from modelagent.errors import UsageError
from modelagent.inputs.fields import Section, parse_duration
from modelagent.inputs.model_schema import Model, Probation, Results, Rule, Runtime, Shadow, Source
from modelagent.inputs.schema import (
    ActivateConditions,
    CanaryConditions,
    CanaryLimits,
    Conditions,
    Control,
    Device,
    Limits,
    Log,
    Mqtt,
    Paths,
    Policy,
    Repository,
    Settings,
    Tls,
)

__all__ = [
    "ActivateConditions",
    "CanaryConditions",
    "CanaryLimits",
    "Conditions",
    "Control",
    "Device",
    "Limits",
    "Loaded",
    "Log",
    "Model",
    "Mqtt",
    "Paths",
    "Policy",
    "Probation",
    "Repository",
    "Results",
    "Rule",
    "Runtime",
    "Section",
    "Settings",
    "Shadow",
    "Source",
    "Tls",
    "load",
    "load_or_recall",
    "parse",
    "parse_duration",
    "recall",
    "remember",
]

MAX_BYTES: Final = 1024 * 1024  # of one settings file
SCHEMA: Final = 1  # of settings.json
REMEMBERED: Final = "settings.json"


class Loaded(NamedTuple):
    """Settings to work with, and what is wrong with the file they should have come from ("" when nothing is)."""

    settings: Settings
    problem: str


def load(path: Path, conf_d: bool = True) -> Settings:
    """Read the settings file and, with `conf_d`, the drop-ins in `conf.d/` beside it, in order of name.

    Raises:
        UsageError: names file, key path, what was found and what is allowed, one line for each fault.
    """
    document: dict[str, Any] = {}
    origins: dict[tuple[str, ...], Path] = {}
    for file in (path, *(_drop_ins(path) if conf_d else ())):
        _merge(document, _read(file), (), file, origins)
    return parse(document, path, origins)


def parse(document: Mapping[str, Any], path: Path, origins: Mapping[tuple[str, ...], Path] | None = None) -> Settings:
    """Check a document that came from `path`; `origins` tells which file gave a key, where that was another."""
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        lines = [_explain(fault, document, path, origins or {}) for fault in error.errors(include_url=False)]
        more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise UsageError("\n".join(lines[:20] + more), code="bad-setting") from error


def load_or_recall(path: Path, directory: Path, conf_d: bool = True) -> Loaded:
    """The settings of `path`, or, where those are bad, the last good ones remembered in `directory`.

    Raises UsageError when the file is bad and nothing good is remembered.
    """
    try:
        return Loaded(load(path, conf_d), "")
    except UsageError as error:
        last = recall(directory)
        if last is None:
            raise
        return Loaded(last, error.message)


def remember(settings: Settings, directory: Path) -> None:
    """Keep good settings durably in `directory`/settings.json. Raises OSError; writes nothing when unchanged."""
    data = json.dumps({"schema": SCHEMA, "settings": settings.model_dump(mode="json")}, indent=1).encode()
    target = directory / REMEMBERED
    try:
        if target.read_bytes() == data:
            return
    except OSError:
        pass  # absent or unreadable: the write below says what is wrong, if anything is
    write_atomic(target, data)


def recall(directory: Path) -> Settings | None:
    """The settings that `remember` kept, or None when there are none that this version understands."""
    try:
        document = json.loads((directory / REMEMBERED).read_bytes())
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            return None
        return Settings.model_validate(document.get("settings"))
    except (OSError, ValueError, RecursionError):
        return None


def _drop_ins(path: Path) -> list[Path]:
    directory = path.parent / "conf.d"
    try:
        return sorted(p for p in directory.iterdir() if p.suffix == ".toml" and not p.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{directory}: cannot be read: {error.strerror}", code="unreadable") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_BYTES + 1) if plain else b""
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}; give a readable settings file", code="unreadable"
        ) from error
    if not plain:
        raise UsageError(f"{path}: no plain file; give a readable settings file", code="unreadable")
    if not data.strip():
        # What a power cut leaves of a file that was being written; every default at once is nobody's wish.
        raise UsageError(f"{path}: found nothing in it; write it again, or remove it", code="empty")
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: found more than {MAX_BYTES} bytes; allowed: {MAX_BYTES}", code="too-large")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with the mark of UTF-8
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; allowed: TOML in UTF-8", code="bad-toml") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error or 'nested too deeply'}", code="bad-toml") from error


def _open_regular(name: str, flags: int) -> int:
    # A FIFO put in the file's place would hold the daemon for ever; O_NONBLOCK is without effect on a real file.
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _merge(
    into: dict[str, Any],
    more: Mapping[str, Any],
    at: tuple[str, ...],
    file: Path,
    origins: dict[tuple[str, ...], Path],
) -> None:
    for key, value in more.items():
        here = (*at, key)
        origins[here] = file
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value, here, file, origins)
        else:
            into[key] = value


# ---- refusing ------------------------------------------------------------------------------------------------

_KINDS: Final = {
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "an absolute path, starting with /",
    "is_instance_of": "an absolute path, starting with /",
}


def _explain(
    fault: Mapping[str, Any], document: Mapping[str, Any], path: Path, origins: Mapping[tuple[str, ...], Path]
) -> str:
    loc = tuple(part for part in fault["loc"] if part != "[key]")
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    names = tuple(str(part) for part in loc)
    file = next((origins[names[:n]] for n in range(len(names), 0, -1) if names[:n] in origins), path)
    where = f"{file}: {key}" if key else str(file)
    kind = str(fault["type"])
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {_allowed_keys(names)}"
    found = f"found {_show(_as_written(document, loc, fault['input']))}; " if "[key]" not in fault["loc"] else ""
    return f"{where}: {found}allowed: {_allowed(fault, kind)}"


def _allowed(fault: Mapping[str, Any], kind: str) -> str:
    context = cast("Mapping[str, Any]", fault.get("ctx", {}))
    match kind:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return str(context["expected"]).replace("'", '"')
        case "greater_than":
            return f"more than {_number(context['gt'])}"
        case "greater_than_equal":
            return f"at least {_number(context['ge'])}"
        case "less_than":
            return f"less than {_number(context['lt'])}"
        case "less_than_equal":
            return f"at most {_number(context['le'])}"
        case "string_too_long":
            return f"at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"a text that matches {context['pattern']}"
    return _KINDS.get(kind, str(fault["msg"]))


def _allowed_keys(names: tuple[str, ...]) -> str:
    section: type[BaseModel] = Settings
    parts = list(names[:-1])
    while parts:
        part = parts.pop(0)
        if section is Settings and part == "models":
            parts = parts[1:]
            section = Model
        elif section is Model and part == "rules":
            parts = parts[1:]
            section = Rule
        else:
            section = cast("type[BaseModel]", section.model_fields[part].annotation)
    keys = sorted(section.model_fields)
    near = difflib.get_close_matches(names[-1], keys, n=1)
    return (f"did you mean {near[0]}? " if near else "") + "allowed: " + ", ".join(keys)


def _as_written(document: object, loc: tuple[str | int, ...], converted: object) -> object:
    """What stands in the file, where the fault was found only after a conversion ("90d" and not 7776000)."""
    for part in loc:
        try:
            document = cast("Any", document)[part]
        except (KeyError, IndexError, TypeError):
            return converted
    return document


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _show(value: object) -> str:
    text = repr(str(value)) if isinstance(value, Path) else repr(value)
    if isinstance(value, bool):
        text = text.lower()
    elif isinstance(value, Section | Mapping):
        return "this table"
    return text if len(text) <= 80 else text[:77] + "..."
