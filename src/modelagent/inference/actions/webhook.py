"""A rule's HTTP POST to somebody's server.

This file knows the request, its time limits and which failures are worth another try. It does not know rules.

    WebhookAction("https://mes.example.org/hooks/scrap")

The body is the firing as JSON; the header Idempotency-Key carries its id, because a request whose answer was lost is
sent again. Tried three times; a 4xx answer is final.
"""

import json
import threading
from typing import Final
from urllib.parse import urlsplit

from modelagent.inference.actions import Firing
from modelagent.inference.post import post

_PAUSES: Final = (1.0, 4.0)  # seconds before the second and the third try


class WebhookAction:
    """See Action. `url`: http or https."""

    name = "webhook"

    def __init__(self, url: str, pauses: tuple[float, ...] = _PAUSES) -> None:
        self._url = url
        self._pauses = pauses

    def do(self, firing: Firing, stop: threading.Event) -> None:
        """Send it; OSError when the last try failed, or the server refused."""
        body = json.dumps(firing.document(), separators=(",", ":")).encode()
        for pause in (*self._pauses, None):
            try:
                status = post(self._url, body, {"Content-Type": "application/json"}, firing.id)
            except OSError:
                if pause is None or stop.wait(pause):
                    raise
                continue
            if 200 <= status < 300:
                return
            if status < 500 or pause is None or stop.wait(pause):
                raise OSError(f"{urlsplit(self._url).hostname}: answered {status}")
