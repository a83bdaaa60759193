"""One life under `strace -f`: each system call that changes the state directory is held against the points.

    traced = trace(matrix, (UPDATE,))
    traced.calls, traced.points, traced.problems

`durable.point` announces a call just before it is made; here each announcement shows up among the calls of its thread,
because the hook looks up a name that is not there. Every changing call has to be the one that its own thread has
announced last, on the same path, and every announcement has to be followed by its call. What an operation may call is
in `_CALLS`: one call, or the few that belong together. Changes through a mapping or a descriptor need an `open` for
writing first, and that is among the calls. The program that applies a delta cannot announce anything: it may write
into the one file that the updater has created for it, and may do nothing else.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from modelagent import durable
from torture import device
from torture.box import copy_tree
from torture.matrix import Matrix
from torture.world import Chapter

_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "create": ("open",),
    "open": ("open",),
    "append": ("open",),
    "overwrite": ("open",),
    "truncate": ("open", "truncate"),
    "write": ("write",),
    "fsync": ("fsync",),
    "fsync-dir": ("fsync",),
    "rename": ("rename",),
    "swap": ("rename",),
    "link": ("link",),
    "symlink": ("symlink", "utimens"),
    "unlink": ("unlink",),
    "rmdir": ("rmdir",),
    "mkdir": ("mkdir",),
    "chmod": ("chmod",),
}
_TRACED: Final = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,fallocate,"
    "truncate,ftruncate,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,"
    "link,linkat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utime,utimes,futimesat,utimensat,setxattr,"
    "lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,fsync,fdatasync,syncfs,sync,sync_file_range,ioctl"
)
_GIVEN: Final = ".made"
_MARK: Final = "/torture-point/"
_PLAIN: Final = re.compile(
    r"^[fl]?(pwrite|write|rename|unlink|mkdir|mknod|symlink|link|chmod|utimens|truncate)(64|v2?|at2?)?$"
)
_STRING: Final = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR: Final = re.compile(r"^(\d+)<([^>]*)>")
_HARMLESS_IOCTL: Final = re.compile(r"TCGETS|FIOCLEX|FIONREAD|FIONBIO|TIOCGWINSZ")


class Traced(NamedTuple):
    """What strace saw: calls that change the state directory, the points that announced them, and what is wrong."""

    calls: int
    points: int
    problems: list[str]


class Call(NamedTuple):
    """One system call: what it does, and the path that it changes. `mark`: an announcement, `does` is the operation."""

    thread: str
    does: str
    path: str
    failed: bool
    text: str
    mark: bool = False


def trace(matrix: Matrix, chapters: tuple[Chapter, ...], mistake: str = "") -> Traced:
    """Live the chapters under strace, each from its own beginning."""
    calls = points = 0
    problems: list[str] = []
    for chapter in chapters:
        log = matrix.world.directory / "strace"
        how = _live(matrix, chapter, log, mistake)
        found = judge(log.read_text(errors="replace"), str(matrix.world.state_dir))
        calls += found.calls
        points += found.points
        problems += [f"{chapter.name}: the updater under strace {how}"] if how else []
        problems += [f"{chapter.name}: {problem}" for problem in found.problems]
    return Traced(calls, points, problems)


def _live(matrix: Matrix, chapter: Chapter, log: Path, mistake: str) -> str:
    world = matrix.world
    copy_tree(matrix.base(chapter), world.state_dir)
    world.turn_to(chapter)
    source = os.pathsep.join([str(Path(durable.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": source, device.MARK: _MARK, device.PLANT: mistake}
    process = subprocess.Popen(
        ["strace", "-f", "-y", "-qq", "-s", "1", "-e", f"trace={_TRACED},readlink", "-o", str(log), sys.executable,
         str(Path(device.__file__)), str(world.config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        how = matrix.box.tend(chapter, lambda: "" if process.poll() is None else "ended", time.monotonic() + 120)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has ended by itself
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
        process.wait(20)
        matrix.box.close()
    return how


def judge(text: str, state_dir: str) -> Traced:
    """Hold each call against the point that its thread has announced last."""
    open_points: dict[str, tuple[Call, list[str]]] = {}  # thread -> its announcement, and what it has called since
    calls = points = 0
    problems: list[str] = []
    given: set[str] = set()  # files that were created for a program to write into
    for call in _parsed(text, state_dir):
        announced, made = open_points.get(call.thread, (None, []))
        if call.mark:
            problems += _unused(announced, made)
            open_points[call.thread] = (call, [])
            points += 1
            if call.does == "create" and call.path.endswith(_GIVEN):
                given.add(call.path)
            continue
        if not call.failed:
            calls += 1
        allowed = _CALLS.get(announced.does, ()) if announced is not None and announced.path == call.path else ()
        # One announcement is one call of a kind; the kernel may take a write in several parts.
        if call.does in allowed and (call.does not in made or call.does == "write"):
            made.append(call.does)
        elif announced is None and call.does == "write" and call.path in given:
            pass
        elif not call.failed:
            problems.append(f"not announced by durable.point: {call.text[:200]}")
    for announced, made in open_points.values():
        problems += _unused(announced, made)
    if calls == 0:
        problems.append("strace saw no change of the state directory: the trace proves nothing")
    return Traced(calls, points, problems)


def _unused(announced: Call | None, made: list[str]) -> list[str]:
    if announced is None or _CALLS.get(announced.does, ("?",))[-1] in made:
        return []
    return [f"announced, and not done: {announced.does} {announced.path}"]


def _parsed(text: str, state_dir: str) -> Iterator[Call]:
    """Announcements, and calls that change something in the state directory or would, in order."""
    for thread, call in _whole(text):
        name, _, rest = call.partition("(")
        failed = re.search(r"\) += -1 ", call) is not None
        if name == "readlink":
            found = _STRING.search(rest)
            if found and found[2].startswith(_MARK):
                operation, _, path = found[2].removeprefix(_MARK).partition("/")
                if _is_inside("/" + path, state_dir):
                    yield Call(thread, operation, "/" + path, False, call, mark=True)
            continue
        does = _does(name, rest)
        paths = [path for path in _paths(name, rest) if _is_inside(path, state_dir)]
        if does and paths:
            yield Call(thread, does, paths[-1], failed, call)


def _whole(text: str) -> Iterator[tuple[str, str]]:
    """Lines as (thread, call), those that another thread interrupted put together again."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", call):
            call = begun.pop(thread, "") + call[resumed.end() :]
        yield thread, call
    for thread, call in begun.items():  # cut off in the middle: what it did is not known
        yield thread, call + ") = ?"


def _does(name: str, rest: str) -> str:
    """What a call does, in the words of `_CALLS`; "" when it changes nothing, its own name when nobody may do that."""
    if name in ("open", "openat", "openat2", "creat"):
        return "open" if name == "creat" or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", rest) else ""
    if name == "ioctl":
        return "" if _HARMLESS_IOCTL.search(rest) else name
    if name == "unlinkat" and "AT_REMOVEDIR" in rest:
        return "rmdir"
    if name == "fdatasync":
        return "fsync"
    plain = _PLAIN.match(name)
    return {"pwrite": "write"}.get(plain[1], plain[1]) if plain else name


def _paths(name: str, rest: str) -> list[str]:
    """Every path of a call; the one that is changed comes last."""
    arguments = re.sub(r"\) += (?!.*\) += ).*$", "", rest)
    descriptor = _DESCRIPTOR.match(arguments)
    if descriptor and not name.endswith("at") and not name.endswith("at2"):
        more = [found[1] for found in re.finditer(r"\d+<([^>]*)>", arguments[descriptor.end() :])]
        return [path.removesuffix(" (deleted)") for path in (*more, descriptor[2])]
    return [os.path.normpath(Path(base or "/") / path) for base, path in _STRING.findall(arguments)]


def _is_inside(path: str, state_dir: str) -> bool:
    return path == state_dir or path.startswith(state_dir + "/")
