"""Child processes that cannot outlive their parent, and that can be ended whatever they do.

This file knows how to start a child, bind it to its parent, limit it and end it together with all that it started.
It does not know what the child runs.

    child = spawn([sys.executable, "-m", "modelagent.inference.worker", argument], pass_fds=(3,))
    poll.register(child.pidfd, select.POLLIN)      # readable once the child has ended
    child.kill()                                   # SIGKILL to the whole group; a hung `invoke` runs no handler
    child.wait(5.0)                                # exit status, -N for signal N

**Spawn from one long-lived thread per process.** A child asks the kernel to be killed when its parent dies
(`bind_to_parent`), and to the kernel the parent is the *thread* that made it: PR_SET_PDEATHSIG fires as soon as
that thread ends (prctl(2), "the 'parent' in this case is considered to be the thread that created this process").
A child started by a short-lived pool thread would be killed for no reason. The request is made by the child itself
after exec: set between fork and exec it needs Python code in the forked child (`preexec_fn`), which is unsafe with
threads and forbids vfork, and vfork is what makes starting a child from a large process quick.

**The lowest priority is SCHED_IDLE**, with nice 19 for what does not know it. A niced child that computes holds its
processor for the rest of its slice, some milliseconds, when the serving model's turn comes; an idle one gives way at
once, and its processor counts as free when the scheduler looks for one (sched(7); `check_preempt_wakeup_fair` and
`sched_idle_cpu` of kernel/sched/fair.c). Both hold between tasks of one scheduling group alone. That is why a child
gets a process group but no session: with `autogroup` each session is a group of its own, whose share does not depend
on how nice its members are.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
OTHER_VERSION: Final = 75  # exit status of a worker whose program is not its parent's version (EX_TEMPFAIL)
_LOST_PARENT: Final = 70  # exit status of a child whose parent was gone before it could bind itself
_LOWEST: Final = 19  # nice
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_SLICE_NS: Final = 100_000  # the shortest that the kernel gives

_MIB: Final = 1024 * 1024
# What a program needs to start at all, and no secret that this process was given.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use at most; None leaves a limit as it is.

    `memory_mb` is address space in MiB, `cpu_s` processor seconds (SIGXCPU, five seconds later SIGKILL), `files`
    open descriptors, `fsize_mb` the largest file it may write in MiB, `processes` processes of the same user (the
    kernel does not hold root to it).
    """

    memory_mb: int | None = None
    cpu_s: int | None = None
    files: int | None = None
    fsize_mb: int | None = None
    processes: int | None = None

    def pairs(self) -> list[tuple[int, tuple[int, int]]]:
        """(RLIMIT_*, (soft, hard)) for each limit that is set; core dumps are always off."""
        wanted: list[tuple[int, tuple[int, int]]] = [(resource.RLIMIT_CORE, (0, 0))]
        if self.memory_mb is not None:
            wanted.append((resource.RLIMIT_AS, (self.memory_mb * _MIB, self.memory_mb * _MIB)))
        if self.cpu_s is not None:
            wanted.append((resource.RLIMIT_CPU, (self.cpu_s, self.cpu_s + 5)))
        if self.files is not None:
            wanted.append((resource.RLIMIT_NOFILE, (self.files, self.files)))
        if self.fsize_mb is not None:
            wanted.append((resource.RLIMIT_FSIZE, (self.fsize_mb * _MIB, self.fsize_mb * _MIB)))
        if self.processes is not None:
            wanted.append((resource.RLIMIT_NPROC, (self.processes, self.processes)))
        return wanted


class Child:
    """A running or ended child, leader of its own process group.

    `pid` never names another process while this object is open: the child is reaped only after its whole group has
    been killed, so neither number can have been given away. Any thread may call; only `spawn` is particular.
    """

    def __init__(self, process: subprocess.Popen[bytes], captured_fd: int | None) -> None:
        self._process = process
        self._captured_fd = captured_fd
        self._peak_kb = 0
        self._lock = threading.Lock()  # reaping frees the pid: no signal may be under way meanwhile
        self.pid = process.pid
        self.pidfd = os.pidfd_open(process.pid)
        self._poll = select.poll()
        self._poll.register(self.pidfd, select.POLLIN)

    @property
    def returncode(self) -> int | None:
        """Exit status, -N for signal N; None while it has not been reaped by `alive` or `wait`."""
        return self._process.returncode

    @property
    def peak_kb(self) -> int:
        """Largest resident memory in KiB once it has ended; 0 when not above this process's own.

        A child begins in its parent's memory and the kernel counts from there (getrusage(2), ru_maxrss).
        """
        return self._peak_kb

    def alive(self) -> bool:
        """Whether it still runs; reaps it if not."""
        return self.wait(0.0) is None

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for its end.

        Returns:
            The exit status (-N for signal N), or None when it still runs.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        deadline = time.monotonic() + timeout
        while not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000.0):
            if time.monotonic() >= deadline:
                return None
        with self._lock:
            return self._reap()

    def _reap(self) -> int:
        if self._process.returncode is not None:
            return self._process.returncode
        # The ended leader still holds its pid, so the group number is still ours: sweep what it left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # SIGCHLD is ignored in this process: the kernel kept no status
            self._process.returncode = 0
            return 0
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._peak_kb = usage.ru_maxrss if usage.ru_maxrss > own else 0
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the leader; nothing happens when it has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """SIGKILL to the whole group; does not wait. Nothing happens when it has been reaped."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)

    def terminate(self, timeout: float) -> int | None:
        """SIGTERM to the leader, after `timeout` seconds SIGKILL to the group; returns the exit status."""
        self.signal(signal.SIGTERM)
        if self.wait(timeout) is None:
            self.kill()
        return self.wait(5.0)

    def said(self, limit: int = 400) -> str:
        """The end of what it printed, at most `limit` characters, if `spawn` was asked to capture.

        Lines that call themselves INFO are left out: a reason for a death is wanted, not the runtime's small talk.
        """
        if self._captured_fd is None:
            return ""
        size = os.fstat(self._captured_fd).st_size
        text = os.pread(self._captured_fd, size, 0).rstrip(b"\0").decode(errors="replace")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("INFO")).strip()
        return text[-limit:]

    def resident_kb(self) -> int:
        """Resident memory in KiB now; 0 when it has ended."""
        try:
            fd = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)  # asked for every second, for ever
            try:
                pages = int(os.read(fd, 256).split()[1])
            finally:
                os.close(fd)
        except (OSError, IndexError, ValueError):
            return 0
        return pages * (resource.getpagesize() // 1024)

    def confine(self, limits: Limits) -> None:
        """Limit it from outside, which holds even when the program inside never limits itself.

        Also gives it the lowest priority and makes it the first that the kernel ends when memory is short. A child
        that ended meanwhile is left alone; what this process may not do is skipped.
        """
        for name, value in limits.pairs():
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(self.pid, name, value)
        sink(self.pid)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text("1000")

    def lift(self) -> None:
        """From SCHED_IDLE to nice 19, for one that gets no turn: some hundredths of a busy processor, not thousandths.

        In slices as short as the kernel gives them, so that whom it interrupts hardly notices. Allowed to root and
        where RLIMIT_NICE is set; else everything stays as it is.
        """
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                if not _slice_shortly(int(task.name), _LOWEST):
                    with contextlib.suppress(OSError):
                        os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))

    def close(self) -> None:
        """End it if it runs, and give back every descriptor; harmless twice."""
        if self.pidfd < 0:
            return
        self.kill()
        self.wait(5.0)
        os.close(self.pidfd)
        self.pidfd = -1
        if self._captured_fd is not None:
            os.close(self._captured_fd)
            self._captured_fd = None


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
    capture: int = 0,
) -> Child:
    """Start a child in its own process group, with no descriptor but those named.

    Call it from one long-lived thread (see the head of this file).

    Args:
        argv: program (absolute path) and arguments.
        pass_fds: descriptors that keep their number in the child; all others are closed.
        env: its environment; None: this process's.
        stderr: where standard output and error go: a descriptor; None: nowhere.
        capture: keep the first so many bytes of output for `said`; further writes fail with EPERM in the child, so
            that one that prints for ever fills neither disk, memory nor a pipe. Wins over `stderr`.

    Raises:
        OSError: as the kernel gives it (no process, memory or descriptor left, program not found).
    """
    captured = _bounded_file(capture) if capture else None
    output = captured if captured is not None else subprocess.DEVNULL if stderr is None else stderr
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=tuple(pass_fds),
            env=None if env is None else dict(env),
            close_fds=True,
            process_group=0,
        )
        try:
            return Child(process, captured)
        except OSError:
            process.kill()
            process.wait()
            raise
    except OSError:
        if captured is not None:
            os.close(captured)
        raise


def bare_environment() -> dict[str, str]:
    """The environment for a child that runs foreign bytes: what it needs to start, and nothing else of ours."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def _bounded_file(size: int) -> int:
    """A memory file of fixed size: writes past its end fail, and nobody has to read it."""
    fd = os.memfd_create("modelagent-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def sink(task: int) -> None:
    """Give a thread the lowest priority there is, which needs no right; nothing happens when it has ended.

    Args:
        task: its number; a process's own number is its first thread, 0 the calling thread.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, task, _LOWEST)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))


def hurry() -> bool:
    """Ask that the calling thread, which sleeps most of the time, runs at once when it wakes.

    From Linux 6.12 on a thread may name the slice it needs, and one with a short slice goes before one with a longer
    slice that runs (sched_setattr(2), PREEMPT_SHORT of kernel/sched/features.h). Otherwise it may wake on the
    processor of the very worker it waits for and wait again, until that one's slice is over.

    Returns:
        Whether the kernel took the request; an older one takes it and does nothing.
    """
    return _slice_shortly(0, os.getpriority(os.PRIO_PROCESS, 0))


def _slice_shortly(task: int, nice: int) -> bool:
    """SCHED_OTHER with the shortest slice, for the thread of that number (0: the calling one)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    # struct sched_attr: size, policy, flags, nice, priority, runtime (here: the slice), deadline, period.
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(ctypes.c_long(number), task, attributes, 0) == 0)


def bind_to_parent(parent_pid: int) -> None:
    """In the child, first thing: die when the parent dies, by SIGKILL, even from within a hung call.

    Also lets go of the terminal, if there is one: a child shares its parent's session. Ends this process at once when
    the parent is gone already (the request would then never fire).

    Args:
        parent_pid: the pid of the process that spawned this one, as that process knows it.

    Raises:
        OSError: when the kernel refuses the request.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(_LOST_PARENT)
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)  # of this process alone, as it does not lead the session
        finally:
            os.close(terminal)


def limit_self(
    limits: Limits | None = None,
    *,
    nice: int | None = None,
    oom_score_adj: int | None = None,
    no_new_privileges: bool = False,
) -> None:
    """In the child: give up what it does not need. What the kernel does not let it lower further is skipped.

    Args:
        limits: see `Limits`; set soft and hard, so there is no way back.
        nice: priority of this thread and of those it starts later, -20 to 19; 19 is the very lowest, see `sink`.
        oom_score_adj: -1000 to 1000; 1000 is the first to be ended when memory is short.
        no_new_privileges: no set-user-id program can give back what was given up (prctl(2)).

    Raises:
        OSError: when NO_NEW_PRIVS is refused, which no supported kernel does.
    """
    if no_new_privileges:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if nice == _LOWEST:
        sink(0)
    elif nice is not None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    if oom_score_adj is not None:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj))
    for name, wanted in limits.pairs() if limits is not None else []:
        ceiling = resource.getrlimit(name)[1]
        bounded = ceiling != resource.RLIM_INFINITY
        resource.setrlimit(name, (min(wanted[0], ceiling), min(wanted[1], ceiling)) if bounded else wanted)


def raise_priority(nice: int = 0) -> int:
    """In the child: give every thread of this process the priority `nice`, where the kernel allows it.

    A process without CAP_SYS_NICE may raise its priority only as far as RLIMIT_NICE allows (setpriority(2)), and a
    new thread has the priority of the one that made it: so each thread is asked for.

    Returns:
        The worst priority any thread now has.
    """
    actual = -20
    for task in Path("/proc/self/task").iterdir():
        thread = int(task.name)
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, nice)
        with contextlib.suppress(OSError):
            actual = max(actual, os.getpriority(os.PRIO_PROCESS, thread))
    return actual


def describe_exit(returncode: int) -> str:
    """An exit status for a person: `killed by SIGABRT` or `ended with status 3`."""
    if returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    return f"ended with status {returncode}"


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
