"""A thousand commands, repeated and replayed, a killed broker and device: each done at most once, each answered.

The machine, its journal, the desk, the ledger, the session and the broker are the real ones.
"""

import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_rig import BASE, Broker, Operator, wait_until
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk
from modelagent.inputs.config import Mqtt
from modelagent.inputs.ledger import Ledger
from modelagent.inputs.mqtt import Session
from steering_rig import Executor

pytestmark = [pytest.mark.broker, pytest.mark.process]
VERBS = (
    {"verb": "hold", "argument": "audit"},
    {"verb": "resume"},
    {"verb": "pin", "argument": "1.2.0"},
    {"verb": "unpin"},
    {"verb": "lift", "argument": "9.9.9"},  # refused: nothing of that name is blocked
    {"verb": "confirm"},  # refused: nothing is on probation
    {"verb": "set-channel", "argument": "beta"},
    {"verb": "set-channel"},
    {"verb": "block", "argument": "nonsense"},  # refused: not known
)


class CountingDesk(Desk):
    """Counts what is delivered to it and what it answers."""

    deliveries = 0
    answers = 0

    def take(self, data: bytes, *, reply: Reply, **more: Any) -> None:
        self.deliveries += 1

        def counted(document: Mapping[str, Any]) -> None:
            self.answers += 1
            reply(document)

        super().take(data, reply=counted, **more)


class Box:
    """One life of the device; what it leaves on disk the next one finds."""

    def __init__(self, directory: Path, port: int) -> None:
        self.executor = Executor("digits", directory)
        self.desk = CountingDesk(
            submit=self.executor.submit,
            view=self.executor.view,
            now=lambda: 0.0,
            ledger=Ledger(directory / "commands"),
        )
        self.session = Session(
            Mqtt(host="127.0.0.1", port=port),
            device="box-17",
            groups=(),
            desk=self.desk,
            draw=lambda: 0.0,
            keep=directory / "outbox",
        )
        self.executor.start()
        self.session.start()
        wait_until(lambda: self.session.state.connected)

    def end(self) -> None:
        self.session.stop()
        self.executor.stop()


def commands(first: int, unique: int, repeats: int, chance: random.Random) -> list[bytes]:
    """`unique` commands, then `repeats` of them put in at random places after the first."""
    lines = [
        json.dumps({"id": f"c-{n}", "model": "digits", **VERBS[chance.randrange(len(VERBS))]}).encode()
        for n in range(first, first + unique)
    ]
    for line in chance.choices(lines, k=repeats):
        lines.insert(chance.randint(lines.index(line) + 1, len(lines)), line)
    return lines


def send(operator: Operator, lines: list[bytes]) -> None:
    for line in lines:
        operator.client.publish(f"{BASE}/cmd", line, 1)


def hear(operator: Operator, number: int) -> list[dict[str, Any]]:
    return [operator.hear_json("/reply") for _ in range(number)]


def check_answers(replies: list[dict[str, Any]]) -> None:
    """All answers to one id are the same; at most one of them is not marked as a repeat's."""
    by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for reply in replies:
        by_id[reply["id"]].append(reply)
    for same in by_id.values():
        assert len({(reply["status"], reply["reason"]) for reply in same}) == 1, same


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, "allow_anonymous true", "persistence true", "max_queued_messages 0")
    broker.start()
    yield broker
    broker.kill()


def test_a_thousand_commands_with_repeats_a_killed_device_and_a_killed_broker(tmp_path: Path, broker: Broker) -> None:
    chance = random.Random(17)
    operator = Operator(broker.port)
    (tmp_path / "device").mkdir()
    box = Box(tmp_path / "device", broker.port)
    try:
        lines = commands(0, 600, 400, chance)
        send(operator, lines)
        first = hear(operator, 1000)
        assert Counter(reply["id"] for reply in first) == Counter(json.loads(line)["id"] for line in lines)
        assert sum(reply.get("duplicate", False) for reply in first) == 400
        assert box.executor.done == Counter(f"c-{n}" for n in range(600))
        assert {reply["status"] for reply in first} == {"accepted", "done", "refused"}
        assert (box.desk.deliveries, box.desk.answers) == (1000, 1000)
        check_answers(first)

        # The device dies and comes back; somebody replays the whole day, far more than the state remembers.
        box.end()
        box = Box(tmp_path / "device", broker.port)
        send(operator, lines)
        replayed = hear(operator, 1000)
        assert all(reply["duplicate"] for reply in replayed)
        assert box.executor.done == Counter()
        check_answers(first + replayed)

        # The broker is killed while commands are on their way: whatever it delivers, and however often.
        later = commands(600, 200, 100, chance)
        sender = threading.Thread(target=send, args=(operator, later))
        sender.start()
        seen = hear(operator, 60)
        broker.kill()
        sender.join()
        wait_until(lambda: not box.session.state.connected and not operator.client.is_connected())
        broker.start()
        wait_until(lambda: box.session.state.connected and operator.client.is_connected())
        operator.client.subscribe("#", 1)
        send(operator, later)  # the operator cannot know what was lost: it sends everything again
        while {reply["id"] for reply in seen} != {f"c-{n}" for n in range(600, 800)}:
            seen += hear(operator, 1)
        wait_until(lambda: box.session.state.queued == 0 and box.desk.answers == box.desk.deliveries)
        assert max(box.executor.done.values()) == 1
        assert set(box.executor.done) == {f"c-{n}" for n in range(600, 800)}
        check_answers(seen)
    finally:
        box.end()
        operator.close()
