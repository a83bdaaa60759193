"""A sample of the campaign as tests: minutes with `script/test --all`, single questions and small numbers otherwise."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelagent import durable
from torture import disks, hostile, report
from torture.device import Plan, Point, place_of
from torture.matrix import Matrix

CAMPAIGN = Path(__file__).with_name("campaign.py")
SEED = os.environ.get("TORTURE_SEED", "1")


def campaign(*words: str) -> str:
    """Run it in a process of its own: it forks, and takes a view of mounts for itself."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--seed", SEED, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.torture
def test_a_seeded_sample_of_every_stage() -> None:
    assert not disks.missing(), disks.missing()
    said = campaign("--only", "kill,errors,cut-ext4,cut-xfs,random,strace", "--sample", "30", "--seconds", "20")
    assert "not_run" not in said, said


@pytest.mark.torture
def test_power_cuts_find_a_missing_fsync() -> None:
    assert '"caught"' in campaign("--only", "planted")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    found = Matrix(tmp_path_factory.mktemp("m"))
    assert [str(outcome) for outcome in found.enumerate(lives=1) if outcome.problems] == []
    yield found
    found.close()


@pytest.mark.process
@pytest.mark.parametrize("operation", ["swap", "rename", "append", "overwrite"])
def test_killed_at_some_points(matrix: Matrix, operation: str) -> None:
    fitting = [(c, p) for c, p in matrix.plans("kill") if p.point.operation == operation and c.name == "update"]
    outcome = matrix.run(*fitting[len(fitting) // 2])
    assert outcome.problems == [], outcome.output


@pytest.mark.process
@pytest.mark.parametrize("question", hostile.QUESTIONS)
def test_hostile_places(matrix: Matrix, question: str) -> None:
    assert hostile.QUESTIONS[question](matrix) == []


def test_places_are_classes() -> None:
    digest = "0123456789abcdef" * 4
    assert place_of(f"/s/models/digits/slots/{digest}/model.tflite", "/s") == "models/digits/slots/*/model.tflite"
    assert place_of(f"/s/incoming/.{digest}.4711.tmp", "/s") == "incoming/.*.tmp"
    assert place_of("/s/tuf/root_history/12.root.json", "/s") == "tuf/root_history/#.root.json"
    assert place_of("/run/x", "/s") == "(elsewhere)"


def test_a_plan_can_be_written_down() -> None:
    plan = Plan(Point("swap", "models/digits/current", "Activating"), 2, "cut-1")
    assert Plan.read(str(plan)) == plan


def test_the_sweep_takes_temporary_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in (".state.123.tmp", "a/.x.json.9.tmp"):
        (tmp_path / name).touch()
    for name in (".hidden", "x.123.tmp", "a/.notes.tmp"):
        (tmp_path / name).touch()
    durable.sweep(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", "a/.notes.tmp", "x.123.tmp"]


def test_the_report_replaces_what_stands_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    cut: dict[str, Any] = {"points_seen": 10, "points_injected": 9, "cycles": 10, "survived": 9, "failures": 0}
    results: dict[str, dict[str, Any]] = {"kill": cut, "cut-ext4": cut, "cut-xfs": {"not_run": "not root"}}
    report.rewrite(page, results)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 9 / 10 | 10 | 9 | 0 |" in text
    assert "not run: not root" in text
    found = report.totals(results)
    assert "cuts.total" not in found, "one file system is not both"
    assert found["points.covered_ratio"] == 0.9
    assert found["torture.cycles"] == 20
