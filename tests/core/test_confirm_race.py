"""A mark that is being written when the judge speaks: what the disk says of a slot is what is believed."""

import pytest

from device_simulator import Conduct, Device, release
from modelagent.core.events import Verb
from modelagent.core.state import Phase, slot


@pytest.mark.parametrize("have", [(), (1,)], ids=["nowhere to go back to", "a way back"])
@pytest.mark.parametrize("full", [False, True], ids=["", "the mark cannot be written"])
def test_the_judge_says_bad_while_an_operators_confirmation_is_written(have: tuple[int, ...], full: bool) -> None:
    device = Device("m")
    if have:
        device.install("m", *(release("m", n) for n in have))
    device.publish("m", release("m", 2), Conduct(live="bad"))
    device.reach("m", Phase.PROBATION)
    assert device.command("m", Verb.CONFIRM).startswith("accepted")
    device.too_late = True  # what is given up now is done all the same
    if full:
        device.full = True
    for _ in range(20):
        device.tick(drain=False)  # the judge has enough frames; the hand has not come to the mark
    device.too_late = False
    for _ in range(5):
        device.tick()
    device.full = False
    device.settle()
    state, store = device.states["m"], device.stores["m"]
    here = slot(state, state.current)
    assert here is not None
    assert store.current is not None
    assert here.confirmed == store.slots[store.current].confirmed
    if have:
        assert device.end_state("m")["runs"] == "1.1.0", "with a way back the judge is heard at once"
    else:
        assert here.confirmed is not full, "the operator's word stands, unless it could not be written"
        assert ("1.2.0" in str(device.end_state("m")["blocks"])) is full
