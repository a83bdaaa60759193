"""The canary within a memory limit of a control group, as a unit with MemoryMax= and OOMPolicy=continue has one.

What the kernel ends when the group's memory is used up must be the candidate's worker: not the process that runs the
canary, and not what serves beside it. Needs root and a writable memory controller (version 1 or 2); skipped by name
where there is none.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import digit_slots
import tiny_models

pytestmark = pytest.mark.process

LIMIT_MB = 300
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
RUNNER = r"""
import json, os, sys
from pathlib import Path
group, slot, worker = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
Path(group, "cgroup.procs").write_text(str(os.getpid()))
from modelagent.errors import DeviceError
from modelagent.manifest import parse
from modelagent.steps.canary import WORKER, CanaryRunner
manifest = parse((slot / "manifest.json").read_bytes())
try:
    verdict = CanaryRunner(worker=worker or WORKER, budget_s=6.0).run(slot, None, 1, manifest, lambda: False)
    print(json.dumps({"outcome": verdict.outcome.value, "hard": verdict.hard, "reason": verdict.reason}))
except DeviceError as error:
    print(json.dumps({"outcome": "device", "code": error.code, "reason": error.message}))
"""
HOSTILE = [sys.executable, str(Path(digit_slots.__file__).parent / "hostile_worker.py")]


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with so much memory and no more."""
    second = (V2 / "cgroup.controllers").exists() and "memory" in (V2 / "cgroup.controllers").read_text()
    place = (V2 if second else V1) / f"modelagent-test-{os.getpid()}"
    try:
        if second:
            (V2 / "cgroup.subtree_control").write_text("+memory")
        place.mkdir()
        limit = place / ("memory.max" if second else "memory.limit_in_bytes")
        limit.write_text(str(LIMIT_MB << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            place.rmdir()
        pytest.skip(f"no memory control group can be made here: {error}")
    yield place
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            place.rmdir()
            return
        time.sleep(0.05)


@pytest.fixture
def bystander(group: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something in the same group that serves, with 60 MB of its own."""
    code = (
        f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "held = bytearray(os.urandom(1)) * (60 << 20); print('up', flush=True); import time; time.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.communicate()


def run(group: Path, slot: Path, worker: list[str]) -> dict[str, object]:
    """One canary in the group."""
    ended = subprocess.run(
        [sys.executable, "-c", RUNNER, str(group), str(slot), json.dumps(worker)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, f"the canary's own process was ended: {ended.returncode} {ended.stderr}"
    answer: dict[str, object] = json.loads(ended.stdout)
    return answer


def test_a_worker_that_eats_what_it_was_promised_is_a_device_without_memory(
    tmp_path: Path, group: Path, bystander: subprocess.Popen[bytes]
) -> None:
    # It promises 900 MB where the group has 300: nobody is to blame but the device, and it is tried again.
    digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite", change={"limits.memory_mb": 900.0})
    told = run(group, tmp_path / "x", [*HOSTILE, "eat"])
    assert (told["outcome"], told["code"]) == ("device", "canary"), told
    assert "from outside" in str(told["reason"])
    assert bystander.poll() is None


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        # Who is first, the watch over its memory or the group's limit, is the kernel's affair.
        ("eat", ("ate", "killed by SIGKILL while loading, at")),
        ("fork", ("no answer",)),
        pytest.param("print", ("no answer",), marks=pytest.mark.long),
        ("fill", ("",)),
    ],
)
def test_a_hostile_worker_is_a_verdict_also_in_the_group(
    tmp_path: Path, group: Path, bystander: subprocess.Popen[bytes], mode: str, words: tuple[str, ...]
) -> None:
    change = {"limits.memory_mb": 20.0, "limits.latency_ms": 1.0, "limits.load_s": 0.1}
    slot = tmp_path / "x"
    digit_slots.write_slot(slot, "digits-1.1.0.tflite", change=change)
    told = run(group, slot, [*HOSTILE, mode])
    assert told["outcome"] == "fail", told
    assert any(word in str(told["reason"]) for word in words), told
    assert bystander.poll() is None


@pytest.mark.parametrize("model", ["crash_on_load", "memory_hog", "eight gigabytes"])
def test_a_hostile_model_ends_alone(
    tmp_path: Path, group: Path, bystander: subprocess.Popen[bytes], model: str
) -> None:
    slot = tmp_path / "x"
    if model == "eight gigabytes":
        import numpy as np  # noqa: PLC0415 - only here

        x = np.eye(4, dtype=np.float32)
        heavy = tiny_models.heavy(np.eye(4), elements=2_000_000_000)
        tiny_models.write_slot(slot, heavy, size=(4, 4), samples=x, labels=np.arange(4))
    else:
        digit_slots.write_slot(slot, f"hostile/{model}.tflite", change={"limits.latency_ms": 1000.0})
    told = run(group, slot, [])
    assert told["outcome"] in ("fail", "device"), told
    assert bystander.poll() is None
