"""How many devices one broker and one process of simulated devices bear, and what a broker's restart costs them.

This file knows two figures. The devices are `benchmarks/fleet.py`'s, run as a program of their own.
"""

from pathlib import Path
from typing import Final

from benchmarks.fleet import play
from benchmarks.measure import Figure, Group, Measured

_DEVICES: Final = 1000


def through_a_restart(folder: Path) -> dict[str, Measured]:
    """`fleet.devices` and `fleet.lost`."""
    found = play(_DEVICES, folder / "fleet")
    how = (
        f"{_DEVICES} simulated devices on one epoll loop, connected in {found.connect_s:.1f} s,"
        f" {found.memory_kb:.0f} KiB each; {found.events} events and {found.answers} answers, all there"
        f" {found.settle_s:.1f} s after the broker's restart; {found.twice} commands done twice"
    )
    return {
        "fleet.devices": Measured(found.devices, how),
        "fleet.lost": Measured(found.lost + found.twice, how),
    }


GROUPS: Final = (Group((Figure("fleet.devices", "", ">= 1000"), Figure("fleet.lost", "", "<= 0")), through_a_restart),)
