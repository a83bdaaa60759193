"""A small web server over a repository, for development and tests. Production uses any static server.

This file knows HTTP: GET and HEAD, single ranges, If-Range by ETag, one kept connection. It does not know what it
serves, except which directories: `metadata/`, `targets/` and `files/`, never a link and never a directory listing.

    with Server(Path("repo"), "127.0.0.1", 0) as server:
        print(server.url)           # http://127.0.0.1:40123/
"""

import contextlib
import os
import re
import stat
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

SERVED: Final = ("metadata", "targets", "files")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK: Final = 64 * 1024


class Server:
    """A threading web server that can be opened and closed; it binds in the constructor.

    Args:
        directory: the repository.
        host: the address to bind, loopback unless asked otherwise.
        port: 0 takes a free one.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        root = directory.resolve()
        handler = type("_BoundHandler", (_Handler,), {"root": root})
        self._http = ThreadingHTTPServer((host, port), handler)
        self._http.daemon_threads = True
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The repository's address, with the trailing slash that devices are configured with."""
        host, port = self._http.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"

    def run(self) -> None:
        """Serve until `close` is called from another thread."""
        self._http.serve_forever(poll_interval=0.1)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="repo-serve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join(timeout=5)
        self._http.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "modelagent", ""
    disable_nagle_algorithm = True  # head and body are two writes; the second must not wait for the first's receipt
    timeout = 60  # seconds without a request on a kept connection

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Stay silent: `repo serve` is run beside other output."""

    def _answer(self, *, body: bool) -> None:
        fd = self._open()
        if fd is None:
            # No page: every check of every device asks for the next root and is told that there is none.
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with os.fdopen(fd, "rb") as stream:
            status = os.fstat(fd)
            tag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
            span = self._span(status.st_size, tag)
            if span is None:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{status.st_size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, stop = span
            partial = (start, stop) != (0, status.st_size)
            self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{status.st_size}")
            kind = "application/json" if self.path.endswith(".json") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", tag)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                stream.seek(start)
                left = stop - start
                with contextlib.suppress(ConnectionError, TimeoutError):
                    while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
                        self.wfile.write(chunk)
                        left -= len(chunk)

    def _open(self) -> int | None:
        """A descriptor of the regular file that the request names, or None."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] not in SERVED or any(
            part in {"", ".", ".."} or "/" in part or "\0" in part or part.startswith(".") for part in parts
        ):
            return None
        try:
            path = self.root.joinpath(*parts)
            if path.resolve() != path:  # a link somewhere on the way
                return None
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def _span(self, size: int, tag: str) -> tuple[int, int] | None:
        """First and one-past-last byte to send; None where the range cannot be."""
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if wanted is None or (condition is not None and condition != tag):
            return 0, size
        start = int(wanted[1])
        stop = min(size, int(wanted[2]) + 1) if wanted[2] else size
        return (start, stop) if start < stop else None
