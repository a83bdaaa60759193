"""Children: started, bound, limited and ended, whatever they do."""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent import children
from modelagent.children import Child, Limits, describe_exit, spawn

pytestmark = pytest.mark.process

SOURCE = str(Path(children.__file__).parent.parent)


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """Children to be closed when the test ends."""
    found: list[Child] = []
    yield found
    for child in found:
        child.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_the_exit_status_and_the_signal_are_told(started: list[Child]) -> None:
    started.append(spawn(python("raise SystemExit(3)")))
    assert started[0].wait(10.0) == 3
    started.append(spawn(python("import os; os.abort()")))
    assert started[1].wait(10.0) == -signal.SIGABRT
    assert started[1].returncode == -signal.SIGABRT
    assert not started[1].alive()
    assert describe_exit(3) == "ended with status 3"
    assert describe_exit(-6) == "killed by SIGABRT"
    assert describe_exit(-40) == "killed by signal 40"


def test_waiting_has_a_limit_and_the_pidfd_tells_the_end(started: list[Child]) -> None:
    child = spawn(python("import time; time.sleep(60)"))
    started.append(child)
    assert child.wait(0.05) is None
    assert child.alive()
    child.kill()
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(5000)
    assert child.wait(5.0) == -signal.SIGKILL
    child.kill()  # nothing happens any more
    child.signal(signal.SIGTERM)
    child.close()
    child.close()


def test_sigterm_first_then_sigkill(started: list[Child]) -> None:
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = spawn(python(deaf), capture=4096)
    started.append(child)
    end = time.monotonic() + 5.0
    while not child.said() and time.monotonic() < end:
        time.sleep(0.01)
    assert child.terminate(0.1) == -signal.SIGKILL


def test_only_the_named_descriptors_are_passed_on(started: list[Child]) -> None:
    ours, theirs = socket.socketpair()
    hidden, other = socket.socketpair()
    for fd in (hidden.fileno(), other.fileno()):
        os.set_inheritable(fd, True)
    code = "import os, sys; print(sorted(int(n) for n in os.listdir('/proc/self/fd')), flush=True)"
    with ours, theirs, hidden, other:
        child = spawn(python(code), pass_fds=(theirs.fileno(),), capture=4096)
        started.append(child)
        assert child.wait(10.0) == 0
        # 0 to 2, the one passed, and the one that lists the directory.
        found = [int(word) for word in child.said().strip("[]").split(",")]
        assert theirs.fileno() in found
        assert hidden.fileno() not in found
        assert len(found) == 5


def test_one_that_prints_for_ever_fills_nothing(started: list[Child]) -> None:
    code = "import os\nfor _ in range(10**6): os.write(1, b'x' * 1000)"
    child = spawn(python(code), capture=8192)
    started.append(child)
    assert child.wait(10.0) == 1
    assert child.said(50) == "x" * 50
    started.append(spawn(python("print('x' * 10**6)")))  # to nowhere
    assert started[1].wait(10.0) == 0
    assert started[1].said() == ""


def test_what_the_leader_leaves_behind_ends_with_it(started: list[Child]) -> None:
    code = "import os, time\np = os.fork()\nif p: print(p, flush=True); os._exit(0)\ntime.sleep(60)"
    child = spawn(python(code), capture=4096)
    started.append(child)
    assert child.wait(10.0) == 0
    orphan = int(child.said())
    end = time.monotonic() + 5.0
    while _runs(orphan) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(orphan)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def test_a_program_that_is_not_there_is_an_oserror_and_leaks_nothing() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        spawn(["/nonexistent/program"], capture=4096)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_child_dies_with_its_parent_even_in_a_hang() -> None:
    child_code = (
        f"import sys, os; sys.path.insert(0, {SOURCE!r})\n"
        "from modelagent.children import bind_to_parent\n"
        "bind_to_parent(int(sys.argv[1])); print(os.getpid(), flush=True)\n"
        "while True: pass\n"
    )
    parent_code = (
        "import subprocess, sys, os\n"
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {child_code!r}, str(os.getpid())])\n"
        "p.wait()\n"
    )
    with subprocess.Popen(python(parent_code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait(5.0)
    end = time.monotonic() + 5.0
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(pid)


def test_a_child_whose_parent_was_gone_already_ends_by_itself(started: list[Child]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "from modelagent.children import bind_to_parent\nbind_to_parent(1 << 21)\nprint('still here')"
    )
    started.append(spawn(python(code), capture=4096))
    assert started[0].wait(10.0) == 70
    assert started[0].said() == ""


def test_limits_hold_from_inside(started: list[Child]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "import os, resource\nfrom modelagent.children import Limits, limit_self\n"
        "limit_self(Limits(memory_mb=512, cpu_s=9, files=32, fsize_mb=1, processes=77), nice=19, oom_score_adj=1000,"
        " no_new_privileges=True)\n"
        "get = resource.getrlimit\n"
        "assert get(resource.RLIMIT_AS) == (512 << 20, 512 << 20)\n"
        "assert get(resource.RLIMIT_CPU) == (9, 14)\n"
        "assert get(resource.RLIMIT_NOFILE) == (32, 32)\n"
        "assert get(resource.RLIMIT_FSIZE) == (1 << 20, 1 << 20)\n"
        "assert get(resource.RLIMIT_NPROC) == (77, 77)\n"
        "assert get(resource.RLIMIT_CORE) == (0, 0)\n"
        "assert os.getpriority(os.PRIO_PROCESS, 0) == 19\n"
        "assert open('/proc/self/oom_score_adj').read() == '1000\\n'\n"
        "assert 'NoNewPrivs:\\t1' in open('/proc/self/status').read()\n"
        "limit_self(Limits(files=64))\n"
        "try: bytearray(1 << 30)\nexcept MemoryError: print('held', get(resource.RLIMIT_NOFILE))\n"
    )
    started.append(spawn(python(code), capture=4096))
    assert started[0].wait(10.0) == 0, started[0].said()
    # As root the second call may raise a limit again; what matters is that it is no error for anyone.
    assert started[0].said().startswith("held")


def test_limits_hold_from_outside(started: list[Child]) -> None:
    child = spawn(python("import time; time.sleep(60)"))
    started.append(child)
    child.confine(Limits(memory_mb=300, cpu_s=5, files=20, fsize_mb=2, processes=9))
    assert resource.prlimit(child.pid, resource.RLIMIT_AS) == (300 << 20, 300 << 20)
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (20, 20)
    assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (0, 0)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "1000\n"
    end = time.monotonic() + 10.0
    while child.resident_kb() <= 1000:  # just started, it has touched little of its memory
        assert time.monotonic() < end
    child.kill()
    child.wait(5.0)
    child.confine(Limits(files=20))  # too late is no error
    assert child.resident_kb() == 0


def test_every_thread_gets_its_priority_back(started: list[Child]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "import os, threading\nfrom modelagent.children import limit_self, raise_priority\n"
        "limit_self(nice=19)\nend = threading.Event()\n"
        "threads = [threading.Thread(target=end.wait) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "actual = raise_priority(0)\n"
        "worst = max(os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir('/proc/self/task'))\n"
        "print(actual == worst, flush=True); end.set()\n"
    )
    started.append(spawn(python(code), capture=4096))
    assert started[0].wait(10.0) == 0
    assert started[0].said() == "True"


def test_the_lowest_priority_gives_way_at_once_and_is_left_for_good(started: list[Child]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "import os\nfrom modelagent.children import limit_self, raise_priority\n"
        "limit_self(nice=19)\nbefore = os.sched_getscheduler(0)\nraised = raise_priority(0)\n"
        "free = os.getpriority(os.PRIO_PROCESS, 0) == 0\n"
        "print(before == os.SCHED_IDLE, raised == (0 if free else 19), (os.sched_getscheduler(0) == 0) == free)\n"
    )
    started.append(spawn(python(code), capture=4096))
    assert started[0].wait(10.0) == 0
    assert started[0].said() == "True True True"


def test_one_that_gets_no_turn_is_lifted(started: list[Child]) -> None:
    child = spawn(python("import time; time.sleep(60)"))
    started.append(child)
    child.confine(Limits())
    assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
    child.lift()
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
    if os.geteuid() == 0:
        assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
    child.kill()
    child.wait(5.0)
    child.lift()  # too late is no error
    children.sink(child.pid)


def test_a_child_leads_its_group_and_stays_in_our_session(started: list[Child]) -> None:
    started.append(spawn(python("import time; time.sleep(60)")))
    assert os.getpgid(started[0].pid) == started[0].pid
    assert os.getsid(started[0].pid) == os.getsid(0), "a session of its own would be a scheduling group of its own"


def test_a_short_slice_is_asked_for_where_the_machine_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(children.hurry(), bool)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert children.hurry() is False


def test_starting_is_quick(started: list[Child]) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        started.append(spawn(["/bin/true"]))
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05
