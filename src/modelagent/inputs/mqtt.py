"""The broker: commands in, answers, events and a retained status out, over one session that nobody waits for.

This file knows MQTT (5, and 3.1.1 where the broker is old), the topics, reconnecting and what is kept meanwhile. It
does not know what a command does (the desk does) nor what an event means. The broker is trusted with nothing.

    session = Session(settings.mqtt, device="box-17", groups=("lab",), desk=desk, draw=random.random)
    session.start()                                   # returns at once; the broker may be down
    session.set_status({"running": {"digits": "1.1.0"}})
    session.report("event", {"id": "9f2c-1", "kind": "activated"})

One thread owns the client; it sleeps in one epoll until the broker, a report or the keep-alive wants something. A new
client object is made for each connection, so that only this file decides what is sent again: a report stays here until
the broker has acknowledged it. A command is acknowledged when it has its first answer: if this process dies before, the
broker delivers it again, and the command's id makes the repeat harmless.
"""

import json
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from modelagent.inputs.commands import Desk, answer
from modelagent.inputs.config import Mqtt

MAX_COMMAND: Final = 16 * 1024  # bytes
MAX_REPORT: Final = 128 * 1024  # bytes; many brokers refuse more than 256 KiB
IN_FLIGHT: Final = 20  # reports sent and not acknowledged yet
SESSION_KEPT_S: Final = 86_400  # how long the broker keeps commands for a device that is away
BACK_OFF_MAX_S: Final = 120.0
STEADY_S: Final = 30.0  # a connection that lasted this long was a good one: the back-off starts anew
CONNACK_S: Final = 10.0
GOODBYE_S: Final = 2.0
_VERSION_REFUSED: Final = "unsupported protocol version"
_log = logging.getLogger("modelagent.mqtt")


@dataclass(frozen=True, slots=True)
class SessionState:
    """What `status` and `doctor` say of the broker. `dropped` counts reports lost to a full queue."""

    connected: bool
    problem: str
    queued: int
    dropped: int
    refused: int


@dataclass(frozen=True, slots=True)
class _Report:
    """One message to send at least once. `kind`: reply, event or status."""

    kind: str
    topic: str
    payload: bytes
    correlation: bytes | None = None


@dataclass(slots=True)
class _Connection:
    """What belongs to one connection and dies with it."""

    client: paho.Client
    protocol: MQTTProtocolVersion
    arrived: list[paho.MQTTMessage] = field(default_factory=list)
    in_flight: dict[int, _Report] = field(default_factory=dict)
    window: int = IN_FLIGHT
    connack: ReasonCode | None = None
    ready: bool = False
    lost: str = ""


class Session:
    """One device's session with the broker; every public method returns at once and may be called from any thread."""

    def __init__(
        self,
        settings: Mqtt,
        *,
        device: str,
        groups: Sequence[str],
        desk: Desk,
        draw: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet. `draw` gives [0, 1) and spreads a fleet's reconnecting; `clock` counts seconds."""
        self._settings = settings
        self._device = device
        self._desk = desk
        self._draw = draw
        self._clock = clock
        self._base = f"{settings.prefix}/{device}"
        self._topics = [
            f"{self._base}/cmd",
            *(f"{settings.prefix}/group/{group}/cmd" for group in groups),
            f"{settings.prefix}/all/cmd",
        ]
        self._lock = threading.Lock()  # guards what follows, up to the blank line
        self._replies: deque[_Report] = deque()
        self._events: deque[_Report] = deque()
        self._acks: deque[tuple[_Connection, int]] = deque()
        self._status: Mapping[str, Any] = {}
        self._status_due = False
        self._problem = "not connected yet"
        self._connected = False
        self._dropped = 0
        self._refused = 0
        self._wake = -1

        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- for everybody ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 8.0) -> None:
        """Say goodbye (retained status offline) if connected, and end the thread; at most `timeout` seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self._ring()
        thread.join(timeout)
        if thread.is_alive():
            # It hangs in name resolution or a handshake. It is a daemon thread and will see `_stopping`; its
            # descriptor stays open for it.
            return
        with self._lock:
            wake, self._wake = self._wake, -1
            os.close(wake)

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Replace the retained status; only the newest is ever sent. The same one again costs nothing."""
        with self._lock:
            if document == self._status:
                return
            self._status = dict(document)
            self._status_due = True
        self._ring()

    def report(self, tail: str, document: Mapping[str, Any]) -> None:
        """Queue one event for `<prefix>/<device>/<tail>`; when the queue is full the oldest event goes, counted."""
        self._queue(_Report("event", f"{self._base}/{tail}", _encode(document)))

    @property
    def state(self) -> SessionState:
        """What is known of the connection now."""
        with self._lock:
            queued = len(self._replies) + len(self._events)
            return SessionState(self._connected, self._problem, queued, self._dropped, self._refused)

    def _queue(self, report: _Report) -> None:
        with self._lock:
            (self._replies if report.kind == "reply" else self._events).append(report)
            if len(self._replies) + len(self._events) > self._settings.queue:
                (self._events or self._replies).popleft()
                self._dropped += 1
        self._ring()

    def _ring(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # ---- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        protocol = MQTTProtocolVersion.MQTTv5
        failures = 0
        while not self._stopping.is_set():
            began = self._clock()
            connection: _Connection | None = None
            try:
                connection = self._connect(protocol)
                self._attend(connection)
                problem = connection.lost or "the broker closed the connection"
            except (OSError, ValueError) as error:
                problem = str(error) or type(error).__name__
            if connection is not None:
                self._forget(connection)
            self._note(problem)
            if self._stopping.is_set():
                return
            old_broker = connection is not None and (
                connection.connack is None or str(connection.connack).lower() == _VERSION_REFUSED
            )
            if old_broker and protocol == MQTTProtocolVersion.MQTTv5:
                # Brokers before MQTT 5 say so, or just hang up. Tried at once, then alternately with the back-off.
                protocol = MQTTProtocolVersion.MQTTv311
                failures = max(failures, 1)
                continue
            protocol = MQTTProtocolVersion.MQTTv5
            failures = 1 if self._clock() - began > STEADY_S else failures + 1
            self._pause(min(BACK_OFF_MAX_S, 2.0 ** min(failures - 1, 10)) * (0.5 + self._draw()))

    def _pause(self, seconds: float) -> None:
        until = self._clock() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._stopping.is_set() and (left := until - self._clock()) > 0:
                if selector.select(left):
                    os.eventfd_read(self._wake)

    def _connect(self, protocol: MQTTProtocolVersion) -> _Connection:
        settings = self._settings
        five = protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{settings.prefix}-{self._device}".replace("/", "-"),
            clean_session=None if five else False,
            protocol=protocol,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if settings.username:
            client.username_pw_set(settings.username, self._password())
        if settings.tls.wanted:
            client.tls_set(
                ca_certs=None if settings.tls.ca is None else str(settings.tls.ca),
                certfile=None if settings.tls.cert is None else str(settings.tls.cert),
                keyfile=None if settings.tls.key is None else str(settings.tls.key),
            )
        client.will_set(f"{self._base}/status", self._status_payload(online=False), qos=1, retain=True)
        connection = _Connection(client, protocol)
        self._listen(connection)
        properties = None
        if five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_KEPT_S
            properties.ReceiveMaximum = 100
            properties.MaximumPacketSize = 1024 * 1024
        client.connect(
            settings.host,
            settings.effective_port,
            keepalive=int(settings.keepalive),
            clean_start=False if five else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        return connection

    def _password(self) -> str | None:
        # Read anew for each connection: a rotated password needs no restart.
        if self._settings.password_file is None:
            return None
        return self._settings.password_file.read_text(encoding="utf-8").partition("\n")[0].strip("\r")

    def _listen(self, connection: _Connection) -> None:
        """Callbacks only note what happened; everything is done in `_attend`, outside the library."""
        client = connection.client

        def opened(_client: paho.Client, _data: object, sock: Any) -> None:
            # Without it QoS 1 costs 88 ms a round trip (Nagle against delayed acknowledgements) instead of 0.4.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def connected(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
        ) -> None:
            connection.connack = reason
            if reason.is_failure:
                connection.lost = f"the broker refused the connection: {reason}"
                return
            window = getattr(properties, "ReceiveMaximum", IN_FLIGHT)
            connection.window = max(1, min(IN_FLIGHT, int(window)))
            client.subscribe([(topic, 1) for topic in self._topics])

        def subscribed(
            _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _properties: object
        ) -> None:
            refused = [t for t, reason in zip(self._topics, reasons, strict=False) if reason.is_failure]
            connection.ready = True
            self._note(f"the broker refused to subscribe {', '.join(refused)}" if refused else "", connected=True)

        def arrived(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            connection.arrived.append(message)

        def published(_client: paho.Client, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
            report = connection.in_flight.pop(mid, None)
            if report is not None and reason.is_failure:
                # An access rule (135) or a quota: the same again would get the same answer.
                with self._lock:
                    self._refused += 1
                self._note(f"the broker refused a message on {report.topic}: {reason}", connected=True)

        def disconnected(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
        ) -> None:
            connection.lost = connection.lost or f"connection lost: {reason}"

        client.on_socket_open = opened
        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_message = arrived
        client.on_publish = published
        client.on_disconnect = disconnected

    def _attend(self, connection: _Connection) -> None:
        """Serve one connection until it ends."""
        client = connection.client
        sock: Any = client.socket()
        if sock is None:
            return
        keepalive = max(1.0, self._settings.keepalive / 2)
        deadline = self._clock() + CONNACK_S
        goodbye: float | None = None
        with self._lock:
            self._status_due = True
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(sock, selectors.EVENT_READ)
            while client.socket() is not None and not connection.lost:
                interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
                selector.modify(sock, interest)
                limit = deadline if goodbye is None else goodbye
                hasty = not connection.ready or goodbye is not None
                wait = max(0.0, min(keepalive, limit - self._clock())) if hasty else keepalive
                ready = selector.select(0 if _buffered(sock) else wait)
                for key, _ in ready:
                    if key.fd == self._wake:
                        os.eventfd_read(self._wake)
                self._turn(client, [mask for key, mask in ready if key.fileobj is sock] or [selectors.EVENT_READ])
                for message in connection.arrived:
                    self._take(connection, message)
                connection.arrived.clear()
                if not connection.ready and self._clock() >= deadline:
                    connection.lost = f"no answer from the broker within {CONNACK_S:.0f} s"
                if connection.ready:
                    self._send(connection)
                if self._stopping.is_set():
                    if goodbye is None:
                        goodbye = self._clock() + GOODBYE_S
                        if connection.ready:
                            self._publish(connection, self._status_report(online=False))
                    idle = not connection.in_flight and not client.want_write()
                    if idle or not connection.ready or self._clock() >= goodbye:
                        client.disconnect()
                        connection.lost = "stopped"

    @staticmethod
    def _turn(client: paho.Client, masks: list[int]) -> None:
        """Let the library read, write and look at its keep-alive."""
        try:
            if masks[0] & selectors.EVENT_READ:
                client.loop_read()
            if masks[0] & selectors.EVENT_WRITE:
                client.loop_write()
            client.loop_misc()
        except Exception as error:  # bytes of an untrusted broker, in foreign code: no failure of ours
            raise ValueError(f"the broker sent what cannot be understood: {error}") from error

    def _take(self, connection: _Connection, message: paho.MQTTMessage) -> None:
        properties = message.properties
        wish = getattr(properties, "ResponseTopic", None)
        correlation = getattr(properties, "CorrelationData", None)
        topic = wish if isinstance(wish, str) and _harmless(wish) else f"{self._base}/reply"
        answered = False

        def reply(document: Mapping[str, Any]) -> None:
            nonlocal answered
            payload = _encode({**document, "device": self._device})
            if len(payload) > MAX_REPORT:
                short = answer(str(document.get("id", "")), "failed", "the result is too large; ask for less")
                payload = _encode({**short, "code": "oversized", "device": self._device})
            self._queue(_Report("reply", topic, payload, correlation))
            if not answered:
                answered = True
                if message.qos:
                    with self._lock:
                        self._acks.append((connection, message.mid))
                    self._ring()

        if message.retain:
            reason = "a command must not be retained: it would come again at every connection; clear it"
            reply(answer("", "refused", reason, code="retained"))
            return
        self._desk.take(bytes(message.payload), origin="mqtt", limit=MAX_COMMAND, reply=reply)

    def _send(self, connection: _Connection) -> None:
        while len(connection.in_flight) < connection.window and connection.client.socket() is not None:
            with self._lock:
                if self._status_due:
                    self._status_due = False
                    report = None
                elif self._replies:
                    report = self._replies.popleft()
                elif self._events:
                    report = self._events.popleft()
                else:
                    break
            self._publish(connection, report or self._status_report(online=True))
        with self._lock:
            acks = list(self._acks)
            self._acks.clear()
        for owner, mid in acks:
            if owner is connection:
                connection.client.ack(mid, 1)

    def _publish(self, connection: _Connection, report: _Report) -> None:
        properties = None
        if connection.protocol == MQTTProtocolVersion.MQTTv5 and report.correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = report.correlation
        info = connection.client.publish(
            report.topic, report.payload, qos=1, retain=report.kind == "status", properties=properties
        )
        # Even where the send failed: what is in flight when a connection ends is queued again.
        connection.in_flight[info.mid] = report
        if info.rc not in {MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE}:
            connection.lost = connection.lost or f"connection lost: {paho.error_string(info.rc)}"

    def _forget(self, connection: _Connection) -> None:
        """Keep what the broker has not acknowledged, in its order, ahead of what came later."""
        with self._lock:
            self._connected = False
            for report in reversed(connection.in_flight.values()):
                if report.kind == "reply":
                    self._replies.appendleft(report)
                elif report.kind == "event":
                    self._events.appendleft(report)
        connection.client.on_disconnect = None
        connection.client.disconnect()
        sock = connection.client.socket()
        if sock is not None:
            sock.close()

    def _status_report(self, *, online: bool) -> _Report:
        return _Report("status", f"{self._base}/status", self._status_payload(online=online))

    def _status_payload(self, *, online: bool) -> bytes:
        with self._lock:
            document = self._status if online else {}
        return _encode({"schema": 1, "device": self._device, "online": online, **document})

    def _note(self, problem: str, *, connected: bool = False) -> None:
        """Remember what is wrong, and log it when it changes: a broker that is away for a week is one line."""
        with self._lock:
            news = problem != self._problem or connected != self._connected
            self._problem, self._connected = problem, connected
        if not news:
            return
        where = f"{self._settings.host}:{self._settings.effective_port}"
        if problem and not self._stopping.is_set():
            _log.warning("broker %s: %s", where, problem)
        elif connected:
            _log.info("broker %s: connected", where)


def _harmless(topic: str) -> bool:
    """Whether answers may go where the asker says: never to a command topic, which would make us its author."""
    return (
        0 < len(topic) <= 512
        and not topic.startswith("$")
        and not any(character in topic for character in "+#\0")
        and not topic.endswith(("/cmd", "/status"))
    )


def _buffered(sock: object) -> bool:
    """Whether TLS holds bytes that epoll cannot see."""
    pending = getattr(sock, "pending", None)
    return pending is not None and pending() > 0


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
