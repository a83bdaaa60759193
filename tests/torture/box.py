"""One device under torture: its process is forked from this one (imports cost a second), killed, and started again.

    box = Box(world, Player(world))
    seen = box.live(chapter, plan)           # to the chapter's end, however often the process ends; what was seen
    box.close()

The parent plays inference between two looks at the state, gives the chapter's command (the same id again after each
start), and starts the process anew as systemd would.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelagent.core.state import State
from modelagent.errors import AgentError
from modelagent.steps.journal import Journal
from torture.checks import leftovers
from torture.device import Plan, Point, serve
from torture.world import MODEL, Chapter, Player, World

PATIENCE_S: Final = 40.0  # to the chapter's end, with room for STILL_S; a quiet machine takes about one
STOP_S: Final = 15.0  # longer than STILL_S: a process that stands still while it stops is the kernel's too
BEAT_S: Final = 0.01
AGAIN_S: Final = 2.0  # after which whoever gave a command without success gives it again
TIDY_S: Final = 2.0  # at rest, after which nothing is left of writes that failed
MOST_ENDS: Final = 20  # of processes in one chapter; more would be a circle


class Stuck(AssertionError):  # noqa: N818 - it is what happened
    """The machine did not reach the chapter's end."""


@dataclass(slots=True)
class Seen:
    """What happened in one run of one chapter."""

    points: Counter[Point] = field(default_factory=Counter)
    fired: bool = False
    ends: list[str] = field(default_factory=list)  # how processes ended before their time
    seconds: float = 0.0


class Box:
    """The process and whoever tends it."""

    def __init__(self, world: World, player: Player, prepare: Callable[[], None] | None = None) -> None:
        """`prepare` is called in each new process, before the updater is built: where tests plant mistakes."""
        self.world = world
        self.player = player
        self._prepare = prepare
        self._pid = 0
        self._log = world.directory / "points"
        self._output = world.directory / "output"
        self._asked: socket.socket | None = None
        self._reply = b""
        self._tries = 1
        self._patient_until = 0.0

    # -- one process -------------------------------------------------------------------------------------------

    def start(self, plan: Plan | None) -> None:
        """Fork the updater."""
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._pid = os.fork()
        if self._pid == 0:
            code = 71
            try:
                output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if self._prepare is not None:
                    self._prepare()
                code = serve(self.world.config, plan, log, self.world.deltas)
            except AgentError as error:
                os.write(2, f"{type(error).__name__}: {error.message}\n".encode())
                code = 69
            except BaseException:  # noqa: BLE001 - nothing may leave the child
                traceback.print_exc()
            os._exit(code)
        os.close(log)

    def ended(self) -> str:
        """How the process ended, "" while it runs."""
        if self._pid == 0:
            return "not running"
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0:
            return ""
        self._pid = 0
        return _word(status)

    def stop(self) -> str:
        """SIGTERM, and how it ended."""
        if self._pid == 0:
            return "not running"
        os.kill(self._pid, signal.SIGTERM)
        limit = time.monotonic() + STOP_S
        while not (how := self.ended()):
            if time.monotonic() > limit:
                self.kill()
                return f"did not stop within {STOP_S:.0f} s"
            time.sleep(0.005)
        return how

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()
        self._hang_up()

    # -- one chapter -------------------------------------------------------------------------------------------

    def live(
        self,
        chapter: Chapter,
        plan: Plan | None,
        *,
        after_death: Callable[[str], object] = len,
        meanwhile: Callable[[], None] = lambda: None,
        linger: float = 0.0,
    ) -> Seen:
        """Live through a chapter and stop; `after_death` looks at the disk before anything starts again.

        `linger`: seconds after the chapter's end in which what is planned may still come.

        Raises Stuck, with the newest state, when the end is not reached.
        """
        seen = Seen()
        begun, self._tries = time.monotonic(), 1
        self._log.unlink(missing_ok=True)
        self._output.unlink(missing_ok=True)
        self.world.turn_to(chapter)
        self.start(plan)
        try:
            while how := self._tend(chapter, begun + PATIENCE_S, meanwhile, linger):
                seen.ends.append(how)
                self._hang_up()
                after_death(how)
                if len(seen.ends) > MOST_ENDS:
                    raise Stuck(f"{chapter.name}: ended {len(seen.ends)} times: {', '.join(seen.ends)}")
                self.start(None)
        except Stuck:
            if self._pid:
                os.kill(self._pid, signal.SIGUSR1)
                time.sleep(0.5)
            raise
        finally:
            self.close()
        seen.fired = self._fired()
        for line in self._log.read_text().splitlines():
            if line != "!":
                seen.points[Point(*line.split("|"))] += 1
        seen.seconds = time.monotonic() - begun
        return seen

    def _untidy(self) -> bool:
        try:
            return any(leftovers(self.world.state_dir))
        except OSError:  # the power was cut just now: nobody can look
            return True

    def _fired(self) -> bool:
        return "\n!\n" in self._log.read_text()

    def _tend(self, chapter: Chapter, limit: float, meanwhile: Callable[[], None], linger: float) -> str:
        """Tend one process to the chapter's end and stop it: "", or how it ended before its time."""
        if how := self.tend(chapter, self.ended, limit, meanwhile):
            return how
        end = time.monotonic() + linger
        while time.monotonic() < end and not self._fired():
            if how := self.tend(chapter, self.ended, limit, meanwhile):
                return how
        end = time.monotonic() + TIDY_S
        while time.monotonic() < end and self._untidy():
            if how := self.tend(chapter, self.ended, limit, meanwhile):
                return how
        how = self.stop()
        return "" if how == "0" else how

    def tend(
        self,
        chapter: Chapter,
        ended: Callable[[], str],
        limit: float = float("inf"),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> str:
        """Play inference and give the command until the chapter's end; "", or how `ended` says that it was over."""
        journal = Journal(self.world.state_dir, MODEL, State)
        quiet = 0
        while quiet < 2:
            if time.monotonic() > limit:
                raise Stuck(f"{chapter.name}: not at its end after {PATIENCE_S:.0f} s: {_short(_peek(journal))}")
            if how := ended():
                return how
            self.player.beat()
            self._give(chapter)
            meanwhile()
            quiet = quiet + 1 if self._asked is not None and self.world.reached(chapter, _peek(journal)) else 0
            time.sleep(BEAT_S)
        return ""

    def output(self) -> str:
        """What the processes of the last chapter said."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def _give(self, chapter: Chapter) -> None:
        """Give the chapter's command once to each process; its id makes a repeat harmless. Where none: ask for status.

        An operator whose command has failed, or whose check came to nothing, tries again after a while.
        """
        if self._asked is not None:
            with contextlib.suppress(OSError):
                self._reply += self._asked.recv(65536)
            failed = b'"failed"' in self._reply or chapter.verb == "check"
            if not failed or time.monotonic() < self._patient_until:
                return
            self._hang_up()
            self._tries += 1
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            asked.connect(str(self.world.run_dir / "control.sock"))
            order = {"id": f"{chapter.name}-{self._tries}", "verb": chapter.verb or "status", "model": MODEL}
            asked.sendall(json.dumps(order).encode() + b"\n")
        except OSError:
            asked.close()
            return
        asked.setblocking(False)
        self._asked, self._reply, self._patient_until = asked, b"", time.monotonic() + AGAIN_S

    def _hang_up(self) -> None:
        if self._asked is not None:
            self._asked.close()
            self._asked = None


def _peek(journal: Journal[State]) -> State | None:
    with contextlib.suppress(AgentError):
        return journal.peek()
    return None


def _short(state: State | None) -> str:
    if state is None:
        return "no state can be read"
    return f"phase {state.phase.value}, {state.watch.kind.value}, doing {state.doing}, {state.waiting}"


def _word(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "killed" if number == signal.SIGKILL else signal.Signals(number).name
    return str(os.WEXITSTATUS(status))


def copy_tree(source: Path, target: Path) -> None:
    """A copy with link times kept: they are part of a link's identity."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, symlinks=True)
