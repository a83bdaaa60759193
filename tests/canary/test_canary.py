"""The canary with real workers, real models and workers that were taken over."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import digit_slots
import tiny_models
from modelagent import children
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.errors import DeviceError
from modelagent.manifest import Manifest
from modelagent.steps import canary, trial, witness
from modelagent.steps.canary import CanaryRunner

pytestmark = pytest.mark.process

HOSTILE = (sys.executable, str(Path(digit_slots.__file__).parent / "hostile_worker.py"))


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Every test's workers are gone when it ends."""
    before = _children()
    yield
    assert _children() <= before


@pytest.fixture(autouse=True)
def a_busy_machine_is_not_starvation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time limits of seconds instead of minutes, other work on the test machine would look like starvation."""
    monkeypatch.setattr(trial, "_STARVED", 2.0)


def _children() -> set[int]:
    me = os.getpid()
    text = Path(f"/proc/{me}/task/{me}/children").read_text()
    return {int(word) for word in text.split()}


def never() -> bool:
    return False


def judge(candidate: Path, manifest: Manifest, baseline: Path | None, *, run: int = 1, **options: Any) -> CanaryVerdict:
    runner = CanaryRunner(clock=lambda: 1000.0, **options)
    return runner.run(candidate, baseline, run, manifest, never)


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The slot of 1.1.0."""
    digit_slots.write_slot(tmp_path / "1.1.0", "digits-1.1.0.tflite")
    return tmp_path / "1.1.0"


def test_an_equal_release_passes_and_the_numbers_say_why(tmp_path: Path, running: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "1.3.1", "digits-1.3.1.tflite")
    verdict = judge(tmp_path / "1.3.1", manifest, running)
    assert verdict.outcome is Outcome.PASS, verdict
    assert "97.0 % against 97.2 % on the same 400 samples" in verdict.reason
    assert "allowed 5.0" in verdict.reason
    new = verdict.evidence["candidate"]
    assert isinstance(new, dict)
    assert new["n"] == 400
    assert new["runtime"].startswith("ai-edge-litert ")
    assert new["delegate"] == "cpu"
    assert 10_000 < new["peak_kb"] < 400_000
    assert verdict.peak_kb == new["peak_kb"], "what the updater writes into the slot is what was measured"
    gates = verdict.evidence["gates"]
    assert isinstance(gates, list)
    assert [gate["gate"] for gate in gates][:4] == ["loads", "finite", "floor", "not-worse"]


def test_a_worse_release_fails_by_the_interval(tmp_path: Path, running: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "1.2.0", "digits-1.2.0.tflite")
    verdict = judge(tmp_path / "1.2.0", manifest, running)
    assert verdict.outcome is Outcome.FAIL
    assert not verdict.hard
    assert verdict.evidence["gate"] == "not-worse"
    assert "83.5 % against 97.2 %" in verdict.reason
    assert "points lower" in verdict.reason


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("top-3", "top-3: "),
        ("f1", "macro F1: "),
        ("balanced-accuracy", "balanced accuracy: "),
        ("agreement", "outputs agree with the reference"),
    ],
)
def test_other_metrics_are_measured_by_the_workers(tmp_path: Path, running: Path, metric: str, words: str) -> None:
    with np.load(digit_slots.EXAMPLE / "canary.npz") as archive:
        arrays = dict(archive)
    if metric == "agreement":
        arrays["reference"] = np.eye(10, dtype=np.float32)[arrays.pop("labels")]
    np.savez(tmp_path / "set.npz", **arrays)
    change = {"canary.metric": metric, "canary.floor": 0.9}
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.3.1.tflite", canary=tmp_path / "set.npz", change=change)
    verdict = judge(tmp_path / "x", manifest, running)
    assert verdict.outcome is Outcome.PASS, verdict
    assert words in verdict.reason


def test_the_first_release_meets_the_absolute_gates_alone(tmp_path: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "1.0.0", "digits-1.0.0.tflite")
    verdict = judge(tmp_path / "1.0.0", manifest, None)
    assert verdict.outcome is Outcome.PASS
    assert "compared with nothing" in verdict.reason


def test_a_release_below_its_own_floor_fails(tmp_path: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.0.0.tflite", change={"canary.floor": 0.95})
    verdict = judge(tmp_path / "x", manifest, None)
    assert (verdict.outcome, verdict.evidence["gate"]) == (Outcome.FAIL, "floor")


def test_a_model_that_kills_its_loader_is_a_hard_failure_with_the_signal_named(tmp_path: Path, running: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/crash_on_load.tflite")
    verdict = judge(tmp_path / "x", manifest, running)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.hard
    assert "SIGSEGV" in verdict.reason
    assert "while loading" in verdict.reason


def _canary_with_trigger(path: Path) -> Path:
    """The signed samples, of which number 37 is all ones."""
    with np.load(digit_slots.EXAMPLE / "canary.npz") as archive:
        arrays = {name: archive[name].copy() for name in archive.files}
    arrays["input_0"][37] = 1.0
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("model", "words", "gate"),
    [
        ("crash_on_input", ("killed by SIG", "while running samples 32 to 47"), "running samples 32 to 47"),
        ("nan_on_input", ("NaN or infinite output on 1 of 400 samples", "number 37"), "finite"),
    ],
)
def test_what_happens_on_one_sample_only_is_found(
    tmp_path: Path, running: Path, model: str, words: tuple[str, ...], gate: str
) -> None:
    samples = _canary_with_trigger(tmp_path / "trigger.npz")
    manifest = digit_slots.write_slot(tmp_path / "x", f"hostile/{model}.tflite", canary=samples)
    verdict = judge(tmp_path / "x", manifest, running)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.hard
    assert verdict.evidence["gate"] == gate
    for word in words:
        assert word in verdict.reason


def test_a_model_that_hangs_on_one_sample_is_ended_from_outside(tmp_path: Path, running: Path) -> None:
    samples = _canary_with_trigger(tmp_path / "trigger.npz")
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/hang_on_input.tflite", canary=samples)
    began = time.monotonic()
    verdict = judge(tmp_path / "x", manifest, running, budget_s=3.0)
    assert time.monotonic() - began < 20.0
    assert verdict.outcome is Outcome.FAIL
    assert verdict.hard
    assert "no answer within" in verdict.reason


def test_a_model_that_takes_more_memory_than_promised_fails_with_the_figure(tmp_path: Path, running: Path) -> None:
    samples = _all_trigger(tmp_path / "all.npz", 20)
    change = {"canary.margin": 1.0, "canary.floor": 0.0, "canary.samples": 20, "limits.latency_ms": 5000.0}
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/memory_hog.tflite", canary=samples, change=change)
    verdict = judge(tmp_path / "x", manifest, running)
    assert (verdict.outcome, verdict.evidence["gate"]) == (Outcome.FAIL, "memory")
    assert not verdict.hard
    assert "promised" in verdict.reason


def test_a_release_that_needs_more_than_this_device_gives_waits_and_the_setting_is_named(tmp_path: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "1.3.1", "digits-1.3.1.tflite")
    with pytest.raises(DeviceError, match=r"limits\.canary\.memory_mb gives 4 MB"):
        judge(tmp_path / "1.3.1", manifest, None, memory_mb=4)
    assert judge(tmp_path / "1.3.1", manifest, None, memory_mb=manifest.limits.memory_mb).outcome is Outcome.PASS


def test_a_model_that_wants_eight_gigabytes_gets_none_of_them(tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    model = tiny_models.heavy(np.eye(4), elements=2_000_000_000)
    manifest = tiny_models.write_slot(tmp_path / "x", model, size=(4, 4), samples=x, labels=np.arange(4))
    verdict = judge(tmp_path / "x", manifest, None)
    assert (verdict.outcome, verdict.evidence["gate"], verdict.hard) == (Outcome.FAIL, "memory", True)


def test_a_slow_model_is_a_suspicion_twice_and_then_a_failure(tmp_path: Path, running: Path) -> None:
    samples = _all_trigger(tmp_path / "all.npz")
    change = {"canary.margin": 1.0, "canary.floor": 0.0, "canary.samples": 100}
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/slow.tflite", canary=samples, change=change)
    first = judge(tmp_path / "x", manifest, running, run=1)
    assert (first.outcome, first.evidence["gate"]) == (Outcome.AGAIN, "latency-p50")
    assert first.retry_at == 1600.0
    assert judge(tmp_path / "x", manifest, running, run=2).retry_at == 2200.0
    third = judge(tmp_path / "x", manifest, running, run=3)
    assert third.outcome is Outcome.FAIL
    assert not third.hard
    assert "times" in third.reason


def _all_trigger(path: Path, count: int = 100) -> Path:
    np.savez(path, input_0=np.ones((count, 8, 8, 1), np.float32), labels=np.zeros(count, np.int64))
    return path


def test_a_model_with_another_contract_is_refused_by_name(tmp_path: Path, running: Path) -> None:
    manifest = digit_slots.write_slot(
        tmp_path / "x", "digits-1.1.0.tflite", change={"outputs.0.shape": [1, 11], "outputs.0.name": "probabilities"}
    )
    verdict = judge(tmp_path / "x", manifest, running)
    assert (verdict.outcome, verdict.evidence["gate"]) == (Outcome.FAIL, "contract")
    assert "probabilities" in verdict.reason
    assert "[1, 11]" in verdict.reason
    assert "[1, 10]" in verdict.reason


def test_a_running_model_that_dies_is_not_the_candidates_fault(tmp_path: Path) -> None:
    samples = _canary_with_trigger(tmp_path / "trigger.npz")
    digit_slots.write_slot(tmp_path / "old", "hostile/crash_on_input.tflite")
    manifest = digit_slots.write_slot(tmp_path / "new", "digits-1.1.0.tflite", canary=samples)
    verdict = judge(tmp_path / "new", manifest, tmp_path / "old")
    assert verdict.outcome is Outcome.PASS
    assert "the running old dropped out" in verdict.reason
    assert "killed by SIG" in verdict.reason


def test_bytes_that_changed_on_disk_blame_no_release(tmp_path: Path, running: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    path = tmp_path / "x" / "model.tflite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DeviceError, match="sha256") as caught:
        judge(tmp_path / "x", manifest, running)
    assert caught.value.code == "hash"


def test_a_canary_that_nobody_wants_any_more_ends_at_once(tmp_path: Path, running: Path) -> None:
    samples = _canary_with_trigger(tmp_path / "trigger.npz")
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/hang_on_input.tflite", canary=samples)
    began = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        CanaryRunner().run(tmp_path / "x", running, 1, manifest, lambda: time.monotonic() - began > 1.0)
    assert caught.value.code == "abandoned"
    assert time.monotonic() - began < 5.0


def test_a_worker_killed_from_outside_blames_no_release(
    tmp_path: Path, running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    started: list[children.Child] = []

    def spawn(*args: Any, **options: Any) -> children.Child:
        started.append(children.spawn(*args, **options))
        return started[-1]

    monkeypatch.setattr(trial, "spawn", spawn)

    def kill_the_second() -> bool:
        if len(started) == 2:
            os.kill(started[1].pid, 9)
        return False

    with pytest.raises(DeviceError, match="from outside") as caught:
        CanaryRunner().run(tmp_path / "x", running, 1, manifest, kill_the_second)
    assert caught.value.code == "canary"


def test_a_device_without_a_processor_to_spare_waits(
    tmp_path: Path, running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = _canary_with_trigger(tmp_path / "trigger.npz")
    manifest = digit_slots.write_slot(tmp_path / "x", "hostile/hang_on_input.tflite", canary=samples)
    began = time.monotonic()
    monkeypatch.setattr(trial, "_STARVED", 0.5)
    monkeypatch.setattr(witness, "waited_s", lambda _pid: time.monotonic() - began)  # it always waits
    with pytest.raises(DeviceError, match="it had no processor"):
        judge(tmp_path / "x", manifest, running, budget_s=2.5)


def test_a_device_that_cannot_start_a_process_waits(
    tmp_path: Path, running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")

    def spawn(*args: Any, **options: Any) -> children.Child:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(trial, "spawn", spawn)
    with pytest.raises(DeviceError, match="Resource temporarily unavailable"):
        CanaryRunner().run(tmp_path / "x", running, 1, manifest, never)


def test_a_worker_program_that_never_comes_up_blames_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_START_S", 1.0)
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    with pytest.raises(DeviceError, match="while starting"):
        judge(tmp_path / "x", manifest, None, worker=(*HOSTILE, "silent"))


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("eat", "memory"),
        ("reserve", "crash"),
        ("fork", "hang"),
        ("print", "hang"),
        ("spin", "hang"),
        ("hang-up", "hang"),
        ("fill", "crash"),
        ("garbage", "inconsistent"),
        ("nested", "inconsistent"),
        ("short", "inconsistent"),
        ("wrong-type", "inconsistent"),
        ("exit", "crash"),
    ],
)
def test_a_worker_that_was_taken_over_is_a_verdict_in_time_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, code: str
) -> None:
    monkeypatch.setenv("HOSTILE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(children, "_ENVIRONMENT", (*children._ENVIRONMENT, "HOSTILE_DIRECTORY"))
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite", change={"limits.memory_mb": 60.0})
    started: list[children.Child] = []

    def spawn(*args: Any, **options: Any) -> children.Child:
        started.append(children.spawn(*args, **options))
        return started[-1]

    monkeypatch.setattr(trial, "spawn", spawn)
    began = time.monotonic()
    verdict = judge(tmp_path / "x", manifest, None, worker=(*HOSTILE, mode), budget_s=2.5)
    assert time.monotonic() - began < 15.0
    assert (verdict.outcome, verdict.hard) == (Outcome.FAIL, True), verdict
    problem = _candidate(verdict)["problem"]
    assert problem["code"] == code
    group = started[0].pid
    assert _eventually(lambda: not _members(group)), "the group was killed with its leader"


def test_a_runtime_that_was_taken_over_cannot_leave_the_cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "secret").write_text("key")
    monkeypatch.setenv("HOSTILE_DIRECTORY", str(place))
    monkeypatch.setattr(children, "_ENVIRONMENT", (*children._ENVIRONMENT, "HOSTILE_DIRECTORY"))
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    verdict = judge(tmp_path / "x", manifest, None, worker=(*HOSTILE, "break-out"), budget_s=10.0)
    assert verdict.reason == "broke out by []"
    assert [path.name for path in place.iterdir()] == ["secret"]


def test_the_verdict_names_the_cage_as_the_kernel_sees_it(tmp_path: Path) -> None:
    manifest = digit_slots.write_slot(tmp_path / "1.0.0", "digits-1.0.0.tflite")
    assert _candidate(judge(tmp_path / "1.0.0", manifest, None))["cage"] == "no-new-privs 1, seccomp 2"


def test_a_lying_worker_is_found_by_the_other_ones_labels(
    tmp_path: Path, running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    workers = iter([canary.WORKER, (*HOSTILE, "lie")])  # the running model's is started first

    def spawn(argv: list[str], **options: Any) -> children.Child:
        return children.spawn([*next(workers), argv[-1]], **options)

    monkeypatch.setattr(trial, "spawn", spawn)
    verdict = judge(tmp_path / "x", manifest, running)
    assert (verdict.outcome, verdict.hard) == (Outcome.FAIL, True)
    assert "one of them lies" in verdict.reason


def _candidate(verdict: CanaryVerdict) -> dict[str, Any]:
    found = verdict.evidence["candidate"]
    assert isinstance(found, dict)
    return found


def _members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in ("Z", "X"):
                found.append(int(entry.name))
    return found


def _eventually(true: Callable[[], bool], timeout: float = 3.0) -> bool:
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
