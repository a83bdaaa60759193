"""`make torture`: the whole campaign, its counts in build/torture.json and in docs/reliability.md.

    python tests/torture/campaign.py --seconds 60 --seed 7             # every stage
    python tests/torture/campaign.py --only kill,cut-xfs --sample 40   # some stages, a seeded sample of their points
    python tests/torture/campaign.py --only errors --limit 280         # five minutes of it; the same again goes on
    python tests/torture/campaign.py --again 'update: swap|models/digits/current|Activating|1|kill|free'

Stages: kill, errors, memory, cut-ext4, cut-xfs, planted (a missing fsync must be caught), hostile (links planted,
leftovers, a second updater), strace, random (seeded faults of all kinds for --seconds), loop (real inference under
chaos, a database that is full or rubbish), fuzz. A stage that this host cannot run is named with the reason. Exit
status 0 when nothing failed.
"""

import argparse
import contextlib
import fcntl
import functools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # processes are forked from this one: no threads before
ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from torture import crew, disks, fuzz, hostile, report, tracing  # noqa: E402 - the lines above make them importable
from torture.book import Book  # noqa: E402 - the same
from torture.device import ERRORS, MEMORY, PACES, Plan  # noqa: E402 - the same
from torture.disks import Disk  # noqa: E402 - the same
from torture.matrix import ELSEWHERE, Matrix, Outcome  # noqa: E402 - the same
from torture.mistakes import MISTAKES  # noqa: E402 - the same
from torture.world import CHAPTERS  # noqa: E402 - the same

RESULTS: Final = ROOT / "build" / "torture.json"
POINTED: Final = {  # stages that give every point a fault, the kinds of fault, and the file system that is lost
    "kill": (("kill",), ""),
    "errors": (tuple(ERRORS), ""),
    "memory": (MEMORY, ""),
    "cut-ext4": (("cut-1", "cut-2"), "ext4"),
    "cut-xfs": (("cut-1", "cut-2"), "xfs"),
}
STAGES: Final = (*POINTED, "planted", "hostile", "strace", "random", "loop", "fuzz")
NEVER: Final = "not reached in any try"
DATABASE: Final = "tests/torture/test_results_database.py"
Counts = dict[str, Any]


class Campaign:
    """What the stages share: the place, the seed, and how much of everything."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options = options
        self.place = place
        self.failures: list[str] = []

    def run(self, stage: str) -> Counts:
        """One stage; its counts. `not_run` is the reason why there are none."""
        begun = time.monotonic()
        before = len(self.failures)
        counts: Counts = self._points(stage) if stage in POINTED else getattr(self, f"_{stage}")()
        counts.setdefault("failures", len(self.failures) - before)
        counts["commit"] = commit()
        counts["seconds"] = round(time.monotonic() - begun, 1)
        return counts

    def fail(self, text: str) -> None:
        """Note a failure and say it at once."""
        self.failures.append(text)
        print(f"FAILED {text}", flush=True)

    # -- the matrix --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _matrix(self, kind: str = "", prepare: Callable[[], None] | None = None, lives: int = 2) -> Iterator[Matrix]:
        place = Path(tempfile.mkdtemp(dir=self.place))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, place)
            disk = stack.enter_context(Disk(kind, place)) if kind else None
            matrix = Matrix(place, disk, prepare)
            stack.callback(matrix.close)
            for outcome in matrix.enumerate(lives):
                if outcome.problems:
                    self.fail(f"{outcome}\n{outcome.output}")
            yield matrix

    def _points(self, stage: str) -> Counts:
        """Every point that undisturbed lives showed, in its turn; what an earlier call did is not done again."""
        kinds, disk = POINTED[stage]
        if disk and (why := disks.missing((disk,))):
            return {"not_run": why}
        options = self.options
        until = time.monotonic() + options.limit if options.limit else math.inf
        place = RESULTS.parent / "torture" if options.record else self.place
        head = {"commit": commit(), "seed": options.seed, "turns": options.turns, "sample": options.sample}
        book = Book(place / f"{stage}.jsonl", head)
        scratch = Path(tempfile.mkdtemp(dir=self.place))
        with self._matrix(disk, lives=4) as matrix:
            book.plan(self._keys(matrix, kinds, known=len(book.planned())))
        task = crew.Task(
            book,
            scratch,
            until,
            make=lambda: self._matrix(disk, lives=1),
            told=lambda text: print(f"FAILED {text}", flush=True),
        )
        crew.live(task, options.jobs)
        self.failures += (problems := [text for text in book.problems() if not text.endswith(NEVER)])
        for text in set(book.problems()) - set(problems):
            print(text, flush=True)
        return {**counted(book), "failures": len(problems), "turns": options.turns and len(kinds) > 1}

    def _keys(self, matrix: Matrix, kinds: tuple[str, ...], known: int) -> list[str]:
        """Plans as lines: each kind at each point, or where they take turns one kind at each."""
        plans = matrix.plans(*kinds)
        if not self.options.turns:
            plans = [(chapter, plan._replace(kind=kind)) for chapter, plan in plans for kind in kinds]
        keys = [f"{chapter.name}: {plan}" for chapter, plan in plans]
        if self.options.sample:
            number = max(0, min(self.options.sample - known, len(keys)))
            keys = random.Random(self.options.seed).sample(sorted(keys), number)
        return keys

    def again(self, text: str, times: int) -> None:
        """Live one plan, as a failure named it, some times."""
        kind = Plan.read(text.partition(": ")[2]).kind
        with self._matrix("ext4" if kind.startswith("cut-") else "", self._planted_mistake()) as matrix:
            for _ in range(times):
                done = crew.one(matrix, text, self.fail)
                print(f"{text}: {'; '.join(done.problems) or ('good' if done.fired else NEVER)}", flush=True)

    def _planted_mistake(self) -> Callable[[], None] | None:
        return MISTAKES[self.options.plant] if self.options.plant else None

    def _judge(self, outcome: Outcome) -> bool:
        if outcome.problems:
            again = f"again: --again '{outcome.chapter}: {outcome.plan}'"
            ends = ", ".join(outcome.ends) or "none"
            self.fail(f"{outcome} (processes ended: {ends}); {again}\n{outcome.output[-2000:]}")
        return not outcome.problems and outcome.fired

    # -- single questions --------------------------------------------------------------------------------------

    def _planted(self) -> Counts:
        """The same device, but files are not synced: the campaign must notice, or it proves nothing."""
        if why := disks.missing(("ext4",)):
            return {"not_run": why}
        with self._matrix("ext4", MISTAKES["fsync"]) as matrix:
            plans = [
                (chapter, plan._replace(kind="cut-1"))
                for chapter, plan in matrix.plans("cut-1")
                if chapter.name == "update" and plan.point.phase in {"Activating", "Probation"}
            ]
            caught = sum(bool(matrix.run(chapter, plan).problems) for chapter, plan in plans[:20])
        if not caught:
            self.fail("a missing fsync was planted and not one power cut showed it")
        return {"cycles": min(20, len(plans)), "caught": caught}

    def _hostile(self) -> Counts:
        with self._matrix() as matrix:
            told = {name: question(matrix) for name, question in hostile.QUESTIONS.items()}
        for name, problems in told.items():
            if problems:
                self.fail(f"{name}: {'; '.join(problems)}")
        return {"cycles": len(told), "survived": sum(not problems for problems in told.values())}

    def _strace(self) -> Counts:
        if shutil.which("strace") is None:
            return {"not_run": "strace is not installed"}
        with self._matrix() as matrix:
            found = tracing.trace(matrix, CHAPTERS)
        for problem in found.problems:
            self.fail(problem)
        return {"cycles": len(CHAPTERS), "calls": found.calls, "points_traced": found.points}

    def _random(self) -> Counts:
        """Faults of all kinds, in chapters, at points and in orders of threads drawn from the seed."""
        chance = random.Random(self.options.seed)
        kinds = ["kill", "kill", *ERRORS, *MEMORY]
        disk = "" if (missing := disks.missing(("ext4",))) else "ext4"
        if disk:
            kinds += ["cut-1", "cut-2", "cut-1", "cut-2"]
        else:
            print(f"random: no power is cut: {missing}")
        cycles = survived = 0
        with self._matrix(disk, self._planted_mistake()) as matrix:
            plans = matrix.steady_plans()  # only points that every life has: the same seed draws the same faults
            end = time.monotonic() + self.options.seconds
            while cycles < self.options.cycles if self.options.cycles else time.monotonic() < end:
                # By rank and not by place: a point more or less in this run's list must not move all that follow.
                draw = chance.random()
                chapter, point, most = min(plans, key=lambda p: zlib.crc32(f"{draw} {p[0].name} {p[1]}".encode()))
                kind, pace, late = chance.choice(kinds), chance.choice(PACES[:2]), chance.random()
                if kind != "kill" and point.place == ELSEWHERE:
                    continue
                cycles += 1
                survived += self._judge(matrix.run(chapter, Plan(point, 1 + int(late * late * most), kind, pace)))
        return {"cycles": cycles, "survived": survived, "seed": self.options.seed}

    def _loop(self) -> Counts:
        """Real inference, real workers: its own chaos, where every frame must end exactly once."""
        seconds = min(60, self.options.seconds)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-s", "tests/inference/test_chaos.py", DATABASE],
            cwd=ROOT,
            env={**os.environ, "CHAOS_SECONDS": str(seconds), "CHAOS_SEED": str(self.options.seed)},
            capture_output=True,
            text=True,
            check=False,
        )
        said = re.search(r"seed \d+: (\d+) frames", done.stdout)
        if done.returncode != 0 or said is None:
            self.fail(f"loop: {done.stdout[-2000:]}")
            return {"cycles": 1}
        return {"cycles": 1, "survived": 1, "frames": int(said[1]), "frames_lost": 0}

    def _fuzz(self) -> Counts:
        each = {}
        for name, parser in fuzz.PARSERS.items():
            tried, problem = fuzz.run(parser, self.options.inputs, self.options.seed)
            each[name] = tried
            if problem:
                self.fail(f"fuzz {name}: {problem}")
        return {"inputs": each}


def counted(book: Book) -> Counts:
    """A book's counts. A point counts as injected when all that was planned for it has struck."""
    done = {entry.key: entry for entry in book.done()}
    points: dict[tuple[str, ...], bool] = {}
    for key in book.planned():
        name, _, text = key.partition(": ")
        point = (name, *Plan.read(text).point)
        points[point] = points.get(point, True) and key in done and done[key].fired
    return {
        "points_seen": len(points),
        "points_injected": sum(points.values()),
        "cycles": len(done),
        "left": len(set(book.planned()) - set(done)),
        "survived": sum(entry.fired and not entry.problems for entry in done.values()),
    }


@functools.cache
def commit() -> str:
    """The commit that is tortured, with a + where the product was edited since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "src") else "")


def record(stage: str, counts: Counts) -> None:
    """Put a stage's counts with those that are kept, and the table into the page; several campaigns may run at once."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept: dict[str, Counts] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept[stage] = counts
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        report.rewrite(ROOT / "docs" / "reliability.md", kept)


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description="Torture the updater; see docs/reliability.md.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of random faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(STAGES), metavar="STAGE,...")
    parser.add_argument("--sample", type=int, default=0, help="so many plans of each stage; 0: all")
    parser.add_argument("--turns", action="store_true", help="one kind at each point, in turn, not each kind at each")
    parser.add_argument("--jobs", type=int, default=2, help="devices that are tortured at the same time")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds for a stage; with --record the rest is next")
    parser.add_argument("--cycles", type=int, default=0, help="of random faults, in place of --seconds")
    parser.add_argument("--again", metavar="PLAN", help="live this plan of a failure, and nothing else")
    parser.add_argument("--times", type=int, default=10, help="how often, with --again")
    parser.add_argument("--plant", choices=MISTAKES, help="a mistake that random faults have to find")
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each fuzzed parser")
    parser.add_argument("--record", action="store_true", help="write build/torture.json and docs/reliability.md")
    options = parser.parse_args()
    stages = options.only.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}")
    if os.geteuid() == 0:
        disks.keep_mounts_private()
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="mt-", dir=memory if os.access(memory, os.W_OK) else None))
    tempfile.tempdir = str(place)  # thousands of small files that are synced: not on a real disk
    results: dict[str, Counts] = {}
    try:
        campaign = Campaign(options, place)
        if options.again:
            campaign.again(options.again, options.times)
            stages = []
        for stage in stages:
            print(f"{stage} ...", flush=True)
            results[stage] = campaign.run(stage)
            print(f"{stage}: {json.dumps(results[stage])}", flush=True)
            if options.record:
                record(stage, results[stage])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if results:
        print(report.summary(results))
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
