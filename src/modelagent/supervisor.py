"""Keeps a few children running where no systemd does: containers, development, the demo.

This file knows children by name and exit status: it starts them, starts them again with back-off, and ends them all
within five seconds. It does not know what they do, reads no state and judges no model; under systemd each child is
a unit of its own and this file has no part in it.

    supervise({"inference": [python, "-m", "modelagent", "run", "inference"], "updater": [...]}, log=print)   # -> 0

Children run in process groups of their own, so Ctrl-C in a terminal reaches this process alone and the end is in order.
Each finds this process's pid in MODELAGENT_PARENT and binds itself to it (`children.bind_to_parent`): SIGKILL of
this process leaves no orphan. Call `supervise` from the main thread.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelagent.children import Child, describe_exit, spawn
from modelagent.notify import notify

PARENT: Final = "MODELAGENT_PARENT"  # environment variable with the pid that a child binds itself to
FIRST_DELAY: Final = 0.5  # seconds before the first new start, doubling
LAST_DELAY: Final = 30.0
HEALTHY_AFTER: Final = 60.0  # a child that ran this long has its earlier crashes forgotten
GRACE: Final = 4.5  # seconds between SIGTERM and SIGKILL; with the reaping this stays below five
_ASK: Final = 0.5  # seconds between two questions whether to stop, where somebody wants to be asked
_STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT})


@dataclass(slots=True)
class BackOff:
    """How long to wait before a child is started again: doubles with each early end, forgets after health."""

    first: float = FIRST_DELAY
    limit: float = LAST_DELAY
    healthy_after: float = HEALTHY_AFTER
    _next: float = field(default=0.0)

    def after(self, ran_for: float) -> float:
        """Seconds to wait after an end; `ran_for`: seconds it had been running."""
        if ran_for >= self.healthy_after or self._next == 0.0:
            self._next = self.first
        delay = self._next
        self._next = min(self.limit, self._next * 2)
        return delay


@dataclass(slots=True)
class _Post:
    """One child's place: its command, the child in it if one runs, and when it may be started again."""

    name: str
    argv: Sequence[str]
    back_off: BackOff = field(default_factory=BackOff)
    child: Child | None = None
    since: float = 0.0
    due: float = 0.0
    why: str = ""


class Supervisor:
    """The loop, with its clock and its way to start children given from outside.

    Args:
        commands: name -> program (absolute path) and arguments.
        log: takes one line for people.
        start: makes a child of an argument list and an environment.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        log: Callable[[str], None],
        start: Callable[[Sequence[str], Mapping[str, str]], Child] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._posts = [_Post(name, list(argv)) for name, argv in commands.items()]
        self._log = log
        self._start = start or _start
        self._clock = clock
        self._environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"} | {PARENT: str(os.getpid())}

    def tend(self) -> float | None:
        """Collect what has ended and start what is due.

        Returns:
            Seconds until something is due; None when only an event can change anything.
        """
        waits = []
        for post in self._posts:
            self._collect(post)
            if post.child is None and post.due <= self._clock():
                self._launch(post)
            if post.child is None:
                waits.append(max(0.0, post.due - self._clock()))
        return min(waits) if waits else None

    def descriptors(self) -> list[int]:
        """Pidfds of the running children: readable once one has ended."""
        return [post.child.pidfd for post in self._posts if post.child is not None]

    def describe(self) -> str:
        """One line about all children, for `systemctl status` and the log."""
        return "; ".join(
            f"{post.name}: running" if post.child is not None else f"{post.name}: {post.why}, will be started again"
            for post in self._posts
        )

    def forward(self, number: int) -> None:
        """Pass a signal (SIGHUP: read the settings again) to every running child."""
        for post in self._posts:
            if post.child is not None:
                post.child.signal(number)

    def end(self, grace: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """End all children: SIGTERM to each, and SIGKILL to its group after `grace` seconds or when hurried."""
        running = [(post, post.child) for post in self._posts if post.child is not None]
        for _, child in running:
            child.signal(signal.SIGTERM)
        deadline = self._clock() + grace
        while any(child.alive() for _, child in running) and self._clock() < deadline and not hurry():
            time.sleep(0.02)
        for post, child in running:
            if child.alive():
                self._log(f"{post.name} did not end by itself, killing it")
                child.kill()
        for post, child in running:
            child.close()
            post.child = None

    def reap_strangers(self) -> None:
        """As process 1 of a container, collect orphans that the kernel handed to us; ours are left to their posts."""
        own = {post.child.pid for post in self._posts if post.child is not None}
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:
                    return
                os.waitpid(found.si_pid, os.WNOHANG)

    def _collect(self, post: _Post) -> None:
        if post.child is None:
            return
        status = post.child.wait(0.0)
        if status is None:
            return
        post.child.close()
        post.child = None
        self._postpone(post, describe_exit(status))

    def _launch(self, post: _Post) -> None:
        post.since = self._clock()
        try:
            post.child = self._start(post.argv, self._environment)
        except OSError as error:
            self._postpone(post, f"could not be started: {error.strerror or error}")
            return
        self._log(f"{post.name} started, pid {post.child.pid}")

    def _postpone(self, post: _Post, why: str) -> None:
        now = self._clock()
        delay = post.back_off.after(now - post.since)
        post.due, post.why = now + delay, why
        self._log(f"{post.name} {why}; starting it again in {delay:g} s")


def supervise(
    commands: Mapping[str, Sequence[str]],
    *,
    log: Callable[[str], None],
    stop: Callable[[], bool] | None = None,
) -> int:
    """Keep the children running until SIGTERM or SIGINT, then end them.

    A second SIGTERM or SIGINT ends them at once. SIGHUP is passed on, except in a terminal, where it means that the
    terminal has gone.

    Args:
        commands: name -> program (absolute path) and arguments.
        log: takes one line for people.
        stop: asked after each event and at least each half second; true ends the loop. Without it an idle loop sleeps.

    Returns:
        0 once all children have ended.
    """
    supervisor = Supervisor(commands, log=log)
    pending: list[int] = []

    def stopping() -> bool:
        return any(number in _STOPPING for number in pending) or (stop is not None and stop())

    told = ""
    with _woken_by_signals(pending) as wake:
        try:
            while not stopping():
                wait = supervisor.tend()
                line = supervisor.describe()
                if line != told:
                    told = line
                    notify("READY=1", f"STATUS={line}")
                poll = select.poll()
                for fd in (wake, *supervisor.descriptors()):
                    poll.register(fd, select.POLLIN)
                if stop is not None:
                    wait = min(_ASK, _ASK if wait is None else wait)
                poll.poll(None if wait is None else math.ceil(1000 * wait))
                _drain(wake)
                if os.getpid() == 1:
                    supervisor.reap_strangers()
                if signal.SIGHUP in pending:
                    pending[:] = [number for number in pending if number != signal.SIGHUP]
                    if sys.stdin is not None and sys.stdin.isatty():
                        break
                    supervisor.forward(signal.SIGHUP)
        finally:
            notify("STOPPING=1", "STATUS=ending the children")
            first = _count_stops(pending)
            supervisor.end(GRACE, hurry=lambda: _count_stops(pending) > first)
    return 0


def _count_stops(pending: Sequence[int]) -> int:
    """A SIGHUP is no second wish to stop: a terminal that goes may send several."""
    return sum(number in _STOPPING for number in pending)


def _start(argv: Sequence[str], environment: Mapping[str, str]) -> Child:
    return spawn(argv, env=environment, stderr=sys.__stderr__.fileno() if sys.__stderr__ is not None else None)


@contextlib.contextmanager
def _woken_by_signals(pending: list[int]) -> Iterator[int]:
    """Collect signals in `pending` and make the yielded descriptor readable for each; all is put back at the end."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

        def note(number: int, _frame: object) -> None:
            if number != signal.SIGCHLD:
                pending.append(number)

        before = {number: signal.signal(number, note) for number in numbers}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader.fileno()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 512):
            pass
