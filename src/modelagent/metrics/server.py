"""The metrics process's small HTTP server: three pages, for whoever may reach the port.

This file knows the pages and their limits. It does not know what stands on them.

    server = MetricsServer("127.0.0.1:9470", reader)
    server.start(); server.address; server.close()

/metrics: the exposition format. /healthz: 200 while this process lives. /readyz: 200 when every model runs and the
updater answers, else 503 and why. Loopback is the default; nothing here can change anything.
"""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from modelagent.errors import DeviceError, UsageError
from modelagent.metrics.collector import expose
from modelagent.metrics.reading import Reader

_log = logging.getLogger(__name__)

_PAGE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE: Final = 5.0  # seconds for a request to come whole
_MOST: Final = 16  # requests at once


class MetricsServer:
    """See the head of the file.

    Raises:
        DeviceError: `port`. UsageError: `config`.
    """

    def __init__(self, listen: str, reader: Reader) -> None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal():
            raise UsageError(f"metrics.listen: found {listen!r}, allowed is address:port", code="config")
        room = threading.BoundedSemaphore(_MOST)

        class Handler(_Handler):
            source = reader
            seats = room

        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        except (OSError, OverflowError) as error:
            raise DeviceError(
                f"cannot listen on {listen}: {error}; free the port or correct metrics.listen", code="port"
            ) from error
        self._server.daemon_threads = True
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)

    def start(self) -> None:
        """Serve from a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Handler(BaseHTTPRequestHandler):
    source: Reader
    seats: threading.BoundedSemaphore
    timeout = _PATIENCE
    server_version = "modelagent"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one page."""
        if not self.seats.acquire(blocking=False):
            self._say(503, "text/plain", b"too many requests at once\n")
            return
        try:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._say(200, _PAGE, expose(self.source.read()))
                case "/healthz":
                    self._say(200, "application/json", b'{"status": "ok"}\n')
                case "/readyz":
                    why = self.source.read().ready
                    body = json.dumps({"status": "not ready", "reason": why} if why else {"status": "ok"})
                    self._say(503 if why else 200, "application/json", body.encode() + b"\n")
                case _:
                    self._say(404, "text/plain", b"/metrics, /healthz, /readyz\n")
        finally:
            self.seats.release()

    def _say(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Requests are no news."""
        _log.debug(format, *args)
