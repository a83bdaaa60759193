"""Every world that one fault at any moment can lead to; and mistakes, planted into the machine, that have to be found.

The deep plans (two faults, two models, all beginnings) are run by `make model-check`.
"""

from dataclasses import replace

import pytest

from device_parts import release
from model_hands import Matter
from model_moves import Orders, Step, check_world
from model_search import DEEP, PLANS, Plan, Refuted, search
from model_state import NOW, Atelier, Box, Work, World
from modelagent.core import before, desired, machine, scene
from modelagent.core.effects import Activate, Confirm, Revert
from modelagent.core.events import Event, Started, Verb
from modelagent.core.machine import TABLE, Cell
from modelagent.core.scene import Scene
from modelagent.core.state import Answers, Phase, State, Timer
from modelagent.manifest import Release

UPDATE = Plan(("m",), (1, 2, 3), (((1,), 3),), 1)  # 1.1.0 runs, and the channel names a bad one


def test_no_single_fault_leads_to_a_world_that_may_not_be() -> None:
    plan = PLANS["quick"]
    found = search(plan.play(), plan.worlds(), plan.faults)
    assert found.worlds > 5000, "the plan has shrunk"
    assert found.resting > 50
    assert set(DEEP) < set(PLANS)


def test_two_models_that_nothing_disturbs_share_the_device() -> None:
    plan = PLANS["two"]
    found = search(plan.play(), plan.worlds(), faults=0)
    assert found.worlds > 1000
    assert found.resting > 0


# -- what is planted has to be found -----------------------------------------------------------------------------------


def refuted(plan: Plan = UPDATE, faults: int = 1, step: Step = machine.step) -> Refuted:
    with pytest.raises(Refuted) as caught:
        search(plan.play(step), plan.worlds(), faults)
    assert caught.value.story
    for number, move in enumerate(caught.value.story, 1):
        assert f"  {number}. {move}" in str(caught.value), "the counter-example is printed"
    return caught.value


def blind(_state: State, _release: Release) -> str:
    return ""


def test_a_skipped_block_check_before_activation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired, "block_reason", blind)
    monkeypatch.setattr(before, "block_reason", blind)
    found = refuted()
    assert "a blocked version is activated" in found.what
    assert found.faults == 0, "a bad release is enough, and the story has no fault that it does not need"


def test_a_revert_that_forgets_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(state: State, leaving: str | None, _refused: tuple[str, ...] = ()) -> str | None:
        fit = [s.release.digest for s in state.slots if s.confirmed and s.release.digest != leaving]
        return fit[-1] if fit else None

    monkeypatch.setattr(scene, "revert_target", careless)
    found = refuted()
    assert "blocked version" in found.what
    assert found.faults == 1


def test_a_withdrawal_that_is_not_heeded_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scene, "must_leave", lambda _self: "")
    assert "withdrawn" in refuted(Plan(("m",), (1, 2), (((1, 2), 2),), 1)).what


def test_a_start_that_leaves_its_phase_without_work_is_a_dead_end_that_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(x: Scene) -> Phase:
        event = x.event
        assert isinstance(event, Started)
        x.adopt(event.disk)
        x.set(doing=None)
        return Phase.CANARY

    table: dict[tuple[Phase, type[Event]], Cell] = dict(TABLE)
    table[Phase.CANARY, Started] = Cell(forgetful, frozenset({Phase.CANARY}))
    monkeypatch.setattr(machine, "TABLE", table)
    found = refuted(Plan(("m",), (1, 2), (((1,), 2),), 1, verbs=UPDATE.verbs[:1], gates=()))
    assert "nothing moves any more" in found.what
    assert any("the updater is killed" in move or "the power goes" in move for move in found.story)


def test_a_candidate_that_is_tried_for_ever_is_a_circle_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired, "block_reason", blind)
    assert "circles" in refuted(faults=0).what, "taken on, put aside, taken on"


def test_a_command_that_is_done_twice_is_found() -> None:
    def forgets_commands(state: State, event: Event, answers: Answers) -> tuple[State, Orders]:
        return machine.step(replace(state, seen=()), event, answers)

    assert "twice" in refuted(step=forgets_commands).what


def test_an_effect_before_it_is_written_down_is_found() -> None:
    def hasty(state: State, event: Event, answers: Answers) -> tuple[State, Orders]:
        new, orders = machine.step(state, event, answers)
        return new, tuple(sorted(orders, key=lambda order: not isinstance(order, Activate)))

    assert "before it is written down" in refuted(step=hasty).what


# -- the world of the checker ------------------------------------------------------------------------------------------


def test_worlds_with_the_same_future_are_the_same_world() -> None:
    atelier, old = Atelier(), release("m", 1)
    box = Box.installed("m", [old])
    one = World((box,))
    busy = box._replace(memory=replace(box.journal, next_id=7, alarms=("x",), timer=Timer.after(NOW, 99.0)))
    other = box._replace(memory=replace(box.journal, next_id=90, waiting="y", timer=Timer.after(NOW, 1.0)))
    assert atelier.settled(atelier.settled(one)) == atelier.settled(one)
    assert atelier.key(atelier.settled(World((busy,)))) == atelier.key(atelier.settled(World((other,))))
    due = box._replace(memory=replace(box.journal, timer=Timer.after(NOW, 0.0)))
    assert atelier.settled(World((due,))) != atelier.settled(World((busy,)))


def halves(order: Activate | Confirm | Revert) -> list[tuple[str | None, str | None, str | None]]:
    old, new = release("m", 1), release("m", 2)
    box = Box.installed("m", [old])
    box = box._replace(disk=box.disk.with_slot(new, confirmed=False), work=(Work(order),))
    matter = Matter({old.digest: "good", new.digest: "good"}, {"m": [old, new]})
    names = {old.digest: "old", new.digest: "new", None: None}
    return [(names[d.current], names[d.fallback], names[d.shadow]) for _, d in matter.halves(box, order)]


def test_each_durable_change_of_a_switch_can_be_the_last() -> None:
    old, new = release("m", 1), release("m", 2)
    assert halves(Activate("m", 1, new, old.digest, old.digest)) == [
        ("old", "old", None),
        ("old", "old", "old"),
        ("new", "old", "old"),
    ]
    assert halves(Revert("m", 1, old.digest, new.digest, None, unconfirm=False))[0] == ("new", None, None)


def test_an_unconfirmed_version_without_a_prepared_way_back_is_no_world_that_may_be() -> None:
    old, new = release("m", 1), release("m", 2)
    box = Box.installed("m", [old])
    disk = box.disk.with_slot(new, confirmed=False)._replace(current=new.digest, fallback=None)
    lost = box._replace(disk=disk, memory=replace(box.journal, slots=disk.slots, current=new.digest))
    with pytest.raises(AssertionError, match="no way back"):
        check_world(World((lost,)))
    check_world(World((lost._replace(disk=disk._replace(fallback=old.digest)),)))
    assert Verb.CONFIRM in [verb for verb, _ in UPDATE.verbs]
