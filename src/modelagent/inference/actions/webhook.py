"""A rule's HTTP POST to somebody's server.

This file knows the request, its time limits and which failures are worth another try. It does not know rules.

    WebhookAction("https://mes.example.org/hooks/scrap")

The body is the firing as JSON; the header Idempotency-Key carries its id, because a request whose answer was lost is
sent again. Tried three times; a 4xx answer is final.
"""

import http.client
import json
import threading
from typing import Final
from urllib.parse import urlsplit

from modelagent import __version__
from modelagent.inference.actions import Firing

_TIMEOUT: Final = 10.0  # seconds, of each wait for the other side
_PAUSES: Final = (1.0, 4.0)  # seconds before the second and the third try


class WebhookAction:
    """See Action. `url`: http or https."""

    name = "webhook"

    def __init__(self, url: str, pauses: tuple[float, ...] = _PAUSES) -> None:
        parts = urlsplit(url)
        self._parts = parts
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pauses = pauses

    def do(self, firing: Firing, stop: threading.Event) -> None:
        """Send it; OSError when the last try failed, or the server refused."""
        body = json.dumps(firing.document(), separators=(",", ":")).encode()
        for pause in (*self._pauses, None):
            try:
                status = self._post(body, firing.id)
            except (OSError, http.client.HTTPException) as error:
                if pause is None or stop.wait(pause):
                    raise OSError(f"{self._parts.hostname}: {error or type(error).__name__}") from error
                continue
            if 200 <= status < 300:
                return
            if status < 500 or pause is None or stop.wait(pause):
                raise OSError(f"{self._parts.hostname}: answered {status}")

    def _post(self, body: bytes, id_: str) -> int:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=_TIMEOUT)
        try:
            headers = {
                "Content-Type": "application/json",
                "User-Agent": f"modelagent/{__version__}",
                "Idempotency-Key": id_,
            }
            connection.request("POST", self._target, body, headers)
            answer = connection.getresponse()
            answer.read(1 << 16)
            return answer.status
        finally:
            connection.close()
