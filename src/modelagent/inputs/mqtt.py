"""The broker: commands in, answers, events and a retained status out, over one session that nobody waits for.

This file knows the topics, MQTT 5 and 3.1.1, reconnecting and what is kept meanwhile. It does not know the library
(`connection.py` does), what a command does (the desk does), nor what an event means. The broker is trusted with
nothing.

    session = Session(settings.mqtt, device="box-17", groups=("lab",), desk=desk, draw=random.random, keep=directory)
    session.start()                                   # returns at once; the broker may be down
    session.set_status({"running": {"digits": "1.1.0"}})
    session.report("event", {"id": "9f2c-1", "kind": "activated"})

One thread owns the client; it sleeps in one epoll until the broker, a report or the keep-alive wants something. A new
client object is made for each connection, so that only this file decides what is sent again. Three kinds of report:

- an event waits in the outbox, on disk, until the broker has acknowledged it;
- an answer waits in memory, and its command is acknowledged only when the broker has acknowledged the answer: if this
  process dies before, the broker delivers the command again, and its id makes the repeat harmless;
- of the status only the newest is ever sent, at every connection and whenever it changes. What the broker says in our
  stead once we are gone is fixed when we connect, so a connection is made anew when what runs has changed since.
"""

import json
import logging
import os
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from modelagent.inputs.broker import has_buffered, is_harmless, make_client, open_connection
from modelagent.inputs.commands import Desk, answer
from modelagent.inputs.config import Mqtt
from modelagent.inputs.connection import Connection, Report
from modelagent.inputs.outbox import Outbox

MAX_COMMAND: Final = 16 * 1024  # bytes
MAX_REPORT: Final = 128 * 1024  # bytes; many brokers refuse more than 256 KiB
SESSION_KEPT_S: Final = 86_400  # how long the broker keeps commands for a device that is away
BACK_OFF_MAX_S: Final = 120.0
STEADY_S: Final = 30.0  # a connection that lasted this long was a good one: the back-off starts anew
CONNACK_S: Final = 10.0
GOODBYE_S: Final = 2.0
RENEW_S: Final = 10.0  # a connection is made anew for its will's sake at most this often
SYNC_S: Final = 1.0  # with the broker away, reports of this long are made durable together
_VERSION_REFUSED: Final = "unsupported protocol version"
_log = logging.getLogger("modelagent.mqtt")


@dataclass(frozen=True, slots=True)
class SessionState:
    """What `status` and `doctor` say of the broker.

    `dropped` counts reports lost to a full queue, `refused` those that the broker's rules did not let pass. `problem`
    is the link's, or else that of the reports' place on disk.
    """

    connected: bool
    problem: str
    queued: int
    dropped: int
    refused: int


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
        wall: Callable[[], float] = time.time,
        keep: Path | None = None,
    ) -> None:
        """No connection is opened yet.

        Args:
            settings: the broker.
            device: this device's id.
            groups: the groups that it listens for.
            desk: takes the commands.
            draw: gives [0, 1) and spreads a fleet's reconnecting.
            clock: counts seconds.
            wall: Unix seconds, for the status.
            keep: directory for the events that wait; None: they are kept in memory only.
        """
        self._settings = settings
        self._device = device
        self._groups = list(groups)
        self._desk = desk
        self._draw = draw
        self._clock = clock
        self._wall = wall
        self._outbox = Outbox(keep, most=settings.queue, most_bytes=settings.queue_kb * 1024)
        self._epoch = secrets.token_hex(4)  # so that the status's ids never repeat
        self._base = f"{settings.prefix}/{device}"
        self._topics = [
            f"{self._base}/cmd",
            *(f"{settings.prefix}/group/{group}/cmd" for group in groups),
            f"{settings.prefix}/all/cmd",
        ]
        self._lock = threading.Lock()  # guards what follows, up to the blank line
        self._replies: deque[Report] = deque()
        self._acks: deque[tuple[Connection, int]] = deque()
        self._status: Mapping[str, Any] = {}
        self._status_since = wall()
        self._status_count = 0
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
        self._outbox.sync()
        with self._lock:
            wake, self._wake = self._wake, -1
            os.close(wake)

    def set_status(self, document: Mapping[str, Any]) -> None:
        """Replace the retained status; only the newest is ever sent. The same one again costs nothing."""
        with self._lock:
            if document == self._status:
                return
            self._status = dict(document)
            self._status_since = self._wall()
            self._status_count += 1
            self._status_due = True
        self._ring()

    def report(self, tail: str, document: Mapping[str, Any]) -> None:
        """Queue one event for `<prefix>/<device>/<tail>`; when the queue is full the oldest event goes, counted.

        When it returns the event survives the death of this process; see `outbox.py` for the rest.
        """
        self._outbox.put(tail, _encode(document))
        self._ring()

    @property
    def state(self) -> SessionState:
        """What is known of the connection now."""
        with self._lock:
            queued = len(self._replies) + self._outbox.queued
            dropped = self._dropped + self._outbox.dropped
            problem = self._problem or self._outbox.problem
            return SessionState(self._connected, problem, queued, dropped, self._refused)

    def _reply(self, report: Report) -> None:
        with self._lock:
            self._replies.append(report)
            if len(self._replies) > self._settings.queue:
                lost = self._replies.popleft()
                self._dropped += 1
                if lost.answers is not None:
                    self._acks.append(lost.answers)
        self._ring()

    def _ring(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # ---- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        protocol = MQTTProtocolVersion.MQTTv5
        failures = kicks = 0
        while not self._stopping.is_set():
            began = self._clock()
            connection: Connection | None = None
            try:
                connection = self._connect(protocol)
                self._attend(connection)
                problem = connection.lost or "the broker closed the connection"
            except (OSError, ValueError) as error:
                problem = str(error) or type(error).__name__
            if connection is not None:
                self._forget(connection)
                if connection.renewing:
                    failures = 0
                    continue
                brief = connection.ready and self._clock() - began < STEADY_S and not self._stopping.is_set()
                kicks = kicks + 1 if brief else 0
                if kicks > 1:
                    problem += f"; {kicks} times soon after it let us in: is another device called {self._device}?"
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
        until, due = self._clock() + seconds, float("inf")
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._stopping.is_set() and (left := until - self._clock()) > 0:
                if selector.select(min(left, max(0.0, due - self._clock()))):
                    os.eventfd_read(self._wake)
                    due = min(due, self._clock() + SYNC_S)
                elif self._clock() >= due:
                    due = float("inf")
                    self._outbox.sync()

    def _connect(self, protocol: MQTTProtocolVersion) -> Connection:
        client = make_client(
            self._settings,
            f"{self._settings.prefix}-{self._device}".replace("/", "-"),
            protocol,
            persistent=True,
            manual_ack=True,
        )
        with self._lock:
            runs = _runs(self._status)
        client.will_set(f"{self._base}/status", self._status_payload(online=False), qos=1, retain=True)
        connection = Connection(client, protocol, self._clock(), runs)
        connection.listen(self._topics, note=self._note, acknowledged=self._acknowledged)
        open_connection(client, self._settings, session_s=SESSION_KEPT_S)
        return connection

    def _attend(self, connection: Connection) -> None:
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
                ready = selector.select(0 if has_buffered(sock) else wait)
                for key, _ in ready:
                    if key.fd == self._wake:
                        os.eventfd_read(self._wake)
                connection.turn([mask for key, mask in ready if key.fileobj is sock] or [selectors.EVENT_READ])
                for message in connection.arrived:
                    self._take(connection, message)
                connection.arrived.clear()
                if not connection.ready and self._clock() >= deadline:
                    connection.lost = f"no answer from the broker within {CONNACK_S:.0f} s"
                if connection.ready:
                    self._send(connection)
                    self._renew(connection)
                if self._stopping.is_set():
                    if goodbye is None:
                        goodbye = self._clock() + GOODBYE_S
                        if connection.ready:
                            connection.publish(self._status_report(online=False))
                    idle = not connection.in_flight and not client.want_write()
                    if idle or not connection.ready or self._clock() >= goodbye:
                        client.disconnect()
                        connection.lost = "stopped"

    def _take(self, connection: Connection, message: paho.MQTTMessage) -> None:
        properties = message.properties
        wish = getattr(properties, "ResponseTopic", None)
        correlation = getattr(properties, "CorrelationData", None)
        topic = wish if isinstance(wish, str) and is_harmless(wish) else f"{self._base}/reply"
        owed = (connection, message.mid) if message.qos else None

        def reply(document: Mapping[str, Any]) -> None:
            nonlocal owed
            payload = _encode({**document, "device": self._device})
            if len(payload) > MAX_REPORT:
                short = answer(str(document.get("id", "")), "failed", "the result is too large; ask for less")
                payload = _encode({**short, "code": "oversized", "device": self._device})
            answers, owed = owed, None
            self._reply(Report("reply", topic, payload, correlation, answers=answers))

        if message.retain:
            reason = "a command must not be retained: it would come again at every connection; clear it"
            reply(answer("", "refused", reason, code="retained"))
            return
        self._desk.take(bytes(message.payload), origin="mqtt", limit=MAX_COMMAND, reply=reply)

    def _send(self, connection: Connection) -> None:
        while len(connection.in_flight) < connection.window and connection.client.socket() is not None:
            report = self._next()
            if report is None:
                break
            connection.publish(report)
        with self._lock:
            acks = list(self._acks)
            self._acks.clear()
        for owner, mid in acks:
            if owner is connection:
                connection.client.ack(mid, 1)

    def _next(self) -> Report | None:
        with self._lock:
            status, self._status_due = self._status_due, False
            if not status and self._replies:
                return self._replies.popleft()
        if status:
            return self._status_report(online=True)
        entry = self._outbox.take()
        if entry is None:
            return None
        return Report("event", f"{self._base}/{entry.tail}", entry.payload, number=entry.number)

    def _acknowledged(self, report: Report, reason: ReasonCode) -> None:
        """The broker has this report, or will never take it."""
        if report.number:
            self._outbox.done(report.number)
        if report.answers is not None:
            with self._lock:
                self._acks.append(report.answers)
        if reason.is_failure:
            # An access rule (135) or a quota: the same again would get the same answer.
            with self._lock:
                self._refused += 1
            self._note(f"the broker refused a message on {report.topic}: {reason}", connected=True)

    def _renew(self, connection: Connection) -> None:
        """End a connection whose will would tell what no longer runs; the next one is made at once."""
        with self._lock:
            stale = _runs(self._status) != connection.runs and not (self._replies or self._status_due)
        idle = not connection.in_flight and not self._outbox.queued and not connection.client.want_write()
        if stale and idle and self._clock() - connection.since >= RENEW_S and not self._stopping.is_set():
            connection.renewing = True
            connection.lost = "made anew"
            connection.client.disconnect()

    def _forget(self, connection: Connection) -> None:
        """Keep what the broker has not acknowledged, in its order, ahead of what came later."""
        with self._lock:
            self._connected = False
            for report in reversed(connection.in_flight.values()):
                if report.kind == "reply":
                    self._replies.appendleft(report)
        self._outbox.give_back()
        if not connection.renewing:
            self._outbox.sync()
        connection.client.on_disconnect = None
        connection.client.disconnect()
        sock = connection.client.socket()
        if sock is not None:
            sock.close()

    def _status_report(self, *, online: bool) -> Report:
        return Report("status", f"{self._base}/status", self._status_payload(online=online))

    def _status_payload(self, *, online: bool) -> bytes:
        with self._lock:
            document, number = self._status, self._status_count
            at = self._status_since if online else self._wall()
        return _encode(
            {
                "schema": 1,
                "id": f"{self._epoch}-s{number}" + ("" if online else "-off"),
                "device": self._device,
                "groups": self._groups,
                "online": online,
                "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
                "dropped": self.state.dropped,
                **document,
            }
        )

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


def _runs(status: Mapping[str, Any]) -> object:
    """The part of a status that a will must not get wrong: which version of which model."""
    models = status.get("models")
    if not isinstance(models, Mapping):
        return None
    return {name: entry.get("running") for name, entry in models.items() if isinstance(entry, Mapping)}


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
