"""One HTTP POST to somebody's server: what the webhook and the sample upload have in common.

This file knows one request and its time limits. It does not know what is sent, whether to try again, or who counts.

    post("https://mes.example.org/hooks/scrap", b"{}", {"Content-Type": "application/json"}, "9f2c-17")     # 200
"""

import http.client
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from modelagent import __version__

_TIMEOUT: Final = 10.0  # seconds, of each wait for the other side
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
    try:
        connection.connect()
        if connected is not None:
            connected()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        named = {**headers, "User-Agent": f"modelagent/{__version__}", "Idempotency-Key": id_}
        connection.request("POST", target, body, named)
        answer = connection.getresponse()
        answer.read(_MOST)
        return answer.status
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(f"{parts.hostname}: {error or type(error).__name__}") from error
    finally:
        connection.close()
