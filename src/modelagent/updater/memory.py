"""What the policies want remembered, over a restart: one small file a model, and never more than a convenience.

This file knows the file's form. It does not know what any entry means.

    remembered = Remembered(state_dir / "policies" / "digits.json")
    memory = remembered.load()          # {} when there is none, or none that can be read
    remembered.save(memory, mono)       # written when something changed that is worth it, at most once a minute

Hysteresis, the feedback interval and how long something has waited are advice about when, not truth about what: State
is written durably and before every effect, and these change far more often than it should (decision record 0009).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelagent.core.events import Instant
from modelagent.durable import device_errors, have_directory, write_atomic
from modelagent.errors import UNREADABLE, DeviceError
from modelagent.policies import Memory, Past

SCHEMA: Final = 1
MAX_BYTES: Final = 256 * 1024
_SAVE_S: Final = 60.0
_log = logging.getLogger("modelagent.policies")


class Remembered:
    """One model's memory on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: Mapping[str, object] = {}
        self._due = 0.0

    def load(self) -> Memory:
        """What was remembered; nothing at all rather than half of it."""
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(MAX_BYTES))
            if document["schema"] != SCHEMA:
                return {}
            memory = {str(key): _past(value) for key, value in document["memory"].items()}
        except FileNotFoundError:
            return {}
        except UNREADABLE as error:
            _log.warning("%s: cannot be read (%s): policies begin anew", self._path, error)
            return {}
        self._kept = _worth(memory)
        return memory

    def save(self, memory: Memory, mono: float, *, at_once: bool = False) -> None:
        """Write it if an answer, an interval or the beginning of a wait has changed; a full disk costs nothing more."""
        worth = _worth(memory)
        if worth == self._kept or (mono < self._due and not at_once):
            return
        self._due, self._kept = mono + _SAVE_S, worth
        entries = {
            key: [past.kind, [past.since.wall, past.since.mono, past.since.boot_id], past.value]
            for key, past in memory.items()
        }
        try:
            with device_errors("remembering what policies saw"):
                have_directory(self._path.parent)
                write_atomic(self._path, json.dumps({"schema": SCHEMA, "memory": entries}).encode(), durable=False)
        except DeviceError as error:
            _log.warning("%s", error.message)


def _worth(memory: Memory) -> Mapping[str, object]:
    """What makes a write worth its wear: kinds, and intervals; values of facts waver all the time."""
    return {
        key: (past.kind, past.value if past.kind not in ("open", "closed", "settling") else 0)
        for key, past in memory.items()
    }


def _past(value: object) -> Past:
    if not isinstance(value, list):
        raise TypeError(f"found {type(value).__name__}, expected a list")
    kind, (wall, mono, boot_id), number = value
    return Past(str(kind), Instant(float(wall), float(mono), str(boot_id)), float(number))
