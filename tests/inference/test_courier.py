"""Results over MQTT: kept while the broker is away, at least once, with ids; never in the way."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_rig import Broker, free_port, wait_until
from line_rig import Rig
from modelagent.errors import SourceError
from modelagent.inference.frames import SourceOptions
from modelagent.inference.frames.mqtt import MqttSource
from modelagent.inference.results import Row
from modelagent.inference.results import courier as courier_module
from modelagent.inference.results.courier import Courier
from modelagent.inference.results.mqtt import MqttSink
from modelagent.inputs.schema import Mqtt

TOPIC = "modelagent/box-17/result/digits"


class Listener:
    """Hears a topic, with a session that the broker keeps."""

    def __init__(self, port: int, topic: str) -> None:
        import paho.mqtt.client as paho  # noqa: PLC0415 - only the broker's tests need it
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        self.heard: list[dict[str, Any]] = []
        self.subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=True)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _c, _d, message: self.heard.append(json.loads(message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(lambda: self.subscribed)

    def _on_subscribe(self, *_: Any) -> None:
        self.subscribed = True

    def ids(self) -> list[str]:
        return [document["id"] for document in self.heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    one = Broker(tmp_path)
    yield one
    one.kill()


def row(number: int) -> Row:
    return Row(f"e-{number}", f"f-{number}", 1.0, "digits", "d", "1", 3, "three", 0.5, 9.0, "ok")


def test_without_a_broker_results_wait_on_disk_and_nobody_waits_for_them(tmp_path: Path) -> None:
    courier = Courier(Mqtt(host="127.0.0.1", port=free_port()), "c", tmp_path / "outbox", most=100)
    sink = MqttSink(courier, TOPIC)
    begun = time.monotonic()
    sink.write([row(number) for number in range(150)])
    assert time.monotonic() - begun < 2.0
    assert (courier.waiting, courier.lost) == (100, 50)
    wait_until(lambda: bool(courier.problem))
    courier.close(1.0)
    again = Courier(Mqtt(host="127.0.0.1", port=free_port()), "c", tmp_path / "outbox", most=100)
    assert (again.waiting, again.lost) == (100, 50)
    again.close(1.0)


@pytest.mark.parametrize(
    "says",
    [
        b"\x20\x02\x00\x00\x30\x01\x00",  # accepted; a message of one byte
        b"\x20\x02\x00\x01",  # another version of the protocol is wanted
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_broker_that_speaks_no_mqtt_ends_neither_courier_nor_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    monkeypatch.setattr(courier_module, "_BACK_OFF", (0.01, 0.05))
    stop, heard = threading.Event(), list[bytes]()

    def serve(server: socket.socket) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                sock, _ = server.accept()
                with sock:
                    sock.settimeout(5.0)
                    heard.append(sock.recv(4096))
                    sock.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        mqtt = Mqtt(host="127.0.0.1", port=server.getsockname()[1])
        courier = Courier(mqtt, "c", tmp_path / "outbox")
        try:
            wait_until(lambda: len(heard) >= 3)
            assert courier.problem
            source = MqttSource(SourceOptions(kind="mqtt", topic="part", mqtt=mqtt))
            with pytest.raises(SourceError, match="look at the broker"):
                source.run(lambda _frame: None, threading.Event())
        finally:
            courier.close(2.0)
            stop.set()
            thread.join(15.0)


@pytest.mark.broker
def test_what_waited_goes_when_the_broker_comes_and_over_its_restart(tmp_path: Path, broker: Broker) -> None:
    courier = Courier(Mqtt(host="127.0.0.1", port=broker.port), "c", tmp_path / "outbox")
    sink = MqttSink(courier, TOPIC)
    sink.write([row(number) for number in range(200)])
    wait_until(lambda: bool(courier.problem))
    broker.start()
    listener = Listener(broker.port, "modelagent/#")
    wait_until(lambda: courier.waiting == 0)
    wait_until(lambda: set(listener.ids()) >= {f"e-{number}" for number in range(200)} or courier.connected)
    sink.write([row(number) for number in range(200, 300)])
    wait_until(lambda: set(listener.ids()) >= {f"e-{number}" for number in range(200, 300)})
    listener.close()
    broker.kill()
    sink.write([row(number) for number in range(300, 320)])
    wait_until(lambda: not courier.connected)
    broker.start()
    listener = Listener(broker.port, "modelagent/#")
    wait_until(lambda: courier.waiting == 0)
    listener.close()
    courier.close(2.0)
    assert courier.lost == 0


@pytest.mark.broker
@pytest.mark.process
def test_the_line_sends_every_result_and_a_rules_message(tmp_path: Path, broker: Broker) -> None:
    broker.start()
    listener = Listener(broker.port, "#")
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans()[:50])
        rig.start(
            fps=100.0,
            loop=False,
            mqtt={"host": "127.0.0.1", "port": broker.port},
            mqtt_topic=TOPIC,
            rules=[{"name": "any", "min_score": 0.1, "topic": "line/3/eject"}],
        )
        rig.wait(lambda: rig.total("done") == 50)
        ids = {line["id"] for line in rig.lines()}
        rig.wait(lambda: {line["id"] for line in rig.lines()} <= set(listener.ids()) and len(rig.lines()) == 50)
        ids = {line["id"] for line in rig.lines()}
        assert ids <= set(listener.ids())
        fired = [document for document in listener.heard if document.get("rule") == "any"]
        assert fired
        assert fired[0]["result"]["id"] in ids
        rig.wait(lambda: rig.health()["rules"]["any"]["mqtt"]["done"] >= len(fired))
        rig.wait(lambda: rig.health()["broker"]["waiting"] == 0)
        assert rig.stop() == 0
    listener.close()
