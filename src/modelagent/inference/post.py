"""One HTTP POST to somebody's server: what the webhook and the sample upload have in common.

This file knows one request and its time limits: of each wait, and of the whole. It does not know what is sent, whether
to try again, or who counts.

    post("https://mes.example.org/hooks/scrap", b"{}", {"Content-Type": "application/json"}, "9f2c-17")     # 200
"""

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from modelagent import __version__

_TIMEOUT: Final = 10.0  # seconds, of each wait for the other side
_WHOLE: Final = 60.0  # seconds from the beginning to the end of the answer, for a body of no length
_SLOWEST: Final = 8192  # bytes of a body that a second more is allowed for
_AHEAD: Final = 1 << 16  # bytes that the kernel may hold
_MOST: Final = 1 << 16  # bytes of an answer that are read: nobody uses them


def post(
    url: str, body: bytes, headers: Mapping[str, str], id_: str, *, connected: Callable[[], None] | None = None
) -> int:
    """Send it once, and return the status of the answer.

    Args:
        url: http or https.
        body: the whole of it.
        headers: besides User-Agent and Idempotency-Key.
        id_: for Idempotency-Key, because a request whose answer was lost is sent again.
        connected: called when there is a connection, before a byte of the body is on it.

    Raises:
        OSError: no answer; the message names the host.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT)
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        sock = connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # whatever waits for it wakes

    # An other side that gives or takes a byte now and then is never late by the wait alone.
    limit = threading.Timer(_WHOLE + len(body) / _SLOWEST, hang_up)
    limit.daemon = True
    limit.start()
    try:
        connection.connect()
        if connected is not None:
            connected()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AHEAD)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        named = {**headers, "User-Agent": f"modelagent/{__version__}", "Idempotency-Key": id_}
        # As a file it goes piece by piece, each with the time of one wait: sent at once, a slow link would have ten
        # seconds for the whole (socket.sendall). Nor may much of it lie in the kernel while the answer is waited for.
        connection.request("POST", target, io.BytesIO(body), {**named, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        answer.read(_MOST)
        if late.is_set():
            raise TimeoutError("it took too long")
        return answer.status
    except (OSError, ValueError, http.client.HTTPException) as error:
        text = "it took too long" if late.is_set() else error or type(error).__name__
        raise OSError(f"{parts.hostname}: {text}") from error
    finally:
        limit.cancel()
        connection.close()
