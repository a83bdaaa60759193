"""A web server that misbehaves, one behaviour at a time, as a program.

    python tests/rogue_server.py stall --file digits.tflite --port 8099     # until Ctrl-C

    with Rogue(CONTENT) as rogue:
        rogue.play = BEHAVIOURS["stall"]        # or any function of one request
        HttpSource(rogue.url) ...
        rogue.asked                             # path and Range of every request; rogue.connections, rogue.sent

Behaviours: `honest` (ranges, If-Range by ETag), `stall` (at 90 %), `trickle` (a byte now and then), `slow-head` (the
head byte by byte), `reset` (RST in the middle), `truncated` (closes early), `lying-length` (more is stated than comes),
`longer` (more comes than is signed), `endless` (never stops, states no length), `wrong-range` (another part than asked
for), `ignores-range` (200 to a range), `endless-headers`, `redirect-loop`, `storm` (503 with Retry-After), `portal`
(a page with 200), `sly-portal` (a page that claims to be a file), `gzip` (an encoding nobody asked for), `silent` (says
nothing at all), `garbage` (no HTTP), `endless-error` (a 404 whose page never ends), `error-drip` (a 404 whose page
comes byte by byte), `chunk-drip` (between two pieces, a line byte by byte), `endless-trailers` (everything, and then
lines without end). `pause` scales every wait, so that tests need not wait 20 s for a byte.
"""

import argparse
import contextlib
import http.server
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

Play = Callable[["Request"], None]
PAGE: Final = b"<!DOCTYPE html><html><body>Welcome to our network. Please log in.</body></html>"


class Request(http.server.BaseHTTPRequestHandler):
    """One request, with what the behaviours need."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    rogue: "Rogue"

    def setup(self) -> None:
        self.rogue.connections += 1
        super().setup()

    def do_GET(self) -> None:
        self.rogue.asked.append((self.path, self.headers.get("Range")))
        self.rogue.headers.append(dict(self.headers))
        with contextlib.suppress(OSError):
            self.rogue.play(self)
            return
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        pass

    def send(self, data: bytes) -> None:
        """Send bytes and count them."""
        self.wfile.write(data)
        self.wfile.flush()
        self.rogue.sent += len(data)

    def head(self, status: int, **headers: str) -> None:
        """Send a head; `_` in a name stands for `-`."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    @property
    def offset(self) -> int:
        """Where the client wants to go on, If-Range considered."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        return int(wanted[1]) if wanted and condition in (None, self.rogue.tag) else 0

    def body_from(self, offset: int) -> bytes:
        """Send the right head for the content from `offset` on; the bytes that belong to it."""
        content = self.rogue.content
        more = {"ETag": self.rogue.tag} if self.rogue.tag else {}
        if offset:
            more["Content_Range"] = f"bytes {offset}-{len(content) - 1}/{len(content)}"
        self.head(206 if offset else 200, Content_Length=str(len(content) - offset), **more)
        return content[offset:]

    def wait(self, seconds: float = 20.0) -> None:
        """Wait, in scaled time; cut short when the server closes."""
        if self.rogue.closing.wait(seconds * self.rogue.pause):
            raise OSError("the server is closing")


def honest(request: Request) -> None:
    """What a good server does."""
    request.send(request.body_from(request.offset))


def stall(request: Request) -> None:
    """Everything is fine until 90 %; then nothing, with the connection open."""
    data = request.body_from(request.offset)
    request.send(data[: len(data) * 9 // 10])
    while True:
        request.wait()


def trickle(request: Request) -> None:
    """A byte now and then: each one resets a read time-out."""
    for byte in request.body_from(request.offset):
        request.send(bytes([byte]))
        request.wait()


def slow_head(request: Request) -> None:
    """The head itself, byte by byte."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"a" * 100_000:
        request.send(bytes([byte]))
        request.wait()


def reset(request: Request) -> None:
    """Half of it, then RST."""
    data = request.body_from(request.offset)
    request.send(data[: len(data) // 2])
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    raise OSError("reset")


def truncated(request: Request) -> None:
    """Half of it, then an orderly end."""
    data = request.body_from(request.offset)
    request.send(data[: len(data) // 2])
    request.close_connection = True


def lying_length(request: Request) -> None:
    """States more than it has."""
    request.head(200, Content_Length=str(len(request.rogue.content) + 1000))
    request.send(request.rogue.content)
    request.close_connection = True


def longer(request: Request) -> None:
    """Sends more than was signed, and says so."""
    request.head(200, Content_Length=str(len(request.rogue.content) + 1))
    request.send(request.rogue.content + b"!")


def endless(request: Request) -> None:
    """States no length, and never stops."""
    request.head(200, Connection="close")
    request.close_connection = True
    while True:
        request.send(request.rogue.content)


def wrong_range(request: Request) -> None:
    """Another part than the one that was asked for."""
    content, offset = request.rogue.content, request.offset
    begin = max(0, offset - 1)
    request.head(
        206 if offset else 200,
        Content_Length=str(len(content) - begin),
        Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}",
    )
    request.send(content[begin:])


def ignores_range(request: Request) -> None:
    """200 and everything, whatever was asked."""
    request.send(request.body_from(0))


def endless_headers(request: Request) -> None:
    """A head without an end, at full speed."""
    request.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        request.send(b"X-Padding: yes\r\n" * 100)


def redirect_loop(request: Request) -> None:
    """Sends its client round in circles."""
    request.head(302, Location=request.path, Content_Length="0")


def storm(request: Request) -> None:
    """503, come again in two minutes."""
    request.head(503, Retry_After="120", Content_Length="0")


def portal(request: Request) -> None:
    """A page to log in, with 200."""
    request.head(200, Content_Type="text/html; charset=utf-8", Content_Length=str(len(PAGE)))
    request.send(PAGE)


def sly_portal(request: Request) -> None:
    """The same page, called a file."""
    request.head(200, Content_Type="application/octet-stream", Content_Length=str(len(PAGE)))
    request.send(PAGE)


def gzip(request: Request) -> None:
    """An encoding that nobody asked for: a bomb could be in it."""
    request.head(200, Content_Encoding="gzip", Content_Length="10")
    request.send(b"\x1f\x8b" + bytes(8))


def silent(request: Request) -> None:
    """Takes the request and says nothing."""
    while True:
        request.wait()


def garbage(request: Request) -> None:
    """No HTTP at all."""
    request.send(b"\x15\x03\x01 who are you? \r\n\r\n" * 10)
    request.close_connection = True


def endless_error(request: Request) -> None:
    """Nothing here, says a short page that then comes in chunks, for ever."""
    request.head(404, Content_Length="10", Transfer_Encoding="chunked")
    while True:
        request.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def error_drip(request: Request) -> None:
    """Nothing here, says a page that takes its time."""
    request.head(404, Content_Length="10000")
    while True:
        request.send(b"x")
        request.wait()


def chunk_drip(request: Request) -> None:
    """A first piece; then the length of the second, which has ever more zeros before it."""
    request.head(200, Transfer_Encoding="chunked")
    request.send(b"1\r\n" + request.rogue.content[:1] + b"\r\n")
    while True:
        request.send(b"0")
        request.wait()


def endless_trailers(request: Request) -> None:
    """Everything, and then trailers at full speed."""
    content = request.rogue.content
    request.head(200, Transfer_Encoding="chunked")
    request.send(b"%x\r\n" % len(content) + content + b"\r\n0\r\n")
    while True:
        request.send(b"X-Padding: yes\r\n" * 100)


BEHAVIOURS: Final[dict[str, Play]] = {
    "honest": honest,
    "stall": stall,
    "trickle": trickle,
    "slow-head": slow_head,
    "reset": reset,
    "truncated": truncated,
    "lying-length": lying_length,
    "longer": longer,
    "endless": endless,
    "wrong-range": wrong_range,
    "ignores-range": ignores_range,
    "endless-headers": endless_headers,
    "redirect-loop": redirect_loop,
    "storm": storm,
    "portal": portal,
    "sly-portal": sly_portal,
    "gzip": gzip,
    "silent": silent,
    "garbage": garbage,
    "endless-error": endless_error,
    "error-drip": error_drip,
    "chunk-drip": chunk_drip,
    "endless-trailers": endless_trailers,
}


class Rogue:
    """The server. `play` is asked for every request; the other attributes tell what happened.

    Args:
        content: what an honest server would send for any path.
        pause: what every wait of a behaviour is multiplied by.
        tls: makes it an https server.
        port: 0 takes a free one.
    """

    def __init__(
        self, content: bytes = b"", *, pause: float = 1.0, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self.content = content
        self.pause = pause
        self.tag = '"v1"'
        self.play: Play = honest
        self.asked: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.sent = 0  # bytes of bodies and of what was sent by hand
        self.closing = threading.Event()
        handler = type("_Bound", (Request,), {"rogue": self})
        self._http = _Server(("127.0.0.1", port), handler)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = int(self._http.server_address[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/repo"

    def close(self) -> None:
        """Stop serving; behaviours that wait end at once."""
        self.closing.set()
        self._http.shutdown()
        self._thread.join(5)
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up or distrusts us is what these tests are about."""


def main() -> None:
    """Misbehave until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviour", choices=sorted(BEHAVIOURS))
    parser.add_argument("--file", type=Path, help="what to serve")
    parser.add_argument("--port", type=int, default=8099)
    options = parser.parse_args()
    with Rogue(options.file.read_bytes() if options.file else b"0123456789" * 1000, port=options.port) as rogue:
        rogue.play = BEHAVIOURS[options.behaviour]
        print(f"{options.behaviour}: {rogue.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
