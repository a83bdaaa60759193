"""The real updater's process, with one fault planted at one of its durable points. The only place that knows the plan.

    MODELAGENT_TORTURE='swap|models/digits/current|Activating|1|kill' python tests/torture/device.py modelagent.toml

A point is what `durable.point` announces: an operation and a path. Its name here is operation, class of the path
(digests, numbers and process ids taken out) and phase of the machine; the plan adds the how-manieth time and the
fault. The product itself reads no such variable. Only the pace differs from a shipped updater (it looks at health
more often), and the canary is played: it passes. Workers have their own tests.
"""

import contextlib
import errno
import fcntl
import os
import re
import signal
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from modelagent import durable, updater
from modelagent.core.state import Phase
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.inputs import edits
from modelagent.inputs.config import load
from modelagent.steps.canary import CanaryRunner
from modelagent.updater import driver

VARIABLE: Final = "MODELAGENT_TORTURE"
SHUTDOWN: Final = 0x8004587D  # of XFS, taken over by ext4: the file system ends as by a power cut
ERRORS: Final = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
    "EMFILE": errno.EMFILE,
    "inodes": errno.ENOSPC,
}
NEEDS_SPACE: Final = ("create", "write", "symlink", "mkdir", "link", "append", "overwrite", "open", "fsync")
NEEDS_INODE: Final = ("create", "symlink", "mkdir", "open")
NEEDS_DESCRIPTOR: Final = ("create", "append", "overwrite", "truncate", "fsync-dir", "open")
LASTS: Final = 4  # an error is met at so many fitting points in a row, then the device is well again


class Point(NamedTuple):
    """One durable point; `phase` is the machine's when it came."""

    operation: str
    place: str
    phase: str


class Plan(NamedTuple):
    """What happens, and where: at the `nth` time (from 1) that this point comes."""

    point: Point
    nth: int
    kind: str  # kill, cut-1, cut-2, or a word of ERRORS

    def __str__(self) -> str:
        return "|".join((*self.point, str(self.nth), self.kind))

    @classmethod
    def read(cls, text: str) -> "Plan":
        """From `str(plan)`."""
        operation, place, phase, nth, kind = text.split("|")
        return cls(Point(operation, place, phase), int(nth), kind)


def place_of(path: str, state_dir: str) -> str:
    """The class of a path: where in the state directory, without digests, numbers and process ids."""
    if not path.startswith(state_dir + "/"):
        return "(state directory)" if path == state_dir else "(elsewhere)"
    inside = re.sub(r"[0-9a-f]{64}", "*", path[len(state_dir) + 1 :])
    inside = re.sub(r"\.\d+\.tmp$", ".tmp", inside)
    return re.sub(r"\d{3,}", "#", re.sub(r"(^|/)\d+\.", r"\1#.", inside))


class Hook:
    """Counts points, tells them to `log` (a file descriptor), and does what the plan says."""

    def __init__(self, plan: Plan | None, state_dir: Path, log: int, phase: Callable[[], str]) -> None:
        self._plan = plan
        self._state_dir = str(state_dir)
        self._log = log
        self._phase = phase
        self._count: Counter[Point] = Counter()
        self._left = 0
        self._guard = threading.Lock()

    def __call__(self, operation: str, path: str) -> None:
        with self._guard:
            point = Point(operation, place_of(path, self._state_dir), self._phase())
            self._count[point] += 1
            os.write(self._log, ("|".join(point) + "\n").encode())
            if self._plan is None:
                return
            if point == self._plan.point and self._count[point] == self._plan.nth:
                os.write(self._log, b"!\n")
                if self._plan.kind not in ERRORS:
                    end(self._plan.kind, self._state_dir)
                self._left = LASTS
            if self._left and self._concerns(operation):
                self._left -= 1
                number = ERRORS[self._plan.kind]
                raise OSError(number, os.strerror(number), path)

    def _concerns(self, operation: str) -> bool:
        fitting = {"ENOSPC": NEEDS_SPACE, "inodes": NEEDS_INODE, "EMFILE": NEEDS_DESCRIPTOR}
        assert self._plan is not None
        return operation in fitting.get(self._plan.kind, (operation,))


def end(kind: str, state_dir: str) -> None:
    """Die as `kind` says; returns never."""
    if kind.startswith("cut-"):
        fd = os.open(Path(state_dir).parent, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", int(kind[-1])))
    os.kill(os.getpid(), signal.SIGKILL)


class PlayedCanary(CanaryRunner):
    """Passes everything; nothing is loaded."""

    def run(self, *_: Any, **__: Any) -> CanaryVerdict:
        """Pass."""
        return CanaryVerdict(Outcome.PASS, "played")


def quicken() -> None:
    """Let the updater look often; patience is not under test here."""
    for phase in (Phase.ACTIVATING, Phase.PROBATION, Phase.REVERTING):
        driver._LOOK_S[phase] = 0.01
    for module, name, value in ((driver, "_LOOK_OTHERWISE_S", 0.05), (updater, "CanaryRunner", PlayedCanary)):
        setattr(module, name, value)
    # The default was bound when the class was made.
    assert edits.Edits.__init__.__kwdefaults__ is not None
    edits.Edits.__init__.__kwdefaults__["quiet"] = 0.02


def serve(config: Path, plan: Plan | None, log: int) -> int:
    """Run the updater until SIGTERM. The phase of a point is that of the newest state of the first model."""
    os.environ["MODELAGENT_CONFIG"] = str(config)
    settings = load(config)
    quicken()
    at: list[Any] = []

    def phase() -> str:
        states = at[0].driver.states if at else {}
        return next((state.phase.value for state in states.values()), "starting")

    real = updater.Updater.__init__

    def remembering(self: updater.Updater, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        at.append(self)

    updater.Updater.__init__ = remembering  # type: ignore[method-assign]
    hook = Hook(plan, settings.paths.state_dir, log, phase)
    mark = os.environ.pop(VARIABLE + "_MARK", "")

    def marked(operation: str, path: str) -> None:
        with contextlib.suppress(OSError):  # there is no such name: strace sees who asked for it, and when
            Path(mark + path.lstrip("/")).readlink()
        hook(operation, path)

    durable.set_hook(marked if mark else hook)
    return updater.run(settings)


if __name__ == "__main__":
    wanted = os.environ.pop(VARIABLE, "")
    sys.exit(serve(Path(sys.argv[1]), Plan.read(wanted) if wanted else None, os.open(os.devnull, os.O_WRONLY)))
