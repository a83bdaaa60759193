"""The links beside a deployment, when the disk does not do as it is told: what is owed is done in the end."""

from device_simulator import Conduct, Device, release
from modelagent.core.events import ConfigWish, Elapsed
from modelagent.core.state import Phase
from modelagent.errors import Remedy


def running(*numbers: int) -> Device:
    device = Device("m", vacuum=False)
    device.install("m", *(release("m", n) for n in numbers))
    device.settle()
    return device


def test_a_fallback_that_could_not_be_set_is_set_later() -> None:
    device = running(1, 2, 3)
    device.failing["SetFallback"] = Remedy.WAIT
    device.withdraw("m", release("m", 2))
    device.until(lambda d: bool(d.states["m"].withdrawn) and bool(d.states["m"].owed))
    for _ in range(10):
        device.tick()
    assert device.stores["m"].fallback == release("m", 2).digest, "it still names the withdrawn one"
    assert any("could not be changed" in alarm for alarm in device.states["m"].alarms)
    device.failing.clear()
    device.settle()
    assert device.stores["m"].fallback == release("m", 1).digest
    assert not device.states["m"].owed


def test_a_fallback_that_could_not_be_recorded_is_set_later() -> None:
    device = running(1, 2, 3)
    device.withdraw("m", release("m", 2))
    device.pass_time(device.interval)
    device.turn("m", Elapsed(device.now, 0.5))
    while device.queues["check"]:  # what is learned now cannot be written down
        device.work("check")
    device.full = True
    for _ in range(5):
        device.tick()
    assert device.stores["m"].fallback == release("m", 2).digest
    device.full = False
    device.settle()
    assert device.stores["m"].fallback == release("m", 1).digest


def test_a_stop_that_failed_is_done_later() -> None:
    device = Device("m")
    device.settle()
    device.configure("m", ConfigWish(safe_action="stop"))
    device.failing["Stop"] = Remedy.WAIT
    device.publish("m", release("m", 1), Conduct(live="bad"))
    device.until(lambda d: bool(d.states["m"].blocks))
    for _ in range(5):
        device.tick()
    assert device.stores["m"].current == release("m", 1).digest
    device.failing.clear()
    device.settle()
    assert device.end_state("m")["current"] is None
    assert device.inference["m"].running is None


def test_a_mark_that_was_to_go_goes_whatever_target_it_becomes() -> None:
    """Inference left 1.5.0 while it was being confirmed; the target is withdrawn before the revert succeeds."""
    device = running(2, 3)
    device.publish("m", release("m", 5), Conduct(live="crash"))
    device.reach("m", Phase.REVERTING)
    device.stores["m"].slots[release("m", 5).digest].confirmed = True  # the mark was written, nobody was told
    device.failing["Revert"] = Remedy.WAIT
    device.withdraw("m", release("m", 3))
    device.until(lambda d: bool(d.states["m"].withdrawn))
    device.failing.clear()
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    assert not device.stores["m"].slots[release("m", 5).digest].confirmed


def test_a_revert_on_a_full_disk_goes_back_and_mends_the_fallback_later() -> None:
    device = running(1, 2, 3)
    device.full = True
    assert device.command("m", "rollback").startswith("accepted")
    device.until(lambda d: d.inference["m"].running == release("m", 2).digest)
    assert device.stores["m"].fallback is None
    device.full = False
    device.settle()
    assert device.stores["m"].fallback == release("m", 1).digest


def test_a_target_that_has_vanished_gives_way_to_the_next() -> None:
    device = running(1, 2, 3)
    device.command("m", "rollback")
    store = device.stores["m"]
    del store.slots[release("m", 2).digest]
    store.fallback = release("m", 1).digest
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"


def test_a_switch_that_was_made_but_not_synced_counts_as_made() -> None:
    device = running(1, 2)
    device.publish("m", release("m", 3))
    device.reach("m", Phase.ACTIVATING)
    for queued in list(device.queues["store-m"]):
        device.broken_after[type(queued.effect)] = "current"
    device.settle()
    assert device.end_state("m")["runs"] == "1.3.0"
    assert device.end_state("m")["confirmed"]
    assert device.chain["m"].count(Phase.ACTIVATING) == 1


def test_a_lost_state_file_is_not_trusted_over_the_disk() -> None:
    """What runs unconfirmed goes on probation; nothing runs for ever on nobody's word."""
    device = running(1, 2)
    device.publish("m", release("m", 3), Conduct(live="open"))
    device.reach("m", Phase.PROBATION)
    device.kill()
    device.journal["m"] = type(device.journal["m"])("m")
    device.conduct[release("m", 3).digest] = Conduct()
    device.settle()
    assert device.end_state("m")["runs"] == "1.3.0"
    assert device.end_state("m")["confirmed"]


def test_a_revert_that_could_not_be_recorded_does_not_come_back_at_once() -> None:
    device = running(1, 2)
    device.publish("m", release("m", 3), Conduct(live="crash"))
    device.reach("m", Phase.PROBATION)
    device.full = True
    device.until(lambda d: d.stores["m"].current == release("m", 2).digest)
    device.kill()
    device.full = False
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    assert release("m", 3).digest in device.states["m"].postponed
