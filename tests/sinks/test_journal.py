"""Notes as journal entries, read back by the rules of the journal's own protocol."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.sinks import Sinks
from modelagent.sinks.journal import JournalSink, encode, message_id

AT = Instant(1_700_000_000.25, 1.0, "boot")
NOTE = Note(
    "reverted", "1.1.0 was bad", version="1.1.0", digest="ab", phase="Reverting", level="alarm", evidence={"n": 3}
)


@pytest.fixture(autouse=True)
def _at_info() -> Iterator[None]:
    log = logging.getLogger("modelagent")
    before = log.level
    log.setLevel(logging.INFO)
    yield
    log.setLevel(before)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.settimeout(5.0)
        yield server


def decode(data: bytes) -> dict[str, str]:
    """An entry, as journald reads it."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_a_note_is_an_entry_with_fields(journal: socket.socket, tmp_path: Path) -> None:
    JournalSink(tmp_path / "socket").send("digits", AT, [NOTE])
    entry = decode(journal.recv(65536))
    assert entry.pop("SYSLOG_PID").isdecimal()
    assert json.loads(entry.pop("EVIDENCE")) == {"n": 3}
    assert entry == {
        "MESSAGE": "digits: reverted: 1.1.0 was bad",
        "PRIORITY": "2",
        "MESSAGE_ID": message_id("reverted"),
        "SYSLOG_IDENTIFIER": "modelagent",
        "KIND": "reverted",
        "MODEL": "digits",
        "VERSION": "1.1.0",
        "DIGEST": "ab",
        "PHASE": "Reverting",
    }


def test_a_value_of_several_lines_keeps_them() -> None:
    assert decode(encode({"A": "one", "B": "two\nC=three", "D": "é"})) == {"A": "one", "B": "two\nC=three", "D": "é"}


def test_text_from_outside_cannot_forge_a_field(journal: socket.socket, tmp_path: Path) -> None:
    JournalSink(tmp_path / "socket").send("digits", AT, [Note("a", "x\nPRIORITY=0", origin="y\nPRIORITY=0")])
    assert decode(journal.recv(65536))["PRIORITY"] == "6"


def test_the_level_of_the_log_holds_here_too(journal: socket.socket, tmp_path: Path) -> None:
    logging.getLogger("modelagent").setLevel(logging.WARNING)
    JournalSink(tmp_path / "socket").send("digits", AT, [Note("a", "quiet"), Note("b", "loud", level="warning")])
    assert decode(journal.recv(65536))["KIND"] == "b"


def test_huge_evidence_stays_behind(journal: socket.socket, tmp_path: Path) -> None:
    JournalSink(tmp_path / "socket").send("digits", AT, [Note("a", "t" * 100_000, evidence={"x": "y" * 100_000})])
    entry = decode(journal.recv(65536))
    assert "EVIDENCE" not in entry
    assert len(entry["MESSAGE"]) < 20_000


def test_a_journal_that_is_gone_is_counted_and_no_more(tmp_path: Path) -> None:
    sinks = Sinks([JournalSink(tmp_path / "nobody")])
    sinks.send("digits", AT, [NOTE])
    assert sinks.failures == {"journal": 1}


def test_message_ids_are_documented() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "systemd.md"
    for kind in ("activated", "confirmed", "reverted", "blocked", "alarm", "withdrawn"):
        assert f"| {kind} | {message_id(kind)} |" in page.read_text(encoding="utf-8"), kind
