"""The kinds of values that settings are made of: names, paths, durations, windows, addresses, with what is allowed.

This file knows one value at a time, and what every table has in common. It does not know the tables or their meaning:
`schema.py` and `model_schema.py` put these together.

    parse_duration("1h30m")      # 5400.0 seconds
    AbsolutePath                 # "/var/lib/x", and nothing that does not start with /
"""

import hashlib
import hmac
import math
import platform
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from modelagent.errors import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_DURATION: Final = "seconds as a number, or a text such as 250ms, 30s, 1h30m, 6h, 1d"
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK: Final = r"(?:[01]\d|2[0-3]):[0-5]\d"
_WINDOW: Final = re.compile(rf"(?:(?:{_DAY}(?:-{_DAY})?)(?:,{_DAY}(?:-{_DAY})?)* )?{_CLOCK}-(?:{_CLOCK}|24:00)")


class Section(BaseModel):
    """Base of every table: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


def parse_duration(value: object) -> float:
    """Seconds of a number or of a text such as "1h30m". Raises ValueError that says what is allowed."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str) and value.strip() and not _PART.sub("", value.replace(" ", "")):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    raise ValueError(_DURATION)


def as_tuple(value: object) -> object:
    """A TOML list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def as_path(value: object) -> object:
    """An absolute path."""
    if isinstance(value, str):
        if not value.startswith("/"):
            raise ValueError("an absolute path, starting with /")
        return Path(value)
    return value


def as_optional_path(value: object) -> object:
    """An absolute path, or None for an empty text."""
    return None if value == "" else as_path(value)


def check_url(value: str) -> str:
    """An address of a repository, without user and password."""
    parts = urlsplit(check_server(value))
    if value and parts.scheme not in {"http", "https", "file"} and not value.startswith("/"):
        raise ValueError("http://..., https://..., file:///... or an absolute path")
    if parts.scheme in {"http", "https"} and (parts.query or parts.fragment):
        raise ValueError("a URL without ? and #: names of files are put behind it")
    if parts.scheme == "file" and (parts.netloc not in {"", "localhost"} or not parts.path.startswith("/")):
        raise ValueError("file:///... with the whole path of a directory on this machine")
    return value


def check_server(value: str) -> str:
    """A server's address, without user and password; a query may be in it."""
    parts = urlsplit(value)
    if parts.scheme in {"http", "https"} and not parts.hostname:
        raise ValueError("a URL with a host name, for instance https://models.example.org/fleet")
    if parts.username or parts.password:
        raise ValueError("a URL without user and password (use client_cert and client_key)")
    return value


def check_proxy(value: str) -> str:
    """An address of a proxy, or empty."""
    if value and urlsplit(value).scheme not in {"http", "https"}:
        raise ValueError("http://host:port or https://host:port, or empty for none")
    return value


def check_zone(value: str) -> str:
    """The name of a time zone that this machine knows."""
    if value == "UTC":
        return value  # needs no zone files, which a slim image may lack
    try:
        ZoneInfo(value)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError("the name of a time zone, for instance UTC or Europe/Madrid") from error
    return value


def check_cron_line(value: str) -> str:
    """A cron line, or empty."""
    if value:
        from modelagent.policies.cron import Cron  # noqa: PLC0415 - its calculator costs 3 MB that others do not pay

        try:
            Cron(value)
        except UsageError as error:
            raise ValueError(f"five fields: minute hour day month weekday ({error.message})") from error
    return value


def check_window(value: str) -> str:
    """A weekly window."""
    if not _WINDOW.fullmatch(value):
        raise ValueError('a weekly window such as "Mon-Fri 22:00-05:00", "Sat,Sun 00:00-24:00" or "01:00-04:00"')
    return value


def check_mode(value: int) -> int:
    """Permission bits of the control socket."""
    if value & 0o007 or not value & 0o600 == 0o600 or value > 0o770:
        raise ValueError("0o600 or 0o660: whoever reaches this socket steers the device")
    return value


def check_frames_mode(value: int) -> int:
    """Permission bits of a socket that frames come by."""
    if value not in {0o600, 0o660, 0o666}:
        raise ValueError("0o600, 0o660 or 0o666: ours alone, with the group, or everybody on this machine")
    return value


def check_id(value: str) -> str:
    """A device's name that no topic means already."""
    if value in {"all", "group"}:
        raise ValueError("any name but all and group, which have a meaning in MQTT topics")
    return value


def default_id() -> str:
    """A stable name for this device that does not reveal its machine-id (machine-id(5) asks for a keyed hash)."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""
    if machine:
        return hmac.new(machine.encode(), b"modelagent device id", hashlib.sha256).hexdigest()[:16]
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:64].strip(".-_") or "device"


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9.+_-]{0,63})?$")]
Duration = Annotated[float, BeforeValidator(parse_duration)]
AbsolutePath = Annotated[Path, BeforeValidator(as_path)]
OptionalPath = Annotated[Path | None, BeforeValidator(as_optional_path)]
Url = Annotated[str, AfterValidator(check_url)]
Windows = Annotated[tuple[Annotated[str, AfterValidator(check_window)], ...], BeforeValidator(as_tuple)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
Megabytes = Annotated[int, Field(ge=1, le=10_000_000)]
