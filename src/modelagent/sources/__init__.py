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
    length as the source states it, None where it does not; nobody has to believe it.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        *,
        offset: int = 0,
        total: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._chunks = iter(chunks)
        self._close = close
        self.offset = offset
        self.total = total

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

    def fetch(self, name: str, *, limit: int, offset: int = 0) -> Body:
        """Open `name`.

        Args:
            name: relative address, parts percent-encoded.
            limit: the most bytes the whole may have, those before `offset` included.
            offset: where to go on; a source that cannot begins at 0 and says so in `Body.offset`.

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


def parts_of(name: str) -> list[str]:
    """The decoded parts of a name.

    Raises:
        TrustError: `path-trick`: a part that is empty, hidden, or could leave its directory.
    """
    parts = [unquote(part) for part in name.split("/")]
    for part in parts:
        if part in {"", ".", ".."} or "/" in part or "\0" in part or part.startswith(".") or len(part) > 255:
            raise TrustError(
                f"the name {name!r}: found the part {part[:80]!r}, which could lead elsewhere; nothing was fetched",
                code="path-trick",
            )
    return parts
