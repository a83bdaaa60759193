"""The link that the figures of the transfer are taken on: counted, cut, or made slow.

This file knows sockets and, for the slow link, `ip` and `tc`. It does not know what travels.

    with Link("127.0.0.1", server_port) as link:        # a TCP proxy: link.port, link.down, link.up, link.requests
        link.cut_after = 5000                           # the next connection breaks after so many bytes
    with slow_link(megabits=20) as run:                 # a network namespace behind a slow veth pair; root alone
        run(["curl", ...])
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from benchmarks.measure import NotHereError

_CHUNK: Final = 16 * 1024
HOST: Final = "10.213.7.1"  # our end of the slow link
_GUEST: Final = "10.213.7.2"


class Link:
    """A TCP proxy that counts the bytes of both directions on the server's side, and cuts when told to."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.down = 0  # bytes from the server
        self.up = 0
        self.connections = 0
        self.requests = 0
        self.cut_after: int | None = None
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def forget(self) -> None:
        """Count from 0 again."""
        self.down = self.up = self.connections = self.requests = 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._server)
            limit, self.cut_after = self.cut_after, None
            self._start(lambda a=client, b=server: self._up(a, b))
            self._start(lambda a=client, b=server, c=limit: self._down(a, b, c))

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                self.up += len(data)
                self.requests += data.count(b" HTTP/1.1\r\n")
                server.sendall(data)
        _shut(server)

    def _down(self, client: socket.socket, server: socket.socket, limit: int | None) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK if limit is None else min(_CHUNK, limit - sent)):
                self.down += len(data)
                sent += len(data)
                client.sendall(data)
                if sent == limit:
                    break
        _shut(client)
        _shut(server)

    def _start(self, work: object) -> None:
        thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@contextlib.contextmanager
def slow_link(megabits: float) -> Iterator[list[str]]:
    """The words to put before a command that is to run behind a slow link to HOST.

    Raises:
        NotHereError: not root, no `ip` or `tc`, or the kernel forbids it.
    """
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        raise NotHereError("a slow link takes root, ip and tc")
    name = f"bench{os.getpid()}"
    ours, theirs = f"b{os.getpid()}a", f"b{os.getpid()}b"
    inside = ["ip", "netns", "exec", name]
    shape = ["tc", "qdisc", "add", "dev", ours, "root", "tbf", "rate", f"{megabits}mbit", "burst", "16kb"]
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs],
        ["ip", "link", "set", theirs, "netns", name],
        ["ip", "addr", "add", f"{HOST}/30", "dev", ours],
        ["ip", "link", "set", ours, "up"],
        [*inside, "ip", "addr", "add", f"{_GUEST}/30", "dev", theirs],
        [*inside, "ip", "link", "set", theirs, "up"],
        [*shape, "latency", "100ms"],
    ]
    try:
        for step in steps:
            ended = subprocess.run(step, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise NotHereError(f"{' '.join(step)}: {ended.stderr.strip()}")
        yield inside
    finally:
        subprocess.run(["ip", "link", "del", ours], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
