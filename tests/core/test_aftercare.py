"""Labels that come late, and input that moves away, on a whole simulated device: at every moment, in every phase."""

from collections.abc import Callable

import pytest

from device_chaos import PATIENT
from device_simulator import Conduct, Device, release
from modelagent.core.state import Cause, Phase
from modelagent.core.verdicts import Wait
from modelagent.errors import Remedy

OLD, NEW, NEXT = release("m", 1), release("m", 2), release("m", 3)
SHUT = Wait(4e9, "not before Sunday", "window")
GATE = {Phase.DEFERRED: "acquire", Phase.STAGED: "activate"}


def confirmed(truth: str = "worse") -> Device:
    """1.2.0 has followed 1.1.0 and is confirmed; no label has come yet."""
    device = Device("m", rules=PATIENT)
    device.install("m", OLD)
    device.publish("m", NEW, Conduct(truth=truth))
    device.settle()
    assert device.end_state("m")["runs"] == NEW.version
    assert device.end_state("m")["confirmed"]
    return device


def left(device: Device) -> bool:
    """1.2.0 was left for 1.1.0, and is blocked by its own fault."""
    end = device.end_state("m")
    return (end["runs"], end["current"]) == (OLD.version, OLD.version) and device.states["m"].blocks[
        NEW.digest
    ].cause is Cause.FAILED


def asleep(device: Device) -> None:
    """Nothing happens to it."""


def inference_again(device: Device) -> None:
    device.end_inference("m")
    device.tick()
    device.start_inference("m")


def updater_again(device: Device) -> None:
    device.kill()
    device.tick()


def mains(device: Device) -> None:
    device.power_cycle(3600.0 / 10)


@pytest.mark.parametrize("between", [asleep, inference_again, updater_again, mains])
def test_labels_after_the_confirmation_lead_back(between: Callable[[Device], None]) -> None:
    device = confirmed()
    between(device)
    device.tick(3.0)
    device.label("m")
    device.settle()
    assert left(device)
    assert device.stores["m"].shadow is None


def test_labels_beyond_the_horizon_decide_nothing() -> None:
    device = confirmed()
    device.tick(PATIENT.label_horizon_s + 1.0)
    device.tick()
    assert device.states["m"].aftercare is None
    device.label("m")
    device.settle()
    assert device.end_state("m")["runs"] == NEW.version
    assert any(note.kind == "labels" and "its time is over" in note.text for _, note in device.notes)


def test_labels_that_acquit_end_the_wait_and_let_the_way_back_go() -> None:
    device = confirmed("better")
    device.label("m")
    device.tick()
    assert device.states["m"].aftercare is None
    assert device.end_state("m")["runs"] == NEW.version


@pytest.mark.parametrize(
    "phase", [Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING, Phase.CANARY, Phase.STAGED], ids=lambda p: str(p.value)
)
def test_a_release_that_is_being_prepared_does_not_put_the_decision_off(phase: Phase) -> None:
    device = confirmed()
    if phase in GATE:
        device.gates[GATE[phase]] = SHUT
    device.publish("m", NEXT)
    device.reach("m", phase)
    device.label("m")
    device.until(lambda d: Phase.REVERTING in d.chain["m"])
    assert NEXT.digest != device.states["m"].current
    device.gates.clear()
    device.settle()
    assert device.end_state("m")["runs"] == NEXT.version, "and then the release is taken up again"
    assert NEW.digest in device.states["m"].blocks


def test_a_decision_survives_a_kill_at_every_point() -> None:
    """Only the mains, before the decision is written down, take the labels of the last half minute with them."""
    calm = confirmed()
    before = calm.points
    calm.label("m")
    calm.settle()
    for point in range(before + 1, calm.points + 1):
        for power in (False, True):
            device = confirmed()
            device.kill_at, device.power = point, power
            device.label("m")
            device.settle()
            assert device.kills == 1
            assert left(device) or (power and point == before + 1), f"killed at point {point}"


def test_a_full_disk_does_not_stop_the_way_back() -> None:
    device = confirmed()
    device.full = True
    device.label("m")
    device.until(lambda d: d.inference["m"].running == OLD.digest)
    device.full = False
    device.settle()
    assert device.end_state("m")["runs"] == OLD.version


def test_drift_brings_the_shadow_back_and_goes_back_without_a_block_when_it_is_better() -> None:
    device = confirmed("better")
    device.label("m")
    device.tick()
    device.conduct[NEW.digest] = Conduct(truth="worse")
    device.drifting.add("m")
    device.until(lambda d: d.stores["m"].shadow == OLD.digest)
    device.drifting.clear()
    device.tick(4.0)
    device.label("m")
    device.until(lambda d: d.end_state("m")["runs"] == OLD.version)
    assert device.states["m"].blocks == {}
    assert NEW.digest in device.states["m"].postponed
    device.tick()
    assert device.stores["m"].shadow is None


def test_where_both_do_alike_the_shadow_goes_when_its_time_is_over() -> None:
    device = confirmed("better")
    device.label("m")
    device.tick()
    device.conduct[NEW.digest] = Conduct(truth="alike")
    device.drifting.add("m")
    device.failing["SetShadow"] = Remedy.WAIT
    device.tick()
    device.failing.clear()
    device.until(lambda d: d.stores["m"].shadow == OLD.digest)
    device.drifting.clear()
    device.tick(4.0)
    device.label("m")
    device.tick(PATIENT.label_horizon_s)
    device.settle()
    assert device.stores["m"].shadow is None
    assert device.end_state("m")["runs"] == NEW.version
