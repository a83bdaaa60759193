"""Which time to judge a signature's end by, and what to say when one seems to have ended. Pure.

This file knows how far a clock can be believed. It reads no clock and keeps nothing.

    judged = judge(Trust.RTC, wall=0.0, floor=1.793e9, synchronised=False)
    judged.now, judged.believed         # (1.793e9, False): 1970 is before something that was signed already

The floor is the newest time that somebody trusted has signed, or the day this agent was built; it never rises from a
clock. So a clock that jumps, in either direction, is harmless once it is right again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

LONG_S: Final = 30 * 86400.0  # a signature that ended longer ago than this makes us suspect the clock first


class Trust(Enum):
    """How far the device's clock is believed: the setting `clock.trust`."""

    NTP = "ntp"  # once it is synchronised
    RTC = "rtc"  # when it is above the floor
    SIGNED_FLOOR = "signed-floor"  # never


@dataclass(frozen=True, slots=True)
class Judged:
    """The time that expiry is judged by (Unix seconds), whether that is the device's clock, and why."""

    now: float
    believed: bool
    reason: str
    synchronised: bool | None = None


def judge(trust: Trust, wall: float, floor: float, synchronised: bool | None) -> Judged:
    """Decide which time counts.

    Args:
        trust: the setting.
        wall: what the device's clock says, Unix seconds.
        floor: the newest signed time, Unix seconds.
        synchronised: what the kernel says of its clock; None: it says nothing.
    """
    signed = f"expiry is judged by the newest signed time, {show(floor)}"
    if trust is Trust.SIGNED_FLOOR:
        return Judged(floor, False, f"the settings say never to believe this clock; {signed}", synchronised)
    if wall < floor:
        return Judged(
            floor, False, f"this clock says {show(wall)}, which is before something signed; {signed}", synchronised
        )
    if trust is Trust.NTP and not synchronised:
        return Judged(floor, False, f"this clock is not synchronised; {signed}", synchronised)
    how = "synchronised" if synchronised else "above everything signed"
    return Judged(wall, True, f"this clock is {how}", synchronised)


def suspected(judged: Judged, issued: float, ended: float, server: float | None) -> str:
    """Why the clock is to be suspected rather than the repository; empty: the repository has expired.

    Args:
        judged: what expiry was judged by.
        issued: when the signature that seems to have ended was made, Unix seconds; 0.0 when nobody knows.
        ended: when it ended.
        server: what the web server says the time is. It is believed in nothing else.
    """
    if not judged.believed or judged.synchronised:
        return ""  # judged by signed times alone, or by a clock that others vouch for
    if server is not None and issued <= server < ended:
        return f"the server's clock says {show(server)}, when it was still good"
    if judged.now - ended > LONG_S:
        return f"it seems to have ended {(judged.now - ended) / 86400:.0f} days ago, and nobody vouches for this clock"
    return ""


def show(moment: float) -> str:
    """The day, for people; anything a clock may say.

    The day alone: what is said must not change with every try, or history fills with the same line.
    """
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"{moment:.0f} s after 1970"
