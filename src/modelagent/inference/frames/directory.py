"""Frames that somebody puts into a directory: pictures, .npy, .npz, .json; one file, one frame.

This file knows which files are whole, in which order they go and what becomes of them. It does not know their content.

    source = DirectorySource(SourceOptions(kind="directory", path=Path("/srv/parts"), after="delete"))

- A file is whole when it was renamed in or closed after writing (inotify). What lay there before we looked is whole
  once it has not changed for two seconds. Names that begin with a dot, and endings that we do not know, are left alone.
- Files go in order of their time, one is read only when few are on their way: the directory is the queue, and memory
  does not depend on how much lies in it.
- Too many files: with `block` they wait; with `drop-oldest` the oldest beyond `queue` end as dropped, and go.
- A file goes (`after`: delete, or move to `done_dir`) when its frame has ended. One that was dropped because we stop
  stays, and is taken up at the next start. A file that was replaced meanwhile is a new one.
"""

import contextlib
import heapq
import logging
import os
import select
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.frames.payload import SUFFIXES, Payload, read, spell
from modelagent.inference.results import Row
from modelagent.inference.watch import Watch

_log = logging.getLogger(__name__)

_SETTLED: Final = 2.0  # seconds without a change, for a file whose end we did not see
_LOOK: Final = 1.0  # seconds between two looks at the whole directory
_AHEAD: Final = 4  # files read and not ended
_FAREWELL: Final = 1.0  # seconds that frames on their way have to end when we stop
_MOST: Final = 100_000  # files remembered at once; the rest are found by a later look
_STALE: Final = 1000  # entries of the heap whose file has changed since; more are swept out

_Identity = tuple[int, int, int]  # inode, mtime in ns, size


class DirectorySource(FrameSource):
    """See the head of the file.

    Raises:
        UsageError: `config` without a path, or with `after = "move"` and nowhere to move to.
    """

    kind = "directory"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        if options.path is None or (options.after == "move" and options.done_dir is None):
            raise UsageError(
                'source: kind = "directory" needs path, and done_dir with after = "move"; add them to the settings',
                code="config",
            )
        if (
            options.after == "move"
            and options.done_dir is not None
            and options.done_dir.resolve() == options.path.resolve()
        ):
            raise UsageError(
                f"source.done_dir: found {options.done_dir}, which is source.path: its files would be taken again; "
                "name another directory",
                code="config",
            )
        self._path = options.path
        self._ahead = max(1, min(_AHEAD, options.queue))
        self._number = 0
        self._ready: dict[Path, _Identity] = {}
        self._order: list[tuple[int, str, Path]] = []  # a heap of what is or was in `_ready`
        self._busy: dict[Path, _Identity] = {}
        self._young: dict[Path, tuple[_Identity, float]] = {}  # from the future: since when they have been as they are
        self._stuck: dict[Path, _Identity] = {}  # could not be removed: never taken twice
        self._ended: deque[tuple[Path, bool]] = deque()
        # A pipe and not an event: inotify and the serving thread wake the same poll.
        self._woken_fd, self._wake_fd = -1, -1

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource."""
        watch = Watch()
        self._woken_fd, self._wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not self._path.is_dir():
                raise SourceError(f"{self._path}: no such directory; make it or correct source.path", code="source")
            self._take(watch, put, stop)
            deadline = time.monotonic() + _FAREWELL
            while self._busy and time.monotonic() < deadline:  # what we stopped with: its end decides on its file
                self._put_away()
                time.sleep(0.005)
        finally:
            watch.close()
            os.close(self._woken_fd)
            wake, self._wake_fd = self._wake_fd, -1
            os.close(wake)

    def _take(self, watch: Watch, put: Callable[[Frame], None], stop: threading.Event) -> None:
        poll = select.poll()
        poll.register(self._woken_fd, select.POLLIN)
        if watch.fd >= 0:
            poll.register(watch.fd, select.POLLIN)
        look = 0.0
        while not stop.is_set():
            now = time.monotonic()
            watch.add(self._path)  # again and again: the directory may be another one of that name by now
            whole = watch.drain() if watch.fd >= 0 else []
            for path in whole or ():
                self._note(path, settled=0.0)
            if whole is None or now >= look:
                look = now + _LOOK
                self._scan()
            self._put_away()
            self._trim()
            while self._ready and len(self._busy) < self._ahead and not stop.is_set():
                path, identity = self._oldest()
                self._give(path, identity, put)
                self._put_away()
            if not self._ready or len(self._busy) >= self._ahead:
                # Half a second, so that `stop` is noticed also where nothing happens.
                poll.poll(min(0.5, max(0.0, look - time.monotonic())) * 1000.0)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken_fd, 65536)

    # -- what lies there -------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        for path in [path for path in self._stuck if not os.path.lexists(path)]:
            del self._stuck[path]
        for path in [path for path in self._young if not os.path.lexists(path)]:
            del self._young[path]
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if len(self._ready) >= _MOST:
                        break
                    self._note(self._path / entry.name, settled=_SETTLED)
        except OSError as error:
            raise SourceError(
                f"{self._path}: {error.strerror}; make it readable or correct source.path", code="source"
            ) from error

    def _note(self, path: Path, *, settled: float) -> None:
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            return
        try:
            status = path.lstat()
        except OSError:
            return  # gone again
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        regular = stat.S_ISREG(status.st_mode)  # a link may lead anywhere
        age = time.time() - status.st_mtime
        if settled and age < 0.0:  # a file server's clock is not ours: only our own says how long nothing has changed
            first, since = self._young.get(path, (None, 0.0))
            if first != identity:
                since = time.monotonic()
                self._young[path] = (identity, since)
            age = time.monotonic() - since
        known = identity in {self._busy.get(path), self._stuck.get(path), self._ready.get(path)}
        if known or not regular or (settled and age < settled) or path in self._busy:
            return
        self._young.pop(path, None)
        self._ready[path] = identity
        heapq.heappush(self._order, (identity[1], path.name, path))
        if len(self._order) > len(self._ready) + _STALE:  # a file that is written over and over while nothing is taken
            self._order = [(one[1], ready.name, ready) for ready, one in self._ready.items()]
            heapq.heapify(self._order)

    def _trim(self) -> None:
        if self.options.overflow != "drop-oldest":
            return
        while len(self._ready) > self.options.queue:
            path, identity = self._oldest()
            self.lose(Frame(self._name(path), (), time.time(), time.monotonic()))
            self._remove(path, identity)

    def _oldest(self) -> tuple[Path, _Identity]:
        """Take the oldest file; there is one."""
        while True:
            mtime_ns, _name, path = heapq.heappop(self._order)
            identity = self._ready.get(path)
            if identity is not None and identity[1] == mtime_ns:
                del self._ready[path]
                return path, identity

    # -- one file --------------------------------------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        self._number += 1
        return f"{spell(path.name)}:{self._number}"

    def _give(self, path: Path, identity: _Identity, put: Callable[[Frame], None]) -> None:
        name = self._name(path)
        try:
            payload = self._read(path)
        except SourceError as error:
            self.count("unreadable")
            _log.warning("%s: %s", path, error.message)
            self.lose(Frame(name, (), time.time(), time.monotonic()))
            self._remove(path, identity)
            return
        except FileNotFoundError:
            return  # somebody took it back
        self._busy[path] = identity

        def ended(row: Row) -> None:
            self._ended.append((path, row.outcome != "dropped"))
            if self._wake_fd >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._wake_fd, b"\0")

        put(Frame(name, payload.arrays, time.time(), time.monotonic(), ended))

    def _read(self, path: Path) -> Payload:
        try:
            # It may be another one by now: no link is followed, and no pipe is waited for.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise SourceError(f"{path}: no file any more; put files there", code="payload")
                return read(file.read(self.options.max_bytes + 1), self.options)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}; make it readable", code="payload") from error

    def _put_away(self) -> None:
        while self._ended:
            path, done = self._ended.popleft()
            identity = self._busy.pop(path, None)
            if done and identity is not None:
                self._remove(path, identity)

    def _remove(self, path: Path, identity: _Identity) -> None:
        try:
            status = path.lstat()
            if (status.st_ino, status.st_mtime_ns, status.st_size) != identity:
                return  # another file of that name by now
            if self.options.after == "move" and self.options.done_dir is not None:
                self.options.done_dir.mkdir(parents=True, exist_ok=True)
                shutil.move(path, self.options.done_dir / path.name)
            else:
                path.unlink()
        except OSError as error:
            self._stuck[path] = identity
            self.count("stuck")
            _log.warning("%s: cannot be removed: %s; it will not be taken again", path, error.strerror or error)
