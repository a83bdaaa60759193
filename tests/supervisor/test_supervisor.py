"""The supervisor: back-off by an injected clock, and real children that crash, linger and are orphaned."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from modelagent.children import Child, spawn
from modelagent.notify import notify
from modelagent.supervisor import PARENT, BackOff, Supervisor

SOURCE = str(Path(__file__).parents[2] / "src")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_back_off_doubles_to_its_limit() -> None:
    back_off = BackOff(first=0.5, limit=30.0, healthy_after=60.0)
    assert [back_off.after(0.1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_back_off_forgets_after_a_healthy_run() -> None:
    back_off = BackOff(first=0.5, limit=30.0, healthy_after=60.0)
    for _ in range(5):
        back_off.after(1.0)
    assert back_off.after(60.0) == 0.5
    assert back_off.after(59.9) == 1.0


def test_a_command_that_cannot_be_started_waits_like_one_that_crashed() -> None:
    clock, lines = Clock(), list[str]()

    def refuse(_argv: Sequence[str], _environment: Mapping[str, str]) -> Child:
        raise OSError(11, "Resource temporarily unavailable")

    supervisor = Supervisor({"updater": ["/x"]}, log=lines.append, start=refuse, clock=clock)
    assert supervisor.tend() == 0.5
    clock.now += 0.4
    assert supervisor.tend() == pytest.approx(0.1)
    assert len(lines) == 1
    clock.now += 0.2
    assert supervisor.tend() == 1.0
    assert "Resource temporarily unavailable" in supervisor.describe()
    assert supervisor.descriptors() == []


def test_notify_reaches_an_abstract_and_a_named_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, shown in ((f"\0modelagent-{os.getpid()}", f"@modelagent-{os.getpid()}"), (str(tmp_path / "n"),) * 2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(address)
            listener.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", shown)
            notify("READY=1", "STATUS=up")
            assert listener.recv(100) == b"READY=1\nSTATUS=up"


def test_notify_without_a_listener_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


@pytest.mark.process
def test_a_crashed_child_is_started_again_after_the_delay_and_not_before() -> None:
    clock, starts = Clock(), list[float]()

    def start(argv: Sequence[str], environment: Mapping[str, str]) -> Child:
        starts.append(clock.now)
        return spawn(argv, env=environment)

    supervisor = Supervisor({"inference": ["/bin/false"]}, log=lambda _: None, start=start, clock=clock)
    for _ in range(4):
        wait = supervisor.tend()
        assert wait is None
        select.select(supervisor.descriptors(), [], [], 10)
        wait = supervisor.tend()
        assert wait is not None
        assert "ended with status 1" in supervisor.describe()
        clock.now += wait
    assert starts == [1000.0, 1000.5, 1001.5, 1003.5]


@pytest.mark.process
def test_a_child_is_told_its_parent_and_does_not_speak_to_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    out = tmp_path / "environment"
    supervisor = Supervisor({"a": ["/bin/sh", "-c", f"env > {out}"]}, log=lambda _: None)
    supervisor.tend()
    select.select(supervisor.descriptors(), [], [], 10)
    supervisor.end(1.0)
    lines = out.read_text().splitlines()
    assert f"{PARENT}={os.getpid()}" in lines
    assert not any(line.startswith("NOTIFY_SOCKET") for line in lines)


# ---- a supervisor in a process of its own -----------------------------------------------------------------------

PARENT_PROGRAM = """
import sys
from modelagent.supervisor import supervise
children = {name: [sys.executable, "-c", open(path).read(), directory]
            for name, path, directory in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3])}
sys.exit(supervise(children, log=lambda line: print(line, flush=True)))
"""

POLITE = """
import os, pathlib, signal, sys
from modelagent.children import bind_to_parent
bind_to_parent(int(os.environ["MODELAGENT_PARENT"]))
directory = pathlib.Path(sys.argv[1])
def stop(*_):
    (directory / "ended").write_text("")
    raise SystemExit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: (directory / "reloaded").write_text(""))
(directory / "pid").write_text(str(os.getpid()))
while True:
    signal.pause()
"""

# Ignores SIGTERM, as a process that hangs in a call does.
STUBBORN = """
import os, pathlib, signal, sys
from modelagent.children import bind_to_parent
bind_to_parent(int(os.environ["MODELAGENT_PARENT"]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
while True:
    signal.pause()
"""


def _wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _start(tmp_path: Path, **programs: str) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    arguments: list[str] = []
    for name, program in programs.items():
        directory = tmp_path / name
        directory.mkdir()
        (directory / "program.py").write_text(program)
        arguments += [name, str(directory / "program.py"), str(directory)]
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT_PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": SOURCE},
        stdout=subprocess.DEVNULL,
    )
    pids: dict[str, int] = {}
    for name in programs:
        file = tmp_path / name / "pid"
        _wait_for(lambda file=file: file.exists() and bool(file.read_text()))  # type: ignore[misc] # bound now
        pids[name] = int(file.read_text())
    return process, pids


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_children_in_order(tmp_path: Path, number: signal.Signals) -> None:
    process, pids = _start(tmp_path, one=POLITE, two=POLITE)
    try:
        process.send_signal(number)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
    assert all(_gone(pid) for pid in pids.values())
    assert (tmp_path / "one" / "ended").exists()
    assert (tmp_path / "two" / "ended").exists()


@pytest.mark.process
def test_a_child_that_ignores_sigterm_is_killed_within_five_seconds(tmp_path: Path) -> None:
    process, pids = _start(tmp_path, polite=POLITE, stubborn=STUBBORN)
    try:
        begun = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 5.0
    finally:
        process.kill()
        process.wait()
    assert all(_gone(pid) for pid in pids.values())


@pytest.mark.process
def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    process, pids = _start(tmp_path, stubborn=STUBBORN)
    try:
        begun = time.monotonic()
        process.terminate()
        time.sleep(0.3)  # two equal signals sent at once would arrive as one
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 2.5
    finally:
        process.kill()
        process.wait()
    assert _gone(pids["stubborn"])


@pytest.mark.process
def test_a_terminal_that_goes_meanwhile_is_no_second_wish_to_stop(tmp_path: Path) -> None:
    slow = POLITE.replace("def stop(*_):", "def stop(*_):\n    import time\n    time.sleep(1.5)")
    process, pids = _start(tmp_path, slow=slow)
    try:
        process.terminate()
        for _ in range(2):
            time.sleep(0.2)
            process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert _gone(pids["slow"])
    assert (tmp_path / "slow" / "ended").exists()


@pytest.mark.process
def test_sigkill_of_the_parent_leaves_no_orphan(tmp_path: Path) -> None:
    process, pids = _start(tmp_path, polite=POLITE, stubborn=STUBBORN)
    process.kill()
    process.wait()
    _wait_for(lambda: all(_gone(pid) for pid in pids.values()), 5.0)


@pytest.mark.process
def test_a_killed_child_comes_back_and_the_other_is_left_alone(tmp_path: Path) -> None:
    process, pids = _start(tmp_path, one=POLITE, two=POLITE)
    try:
        file = tmp_path / "one" / "pid"
        os.kill(pids["one"], signal.SIGKILL)
        _wait_for(lambda: bool(file.read_text()) and int(file.read_text()) != pids["one"])
        assert not _gone(pids["two"])
    finally:
        process.terminate()
        assert process.wait(10) == 0
    assert int((tmp_path / "two" / "pid").read_text()) == pids["two"]


@pytest.mark.process
def test_sighup_is_passed_on(tmp_path: Path) -> None:
    process, _ = _start(tmp_path, one=POLITE)
    try:
        process.send_signal(signal.SIGHUP)
        _wait_for((tmp_path / "one" / "reloaded").exists)
    finally:
        process.terminate()
        assert process.wait(10) == 0
