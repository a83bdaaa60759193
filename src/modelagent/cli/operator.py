"""The operator's end of the broker: connect, say what to hear, hear it, publish.

This file knows the connection and its errors in words. It does not know what devices tell.

    with Operator(settings.mqtt) as operator:
        operator.hear("modelagent/+/status")
        for topic, payload in operator.messages(quiet=0.5, limit=10.0): ...
        operator.publish("modelagent/all/cmd", b'{"id": "7f3a", "verb": "check"}')

What arrives is as untrustworthy as the broker: whoever shows it escapes it.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from modelagent.errors import SourceError, UsageError
from modelagent.inputs.broker import make_client, open_connection
from modelagent.inputs.config import Mqtt

PATIENCE: Final = 10.0  # seconds for each answer of the broker


class Operator:
    """One connection; its methods raise SourceError or UsageError with the remedy."""

    def __init__(self, settings: Mqtt) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._heard: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._answers: dict[int, ReasonCode] = {}
        self._news = threading.Condition()
        self._connack: ReasonCode | None = None
        self._detail = ""  # what the library complained of last
        self.lost = ""

    def __enter__(self) -> Self:
        where = f"{self._settings.host}:{self._settings.effective_port}"
        name = f"{self._settings.prefix}-operator-{secrets.token_hex(6)}".replace("/", "-")
        try:
            self._client = make_client(self._settings, name, MQTTProtocolVersion.MQTTv5, persistent=False)
            self._listen(self._client)
            open_connection(self._client, self._settings)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"broker {where}: {error}; check [mqtt] or --host, --port, --ca, --cert and --key", code="broker"
            ) from error
        self._client.loop_start()
        try:
            self._wait(lambda: self._connack is not None, where)
            if self._connack is not None and self._connack.is_failure:
                raise SourceError(f"broker {where}: refused: {self._connack}; check who you are", code="broker")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def hear(self, *topics: str) -> None:
        """Subscribe, and wait until the broker has said that it will tell."""
        _, number = self._client.subscribe([(topic, 1) for topic in topics])
        reason = self._answer(number, f"subscribe {', '.join(topics)}")
        if reason.is_failure:
            raise UsageError(
                f"the broker's rules do not let you hear {', '.join(topics)}: {reason}", code="not-authorised"
            )

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish, and wait until the broker has it; UsageError when its rules forbid it."""
        number = self._client.publish(topic, payload, 1).mid
        reason = self._answer(number, f"publish on {topic}")
        if reason.is_failure:
            raise UsageError(f"the broker's rules do not let you write on {topic}: {reason}", code="not-authorised")

    def messages(self, *, quiet: float | None = None, limit: float | None = None) -> Iterator[tuple[str, bytes]]:
        """Topic and payload of each message, until `quiet` seconds bring none or `limit` seconds are over.

        None: no such end. Raises SourceError when the connection ends.
        """
        end = float("inf") if limit is None else time.monotonic() + limit
        while True:
            patience = min(end - time.monotonic(), float("inf") if quiet is None else quiet)
            try:
                found = self._heard.get(timeout=None if patience == float("inf") else max(0.0, patience))
            except queue.Empty:
                return
            if found is None:
                raise SourceError(f"the broker's connection ended: {self.lost}; try again", code="broker")
            yield found

    def _listen(self, client: paho.Client) -> None:
        def connected(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _properties: Properties | None
        ) -> None:
            with self._news:
                self._connack = reason
                self._news.notify_all()

        def subscribed(
            _client: paho.Client, _data: object, number: int, reasons: list[ReasonCode], _properties: object
        ) -> None:
            published(_client, _data, number, max(reasons, key=lambda reason: reason.value), _properties)

        def published(
            _client: paho.Client, _data: object, number: int, reason: ReasonCode, _properties: object
        ) -> None:
            with self._news:
                self._answers[number] = reason
                self._news.notify_all()

        def disconnected(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
        ) -> None:
            with self._news:
                self.lost = self._detail or str(reason)
                self._news.notify_all()
            self._heard.put(None)

        def logged(_client: paho.Client, _data: object, level: int, text: str) -> None:
            if level == paho.MQTT_LOG_ERR:
                self._detail = text

        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_publish = published
        client.on_disconnect = disconnected
        client.on_log = logged
        client.on_message = lambda _client, _data, message: self._heard.put((message.topic, bytes(message.payload)))

    def _answer(self, number: int | None, what: str) -> ReasonCode:
        self._wait(lambda: number in self._answers, what)
        return self._answers.pop(number or 0)

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        with self._news:
            self._news.wait_for(lambda: true() or bool(self.lost), PATIENCE)
        if not true():
            why = self.lost or f"no answer within {PATIENCE:g} s"
            raise SourceError(f"broker, {what}: {why}; its log may say more (a certificate, perhaps)", code="broker")
