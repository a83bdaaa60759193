"""Sources: name in, bytes out, trusted with nothing. One file a kind: `http`, `directory`.

This file knows what a source is and the bounds that every source keeps. It does not know what the bytes mean: who
asks verifies them.

    with source.fetch("files/ab12...", limit=4096, offset=1024) as body:
        for chunk in body:          # from body.offset on; never more than 4096 - body.offset bytes in all
            ...

A name is a relative address with `/` between its parts, each part percent-encoded by who asks. A source gives what
it has under that name or raises; it never decides whether the bytes are right.
"""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import unquote

from modelagent.errors import SourceError, TrustError

CHUNK: Final = 64 * 1024  # bytes asked for at once


class Body:
    """One answer of a source: an iterator of chunks that closes what it reads from.

    `offset` is where the bytes really begin: the asked one, or 0 when the source starts again. `total` is the whole
    length as the source states it, None where it does not; nobody has to believe it. `validator` names this very
    version of the file, for asking this same source to go on with it; empty where the source has no such name.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        *,
        offset: int = 0,
        total: int | None = None,
        validator: str = "",
        close: Callable[[], None] | None = None,
    ) -> None:
        self._chunks = iter(chunks)
        self._close = close
        self.offset = offset
        self.total = total
        self.validator = validator

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """Let go of the connection or file."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(Protocol):
    """Where bytes come from."""

    @property
    def name(self) -> str:
        """For messages and for telling mirrors apart."""

    @property
    def remote(self) -> bool:
        """Whether its bytes come over a network, where they may cost something."""

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        """Open `name`.

        Args:
            name: relative address, parts percent-encoded.
            limit: the most bytes the whole may have, those before `offset` included.
            offset: where to go on; a source that cannot begins at 0 and says so in `Body.offset`.
            validator: what this source called the file when it gave the bytes before `offset`; a source that has
                another file now begins at 0.

        Raises:
            SourceError: `not-found`, `unreachable`, `timeout`, `cut`, `too-slow`, `server-error`, ...
            TrustError: `endless-data` once there is more than `limit`; `path-trick` for a name that climbs.
        """

    def close(self) -> None:
        """Let go of connections; a later fetch opens new ones."""


class BusyError(SourceError):
    """The server asks to be left alone for `retry_after` seconds (0 where it does not say)."""

    def __init__(self, message: str, *, code: str, retry_after: float) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


def not_found(source: str, name: str) -> SourceError:
    """What every source raises for a name that it does not have."""
    return SourceError(f"{source}: {name}: not found; publish it, or name the right repository", code="not-found")


def endless(source: str, name: str, limit: int) -> TrustError:
    """What every source raises when there is more than there may be."""
    return TrustError(
        f"{source}: {name}: more than the {limit} bytes it may have; nothing of it is used", code="endless-data"
    )


def bounded(chunks: Iterable[bytes], *, source: str, name: str, room: int, limit: int) -> Iterator[bytes]:
    """Pass on at most `room` bytes; TrustError `endless-data` at the first byte too many.

    Args:
        chunks: what arrives.
        source: for the message.
        name: for the message.
        room: bytes that may still come.
        limit: the bound on the whole, for the message.
    """
    for chunk in chunks:
        if len(chunk) > room:
            if room:
                yield chunk[:room]
            raise endless(source, name, limit)
        room -= len(chunk)
        yield chunk


def address_parts(name: str) -> list[str]:
    """The decoded parts of a name that becomes an address; an encoded slash stays inside its part.

    Raises:
        TrustError: `path-trick`: a part that is empty, hidden, or could leave its directory.
    """
    parts = [unquote(part) for part in name.split("/")]
    for part in parts:
        if part in {"", ".", ".."} or "\0" in part or part.startswith(".") or len(part) > 1000:
            raise _path_trick(name, part)
    return parts


def parts_of(name: str) -> list[str]:
    """The decoded parts of a name that becomes a path: as `address_parts`, and no part can hold a slash.

    Raises:
        TrustError: `path-trick`.
    """
    parts = address_parts(name)
    for part in parts:
        if "/" in part or len(part.encode()) > 255:
            raise _path_trick(name, part)
    return parts


def _path_trick(name: str, part: str) -> TrustError:
    return TrustError(
        f"the name {name[:300]!r}: found the part {part[:80]!r}, which could lead elsewhere; nothing was fetched",
        code="path-trick",
    )


def looks_like_page(data: bytes) -> bool:
    """Whether bytes begin as a web page does: what a captive portal serves in place of anything."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<meta"))


def captive(source: str, name: str) -> SourceError:
    """What every source raises when a web page came in place of the file."""
    return SourceError(
        f"{source}: {name}: a web page came instead of the file; log in to the network", code="captive-portal"
    )
