"""A thousand devices in one process: real desks, outboxes and documents, on one epoll loop against one broker.

This file knows a simulated device and the loop that drives them all. What a real device does over its own thread and
connection (`inputs/mqtt.py`) is done here by one loop, because paho with a thread each ends at 340 a process.

    python benchmarks/fleet.py --devices 1000          # through a restart of the broker; prints what was lost

Every device has a persistent session, a retained status with a will, events that wait for their acknowledgement, and
answers each command once. The broker is restarted while events and commands are on their way.
"""

import argparse
import json
import random
import resource
import selectors
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import paho.mqtt.client as paho  # noqa: E402 - the line above makes the next ones importable
from benchmarks.broker import Broker  # noqa: E402
from paho.mqtt.enums import MQTTProtocolVersion  # noqa: E402

from modelagent.core.effects import Note  # noqa: E402
from modelagent.core.events import Instant  # noqa: E402
from modelagent.inputs import Reply  # noqa: E402
from modelagent.inputs.broker import make_client, open_connection  # noqa: E402
from modelagent.inputs.commands import Desk, Request, answer  # noqa: E402
from modelagent.inputs.config import Mqtt  # noqa: E402
from modelagent.inputs.outbox import Outbox  # noqa: E402
from modelagent.sinks.event import Events  # noqa: E402

KEPT_S: Final = 600
CALM_S: Final = 60.0  # the longest wait for everything to arrive


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: counts, and seconds."""

    devices: int  # connected, before and after the restart, and all their reports arrived
    events: int
    answers: int
    lost: int  # events and answers that never arrived
    twice: int  # commands that a device carried out more than once
    connect_s: float
    settle_s: float  # from the broker's return until nothing was owed
    memory_kb: float  # of this process, for each device


class Member:
    """One connection of the loop: a device, or the operator."""

    def __init__(self, loop: "Loop", name: str, port: int) -> None:
        self.loop = loop
        self.name = name
        self.settings = Mqtt(host="127.0.0.1", port=port, keepalive=60.0)
        self.client: paho.Client | None = None
        self.ready = False
        self.failures = 0

    def connect(self) -> None:
        """Connect anew; a failure is tried again after a jittered pause."""
        client = make_client(
            self.settings, f"fleet-{self.name}", MQTTProtocolVersion.MQTTv5, persistent=True, manual_ack=True
        )
        client.on_connect = lambda *_: self.connected(client)
        client.on_subscribe = lambda *_: self.subscribed()
        client.on_message = lambda _client, _data, message: self.arrived(client, message)
        client.on_publish = lambda _client, _data, number, _reason, _properties: self.published(number)
        client.will_set(f"modelagent/{self.name}/status", b'{"online":false}', 1, retain=True)
        try:
            open_connection(client, self.settings, session_s=KEPT_S)
        except OSError:
            self.failures += 1
            self.loop.later(min(5.0, 0.2 * 2.0**self.failures) * random.uniform(0.5, 1.5), self.connect)
            return
        self.client = client
        self.loop.add(self)

    def lost(self) -> None:
        """The connection has ended."""
        self.client, self.ready = None, False
        self.loop.later(random.uniform(0.2, 1.5), self.connect)

    def connected(self, client: paho.Client) -> None:
        """Subscribe."""

    def subscribed(self) -> None:
        """Ready."""
        self.ready, self.failures = True, 0

    def arrived(self, client: paho.Client, message: paho.MQTTMessage) -> None:
        """Take one message."""

    def published(self, number: int) -> None:
        """One of ours was acknowledged."""


class Device(Member):
    """A device with the real desk, outbox and event documents."""

    def __init__(self, loop: "Loop", name: str, port: int) -> None:
        super().__init__(loop, name, port)
        self.box = Outbox(None, most=1000, most_bytes=1_000_000)
        self.events = Events(name)
        self.done: Counter[str] = Counter()
        self.desk = Desk(submit=self.submit, view=lambda _: {}, now=time.time)
        self.flying: dict[int, tuple[int, tuple[paho.Client, int] | None]] = {}
        self.replies: list[tuple[bytes, tuple[paho.Client, int]]] = []

    def report(self, text: str) -> str:
        """Put one event into the outbox; its id."""
        note = Note("activated", text, version="1.1.0", phase="Probation")
        document = self.events.document("digits", Instant(time.time(), time.monotonic(), "boot"), note)
        self.box.put("event", json.dumps(document, separators=(",", ":")).encode())
        self.send()
        return str(document["id"])

    def submit(self, request: Request, reply: Reply) -> None:
        """What a driver does, at once."""
        self.done[request.id] += 1
        reply(answer(request.id, "done", "on hold: nothing new is activated; going back stays possible"))

    def connected(self, client: paho.Client) -> None:
        """Subscribe to what every device hears, and give back what was on its way."""
        self.box.give_back()
        self.flying.clear()
        self.replies.clear()  # their commands were not acknowledged, so they come again
        client.subscribe([(f"modelagent/{topic}/cmd", 1) for topic in (self.name, "group/lab", "all")])

    def subscribed(self) -> None:
        """Tell the status, and what waits."""
        super().subscribed()
        running = {"version": "1.1.0", "digest": "a" * 64}
        status = {"schema": 1, "device": self.name, "online": True, "models": {"digits": {"running": running}}}
        if self.client is not None:
            self.client.publish(f"modelagent/{self.name}/status", json.dumps(status), 1, retain=True)
        self.send()

    def arrived(self, client: paho.Client, message: paho.MQTTMessage) -> None:
        """A command: the desk's."""

        def reply(document: Mapping[str, Any]) -> None:
            self.replies.append((json.dumps(document).encode(), (client, message.mid)))

        self.desk.take(bytes(message.payload), origin="mqtt", limit=16384, reply=reply)
        self.send()

    def published(self, number: int) -> None:
        """An event is done, or a reply, and then its command too."""
        event, owed = self.flying.pop(number, (0, None))
        if event:
            self.box.done(event)
        if owed is not None and owed[0] is self.client:
            owed[0].ack(owed[1], 1)
        self.send()

    def send(self) -> None:
        """Up to twenty on their way, as a real device."""
        client = self.client
        while client is not None and self.ready and len(self.flying) < 20:
            if self.replies:
                payload, owed = self.replies.pop(0)
                self.flying[client.publish(f"modelagent/{self.name}/reply", payload, 1).mid] = (0, owed)
                continue
            entry = self.box.take()
            if entry is None:
                return
            number = client.publish(f"modelagent/{self.name}/{entry.tail}", entry.payload, 1).mid
            self.flying[number] = (entry.number, None)


class Operator(Member):
    """Hears everything, over a session that the broker keeps."""

    def __init__(self, loop: "Loop", port: int) -> None:
        super().__init__(loop, "operator", port)
        self.events: set[str] = set()
        self.answers: set[tuple[str, str]] = set()  # command, device
        self.waiting: list[bytes] = []

    def connected(self, client: paho.Client) -> None:
        """Events and answers."""
        client.subscribe([("modelagent/+/event", 1), ("modelagent/+/reply", 1)])

    def subscribed(self) -> None:
        """Send the commands that were given while the broker was away."""
        super().subscribed()
        waiting, self.waiting = self.waiting, []
        for payload in waiting:
            self.command(payload)

    def command(self, payload: bytes) -> None:
        """Command every device."""
        if self.client is None or not self.ready:
            self.waiting.append(payload)
        else:
            self.client.publish("modelagent/all/cmd", payload, 1)

    def arrived(self, client: paho.Client, message: paho.MQTTMessage) -> None:
        """Note what came, and only then acknowledge it."""
        document = json.loads(message.payload)
        if message.topic.endswith("/event"):
            self.events.add(document["id"])
        else:
            self.answers.add((document["id"], message.topic.split("/")[1]))
        client.ack(message.mid, 1)


class Loop:
    """One epoll for every connection, and a few timers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._keepalive = 0.0
        self.members: dict[int, Member] = {}

    def add(self, member: Member) -> None:
        """Serve this member's new connection."""
        sock: Any = member.client.socket() if member.client is not None else None
        self._selector.register(sock, selectors.EVENT_READ, member)
        self.members[sock.fileno()] = member

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, so much later."""
        self._timers.append((time.monotonic() + seconds, call))

    def until(self, true: Callable[[], bool], limit: float) -> bool:
        """Turn until it is true, at most `limit` seconds."""
        deadline = time.monotonic() + limit
        while not true():
            if time.monotonic() > deadline:
                return False
            self.turn()
        return True

    def turn(self) -> None:
        """Serve whoever is ready."""
        now = time.monotonic()
        due = [call for at, call in self._timers if at <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for call in due:
            call()
        for key, _ in self._selector.select(0.05):
            member: Member = key.data
            client = member.client
            if client is not None and client.loop_read() != paho.MQTT_ERR_SUCCESS:
                self._drop(key.fd, member)
        # What could not be written at once, and the keep-alive of all, once a second.
        pulse = now - self._keepalive >= 1.0
        for fd, member in list(self.members.items()):
            client = member.client
            gone = client is None
            if client is not None and client.want_write():
                gone = client.loop_write() != paho.MQTT_ERR_SUCCESS
            if client is not None and pulse and not gone:
                gone = client.loop_misc() != paho.MQTT_ERR_SUCCESS
            if gone:
                self._drop(fd, member)
        if pulse:
            self._keepalive = now

    def _drop(self, fd: int, member: Member) -> None:
        if self.members.pop(fd, None) is not None:
            self._selector.unregister(fd)
            member.lost()

    def close(self) -> None:
        """End every connection."""
        for member in self.members.values():
            if member.client is not None:
                member.client.disconnect()
        self._selector.close()


def play(devices: int, folder: Path) -> Outcome:
    """Connect them all, command them, restart the broker in the middle of everything, and count what arrived."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * devices + 200  # ours, and as many for the broker, which inherits the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    loop = Loop()
    with Broker(folder) as broker:
        operator = Operator(loop, broker.port)
        operator.connect()
        loop.until(lambda: operator.ready, 10.0)
        before, begun = _memory_kb(), time.monotonic()
        fleet = [Device(loop, f"box-{number:05d}", broker.port) for number in range(devices)]
        for place, device in enumerate(fleet):
            device.connect()
            if place % 50 == 49:
                loop.turn()
        loop.until(lambda: all(device.ready for device in fleet), CALM_S)
        first = {device.name for device in fleet if device.ready}
        connect_s, memory = time.monotonic() - begun, (_memory_kb() - before) / devices
        expected: set[str] = set()
        commands = [json.dumps({"id": f"hold-{n}", "verb": "hold"}).encode() for n in range(4)]
        for burst in range(4):
            operator.command(commands[burst])
            for device in fleet:
                expected |= {device.report(f"burst {burst}, {n}") for n in range(2)}
            if burst == 1:  # everything is on its way
                broker.stop()
                for _ in range(20):
                    loop.turn()
                broker.start()
                begun = time.monotonic()
            loop.turn()
        answers = {(f"hold-{n}", device.name) for n in range(4) for device in fleet}
        loop.until(lambda: expected <= operator.events and answers <= operator.answers, CALM_S)
        settle_s = time.monotonic() - begun
        missing = {event.rsplit("-", 1)[0] for event in expected - operator.events}
        missing |= {name for _, name in answers - operator.answers}
        whole = {device.name for device in fleet if device.ready} & first - missing
        loop.close()
        return Outcome(
            devices=len(whole),
            events=len(operator.events),
            answers=len(operator.answers),
            lost=len(expected - operator.events) + len(answers - operator.answers),
            twice=sum(count > 1 for device in fleet for count in device.done.values()),
            connect_s=connect_s,
            settle_s=settle_s,
            memory_kb=memory,
        )


def _memory_kb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1024


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description="A fleet of simulated devices against one broker.")
    parser.add_argument("--devices", type=int, default=1000)
    found = play(parser.parse_args().devices, ROOT / "build" / "fleet")
    print(found)
    return 1 if found.lost or found.twice else 0


if __name__ == "__main__":
    sys.exit(main())
