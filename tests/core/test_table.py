"""The table: complete, every edge of it real, every phase on its way to Idle, the drawing in the docs its own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from device_chaos import PATIENT, Edge, Surveyor, seeded
from device_simulator import Conduct, Device, release
from draw_diagram import PAGE, drawn
from modelagent.core import machine
from modelagent.core.events import (
    ConfigWish,
    DiskFacts,
    Elapsed,
    Event,
    Failed,
    Finished,
    Instant,
    Learned,
    Started,
    Verb,
)
from modelagent.core.machine import COLUMNS, TABLE, Cell, step
from modelagent.core.state import Answers, Doing, Owed, Phase, State, Watch, Watching
from modelagent.core.verdicts import Outcome, Wait
from modelagent.errors import Remedy

SHUT = Wait(4e9, "closed", "window")
NOW = Instant(1.8e9, 10.0, "boot")


def declared() -> set[Edge]:
    return {(phase, event, goal) for (phase, event), cell in TABLE.items() for goal in cell.goes if goal is not phase}


def ready() -> Device:
    """A device with 1.1.0 and 1.2.0 that stopped before activating 1.3.0."""
    device = Device("m")
    device.install("m", release("m", 1), release("m", 2))
    device.gates["activate"] = SHUT
    device.publish("m", release("m", 3))
    device.reach("m", Phase.STAGED)
    return device


def killed_again_and_again(phase: Phase, *, standing_by: bool) -> Device:
    """The power goes in this phase until the attempts are used up."""
    device = ready()
    if not standing_by:
        device.publish("m", None)
        device.settle()
    device.publish("m", release("m", 4))
    for _ in range(device.rules.attempts):
        device.reach("m", phase)
        device.kill()
        device.start()
    return device


def kept_though_bad(stop_in: Phase) -> Iterator[Device]:
    """A bad first version was kept; with a newer one on its way the settings say `stop`."""
    for event in (Started, Learned):
        device = Device("m")
        device.publish("m", release("m", 1), Conduct(live="bad"))
        device.settle()
        if stop_in in (Phase.DEFERRED, Phase.STAGED):
            device.gates["acquire" if stop_in is Phase.DEFERRED else "activate"] = SHUT
        device.publish("m", release("m", 2))
        device.reach("m", stop_in)
        device.configure("m", replace(device.states["m"].desired.wish, safe_action="stop"))
        if event is Started:
            device.kill()
            device.start()
        yield device
        device.gates.clear()
        device.settle()
        assert device.end_state("m")["runs"] == "1.2.0"


def with_a_standby(phase: Phase) -> Device:
    """1.3.0 stands by, staged and passed, while 1.4.0 is on its way."""
    device = ready()
    device.publish("m", release("m", 4))
    if phase is Phase.DEFERRED:
        device.gates["canary"] = SHUT
        device.reach("m", Phase.STAGING)
    device.reach("m", phase)
    assert device.states["m"].standby is not None
    return device


def with_an_open_test(phase: Phase) -> Device:
    """1.2.0 is confirmed, its labels have not come, and 1.3.0 is being prepared."""
    device = Device("m", rules=PATIENT)
    device.install("m", release("m", 1))
    device.publish("m", release("m", 2))
    device.settle()
    if phase in (Phase.DEFERRED, Phase.STAGED):
        device.gates["acquire" if phase is Phase.DEFERRED else "activate"] = SHUT
    device.publish("m", release("m", 3))
    device.reach("m", phase)
    assert device.states["m"].aftercare is not None
    return device


def silent_for_ever() -> Device:
    """What is switched to never comes up, and says nothing."""
    device = Device("m")
    device.install("m", release("m", 1))
    device.publish("m", release("m", 2), Conduct(live="hang"))
    device.settle()
    return device


def taken_up_again() -> Device:
    """1.3.0 was staged, held back, and is being acquired once more; its slot is there."""
    device = ready()
    device.command("m", Verb.HOLD)
    device.settle()
    device.command("m", Verb.RESUME)
    device.reach("m", Phase.ACQUIRING)
    return device


@cache
def taken() -> frozenset[Edge]:
    """Every edge that some run takes, or could take from where it is."""
    surveyor = Surveyor(often=1)
    for seed in range(6):
        seeded(seed, 150, surveyor.look)
    for phase, standing_by in product((Phase.STAGING, Phase.CANARY), (False, True)):
        surveyor.edges |= killed_again_and_again(phase, standing_by=standing_by).edges
    for phase in (Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING, Phase.CANARY, Phase.STAGED, Phase.ACTIVATING):
        for device in kept_though_bad(phase):
            surveyor.look(device, "m")
    closer = Surveyor(often=1)
    for phase in (Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING, Phase.CANARY):
        closer.look(with_a_standby(phase), "m")
    for phase in (Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING, Phase.CANARY, Phase.STAGED):
        closer.look(with_an_open_test(phase), "m")
    closer.look(taken_up_again(), "m")
    return frozenset(surveyor.edges | closer.edges | silent_for_ever().edges)


def test_every_cell_is_decided() -> None:
    assert set(TABLE) == set(product(Phase, COLUMNS))


def test_every_phase_reaches_idle_over_declared_edges() -> None:
    home = {Phase.IDLE}
    while grown := {phase for phase, _, goal in declared() if goal in home} - home:
        home |= grown
    assert home == set(Phase)


def test_every_declared_edge_is_taken_and_no_other() -> None:
    names = [
        sorted(f"{a.value} x {event.__name__} -> {b.value}" for a, event, b in edges)
        for edges in (declared() - taken(), taken() - declared())
    ]
    assert names == [[], []]


def test_the_drawing_in_the_docs_is_the_tables() -> None:
    assert drawn(PAGE.read_text(encoding="utf-8")) == machine.diagram(), "run tests/draw_diagram.py"


def test_a_cell_that_goes_elsewhere_is_a_programmer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[tuple[Phase, type[Event]], Cell] = dict(TABLE)
    table[Phase.IDLE, Elapsed] = Cell(lambda _: Phase.PROBATION, frozenset({Phase.IDLE}))
    monkeypatch.setattr(machine, "TABLE", table)
    with pytest.raises(AssertionError, match="may not go to"):
        step(State("m"), Elapsed(NOW, 0.5), Answers())


def test_a_missing_cell_is_a_programmer_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TABLE", {})
    with pytest.raises(KeyError):
        step(State("m"), Elapsed(NOW, 0.5), Answers())


@pytest.mark.parametrize("phase", list(Phase))
def test_a_stale_answer_changes_nothing(phase: Phase) -> None:
    resting = State("m", phase=phase, doing=Doing(7, "stage"), owed=(Owed("fallback", 8), Owed("stop", 0)), next_id=9)
    checking = replace(resting, watch=Watch(Watching.CHECKING, 5))
    for number in (0, 3, 6, 9, 10**9):
        failed = Failed(NOW, 0.5, number, Remedy.RETRY, "late", "late")
        for event in (Finished(NOW, 0.5, number), failed, Learned(NOW, 0.5, number, None)):
            assert step(checking, event, Answers()) == (checking, ())
    assert step(resting, Learned(NOW, 0.5, 5, None), Answers()) == (resting, ()), "no check is under way"
    idle = replace(resting, doing=None, owed=())
    assert step(idle, Finished(NOW, 0.5, 7), Answers()) == (idle, ()), "nothing is under way"


def test_the_same_answer_twice_counts_once() -> None:
    device = Device("m")
    device.publish("m", release("m", 1), Conduct(canary=(Outcome.AGAIN, Outcome.PASS)))
    device.settle()
    for model, event in list(device.landed):
        before = device.states[model]
        assert step(before, event, device.ask(model, event)) == (before, ())


def test_first_boot_of_nothing() -> None:
    state, orders = step(State("m"), Started(NOW, 0.5, DiskFacts(), "litert 2"), Answers())
    assert state.phase is Phase.IDLE
    assert state.runtime == "litert 2"
    assert [type(order).__name__ for order in orders] == ["Persist", "Vacuum"]
    assert ConfigWish() == state.desired.wish
    assert Verb.UPDATE in Verb.ALL
