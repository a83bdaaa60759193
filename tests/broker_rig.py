"""A real mosquitto on a free loopback port, and people who speak to it: for the tests that need a broker.

    broker = Broker(directory)                     # or FleetBroker(directory, "box-17"): as shipped, with TLS
    broker.start()
    operator = Operator(broker.port)               # or with tls=broker.tls("operator"), topics=[...]
    operator.order(b'{"id": "1", "verb": "hold"}')
    operator.hear_json("/reply")

Whatever is started here is ended by the test that started it: `broker.kill()`, `operator.close()`.
"""

import datetime as dt
import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

SHIPPED = Path(__file__).parents[1] / "config" / "mosquitto"
PATIENCE = 15.0  # seconds
BASE = "modelagent/box-17"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(true: Callable[[], bool]) -> None:
    """Look every few milliseconds until `true()`: for what another process does and announces to nobody."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.005)


class Broker:
    """One mosquitto; `kill` and `start` it as a power cut would. It forgets unless a line says `persistence true`."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self.port = free_port()
        self.config = directory / "mosquitto.conf"
        self.config.write_text(
            "\n".join(
                [
                    f"listener {self.port} 127.0.0.1",
                    "set_tcp_nodelay true",
                    "user root",  # only heard where the tests run as root: it may then read their files
                    f"persistence_location {directory}/",
                    *(lines or ["allow_anonymous true"]),
                ]
            )
        )
        self.log = directory / "mosquitto.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["mosquitto", "-c", str(self.config)], stdout=log, stderr=log)
        wait_until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """As a power cut: what it has not written is lost."""
        self._end(lambda process: process.kill())

    def stop(self) -> None:
        """As an upgrade: it writes what it knows first, where persistence is on."""
        self._end(lambda process: process.terminate())

    def _end(self, by: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self.process is not None:
            by(self.process)
            self.process.wait()
            self.process = None


class FleetBroker(Broker):
    """mosquitto with the shipped configuration, its access rules and its script's certificates, for these names."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.pki = directory / "pki"
        subprocess.run([SHIPPED / "make-certificates", self.pki, "127.0.0.1", *names], check=True, capture_output=True)
        (self.pki / "access").write_bytes((SHIPPED / "access").read_bytes())
        super().__init__(directory)
        text = (SHIPPED / "modelagent.conf").read_text(encoding="utf-8")
        for shipped, here in (
            ("listener 8883", f"listener {self.port} 127.0.0.1"),
            ("/etc/mosquitto/modelagent", str(self.pki)),
            ("/var/lib/mosquitto/", f"{directory}/"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        self.config.write_text(f"user root\nlog_type all\n{text}")

    def tls(self, name: str, ca: str = "ca") -> dict[str, Path]:
        """The table [mqtt.tls] of who is called `name`."""
        return {"ca": self.pki / f"{ca}.pem", "cert": self.pki / f"{name}.pem", "key": self.pki / f"{name}.key"}


def reissue(pki: Path, name: str, *, days: tuple[int, int], ca: str = "ca") -> None:
    """Sign `name`'s key anew, valid from and until so many days from now: (-2, -1) has expired."""
    key = serialization.load_pem_private_key((pki / f"{name}.key").read_bytes(), None)
    signer = serialization.load_pem_private_key((pki / f"{ca}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    old = x509.load_pem_x509_certificate((pki / f"{name}.pem").read_bytes())
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now + dt.timedelta(days=days[0]),
        not_valid_after=now + dt.timedelta(days=days[1]),
        extensions=list(old.extensions),
    )
    made = builder.sign(signer, hashes.SHA256())
    (pki / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


class Operator:
    """A fleet tool: paho with its own loop, hearing `topics`."""

    def __init__(
        self,
        port: int,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        *,
        tls: Mapping[str, Path] | None = None,
        topics: Sequence[str] = ("#",),
    ) -> None:
        self.heard: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.codes: dict[int, int] = {}
        ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_publish = self.published
        self.client.on_socket_open = self.hasten
        if tls is not None:
            self.client.tls_set(str(tls["ca"]), str(tls["cert"]), str(tls["key"]))
        self.client.connect("127.0.0.1", port)
        self.client.subscribe([(topic, 1) for topic in topics])
        self.client.loop_start()
        assert ready.wait(PATIENCE)

    def published(self, _client: paho.Client, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        self.codes[mid] = reason.value

    def try_to(self, topic: str, payload: bytes = b"{}") -> int:
        """Publish, and return the reason code of the PUBACK: 0 taken, 16 nobody listens, 135 not authorised."""
        info = self.client.publish(topic, payload, 1)
        info.wait_for_publish(PATIENCE)
        wait_until(lambda: info.mid in self.codes)
        return self.codes[info.mid]

    @staticmethod
    def hasten(_client: paho.Client, _data: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hear(self, tail: str) -> paho.MQTTMessage:
        """The next message whose topic ends in `tail`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self.heard.get(timeout=max(0.0, deadline - time.monotonic()))
            if message.topic.endswith(tail):
                return message

    def hear_json(self, tail: str) -> dict[str, Any]:
        document = json.loads(self.hear(tail).payload)
        assert isinstance(document, dict)
        return document

    def order(self, payload: bytes, topic: str = f"{BASE}/cmd", **properties: object) -> None:
        chosen = None
        if properties:
            chosen = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for key, value in properties.items():
                setattr(chosen, key, value)
        self.client.publish(topic, payload, 1, properties=chosen).wait_for_publish(PATIENCE)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
