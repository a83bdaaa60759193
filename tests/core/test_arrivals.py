"""Whatever arrives, in whichever phase: the end is the one that was asked for, also when the updater dies right after.

The device runs 1.3.0, goes back to 1.2.0, has never had 1.1.0, and is on its way to 1.5.0 (which is bad where the
phase is Reverting).
"""

from itertools import product

import pytest

from device_simulator import Conduct, Device, release
from modelagent.core.events import Verb
from modelagent.core.state import Cause, Phase
from modelagent.core.verdicts import Wait

SHUT = Wait(4e9, "closed", "window")
BEFORE = ("Idle", "Deferred", "Acquiring", "Staging", "Canary", "Staged")
SWITCHED = ("Activating", "Switched", "Probation")
STAGES = (*BEFORE, *SWITCHED, "Reverting")

# What arrives -> what runs in the end: arriving before the switch, after it, in Reverting.
ENDS = {
    "nothing": ("1.5.0", "1.5.0", "1.3.0"),
    "withdrawal of the candidate": ("1.3.0", "1.3.0", "1.3.0"),
    "withdrawal of what ran": ("1.5.0", "1.5.0", "1.2.0"),
    "withdrawal of both": ("1.2.0", "1.2.0", "1.2.0"),
    "withdrawal of all": ("1.3.0", "1.5.0", "1.3.0"),
    "new release": ("1.6.0", "1.6.0", "1.6.0"),
    "rollback": ("1.5.0", "1.3.0", "1.3.0"),
    "hold": ("1.3.0", "1.5.0", "1.3.0"),
    "pin to a version on disk": ("1.2.0", "1.2.0", "1.2.0"),
    "pin to a version elsewhere": ("1.1.0", "1.1.0", "1.1.0"),
    "pin to what ran": ("1.3.0", "1.3.0", "1.3.0"),
    "pin to the candidate": ("1.5.0", "1.5.0", "1.3.0"),
    "downgrade to a version on disk": ("1.2.0", "1.2.0", "1.2.0"),
    "downgrade to a version elsewhere": ("1.1.0", "1.1.0", "1.1.0"),
}


def brought_to(stage: str) -> Device:
    device = Device("m", vacuum=False)
    device.publish("m", release("m", 1))
    device.install("m", release("m", 2), release("m", 3))
    device.publish("m", release("m", 3))
    device.settle()
    if stage == "Deferred":
        device.gates["acquire"] = SHUT
    if stage == "Staged":
        device.gates["activate"] = SHUT
    device.publish("m", release("m", 5), Conduct(live="bad" if stage == "Reverting" else "good"))
    if stage == "Switched":
        device.reach("m", Phase.ACTIVATING)
        while device.states["m"].doing is not None:
            device.work()
    elif stage != "Idle":
        device.reach("m", Phase(stage))
    assert device.states["m"].phase.value == stage.replace("Switched", "Activating")
    return device


def arrives(device: Device, what: str) -> str:
    match what.split():
        case ["withdrawal", "of", "the", "candidate"]:
            device.withdraw("m", release("m", 5))
        case ["withdrawal", "of", "what", "ran"]:
            device.withdraw("m", release("m", 3))
        case ["withdrawal", "of", "both"]:
            device.withdraw("m", release("m", 3))
            device.withdraw("m", release("m", 5))
        case ["withdrawal", "of", "all"]:
            for number in (2, 3, 5):
                device.withdraw("m", release("m", number))
        case ["new", "release"]:
            device.publish("m", release("m", 6))
        case ["rollback"]:
            return device.command("m", "rollback", name="it")
        case ["hold"]:
            return device.command("m", Verb.HOLD, name="it")
        case ["pin", *where]:
            version = {"disk": "1.2.0", "elsewhere": "1.1.0", "ran": "1.3.0", "candidate": "1.5.0"}[where[-1]]
            return device.command("m", Verb.PIN, version, name="it")
        case ["downgrade", *where]:
            device.publish("m", release("m", {"disk": 2, "elsewhere": 1}[where[-1]]))
    device.pass_time(device.interval)  # so that the next look checks
    return "accepted"


@pytest.mark.parametrize("killed", ["", "killed"])
@pytest.mark.parametrize(("what", "stage"), list(product(ENDS, STAGES)))
def test_the_end_is_the_one_that_was_asked_for(what: str, stage: str, killed: str) -> None:
    device = brought_to(stage)
    said = arrives(device, what)
    if what == "pin to the candidate" and stage == "Reverting":
        assert said == "refused: 1.5.0 is blocked (failed): bad after enough frames"
    elif what == "pin to the candidate" and stage == "Idle":
        assert said == "accepted: pinned to 1.5.0"
    else:
        assert said.split(":")[0] in ("accepted", "done")
    if killed:
        device.kill()
    device.tick()
    device.gates.clear()
    device.settle()
    not_yet = stage in BEFORE or (what == "hold" and stage == "Activating" and killed)
    wanted = ENDS[what][0 if not_yet else 1 if stage in SWITCHED else 2]
    end = device.end_state("m")
    assert (end["runs"], end["current"]) == (wanted, wanted), device.describe()
    assert end["confirmed"]
    assert end["believed"] == (end["current"], end["fallback"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_rollback_blocks_what_was_meant(stage: str) -> None:
    device = brought_to(stage)
    arrives(device, "rollback")
    causes = {block.version: block.cause for block in device.states["m"].blocks.values()}
    if stage in BEFORE:
        assert causes == {"1.3.0": Cause.OPERATOR}
    elif stage in SWITCHED:
        assert causes == {"1.5.0": Cause.OPERATOR}
    else:
        assert causes == {"1.5.0": Cause.FAILED}


@pytest.mark.parametrize("stage", STAGES)
def test_a_withdrawn_running_version_is_left_within_one_check(stage: str) -> None:
    device = brought_to(stage)
    arrives(device, "withdrawal of both")
    device.until(lambda d: len(d.states["m"].withdrawn) == 2)
    device.tick()
    state = device.states["m"]
    assert state.phase is Phase.REVERTING or state.current == release("m", 2).digest


def test_a_rollback_while_the_switch_is_made_is_done_right_after_it() -> None:
    device = brought_to("Activating")
    assert device.command("m", "rollback", "no") == "accepted: going back to 1.3.0 once the switch is made"
    device.settle()
    assert device.end_state("m")["runs"] == "1.3.0"
    assert Phase.PROBATION not in device.chain["m"]


@pytest.mark.parametrize("part", ["nothing", "fallback", "current"])
def test_a_rollback_while_the_switch_fails(part: str) -> None:
    device = brought_to("Activating")
    device.command("m", "rollback", "no")
    for queued in list(device.queues["store-m"]):
        device.broken_after[type(queued.effect)] = part
    device.tick()
    device.broken_after.clear()
    device.settle()
    end = device.end_state("m")
    assert (end["runs"], end["fallback"]) == ("1.3.0", "1.2.0")
    assert end["blocks"] == {"1.5.0": (Cause.OPERATOR, "rolled back by cli: no")}


def test_a_rollback_while_the_first_version_is_switched_to_is_refused() -> None:
    device = Device("m")
    device.publish("m", release("m", 1))
    device.reach("m", Phase.ACTIVATING)
    assert device.command("m", "rollback") == "refused: no other confirmed, unblocked version than 1.1.0 is on disk"
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"


def test_what_stands_by_goes_first_when_its_window_opens_and_the_newer_one_after_it() -> None:
    device = brought_to("Staged")
    device.publish("m", release("m", 6))
    device.reach("m", Phase.ACQUIRING)
    device.gates.clear()
    device.settle()
    order = [n.version for _, n in device.notes if n.kind == "confirmed"]
    assert order == ["1.5.0", "1.6.0"]


def test_a_failed_standby_does_not_come_back() -> None:
    device = brought_to("Staged")
    device.publish("m", release("m", 6))
    device.reach("m", Phase.ACQUIRING)
    device.withdraw("m", release("m", 5))
    device.offers["m"] = release("m", 6)
    device.until(lambda d: bool(d.states["m"].withdrawn))
    device.gates.clear()
    device.settle()
    assert device.end_state("m")["runs"] == "1.6.0"
    assert "1.5.0" not in [n.version for _, n in device.notes if n.kind == "activated"]


def test_a_rotten_version_on_disk_is_fetched_again() -> None:
    device = brought_to("Idle")
    device.publish("m", release("m", 3))
    device.settle()
    device.stores["m"].slots[release("m", 2).digest].rotten = True
    device.command("m", Verb.PIN, "1.2.0")
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    assert Phase.ACQUIRING in device.chain["m"]


def test_inference_leaves_while_the_confirmation_is_written() -> None:
    """What inference saw counts: it left an unconfirmed version, whatever the mark says by now."""
    device = brought_to("Probation")
    device.conduct[release("m", 5).digest] = Conduct(live="open")
    device.command("m", Verb.CONFIRM, "1.5.0")
    device.conduct[release("m", 5).digest] = Conduct(live="crash")
    for _ in range(5):
        device.pass_time(1.0)
        device.live("m", 1.0)
    while device.work():
        pass
    assert device.states["m"].phase is Phase.IDLE, "the confirmation came first"
    device.settle()
    end = device.end_state("m")
    assert (end["runs"], end["fallback"]) == ("1.3.0", "1.2.0")
    assert end["blocks"] == {"1.5.0": (Cause.FAILED, "worker crashed")}
    assert not device.stores["m"].slots[release("m", 5).digest].confirmed
