"""Which commands were answered, and how: so that an id is executed once, however late its repeat comes.

This file knows ids and answers. It does not know what a command does.

    ledger = Ledger(Path("/var/lib/modelagent/commands"))
    ledger.recall("7f3a")                             # None: never seen
    ledger.keep("7f3a", {"status": "done", "reason": "resumed"})

The state itself remembers the newest commands, durably and together with what they did. That is too little for a
broker that brings a day's commands again, so the older ones are kept here: appended when answered, synced once every
`_SYNC_EVERY`, which is far fewer than the state remembers. Two files in turn; between half of `most` and `most` ids.
When the disk fails, memory alone is left, and the log says so once.
"""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.inputs.sealed import seal, unseal

MOST: Final = 4096
_MAX_FILE: Final = 16 * 1024 * 1024  # bytes; a bigger file is none of ours
_SYNC_EVERY: Final = 64
_NAMES: Final = ("old.log", "new.log")
_log = logging.getLogger("modelagent.commands")


class Ledger:
    """Answers by id; callable from any thread, never raises."""

    def __init__(self, directory: Path | None, *, most: int = MOST) -> None:
        """Read what is kept in `directory`; None: keep everything in memory."""
        self._directory = directory
        self._half = max(1, most // 2)
        self._old: dict[str, Mapping[str, Any]] = {}
        self._new: dict[str, Mapping[str, Any]] = {}
        self._unsynced = 0
        self._lock = threading.Lock()
        if directory is None:
            return
        try:
            durable.make_directory(directory)
            self._old, self._new = (_read(directory / name) for name in _NAMES)
            if self._new:
                # A power cut may have torn the last line: what follows must not become a part of it.
                durable.append(directory / _NAMES[1], b"\n", sync=False)
        except OSError as error:
            self._give_up(error)

    def recall(self, command: str) -> Mapping[str, Any] | None:
        """The recorded answer, or None."""
        with self._lock:
            return self._new.get(command) or self._old.get(command)

    def keep(self, command: str, answer: Mapping[str, Any]) -> None:
        """Record the first answer; a later one changes nothing."""
        with self._lock:
            if command in self._new or command in self._old:
                return
            self._new[command] = answer
            full = len(self._new) >= self._half
            if self._directory is not None:
                self._write(self._directory, command, answer, full=full)
            if full:
                self._old, self._new = self._new, {}

    def _write(self, directory: Path, command: str, answer: Mapping[str, Any], *, full: bool) -> None:
        self._unsynced += 1
        due = full or self._unsynced >= _SYNC_EVERY
        line = seal(json.dumps([command, answer], separators=(",", ":")).encode())
        try:
            durable.append(directory / _NAMES[1], line, sync=due)
            if full:
                durable.rename(directory / _NAMES[1], directory / _NAMES[0])
        except OSError as error:
            self._give_up(error)
        if due:
            self._unsynced = 0

    def _give_up(self, error: OSError) -> None:
        _log.warning("answered commands are kept in memory only: %s", error)
        self._directory = None


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        with open(path, "rb") as file:
            lines, _ = unseal(file.read(_MAX_FILE))
    except FileNotFoundError:
        return {}
    return dict(json.loads(line) for line in lines)
