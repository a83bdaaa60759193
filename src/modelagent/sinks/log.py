"""The log: notes as lines on standard error, for the journal or for a person.

This file knows the two line formats. It does not know who logs. The journal gets sd-daemon(3) priorities and no time
stamp (it has its own); a terminal gets a time stamp, the level as a word and the process's part.

    configure("info", "updater")                        # once, at the start of a process
    LogSink().send("digits", at, notes)                 # <6>digits: activated 1.1.0 (phase=Probation origin=cli)

Text that came from outside cannot begin a line of its own: control characters are shown as escapes.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Final, TextIO

from modelagent.core.effects import Note
from modelagent.core.events import Instant

LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.CRITICAL}
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_log = logging.getLogger("modelagent")


class LineFormatter(logging.Formatter):
    """One record, one line (a traceback keeps its lines, each with its prefix)."""

    def __init__(self, part: str, *, journal: bool) -> None:
        super().__init__()
        self._part = part
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines, without the last newline."""
        lines = [escape(record.getMessage())]
        if record.exc_info:
            lines += [escape(line) for line in self.formatException(record.exc_info).splitlines()]
        prefix = self._prefix(record)
        return "\n".join(prefix + line for line in lines)

    def _prefix(self, record: logging.LogRecord) -> str:
        if self._journal:
            priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
            return f"<{priority}>"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{stamp} {record.levelname.lower():8} {self._part}: "


class LogSink:
    """Notes as log lines."""

    name = "log"

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Log each note at its level."""
        del at  # the log stamps its own lines
        for note in notes:
            facts = {"version": note.version, "phase": note.phase, "origin": note.origin, **note.evidence}
            tail = " ".join(f"{key}={value}" for key, value in facts.items() if value is not None and value != "")
            level = LEVELS.get(note.level, logging.INFO)
            _log.log(level, "%s: %s: %s%s", model or "device", note.kind, note.text, f" ({tail})" if tail else "")


def configure(level: str, part: str, stream: TextIO | None = None, *, journal: bool | None = None) -> None:
    """Send the log of this process to `stream` (standard error), from `level` on.

    `part` tells lines of several processes apart; the journal knows the unit. `journal` None: found out. Calling it
    again replaces what it did before.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(part, journal=is_journal(stream) if journal is None else journal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a full disk under the log must not print about itself
    # Libraries speak when something is wrong; their every request is no news.
    for library in ("urllib3", "tuf", "paho", "watchdog"):
        logging.getLogger(library).setLevel(logging.WARNING)


def is_journal(stream: TextIO) -> bool:
    """Whether `stream` leads to systemd's journal: it names device and inode in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def escape(text: str) -> str:
    """Show control characters (and what terminals obey) as escapes, so that one message stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)
