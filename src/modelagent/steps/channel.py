"""The channel document: which release devices should run, in which waves, and what is withdrawn.

This file knows the format of the small signed target `channels/<model>/<channel>.json`: parse, check, print. It
does not know where the bytes come from. The publisher prints what this file parses, so that nothing unreadable is
ever signed.

    document = parse(data)                  # raises TrustError with the key, what was found, what is allowed
    document.digest                         # the release it names, or None
"""

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from modelagent.core.events import Wave, Withdrawal
from modelagent.errors import TrustError, sayable

SCHEMA: Final = 1
MAX_LENGTH: Final = 64 * 1024  # bytes
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
MEMBER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a group or a hardware class, as the settings have it
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = {"schema", "model", "channel", "issued", "release", "waves", "withdrawn"}


@dataclass(frozen=True, slots=True)
class Channel:
    """What a channel says. `version` and `digest` are None when it names no release; `issued` is Unix seconds."""

    model: str
    channel: str
    issued: float
    version: str | None
    digest: str | None
    waves: tuple[Wave, ...]
    withdrawn: tuple[Withdrawal, ...]


def target_path(model: str, channel: str) -> str:
    """The TUF target of a channel."""
    return f"channels/{model}/{channel}.json"


def manifest_path(model: str, version: str) -> str:
    """The TUF target of a release."""
    return f"models/{model}/{version}/manifest.json"


def dump(document: dict[str, Any]) -> bytes:
    """Print a channel document as the bytes to sign; parses them first."""
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    parse(data)
    return data


def parse(data: bytes) -> Channel:
    """Parse and check a channel document whose bytes were verified already.

    Raises:
        TrustError: `malformed`, or `path-trick` where a name could not be a name.
    """
    if len(data) > MAX_LENGTH:
        raise _bad("the file", f"{len(data)} bytes", f"at most {MAX_LENGTH}")
    try:
        top = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad("the file", "no JSON", str(error)) from error
    if not isinstance(top, dict) or set(top) != _KEYS:
        raise _bad("the file", repr(top)[:80], f"an object with exactly {', '.join(sorted(_KEYS))}")
    if top["schema"] != SCHEMA:
        raise _bad("schema", repr(top["schema"])[:80], f"{SCHEMA}; a newer agent is needed for a newer schema")
    version = digest = None
    if top["release"] is not None:
        release = _object("release", top["release"], {"version", "digest"})
        version = _name("release.version", release["version"], VERSION)
        digest = _name("release.digest", release["digest"], DIGEST)
    waves = []
    for index, item in enumerate(_list("waves", top["waves"])):
        wave = _object(f"waves[{index}]", item, {"start", "share"}, {"groups", "hardware"})
        share = wave["share"]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise _bad(f"waves[{index}].share", repr(share)[:80], "a number above 0 and at most 1")
        names = {
            key: tuple(
                _name(f"waves[{index}].{key}[{place}]", name, MEMBER)
                for place, name in enumerate(_list(f"waves[{index}].{key}", wave.get(key, [])))
            )
            for key in ("groups", "hardware")
        }
        waves.append(Wave(_instant(f"waves[{index}].start", wave["start"]), float(share), **names))
    withdrawn = []
    for index, item in enumerate(_list("withdrawn", top["withdrawn"])):
        entry = _object(f"withdrawn[{index}]", item, {"version", "digest", "reason"})
        reason = entry["reason"]
        if not isinstance(reason, str) or len(reason) > 500 or sayable(reason) != reason:
            raise _bad(f"withdrawn[{index}].reason", repr(reason)[:80], "a text of at most 500 whole characters")
        withdrawn.append(
            Withdrawal(
                digest=_name(f"withdrawn[{index}].digest", entry["digest"], DIGEST),
                version=_name(f"withdrawn[{index}].version", entry["version"], VERSION),
                reason=reason,
            )
        )
    return Channel(
        model=_name("model", top["model"], NAME),
        channel=_name("channel", top["channel"], NAME),
        issued=_instant("issued", top["issued"]),
        version=version,
        digest=digest,
        waves=tuple(waves),
        withdrawn=tuple(withdrawn),
    )


def _object(key: str, value: object, keys: set[str], optional: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(value, dict) or not keys <= set(value) <= keys | optional:
        more = f", and perhaps {', '.join(sorted(optional))}" if optional else ""
        raise _bad(key, repr(value)[:80], f"an object with exactly {', '.join(sorted(keys))}{more}")
    return value


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > 200:
        raise _bad(key, repr(value)[:80], "a list of at most 200")
    return value


def _name(key: str, value: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str):
        raise _bad(key, repr(value)[:80], f"a string like /{pattern.pattern}/")
    if not pattern.fullmatch(value):
        # Names become parts of addresses: one that could climb out of its directory is an attack, not a typo.
        raise _bad(key, repr(value)[:80], f"a string like /{pattern.pattern}/", code="path-trick")
    return value


def _instant(key: str, value: object) -> float:
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]  # a wrong type is one of the refusals
    except (TypeError, ValueError) as error:
        raise _bad(key, repr(value)[:80], "a time like 2026-11-01T12:00:00Z") from error
    if moment.tzinfo is None:
        raise _bad(key, repr(value)[:80], "a time with a zone, like 2026-11-01T12:00:00Z")
    return moment.timestamp()


def _bad(key: str, found: object, allowed: str, *, code: str = "malformed") -> TrustError:
    return TrustError(
        f"channel document: {key}: found {found}, allowed is {allowed}; the channel must be published again",
        code=code,
    )
