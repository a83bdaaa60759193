"""What the transfer may take of the link: so many bytes a second, so many bytes a day, across restarts.

This file knows the two limits and the small file that remembers the day's bytes. It does not know what is fetched.

    allowance = Allowance(state_dir / "bytes.json", per_second=20_000, per_day=50_000_000, clock=clock.now)
    source = Metered(HttpSource(url), allowance)    # every byte of every answer is counted and paced
    allowance.check()                               # DeviceError byte-budget once the day's bytes are used up

A day is 86,400 s that this device knows to have passed since the first byte: by the monotonic clock within one boot, by
the wall clock over a reboot. A clock that was set back or starts in 1970 adds nothing, so no jump ever buys bytes,
and uptime goes on counting, so none locks the device out.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.core.events import Instant
from modelagent.errors import UNREADABLE, DeviceError
from modelagent.sources import Body, Source

DAY: Final = 86400.0
_SAVE_EVERY: Final = 256 * 1024  # bytes that a killed process may forget
_RATE_AGE_S: Final = 1800.0
_RATE_LEAST: Final = 64 * 1024  # bytes; below, a transfer measures the round trip
_TICK: Final = 0.2  # seconds of bytes handed on at once under a rate cap, so that a transfer can be given up


class SpentError(DeviceError):
    """The day's bytes are used up; `retry_after` seconds until there are new ones."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, code="byte-budget")
        self.retry_after = retry_after


class Allowance:
    """Counts and paces. Safe to use from several threads.

    Args:
        path: remembers the day's bytes; None keeps them in memory.
        per_second: bytes a second at most; 0 for no cap.
        per_day: bytes a day at most; 0 for no budget.
        clock: this moment on both clocks.
        sleep: seconds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        per_second: float = 0.0,
        per_day: int = 0,
        clock: Callable[[], Instant],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._per_second = per_second
        self._per_day = per_day
        self._clock = clock
        self._sleep = sleep
        self._guard = threading.Lock()
        self._free_at = 0.0  # monotonic seconds at which the link is ours again
        self._unsaved = 0
        self._spent = 0
        self._passed = 0.0  # seconds of the present day
        self._seen = clock()
        self._rate: tuple[float, float] | None = None  # bits a second, and when that was measured (monotonic)
        self._load()

    @property
    def piece(self) -> int:
        """The most bytes to hand on at once; 0 where nothing is paced."""
        return max(1, int(self._per_second * _TICK)) if self._per_second else 0

    def left(self) -> float | None:
        """Bytes that may still be fetched today; None without a budget."""
        with self._guard:
            self._turn()
            return max(0.0, float(self._per_day - self._spent)) if self._per_day else None

    def rate(self) -> float | None:
        """Bits a second that transfers of the last half hour had, the newest counting most; None when there was none.

        It is forgotten after a while because a device that waits for a faster link learns of one only by trying.
        """
        with self._guard:
            if self._rate is None or not 0 <= self._clock().mono - self._rate[1] <= _RATE_AGE_S:
                return None
            return self._rate[0]

    def measured(self, count: int, seconds: float) -> None:
        """A transfer of `count` bytes took `seconds`, without our own pauses; short ones say nothing of the link."""
        if count < _RATE_LEAST or seconds <= 0:
            return
        new = count * 8 / seconds
        old = self.rate()
        with self._guard:
            self._rate = (new if old is None else (old + new) / 2, self._clock().mono)

    def check(self) -> None:
        """Refuse when the day's bytes are used up.

        Raises:
            SpentError: says how much, and when there are new ones.
        """
        with self._guard:
            self._turn()
            if not self._per_day or self._spent < self._per_day:
                return
            wait = DAY - self._passed
            spent = self._spent
        raise SpentError(
            f"{spent} bytes were fetched within a day, allowed are {self._per_day}; downloads go on in {wait:.0f} s of "
            "running time (or raise [repository] daily_mb)",
            wait,
        )

    def spend(self, count: int) -> float:
        """Count bytes that came, and wait as long as the rate cap asks for; returns the seconds waited."""
        with self._guard:
            self._turn()
            self._spent += count
            self._unsaved += count
            if self._unsaved >= _SAVE_EVERY:
                self._save()
            pause = 0.0
            if self._per_second:
                now = self._seen.mono
                pause = max(0.0, self._free_at - now)
                self._free_at = max(self._free_at, now) + count / self._per_second
        if pause:
            self._sleep(pause)
        return pause

    def save(self) -> None:
        """Remember what is not remembered yet."""
        with self._guard:
            if self._unsaved:
                self._save()

    def _turn(self) -> None:
        """Let the time that has passed count, and begin a new day when the old one is over."""
        now = self._clock()
        if now.boot_id == self._seen.boot_id:
            self._passed += max(0.0, now.mono - self._seen.mono)
        else:
            self._passed += max(0.0, min(DAY, now.wall - self._seen.wall))
        self._seen = now
        if self._passed >= DAY or not self._spent:
            self._spent, self._passed = 0, 0.0

    def _load(self) -> None:
        if self._path is None or not self._per_day:
            return
        try:
            kept: Any = json.loads(self._path.read_bytes())
            spent, passed = int(kept["spent"]), float(kept["passed"])
            seen = Instant(float(kept["wall"]), float(kept["mono"]), str(kept["boot_id"]))
        except FileNotFoundError:
            return
        except UNREADABLE:
            # Unreadable: as if the whole budget were gone. A torn file must not be a way around the limit.
            self._spent, self._passed = self._per_day, 0.0
            return
        self._spent, self._passed, self._seen = max(0, spent), max(0.0, passed), seen

    def _save(self) -> None:
        self._unsaved = 0
        if self._path is None or not self._per_day:
            return
        document = {
            "schema": 1,
            "spent": self._spent,
            "passed": self._passed,
            "wall": self._seen.wall,
            "mono": self._seen.mono,
            "boot_id": self._seen.boot_id,
        }
        with durable.device_errors("counting today's bytes"):
            durable.write_atomic(self._path, json.dumps(document).encode(), durable=False)


class Metered:
    """A source whose bytes are counted and paced. Implements `Source`."""

    def __init__(self, source: Source, allowance: Allowance) -> None:
        self._source = source
        self._allowance = allowance

    @property
    def name(self) -> str:
        """The source's own."""
        return self._source.name

    @property
    def remote(self) -> bool:
        """The source's own."""
        return self._source.remote

    @property
    def server_time(self) -> float | None:
        """What the server last said the time is, where the source knows."""
        told: float | None = getattr(self._source, "server_time", None)
        return told

    def close(self) -> None:
        """Let go of connections."""
        self._allowance.save()
        self._source.close()

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        """Open a file; see `Source.fetch`."""
        body = self._source.fetch(name, limit=limit, offset=offset, validator=validator)

        def close() -> None:
            body.close()
            self._allowance.save()

        return Body(self._counted(body), offset=body.offset, total=body.total, validator=body.validator, close=close)

    def _counted(self, body: Body) -> Iterator[bytes]:
        count, paused, began = 0, 0.0, time.monotonic()
        try:
            for chunk in body:
                piece = self._allowance.piece or len(chunk)
                for start in range(0, len(chunk), piece):
                    part = chunk[start : start + piece]
                    count += len(part)
                    paused += self._allowance.spend(len(part))
                    yield part
        finally:  # also where the reader lets go in the middle
            self._allowance.measured(count, time.monotonic() - began - paused)
