"""One file from a source to incoming/: resumed, bounded, hashed while it lands, durable before it has its name.

This file knows partial files. It does not know releases or metadata: hashes and length come from who verified them.

    transfer.fetch(sha256, length, progress=print, abandoned=lambda: False)     # incoming/<sha256> is whole and right

`incoming/<sha256>.part` holds what has come so far, across restarts and from whichever mirror; `<sha256>.part.from`
says which source it came from and what that source called the file, so that If-Range can be asked after a reboot.
It gets its final name only once its hash is right; what could be a lie is taken back, what a cut left is kept.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from modelagent import durable
from modelagent.errors import UNREADABLE, AgentError, DeviceError, SourceError, TrustError
from modelagent.sources import CHUNK, Body, Source, bounded, captive, looks_like_page
from modelagent.sources.allowance import Allowance
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.workflow import wrong_length

# What a power cut may cost: so many seconds of the link, or so many bytes of a fast one. Waiting for the disk more
# often than that would only slow a fast link down.
_SYNC_S: Final = 5.0
_SYNC_BYTES: Final = 64 * 1024 * 1024
# What a source says that ends the attempt for good rather than for now: asking again soon would not change it.
FINAL_CODES: Final = frozenset({"not-found", "refused"})
FINAL_PAUSE_S: Final = 900.0
Progress = Callable[[int], None]  # bytes of this file that are here
Abandoned = Callable[[], bool]
Recognise = Callable[[str], str | None]  # sha256 -> what else it is, for instance "digits 1.0.0 canary"


@dataclass(frozen=True, slots=True)
class Item:
    """A file to bring: its address at a source, its name here, the signed length in bytes and hashes in hex."""

    name: str
    key: str
    length: int
    hashes: Mapping[str, str]

    @classmethod
    def content(cls, sha256: str, length: int) -> "Item":
        """A file that is addressed by its content."""
        return cls(f"files/{sha256}", sha256, length, {"sha256": sha256})


class FinalError(SourceError):
    """No source will have this file soon; `retry_after` seconds until it is worth asking again."""

    def __init__(self, message: str, *, code: str, retry_after: float = FINAL_PAUSE_S) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Transfer:
    """Brings files into one directory.

    Args:
        incoming: the directory; it exists.
        mirrors: asked in turn.
        recognise: names bytes that belong elsewhere, so that a swap between releases is called what it is.
        allowance: what may be taken of the link; None: everything.
        told: is given each refusal of a source, also where another source had the file.
    """

    def __init__(
        self,
        incoming: Path,
        mirrors: Mirrors,
        recognise: Recognise,
        *,
        allowance: Allowance | None = None,
        told: Callable[[AgentError], None] | None = None,
    ) -> None:
        self.incoming = incoming
        self._mirrors = mirrors
        self._recognise = recognise
        self._allowance = allowance
        self._told = told or (lambda _: None)

    def fetch(self, sha256: str, length: int, *, progress: Progress, abandoned: Abandoned) -> None:
        """Bring a file that is addressed by its content; raises as `bring`."""
        self.bring(Item.content(sha256, length), progress=progress, abandoned=abandoned)

    def bring(self, item: Item, *, progress: Progress, abandoned: Abandoned) -> None:
        """Bring one file.

        Raises:
            TrustError: no source had it and one lied: `tampered-file`, `mix-and-match`, `wrong-length`,
                `endless-data`. Nothing of the lie is left.
            SourceError: no source had it; what came so far is kept for the next time. `retry_after` is what a server
                asked for, or a longer pause where none has such a file.
            DeviceError: `abandoned`, `byte-budget`, `no-space`, ...
        """
        lie: TrustError | None = None
        faults: list[SourceError] = []
        spent: DeviceError | None = None
        for source in self._mirrors.in_turn():
            if source.remote and self._allowance is not None:
                try:
                    self._allowance.check()
                except DeviceError as error:
                    spent = error
                    continue
            try:
                self._from(source, item, progress, abandoned)
                return
            except TrustError as error:
                self._mirrors.blame(source, error.code)
                self._told(error)
                lie = lie or error
            except SourceError as error:
                self._told(error)
                faults.append(error)
        raise spent or lie or _worst(faults)

    def partial(self, key: str) -> int:
        """Bytes of this file that are here already, unverified."""
        try:
            return (self.incoming / f"{key}.part").lstat().st_size
        except OSError:
            return 0

    def forget(self, key: str) -> None:
        """Give up what has come of this file. What the disk does not let go of goes by its age."""
        for name in (f"{key}.part", f"{key}.part.from"):
            with contextlib.suppress(OSError):
                if os.path.lexists(self.incoming / name):
                    durable.remove(self.incoming / name)

    def _from(self, source: Source, item: Item, progress: Progress, abandoned: Abandoned) -> None:
        with (
            durable.device_errors(f"{item.name}: writing to incoming"),
            _Partial(self.incoming / f"{item.key}.part", item) as partial,
        ):
            for start in dict.fromkeys((partial.have, 0)):
                try:
                    restarted = self._receive(source, item, partial, start, progress=progress, abandoned=abandoned)
                except SourceError as error:
                    if error.code != "wrong-range" or not start:
                        raise
                    restarted = False
                if partial.is_right:
                    partial.finish(self.incoming / item.key)
                    return
                if restarted:
                    break
                # This try built on bytes of an earlier one, and a power cut can leave zeros in a file: before
                # anybody is called a liar, everything is fetched again from this source alone.
            found = partial.found("sha256")
            partial.rewind(0)
        other = self._recognise(found)
        if other is not None:
            raise TrustError(
                f"{source.name}: {item.name}: found the bytes of {other}; nothing of it is used", code="mix-and-match"
            )
        raise TrustError(
            f"{source.name}: {item.name}: found sha256 {found}, signed is {_signed(item)}; nothing of it is used",
            code="tampered-file",
        )

    def _receive(
        self, source: Source, item: Item, partial: "_Partial", start: int, *, progress: Progress, abandoned: Abandoned
    ) -> bool:
        """Take what comes from `start` on until the file is whole; whether the source began at 0 all the same."""
        if start == item.length:
            return False
        name, length = item.name, item.length
        validator = partial.validator_of(source.name) if start else ""
        with source.fetch(name, limit=length, offset=start, validator=validator) as body:
            if body.total is not None and body.total != length:
                raise _page(source, name, body) or wrong_length(source, name, body.total, length)
            restarted = start > 0 and body.offset == 0
            if not restarted and body.offset != start:
                raise SourceError(
                    f"{source.name}: {name}: asked from byte {start} on, got {body.offset}", code="wrong-range"
                )
            partial.came_from(source.name, body.validator)
            at, intact = body.offset, partial.have
            try:
                for chunk in bounded(body, source=source.name, name=name, room=length - at, limit=length):
                    if abandoned():
                        raise DeviceError(f"{name}: given up on request", code="abandoned")
                    # What comes again is held against what is here: a server that begins anew and then turns out to
                    # be a liar, or is cut off sooner, must not cost what came before.
                    intact = min(intact, partial.put(at, chunk))
                    at += len(chunk)
                    progress(partial.have)
                    if source.remote and self._allowance is not None and at < length:
                        self._allowance.check()
            except TrustError:
                partial.rewind(intact)
                raise
        if at < length:
            if body.offset == 0 and looks_like_page(partial.head()):
                partial.rewind(0)
                raise captive(source.name, name)
            raise SourceError(f"{source.name}: {name}: cut after {partial.have} bytes of {length}", code="cut")
        return restarted


def _worst(faults: list[SourceError]) -> SourceError:
    """What to report where every source failed: hope where there is some, else that there is none."""
    if not faults:
        return SourceError("no source is configured; set [repository] url", code="no-source")
    hopeful = [fault for fault in faults if fault.code not in FINAL_CODES]
    if hopeful:
        return max(hopeful, key=lambda fault: float(getattr(fault, "retry_after", 0.0)))
    return FinalError(faults[0].message, code=faults[0].code)


def _page(source: Source, name: str, body: Body) -> SourceError | None:
    """A captive portal, if that is why the length is another one."""
    if body.offset == 0 and looks_like_page(next(iter(body), b"")):
        return captive(source.name, name)
    return None


def _signed(item: Item) -> str:
    return item.hashes.get("sha256") or ", ".join(f"{kind} {value}" for kind, value in item.hashes.items())


class _Partial:
    """An unfinished file: what it holds and the hash of that. Leaving the `with` makes what is there durable.

    Args:
        path: its name; anything there that is no plain file of at most the signed length is removed.
        item: what it is to become.
    """

    def __init__(self, path: Path, item: Item) -> None:
        self._path = path
        self._item = item
        self._origin_path = path.with_name(f"{path.name}.from")
        try:
            status = path.lstat()
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(status.st_mode) or status.st_size > item.length:
                durable.remove_tree(path)
        self._fd = self._open()
        self.have = 0
        self._unsynced = 0
        self._synced = time.monotonic()
        self._origin = self._read_origin()
        try:
            self._hash_again()
        except OSError as error:
            os.close(self._fd)
            if error.errno != errno.EIO:
                raise
            # What the storage cannot read is fetched again, in another place of it.
            durable.remove_tree(path)
            self._fd = self._open()
            self._hash_again()

    def _open(self) -> int:
        durable.point("open", self._path)
        return os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)

    @property
    def is_right(self) -> bool:
        """Whether this is the whole file, by its length and every hash that is signed."""
        return self.have == self._item.length and all(
            self.found(kind) == value for kind, value in self._item.hashes.items()
        )

    def found(self, kind: str) -> str:
        """The hash of what is there, in hex."""
        return self._digests[kind].hexdigest()

    def head(self) -> bytes:
        """The first bytes."""
        return os.pread(self._fd, 512, 0)

    def validator_of(self, source: str) -> str:
        """What this source called the file when it gave the bytes that are here; "" when another gave them."""
        return self._origin[1] if self.have and self._origin[0] == source else ""

    def came_from(self, source: str, validator: str) -> None:
        """Remember whose bytes come now. Losing this costs nothing but the question whether the file changed."""
        if (source, validator) == self._origin or not validator:
            return
        self._origin = (source, validator)
        with contextlib.suppress(OSError):
            document = json.dumps({"schema": 1, "source": source, "validator": validator})
            durable.write_atomic(self._origin_path, document.encode(), durable=False)

    def put(self, at: int, chunk: bytes) -> int:
        """Take bytes that belong at `at`, at most where the file ends now; how much of it is as it was."""
        before = self.have
        overlap = min(len(chunk), before - at)
        if overlap > 0 and os.pread(self._fd, overlap, at) != chunk[:overlap]:
            self.rewind(at)
            self.append(chunk)
            return at
        if overlap < len(chunk):
            self.append(chunk[max(0, overlap) :])
        return before

    def append(self, chunk: bytes) -> None:
        """Add bytes that came."""
        durable.point("write", self._path)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]
        for digest in self._digests.values():
            digest.update(chunk)
        self.have += len(chunk)
        self._unsynced += len(chunk)
        if self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced >= _SYNC_S:
            self._sync()

    def rewind(self, have: int) -> None:
        """Take back everything after `have` bytes."""
        durable.point("truncate", self._path)
        os.ftruncate(self._fd, have)
        self._unsynced += 1
        self._hash_again()

    def finish(self, final: Path) -> None:
        """Give the file its name, durably."""
        self._sync()
        durable.rename(self._path, final)
        durable.unlink(self._origin_path)

    def _hash_again(self) -> None:
        self._digests = {kind: hashlib.new(kind) for kind in {"sha256", *self._item.hashes}}
        self.have = 0
        while chunk := os.pread(self._fd, CHUNK, self.have):
            for digest in self._digests.values():
                digest.update(chunk)
            self.have += len(chunk)

    def _read_origin(self) -> tuple[str, str]:
        with contextlib.suppress(*UNREADABLE):
            if not self._origin_path.is_symlink() and self._origin_path.stat().st_size < CHUNK:
                kept: Any = json.loads(self._origin_path.read_bytes())
                return str(kept["source"]), str(kept["validator"])
        return "", ""

    def _sync(self) -> None:
        durable.point("fsync", self._path)
        os.fsync(self._fd)
        self._unsynced = 0
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.have == 0:
                durable.unlink(self._origin_path)
                durable.remove(self._path)
            elif self._unsynced:
                self._sync()
        finally:
            os.close(self._fd)
