"""One connection to a web server: the head of an answer must be whole in time, and the kernel hoards little.

This file knows the seams of requests, urllib3 and http.client at which a deadline can be set. It does not know
what is asked for.

    session.mount("https://", BoundedAdapter(receive_buffer=65536))

A read time-out alone is reset by every byte: a server that sends its head one byte every 20 s would hold its client
for days. Here the time-out of the connection bounds the head as a whole, and each read of the body: between two pieces
of a body in chunks there are lines, and behind the last one there may be more, that nobody hands on. What is handed on
is judged by its rate.
"""

import contextlib
import http.client
import io
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

_MOST: Final = 256 * 1024  # bytes that one read of the body may take from the wire; it hands on 64 KiB at most


class _Timed(io.RawIOBase):
    """The raw stream of a socket, with a deadline while there is one."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._allowed = sock.gettimeout()
        self._until = None if self._allowed is None else time.monotonic() + self._allowed
        self._room: int | None = None

    def end(self) -> None:
        """What the deadline was for is whole."""
        self._until = self._room = None
        with contextlib.suppress(OSError):  # closed: it was the last of a connection that is not kept
            self._sock.settimeout(self._allowed)

    @contextlib.contextmanager
    def one_read(self) -> Iterator[None]:
        """The time-out, and the bytes that may come, for all that the body of the `with` reads."""
        self._until = None if self._allowed is None else time.monotonic() + self._allowed
        self._room = _MOST
        try:
            yield
        finally:
            self.end()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not go on in time")
            self._sock.settimeout(left)
        if self._room is not None and self._room <= 0:
            raise http.client.HTTPException("lines without end between the parts of a body, or behind it")
        count = self._raw.readinto(buffer)
        if self._room is not None and count is not None:
            self._room -= count
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        super().begin()
        self._timed.end()

    def read(self, amt: int | None = None) -> bytes:
        with self._timed.one_read():
            return super().read(amt)

    def read1(self, n: int = -1) -> bytes:
        with self._timed.one_read():
            return super().read1(n)


class _Plain(HTTPConnection):
    response_class = _Response


class _Secure(HTTPSConnection):
    response_class = _Response


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


_POOLS: Final[dict[str, Any]] = {"http": _PlainPool, "https": _SecurePool}


class BoundedAdapter(HTTPAdapter):
    """What a session is mounted with.

    Args:
        receive_buffer: bytes that the kernel may hold unread, 0 for its own choice.
    """

    def __init__(self, receive_buffer: int = 0) -> None:
        self._buffer = receive_buffer
        super().__init__()

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **{**more, **self._options()})
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        """Make the pool of connections through a proxy."""
        manager = super().proxy_manager_for(proxy, **{**more, **self._options()})
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def _options(self) -> dict[str, Any]:
        if not self._buffer:
            return {}
        usual = HTTPConnection.default_socket_options
        return {"socket_options": [*usual, (socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)]}
