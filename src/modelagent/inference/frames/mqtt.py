"""Frames from a topic of the broker: one message, one frame.

This file knows the subscription. It does not know the payload's forms, nor what becomes of the result.

    source = MqttSource(SourceOptions(kind="mqtt", topic="line/3/part", mqtt=settings.mqtt, client="box-17-frames"))

A message larger than a frame may be ends the connection while it comes: it takes 30 MB at most.
The subscription is QoS 1 and the session is not kept: a frame that came while nobody looked is old news. The client
runs in the source's own thread; a broker that goes away is a broken source, which is tried again with a growing pause.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.frames.payload import read
from modelagent.inputs.broker import make_client, open_connection

_BUFFER: Final = 1 << 17  # bytes that the kernel holds for us: what one read gives at most
_AROUND: Final = 1 << 16  # bytes of a packet besides the frame: its topic
_CONNECT: Final = 10.0  # seconds until the broker has accepted us and the subscription


class MqttSource(FrameSource):
    """See the head of the file.

    Raises:
        UsageError: `config` without a topic or a broker.
    """

    kind = "mqtt"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        if not options.topic or options.mqtt is None or not options.mqtt.host:
            raise UsageError(
                'source: kind = "mqtt" needs topic, and mqtt.host; add them to the settings', code="config"
            )
        self._mqtt = options.mqtt
        self._number = 0
        self._ready = False
        self._refused = ""

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource."""
        self._ready, self._refused = False, ""
        try:
            client = make_client(self._mqtt, self.options.client, MQTTProtocolVersion.MQTTv311, persistent=False)
            client.on_connect = self._connected
            client.on_subscribe = self._subscribed
            client.on_message = lambda _client, _data, message: self._heard(message, put)
            open_connection(client, self._mqtt)
            sock: Any = client.socket()
            if sock is not None:  # paho reads a hundred times before it lets us look at what is coming
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        except (OSError, ValueError) as error:
            raise self._broken(str(error)) from error
        try:
            self._listen(client, stop)
        finally:
            client.disconnect()
            client.loop(0.1)

    def _listen(self, client: paho.Client, stop: threading.Event) -> None:
        deadline = time.monotonic() + _CONNECT
        while not stop.is_set():
            try:
                result = client.loop(0.5)
            except ValueError as error:  # paho, of an answer that it cannot do anything with
                raise self._broken(f"it speaks another MQTT: {error}") from error
            self._check_size(client)
            if self._refused:
                raise self._broken(self._refused)
            if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise self._broken(paho.error_string(result))
            if not self._ready and time.monotonic() >= deadline:
                raise self._broken("no answer")

    def _check_size(self, client: paho.Client) -> None:
        # MQTT 3.1.1 has no limit that a broker would keep; the part that has come is paho's own affair, if it has one.
        packet = getattr(client, "_in_packet", None)
        length = packet.get("remaining_length", 0) if isinstance(packet, dict) else 0
        if length > self.options.max_bytes + _AROUND:
            self.count("unreadable")
            self._number += 1
            name = f"{self.options.topic}:{self._number}"
            self.lose(Frame(name, (), time.time(), time.monotonic()))
            raise self._broken(f"a message of {length} bytes, at most {self.options.max_bytes} are taken")

    def _connected(self, client: paho.Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            self._refused = str(reason)
        else:
            client.subscribe(self.options.topic, qos=1)

    def _subscribed(
        self, _client: paho.Client, _data: object, _number: int, reasons: list[Any], _properties: object
    ) -> None:
        self._ready = True
        if any(reason.is_failure for reason in reasons):
            self._refused = f"the subscription to {self.options.topic} was refused: {reasons[0]}"

    def _heard(self, message: paho.MQTTMessage, put: Callable[[Frame], None]) -> None:
        self._number += 1
        wall, mono = time.time(), time.monotonic()
        try:
            payload = read(bytes(message.payload), self.options)
        except SourceError:
            self.count("unreadable")
            self.lose(Frame(f"{message.topic}:{self._number}", (), wall, mono))
            return
        put(Frame(f"{payload.id or message.topic}:{self._number}", payload.arrays, wall, mono))

    def _broken(self, why: str) -> SourceError:
        return SourceError(
            f"broker {self._mqtt.host}:{self._mqtt.effective_port}, topic {self.options.topic}: {why}; "
            "look at the broker and at [mqtt]",
            code="source",
        )
