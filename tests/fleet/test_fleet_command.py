"""`modelagent fleet` with a real broker and real sessions: the table, its filters, commands and their answers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker_rig import PATIENCE, Broker, FleetBroker, Operator, wait_until
from modelagent import cli
from modelagent.cli import main
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.config import Mqtt
from modelagent.inputs.mqtt import Session

pytestmark = pytest.mark.broker


def entry(version: str, phase: str = "Idle", **more: object) -> dict[str, Any]:
    running = {"version": version, "digest": "a" * 64}
    known: dict[str, Any] = {
        "running": running,
        "phase": phase,
        "reason": "",
        "candidate": None,
        "blocks": [],
        "alarms": [],
    }
    return known | {"health": ""} | more


class Box:
    """One device of the fleet: the real session and desk, and a driver that answers by script."""

    def __init__(self, port: int, name: str, groups: tuple[str, ...], **models: dict[str, Any]) -> None:
        self.taken: list[Request] = []
        self.says: tuple[str, str] | None = ("done", "")
        self.session = Session(
            Mqtt(host="127.0.0.1", port=port),
            device=name,
            groups=groups,
            desk=Desk(submit=self.submit, view=lambda _: {"phase": "Idle"}, now=lambda: 0.0),
            draw=lambda: 0.0,
        )
        self.session.set_status({"version": "0.1.0", "settings_problem": "", "models": models})
        self.session.start()

    def submit(self, request: Request, reply: Reply) -> None:
        self.taken.append(request)
        if self.says is not None:
            reply(answer(request.id, *self.says))


Fleet = Mapping[str, Box]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def boxes(broker: Broker) -> Iterator[Fleet]:
    made = {
        "box-17": Box(broker.port, "box-17", ("lab",), digits=entry("1.1.0")),
        "box-18": Box(
            broker.port, "box-18", ("lab", "north"), digits=entry("1.2.0", "Probation", reason="on probation")
        ),
        "cam-1": Box(
            broker.port, "cam-1", (), digits=entry("1.1.0"), gauge=entry("2.0.0", alarms=["drift: \x1b[31m!"])
        ),
    }
    for box in made.values():
        wait_until(lambda box=box: box.session.state.connected and box.session.state.queued == 0)  # type: ignore[misc]
    yield made
    for box in made.values():
        box.session.stop()


def call(broker: Broker, *arguments: str, before: tuple[str, ...] = ()) -> Result:
    where = ["--host", "127.0.0.1", "--port", str(broker.port)]
    return CliRunner().invoke(main, ["--config", "/nonexistent/x.toml", "fleet", *where, *before, *arguments])


def names(result: Result) -> list[str]:
    return [device["device"] for device in json.loads(result.stdout)["devices"]]


# ---- the table ---------------------------------------------------------------------------------------------------


def test_a_line_for_each_model_of_each_device(broker: Broker, boxes: Fleet) -> None:
    result = call(broker)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["device", "is", "model", "version", "phase", "reason", "age"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["box-17", "online", "digits", "1.1.0", "Idle"],
        ["box-18", "online", "digits", "1.2.0", "Probation"],
        ["cam-1", "online", "digits", "1.1.0", "Idle"],
        ["cam-1", "online", "gauge", "2.0.0", "Idle"],
    ]
    assert "on probation" in lines[2]
    assert lines[1].split()[-1] == "s"
    assert "\x1b" not in result.stdout, "what a device tells does not command the terminal"
    assert result.exit_code == cli.FAILED, "cam-1 raises an alarm"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--group", "lab"], ["box-17", "box-18"]),
        (["--group", "north", "--phase", "probation"], ["box-18"]),
        (["--device", "box-*"], ["box-17", "box-18"]),
        (["--version", "1.1.0"], ["box-17", "cam-1"]),
        (["--model", "gauge"], ["cam-1"]),
        (["--unwell"], ["cam-1"]),
        (["--offline"], []),
        (["--online"], ["box-17", "box-18", "cam-1"]),
    ],
)
def test_filters(broker: Broker, boxes: Fleet, options: list[str], found: list[str]) -> None:
    assert names(call(broker, "--json", *options)) == found


def test_a_device_that_is_gone_is_shown_as_it_was(broker: Broker, boxes: Fleet) -> None:
    boxes["box-18"].session.stop()
    result = call(broker, "--device", "box-*")
    assert result.exit_code == cli.FAILED
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("box-18")]
    assert line.split()[:4] == ["box-18", "offline", "digits", "1.2.0"]
    boxes["box-17"].session.set_status({"models": {"digits": entry("1.1.0")}})
    assert call(broker, "--group", "lab", "--online").exit_code == cli.OK


def test_the_will_tells_what_ran_when_the_connection_was_made(broker: Broker, boxes: Fleet) -> None:
    taker = Operator(broker.port)
    # Another client of the same id: the broker throws the device out without goodbye and publishes its will.
    done = subprocess.run(
        ["mosquitto_pub", "-V", "5", "-i", "modelagent-box-17", "-h", "127.0.0.1", "-p", str(broker.port),
         "-t", "x", "-m", "x"],
        check=True, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0
    while (status := taker.hear_json("box-17/status"))["online"]:
        pass
    assert status["models"]["digits"]["running"]["version"] == "1.1.0"
    taker.close()


def test_a_removed_device_and_nonsense_on_a_status_topic(broker: Broker, boxes: Fleet) -> None:
    operator = Operator(broker.port)
    for topic, payload in (("a/status", b"{"), ("b/status", b"[1]"), ("c/status", b'{"online":1,"models":{"m":7}}')):
        operator.client.publish(f"modelagent/{topic}", payload, 1, retain=True).wait_for_publish(PATIENCE)
    boxes["box-17"].session.stop()
    operator.client.publish("modelagent/box-17/status", b"", 1, retain=True).wait_for_publish(PATIENCE)
    operator.close()
    result = call(broker)
    assert result.exit_code == cli.FAILED
    assert "its status is no JSON" in result.stdout
    assert not [line for line in result.stdout.splitlines() if line.startswith("box-17")]
    assert [line for line in result.stdout.splitlines() if line.startswith("c ")]


def test_no_broker_is_said_with_the_remedy(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "none.toml"), "fleet"])
    assert result.exit_code == cli.USAGE
    assert "--host" in result.stderr
    result = CliRunner().invoke(
        main, ["--config", str(tmp_path / "none.toml"), "fleet", "--host", "127.0.0.1", "--port", "1"]
    )
    assert result.exit_code == cli.FAILED
    assert "127.0.0.1:1" in result.stderr


@pytest.mark.process
def test_watch_tells_each_change_as_a_line(broker: Broker, boxes: Fleet, tmp_path: Path) -> None:
    config = tmp_path / "m.toml"
    config.write_text(f"[mqtt]\nhost = '127.0.0.1'\nport = {broker.port}\n")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "modelagent", "--config", str(config), "fleet", "--watch", "--json"],
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    assert process.stdout is not None
    try:
        first = {json.loads(process.stdout.readline())["device"] for _ in range(3)}
        assert first == set(boxes)
        boxes["box-17"].session.set_status({"models": {"digits": entry("1.3.0", "Probation")}})
        changed = json.loads(process.stdout.readline())
        assert (changed["device"], changed["models"]["digits"]["running"]["version"]) == ("box-17", "1.3.0")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- commands ----------------------------------------------------------------------------------------------------


def test_one_device_answers(broker: Broker, boxes: Fleet) -> None:
    result = call(broker, "command", "--device", "box-17", "pin", "1.2.0", "--id", "p-1")
    assert result.exit_code == cli.OK, result.output
    assert result.stdout.splitlines()[-1] == "p-1: 1 done"
    assert [(r.id, r.verb, r.argument) for r in boxes["box-17"].taken] == [("p-1", "pin", "1.2.0")]
    assert not boxes["box-18"].taken


def test_a_group_and_all(broker: Broker, boxes: Fleet) -> None:
    boxes["box-18"].says = ("refused", "1.2.0 is blocked")
    result = call(broker, "command", "--group", "lab", "hold", "audit", "--json")
    assert result.exit_code == cli.REFUSED
    answers = json.loads(result.stdout)["answers"]
    assert {name: said["status"] for name, said in answers.items()} == {"box-17": "done", "box-18": "refused"}
    boxes["box-18"].says = ("accepted", "")
    assert call(broker, "command", "--all", "check", "--yes").exit_code == cli.OK
    assert [box.taken[-1].verb for box in boxes.values()] == ["check"] * 3


def test_the_silent_and_the_offline_are_told_apart(broker: Broker, boxes: Fleet) -> None:
    boxes["box-17"].says = None
    boxes["cam-1"].session.stop()
    result = call(broker, "command", "--all", "hold", "--time-limit", "1s", "--json")
    assert result.exit_code == cli.UNREACHABLE
    document = json.loads(result.stdout)
    assert (list(document["answers"]), document["silent"], document["offline"]) == (["box-18"], ["box-17"], ["cam-1"])


def test_sent_again_with_the_same_id_it_is_not_done_again(broker: Broker, boxes: Fleet) -> None:
    for _ in range(2):
        result = call(broker, "command", "--device", "box-17", "hold", "--id", "h-1")
    assert "as answered before" in result.stdout
    assert len(boxes["box-17"].taken) == 1


def test_a_question_brings_its_results(broker: Broker, boxes: Fleet) -> None:
    document = json.loads(call(broker, "command", "--all", "status", "--json").stdout)
    assert {said["result"]["phase"] for said in document["answers"].values()} == {"Idle"}
    assert len(document["answers"]) == 3


@pytest.mark.parametrize(
    "arguments",
    [["hold"], ["--all", "--group", "lab", "hold"], ["--all", "explode"], ["--all", "hold", "--time-limit", "soon"]],
)
def test_a_wrong_command_line_sends_nothing(broker: Broker, boxes: Fleet, arguments: list[str]) -> None:
    assert call(broker, "command", *arguments).exit_code == cli.USAGE
    assert not any(box.taken for box in boxes.values())


def test_a_viewer_sees_and_may_not_command(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    broker = FleetBroker(tmp_path / "tls", "viewer", "operator")
    broker.start()
    try:
        paths = broker.tls("viewer")
        who = ("--ca", str(paths["ca"]), "--cert", str(paths["cert"]), "--key", str(paths["key"]))
        result = call(broker, before=who)
        assert result.exit_code == cli.OK, result.output
        result = call(broker, "command", "--device", "box-17", "hold", before=who)
        assert result.exit_code == cli.USAGE
        assert "rules do not let you write" in result.stderr
    finally:
        broker.kill()


def test_many_devices_are_all_collected(broker: Broker) -> None:
    operator = Operator(broker.port)
    for n in range(500):
        status = json.dumps({"online": True, "models": {"digits": entry("1.1.0")}}).encode()
        operator.client.publish(f"modelagent/d-{n:03d}/status", status, 1, retain=True)
    operator.client.publish("modelagent/d-500/status", b"{}", 1, retain=True).wait_for_publish(PATIENCE)
    operator.close()
    assert len(names(call(broker, "--json", "--online"))) == 500
    assert threading.active_count() < 10
