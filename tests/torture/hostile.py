"""Questions that are not asked at points: links planted in the store, leftovers in heaps, a second updater, strace.

Each question takes a Matrix that has been enumerated and returns its problems as sentences.

    QUESTIONS["a second updater"](matrix)          # [] when it was turned away and the first went on
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from modelagent import durable
from torture import device
from torture.box import Box, Stuck, copy_tree
from torture.matrix import Matrix
from torture.world import CHAPTERS, MODEL, Chapter

UPDATE: Final = next(chapter for chapter in CHAPTERS if chapter.name == "update")
LEFTOVERS: Final = 10_000


def forget_fsync() -> None:
    """Plant the mistake that power cuts are there to find: what is written is never synced, names are."""

    real = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            real(fd)

    os.fsync = fsync  # type: ignore[assignment]


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


class Traced(NamedTuple):
    """What strace saw: system calls that change the state directory, and those that no point had announced."""

    calls: int
    problems: list[str]


_CHANGING: Final = (
    "openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,link,linkat,"
    "truncate,chmod,fchmodat"
)
_MARK: Final = "/torture-point/"


def trace(matrix: Matrix) -> Traced:
    """One update under `strace -f`: each call that changes the state directory was announced by its own thread.

    Announcements show up among the calls because the hook looks up a name that is not there.
    """
    _begin(matrix, UPDATE)
    world = matrix.world
    world.turn_to(UPDATE)
    log = world.directory / "strace"
    source = str(Path(durable.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, device.VARIABLE + "_MARK": _MARK}
    process = subprocess.Popen(
        ["strace", "-f", "-qq", "-s", "300", "-e", f"trace={_CHANGING},readlink", "-o", str(log), sys.executable,
         str(Path(device.__file__)), str(world.config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        how = matrix.box.tend(UPDATE, lambda: "" if process.poll() is None else "ended", time.monotonic() + 120)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has ended by itself
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        process.wait(20)
    if how:
        return Traced(0, [f"the updater under strace {how}"])
    return _judge_trace(log.read_text(errors="replace"), str(world.state_dir))


def _judge_trace(text: str, state_dir: str) -> Traced:
    announced: dict[str, set[str]] = {}
    calls = 0
    problems: list[str] = []
    for line in text.splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        paths = re.findall(r'"([^"]*)"', call)
        if call.startswith("readlink(") and paths and paths[0].startswith(_MARK):
            announced.setdefault(thread, set()).add(paths[0].removeprefix(_MARK))
            continue
        inside = [path for path in paths if path.startswith(state_dir + "/")]
        if (
            not inside
            or " = -1 " in call
            or (call.startswith("open") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", call))
        ):
            continue
        if call.startswith("readlink("):
            continue
        calls += 1
        known = announced.get(thread, set())
        # A temporary file is taken away by the call that made it, whose point named it or its final name.
        if not any(path.lstrip("/") in known for path in inside):
            problems.append(f"not announced by durable.point: {call[:200]}")
    if calls == 0:
        problems.append("strace saw no change of the state directory: the trace proves nothing")
    return Traced(calls, problems)
