"""What inference remembers over its own death: starts without progress, and the slot it left.

This file knows starts.json and when a start counts. It does not know why a slot was left or what runs instead.

    starts = Starts(path)
    ticket = starts.begin(digest)       # durable, before the load: whatever this start kills, it has been counted
    ticket.use()                        # before the first frame
    starts.progress(digest)             # one healthy inference: the count begins anew
    ticket.take_back()                  # no frame came: an idle line or a stopped service is no failed start
    starts.leave(Left(...))             # durable; honoured while `current` is still that link

A disk that cannot be written stops nothing: the count is then kept in memory, and `writable` says so.
"""

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from modelagent.durable import LinkId, write_atomic
from modelagent.errors import UNREADABLE
from modelagent.inference.links import Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """A slot that was left for the fallback: while `current` is still this link, it is not started again."""

    digest: str
    link: LinkId
    reason: str
    code: str


class Starts:
    """starts.json of one model. Any thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._digest = ""
        self._count = 0
        self.left: Left | None = None
        self.writable = True
        self._read()

    def count(self, digest: str) -> int:
        """Consecutive starts of `digest` without one healthy inference."""
        with self._lock:
            return self._count if digest == self._digest else 0

    def begin(self, digest: str) -> "Ticket":
        """Count a start, durably."""
        self._change(digest, +1)
        return Ticket(self, digest)

    def progress(self, digest: str) -> None:
        """The model gave a result: its count begins anew."""
        with self._lock:
            if digest != self._digest or self._count == 0:
                return
            self._count = 0
            self._write()

    def leave(self, left: Left) -> None:
        """Remember, durably, that a slot was left."""
        with self._lock:
            self.left = left
            self._count = 0  # whoever activates it anew gives it its chances again
            self._write()

    def has_left(self, target: Target) -> Left | None:
        """The record of leaving, if it is of exactly this link."""
        left = self.left
        return left if left is not None and (left.link, left.digest) == (target.link, target.digest) else None

    def _change(self, digest: str, by: int) -> None:
        with self._lock:
            self._count = max(0, (self._count if digest == self._digest else 0) + by)
            self._digest = digest
            self._write()

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_bytes())
            self._digest = str(document["digest"])
            self._count = int(document["consecutive_starts_without_progress"])
            left = document["left"]
            if left is not None:
                link = LinkId(int(left["link"]["inode"]), int(left["link"]["mtime_ns"]))
                self.left = Left(str(left["digest"]), link, str(left["reason"]), str(left["code"]))
        except FileNotFoundError:
            return
        except UNREADABLE as error:
            _log.warning("%s: not readable (%s); counting starts anew", self._path, error)

    def _write(self) -> None:
        left = self.left
        document = {
            "schema": 1,
            "digest": self._digest,
            "consecutive_starts_without_progress": self._count,
            "left": None
            if left is None
            else {
                "digest": left.digest,
                "link": {"inode": left.link.inode, "mtime_ns": left.link.mtime_ns},
                "reason": left.reason,
                "code": left.code,
            },
        }
        try:
            write_atomic(self._path, json.dumps(document).encode())
            self.writable = True
        except OSError as error:
            if self.writable:
                _log.warning("%s: %s; free space or correct permissions", self._path, error)
            self.writable = False


class Ticket:
    """One counted start. Taken back when no frame came, counted again before the first frame that does."""

    def __init__(self, starts: Starts, digest: str) -> None:
        self._starts = starts
        self._digest = digest
        self._lock = threading.Lock()
        self._counted = True
        self._used = False

    def use(self) -> None:
        """A frame is about to be given to the worker."""
        with self._lock:
            self._used = True
            if not self._counted:
                self._counted = True
                self._starts._change(self._digest, +1)  # noqa: SLF001 - the two are one file's two halves

    def take_back(self) -> None:
        """No frame has come: this start proves nothing."""
        with self._lock:
            if self._counted and not self._used:
                self._counted = False
                self._starts._change(self._digest, -1)  # noqa: SLF001
