"""The MQTT source: a message that is larger than a frame may be."""

import threading
from pathlib import Path

import pytest
from paho.mqtt import publish

from broker_rig import Broker, wait_until
from modelagent.errors import SourceError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames.mqtt import MqttSource
from modelagent.inputs.schema import Mqtt

pytestmark = pytest.mark.broker


def test_a_giant_is_sent_away_while_it_comes_and_the_next_frame_is_taken(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.start()
    mqtt = Mqtt(host="127.0.0.1", port=broker.port)
    source = MqttSource(SourceOptions(kind="mqtt", topic="part", mqtt=mqtt, client="frames", max_bytes=1 << 20))
    frames: list[Frame] = []
    lost: list[Frame] = []
    errors: list[SourceError] = []
    source.lose = lost.append
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                source.run(frames.append, stop)
            except SourceError as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: bool(vars(source)["_ready"]))
        publish.single("part", bytes(128 << 20), qos=1, hostname="127.0.0.1", port=broker.port)
        wait_until(lambda: bool(errors))
        assert "a message of 1342177" in errors[0].message
        assert source.counts == {"unreadable": 1}
        assert len(lost) == 1
        wait_until(lambda: bool(vars(source)["_ready"]))
        publish.single("part", b"[[1, 2]]", qos=1, hostname="127.0.0.1", port=broker.port)
        wait_until(lambda: bool(frames))
        assert frames[0].id != lost[0].id
    finally:
        stop.set()
        thread.join(15.0)
        broker.kill()
