"""The floor under the clock: the newest signed time this device has seen, kept on disk, and who signed it.

This file knows the file and the kernel's word on its own clock. What follows from them is `core/clock.py`'s matter.

    clock = FloorClock(state_dir / "clock.json", Trust.RTC, time.time)
    judged = clock.judge(root)              # before metadata is judged, and again once a newer root is known
    clock.learn(root, online=issued, offline=issued)

Times signed by the online keys and by the offline keys are kept apart, each with the ids of the keys: a stolen online
key can sign a time in the year 2100 and so make everything look expired, and replacing that key must heal it.
"""

import contextlib
import ctypes
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Root

from modelagent import durable
from modelagent.core.clock import Judged, Trust, judge
from modelagent.errors import UNREADABLE

BUILT: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # no device runs this agent before that day
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised


def kernel_synchronised() -> bool | None:
    """What the kernel says of its clock (adjtimex(2), as NTP daemons set it); None where it will not say."""
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else bool(answer != _TIME_ERROR)


class FloorClock:
    """Judges which time counts.

    Args:
        path: remembers signed times; None keeps them in memory.
        trust: the setting.
        wall: Unix seconds by this device.
        synchronised: whether anybody keeps this clock right; None: nobody knows.
        built: the floor of a device that has seen nothing yet, Unix seconds.
    """

    def __init__(
        self,
        path: Path | None,
        trust: Trust,
        wall: Callable[[], float],
        *,
        synchronised: Callable[[], bool | None] = kernel_synchronised,
        built: float = BUILT,
    ) -> None:
        self._path = path
        self._trust = trust
        self._wall = wall
        self._synchronised = synchronised
        self._built = built
        self._signed: dict[str, tuple[float, list[str]]] = {}
        if path is not None:
            with contextlib.suppress(*UNREADABLE):
                kept: Any = json.loads(path.read_bytes())["signed"]
                self._signed = {str(who): (float(at), [str(key) for key in keys]) for who, (at, keys) in kept.items()}
        self.last = self.judge(None)

    def judge(self, root: Root | None) -> Judged:
        """What time counts now; `root` None: before any root is known, every remembered time counts."""
        known = [at for who, (at, keys) in self._signed.items() if root is None or keys == _keys(root, who)]
        self.last = judge(self._trust, self._wall(), max([self._built, *known]), self._synchronised())
        return self.last

    def learn(self, root: Root, *, online: float, offline: float) -> None:
        """Remember verified signed times of issue, Unix seconds; 0.0 where there is none.

        Raises:
            OSError: it could not be kept on disk (this process knows it all the same).
        """
        changed = False
        for who, at in (("timestamp", online), ("root", offline)):
            keys = _keys(root, who)
            known = self._signed.get(who)
            if at > 0 and (known is None or known[1] != keys or at > known[0]):
                self._signed[who] = (at, keys)
                changed = True
        if changed and self._path is not None:
            durable.write_atomic(self._path, json.dumps({"schema": 1, "signed": self._signed}).encode())

    def view(self) -> dict[str, Any]:
        """For `status`: trust, whether the clock is believed, the time that counts, and why."""
        told = self.last
        return {
            "trust": self._trust.value,
            "believed": told.believed,
            "synchronised": told.synchronised,
            "judged_at": told.now,
            "reason": told.reason,
        }


def _keys(root: Root, role: str) -> list[str]:
    return sorted(root.roles[role].keyids)
