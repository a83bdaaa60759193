"""The real updater with a real broker: every verb is answered, and everything it tells is what the schemas say."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from broker_rig import PATIENCE, Broker, Operator, wait_until
from modelagent.errors import AgentError
from modelagent.inputs.commands import VERBS, VIEWS, WATCH
from modelagent.inputs.control import ask, converse

pytestmark = [pytest.mark.broker, pytest.mark.process]
ARGUMENTS = {
    "pin": "1.2.0",
    "block": "0" * 64,
    "lift": "1.2.0",
    "confirm": "1.2.0",
    "set-channel": "beta",
    "install": "/none",
}


def check(name: str, document: dict[str, Any]) -> None:
    text = (resources.files("modelagent") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(text)).validate(document)


class Updater:
    """One updater's process on one device's directories; `start` it again after `kill`."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.config = directory / "modelagent.toml"
        paths = {key: directory / key for key in ("state_dir", "inference_dir", "run_dir", "inference_run_dir")}
        for path in paths.values():
            path.mkdir(parents=True)
        self.socket = paths["run_dir"] / "control.sock"
        self.config.write_text(
            "[device]\nid = 'box-17'\ngroups = ['lab']\n[models.digits]\n[paths]\n"
            + "".join(f"{key} = '{path}'\n" for key, path in paths.items())
            + f"[repository]\nroot = '{directory}/root.json'\n[mqtt]\nhost = '127.0.0.1'\nport = {port}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelagent", "--config", str(self.config), "run", "updater"],
                stdout=log,
                stderr=log,
                env=os.environ,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(ask(self.socket, {"id": "up", "verb": "status"}, 5)["status"] == "done")
        except AgentError:
            return False

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)
            self.process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, "allow_anonymous true", "persistence true")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def updater(tmp_path: Path, broker: Broker) -> Iterator[Updater]:
    updater = Updater(tmp_path / "device", broker.port)
    updater.start()
    yield updater
    updater.end(signal.SIGKILL)


def online(operator: Operator) -> dict[str, Any]:
    while not (status := operator.hear_json("/status"))["online"] or "models" not in status:
        pass
    return status


def test_every_verb_is_answered_twice_and_everything_told_is_described(broker: Broker, updater: Updater) -> None:
    operator = Operator(broker.port)
    try:
        check("status", online(operator))
        for verb in VERBS:
            request: dict[str, Any] = {"id": f"{verb}-1", "verb": verb, "model": "digits"}
            if verb in ARGUMENTS:
                request["argument"] = ARGUMENTS[verb]
            if verb == "label":
                request["labels"] = [{"id": "r-1", "label": 7}]
            check("command", request)
            said = []
            for _ in range(2):
                operator.order(json.dumps(request).encode())
                said.append(operator.hear_json("/reply"))
                check("reply", said[-1])
            assert said[0]["status"] in ("accepted", "done", "refused")
            if verb not in (*VIEWS, WATCH):
                assert said[1] == {**said[0], "duplicate": True}, verb
        operator.order(b'{"id":"event","verb":"hold","argument":"audit"}')
        while (event := operator.hear_json("/event"))["kind"] != "held":
            check("event", event)
        check("event", event)
    finally:
        operator.close()


def test_the_updater_says_goodbye_and_its_status_stays_readable(broker: Broker, updater: Updater) -> None:
    operator = Operator(broker.port)
    try:
        online(operator)
        updater.end(signal.SIGTERM)
        while (status := operator.hear_json("/status"))["online"]:
            pass
        check("status", status)
        assert status["models"]["digits"]["phase"] == "Idle"
    finally:
        operator.close()


def test_events_survive_a_killed_updater_while_the_broker_is_away(broker: Broker, updater: Updater) -> None:
    broker.kill()
    held = [f"offline-{n}" for n in range(20)]
    for name in held:
        ask(updater.socket, {"id": name, "verb": "hold", "model": "digits", "argument": name}, PATIENCE)
    updater.end(signal.SIGKILL)
    broker.start()
    operator = Operator(broker.port)
    try:
        updater.start()
        told: list[str] = []
        while len(told) < len(held):
            event = operator.hear_json("/event")
            if event["kind"] == "held":
                told.append(event["text"])
        assert [text.rsplit(" ", 1)[-1] for text in told] == held
        wait_until(lambda: ask(updater.socket, {"id": "q", "verb": "status"}, 5)["result"]["broker"]["queued"] == 0)
        updater.end(signal.SIGKILL)
        updater.start()
        operator.order(b'{"id":"after","verb":"hold","argument":"after"}')
        while (event := operator.hear_json("/event"))["kind"] != "held":
            pass
        assert event["text"].endswith("after"), "what was acknowledged does not come again"
    finally:
        operator.close()


def test_a_command_is_not_done_again_after_a_kill_however_many_came_between(broker: Broker, updater: Updater) -> None:
    for n in range(400):  # more than the state remembers
        ask(updater.socket, {"id": f"c-{n}", "verb": "resume", "model": "digits"}, PATIENCE)
    updater.end(signal.SIGKILL)
    updater.start()
    for n in (0, 1, 399):
        assert ask(updater.socket, {"id": f"c-{n}", "verb": "resume", "model": "digits"}, PATIENCE)["duplicate"]


def test_a_watcher_hears_events_and_the_status(broker: Broker, updater: Updater) -> None:
    news = converse(updater.socket, {"id": "w", "verb": "watch"}, PATIENCE)
    assert next(news)["result"]["status"]["models"]["digits"]["phase"] == "Idle"
    ask(updater.socket, {"id": "h", "verb": "hold", "argument": "audit"}, PATIENCE)
    while "held" not in json.dumps(found := next(news)["result"]):
        pass
    check("event", found["event"])
    news.close()
