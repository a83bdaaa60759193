"""docs/mqtt.md: its tables are the code's, and its lines work when pasted, without and with certificates."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from broker_rig import PATIENCE, SHIPPED, Broker, FleetBroker, wait_until
from modelagent.cli import main
from modelagent.inputs import Reply
from modelagent.inputs.commands import VERBS, Desk, Request, answer
from modelagent.inputs.config import Mqtt, Tls
from modelagent.inputs.mqtt import Session

PAGE = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")
FIRST, *LINES = [part.split("```")[0] for part in PAGE.split("```sh\n")[1:]]
COMMANDED = ["hold", "resume", "check", "set-channel", "confirm", "label"]


def test_every_verb_is_in_the_table_with_its_command() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|[^|]*\|[^|]*\| `(modelagent|systemctl) ([a-z ]+)`", PAGE, re.MULTILINE)
    assert {verb for verb, _, _ in rows} == set(VERBS)
    for _, program, words in rows:
        if program == "modelagent":
            command: click.Command = main
            for word in words.split():
                assert isinstance(command, click.Group)
                found = command.get_command(click.Context(command), word)
                assert found is not None, words
                command = found


def test_every_document_of_the_page_is_json_and_every_file_is_there() -> None:
    for block in PAGE.split("```json\n")[1:]:
        json.loads(block.split("```")[0])
    for link in re.findall(r"\]\((\.\./[^)]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / link).is_file()
    for name in ("modelagent.conf", "access", "make-certificates"):
        assert f"`{name}`" in PAGE
        assert (SHIPPED / name).is_file()


@pytest.fixture(params=["plain", "certificates"])
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Broker]:
    made = Broker(tmp_path) if request.param == "plain" else FleetBroker(tmp_path, "box-17", "operator")
    made.start()
    yield made
    made.kill()


@pytest.mark.broker
def test_every_line_works_when_pasted(broker: Broker, tmp_path: Path) -> None:
    done: list[str] = []

    def submit(request: Request, reply: Reply) -> None:
        done.append(request.verb)
        reply(answer(request.id, "done"))

    def view(_: Request) -> Mapping[str, Any]:
        return {"phase": "Idle"}

    config, tls = tmp_path / "config", Tls()
    config.mkdir()
    if isinstance(broker, FleetBroker):
        tls, mine = Tls(**broker.tls("box-17")), broker.tls("operator")  # type: ignore[arg-type]
        for client in ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr"):
            (config / client).write_text(f"--cafile {mine['ca']}\n--cert {mine['cert']}\n--key {mine['key']}\n")
    session = Session(
        Mqtt(host="127.0.0.1", port=broker.port, tls=tls),
        device="box-17",
        groups=("lab",),
        desk=Desk(submit=submit, view=view, now=lambda: 0.0),
        draw=lambda: 0.0,
    )
    session.set_status({"phase": "Idle"})
    session.start()
    try:
        wait_until(lambda: session.state.connected and session.state.queued == 0)
        assert FIRST.strip() == "BROKER=localhost PORT=1883 DEVICE=box-17 ME=operator"
        for block in LINES:
            said = subprocess.run(
                ["sh", "-eu", "-c", f"BROKER=127.0.0.1 PORT={broker.port} DEVICE=box-17 ME=operator\n{block}"],
                check=True,
                capture_output=True,
                timeout=PATIENCE,
                env={**os.environ, "XDG_CONFIG_HOME": str(config)},
            ).stdout
            if "mosquitto_rr" in block:
                assert json.loads(said)["status"] == "done", block
            elif "mosquitto_sub" in block:
                assert json.loads(said[said.index(b"{") :])["online"], block
        wait_until(lambda: sorted(done) == sorted(COMMANDED))
        assert len(LINES) == 10
    finally:
        session.stop()
