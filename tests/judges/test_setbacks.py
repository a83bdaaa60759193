"""After failed releases in a row the next one is tried with a growing pause; one that proves itself ends the row."""

from dataclasses import replace

import pytest

from device_simulator import QUICK, Conduct, Device, release
from modelagent.core.events import Verb
from modelagent.core.verdicts import Outcome

FAILS = Conduct(canary=(Outcome.FAIL,))


@pytest.fixture
def device() -> Device:
    """1.1.0 runs; a pause of 60 s, doubling."""
    made = Device("m", rules=replace(QUICK, setback_s=60.0))
    made.install("m", release("m", 1))
    return made


def blocked(device: Device, number: int) -> bool:
    return release("m", number).digest in device.states["m"].blocks


def test_the_pause_grows_from_the_second_failure_on(device: Device) -> None:
    device.settle()
    waits = []
    for number in (2, 3, 4, 5):
        device.publish("m", release("m", number), FAILS)
        seconds = 0
        while not blocked(device, number):
            device.tick(1.0)
            seconds += 1
            assert seconds < 300
        waits.append(seconds)
    assert max(waits[:2]) < 40, "one failure is no row"
    assert 60 <= waits[2] < 100
    assert 120 <= waits[3] < 160


def test_it_says_why_it_waits_and_now_lifts_the_pause(device: Device) -> None:
    for number in (2, 3):
        device.publish("m", release("m", number), FAILS)
        device.settle()
    device.publish("m", release("m", 5))
    device.until(lambda d: "2 releases in a row have failed here" in d.states["m"].waiting)
    device.command("m", Verb.UPDATE)
    device.settle()
    assert device.end_state("m")["runs"] == "1.5.0"
    assert device.states["m"].setbacks is None, "it has proved itself"


def test_a_block_that_is_lifted_ends_the_row(device: Device) -> None:
    for number in (2, 3):
        device.publish("m", release("m", number), FAILS)
        device.settle()
    assert device.states["m"].setbacks is not None
    device.command("m", Verb.LIFT, "1.2.0")
    assert device.states["m"].setbacks is None
