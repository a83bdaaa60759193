"""What the updater remembers across any death: one model's state, and the device's history that explains it.

This file knows how state and history are kept so that a cut at any moment leaves the state before or the state after,
and a history that does not lie about it. It does not know what a state means: it is any frozen dataclass.

    journal = Journal(Path("/var/lib/modelagent"), "digits", State)
    state, repairs = journal.load()               # None: nothing (readable) there; start from the disk's facts
    journal.write(new, (Note("staged", "..."),))  # history first, then state; both durable when it returns

`state` is two blocks of equal size, written in turn, each with a sequence number and a checksum over everything: a
torn write spoils the older one (the double-write of SQLite's and LMDB's meta pages). History lines carry the number
of the state that they belong to; a line whose state was never written is named by a later line, not removed.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from modelagent import durable
from modelagent.core.effects import Note
from modelagent.durable import device_errors

S = TypeVar("S")

SCHEMA: Final = 1
MAGIC: Final = "modelagent-state"
BLOCK: Final = 64 * 1024  # bytes of one block, its header included; doubled when a state outgrows it
HEADER: Final = 256  # bytes
HISTORY_LIMIT: Final = 4 * 1024 * 1024  # bytes of history.jsonl before it becomes history.1.jsonl
LINE_LIMIT: Final = 16 * 1024  # bytes of one history line; longer evidence is left out, and said to be
MAX_STATE: Final = 64 * 1024 * 1024  # bytes; a bigger file is no state of ours
OWED: Final = 200  # lines that wait in memory for a disk that takes them; the oldest go first
KEPT_BAD: Final = 3  # unreadable states kept aside for whoever looks into it
_MODE: Final = 0o640


class Journal(Generic[S]):
    """State and history of one model.

    Args:
        state_dir: the updater's directory: `models/<model>/state` and `history.jsonl` are kept in it.
        model: the model's name.
        kind: the state's dataclass, made of what JSON can carry (dataclasses, enums, tuples, mappings by str).
        limit: bytes of history before it is rotated; two files are kept.
        clock: Unix seconds.

    Methods raise DeviceError when the device cannot.
    """

    def __init__(
        self,
        state_dir: Path,
        model: str,
        kind: type[S],
        *,
        limit: int = HISTORY_LIMIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.directory = state_dir / "models" / model
        self.path = self.directory / "state"
        self.history = state_dir / "history.jsonl"
        self._adapter: TypeAdapter[S] = _adapter(kind)
        self._limit = limit
        self._clock = clock
        self._seq: int | None = None  # None until loaded: writing blindly could reuse a number
        self._anew = True  # the file has to be made
        self._block = BLOCK
        self._next = 0  # which block is written next: never the newest good one
        self._owed: tuple[tuple[float, Note], ...] = ()  # what the history still lacks, and since when

    def load(self) -> tuple[S | None, tuple[Note, ...]]:
        """The newest readable state, and notes on what had to be repaired (for the next `write`)."""
        notes: list[Note] = []
        self._anew = True
        with device_errors(f"{self.model}: read the state"):
            for directory in (self.history.parent, self.directory):
                if directory.is_dir():
                    durable.sync_directory(directory)  # names that a killed process made, and did not sync
            notes += [_put_away(file) for file in (_older(self.history), self.history) if _is_spoiled(file)]
            torn = _mend(self.history)
            if torn:
                notes.append(
                    Note("repaired", f"history: a torn last line of {torn} bytes was removed", level="warning")
                )
            data = _halves(self.path)
            seqs = [line["seq"] for line in _lines(self.history) if line["model"] == self.model]
            top = max(seqs, default=0)
            state: S | None = None
            known = 0
            if data is not None:
                state, known = self._choose(data, notes)
                if state is None:
                    known = top
                    notes.append(self._set_aside())
            elif len(set(seqs)) > 1:
                known = top
                text = "the state file is gone; starting from what is on disk"
                notes.append(Note("repaired", text, level="alarm"))
            unfinished = sorted({seq for seq in seqs if seq > known})
            if unfinished:
                notes.append(_unfinished(unfinished, "the device was cut off before it was written"))
            self._seq = max(known, top)
        return state, tuple(notes)

    def peek(self) -> S | None:
        """The newest readable state, changing nothing: for whoever only looks. None when there is none."""
        with device_errors(f"{self.model}: read the state"):
            data = _halves(self.path)
        return None if data is None else self._choose(data, [])[0]

    def _choose(self, data: bytes, notes: list[Note]) -> tuple[S | None, int]:
        size = len(data) // 2
        found = []
        spoiled = []
        for index, raw in enumerate((data[:size], data[size:])):
            try:
                block = _decode(raw)
                if block is not None:
                    found.append((block.seq, index, self._adapter.validate_json(block.payload)))
            except (_SpoiledError, ValidationError) as error:
                spoiled.append(str(error).splitlines()[0])
        if not found:
            notes.extend(Note("repaired", f"state: {reason}", level="warning") for reason in spoiled)
            return None, 0
        seq, index, state = max(found, key=lambda item: item[0])
        self._anew, self._block, self._next = False, size, 1 - index
        if spoiled:
            text = f"state: one of its two blocks was unreadable ({spoiled[0]}); the other, number {seq}, is used"
            notes.append(Note("repaired", text, level="warning"))
        return state, seq

    def _set_aside(self) -> Note:
        names = [self.path.with_name(f"state.bad-{number}") for number in range(1, KEPT_BAD + 1)]
        aside = next((path for path in names if not path.exists()), names[-1])
        durable.rename(self.path, aside)
        text = f"the state was unreadable and is kept as {aside}; starting from what is on disk"
        return Note("repaired", text, level="alarm")

    def write(self, state: S, notes: Sequence[Note]) -> None:
        """Write history, then state, durably.

        When this raises DeviceError the state before is what a restart finds, and what the history could not take goes
        with the next write. Should only the history have been written, the next write says so.
        """
        assert self._seq is not None, "load first: the next sequence number comes from the disk"  # noqa: S101
        payload = self._adapter.dump_json(state)
        # What could not be read back (an infinite float, say) must never replace what can: a programmer error.
        self._adapter.validate_json(payload)
        self._seq = seq = self._seq + 1
        wall = self._clock()
        told = (*self._owed, *((wall, note) for note in notes))
        self._owed = told[-OWED:]
        if told:
            with device_errors(f"{self.model}: write the history"):
                _append(
                    self.history, "".join(_line(seq, self.model, at, note) for at, note in told).encode(), self._limit
                )
            self._owed = ()
        try:
            with device_errors(f"{self.model}: write the state"):
                self._write_state(seq, payload)
        except Exception as error:
            if told:
                # What was a fact (a slot staged, a link switched) stays one: with the next state it is kept after all.
                text = f"the state that goes with the lines of number {seq} is kept only now: {error}"
                self._owed = ((wall, Note("late", text, level="warning", evidence={"seq": [seq]})),)
            raise

    def _write_state(self, seq: int, payload: bytes) -> None:
        block = _encode(seq, payload)
        if not self._anew and len(block) <= self._block:
            # After a failure the same block is written again: the kernel may show what never reached the disk.
            durable.overwrite(self.path, self._next * self._block, block)
            self._next = 1 - self._next
            return
        # The first state, one that has outgrown its block, or a try at either that failed: a new file, one rename.
        self._anew = True
        for directory in (self.directory.parent, self.directory):
            durable.make_directory(directory)
        size = self._block
        while len(block) > size:
            size *= 2
        durable.write_atomic(self.path, block.ljust(2 * size, b"\0"), mode=_MODE)
        self._anew, self._block, self._next = False, size, 1


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Made once a process: it takes as long as hundreds of writes, and every model has a journal."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


_adapters: Final[dict[type[Any], TypeAdapter[Any]]] = {}


def read_history(state_dir: Path, last: int | None = None, model: str | None = None) -> list[dict[str, Any]]:
    """The last lines of history, oldest first, of one model or of all.

    Lines whose state was never written (decided, not done) carry `"unfinished": true`. Unreadable lines are passed
    over. Raises DeviceError when the file cannot be read.
    """
    with device_errors("read the history"):
        lines = [line for line in _lines(state_dir / "history.jsonl") if model in (None, line["model"])]
    never = {
        (line["model"], seq)
        for line in lines
        if line.get("kind") == "unfinished" and isinstance(line.get("evidence"), dict)
        for seq in line["evidence"].get("seq", ())
    }
    for line in lines:
        if (line["model"], line["seq"]) in never:
            line["unfinished"] = True
    return lines if last is None else lines[max(0, len(lines) - last) :]


# -- blocks ---------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    seq: int
    payload: bytes


class _SpoiledError(Exception):
    """A block that is not empty and not readable; says why."""


def _encode(seq: int, payload: bytes) -> bytes:
    head: dict[str, object] = {"magic": MAGIC, "schema": SCHEMA, "seq": seq, "length": len(payload)}
    head["sha256"] = _checksum(head, payload)
    return json.dumps(head).encode().ljust(HEADER - 1) + b"\n" + payload


def _decode(raw: bytes) -> _Block | None:
    """The block, or None for one that was never written."""
    if not raw.strip(b"\0"):
        return None
    try:
        head = json.loads(raw[:HEADER])
    except ValueError as error:
        raise _SpoiledError("its head is no JSON") from error
    if not isinstance(head, dict) or head.get("magic") != MAGIC:
        raise _SpoiledError("its head is not ours")
    if head.get("schema") != SCHEMA:
        raise _SpoiledError(f"schema {head.get('schema')} is unknown to this version, which reads {SCHEMA}")
    checksum, length, seq = head.pop("sha256", None), head.get("length"), head.get("seq")
    if not isinstance(length, int) or not isinstance(seq, int) or length < 0:
        raise _SpoiledError("its head is incomplete")
    payload = raw[HEADER : HEADER + length]
    if checksum != _checksum(head, payload):
        raise _SpoiledError("its checksum is wrong")
    return _Block(seq, payload)


def _halves(path: Path) -> bytes | None:
    """Both blocks; of one that the storage cannot read, what comes before that, so that the other one is used."""
    try:
        return _bytes(path, MAX_STATE)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = min(os.fstat(fd).st_size, MAX_STATE) // 2
        found = b""
        for start in (0, size):
            part = b""
            with contextlib.suppress(OSError):
                part = os.pread(fd, size, start)
            found += part.ljust(size, b"?")
        return found
    finally:
        os.close(fd)


def _checksum(head: Mapping[str, object], payload: bytes) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode() + b"\n" + payload).hexdigest()


# -- history --------------------------------------------------------------------------------------------------------


def _unfinished(seqs: list[int], reason: str) -> Note:
    which = ", ".join(map(str, seqs[-5:]))
    return Note(
        "unfinished",
        f"what the lines of number {which} say was decided and not done: {reason}",
        level="warning",
        evidence={"seq": seqs},
    )


def _line(seq: int, model: str, wall: float, note: Note) -> str:
    values = {
        "schema": SCHEMA,
        "seq": seq,
        "model": model,
        "wall": wall,
        **{f.name: _plain(getattr(note, f.name)) for f in dataclasses.fields(note)},
    }
    text = json.dumps(values)
    if len(text) > LINE_LIMIT:
        values["evidence"] = {"left_out": f"{len(text)} bytes are more than the {LINE_LIMIT} of a line"}
        values["text"] = str(values["text"])[: LINE_LIMIT // 8]
        text = json.dumps(values)
    return text + "\n"


def _plain(value: object) -> object:
    """Evidence as JSON can carry it; numbers that JSON lacks become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def _is_spoiled(path: Path) -> bool:
    try:
        _bytes(path, MAX_STATE)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    return False


def _put_away(path: Path) -> Note:
    """A history that the storage cannot read would stand in the way of each new line."""
    aside = path.with_name(f"{path.name}.bad")
    durable.rename(path, aside)
    return Note("repaired", f"the storage cannot read the history; it is kept as {aside}", level="alarm")


def _append(path: Path, data: bytes, limit: int) -> None:
    _mend(path)
    try:
        size = path.lstat().st_size
    except FileNotFoundError:
        size = 0
    if size and size + len(data) > limit:
        durable.rename(path, _older(path))
    durable.append(path, data, mode=_MODE)


def _older(path: Path) -> Path:
    return path.with_name("history.1.jsonl")


def _mend(path: Path) -> int:
    """Cut off a torn last line; returns its bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    with open(fd, "rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
    if end < size:
        durable.truncate(path, end)
    return size - end


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Readable lines of both files, oldest first."""
    for file in (_older(path), path):
        for raw in (_bytes(file, MAX_STATE) or b"").splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("seq"), int) and isinstance(line.get("model"), str):
                yield line


def _bytes(path: Path, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read(limit)
