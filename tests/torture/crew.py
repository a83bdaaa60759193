"""Several processes live the plans of one stage, each with a device of its own.

    crew.live(Task(book, scratch, until=time.monotonic() + 280, make=a_matrix, told=print), jobs=2)

Each member takes the next plan that nobody has, until none is left or the time is over. A member that fails itself
(not the device in it) is an error of the campaign and is raised.
"""

import contextlib
import fcntl
import os
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from torture.book import Book, Done
from torture.device import Plan
from torture.matrix import Matrix
from torture.world import CHAPTERS

Told = Callable[[str], None]


class Task(NamedTuple):
    """What a crew shares.

    `scratch` is an empty directory; `until` on the monotonic clock; `make` gives a member its matrix, enumerated;
    `told` hears of each failure.
    """

    book: Book
    scratch: Path
    until: float
    make: Callable[[], AbstractContextManager[Matrix]]
    told: Told


def live(task: Task, jobs: int) -> None:
    """Live what is left in the book."""
    keys = task.book.left()
    (task.scratch / "next").write_text("0")
    children = []
    for _ in range(min(jobs, len(keys)) - 1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _member(task, keys)
                code = 0
            except BaseException:  # noqa: BLE001 - nothing may leave the child
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    try:
        _member(task, keys)
    finally:
        codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise RuntimeError("a member of the crew has failed; what it said stands above")


def _member(task: Task, keys: list[str]) -> None:
    with task.make() as matrix:
        while time.monotonic() < task.until and (place := _take(task.scratch / "next")) < len(keys):
            task.book.note(one(matrix, keys[place], task.told))


def one(matrix: Matrix, key: str, told: Told) -> Done:
    """Live one plan, as `key_of` wrote it."""
    name, _, text = key.partition(": ")
    begun = time.monotonic()
    outcome = matrix.run(next(chapter for chapter in CHAPTERS if chapter.name == name), Plan.read(text))
    if outcome.problems:
        ends = ", ".join(outcome.ends) or "none"
        told(f"{outcome} (processes ended: {ends}); again: --again '{name}: {outcome.plan}'\n{outcome.output[-2000:]}")
    return Done(key, outcome.fired, outcome.problems, round(time.monotonic() - begun, 2), tuple(outcome.ends))


def _take(counter: Path) -> int:
    """The number of the next plan, for one member alone."""
    with contextlib.closing(os.fdopen(os.open(counter, os.O_RDWR), "r+")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
        file.flush()
    return number
