"""`modelagent confirm` and `modelagent channel`: what arrives at the updater, and what is refused before."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import main
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.control import ControlServer

Heard = list[tuple[str, str]]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    (tmp_path / "modelagent.toml").write_text(f"[paths]\nrun_dir = '{tmp_path}'\n[models.digits]\n")
    requests: Heard = []

    def submit(request: Request, reply: Reply) -> None:
        requests.append((request.verb, request.argument))
        reply(answer(request.id, "accepted", "as you wish"))

    def view(_: Request) -> Mapping[str, Any]:
        raise AssertionError("nothing is asked")

    with ControlServer(tmp_path / "control.sock", Desk(submit=submit, view=view, now=lambda: 0.0)):
        yield requests


def call(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(directory / "modelagent.toml"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["confirm"], ("confirm", "")),
        (["confirm", "1.2.0"], ("confirm", "1.2.0")),
        (["channel", "beta"], ("set-channel", "beta")),
        (["channel", "--reset"], ("set-channel", "")),
    ],
)
def test_a_command_arrives_as_its_verb(
    tmp_path: Path, heard: Heard, arguments: list[str], sent: tuple[str, str]
) -> None:
    result = call(tmp_path, *arguments)
    assert result.exit_code == cli.OK, result.output
    assert heard == [sent]
    assert "as you wish" in result.stdout


@pytest.mark.parametrize("arguments", [["channel"], ["channel", "beta", "--reset"]])
def test_a_channel_is_either_named_or_reset(tmp_path: Path, heard: Heard, arguments: list[str]) -> None:
    assert call(tmp_path, *arguments).exit_code == cli.USAGE
    assert not heard
