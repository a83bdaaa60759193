"""What adds up over years: counters that nobody sets back for a long time end in a longest wait, never in an error."""

from dataclasses import replace

import pytest

from device_simulator import QUICK, Device, release
from modelagent.core.events import Failed
from modelagent.core.state import Phase, Postponed, Timer, Watching
from modelagent.errors import Remedy

YEARS = 1500  # failed checks in a row: most of a year without a link, at the longest back-off


def test_a_device_that_finds_no_link_for_a_year_still_asks_and_recovers() -> None:
    """Doubling a whole number 1,024 times gives one that no float holds."""
    device = Device("m")
    device.install("m", release("m", 1))
    device.failing["Check"] = Remedy.RETRY
    device.start()
    state = device.states["m"]
    device.states["m"] = replace(state, watch=replace(state.watch, failures=YEARS))
    device.until(lambda d: d.states["m"].watch.failures == YEARS + 1)
    watch = device.states["m"].watch
    assert watch.kind is Watching.BACKED_OFF
    assert watch.timer is not None
    assert watch.timer.length <= device.rules.back_off_max_s
    device.failing.clear()
    device.publish("m", release("m", 2))
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    assert device.states["m"].watch.failures == 0


@pytest.mark.parametrize("times", [1, 40, 1100, 10**6])
def test_a_release_postponed_over_and_over_waits_the_longest_postponement(times: int) -> None:
    device = Device("m", rules=replace(QUICK, attempts=1, postpone_max_s=86400.0))
    device.install("m", release("m", 1))
    device.publish("m", release("m", 2))
    device.reach("m", Phase.ACQUIRING)
    state, digest = device.states["m"], release("m", 2).digest
    assert state.doing is not None
    over = Timer.after(device.now, 0.0)
    device.states["m"] = replace(state, postponed={digest: Postponed(over, times, "again and again")})
    device.deliver("m", Failed(device.now, 0.5, state.doing.id, Remedy.RETRY, "probe", "made to fail"))
    after = device.states["m"].postponed[digest]
    assert after.times == times + 1
    assert device.rules.postpone_s <= after.timer.length <= device.rules.postpone_max_s
