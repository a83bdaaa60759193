"""Reports that wait for the broker: on disk, bounded, forgotten once acknowledged.

This file knows how reports are kept. It does not know MQTT, nor what a report says.

    box = Outbox(Path("/var/lib/modelagent/outbox"), most=1000, most_bytes=2_000_000)
    box.put("event", b'{"id":"9f2c-1",...}')     # one append
    entry = box.take()                           # the oldest that is not on its way
    box.done(entry.number)                       # acknowledged: never again

On disk: segments `<first number>.log` of sealed lines `<number> <tail> <payload>`, and `cursor`, which says what has
been acknowledged. What each call costs the flash, and what survives:

- `put` is one append, not synced: it survives the death of this process at once.
- `sync` makes what was appended survive a power cut. The session calls it while the broker is away, at most once a
  second; with a broker there a report is acknowledged sooner than it could be synced.
- `done` overwrites the cursor in place, not synced: after kill -9 nothing is sent again; after a power cut what was
  acknowledged in the last half minute may be, which its id makes harmless.

When the disk fails the reports are kept in memory, and `problem` says so: whoever reports must not be held up.
"""

import contextlib
import json
import logging
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelagent import durable
from modelagent.errors import UNREADABLE
from modelagent.inputs.sealed import seal, unseal

SEGMENT: Final = 64 * 1024  # bytes after which a new segment begins
MAX_FILE: Final = 1024 * 1024  # a bigger file is none of ours
_CURSOR: Final = 1024  # bytes
_SEGMENT: Final = re.compile(r"(\d{1,18})\.log")
_log = logging.getLogger("modelagent.outbox")


@dataclass(slots=True, eq=False)
class _Segment:
    """One file and how many of its reports still wait."""

    path: Path
    live: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One report; numbers grow and never repeat. `segment` None: it is in memory only."""

    number: int
    tail: str
    payload: bytes
    segment: _Segment | None = None


class Outbox:
    """A bounded queue of reports; every method may be called from any thread and none raises."""

    def __init__(self, directory: Path | None, *, most: int, most_bytes: int) -> None:
        """Take up what an earlier process left in `directory`; None: keep everything in memory."""
        self._directory = directory
        self._most = most
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._waiting: deque[Entry] = deque()
        self._flying: dict[int, Entry] = {}
        self._bytes = 0
        self._next = 1
        self._above: set[int] = set()  # acknowledged although an older one is not
        self._dropped = 0
        self._active: _Segment | None = None
        self._unsynced: set[Path] = set()
        self._names_unsynced = False
        self.problem = ""
        if directory is not None:
            with self._careful():
                durable.make_directory(directory)
                self._load(directory)

    # ---- what everybody may ask ------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Reports without acknowledgement."""
        with self._lock:
            return len(self._waiting) + len(self._flying)

    @property
    def dropped(self) -> int:
        """Reports lost to the bounds, or to a spoiled line; counted over restarts."""
        with self._lock:
            return self._dropped

    def put(self, tail: str, payload: bytes) -> None:
        """Keep one report; over the bounds the oldest ones go, and are counted. `payload` has no newline."""
        with self._lock:
            number = self._next
            self._next += 1
            line = seal(b"%d %b %b" % (number, tail.encode(), payload))
            self._waiting.append(Entry(number, tail, payload, self._write(number, line)))
            self._bytes += len(payload)
            self._trim()

    def take(self) -> Entry | None:
        """The oldest report that is not on its way; it is on its way now."""
        with self._lock:
            if not self._waiting:
                return None
            entry = self._waiting.popleft()
            self._flying[entry.number] = entry
            return entry

    def done(self, number: int) -> None:
        """The broker has it."""
        with self._lock:
            entry = self._flying.pop(number, None)
            if entry is not None:
                self._forget(entry)
                self._mark()

    def give_back(self) -> None:
        """The connection ended: what was on its way waits again, in its order."""
        with self._lock:
            self._waiting.extendleft(sorted(self._flying.values(), key=lambda entry: -entry.number))
            self._flying.clear()

    def sync(self) -> None:
        """Make what was put survive a power cut; costs nothing when there is nothing new."""
        with self._lock:
            paths, self._unsynced = self._unsynced, set()
            names, self._names_unsynced = self._names_unsynced, False
        if self._directory is None or not (paths or names):
            return
        with self._careful():
            for path in sorted(paths):
                with contextlib.suppress(FileNotFoundError):  # acknowledged meanwhile
                    durable.sync_file(path)
            if names:
                durable.sync_directory(self._directory)

    # ---- the files -------------------------------------------------------------------------------------------

    def _careful(self) -> "_Careful":
        return _Careful(self)

    def _write(self, number: int, line: bytes) -> _Segment | None:
        if self._directory is None:
            return None
        segment = self._active
        if segment is None or segment.size + len(line) > SEGMENT:
            if segment is not None and segment.live == 0:
                self._remove(segment)
            segment = self._active = _Segment(self._directory / f"{number}.log")
            self._names_unsynced = True
        with self._careful() as careful:
            durable.append(segment.path, line, sync=False)
        if careful.failed:
            self._active = None  # the file may be gone or full: the next report tries anew
            return None
        segment.live += 1
        segment.size += len(line)
        self._unsynced.add(segment.path)
        return segment

    def _trim(self) -> None:
        lost = 0
        while self._waiting and (self.queued > self._most or (self._bytes > self._most_bytes and self.queued > 1)):
            self._forget(self._waiting.popleft())
            lost += 1
        if lost:
            self._dropped += lost
            self._mark()

    def _forget(self, entry: Entry) -> None:
        self._bytes -= len(entry.payload)
        self._above.add(entry.number)
        segment = entry.segment
        if segment is not None:
            segment.live -= 1
            if segment.live == 0 and segment is not self._active:
                self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        self._unsynced.discard(segment.path)
        with self._careful():
            durable.unlink(segment.path)

    def _mark(self) -> None:
        """Write down what need not be sent again: everything below the oldest that waits, and single ones above."""
        oldest = min([*self._flying, *(entry.number for entry in list(self._waiting)[:1])], default=self._next)
        self._above = {number for number in self._above if number > oldest}
        if self._directory is None:
            return
        document = {"oldest": oldest, "above": sorted(self._above)[:40], "dropped": self._dropped}
        data = seal(json.dumps(document, separators=(",", ":")).encode()).ljust(_CURSOR, b"\n")
        path = self._directory / "cursor"
        with self._careful():
            try:
                durable.overwrite(path, 0, data, sync=False)
            except FileNotFoundError:
                durable.write_atomic(path, data, durable=False)

    def _load(self, directory: Path) -> None:
        oldest, above = self._read_cursor(directory / "cursor")
        found: dict[int, Entry] = {}
        self._next = max([oldest, *(number + 1 for number in above)])
        for path in sorted(directory.iterdir()):
            if not _SEGMENT.fullmatch(path.name):
                continue
            with open(path, "rb") as file:
                lines, spoiled = unseal(file.read(MAX_FILE))
            self._dropped += spoiled
            segment = _Segment(path)
            for line in lines:
                head, tail, payload = line.split(b" ", 2)
                number = int(head)
                self._next = max(self._next, number + 1)
                if number >= oldest and number not in above and number not in found:
                    found[number] = Entry(number, tail.decode(), payload, segment)
                    segment.live += 1
            if segment.live == 0:
                self._remove(segment)
        self._waiting.extend(found[number] for number in sorted(found))
        self._bytes = sum(len(entry.payload) for entry in found.values())
        self._above = above
        self._trim()

    def _read_cursor(self, path: Path) -> tuple[int, set[int]]:
        try:
            with open(path, "rb") as file:
                lines, _ = unseal(file.read(_CURSOR))
            document = json.loads(lines[0])
            self._dropped = int(document["dropped"])
            return int(document["oldest"]), {int(number) for number in document["above"]}
        except UNREADABLE:
            return 1, set()  # none, or half of one: then everything there is is sent again


class _Careful(contextlib.AbstractContextManager["_Careful"]):
    """Outlives a disk that fails, and says so once."""

    def __init__(self, box: Outbox) -> None:
        self._box = box
        self.failed = False

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        if not isinstance(error, OSError | ValueError):
            return False
        self.failed = True
        problem = f"reports are kept in memory only: {error}"
        if problem != self._box.problem:
            self._box.problem = problem
            _log.warning("%s", problem)
        return True
