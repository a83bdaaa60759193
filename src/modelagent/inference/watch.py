"""Notices changes in directories at once, through a file descriptor for poll.

This file knows inotify(7). It does not know what a change means: whoever wakes reads the directory anew, and also
does so once a second, so that a missing watch costs a second and nothing else.

    watch = Watch()
    watch.add(model_dir)                 # False: not there yet, or no watch left; ask again later
    poll.register(watch.fd, POLLIN)
    watch.drain()                        # something changed somewhere

Python has no inotify and the packages that wrap it bring a thread; the three calls are made here.
"""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

_MOVED_TO: Final = 0x80  # linux/inotify.h
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_CLOSE_WRITE: Final = 0x8
_DELETE_SELF: Final = 0x400
_MOVE_SELF: Final = 0x800
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_ONLY_DIRECTORY: Final = 0x1000000
_MASK: Final = _MOVED_TO | _CREATE | _DELETE | _CLOSE_WRITE | _DELETE_SELF | _MOVE_SELF | _ONLY_DIRECTORY
_EVENT: Final = 16  # bytes of an event before its name


class Watch:
    """Watches directories; `fd` is readable when something changed, -1 where there is no inotify."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched: dict[Path, int] = {}

    def add(self, directory: Path) -> bool:
        """Watch a directory; harmless when it is watched already."""
        if directory in self._watched:
            return True
        number: int = self._libc.inotify_add_watch(self.fd, os.fsencode(directory), _MASK) if self.fd >= 0 else -1
        if number < 0:
            return False
        self._watched[directory] = number
        return True

    def drain(self) -> list[Path] | None:
        """Take what has been reported; forget directories that are gone, so that `add` watches their successors.

        Returns:
            The files that were renamed in or closed after writing; None when too much happened to be told: look anew.
        """
        whole: list[Path] = []
        lost = False
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return None if lost else whole
            offset = 0
            while offset + _EVENT <= len(data):
                number = int.from_bytes(data[offset : offset + 4], "little", signed=True)
                mask = int.from_bytes(data[offset + 4 : offset + 8], "little")
                length = int.from_bytes(data[offset + 12 : offset + 16], "little")
                name = data[offset + _EVENT : offset + _EVENT + length].rstrip(b"\0")
                offset += _EVENT + length
                lost |= bool(mask & _OVERFLOW)
                if name and mask & (_MOVED_TO | _CLOSE_WRITE):
                    whole += [path / os.fsdecode(name) for path, n in self._watched.items() if n == number]
                if mask & (_IGNORED | _DELETE_SELF | _MOVE_SELF):
                    self._watched = {path: n for path, n in self._watched.items() if n != number}

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1
