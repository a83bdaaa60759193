"""`make torture`: the whole campaign, its counts in build/torture.json and in docs/reliability.md.

    python tests/torture/campaign.py --seconds 60 --seed 7             # every stage
    python tests/torture/campaign.py --only kill,cut-xfs --sample 40   # some stages, a seeded sample of their points

Stages: kill, errors, cut-ext4, cut-xfs, planted (a missing fsync must be caught), hostile (links planted, leftovers,
a second updater), strace, random (seeded faults of all kinds for --seconds), loop (real inference under chaos),
fuzz. A stage that this host cannot run is named with the reason. Exit status 0 when nothing failed.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # processes are forked from this one: no threads before
ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from torture import disks, fuzz, hostile, report  # noqa: E402 - the lines above make them importable
from torture.device import ERRORS, Plan  # noqa: E402 - the same
from torture.disks import Disk  # noqa: E402 - the same
from torture.matrix import Matrix, Outcome  # noqa: E402 - the same
from torture.world import Chapter  # noqa: E402 - the same

STAGES: Final = ("kill", "errors", "cut-ext4", "cut-xfs", "planted", "hostile", "strace", "random", "loop", "fuzz")
RESULTS: Final = ROOT / "build" / "torture.json"
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
        counts: Counts = getattr(self, f"_{stage.partition('-')[0]}")(stage)
        counts["failures"] = len(self.failures) - before
        counts["seconds"] = round(time.monotonic() - begun, 1)
        return counts

    def fail(self, text: str) -> None:
        """Note a failure and say it at once."""
        self.failures.append(text)
        print(f"FAILED {text}", flush=True)

    # -- the matrix --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _matrix(self, kind: str = "", prepare: Callable[[], None] | None = None) -> Iterator[Matrix]:
        place = Path(tempfile.mkdtemp(dir=self.place))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, place)
            disk = stack.enter_context(Disk(kind, place)) if kind else None
            matrix = Matrix(place, disk, prepare)
            stack.callback(matrix.close)
            for outcome in matrix.enumerate():
                if outcome.problems:
                    self.fail(f"{outcome}\n{outcome.output}")
            yield matrix

    def _sampled(self, plans: list[tuple[Chapter, Plan]]) -> list[tuple[Chapter, Plan]]:
        if self.options.sample:
            plans = random.Random(self.options.seed).sample(
                sorted(plans, key=str), min(self.options.sample, len(plans))
            )
        return plans

    def _points(self, matrix: Matrix, *kinds: str) -> Counts:
        plans = matrix.plans(*kinds)
        if self.options.full:
            plans = [(chapter, plan._replace(kind=kind)) for chapter, plan in plans for kind in kinds]
        chosen = self._sampled(plans)
        injected, survived, unreached = set(), 0, []
        for number, (chapter, plan) in enumerate(chosen, 1):
            if number % 100 == 0:
                print(f"{number} of {len(chosen)}", flush=True)
            outcome = matrix.run(chapter, plan)
            survived += self._judge(outcome)
            if outcome.fired:
                injected.add((chapter.name, plan.point))
            else:
                unreached.append(f"{chapter.name}: {plan}")
        for name in unreached:
            print(f"not reached in any try: {name}", flush=True)
        return {
            "points_seen": len({(chapter.name, plan.point) for chapter, plan in plans}),
            "points_chosen": len({(chapter.name, plan.point) for chapter, plan in chosen}),
            "points_injected": len(injected),
            "cycles": len(chosen),
            "survived": survived,
        }

    def _judge(self, outcome: Outcome) -> bool:
        if outcome.problems:
            self.fail(f"{outcome} (processes ended: {', '.join(outcome.ends) or 'none'})\n{outcome.output[-2000:]}")
        return not outcome.problems and outcome.fired

    def _kill(self, stage: str) -> Counts:
        del stage
        with self._matrix() as matrix:
            return self._points(matrix, "kill")

    def _errors(self, stage: str) -> Counts:
        del stage
        with self._matrix() as matrix:
            return self._points(matrix, *ERRORS)

    def _cut(self, stage: str) -> Counts:
        kind = stage.partition("-")[2]
        if why := disks.missing((kind,)):
            return {"not_run": why}
        with self._matrix(kind) as matrix:
            return self._points(matrix, "cut-1", "cut-2")

    # -- single questions --------------------------------------------------------------------------------------

    def _planted(self, stage: str) -> Counts:
        """The same device, but files are not synced: the campaign must notice, or it proves nothing."""
        del stage
        if why := disks.missing(("ext4",)):
            return {"not_run": why}
        with self._matrix("ext4", hostile.forget_fsync) as matrix:
            plans = [
                (chapter, plan._replace(kind="cut-1"))
                for chapter, plan in matrix.plans("cut-1")
                if chapter.name == "update" and plan.point.phase in {"Activating", "Probation"}
            ]
            caught = sum(bool(matrix.run(chapter, plan).problems) for chapter, plan in plans[:20])
        if not caught:
            self.fail("a missing fsync was planted and not one power cut showed it")
        return {"cycles": min(20, len(plans)), "caught": caught}

    def _hostile(self, stage: str) -> Counts:
        del stage
        with self._matrix() as matrix:
            told = {name: question(matrix) for name, question in hostile.QUESTIONS.items()}
        for name, problems in told.items():
            if problems:
                self.fail(f"{name}: {'; '.join(problems)}")
        return {"cycles": len(told), "survived": sum(not problems for problems in told.values())}

    def _strace(self, stage: str) -> Counts:
        del stage
        if shutil.which("strace") is None:
            return {"not_run": "strace is not installed"}
        with self._matrix() as matrix:
            found = hostile.trace(matrix)
        for problem in found.problems:
            self.fail(problem)
        return {"cycles": 1, "calls": found.calls}

    def _random(self, stage: str) -> Counts:
        """Faults of all kinds, in chapters and at points drawn from the seed."""
        del stage
        chance = random.Random(self.options.seed)
        kinds = ["kill", "kill", *ERRORS]
        disk = "" if (missing := disks.missing(("ext4",))) else "ext4"
        if disk:
            kinds += ["cut-1", "cut-2", "cut-1", "cut-2"]
        else:
            print(f"random: no power is cut: {missing}")
        cycles = survived = 0
        with self._matrix(disk) as matrix:
            plans = sorted(matrix.plans("kill", most=100), key=str)  # threads see points in no fixed order
            end = time.monotonic() + self.options.seconds
            while time.monotonic() < end:
                chapter, plan = chance.choice(plans)
                plan = plan._replace(kind=chance.choice(kinds))
                if plan.kind != "kill" and plan.point.place == "(elsewhere)":
                    continue
                cycles += 1
                survived += self._judge(matrix.run(chapter, plan))
        return {"cycles": cycles, "survived": survived, "seed": self.options.seed}

    def _loop(self, stage: str) -> Counts:
        """Real inference, real workers: its own chaos, where every frame must end exactly once."""
        del stage
        seconds = min(60, self.options.seconds)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-s", "tests/inference/test_chaos.py"],
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

    def _fuzz(self, stage: str) -> Counts:
        del stage
        each = {}
        for name, parser in fuzz.PARSERS.items():
            tried, problem = fuzz.run(parser, self.options.inputs, self.options.seed)
            each[name] = tried
            if problem:
                self.fail(f"fuzz {name}: {problem}")
        return {"inputs": each}


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
    parser.add_argument("--full", action="store_true", help="every kind at every point, not one kind each in turn")
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
    results: dict[str, Counts] = {}
    try:
        campaign = Campaign(options, place)
        for stage in stages:
            print(f"{stage} ...", flush=True)
            results[stage] = campaign.run(stage)
            print(f"{stage}: {json.dumps(results[stage])}", flush=True)
            if options.record:
                record(stage, results[stage])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(report.summary(results))
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
