"""Carries messages to the broker: each at least once, kept on disk until the broker has acknowledged it.

This file knows the broker's connection and what waits for it. It does not know what a message says.

    courier = Courier(settings.mqtt, "modelagent-box-17-digits-results", directory, most=20_000)
    courier.send("modelagent/box-17/result/digits", {"id": "9f2c-17", ...})      # never waits for the broker
    courier.lost                                                               # messages that the bounds cost

Messages are QoS 1; a connection that ends makes some of them come twice, with the same id. One thread owns the client;
every connection is a new one, with a growing pause after a failure.
"""

import contextlib
import json
import logging
import os
import select
import threading
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from modelagent.inputs.broker import has_buffered, make_client, open_connection
from modelagent.inputs.outbox import Outbox
from modelagent.inputs.schema import Mqtt

_log = logging.getLogger(__name__)

IN_FLIGHT: Final = 50  # sent and not acknowledged
_BYTES: Final = 32 << 20  # of messages that wait
_BACK_OFF: Final = (1.0, 60.0)  # seconds
_CONNACK: Final = 10.0
_SYNC: Final = 5.0  # seconds between two writes to the disk's surface, with the broker away


class Courier:
    """See the head of the file. Any thread may `send`.

    Args:
        mqtt: the broker.
        client: the name that the broker knows us by; no other connection may have it.
        directory: where messages wait; made if it is missing.
        most: messages that may wait.
    """

    def __init__(self, mqtt: Mqtt, client: str, directory: Path, *, most: int = 20_000) -> None:
        self.connected = False
        self.problem = ""
        self._mqtt = mqtt
        self._client_id = client
        self._box = Outbox(directory, most=most, most_bytes=_BYTES)
        self._flying: dict[int, int] = {}  # number of the packet: number in the box
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = threading.Event()
        self._refused = ""
        self._thread = threading.Thread(target=self._run, name=f"courier-{client}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Messages that never went and never will."""
        return self._box.dropped

    @property
    def waiting(self) -> int:
        """Messages without acknowledgement."""
        return self._box.queued

    def send(self, topic: str, document: dict[str, Any]) -> None:
        """Keep a message and send it as soon as may be."""
        self._box.put(quote(topic, safe="/"), json.dumps(document, separators=(",", ":")).encode())
        self._wake()

    def close(self, timeout: float) -> None:
        """Send what waits, as far as the time allows; the rest goes after the next start."""
        deadline = time.monotonic() + timeout
        while self.connected and self._box.queued and time.monotonic() < deadline - 0.2:
            time.sleep(0.01)
        self._stop.set()
        self._wake()
        self._thread.join(max(0.2, deadline - time.monotonic()))
        if not self._thread.is_alive():
            os.close(self._wake_fd)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _BACK_OFF[0]
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self._connection()
            except Exception as error:  # noqa: BLE001 - paho raises anything for packets that are none
                problem = str(error) if isinstance(error, OSError | ValueError) else f"it speaks no MQTT: {error!r}"
                if problem != self.problem:
                    _log.warning("broker %s: %s; results wait on disk", self._mqtt.host, problem)
                self.problem = problem
            self.connected = False
            self._flying.clear()
            self._box.give_back()
            if self._stop.is_set():
                break
            if time.monotonic() - begun > _BACK_OFF[1]:
                pause = _BACK_OFF[0]
            deadline = time.monotonic() + pause
            while not self._stop.is_set() and time.monotonic() < deadline:
                self._box.sync()
                self._stop.wait(min(_SYNC, max(0.0, deadline - time.monotonic())))
            pause = min(_BACK_OFF[1], pause * 2)
        self._box.sync()

    def _connection(self) -> None:
        """One connection, to its end. Raises OSError that says why."""
        self._refused = ""
        client = make_client(self._mqtt, self._client_id, MQTTProtocolVersion.MQTTv311, persistent=False)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.on_connect = self._accepted
        client.on_publish = self._acknowledged
        open_connection(client, self._mqtt)
        deadline = time.monotonic() + _CONNACK
        try:
            while not self._stop.is_set():
                sock = client.socket()
                if sock is None:
                    raise OSError(self._refused or "the connection ended")
                if not self.connected and time.monotonic() >= deadline:
                    raise OSError("no answer")
                if self.connected:
                    self._publish(client)
                self._turn(client, sock)
        finally:
            client.disconnect()
            client.loop_write()

    def _turn(self, client: paho.Client, sock: Any) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        poll.register(self._wake_fd, select.POLLIN)
        ready = dict(poll.poll(0 if has_buffered(sock) else 1000))
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        mask = ready.get(sock.fileno(), 0)
        result = MQTTErrorCode.MQTT_ERR_SUCCESS
        if mask & ~select.POLLOUT or has_buffered(sock):
            result = client.loop_read(IN_FLIGHT)
        if result == MQTTErrorCode.MQTT_ERR_SUCCESS and client.want_write():
            result = client.loop_write()
        if result == MQTTErrorCode.MQTT_ERR_SUCCESS:
            result = client.loop_misc()
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise OSError(self._refused or paho.error_string(result))

    def _publish(self, client: paho.Client) -> None:
        while len(self._flying) < IN_FLIGHT:
            entry = self._box.take()
            if entry is None:
                return
            sent = client.publish(unquote(entry.tail), entry.payload, qos=1)
            self._flying[sent.mid] = entry.number
            if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise OSError(paho.error_string(sent.rc))

    def _accepted(self, _client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            self._refused = f"refused: {reason}"
            return
        self.connected, self.problem = True, ""

    def _acknowledged(self, _client: object, _data: object, mid: int, _reason: object, _properties: object) -> None:
        number = self._flying.pop(mid, None)
        if number is not None:
            self._box.done(number)
