"""docs/publish.md says what is so: its plan is a plan, and every command that it shows can be typed."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from modelagent.build import plans
from modelagent.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "publish.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    """Indented blocks, without their indentation."""
    found = re.findall(r"(?:^    .*\n(?:^\n(?=    ))?)+", TEXT, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def commands() -> list[str]:
    """Each command line of ours, without comments, placeholders and what follows `&&` or `>`."""
    lines = [line.strip().removeprefix("- ") for block in blocks() for line in block.splitlines()]
    found = []
    for line in lines:
        line = line.removeprefix("run: ")  # noqa: PLW2901 - the same line, tidied
        if line.startswith("modelagent "):
            parts = [part.strip() for part in re.split(r"&&|>", line.split("  #")[0])]
            found += [re.sub(r"--wave \.\.\.", "", part) for part in parts if part.startswith("modelagent ")]
    return found


def test_the_plan_on_the_page_is_a_plan() -> None:
    (text,) = [block for block in blocks() if block.startswith("# build.toml")]
    plan = plans.make(tomllib.loads(text))
    assert list(plan.all_variants()) == ["float32", "int8", "pruned-int8"]


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_a_command_on_the_page_can_be_typed(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        context = click.Context(found, parent=context, info_name=words[0])
        command, words = found, words[1:]
    command.make_context(command.name or "", words, parent=context.parent)
