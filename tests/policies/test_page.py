"""docs/policies.md: its settings are settings, its trace is a trace, its table is the code's."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from modelagent.cli.repo import wave_of
from modelagent.inputs.config import Conditions, parse
from modelagent.policies.standard import SOFT
from modelagent.updater.simulation import simulate
from modelagent.updater.traces import _WORLD, FACTS
from modelagent.updater.traces import parse as parse_trace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?m)((?:^    .*\n)+)", PAGE)]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.startswith("[")])
def test_settings(block: str) -> None:
    parse(tomllib.loads(block), Path("page"))


def test_the_trace() -> None:
    (block,) = (block for block in BLOCKS if block.startswith("{"))
    trace = parse_trace(block)
    outcome = simulate(parse({}, Path("page")), trace)
    assert outcome.activations == 1
    for word in FACTS | _WORLD:
        assert f"`{word}`" in PAGE


def test_the_table() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ") and "gives way" not in line]
    assert {row[0].strip() for row in rows if row[3].strip() == "if asked"} == set(SOFT)
    for row in rows:
        for setting in re.findall(r"`([a-z0-9_]+)`", row[1]):
            assert setting in Conditions.model_fields or setting in ("daily_mb", "disk_reserve_mb")


def test_waves_as_typed() -> None:
    waves = [wave_of(text) for text in re.findall(r"--wave (\S+)", PAGE)]
    assert [wave.groups for wave in waves] == [("lab",), (), ()]


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "traces").glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_example_traces(file: Path) -> None:
    assert parse_trace(file.read_text(encoding="utf-8")).changes
