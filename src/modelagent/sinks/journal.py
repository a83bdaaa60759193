"""systemd's journal: notes as entries with fields of their own, by its native protocol.

This file knows the datagram (systemd, "Native Journal Protocol") and which field carries what. It does not know who
logs. The plain log lines of both processes still go by standard error; a note goes here instead of there, so that

    journalctl MODEL=digits KIND=reverted
    journalctl MESSAGE_ID=a85f... -o json               # docs/systemd.md lists them

find it without reading prose. MESSAGE_ID is derived from the kind, so a new kind needs no table: `message_id`.

    JournalSink.here() and JournalSink().send("digits", at, notes)

The evidence goes along whole as one JSON field, EVIDENCE; the message is a sentence for people.
"""

import hashlib
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks.log import LEVELS, escape, is_journal

SOCKET: Final = Path("/run/systemd/journal/socket")
_PRIORITIES: Final = {"info": 6, "warning": 4, "alarm": 2}  # syslog(3)
_NAMESPACE: Final = b"modelagent journal message id\0"
_log = logging.getLogger("modelagent")  # whose level (log.level) decides what is written
_MAX: Final = 48 * 1024  # bytes of one entry: a datagram that every default socket buffer takes


def message_id(kind: str) -> str:
    """The MESSAGE_ID of a kind of note: 32 hex digits, the same for ever."""
    return hashlib.sha256(_NAMESPACE + kind.encode()).hexdigest()[:32]


def encode(fields: Mapping[str, str]) -> bytes:
    """Fields as the journal wants them: `NAME=value`, or with a length before a value of several lines."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class JournalSink:
    """Notes as journal entries."""

    name = "journal"

    def __init__(self, path: Path = SOCKET) -> None:
        """`path`: the journal's socket."""
        self._path = str(path)

    @staticmethod
    def here() -> bool:
        """Whether standard error leads to a journal that can be spoken to directly."""
        return is_journal(sys.stderr) and SOCKET.exists()

    def send(self, model: str, at: Instant, notes: Sequence[Note]) -> None:
        """Pass each note on; raises OSError when the journal does not take it (see Sinks)."""
        del at  # the journal stamps its own entries
        wanted = [note for note in notes if _log.isEnabledFor(LEVELS.get(note.level, logging.INFO))]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as journal:
            journal.setblocking(False)  # a journal that hangs costs an entry, never a turn of the machine
            for note in wanted:
                journal.sendto(encode(fields(model, note)), self._path)


def fields(model: str, note: Note) -> dict[str, str]:
    """What the journal is told of one note; empty facts are left out."""
    evidence = json.dumps(dict(note.evidence), separators=(",", ":"), default=str) if note.evidence else ""
    wanted = {
        "MESSAGE": escape(f"{model or 'device'}: {note.kind}: {note.text}")[: _MAX // 4],
        "PRIORITY": str(_PRIORITIES.get(note.level, 6)),
        "MESSAGE_ID": message_id(note.kind),
        "SYSLOG_IDENTIFIER": "modelagent",
        "SYSLOG_PID": str(os.getpid()),
        "KIND": note.kind,
        "MODEL": model,
        "VERSION": note.version,
        "DIGEST": note.digest,
        "PHASE": note.phase,
        "ORIGIN": note.origin,
        "EVIDENCE": evidence if len(evidence) < _MAX // 2 else "",
    }
    return {name: value for name, value in wanted.items() if value}
