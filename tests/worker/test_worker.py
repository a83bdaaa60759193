"""The worker program: every command, every refusal, and every way to end."""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import digit_slots
import tiny_models
from modelagent.children import Child, spawn
from modelagent.inference.exchange import NOT_FINITE, OK, ParentSide, Reply, plan

pytestmark = pytest.mark.process

SAMPLES = np.random.default_rng(7).normal(size=(40, 4)).astype(np.float32)
LABELS = SAMPLES.argmax(axis=1)


class Probe:
    """A worker and the parent's end of its socket."""

    def __init__(self, child: Child, control: socket.socket) -> None:
        self.child = child
        self.control = control
        control.settimeout(20.0)

    def ask(self, verb: str, **more: Any) -> dict[str, Any]:
        """One command, one answer."""
        self.control.send(json.dumps({"do": verb, **more}).encode())
        answer = json.loads(self.control.recv(65536))
        assert isinstance(answer, dict)
        return answer

    def load(self, slot: Path) -> dict[str, Any]:
        """Load a slot."""
        return self.ask("load", slot=str(slot), threads=1)


@contextlib.contextmanager
def worker(side: ParentSide | None = None, *, limits: dict[str, int] | None = None, nice: int = 19) -> Iterator[Probe]:
    """A running worker, ended with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = side.fds if side is not None else ()
    names = dict(zip(("memory", "request", "reply"), fds or (None, None, None), strict=True))
    argument = {
        "ctl": theirs.fileno(),
        **names,
        "parent": os.getpid(),
        "nice": nice,
        "sandbox": limits is not None,
        "readable": [tempfile.gettempdir()],
        "limits": limits,
    }
    command = [sys.executable, "-m", "modelagent.inference.worker", json.dumps(argument)]
    with ours, theirs:
        child = spawn(command, pass_fds=(theirs.fileno(), *fds), capture=8192)
        theirs.close()
        try:
            yield Probe(child, ours)
        finally:
            child.close()


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """A good slot."""
    tiny_models.write_slot(
        tmp_path / "good", tiny_models.linear(np.eye(4)), size=(4, 4), samples=SAMPLES, labels=LABELS
    )
    return tmp_path / "good"


def test_a_whole_life(slot: Path) -> None:
    with worker(limits={"memory_mb": 256, "cpu_s": 60, "files": 64, "fsize_mb": 1}) as probe:
        answer = probe.load(slot)
        assert answer["ok"], answer
        assert answer["inputs"] == [{"name": "x", "shape": [1, 4], "dtype": "float32", "quantisation": None}]
        assert answer["outputs"][0]["name"] == "y"
        assert answer["runtime"].startswith("ai-edge-litert ")
        assert answer["delegate"] == "cpu"
        assert answer["load_ms"] > 0
        assert answer["warmup_ms"] > 0
        assert answer["rss_kb"] > 10_000
        assert probe.ask("samples") == {"ok": True, "count": 40, "has_labels": True}
        one = probe.ask("run", index=3)
        assert one["prediction"] == one["label"] == LABELS[3]
        assert one["finite"] is True
        assert one["score"] == pytest.approx(float(SAMPLES[3].max()), rel=1e-6)
        rows = probe.ask("run", start=0, stop=40)["rows"]
        assert [row[0] for row in rows] == list(range(40))
        assert all(row[3] == row[4] for row in rows)
        memory = probe.ask("memory")
        assert memory["peak_kb"] >= memory["rss_kb"] > 10_000
        assert probe.ask("unload") == {"ok": True}
        assert probe.child.wait(10.0) == 0


def test_samples_may_be_read_in_any_order_and_past_the_end_is_refused(slot: Path) -> None:
    with worker() as probe:
        probe.load(slot)
        assert probe.ask("run", index=0)["code"] == "command"
        probe.ask("samples")
        for index in (9, 2, 2, 39, 0):
            assert probe.ask("run", index=index)["prediction"] == LABELS[index]
        assert probe.ask("run", index=40)["code"] == "canary"
        assert probe.ask("run", start=0, stop=201)["code"] == "command"


def test_what_it_does_not_know_is_refused_and_it_lives_on(slot: Path) -> None:
    with worker() as probe:
        assert probe.ask("dance")["code"] == "command"
        probe.control.send(b"no json")
        assert json.loads(probe.control.recv(65536))["code"] == "command"
        assert probe.ask("samples")["code"] == "command"
        assert probe.ask("serve")["code"] == "command"
        assert probe.load(slot)["ok"]
        assert probe.load(slot)["code"] == "command"
        assert probe.ask("serve")["code"] == "command"  # no mailbox was given


def test_a_flipped_bit_is_refused_before_the_runtime_sees_it(slot: Path) -> None:
    path = slot / "model.tflite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with worker() as probe:
        answer = probe.load(slot)
    assert (answer["ok"], answer["code"]) == (False, "hash")
    assert str(path) in answer["reason"]


def test_a_missing_file_is_named(slot: Path) -> None:
    (slot / "model.tflite").unlink()
    with worker() as probe:
        answer = probe.load(slot)
    assert answer["code"] == "hash"
    assert "No such file" in answer["reason"]


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_signed_but_truncated_model_is_a_refusal(tmp_path: Path, keep: float) -> None:
    model = tiny_models.linear(np.eye(4))
    tiny_models.write_slot(tmp_path / "x", model[: int(len(model) * keep)], size=(4, 4))
    with worker() as probe:
        answer = probe.load(tmp_path / "x")
    assert answer["ok"] is False
    assert answer["code"] == "load"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs.0.name": "z"}, ("input 0", "'z'", "'x'")),
        ({"inputs.0.shape": [1, 5]}, ("[1, 5]", "[1, 4]")),
        ({"inputs.0.shape": [1, 4, 1]}, ("[1, 4, 1]", "[1, 4]")),
        ({"outputs.0.dtype": "int8"}, ("output 0", "int8", "float32")),
        ({"outputs.0.quantisation": {"scale": 0.5, "zero_point": 1}}, ("quantisation", "(0.5, 1)", "none")),
        ({"runtime.min": "99.0"}, ("99.0", "ai-edge-litert")),
        ({"runtime.max": "1.0"}, ("1.0",)),
        ({"postprocess.kind": "magic"}, ("postprocess.kind",)),
    ],
)
def test_a_broken_contract_names_tensor_expected_and_found(
    tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    tiny_models.write_slot(tmp_path / "x", tiny_models.linear(np.eye(4)), size=(4, 4), change=change)
    with worker() as probe:
        answer = probe.load(tmp_path / "x")
    assert answer["code"] == "contract"
    for word in words:
        assert word in answer["reason"]


def test_an_open_size_in_the_contract_is_met_by_any(tmp_path: Path) -> None:
    change = {"inputs.0.shape": [None, 4], "runtime.min": "1.0", "runtime.max": "999"}
    tiny_models.write_slot(tmp_path / "x", tiny_models.linear(np.eye(4)), size=(4, 4), change=change)
    with worker() as probe:
        assert probe.load(tmp_path / "x")["ok"]


def test_nan_at_warm_up_is_refused(tmp_path: Path) -> None:
    tiny_models.write_slot(tmp_path / "x", tiny_models.linear(np.full((4, 4), np.nan)), size=(4, 4))
    with worker() as probe:
        assert probe.load(tmp_path / "x")["code"] == "not-finite"


def test_warm_up_uses_the_releases_own_frames(tmp_path: Path) -> None:
    digit_slots.write_slot(tmp_path / "x", "digits-1.1.0.tflite")
    (tmp_path / "x" / "warmup.npz").write_bytes(b"broken")
    with worker() as probe:
        assert probe.load(tmp_path / "x")["code"] == "hash"


def test_nan_on_one_sample_is_told_and_no_error(tmp_path: Path) -> None:
    tiny_models.write_slot(tmp_path / "x", tiny_models.root(np.eye(4)), size=(4, 4), samples=SAMPLES)
    with worker() as probe:
        assert probe.load(tmp_path / "x")["ok"]
        assert probe.ask("samples") == {"ok": True, "count": 40, "has_labels": False}
        rows = probe.ask("run", start=0, stop=40)["rows"]
    for row, sample in zip(rows, SAMPLES, strict=True):
        assert row[2] is bool((sample >= 0).all())
        assert row[4] is None


def test_a_sample_set_of_another_slot_and_one_that_does_not_fit(tmp_path: Path, slot: Path) -> None:
    tiny_models.write_slot(
        tmp_path / "other", tiny_models.linear(np.eye(4)), size=(4, 4), samples=SAMPLES[:7], labels=LABELS[:7]
    )
    wide = np.zeros((5, 6), np.float32)
    tiny_models.write_slot(tmp_path / "wide", tiny_models.linear(np.eye(6)), size=(6, 6), samples=wide)
    tiny_models.write_slot(tmp_path / "none", tiny_models.linear(np.eye(4)), size=(4, 4))
    with worker() as probe:
        probe.load(slot)
        assert probe.ask("samples", slot=str(tmp_path / "other"))["count"] == 7
        assert probe.ask("samples", slot=str(tmp_path / "wide"))["count"] == 5
        answer = probe.ask("run", index=0)
        assert answer["code"] == "canary"
        assert "[6]" in answer["reason"]
        assert probe.ask("samples", slot=str(tmp_path / "none"))["code"] == "canary"
        (tmp_path / "other" / "canary.npz").write_bytes(b"tampered")
        assert probe.ask("samples", slot=str(tmp_path / "other"))["code"] == "hash"


def test_more_memory_than_allowed_is_refused_not_given(tmp_path: Path) -> None:
    model = tiny_models.heavy(np.eye(4), elements=400_000_000)  # 1.6 GB
    tiny_models.write_slot(tmp_path / "x", model, size=(4, 4))
    with worker(limits={"memory_mb": 256}) as probe:
        answer = probe.load(tmp_path / "x")
    assert answer["code"] == "memory"


def test_frames_go_through_the_mailbox(slot: Path) -> None:
    manifest = _manifest(slot)
    side = ParentSide(plan(manifest.inputs, manifest.outputs))
    try:
        with worker(side) as probe:
            side.watch(probe.child.pidfd)
            assert probe.load(slot)["ok"]
            answer = probe.ask("serve")
            assert answer["ok"]
            assert -20 <= answer["nice"] <= 19
            for sample in SAMPLES:
                np.copyto(side.filling.read_inputs()[0], sample)
                assert side.ask(10.0) is Reply.ANSWERED
                assert side.status == OK
                assert 0 < side.invoke_ns < 10**10
                np.testing.assert_allclose(side.answered.read_outputs()[0][0], sample, rtol=1e-6)
            assert probe.ask("memory")["ok"]  # commands are still answered between frames
            os.kill(probe.child.pid, signal.SIGKILL)
            assert side.ask(10.0) is Reply.DIED
    finally:
        side.close()


def _manifest(slot: Path) -> Any:
    from modelagent.manifest import parse  # noqa: PLC0415 - used by one test

    return parse((slot / "manifest.json").read_bytes())


def test_nan_in_a_frame_is_a_status(tmp_path: Path) -> None:
    manifest = tiny_models.write_slot(tmp_path / "x", tiny_models.root(np.eye(4)), size=(4, 4))
    side = ParentSide(plan(manifest.inputs, manifest.outputs))
    try:
        with worker(side) as probe:
            probe.load(tmp_path / "x")
            probe.ask("serve")
            side.filling.read_inputs()[0][:] = -1.0
            assert side.ask(10.0) is Reply.ANSWERED
            assert side.status == NOT_FINITE
            side.filling.read_inputs()[0][:] = 4.0
            assert side.ask(10.0) is Reply.ANSWERED
            assert side.status == OK
            assert side.answered.read_outputs()[0][0, 0] == 2.0
    finally:
        side.close()


def test_it_ends_when_the_parent_hangs_up(slot: Path) -> None:
    with worker() as probe:
        probe.load(slot)
        probe.control.close()
        assert probe.child.wait(10.0) == 0


def test_it_starts_quickly_once_compiled(slot: Path) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with worker(nice=0) as probe:
            assert probe.load(slot)["ok"]
            times.append(time.perf_counter() - began)
    assert min(times) < 2.0  # 0.15 s on a quiet desktop; the rest is room for a busy test machine


def test_an_int8_model_reads_the_same_float_samples_through_its_own_contract(tmp_path: Path) -> None:
    shared = json.loads((digit_slots.EXAMPLE / "releases.json").read_text())["int8"]
    digit_slots.write_slot(
        tmp_path / "x",
        "digits-1.1.0-int8.tflite",
        change={"inputs": shared["inputs"], "outputs": shared["outputs"]},
    )
    digit_slots.write_slot(tmp_path / "float", "digits-1.1.0-int8.tflite")
    with worker() as probe:
        answer = probe.load(tmp_path / "x")
        assert answer["ok"], answer
        assert answer["inputs"][0]["quantisation"]["zero_point"] == -128
        probe.ask("samples")
        rows = probe.ask("run", start=0, stop=200)["rows"] + probe.ask("run", start=200, stop=400)["rows"]
    assert sum(row[3] == row[4] for row in rows) / 400 == pytest.approx(shared["expected"]["canary"], abs=0.005)
    assert all(0.0 <= row[6] <= 1.0 for row in rows)
    with worker() as probe:
        answer = probe.load(tmp_path / "float")
        assert answer["code"] == "contract"
        assert "expected dtype float32, found int8" in answer["reason"]
