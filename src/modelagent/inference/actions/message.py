"""A rule's message to the broker, kept on disk until the broker has it.

This file knows the topic. It does not know how a message is kept and sent: the courier does.

    MessageAction("line/3/eject", courier.send)
"""

import threading
from collections.abc import Callable
from typing import Any

from modelagent.inference.actions import Firing


class MessageAction:
    """See Action. `publish(topic, document)` must not wait."""

    name = "mqtt"

    def __init__(self, topic: str, publish: Callable[[str, dict[str, Any]], None]) -> None:
        self._topic = topic
        self._publish = publish

    def do(self, firing: Firing, stop: threading.Event) -> None:  # noqa: ARG002 - it takes no time
        """Leave the message with the courier."""
        self._publish(self._topic, firing.document())
