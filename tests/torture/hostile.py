"""Questions that are not asked at points: links planted in the store, leftovers in heaps, a second updater.

Each question takes a Matrix that has been enumerated and returns its problems as sentences.

    QUESTIONS["a second updater"](matrix)          # [] when it was turned away and the first went on
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelagent import durable
from torture.box import Box, Stuck, copy_tree
from torture.matrix import Matrix
from torture.world import CHAPTERS, MODEL, Chapter

UPDATE: Final = next(chapter for chapter in CHAPTERS if chapter.name == "update")
LEFTOVERS: Final = 10_000


def _begin(matrix: Matrix, chapter: Chapter) -> Path:
    copy_tree(matrix.base(chapter), matrix.world.state_dir)
    return matrix.world.state_dir


def links_in_the_store(matrix: Matrix) -> list[str]:
    """Whoever may write into the state directory plants links; nothing outside may change."""
    problems = []
    digest = matrix.world.digests[UPDATE.runs]
    outside = matrix.world.directory / "outside"
    for place in (
        f"incoming/{digest}",
        f"incoming/{digest}.partial",
        f"models/{MODEL}/.current.next",
        f"models/{MODEL}/slots/.{digest}.new",
        "tuf/timestamp.json",
        "steady",
        "commands/new.log",
    ):
        state = _begin(matrix, UPDATE)
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "precious").write_bytes(b"precious")
        target = state / place
        durable.discard_tree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(outside if place == "steady" or place.endswith(".new") else outside / "precious")
        try:
            matrix.box.live(UPDATE, None)
        except Stuck as stuck:
            problems.append(f"{place}: {stuck}")
        if (outside / "precious").read_bytes() != b"precious" or len(list(outside.iterdir())) != 1:
            problems.append(f"{place}: what the link names was changed: {[p.name for p in outside.iterdir()]}")
    return problems


def leftovers(matrix: Matrix) -> list[str]:
    """Ten thousand partial files that nobody wants, and as many temporary ones: the update comes, they go."""
    state = _begin(matrix, UPDATE)
    for number in range(LEFTOVERS):
        (state / "incoming" / f"{number:064x}").write_bytes(b"")
        os.utime(state / "incoming" / f"{number:064x}", (1e9, 1e9))
        (state / "incoming" / f".{number:064x}.99999999.tmp").write_bytes(b"")
    try:
        matrix.box.live(UPDATE, None)
    except Stuck as stuck:
        return [str(stuck)]
    left = len(list((state / "incoming").iterdir()))
    return [f"{left} of them are left"] if left else []


def second_updater(matrix: Matrix) -> list[str]:
    """Another updater is started on the same directories, again and again: it is turned away, the first goes on."""
    _begin(matrix, UPDATE)
    other = Box(matrix.world, matrix.player)
    ends: list[str] = []
    started = False

    def start_another() -> None:
        nonlocal started
        if started and (how := other.ended()):
            ends.append(how)
            started = False
        if not started and len(ends) < 5 and (matrix.world.run_dir / "control.sock").exists():
            other.start(None)
            started = True

    try:
        matrix.box.live(UPDATE, None, meanwhile=start_another)
    except Stuck as stuck:
        return [str(stuck)]
    finally:
        other.close()
    wrong = [how for how in ends if how != "69"]
    if wrong or not ends:
        return [f"the second one ended with {', '.join(wrong) or 'nothing: none was started'}, expected the refusal"]
    return []


QUESTIONS: Final[dict[str, Callable[[Matrix], list[str]]]] = {
    "links in the store": links_in_the_store,
    "leftovers": leftovers,
    "a second updater": second_updater,
}
