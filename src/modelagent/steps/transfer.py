"""One file from a source to incoming/: resumed, bounded, hashed while it lands, durable before it has its name.

This file knows partial files. It does not know releases or metadata: sha256 and length come from who verified them.

    transfer.fetch(sha256, length, progress=print, abandoned=lambda: False)     # incoming/<sha256> is whole and right

`incoming/<sha256>.part` holds what has come so far, across restarts and from whichever mirror. It gets its final name
only once its hash is right; what could be a lie is taken back, what a cut left is kept.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelagent import durable
from modelagent.errors import DeviceError, SourceError, TrustError
from modelagent.sources import CHUNK, Source, bounded
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.metadata import wrong_length

_SYNC_EVERY: Final = 4 * 1024 * 1024  # bytes that a power cut may cost
Progress = Callable[[int], None]  # bytes of this file that are here
Abandoned = Callable[[], bool]
Recognise = Callable[[str], str | None]  # sha256 -> what else it is, for instance "digits 1.0.0 canary"


class Transfer:
    """Brings files into one directory.

    Args:
        incoming: the directory; it exists.
        mirrors: asked in turn.
        recognise: names bytes that belong elsewhere, so that a swap between releases is called what it is.
    """

    def __init__(self, incoming: Path, mirrors: Mirrors, recognise: Recognise) -> None:
        self._incoming = incoming
        self._mirrors = mirrors
        self._recognise = recognise

    def fetch(self, sha256: str, length: int, *, progress: Progress, abandoned: Abandoned) -> None:
        """Bring one file.

        Raises:
            TrustError: no source had it and one lied: `tampered-file`, `mix-and-match`, `wrong-length`,
                `endless-data`. Nothing of the lie is left.
            SourceError: no source had it; what came so far is kept for the next time.
            DeviceError: `abandoned`, `no-space`, ...
        """
        lie: TrustError | None = None
        fault: SourceError | None = None
        for source in self._mirrors.in_turn():
            try:
                self._from(source, sha256, length, progress, abandoned)
                return
            except TrustError as error:
                self._mirrors.blame(source)
                lie = lie or error
            except SourceError as error:
                fault = error
        raise lie or fault or SourceError("no source is configured; set [repository] url", code="no-source")

    def partial(self, sha256: str) -> int:
        """Bytes of this file that are here already, unverified."""
        try:
            return (self._incoming / f"{sha256}.part").lstat().st_size
        except OSError:
            return 0

    def _from(self, source: Source, sha256: str, length: int, progress: Progress, abandoned: Abandoned) -> None:
        name = f"files/{sha256}"
        with (
            durable.device_errors(f"{name}: writing to incoming"),
            _Partial(self._incoming / f"{sha256}.part", length) as partial,
        ):
            for _ in range(2):
                earlier = partial.have > 0
                try:
                    restarted = self._receive(
                        source, name, partial, length=length, progress=progress, abandoned=abandoned
                    )
                except SourceError as error:
                    if error.code != "wrong-range" or not earlier:
                        raise
                    restarted = False
                if partial.sha256 == sha256 and partial.have == length:
                    partial.finish(self._incoming / sha256)
                    return
                if restarted or not earlier:
                    break
                # This try built on bytes of an earlier one, and a power cut can leave zeros in a file: before
                # anybody is called a liar, everything is fetched again from this source alone.
                partial.rewind(0)
            found = partial.sha256
            partial.rewind(0)
        other = self._recognise(found)
        if other is not None:
            raise TrustError(
                f"{source.name}: {name}: found the bytes of {other}; nothing of it is used", code="mix-and-match"
            )
        raise TrustError(f"{source.name}: {name}: found sha256 {found}; nothing of it is used", code="tampered-file")

    @staticmethod
    def _receive(
        source: Source, name: str, partial: "_Partial", *, length: int, progress: Progress, abandoned: Abandoned
    ) -> bool:
        """Append what comes until the file is whole; whether the source began at 0 although asked to go on."""
        start = partial.have
        if start == length:
            return False
        with source.fetch(name, limit=length, offset=start) as body:
            if body.total is not None and body.total != length:
                raise wrong_length(source, name, body.total, length)
            restarted = start > 0 and body.offset == 0
            if restarted:
                partial.rewind(0)
                start = 0
            elif body.offset != start:
                raise SourceError(
                    f"{source.name}: {name}: asked from byte {start} on, got {body.offset}", code="wrong-range"
                )
            try:
                room = length - start
                for chunk in bounded(body, source=source.name, name=name, room=room, limit=length):
                    if abandoned():
                        raise DeviceError(f"{name}: given up on request", code="abandoned")
                    partial.append(chunk)
                    progress(partial.have)
            except TrustError:
                partial.rewind(start)
                raise
        if partial.have < length:
            raise SourceError(f"{source.name}: {name}: cut after {partial.have} bytes of {length}", code="cut")
        return restarted


class _Partial:
    """An unfinished file: what it holds and the hash of that. Leaving the `with` makes what is there durable.

    Args:
        path: its name; anything there that is no plain file of at most `length` bytes is removed.
        length: the signed length.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._path = path
        try:
            status = path.lstat()
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(status.st_mode) or status.st_size > length:
                durable.remove_tree(path)
        durable.point("open", path)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        self._digest = hashlib.sha256()
        self.have = 0
        self._unsynced = 0
        while chunk := os.pread(self._fd, CHUNK, self.have):
            self._digest.update(chunk)
            self.have += len(chunk)

    @property
    def sha256(self) -> str:
        """The hash of what is there."""
        return self._digest.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Add bytes that came."""
        durable.point("write", self._path)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(chunk)
        self.have += len(chunk)
        self._unsynced += len(chunk)
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def rewind(self, have: int) -> None:
        """Take back everything after `have` bytes."""
        durable.point("truncate", self._path)
        os.ftruncate(self._fd, have)
        self._digest = hashlib.sha256()
        self.have = 0
        self._unsynced += 1
        while chunk := os.pread(self._fd, CHUNK, self.have):
            self._digest.update(chunk)
            self.have += len(chunk)

    def finish(self, final: Path) -> None:
        """Give the file its name, durably."""
        self._sync()
        durable.rename(self._path, final)

    def _sync(self) -> None:
        durable.point("fsync", self._path)
        os.fsync(self._fd)
        self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.have == 0:
                durable.remove(self._path)
            elif self._unsynced:
                self._sync()
        finally:
            os.close(self._fd)
