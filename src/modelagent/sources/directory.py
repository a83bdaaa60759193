"""A local directory as a source: a USB stick, a mounted share, a repository on the same machine.

This file knows how to read a regular file without being led elsewhere. It does not know HTTP, and it trusts the
directory no more than a server: links, pipes and devices are not followed or opened.

    source = DirectorySource(Path("/media/stick/repo"))
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelagent.errors import SourceError
from modelagent.sources import CHUNK, Body, bounded, endless, not_found, parts_of


def place_of(address: str) -> Path | None:
    """The directory that an address names, as `file:///...` or as a path; None for one on the web."""
    parts = urlsplit(address)
    if parts.scheme in {"http", "https"}:
        return None
    return Path(unquote(parts.path) if parts.scheme == "file" else address)


class DirectorySource:
    """Files below one directory.

    Args:
        root: the directory; it may come and go.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The directory."""
        return str(self._root)

    @property
    def remote(self) -> bool:
        """Never, as far as this agent can know: a network share is mounted by somebody who knows its price."""
        return False

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        """Open a file; see `Source.fetch`."""
        del validator  # a file that changed meanwhile has another hash, which is found out
        fd = self._open(name)
        size = os.fstat(fd).st_size
        if size > limit:
            os.close(fd)
            raise endless(self.name, name, limit)
        start = offset if offset <= size else 0
        stream = os.fdopen(fd, "rb")
        stream.seek(start)

        def chunks() -> Iterator[bytes]:
            try:
                while chunk := stream.read(CHUNK):
                    yield chunk
            except OSError as error:
                raise SourceError(
                    f"{self.name}: {name}: {error.strerror}; the medium was pulled out or is failing", code="cut"
                ) from error

        checked = bounded(chunks(), source=self.name, name=name, room=limit - start, limit=limit)
        return Body(checked, offset=start, total=size, close=stream.close)

    def close(self) -> None:
        """Nothing is kept open between fetches."""

    def _open(self, name: str) -> int:
        parts = parts_of(name)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Part by part, so that a link in the middle cannot lead out; non-blocking, so that a pipe cannot hang us.
            above = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in parts[:-1]:
                    below = os.open(part, flags | os.O_DIRECTORY, dir_fd=above)
                    os.close(above)
                    above = below
                fd = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=above)
            finally:
                os.close(above)
        except FileNotFoundError as error:
            if not self._root.is_dir():
                raise SourceError(
                    f"{self.name}: no such directory; is the medium mounted?", code="unreachable"
                ) from error
            raise not_found(self.name, name) from error
        except OSError as error:
            raise SourceError(
                f"{self.name}: {name}: {error.strerror}; a repository holds plain files that everyone may read",
                code="unreachable",
            ) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(
                f"{self.name}: {name}: no regular file; a repository holds plain files", code="unreachable"
            )
        return fd
