"""The demo is a test: every act has to happen, and Ctrl-C has to leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "digits" / "demo.py")]

pytestmark = [pytest.mark.process, pytest.mark.demo]


def processes_that_name(word: str) -> list[str]:
    """Command lines of running processes that contain `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found


@pytest.mark.long  # `script/demo` is the same
def test_the_demo_plays_all_acts(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    done = subprocess.run([*DEMO, "--keep", str(place)], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for sentence in (
        "confirmed: 1.1.0 is confirmed",
        "blocked: 1.2.0 (failed): 83.5 % against 97.2 %",
        "probation: 1.3.0: bad: the previous model is better",
        "the previous model does no better",
        "confirmed: 1.3.1 is confirmed",
        "blocked: 1.4.0 (failed): the worker was killed by SIGSEGV",
        "blocked: 1.5.0 (failed)",
        "no frame was lost",
        "found sha256",
        "expected not older than the last one",
        "SIGKILL to the updater",
        "confirmed: 1.6.0 is confirmed",
        "reply over MQTT: accepted: going back to 1.3.1",
        "each with exactly one result; 0 of them without a reading",
        "every process has ended",
    ):
        assert sentence in done.stdout, f"missing: {sentence}\n{done.stdout}"
    assert processes_that_name(str(place)) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "on probation" in line:  # the agent, its worker, the repository and the broker all run
                break
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130, errors
    assert list(tmp_path.iterdir()) == []
    end = time.monotonic() + 5
    while processes_that_name(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)  # the kernel reaps what was killed
    assert processes_that_name(str(tmp_path)) == []
