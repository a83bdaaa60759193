"""The control socket: how this machine's people and programs speak to the updater, and the client's half of it.

This file knows the Unix socket, its lines and its time limits. It does not know what a command does: the desk does.

    with ControlServer(paths.control_socket, desk, group="modelagent"):
        ...
    ask(paths.control_socket, {"id": "7f3a", "verb": "status"}, timeout=5)      # {"id": "7f3a", "status": "done", ...}
    server.broadcast({"event": {"kind": "activated", ...}})                     # to everyone who sent the verb watch

One JSON object a line each way. One thread serves everybody and wakes only when there is something to do. A client
that leaves a line unfinished or answers unread for `patience` seconds is shown the door; nobody else waits for it.
"""

import contextlib
import errno
import grp
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from modelagent.errors import DeviceError, SourceError
from modelagent.inputs.commands import FINAL, Desk, answer

MAX_LINE: Final = 64 * 1024  # bytes
MAX_UNREAD: Final = 4 * 1024 * 1024  # bytes of answers that a client may leave unread
MAX_CLIENTS: Final = 64
_CHUNK: Final = 65536
_USED_UP: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BREATH_S: Final = 0.1
_ADDRESS_MAX: Final = 107  # bytes
_log = logging.getLogger("modelagent.control")


@dataclass(eq=False)
class _Client:
    sock: socket.socket
    deadline: float  # on the server's clock; moved on by every byte of progress
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    waiting: int = 0  # requests without a final answer
    watching: str = ""  # the id of the request that asked for news
    closing: bool = False  # after the last byte is out


class ControlServer:
    """Serves the socket from one thread between `start` and `stop`."""

    def __init__(
        self,
        path: Path,
        desk: Desk,
        *,
        group: str = "",
        mode: int = 0o660,
        patience: float = 10.0,
        idle: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet. `patience` and `idle` in seconds; `clock` counts them."""
        self._path = path
        self._desk = desk
        self._group = group
        self._mode = mode
        self._patience = patience
        self._idle = idle
        self._clock = clock
        self._clients: set[_Client] = set()
        self._replies: deque[tuple[_Client, bytes, bool]] = deque()
        self._news: deque[Mapping[str, Any]] = deque()
        self._watchers = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._inode = 0
        self._wake = -1
        self._bell = threading.Lock()  # a late reply must not ring a descriptor that is somebody else's by now

    def start(self) -> None:
        """Open the socket and serve; raises DeviceError with the remedy."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        # Bound under another name and renamed: at no moment does the real name have wider permission than asked.
        prepared = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with contextlib.suppress(FileNotFoundError):
                prepared.unlink()
            with _address(prepared) as address:
                listener.bind(address)
            prepared.chmod(self._mode)
            if self._group:
                os.chown(prepared, -1, grp.getgrnam(self._group).gr_gid)
            listener.listen(16)
            prepared.replace(self._path)
            self._inode = self._path.stat().st_ino
        except KeyError as error:
            listener.close()
            prepared.unlink(missing_ok=True)
            raise DeviceError(f"control.group: no group {self._group!r} on this machine", code="no-group") from error
        except OSError as error:
            listener.close()
            with contextlib.suppress(OSError):
                prepared.unlink(missing_ok=True)
            why = error.strerror or str(error)
            raise DeviceError(
                f"{self._path}: the control socket cannot be opened: {why}; check paths.run_dir", code="control-socket"
            ) from error
        self._listener = listener
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and the socket; safe to call twice."""
        if self._thread is None:
            return
        self._stopping = True
        self._ring()
        self._thread.join()
        self._thread = None
        with self._bell:
            wake, self._wake = self._wake, -1
            os.close(wake)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # not the successor's
                self._path.unlink()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def watchers(self) -> int:
        """How many are told the news; 0: making it up is not worth while."""
        return self._watchers

    def broadcast(self, document: Mapping[str, Any]) -> None:
        """Tell everyone who watches; from any thread, returns at once, and costs nothing when nobody does.

        `document` has the key `event` (an event's document) or `status` (as the verb status gives it). Who does not
        read is parted from like any other who leaves answers unread.
        """
        if self._watchers:
            self._news.append(document)
            self._ring()

    # ---- the thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        listener = self._listener
        if listener is None:
            return
        with selectors.DefaultSelector() as selector, listener:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._stopping:
                for key, mask in selector.select(self._time_left()):
                    if key.fileobj is listener:
                        self._accept(selector, listener)
                    elif key.data is None:
                        os.eventfd_read(self._wake)
                    else:
                        self._attend(key.data, mask)
                self._deliver()
                self._dismiss(selector)
            for client in self._clients:
                client.sock.close()
            self._clients.clear()
            self._watchers = 0

    def _time_left(self) -> float | None:
        if not self._clients:
            return None
        soonest = min(self._limit(client) for client in self._clients)
        return None if soonest == float("inf") else max(0.0, soonest - self._clock())

    def _limit(self, client: _Client) -> float:
        if client.incoming or client.outgoing:
            return client.deadline + self._patience
        if client.waiting and not client.closing:
            return float("inf")  # it waits for us, not we for it
        return client.deadline + self._idle

    def _accept(self, selector: selectors.BaseSelector, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:  # the client went away, or no descriptor is left: others go on
            _log.debug("accept: %s", error)
            if error.errno in _USED_UP:  # it waits on, and would be found waiting again at once
                time.sleep(_BREATH_S)
            return
        sock.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        client = _Client(sock, self._clock())
        self._clients.add(client)
        selector.register(sock, selectors.EVENT_READ, client)

    def _attend(self, client: _Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ and not client.closing:
                data = client.sock.recv(_CHUNK)
                if data:
                    self._receive(client, data)
                else:
                    # The asker has said all; what it asked for is still answered, then the line is closed. A
                    # watcher is answered for ever, so for it this is the end.
                    client.closing = True
                    client.waiting = 0 if client.watching else client.waiting
                    client.incoming.clear()
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(client)

    def _receive(self, client: _Client, data: bytes) -> None:
        client.deadline = self._clock()
        client.incoming += data
        while (end := client.incoming.find(b"\n")) >= 0:
            line = bytes(client.incoming[:end])
            del client.incoming[: end + 1]
            if line.strip():
                self._take(client, line)
        if len(client.incoming) > MAX_LINE:
            # Where the next line begins is anybody's guess: refuse and part.
            client.incoming.clear()
            self._say(client, answer("", "refused", f"a line has at most {MAX_LINE} bytes", code="oversized"))
            client.closing = True

    def _take(self, client: _Client, line: bytes) -> None:
        client.waiting += 1

        def reply(document: Mapping[str, Any]) -> None:
            data = _encode(document)
            if len(data) > MAX_UNREAD:  # it would be parted from, and told to try again
                document = answer(str(document.get("id", "")), "failed", "the result is too large; ask for less")
                data = _encode({**document, "code": "oversized"})
            self._replies.append((client, data, document.get("status") in FINAL))
            self._ring()

        def watch(request: str) -> None:
            self._watchers += not client.watching
            client.watching = request

        self._desk.take(line, origin="cli", limit=MAX_LINE, reply=reply, watch=watch)

    def _ring(self) -> None:
        with self._bell:
            if self._wake >= 0:  # else stopped meanwhile: nobody is left to be answered
                os.eventfd_write(self._wake, 1)

    def _say(self, client: _Client, document: Mapping[str, Any]) -> None:
        client.outgoing += _encode(document)

    def _deliver(self) -> None:
        while self._replies:
            client, data, final = self._replies.popleft()
            if client in self._clients:
                if not client.outgoing:
                    client.deadline = self._clock()
                client.outgoing += data
                client.waiting -= final
        while self._news:
            news = self._news.popleft()
            for client in self._clients:
                if client.watching and not client.closing:
                    if not client.outgoing:
                        client.deadline = self._clock()
                    self._say(client, answer(client.watching, "accepted", result=news))

    def _dismiss(self, selector: selectors.BaseSelector) -> None:
        """Send what can be sent, and part from those who are done, gone or too slow."""
        for client in list(self._clients):
            self._send(client)
            done = client.closing and not client.outgoing and client.waiting <= 0
            slow = self._clock() >= self._limit(client) or len(client.outgoing) > MAX_UNREAD
            if done or slow:
                self._drop(client, selector)
                continue
            wanted = 0 if client.closing else selectors.EVENT_READ
            wanted |= selectors.EVENT_WRITE if client.outgoing else 0
            registered = client.sock in selector.get_map()
            if not wanted:
                if registered:
                    selector.unregister(client.sock)
            elif not registered:
                selector.register(client.sock, wanted, client)
            elif selector.get_key(client.sock).events != wanted:
                selector.modify(client.sock, wanted, client)

    def _send(self, client: _Client) -> None:
        try:
            while client.outgoing:
                sent = client.sock.send(client.outgoing[:_CHUNK])
                del client.outgoing[:sent]
                client.deadline = self._clock()
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(client)

    @staticmethod
    def _hang_up(client: _Client) -> None:
        client.closing, client.waiting = True, 0
        client.outgoing.clear()
        client.incoming.clear()

    def _drop(self, client: _Client, selector: selectors.BaseSelector) -> None:
        if client.sock in selector.get_map():
            selector.unregister(client.sock)
        self._clients.discard(client)
        self._watchers -= bool(client.watching)
        client.sock.close()


# ---- the client's half ---------------------------------------------------------------------------------------


def ask(path: Path, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Send one request and return its first answer; errors as `converse`."""
    for document in converse(path, request, timeout):
        return document
    raise SourceError(f"{path}: the updater closed the connection without an answer; try again", code="no-answer")


def converse(path: Path, request: Mapping[str, Any], timeout: float | None) -> Generator[dict[str, Any], None, None]:
    """Send one request and yield its answers up to the final one (refused, done, failed); `watch` has none.

    Args:
        path: the socket.
        request: a JSON-like object with `id` and `verb`.
        timeout: seconds to wait for each answer; None: for ever.

    Raises:
        DeviceError: `down` nobody listens, `forbidden` no permission, `no-answer` none in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            with _address(path) as address:
                sock.connect(address)
            sock.sendall(_encode(request))
            buffer = bytearray()
            while True:
                while (end := buffer.find(b"\n")) < 0:
                    data = sock.recv(_CHUNK)
                    if not data:
                        return
                    buffer += data
                document = _decode(bytes(buffer[:end]), path)
                del buffer[: end + 1]
                yield document
                if document.get("status") in FINAL:
                    return
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise DeviceError(
                f"{path}: the updater is not running; start it (`modelagent run updater`, or the service "
                "modelagent-updater), or check paths.run_dir",
                code="down",
            ) from error
        except PermissionError as error:
            raise DeviceError(
                f"{path}: no permission; become a member of the socket's group, or use sudo", code="forbidden"
            ) from error
        except TimeoutError as error:
            raise DeviceError(
                f"{path}: no answer within {timeout or 0:g} s; the updater may be busy, and may still do what was "
                "asked: look at its log",
                code="no-answer",
            ) from error
        except OSError as error:
            raise DeviceError(f"{path}: {error.strerror or error}", code="no-answer") from error


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as a socket address, of at most 107 bytes (unix(7)); a longer one goes through its directory."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise DeviceError(f"{path}: what listens there is not the updater", code="no-answer")
    return document
