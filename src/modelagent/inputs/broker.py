"""A client of the broker as the settings want it: identity, encryption, no delayed packets; and what is MQTT's own.

This file knows paho and the two protocol versions. It does not know topics of ours, nor what is sent.

    client = make_client(settings.mqtt, "modelagent-box-17", MQTTProtocolVersion.MQTTv5, persistent=True)
    client.on_message = ...
    open_connection(client, settings.mqtt, session_s=86_400)      # TCP and TLS; the broker's answer comes later

The device's session and the operator's tools both use it, so that what works for one works for the other.
"""

import socket
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from modelagent.inputs.config import Mqtt

MAX_PACKET: Final = 1024 * 1024  # bytes that we take in one packet


def make_client(
    settings: Mqtt, client_id: str, protocol: MQTTProtocolVersion, *, persistent: bool, manual_ack: bool = False
) -> paho.Client:
    """A client that is not connected yet; raises OSError when a file that the settings name cannot be read.

    `persistent`: the broker keeps the session while we are away (3.1.1: for ever; 5: as `open_connection` says).
    """
    five = protocol == MQTTProtocolVersion.MQTTv5
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if five else not persistent,
        protocol=protocol,
        reconnect_on_failure=False,
        manual_ack=manual_ack,
    )
    if settings.username:
        client.username_pw_set(settings.username, _password(settings))
    if settings.tls.wanted:
        client.tls_set(
            ca_certs=None if settings.tls.ca is None else str(settings.tls.ca),
            certfile=None if settings.tls.cert is None else str(settings.tls.cert),
            keyfile=None if settings.tls.key is None else str(settings.tls.key),
        )
    client.on_socket_open = _hasten
    return client


def open_connection(client: paho.Client, settings: Mqtt, *, session_s: int = 0, receive_maximum: int = 100) -> None:
    """Connect; blocks for TCP and TLS. `session_s`: how long the broker keeps the session (MQTT 5)."""
    five = client.protocol == MQTTProtocolVersion.MQTTv5
    properties = None
    if five:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = session_s
        properties.ReceiveMaximum = receive_maximum
        properties.MaximumPacketSize = MAX_PACKET
    client.connect(
        settings.host,
        settings.effective_port,
        keepalive=int(settings.keepalive),
        clean_start=session_s == 0 if five else paho.MQTT_CLEAN_START_FIRST_ONLY,
        properties=properties,
    )


def is_harmless(topic: str) -> bool:
    """Whether answers may go where the asker says: never to a command topic, which would make us its author."""
    return (
        0 < len(topic) <= 512
        and not topic.startswith("$")
        and not any(character in topic for character in "+#\0")
        and not topic.endswith(("/cmd", "/status"))
    )


def has_buffered(sock: object) -> bool:
    """Whether TLS holds bytes that epoll cannot see."""
    pending = getattr(sock, "pending", None)
    return pending is not None and pending() > 0


def _hasten(_client: paho.Client, _data: object, sock: Any) -> None:
    # Without it QoS 1 costs 88 ms a round trip (Nagle against delayed acknowledgements) instead of 0.4.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _password(settings: Mqtt) -> str | None:
    # Read anew for each connection: a rotated password needs no restart.
    if settings.password_file is None:
        return None
    return settings.password_file.read_text(encoding="utf-8").partition("\n")[0].strip("\r")
