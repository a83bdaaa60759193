"""Every durable point of every chapter, each with a fault, and what came of it.

    matrix = Matrix(directory)                        # or with a Disk whose power can be cut
    plans = matrix.plans("kill")                      # one for each point that an undisturbed life showed
    outcome = matrix.run(plans[0])                    # outcome.problems is empty, or a failure

A chapter begins from a copy of what an undisturbed life left before it. Threads make the order of points vary: a
point that did not come in its run is tried again with the threads in the order that leads to it (device.py), and
reported as not reached if it never does.
"""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torture.box import Box, Seen, Stuck, copy_tree
from torture.checks import disk_problems, end_problems
from torture.device import ERRORS, MEMORY, PACES, Plan, Point
from torture.disks import Disk
from torture.world import CHAPTERS, Chapter, Player, World

TRIES: Final = PACES * 3
LINGERS_S: Final = 0.4  # at the end of a chapter, where a point is still to come
NOWHERE: Final = Plan(Point("", "", ""), 1, "kill", "eager")  # never strikes: an undisturbed life in order
EACH: Final = ("incoming", "incoming/(delta)", "incoming/*.made")  # few points, each of them many times another thing
ELSEWHERE: Final = "(elsewhere)"  # not in the state directory: a power cut or a full disk does not concern it


@dataclass(slots=True)
class Outcome:
    """One plan in one chapter, lived to its end."""

    chapter: str
    plan: Plan | None
    problems: list[str]
    fired: bool
    ends: list[str] = field(default_factory=list)
    output: str = ""

    def __str__(self) -> str:
        return f"{self.chapter}: {self.plan or 'undisturbed'}: {'; '.join(self.problems) or 'good'}"


class Matrix:
    """Chapters, their beginnings, and the points that were seen in them."""

    def __init__(self, directory: Path, disk: Disk | None = None, prepare: Callable[[], None] | None = None) -> None:
        self.disk = disk
        self.world = World(directory, disk.state_dir if disk else None)
        self.player = Player(self.world)
        self.box = Box(self.world, self.player, prepare)
        self._bases = directory / "bases"
        self._bases.mkdir()
        self.points: dict[str, Counter[Point]] = {}
        self.always: dict[str, Counter[Point]] = {}
        self.histories: dict[str, bytes] = {}

    def close(self) -> None:
        """Leave nothing running."""
        self.box.close()

    def base(self, chapter: Chapter) -> Path:
        """The state directory with which a chapter begins."""
        return self._bases / chapter.name

    def enumerate(self, lives: int = 2) -> list[Outcome]:
        """Live all chapters undisturbed, note their beginnings and their points; outcomes with their problems.

        The last of several lives is an `eager` one.
        """
        outcomes = []
        for life in range(lives):
            for chapter in CHAPTERS:
                if life == 0:
                    copy_tree(self.world.state_dir, self._bases / chapter.name)
                    history = self.world.state_dir / "history.jsonl"
                    self.histories[chapter.name] = history.read_bytes() if history.exists() else b""
                planned = NOWHERE if 0 < life == lives - 1 else None
                outcome, seen = self._live(chapter, planned, renew=life > 0)
                outcomes.append(outcome)
                known = self.points.setdefault(chapter.name, Counter())
                self.points[chapter.name] = known | seen.points
                self.always[chapter.name] = self.always.get(chapter.name, seen.points) & seen.points
        return outcomes

    def plans(self, *kinds: str) -> list[tuple[Chapter, Plan]]:
        """One plan for each point, in order; where files come and deltas are used, for each of its repetitions.

        The kinds take turns.
        """
        found = [
            (chapter, point, nth)
            for chapter in CHAPTERS
            for point in self.points[chapter.name]
            if point.place != ELSEWHERE or kinds == ("kill",)
            for nth in range(1, self._repetitions(chapter, point) + 1)
        ]
        return [(chapter, Plan(point, nth, _turn(chapter, point, nth, kinds))) for chapter, point, nth in found]

    def _repetitions(self, chapter: Chapter, point: Point) -> int:
        return max(1, self.always[chapter.name][point]) if point.place in EACH else 1

    def steady_plans(self) -> list[tuple[Chapter, Point, int]]:
        """Points that each enumerated life has shown, with the least number of times that it did."""
        return [(chapter, point, count) for chapter in CHAPTERS for point, count in self.always[chapter.name].items()]

    def run(self, chapter: Chapter, plan: Plan) -> Outcome:
        """One chapter with one fault; tried again, in other orders of threads, while the point does not come."""
        for pace in TRIES[TRIES.index(plan.pace) :]:
            outcome, _seen = self._live(chapter, plan._replace(pace=pace), renew=True)
            if outcome.fired or outcome.problems:
                break
        return outcome

    def _live(self, chapter: Chapter, plan: Plan | None, *, renew: bool) -> tuple[Outcome, Seen]:
        if renew:
            if self.disk is not None:
                self.disk.renew(self._bases / chapter.name)
            else:
                copy_tree(self._bases / chapter.name, self.world.state_dir)
        place = CHAPTERS.index(chapter)
        allowed = {chapter.runs, CHAPTERS[place - 1].runs if place else ""}
        problems: list[str] = []

        def after_death(how: str) -> None:
            if plan is not None and plan.kind.startswith("cut-") and self.disk is not None:
                self.disk.power_returns()
                self.player.restart()
            problems.extend(f"after it was {how}: {problem}" for problem in disk_problems(self.world, allowed))

        try:
            seen = self.box.live(chapter, plan, after_death=after_death, linger=LINGERS_S)
        except Stuck as stuck:
            seen = Seen(fired=True)
            problems.append(str(stuck))
        else:
            problems += end_problems(self.world, chapter, self.histories[chapter.name])
            problems += [f"the process ended: {how}" for how in seen.ends if how not in _ends(plan, seen)]
        output = self.box.output() if problems else ""
        return Outcome(chapter.name, plan, problems, seen.fired, seen.ends, output), seen


def _turn(chapter: Chapter, point: Point, nth: int, kinds: tuple[str, ...]) -> str:
    # By the point's own name: points that only a later enumeration shows must not move the turns of the others.
    return kinds[(zlib.crc32("|".join((chapter.name, *point)).encode()) + nth - 1) % len(kinds)]


def _ends(plan: Plan | None, seen: Seen) -> tuple[str, ...]:
    """How the process may end before its time under such a plan; it is once only where it is killed."""
    if plan is None or not seen.fired:
        return ()
    if plan.kind in ERRORS:
        return tuple(seen.ends)
    if plan.kind in MEMORY:  # as any error of the program: it ends, at once, and is started again
        return ("1", "70", "71", "SIGABRT", "SIGALRM", "SIGSEGV")
    return ("killed",) if len(seen.ends) == 1 else ()
