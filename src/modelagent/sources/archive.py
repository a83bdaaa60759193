"""A bundle in one file as a source: a plain, uncompressed tar archive (POSIX ustar), read in place.

This file knows as much of ustar as `modelagent repo bundle` writes: plain files with plain names. It does not unpack
anything, trusts the archive no more than a server, and refuses every other kind of entry: links, devices and
extended headers have no business in a bundle, and a header that asks for gigabytes of memory even less.

    source = ArchiveSource(Path("/media/stick/digits-2026-11.modelagent"))
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelagent.errors import AgentError, SourceError
from modelagent.sources import CHUNK, Body, bounded, endless, not_found, parts_of

_BLOCK: Final = 512
MAX_ENTRIES: Final = 100_000
_PLAIN: Final = (b"0", b"\0")


class ArchiveSource:
    """Files inside one archive. The list of entries is read at the first fetch, and again when the file changed.

    Args:
        path: the archive; it may come and go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[str, tuple[int, int]] = {}
        self._indexed: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """The archive."""
        return str(self._path)

    @property
    def remote(self) -> bool:
        """Never."""
        return False

    def close(self) -> None:
        """Nothing is kept open between fetches."""

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        """Open an entry; see `Source.fetch`."""
        del validator
        wanted = "/".join(parts_of(name))
        fd = self._open()
        try:
            entries = self._entries(fd)
            if wanted not in entries:
                raise not_found(self.name, name)
            begin, size = entries[wanted]
            if size > limit:
                raise endless(self.name, name, limit)
        except BaseException:
            os.close(fd)
            raise
        start = offset if offset <= size else 0
        stream = os.fdopen(fd, "rb")
        checked = bounded(
            self._chunks(fd, name, begin + start, begin + size),
            source=self.name,
            name=name,
            room=limit - start,
            limit=limit,
        )
        return Body(checked, offset=start, total=size, close=stream.close)

    def _chunks(self, fd: int, name: str, at: int, end: int) -> Iterator[bytes]:
        while at < end:
            try:
                chunk = os.pread(fd, min(CHUNK, end - at), at)
            except OSError as error:
                raise SourceError(
                    f"{self.name}: {name}: {error.strerror}; the medium was pulled out or is failing", code="cut"
                ) from error
            if not chunk:
                raise SourceError(f"{self.name}: {name}: the archive ends in the middle; copy it again", code="cut")
            at += len(chunk)
            yield chunk

    def _open(self) -> int:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SourceError(
                    f"{self.name}: a symbolic link; name the bundle itself", code="unreachable"
                ) from error
            raise SourceError(
                f"{self.name}: {error.strerror}; is the medium mounted, and may the agent read it?", code="unreachable"
            ) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(f"{self.name}: no plain file; a bundle is one", code="unreachable")
        return fd

    def _entries(self, fd: int) -> dict[str, tuple[int, int]]:
        status = os.fstat(fd)
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._indexed != identity:
            self._index = dict(self._read(fd, status.st_size))
            self._indexed = identity
        return self._index

    def _read(self, fd: int, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
        at = 0
        for _ in range(MAX_ENTRIES):
            try:
                header = os.pread(fd, _BLOCK, at)
            except OSError as error:
                raise SourceError(f"{self.name}: {error.strerror}; the medium is failing", code="cut") from error
            if header == bytes(_BLOCK):
                return
            name, length = self._header(header, at)
            at += _BLOCK
            if at + length > size:
                raise self._bad(f"the entry {name} ends behind the end of the file")
            if name:
                yield name, (at, length)
            at += -(-length // _BLOCK) * _BLOCK
        raise self._bad(f"more than {MAX_ENTRIES} entries")

    def _header(self, header: bytes, at: int) -> tuple[str, int]:
        """Name and length of one entry; the name is empty for a directory."""
        if len(header) < _BLOCK:
            raise self._bad("it ends without the closing block")
        try:
            stated = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
            length = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
            name = _text(header[0:100])
            prefix = _text(header[345:500])
        except ValueError as error:
            raise self._bad(f"no archive header at byte {at}") from error
        found = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
        if header[257:263] != b"ustar\0" or found != stated or length < 0:
            raise self._bad(f"no archive header at byte {at}")
        kind = header[156:157]
        whole = f"{prefix}/{name}" if prefix else name
        if kind == b"5" and length == 0:
            return "", 0
        if kind not in _PLAIN:
            raise self._bad(f"the entry {whole[:80]!r} is of kind {kind!r}, allowed are plain files")
        try:
            return "/".join(parts_of(whole)), length
        except AgentError as error:
            raise self._bad(error.message) from error

    def _bad(self, what: str) -> SourceError:
        return SourceError(
            f"{self.name}: no bundle: {what}; write it again with `modelagent repo bundle`", code="bad-bundle"
        )


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii")
