"""A sample of the campaign as tests: minutes with `script/test --all`, single questions and small numbers otherwise."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelagent import durable
from torture import disks, hostile, report
from torture.book import Book, Done
from torture.device import Plan, Point, place_of
from torture.matrix import Matrix
from torture.tracing import judge, trace
from torture.world import CHAPTERS

CAMPAIGN = Path(__file__).with_name("campaign.py")
SEED = os.environ.get("TORTURE_SEED", "1")


def campaign(*words: str, code: int = 0) -> str:
    """Run it in a process of its own: it forks, and takes a view of mounts for itself."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--seed", SEED, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.torture
def test_a_seeded_sample_of_every_stage() -> None:
    assert not disks.missing(), disks.missing()
    said = campaign("--only", "kill,errors,memory,cut-ext4,cut-xfs,random,strace", "--sample", "30", "--seconds", "20")
    assert "not_run" not in said, said


@pytest.mark.torture
def test_power_cuts_find_a_missing_fsync() -> None:
    assert '"caught"' in campaign("--only", "planted")


@pytest.mark.torture
def test_a_failure_is_reproduced_by_its_plan() -> None:
    found = failures("--only", "random", "--cycles", "20", "--plant", "fsync")
    assert found, "a missing fsync was not found"
    # What the kernel has written by itself in the meantime is in no plan: not each cut shows it each time.
    again = (failures("--again", line.removeprefix("FAILED "), "--times", "6", "--plant", "fsync") for line in found)
    assert any(line in lines for line, lines in zip(found, again, strict=True)), found


def failures(*words: str) -> list[str]:
    """Chapter and plan of each; what was found may name a process."""
    said = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--seed", SEED, *words], capture_output=True, text=True, check=False
    ).stdout
    return [": ".join(line.split(": ")[:2]) for line in said.splitlines() if "FAILED" in line]


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


@pytest.mark.process
@pytest.mark.parametrize(
    ("place", "phase"),
    [("models/digits/fallback", "Idle"), ("models/digits/fallback", "Deferred"), ("commands/new.log", "Idle")],
)
def test_a_point_is_reached_in_the_phase_that_a_plan_names(matrix: Matrix, place: str, phase: str) -> None:
    """The first two are one write, of a hand that is quicker or slower than the machine."""
    operation = "append" if place.startswith("commands") else "swap"
    chapter = next(chapter for chapter in CHAPTERS if chapter.name == "edit" or operation == "append")
    outcome = matrix.run(chapter, Plan(Point(operation, place, phase), 1, "kill"))
    assert outcome.problems == [], outcome.output
    assert outcome.fired


@pytest.mark.process
@pytest.mark.parametrize("kind", ["memory", "starved"])
def test_without_memory(matrix: Matrix, kind: str) -> None:
    plans = [(c, p) for c, p in matrix.plans(kind) if c.name == "update" and p.point.operation in {"swap", "rename"}]
    outcome = matrix.run(*plans[len(plans) // 2])
    assert outcome.problems == [], outcome.output


@pytest.mark.process
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_each_change_has_its_point_and_each_point_its_change(matrix: Matrix) -> None:
    good = trace(matrix, (hostile.UPDATE,))
    assert good.problems == []
    assert good.calls > 50
    bad = trace(matrix, (hostile.UPDATE,), mistake="write")
    assert any("open" in problem and "/note" in problem for problem in bad.problems)
    assert any("write(" in problem for problem in bad.problems)


APPLIED = ['9 write(7</s/a.made>, "x"..., 9) = 9']  # of another process: the program that applies a delta
CHANGED = ["9 fchmod(7</s/a.made>, 0777) = 0"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["M/write/s/a", 'write(3</s/a>, "x"..., 9) = 9', 'write(3</s/a>, "x"..., 4) = 4'], ""),
        (["M/rename/s/a", 'rename("/s/.a", "/s/a") = 0'], ""),
        (["M/rename/s/a", 'rename("/s/.a", "/s/b") = 0'], "not announced"),
        (["M/unlink/s/a", 'unlink("/s/a") = -1 ENOENT (No such file)'], ""),
        (["M/unlink/s/a", 'unlink("/s/a") = 0', 'unlink("/s/a") = 0'], "not announced"),
        (["M/fsync/s/a"], "not done"),
        (["M/write/s/a", 'openat(AT_FDCWD</>, "/s/a", O_RDONLY) = 3</s/a>'], "not done"),
        (['mkdirat(4</s>, "b", 0777) = 0'], "not announced"),
        (['openat(AT_FDCWD</s>, "b", O_RDWR|O_CLOEXEC) = 4</s/b>'], "not announced"),
        (["ftruncate(3</s/a>, 0) = 0"], "not announced"),
        (['utimensat(AT_FDCWD</>, "/s/a", [], 0) = 0'], "not announced"),
        (["M/symlink/s/a", 'symlink("t", "/s/a") = 0', 'utimensat(AT_FDCWD</>, "/s/a", [], 0) = 0'], ""),
        (["M/create/s/a.made", 'openat(AT_FDCWD</s>, "a.made", O_WRONLY|O_CREAT) = 3', *APPLIED], ""),
        (["M/create/s/a.made", 'openat(AT_FDCWD</s>, "a.made", O_WRONLY|O_CREAT) = 3', *CHANGED], "not announced"),
        (APPLIED, "not announced"),
    ],
)
def test_the_judge_of_system_calls(lines: list[str], problem: str) -> None:
    told = [f'readlink("/torture-point/{line[2:]}", 0x7f, 4095) = -1 E' if line[0] == "M" else line for line in lines]
    other = ['8 write(5</s/c>, "x" <unfinished ...>', "8 <... write resumed>, 1) = 1"]
    before = ['8 readlink("/torture-point/write/s/c", 0x7f, 4095) = -1 ENOENT (No such file or directory)', other[0]]
    told = [line if line.startswith("9 ") else f"7 {line}" for line in told]
    found = judge("\n".join([*before, *told, other[1]]), "/s")
    assert any(problem in text for text in found.problems) if problem else not found.problems, found


def test_a_book_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "book"
    book = Book(path, {"commit": "a"})
    book.plan(["x: 1", "x: 2"])
    book.note(Done("x: 1", fired=True, problems=[]))
    book = Book(path, {"commit": "a"})
    book.plan(["x: 2", "x: 3"])
    assert book.left() == ["x: 2", "x: 3"]
    book.note(Done("x: 2", fired=False, problems=[]))
    book.note(Done("x: 3", fired=True, problems=["gone"]))
    assert book.problems() == ["x: 3: gone", "x: 2: not reached in any try"]
    assert book.left() == ["x: 2"], "what was not reached is tried again"
    assert Book(path, {"commit": "b"}).planned() == [], "another commit is another book"


def test_places_are_classes() -> None:
    digest = "0123456789abcdef" * 4
    assert place_of(f"/s/models/digits/slots/{digest}/model.tflite", "/s") == "models/digits/slots/*/model.tflite"
    assert place_of(f"/s/incoming/.{digest}.4711.tmp", "/s") == "incoming/.*.tmp"
    assert place_of("/s/tuf/root_history/12.root.json", "/s") == "tuf/root_history/#.root.json"
    assert place_of("/run/x", "/s") == "(elsewhere)"
    assert place_of(f"/s/incoming/{digest}.part", "/s", {digest}) == "incoming/(delta).part"


def test_every_way_of_a_model_file_is_lived(matrix: Matrix) -> None:
    """Made from a delta; in full; in full because the delta was no good."""

    def ways(chapter: str) -> tuple[bool, bool, bool]:
        places = {(point.operation, point.place) for point in matrix.points[chapter]}
        made, delta = ("fsync", "incoming/*.made"), ("rename", "incoming/(delta)")
        return delta in places, ("create", "incoming/*.made") in places, made in places

    assert ways("renewal") == (True, True, True)
    assert ways("update") == (False, False, False)
    assert ways("install") == (True, True, False)
    plans = [plan for chapter, plan in matrix.plans("kill") if chapter.name == "renewal"]
    assert sum(plan.point[:2] == ("unlink", "incoming/*.made") for plan in plans) > 1, "each of its repetitions"


def test_a_plan_can_be_written_down() -> None:
    plan = Plan(Point("swap", "models/digits/current", "Activating"), 2, "cut-1", "held")
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
