"""One connection to the broker: the library's client, what its callbacks noted, and what is in flight.

This file knows the library. It does not know what is sent, what a command does or when to connect: the session does.

    connection = Connection(client, MQTTProtocolVersion.MQTTv5, since=monotonic())
    connection.listen(["modelagent/box-17/cmd"], note=session.note, acknowledged=session.acknowledged)
    connection.turn([selectors.EVENT_READ])      # the library reads; connection.arrived, .ready, .lost say what came

Nothing of it outlives the connection: a new one is made each time.
"""

import selectors
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

IN_FLIGHT: Final = 20  # reports sent and not acknowledged yet


@dataclass(frozen=True, slots=True)
class Report:
    """One message to send at least once. `kind`: reply, event or status.

    `number` is the outbox's, of an event; `answers` the delivery to acknowledge once a reply has arrived.
    """

    kind: str
    topic: str
    payload: bytes
    correlation: bytes | None = None
    number: int = 0
    answers: "tuple[Connection, int] | None" = None


@dataclass(slots=True)
class Connection:
    """What belongs to one connection and dies with it."""

    client: paho.Client
    protocol: MQTTProtocolVersion
    since: float
    runs: object = None  # what the will says runs
    renewing: bool = False
    arrived: list[paho.MQTTMessage] = field(default_factory=list)
    in_flight: dict[int, Report] = field(default_factory=dict)
    window: int = IN_FLIGHT
    connack: ReasonCode | None = None
    ready: bool = False
    detail: str = ""  # what the library complained of last
    lost: str = ""

    def listen(
        self, topics: Sequence[str], *, note: Callable[..., None], acknowledged: Callable[[Report, ReasonCode], None]
    ) -> None:
        """Set the callbacks. They only note what happened; everything else is done outside the library.

        Args:
            topics: to subscribe once the broker lets us in.
            note: told what is wrong ("": nothing), and `connected=True` where the connection stands.
            acknowledged: told of each report that the broker has answered for.
        """
        client = self.client

        def connected(
            _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
        ) -> None:
            self.connack = reason
            if reason.is_failure:
                self.lost = f"the broker refused the connection: {reason}"
                return
            window = getattr(properties, "ReceiveMaximum", IN_FLIGHT)
            self.window = max(1, min(IN_FLIGHT, int(window)))
            client.subscribe([(topic, 1) for topic in topics])

        def subscribed(
            _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _properties: object
        ) -> None:
            refused = [t for t, reason in zip(topics, reasons, strict=False) if reason.is_failure]
            self.ready = True
            note(f"the broker refused to subscribe {', '.join(refused)}" if refused else "", connected=True)

        def arrived(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            self.arrived.append(message)

        def published(_client: paho.Client, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
            report = self.in_flight.pop(mid, None)
            if report is not None:
                acknowledged(report, reason)

        def disconnected(
            _client: paho.Client, _data: object, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
        ) -> None:
            if flags.is_disconnect_packet_from_server:
                why = f"the broker ended the connection: {reason}"
            elif self.connack is None:
                detail = f" ({self.detail})" if self.detail else ""
                why = f"the broker hung up without an answer{detail}; its log says why: a certificate, perhaps"
            else:
                why = "connection lost: " + (self.detail or "the broker hung up")
            self.lost = self.lost or why

        def logged(_client: paho.Client, _data: object, level: int, text: str) -> None:
            # The library hands on that a read failed, but not why: a refused certificate is told only here.
            if level == paho.MQTT_LOG_ERR:
                self.detail = text.removeprefix("failed to receive on socket: ")

        client.on_log = logged
        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_message = arrived
        client.on_publish = published
        client.on_disconnect = disconnected

    def turn(self, masks: list[int]) -> None:
        """Let the library read, write and look at its keep-alive."""
        client = self.client
        try:
            if masks[0] & selectors.EVENT_READ:
                client.loop_read()
            if masks[0] & selectors.EVENT_WRITE:
                client.loop_write()
            client.loop_misc()
        except Exception as error:  # bytes of an untrusted broker, in foreign code: no failure of ours
            raise ValueError(f"the broker sent what cannot be understood: {error}") from error

    def publish(self, report: Report) -> None:
        """Send a report, at least once; `in_flight` has it until the broker has answered for it."""
        properties = None
        if self.protocol == MQTTProtocolVersion.MQTTv5 and report.correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = report.correlation
        info = self.client.publish(
            report.topic, report.payload, qos=1, retain=report.kind == "status", properties=properties
        )
        # Even where the send failed: what is in flight when a connection ends is queued again.
        self.in_flight[info.mid] = report
        if info.rc not in {MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE}:
            self.lost = self.lost or f"connection lost: {paho.error_string(info.rc)}"
