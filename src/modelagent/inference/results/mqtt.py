"""Results as messages to the broker.

This file knows the topic and the form. It does not know how a message is kept and sent: the courier does.

    sink = MqttSink(courier, "modelagent/box-17/result/digits")
"""

from collections.abc import Sequence

from modelagent.inference.results import Row
from modelagent.inference.results.courier import Courier


class MqttSink:
    """See ResultSink."""

    name = "mqtt"

    def __init__(self, courier: Courier, topic: str) -> None:
        self._courier = courier
        self._topic = topic

    def write(self, rows: Sequence[Row]) -> None:
        """Leave one message for each row with the courier, which never fails: it counts what its bounds cost."""
        for row in rows:
            self._courier.send(self._topic, {"schema": 1, **row._asdict()})

    def close(self) -> None:
        """The courier is closed by whoever made it."""
