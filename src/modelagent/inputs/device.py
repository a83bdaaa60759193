"""The condition of this device, as the kernel tells it: link, load, memory, heat, power, room, inhibit files.

This file knows where Linux keeps these numbers. It does not know what is good or bad about them (policies do). What a
device does not have, or does not let us read, is None: not known, which is not zero.

    device = Device(state_dir=Path("/var/lib/modelagent"), inhibit_dir=None, link_matters=True)
    facts = device.gather(Facts(at=instant, seed="..."))       # the same facts with the device's own filled in
"""

import ipaddress
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from modelagent.policies import Facts

_MAX_BYTES: Final = 256 * 1024  # of any one of these files; /proc/net/route of a router is the longest
_MAX_NAMES: Final = 20  # inhibit files that are named
_MB: Final = 1024 * 1024
_PLAUSIBLE_C: Final = (-60.0, 200.0)  # sensors that are absent report nonsense, often -273 or 0xffff


class Device:
    """Reads the device's facts anew at each call; a few dozen small files, about a millisecond.

    Args:
        state_dir: the directory whose file system has to hold downloads.
        inhibit_dir: an application drops a file here while it must not be disturbed; None: it never does.
        metered: what to believe of the link where nobody tells; None: not known.
        ask_metered: who tells whether the link is metered; see `networkmanager.py`.
        link_matters: False where the repository is reached without a link (loopback, a directory).
        root: where `proc` and `sys` are; another one in tests.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        inhibit_dir: Path | None = None,
        metered: bool | None = None,
        ask_metered: Callable[[], bool | None] | None = None,
        link_matters: bool = True,
        root: Path = Path("/"),
    ) -> None:
        self._state_dir = state_dir
        self._inhibit_dir = inhibit_dir
        self._metered = metered
        self._ask_metered = ask_metered
        self._link_matters = link_matters
        self._proc = root / "proc"
        self._sys = root / "sys"

    def gather(self, facts: Facts) -> Facts:
        """The given facts with everything that this device tells filled in. Never raises for a missing file."""
        percent, on_ac = self._power()
        told = self._ask_metered() if self._ask_metered is not None and self._link_matters else None
        return replace(
            facts,
            link_up=self._link_up() if self._link_matters else None,
            metered=self._metered if told is None else told,
            load1=_number(_first_word(self._proc / "loadavg")),
            cpus=self._cpus(),
            psi_cpu=self._pressure(),
            memory_available_mb=self._memory_mb(),
            temperature_c=self._temperature(),
            battery_percent=percent,
            on_ac=on_ac,
            disk_free_mb=self._disk_free_mb(),
            inhibited=self._inhibited(),
        )

    def _link_up(self) -> bool | None:
        """Whether an interface that has a route is up; None where the kernel tells nothing of routes."""
        routes = [_read(self._proc / "net" / name) for name in ("route", "ipv6_route")]
        if all(text is None for text in routes):
            return None
        words = [line.split() for line in (routes[0] or "").splitlines()[1:]]
        names = {line[0] for line in words if len(line) > 3 and _hex(line[3]) & 1}
        words = [line.split() for line in (routes[1] or "").splitlines()]
        names |= {line[9] for line in words if len(line) > 9 and _hex(line[8]) & 1}
        # "unknown" is what point-to-point links (ppp, tun, many modems) say while they work.
        states = (_first_word(self._sys / "class" / "net" / name / "operstate") for name in names - {"lo"})
        return any(state in ("up", "unknown") for state in states)

    def _cpus(self) -> int | None:
        text = _first_word(self._sys / "devices" / "system" / "cpu" / "online") or ""
        count = 0
        for part in text.split(","):
            first, _, last = part.partition("-")
            if first.isdigit() and (last or first).isdigit():
                count += int(last or first) - int(first) + 1
        return count if count > 0 else os.cpu_count()

    def _pressure(self) -> float | None:
        for line in (_read(self._proc / "pressure" / "cpu") or "").splitlines():
            if line.startswith("some "):
                return _number(_pairs(line, "=").get("avg10"))
        return None

    def _memory_mb(self) -> float | None:
        """What may still be used: the machine's available memory, or what our control group leaves, if that is less."""
        available = _number(_pairs(_read(self._proc / "meminfo") or "", ":").get("MemAvailable"))
        left = [] if available is None else [available * 1024 / _MB]
        for directory in self._groups():
            limit = _number(_first_word(directory / "memory.max"))  # the word "max" is no number: no limit
            used = _number(_first_word(directory / "memory.current"))
            if limit is not None and used is not None:
                stat = _pairs(_read(directory / "memory.stat") or "", " ")
                left.append(max(0.0, limit - used + (_number(stat.get("inactive_file")) or 0.0)) / _MB)
        return min(left, default=None)

    def _groups(self) -> Iterator[Path]:
        """Our control group and those it lies in (cgroup v2)."""
        top = self._sys / "fs" / "cgroup"
        for line in (_read(self._proc / "self" / "cgroup") or "").splitlines():
            if line.startswith("0::/") and ".." not in line:
                own = top / line[4:]
                yield own
                yield from (parent for parent in own.parents if parent.is_relative_to(top))

    def _temperature(self) -> float | None:
        """The hottest zone, in degrees Celsius."""
        values = (
            _number(_first_word(zone / "temp")) for zone in _glob(self._sys / "class" / "thermal", "thermal_zone*")
        )
        degrees = [value / 1000.0 for value in values if value is not None]
        return max((d for d in degrees if _PLAUSIBLE_C[0] < d < _PLAUSIBLE_C[1]), default=None)

    def _power(self) -> tuple[float | None, bool | None]:
        """Charge in percent (of several batteries, the mean) and whether there is mains power."""
        charges: list[float] = []
        mains: list[bool] = []
        discharging: list[bool] = []
        for supply in _glob(self._sys / "class" / "power_supply", "*"):
            kind = _first_word(supply / "type")
            if _first_word(supply / "scope") == "Device":
                continue  # the battery of a mouse
            if kind == "Battery":
                charge = _number(_first_word(supply / "capacity"))
                charges += [] if charge is None else [charge]
                status = _first_word(supply / "status")
                discharging += [] if status in (None, "Unknown") else [status == "Discharging"]
            elif kind in ("Mains", "USB", "Wireless"):
                online = _first_word(supply / "online")
                mains += [] if online is None else [online != "0"]
        percent = sum(charges) / len(charges) if charges else None
        if mains:
            return percent, any(mains)
        return percent, not any(discharging) if discharging else None

    def _disk_free_mb(self) -> float | None:
        try:
            status = os.statvfs(self._state_dir)
        except OSError:
            return None
        # A file system without inodes left has no room either; those that do not count inodes report none at all.
        if status.f_files and not status.f_favail:
            return 0.0
        return status.f_bavail * status.f_frsize / _MB

    def _inhibited(self) -> tuple[str, ...]:
        if self._inhibit_dir is None:
            return ()
        names = sorted(entry.name for entry in _glob(self._inhibit_dir, "*") if not entry.name.startswith("."))
        return tuple(names[:_MAX_NAMES])


def reaches_out(url: str) -> bool:
    """Whether this repository is on the other side of a link: False for loopback, directories and `file:`."""
    parts = urlsplit(url)
    host = parts.hostname
    if host is None or parts.scheme == "file" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _read(path: Path) -> str | None:
    """A small file's text; None when it is not there or will not be read (sysfs drivers fail in many ways)."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


def _first_word(path: Path) -> str | None:
    words = (_read(path) or "").split()
    return words[0] if words else None


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").split()[0])
    except (ValueError, IndexError):
        return None
    return value if abs(value) < 1e18 else None  # neither infinite nor NaN


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _pairs(text: str, separator: str) -> dict[str, str]:
    """Names and values of `name: value` lines, `name value` lines or `name=value` words."""
    items = text.split() if separator == "=" else text.splitlines()
    pairs = (item.partition(separator) for item in items)
    return {name.strip(): value.strip() for name, found, value in pairs if found}


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []
