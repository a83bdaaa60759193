"""The real updater's process, with one fault planted at one of its durable points.

    MODELAGENT_TORTURE='swap|models/digits/current|Activating|1|kill|free' python tests/torture/device.py some.toml

A point is what `durable.point` announces: an operation and a path. Its name here is operation, class of the path
(digests, numbers and process ids taken out) and phase of the machine; the plan adds the how-manieth time, the
fault and the order of the threads. The product itself reads no such variable. Only the pace differs from a shipped
updater (it looks at health more often), and the canary is played: it passes. Workers have their own tests.

**Order of threads.** While a hand writes, the machine goes on: one write may be seen in two or three phases, as the
threads happen to run. All of them are points, and a plan can ask for the order that leads to its own: `free` leaves
the threads alone, `eager` makes the machine wait for its hands (a write comes in the phase that asked for it), and
`held` makes a hand, or a command, wait before the plan's point until the machine is in the plan's phase, and the
machine wait there for them.
"""

import contextlib
import errno
import faulthandler
import fcntl
import os
import re
import resource
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

from modelagent import children, durable, updater
from modelagent.core.state import Phase
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.inputs import edits
from modelagent.inputs.config import load
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.delta import Rebuilder
from modelagent.updater import driver
from modelagent.updater.hands import Hands, finished
from torture.mistakes import MISTAKES

VARIABLE: Final = "MODELAGENT_TORTURE"
MARK: Final = VARIABLE + "_MARK"  # a name that is not there: looking it up shows each point to strace
PLANT: Final = VARIABLE + "_PLANT"  # a word of MISTAKES
SHUTDOWN: Final = 0x8004587D  # of XFS, taken over by ext4: the file system ends as by a power cut
ERRORS: Final = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
    "EMFILE": errno.EMFILE,
    "inodes": errno.ENOSPC,
}
MEMORY: Final = ("memory", "starved")  # MemoryError at the point; no page more from the point on
PACES: Final = ("free", "eager", "held")
NEEDS_SPACE: Final = ("create", "write", "symlink", "mkdir", "link", "append", "overwrite", "open", "fsync")
NEEDS_INODE: Final = ("create", "symlink", "mkdir", "open")
NEEDS_DESCRIPTOR: Final = ("create", "append", "overwrite", "truncate", "fsync-dir", "open")
LASTS: Final = 4  # an error is met at so many fitting points in a row, then the device is well again
STILL_S: Final = 10  # seconds without a turn, then the kernel ends the process (a minute as shipped)
HELD_S: Final = 3.0  # at most, for the phase that a plan wants
HELD_AT_ALL_S: Final = 12.0  # over one process's life: the chapter has to come to its end all the same
# The real program and its real cage, but not behind every other task of the machine: that could be minutes.
APPLY: Final = """
import json, sys
from modelagent import children
children.sink = lambda task: None
from modelagent.delta.apply import main
sys.exit(main(json.loads(sys.argv[1])))
"""
MEET_S: Final = 0.5  # that the machine waits, each time it comes into the plan's phase
EAGER_S: Final = 5.0  # at most, for a hand
CRUMB: Final = 32 * 1024  # bytes that a starved process finds free


class Point(NamedTuple):
    """One durable point; `phase` is the machine's when it came."""

    operation: str
    place: str
    phase: str


class Plan(NamedTuple):
    """What happens, and where: at the `nth` time (from 1) that this point comes."""

    point: Point
    nth: int
    kind: str  # kill, cut-1, cut-2, or a word of ERRORS or MEMORY
    pace: str = "free"

    def __str__(self) -> str:
        return "|".join((*self.point, str(self.nth), self.kind, self.pace))

    @classmethod
    def read(cls, text: str) -> "Plan":
        """From `str(plan)`."""
        operation, place, phase, nth, kind, pace = text.split("|")
        return cls(Point(operation, place, phase), int(nth), kind, pace)


def place_of(path: str, state_dir: str, deltas: Collection[str] = ()) -> str:
    """The class of a path: where in the state directory, without digests, numbers and process ids.

    `deltas`: digests that are told from others, as a delta goes another way than the files of a release.
    """
    if not path.startswith(state_dir + "/"):
        return "(state directory)" if path == state_dir else "(elsewhere)"
    inside = re.sub(r"[0-9a-f]{64}", lambda it: "(delta)" if it[0] in deltas else "*", path[len(state_dir) + 1 :])
    inside = re.sub(r"\.\d+\.tmp$", ".tmp", inside)
    return re.sub(r"\d{3,}", "#", re.sub(r"(^|/)\d+\.", r"\1#.", inside))


class Hook:
    """Counts points, tells them to `log` (a file descriptor), and does what the plan says."""

    def __init__(
        self, plan: Plan | None, state_dir: Path, log: int, phase: Callable[[], str], deltas: Collection[str] = ()
    ) -> None:
        self._plan = plan
        self._state_dir = str(state_dir)
        self._deltas = deltas
        self._log = log
        self._phase = phase
        self._count: Counter[Point] = Counter()
        self._left = 0
        self._fired = False
        self._patience = HELD_AT_ALL_S
        self._guard = threading.Lock()

    def __call__(self, operation: str, path: str) -> None:
        place = place_of(path, self._state_dir, self._deltas)
        if self._plan is not None and (operation, place) == self._plan.point[:2]:
            self.hold()
        with self._guard:
            point = Point(operation, place, self._phase())
            self._count[point] += 1
            os.write(self._log, ("|".join(point) + "\n").encode())
            if self._plan is None:
                return
            if point == self._plan.point and self._count[point] == self._plan.nth:
                self._fired = True
                os.write(self._log, b"!\n")
                self._strike(self._plan.kind)
            if self._left and self._concerns(operation):
                self._left -= 1
                number = ERRORS[self._plan.kind]
                raise OSError(number, os.strerror(number), path)

    def hold(self) -> None:
        """Where the plan wants it, have this thread (a hand's, an asker's) wait until the machine is in its phase."""
        if self._plan is None or self._plan.pace != "held" or threading.current_thread() is threading.main_thread():
            return
        begun = time.monotonic()
        limit = begun + min(HELD_S, self._patience)
        while not self._fired and self._phase() != self._plan.point.phase and time.monotonic() < limit:
            time.sleep(0.001)
        self._patience -= time.monotonic() - begun

    def meet(self) -> None:
        """Where the plan wants it, have the machine wait in the plan's phase for the thread that is to be struck."""
        if self._plan is None or self._plan.pace != "held" or self._phase() != self._plan.point.phase:
            return
        limit = time.monotonic() + MEET_S
        while not self._fired and time.monotonic() < limit:
            time.sleep(0.001)

    def _strike(self, kind: str) -> None:
        if kind in ERRORS:
            self._left = LASTS
        elif kind == "memory":
            raise MemoryError
        elif kind == "starved":
            starve()
        else:
            end(kind, self._state_dir)

    def _concerns(self, operation: str) -> bool:
        fitting = {"ENOSPC": NEEDS_SPACE, "inodes": NEEDS_INODE, "EMFILE": NEEDS_DESCRIPTOR}
        assert self._plan is not None
        return operation in fitting.get(self._plan.kind, (operation,))


def starve() -> None:
    """No more memory for this process, as at a limit of its unit: not a page, and what was free is used up."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
    crumb = bytearray(CRUMB)
    for size in (2**20, 2**16, 2**12, 2**10, 512):
        with contextlib.suppress(MemoryError):
            while True:
                _eaten.append(bytes(size))
    del crumb


_eaten: Final[list[bytes]] = []


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
    for module, name, value in (
        (driver, "_LOOK_OTHERWISE_S", 0.05),
        (updater, "CanaryRunner", PlayedCanary),
        (updater, "_STILL_S", STILL_S),
        (children, "sink", lambda _: None),
    ):
        setattr(module, name, value)
    # The defaults were bound when the classes were made.
    for made, argument, other in ((edits.Edits, "quiet", 0.02), (Rebuilder, "program", (sys.executable, "-c", APPLY))):
        defaults = made.__init__.__kwdefaults__
        assert defaults is not None
        defaults[argument] = other


def make_eager() -> None:
    """The machine waits for each piece of work that it hands out."""
    real = Hands.do

    def do(self: Hands, hand: str, model: str, effect: int, *how: Any) -> None:
        call, answer = how if len(how) == 2 else (*how, finished)
        done = threading.Event()

        def called(work: Any) -> Any:
            try:
                return call(work)
            finally:
                if work.effect == 0:
                    done.set()

        def answered(work: Any, outcome: Any) -> Any:
            done.set()
            return answer(work, outcome)

        real(self, hand, model, effect, called, answered)
        done.wait(EAGER_S)

    Hands.do = do  # type: ignore[method-assign,assignment]


def serve(config: Path, plan: Plan | None, log: int, deltas: Collection[str] = ()) -> int:
    """Run the updater until SIGTERM. The phase of a point is that of the newest state of the first model."""
    os.environ["MODELAGENT_CONFIG"] = str(config)
    os.environ["PYTHONPATH"] = str(Path(durable.__file__).parents[1])  # for the program that applies a delta
    settings = load(config)
    quicken()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked where it stands when it stands still
    at: list[Any] = []

    def phase() -> str:
        states = at[0].driver.states if at else {}
        return next((state.phase.value for state in states.values()), "starting")

    real = updater.Updater.__init__

    def remembering(self: updater.Updater, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        at.append(self)

    updater.Updater.__init__ = remembering  # type: ignore[method-assign]
    hook = Hook(plan, settings.paths.state_dir, log, phase, deltas)
    submit = driver.Driver.submit

    def submitted(self: driver.Driver, *words: Any) -> None:
        hook.hold()
        submit(self, *words)

    driver.Driver.submit = submitted  # type: ignore[method-assign,assignment]
    step = driver.Driver._step

    def stepped(self: driver.Driver, *words: Any) -> None:
        before = phase()
        step(self, *words)
        if phase() != before:
            hook.meet()

    driver.Driver._step = stepped  # type: ignore[method-assign,assignment]
    if plan is not None and plan.pace == "eager":
        make_eager()
    mark = os.environ.pop(MARK, "")

    def marked(operation: str, path: str) -> None:
        with contextlib.suppress(OSError):
            Path(f"{mark}{operation}{path}").readlink()
        hook(operation, path)

    durable.set_hook(marked if mark else hook)
    return updater.run(settings)


if __name__ == "__main__":
    wanted = os.environ.pop(VARIABLE, "")
    if planted := os.environ.pop(PLANT, ""):
        MISTAKES[planted]()
    sys.exit(serve(Path(sys.argv[1]), Plan.read(wanted) if wanted else None, os.open(os.devnull, os.O_WRONLY)))
