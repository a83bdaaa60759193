"""Frames by HTTP POST: one request, one frame; the answer carries the result.

This file knows as much of HTTP/1.1 as that takes. It does not know the body's forms, nor how a result is made.

    curl --data-binary @part-7.jpg http://127.0.0.1:8970/
    {"id": "9f2c-17", "frame": "http:17", "version": "1.4.0", "prediction": 3, "label": "scratch", ...}

Any path takes frames; `GET /healthz` answers while the source lives. The header X-Frame-Id names the frame. 200: a
result; 400: no form that we know; 413: larger than `max_mb`; 422: not what the model takes; 500: the model failed on
it; 503: dropped, or too many connections; 504: no result within `answer_s`.

One thread serves everybody and never waits for one of them: who does not read its answers is not read either, and all
that is half sent is bounded together. Loopback is the default: whoever reaches the port is
believed, so requests of web pages (with an Origin) are refused.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.frames.payload import read
from modelagent.inference.results import Row

_MAX_HEAD: Final = 16 * 1024  # bytes
_MAX_CLIENTS: Final = 64
_HELD: Final = 64 << 20  # bytes, or four of the largest frames: that half-sent requests may take together
_LARGE: Final = 1 << 20  # bytes; from here on they are added up
_UNFINISHED_S: Final = 30.0  # a request must be whole within
_IDLE_S: Final = 120.0  # between two requests of one connection
_CHUNK: Final = 1 << 18
_TICK: Final = 0.5  # seconds; how late `stop` and time limits may be noticed
_STATUS: Final = {"ok": 200, "refused": 422, "faulted": 500, "dropped": 503}
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Client:
    """One connection: what has come, what is to go, and the frame whose result it waits for."""

    __slots__ = ("body", "closing", "deadline", "headers", "incoming", "outgoing", "sock", "waits", "writing")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.headers: dict[str, str] | None = None  # of a request whose body is still coming
        self.body = 0  # its length
        self.waits = 0  # number of the frame; 0: none
        self.closing = False  # after the last byte is out
        self.writing = False  # told when more can be sent


class HttpSource(FrameSource):
    """See the head of the file. `port` is the real one once `run` listens.

    Raises:
        UsageError: `config` when `listen` is no address and port.
    """

    kind = "http"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self._host, self.port = self._read_address()
        self.listening = threading.Event()
        self._number = 0
        self._put: Callable[[Frame], None] = lambda _frame: None
        self._clients: set[Client] = set()
        self._waiting: dict[int, Client] = {}
        self._answers: deque[tuple[int, Row]] = deque()
        self._signalled = False
        self._wake_fd = -1

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource."""
        listener = self._listen()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting.clear()
        self._signalled = False
        with listener, selectors.DefaultSelector() as selector:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_fd, selectors.EVENT_READ)
            self.listening.set()
            try:
                self._put = put
                self._serve(listener, selector, stop)
            finally:
                self.listening.clear()
                self._farewell(selector)
                for client in list(self._clients):
                    self._hang_up(client, selector)
                wake, self._wake_fd = self._wake_fd, -1
                os.close(wake)

    def _read_address(self) -> tuple[str, int]:
        host, _, port = self.options.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise UsageError(
                f"source.listen: found {self.options.listen!r}, allowed is address:port, for instance 127.0.0.1:8970",
                code="config",
            )
        return host.strip("[]"), int(port)

    def _listen(self) -> socket.socket:
        """A socket that takes connections; SourceError when there is none to be had."""
        try:
            listener = socket.create_server(
                (self._host, self.port), family=socket.AF_INET6 if ":" in self._host else socket.AF_INET, backlog=128
            )
        except OSError as error:
            raise SourceError(
                f"cannot listen on {self.options.listen}: {error.strerror}; free the port or correct source.listen",
                code="source",
            ) from error
        self.port = listener.getsockname()[1]
        return listener

    def _serve(self, listener: socket.socket, selector: selectors.BaseSelector, stop: threading.Event) -> None:
        tick = 0.0
        while not stop.is_set():
            for key, events in selector.select(_TICK):
                if key.fileobj is listener:
                    self._accept(listener, selector)
                elif key.fd == self._wake_fd:
                    self._give_answers(selector)
                else:
                    client: Client = key.data
                    if events & selectors.EVENT_READ:
                        self._receive(client, selector)
                    if events & selectors.EVENT_WRITE and client in self._clients:
                        self._send(client, selector)
                        self._advance(client, selector)
            now = time.monotonic()
            if now >= tick:
                tick = now + _TICK
                self._watch_time(now, selector)

    def _farewell(self, selector: selectors.BaseSelector) -> None:
        """Frames on their way end within a second; their senders are told."""
        deadline = time.monotonic() + 1.0
        while self._waiting and time.monotonic() < deadline:
            self._give_answers(selector)
            time.sleep(0.005)

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                time.sleep(0.05)  # it stays readable; others may close meanwhile
            return
        if len(self._clients) >= 2 * _MAX_CLIENTS:  # telling so many takes descriptors that others need
            self.count("turned-away")
            sock.close()
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(sock, time.monotonic() + _UNFINISHED_S)
        self._clients.add(client)
        selector.register(sock, selectors.EVENT_READ, client)
        if len(self._clients) > _MAX_CLIENTS:
            self.count("turned-away")
            client.closing = True
            self._say(client, selector, 503, {"error": f"more than {_MAX_CLIENTS} connections"})

    def _hang_up(self, client: Client, selector: selectors.BaseSelector) -> None:
        self._clients.discard(client)
        self._waiting.pop(client.waits, None)
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(client.sock)
        client.sock.close()

    def _watch_time(self, now: float, selector: selectors.BaseSelector) -> None:
        for client in [client for client in self._clients if now >= client.deadline]:
            if client.waits:
                self._waiting.pop(client.waits, None)
                client.waits = 0
                client.closing = True
                client.deadline = now + _UNFINISHED_S
                self._say(client, selector, 504, {"error": f"no result within {self.options.answer_s:g} s"})
            else:
                self._hang_up(client, selector)

    def _receive(self, client: Client, selector: selectors.BaseSelector) -> None:
        try:
            chunk = client.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._hang_up(client, selector)
            return
        if client.closing:
            return  # what still comes is not read
        if not client.incoming and client.headers is None and not client.waits:
            client.deadline = time.monotonic() + _UNFINISHED_S
        client.incoming += chunk
        self._advance(client, selector)
        if client not in self._clients:
            return
        if len(client.incoming) > self.options.max_bytes + _MAX_HEAD:
            self._hang_up(client, selector)  # it sends ahead more than one request may have
        elif len(client.incoming) > _LARGE and self._held() > max(_HELD, 4 * self.options.max_bytes):
            self.count("turned-away")
            self._hang_up(client, selector)

    def _held(self) -> int:
        return sum(len(client.incoming) for client in self._clients)

    def _advance(self, client: Client, selector: selectors.BaseSelector) -> None:
        """Take requests as long as they are whole and answers are read; one at a time waits for its result."""
        while not (client.waits or client.closing or client.outgoing) and client in self._clients:
            if client.headers is None and not self._read_head(client, selector):
                return
            if client.headers is None:
                continue  # it was answered without a body
            if len(client.incoming) < client.body:
                return
            body = bytes(client.incoming[: client.body])
            del client.incoming[: client.body]
            headers, client.headers = client.headers, None
            self._take(client, selector, headers, body)

    def _read_head(self, client: Client, selector: selectors.BaseSelector) -> bool:
        """Read the request's head into `client.headers`; False while it is not whole, or when it was the last."""
        end = client.incoming.find(b"\r\n\r\n", 0, _MAX_HEAD)
        if end < 0:
            if len(client.incoming) >= _MAX_HEAD:
                self._refuse(client, selector, 431, "the head is too large")
            return False
        lines = bytes(client.incoming[:end]).decode("latin-1").split("\r\n")
        del client.incoming[: end + 4]
        words = lines[0].split(" ")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or name != name.strip() or (name == "content-length" and name in headers):
                self._refuse(client, selector, 400, "a header that is none")
                return False
            headers[name] = value.strip()
        if len(words) != 3 or words[2] not in {"HTTP/1.1", "HTTP/1.0"}:
            self._refuse(client, selector, 400, "no HTTP/1.1")
            return False
        keep = words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        client.closing = False
        headers["keep"] = "1" if keep else ""
        if "origin" in headers:
            self._refuse(client, selector, 403, "requests of web pages are not taken")
            return False
        if words[0] == "GET":
            known = words[1] == "/healthz"
            client.closing = not keep
            self._say(client, selector, 200 if known else 404, {"status": "ok"} if known else {"error": "not here"})
            return True
        return self._expect_body(client, selector, words[0], headers)

    def _expect_body(
        self, client: Client, selector: selectors.BaseSelector, method: str, headers: dict[str, str]
    ) -> bool:
        length = headers.get("content-length", "")
        if method != "POST":
            self._refuse(client, selector, 405, "frames come by POST")
        elif "transfer-encoding" in headers or not length.isascii() or not length.isdecimal():
            self._refuse(client, selector, 411, "Content-Length is needed")
        elif len(length) > 12 or int(length) > self.options.max_bytes:
            self._refuse(client, selector, 413, f"at most {self.options.max_bytes} bytes; raise source.max_mb")
        else:
            client.headers, client.body = headers, int(length)
            if headers.get("expect", "").lower() == "100-continue":
                client.outgoing += b"HTTP/1.1 100 Continue\r\n\r\n"
                self._send(client, selector)
            return True
        return False

    # -- frames ----------------------------------------------------------------------------------------------------

    def _take(self, client: Client, selector: selectors.BaseSelector, headers: dict[str, str], body: bytes) -> None:
        client.closing = not headers["keep"]
        try:
            payload = read(body, self.options)
        except SourceError as error:
            self.count("unreadable")
            self._say(client, selector, 400, {"error": error.message})
            return
        self._number += 1
        number = self._number
        name = f"{payload.id or headers.get('x-frame-id', '')[:200] or self.kind}:{number}"
        client.waits = number
        client.deadline = time.monotonic() + self.options.answer_s
        self._waiting[number] = client
        self._put(Frame(name, payload.arrays, time.time(), time.monotonic(), lambda row: self._ended(number, row)))

    def _ended(self, number: int, row: Row) -> None:
        # In the serving thread: it only leaves the row here.
        self._answers.append((number, row))
        if not self._signalled and self._wake_fd >= 0:
            self._signalled = True
            with contextlib.suppress(OSError):
                os.eventfd_write(self._wake_fd, 1)

    def _give_answers(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._signalled = False
        while self._answers:
            number, row = self._answers.popleft()
            client = self._waiting.pop(number, None)
            if client is None:
                continue  # it hung up, or was told that it takes too long
            client.waits = 0
            client.deadline = time.monotonic() + _IDLE_S
            self._say(client, selector, _STATUS.get(row.outcome, 500), row._asdict())
            self._advance(client, selector)  # what it sent meanwhile

    # -- answers ---------------------------------------------------------------------------------------------------

    def _refuse(self, client: Client, selector: selectors.BaseSelector, status: int, why: str) -> None:
        """Answer a request that cannot be read to its end: nothing says where the next one begins."""
        self.count("refused")
        client.closing = True
        self._say(client, selector, status, {"error": why})

    def _say(self, client: Client, selector: selectors.BaseSelector, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode() + b"\n"
        retry = b"Retry-After: 1\r\n" if status == 503 else b""
        end = b"Connection: close\r\n" if client.closing else b""
        client.outgoing += (
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n"
            % (status, _REASONS[status].encode(), len(body), retry, end)
        ) + body
        self._send(client, selector)

    def _send(self, client: Client, selector: selectors.BaseSelector) -> None:
        try:
            while client.outgoing:
                del client.outgoing[: client.sock.send(client.outgoing)]
        except BlockingIOError:
            client.writing = True
            selector.modify(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
            return
        except OSError:
            self._hang_up(client, selector)
            return
        if client.writing:
            client.writing = False
            selector.modify(client.sock, selectors.EVENT_READ, client)
        if client.closing and not client.waits:
            # A half close, then the end: a plain close with unread bytes would take the answer back (RFC 9112, 9.6).
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)
            client.deadline = min(client.deadline, time.monotonic() + 2.0)
