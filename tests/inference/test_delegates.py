"""A release that asks for a delegate: who may serve it, what the canary does, and a library that fails.

The library is a real one, compiled here; it takes no operator. No accelerator is at hand.
"""

import json
from pathlib import Path

import pytest

import digit_slots
from delegate_library import build_delegate
from line_rig import Rig
from modelagent.core.verdicts import Outcome
from modelagent.errors import DeviceError, ModelError
from modelagent.manifest import Manifest, parse
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.suitable import check_suitable
from repository_simulator import make_manifest


def asking(delegate: str) -> Manifest:
    return parse(json.dumps({**make_manifest(), "delegate": delegate}).encode())


def test_a_release_suits_where_the_settings_name_a_library_for_its_delegate(tmp_path: Path) -> None:
    library = tmp_path / "libnpu.so"
    check_suitable(asking("cpu"), "", "2.3.0", "", library)
    for name, present in (("", None), ("tpu", library)):
        with pytest.raises(ModelError, match=r"needs the delegate npu.*runtime\.delegate") as caught:
            check_suitable(asking("npu"), "", "2.3.0", name, present)
        assert caught.value.code == "wrong-delegate"
    with pytest.raises(DeviceError, match=r"libnpu\.so is not there; install it") as missing:
        check_suitable(asking("npu"), "", "2.3.0", "npu", library)
    assert missing.value.code == "delegate", "that is the device's matter: the release is tried again"
    library.touch()
    for name in ("", "npu"):
        check_suitable(asking("npu"), "", "2.3.0", name, library)


@pytest.mark.process
@pytest.mark.parametrize("shared", [False, True])
def test_the_canary_runs_on_the_processor_unless_the_library_opens_twice(tmp_path: Path, shared: bool) -> None:
    library = build_delegate(tmp_path)
    slot = tmp_path / "slot"
    manifest = digit_slots.write_slot(slot, "digits-1.3.1.tflite", change={"delegate": "npu"})
    verdict = CanaryRunner(delegate=library if shared else None).run(slot, None, 1, manifest, lambda: False)
    assert verdict.outcome is Outcome.PASS, verdict
    candidate = verdict.evidence["candidate"]
    assert isinstance(candidate, dict)
    assert candidate["delegate"] == ("npu" if shared else "cpu")
    assert verdict.reason.endswith("; on npu" if shared else "; on cpu, will serve on npu")


@pytest.mark.process
def test_a_library_that_cannot_be_opened_blames_no_release(tmp_path: Path) -> None:
    slot, library = tmp_path / "slot", tmp_path / "libnpu.so"
    library.write_bytes(b"no library")
    manifest = digit_slots.write_slot(slot, "digits-1.3.1.tflite", change={"delegate": "npu"})
    with pytest.raises(DeviceError, match=r"libnpu\.so.*correct runtime\.delegate") as caught:
        CanaryRunner(delegate=library).run(slot, None, 1, manifest, lambda: False)
    assert caught.value.code == "delegate"


@pytest.mark.process
def test_health_names_the_delegate_and_a_broken_library_leaves_what_runs(tmp_path: Path) -> None:
    library = build_delegate(tmp_path)
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.1.0.tflite", confirmed=True, change={"delegate": "npu"})
        new = rig.slot("digits-1.3.1.tflite", confirmed=False, change={"delegate": "npu"})
        rig.link("fallback", old)
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=50.0, delegate=str(library))
        rig.wait(lambda: rig.running() == old and rig.total("done") > 5)
        assert rig.health()["worker"]["delegate"] == "npu"
        first, done = rig.worker(), rig.total("done")
        spoiled = tmp_path / "spoiled"
        spoiled.write_bytes(b"no library")
        spoiled.replace(library)
        rig.link("current", new)
        rig.wait(lambda: rig.health()["refused"] is not None)
        refused = rig.health()["refused"]
        assert (refused["digest"], refused["code"]) == (new, "delegate")
        assert "libnpu.so" in refused["reason"]
        assert "correct runtime.delegate" in refused["reason"]
        rig.wait(lambda: rig.total("done") > done + 5)
        assert (rig.running(), rig.worker()) == (old, first), "the running model goes on in the same worker"
        assert rig.stop() == 0
