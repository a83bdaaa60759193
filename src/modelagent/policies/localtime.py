"""Local wall-clock times as instants, on the two days a year when that is not simple.

This file knows zones and their jumps. It does not know windows or schedules.

    zone = zone_of("Europe/Madrid")
    instant_of(datetime(2026, 3, 29, 2, 30), zone)    # skipped that day: 03:00, the next valid instant
    instant_of(datetime(2026, 10, 25, 2, 30), zone)   # twice that day: the first one counts
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from modelagent.errors import UsageError


def zone_of(name: str) -> ZoneInfo:
    """The zone of that name; UsageError when this machine has none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"time zone {name!r}: not known here; give a name such as Europe/Madrid, or install tzdata", code="zone"
        ) from error


def local_of(wall: float, zone: ZoneInfo) -> datetime:
    """Local wall-clock time, without zone, of an instant in Unix seconds."""
    return datetime.fromtimestamp(wall, zone).replace(tzinfo=None, fold=0)


def instant_of(local: datetime, zone: ZoneInfo) -> float:
    """Unix seconds of a local time: the first of two, or, where it is skipped, the end of the gap."""
    early, late = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (1, 0))
    if late.astimezone(zone).replace(tzinfo=None, fold=0) == local:
        return late.timestamp()
    # Skipped. Read with the offset after the jump it lies before it, and the other way round: search between.
    before = early.astimezone(zone).utcoffset()
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=int((late - early).total_seconds()) // 2)
        if middle.astimezone(zone).utcoffset() == before:
            early = middle
        else:
            late = middle
    return late.timestamp()


def show(wall: float, zone: ZoneInfo | None = None) -> str:
    """An instant for people, to the minute, with its offset."""
    moment = datetime.fromtimestamp(wall, zone or UTC)
    return moment.isoformat(sep=" ", timespec="minutes")
