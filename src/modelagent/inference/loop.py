"""The inference process: all lines, one main thread that starts every child, one loop that sleeps until something is.

This file knows signals, the process's lock, what to wait for and how to stop. It does not know models' rules.

    exit_status = run_inference(settings)          # returns after SIGTERM or SIGINT; everything it started has ended

The main thread lives as long as the process, because workers die with the thread that made them (see children.py).
"""

import contextlib
import fcntl
import gc
import logging
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from modelagent.errors import AgentError, DeviceError
from modelagent.inference.line import Line
from modelagent.inference.options import LoopOptions, ModelOptions
from modelagent.inference.serving import SERVES
from modelagent.inference.watch import Watch
from modelagent.inference.workers import Loader
from modelagent.inputs.config import load, remember
from modelagent.inputs.schema import Settings
from modelagent.notify import notify

_log = logging.getLogger(__name__)

_TICK: Final = 1.0  # seconds between two health files
_TICK_AT_REST: Final = 2.0  # the same while models run and no frame comes
_STOP: Final = 4.0  # seconds to end everything; systemd and `modelagent run` allow five
_SWITCH: Final = 0.0005  # seconds; a thread that waits for the interpreter lock gets it this soon


def run_inference(settings: Settings) -> int:
    """Run the inference process until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a wished stop, 1 after a thread's end that nobody expected.

    Raises:
        DeviceError: `running` when another inference process holds the directory; `directory` when our directories
            cannot be made.
        UsageError: `config`.
    """
    return run(LoopOptions.from_settings(settings), reread=lambda: _reread(settings))


def run(options: LoopOptions, *, reread: Callable[[], LoopOptions] | None = None) -> int:
    """See `run_inference`; takes plain options. `reread` gives newer ones when SIGHUP asks, or raises AgentError."""
    sys.setswitchinterval(_SWITCH)
    with _locked(options.lock):
        return Loop(options, reread=reread).run()


def _reread(started: Settings) -> LoopOptions:
    """The options that the settings file asks for now; the directories stay those that we hold the lock of."""
    settings = load(Path(os.environ.get("MODELAGENT_CONFIG", "/etc/modelagent/modelagent.toml")))
    if settings.paths != started.paths:
        raise DeviceError("paths: found a change, which needs a restart; the rest waits for it too", code="restart")
    with contextlib.suppress(OSError):  # a full disk must not keep a good edit from taking effect
        remember(settings, settings.paths.inference_dir)
    return LoopOptions.from_settings(settings)


class Loop:
    """The main thread's loop."""

    def __init__(self, options: LoopOptions, *, reread: Callable[[], LoopOptions] | None = None) -> None:
        self._stop = False
        self._hung_up = False
        self._status_code = 0
        self._reread = reread
        # A pipe, not an eventfd: a signal's arrival is announced by one byte (signal.set_wakeup_fd).
        self._woken_fd, self._wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch = Watch()
        self._loader = Loader()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._lines = [self._line(model) for model in options.models]

    def _line(self, model: ModelOptions) -> Line:
        # An epoch for each line: counts of one that a reload made anew begin anew for the reader too.
        epoch = secrets.token_hex(8)
        try:
            return Line(model, self._loader, boot_id=self._boot_id, epoch=epoch, wake=self._wake)
        except OSError as error:
            raise DeviceError(
                f"{error.filename}: {error.strerror}; correct [paths] or permissions", code="directory"
            ) from error

    def run(self) -> int:
        """Until told to stop."""
        hook, threading.excepthook = threading.excepthook, self._thread_ended
        before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
        old_fd = signal.set_wakeup_fd(self._wake_fd, warn_on_full_buffer=False)
        try:
            for line in self._lines:
                line.start()
            gc.collect()
            gc.freeze()  # what exists now lives as long as we: later collections need not look at it
            notify("READY=1", self._status())
            self._loop()
        finally:
            notify("STOPPING=1")
            signal.set_wakeup_fd(old_fd)
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
            threading.excepthook = hook
        return self._status_code

    def _loop(self) -> None:
        tick = time.monotonic()
        status = ""
        while not self._stop:
            now = time.monotonic()
            if self._hung_up:
                self._hung_up = False
                self._reload()
            if now >= tick:
                for line in self._lines:
                    self._watch.add(line.options.model_dir)
                    self._watch.add(line.options.labels_dir)
                    line.tick(now)
                tick = now + (_TICK_AT_REST if all(line.resting for line in self._lines) else _TICK)
                if all(line.alive(now) for line in self._lines):
                    notify("WATCHDOG=1")
                before, status = status, self._status()
                if status != before:
                    notify(status)
            changed = self._wait(tick - now)
            now = time.monotonic()
            self._loader.step(now)
            for line in self._lines:
                line.step(now, looked=changed)
            self._loader.step(now)  # what the lines have just asked for

    def _status(self) -> str:
        """One line for systemctl status."""
        said = "; ".join(f"{line.options.name}: {line.describe()}" for line in self._lines)
        return f"STATUS={said or 'no model configured'}"

    def _reload(self) -> None:
        """Take up newer settings: a line whose options changed is made anew, the others do not notice."""
        if self._reread is None:
            return
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            wanted = {model.name: model for model in self._reread().models}
            kept = [line for line in self._lines if wanted.get(line.options.name) == line.options]
            gone = [line for line in self._lines if line not in kept]
            for line in gone:
                line.stop(time.monotonic() + _STOP)
            self._lines = kept
            names = {line.options.name for line in kept}
            before = {line.options.name: line.options for line in gone}
            for model in (model for name, model in wanted.items() if name not in names):
                self._begin(model, before.get(model.name))
            changed = ", ".join(sorted({line.options.name for line in gone} | (wanted.keys() - names)))
            _log.info("settings read again; changed: %s", changed or "nothing for inference")
        except AgentError as error:
            _log.error("settings refused, the last good ones stay: %s", error.message)
        notify("READY=1", self._status())

    def _begin(self, model: ModelOptions, before: ModelOptions | None) -> None:
        """A line with these options or, where they are impossible, with those it had before."""
        for options in (model, before):
            if options is None:
                return
            try:
                line = self._line(options)
            except AgentError as error:
                _log.error("%s: settings refused, the last good ones stay: %s", model.name, error.message)
                continue
            self._lines.append(line)
            line.start()
            return

    def _wait(self, timeout: float) -> bool:
        """Sleep until something is to be done; True when a directory has changed."""
        due = self._loader.due(time.monotonic())
        if due is not None:
            timeout = min(timeout, due)
        poll = select.poll()
        poll.register(self._woken_fd, select.POLLIN)
        if self._watch.fd >= 0:
            poll.register(self._watch.fd, select.POLLIN)
        for fd in self._loader.fds:
            poll.register(fd, select.POLLIN)
        workers = {fd: line for line in self._lines for fd in line.handover.fds}
        for fd in workers:
            poll.register(fd, select.POLLIN)
        changed = False
        for fd, _ in poll.poll(max(0.0, timeout) * 1000.0):
            if fd == self._woken_fd:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 65536)
            elif fd == self._watch.fd:
                self._watch.drain()
                changed = True
            elif fd in workers:
                workers[fd].handover.look_after()
                time.sleep(0.001)  # the serving thread reports it; until then the descriptor stays readable
        return changed

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wishes to wake already
            os.write(self._wake_fd, b"\0")

    def _thread_ended(self, told: threading.ExceptHookArgs) -> None:
        """A programmer's error ended a thread. Without the one that serves frames go in and nothing comes out."""
        name = told.thread.name if told.thread is not None else "thread"
        value = told.exc_value or told.exc_type()
        serves = name.startswith(SERVES)
        then = "ending, to be started again" if serves else "the rest goes on"
        _log.critical("%s ended: %r; %s", name, value, then, exc_info=value)
        if serves:
            self._status_code, self._stop = 1, True
            self._wake()

    def _told(self, _number: int, _frame: object) -> None:
        self._stop = True

    def _hang_up(self, _number: int, _frame: object) -> None:
        self._hung_up = True

    def _end(self) -> None:
        deadline = time.monotonic() + _STOP
        for line in self._lines:
            line.stop(deadline)
        self._loader.close()
        self._watch.close()
        os.close(self._woken_fd)
        os.close(self._wake_fd)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the process's lock, which the kernel frees however we end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}; correct [paths] or permissions", code="directory") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeviceError(
                f"{path}: another inference process runs with this directory; stop it first", code="running"
            ) from error
        yield
    finally:
        os.close(fd)
