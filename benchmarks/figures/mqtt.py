"""What a command over the broker costs: the real updater against a bare echo, asked in turn by the same client.

This file knows three figures. The updater is the whole process as systemd starts it; the echo is paho alone in another
process, with the same size of answer. Quality of service 1 and no delayed packets on every link. One client asks both,
in windows that alternate, so that drift of the machine falls on both.
"""

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import paho.mqtt.client as paho
from benchmarks.broker import Broker
from benchmarks.measure import Figure, Group, Measured, median, quantile
from benchmarks.stand import Stand, own_environment
from paho.mqtt.enums import CallbackAPIVersion

_ROOT: Final = Path(__file__).resolve().parents[2]
_WINDOWS: Final = 20
_ASKED: Final = 100  # in each window
_HOLDS: Final = 200


class Asker:
    """Sends one command at a time and waits for its answer; it drives the library itself, without a second thread."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
        self._heard: list[bytes] = []
        self._ready = False
        self._client.on_socket_open = self._hasten
        self._client.on_message = lambda _client, _data, message: self._heard.append(bytes(message.payload))
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: setattr(self, "_ready", True)
        self._client.connect("127.0.0.1", port)
        self._selector = selectors.DefaultSelector()
        sock: Any = self._client.socket()
        self._selector.register(sock, selectors.EVENT_READ)
        self._until(lambda: self._ready, 20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._selector.close()

    @staticmethod
    def _hasten(_client: paho.Client, _data: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connected(self, client: paho.Client, _data: object, _flags: Any, _reason: Any, _properties: Any) -> None:
        client.subscribe([("bench/+/reply", 1), ("modelagent/+/reply", 1)])

    def ask(self, topic: str, document: dict[str, Any], limit: float = 20.0) -> tuple[float, bytes]:
        """Seconds until the answer, and the answer; TimeoutError after `limit` seconds."""
        wanted = json.dumps(document["id"]).encode()
        self._heard.clear()
        begun = time.perf_counter()
        self._client.publish(topic, json.dumps(document), 1)
        self._until(lambda: any(wanted in payload for payload in self._heard), limit)
        return time.perf_counter() - begun, next(payload for payload in self._heard if wanted in payload)

    def first(self, topic: str) -> bytes:
        """The first answer of a process that is starting: nothing waits for it yet, so the question is repeated."""
        for attempt in range(40):
            try:
                return self.ask(topic, {"id": f"first-{topic[0]}-{attempt}", "verb": "status"}, 0.5)[1]
            except TimeoutError:
                continue
        raise TimeoutError(f"nobody answers on {topic} within 20 s")

    def _until(self, true: Callable[[], bool], limit: float) -> None:
        deadline = time.monotonic() + limit
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {limit:g} s")
            if self._client.want_write():
                self._client.loop_write()
            if self._selector.select(0.1):
                self._client.loop_read()
            self._client.loop_misc()


def round_trips(folder: Path) -> dict[str, Measured]:
    """`mqtt.rtt_ratio`, `mqtt.rtt_p99_ms` and `mqtt.command_rtt_ms`."""
    with Broker(folder / "mqtt-broker") as broker, Stand(folder / "mqtt") as stand:
        stand.configure(
            {"digits": {}},
            mqtt={"host": "127.0.0.1", "port": broker.port},
            repository={"root": str(stand.folder / "root.json")},
        )
        stand.start("updater")
        with Asker(broker.port) as asker:
            size = len(asker.first("modelagent/bench/cmd"))
            echo = subprocess.Popen(
                [sys.executable, str(_ROOT / "benchmarks/echo.py"), str(broker.port), str(size)], env=own_environment()
            )
            try:
                asker.first("bench/echo/cmd")
                return _compare(asker, size)
            finally:
                echo.kill()
                echo.wait()


def _compare(asker: Asker, size: int) -> dict[str, Measured]:
    ratios, ours, bare = [], [], []
    for window in range(_WINDOWS + 1):
        times = {
            topic: [asker.ask(topic, {"id": f"{topic[0]}-{window}-{n}", "verb": "status"})[0] for n in range(_ASKED)]
            for topic in ("bench/echo/cmd", "modelagent/bench/cmd")
        }
        if window:  # the first one warms both up
            bare += times["bench/echo/cmd"]
            ours += times["modelagent/bench/cmd"]
            ratios.append(median(times["modelagent/bench/cmd"]) / median(times["bench/echo/cmd"]))
    holds = [asker.ask("modelagent/bench/cmd", {"id": f"hold-{n}", "verb": "hold"})[0] for n in range(_HOLDS)]
    how = (
        f"verb status, {len(ours)} round trips, answer of {size} bytes: median {median(ours) * 1e3:.2f} ms,"
        f" bare echo {median(bare) * 1e3:.2f} ms"
    )
    return {
        "mqtt.rtt_ratio": Measured(median(ratios), f"{how}; median of {_WINDOWS} pairs of windows"),
        "mqtt.rtt_p99_ms": Measured(
            quantile(ours, 0.99) * 1e3, f"{how}; bare echo p99 {quantile(bare, 0.99) * 1e3:.2f} ms"
        ),
        "mqtt.command_rtt_ms": Measured(
            median(holds) * 1e3,
            f"median of {_HOLDS}, verb hold: history and state durable before the answer;"
            f" p99 {quantile(holds, 0.99) * 1e3:.1f} ms",
        ),
    }


GROUPS: Final = (
    Group(
        (
            Figure("mqtt.rtt_ratio", "", "<= 2"),
            Figure("mqtt.rtt_p99_ms", "ms", "<= 5"),
            Figure("mqtt.command_rtt_ms", "ms", ""),
        ),
        round_trips,
    ),
)
