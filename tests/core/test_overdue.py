"""What waits for too long is an alarm while it waits; what "now" lifted stands in the history."""

from dataclasses import replace

from modelagent.core.effects import Acquire, Activate, Effect, Tell
from modelagent.core.events import Elapsed, Instant, SlotFacts
from modelagent.core.machine import step
from modelagent.core.state import Answers, Candidate, Desired, Phase, Reached, State, Way
from modelagent.core.verdicts import Allow, Wait
from modelagent.manifest import Release

OLD = Release("digits", "1.0.0", "a" * 64, 1, 0, "b" * 64, 1000, 0.0)
NEW = Release("digits", "1.1.0", "c" * 64, 2, 0, "d" * 64, 1000, 0.0)
RUNS = State("digits", slots=(SlotFacts(OLD, confirmed=True),), current=OLD.digest, desired=Desired(offer=NEW))
WAITS = replace(RUNS, phase=Phase.DEFERRED, candidate=Candidate(NEW, Way.FORWARD))
LOUD = "download has waited for more than 7 d: the link is metered"
LIFTED = 'window: closed, and lifted by "now"'


def elapsed(second: float) -> Elapsed:
    return Elapsed(Instant(1e9 + second, second, "boot"), 0.5)


def notes(orders: tuple[Effect, ...]) -> list[tuple[str, str]]:
    return [(note.kind, note.text) for order in orders if isinstance(order, Tell) for note in order.notes]


def test_an_alarm_once_and_gone_when_it_is_over() -> None:
    waiting = Answers(may_check=Wait(2e9, "later"), may_acquire=Wait(2e9, "the link is metered"), overdue=(LOUD,))
    state, orders = step(WAITS, elapsed(0), waiting)
    assert state.alarms == (f"overdue: {LOUD}",)
    assert ("alarm", f"overdue: {LOUD}") in notes(orders)
    state, orders = step(state, elapsed(60), waiting)
    assert state.alarms == (f"overdue: {LOUD}",)
    assert notes(orders) == []
    state = replace(state, alarms=("another one", *state.alarms))
    state, orders = step(state, elapsed(120), replace(waiting, overdue=()))
    assert state.alarms == ("another one",)
    assert notes(orders) == [("overdue", f"no longer: {LOUD}")]


def test_what_was_lifted_is_recorded_with_what_it_was_lifted_for() -> None:
    later = Wait(2e9, "later")
    state, orders = step(WAITS, elapsed(0), Answers(may_check=later, may_acquire=Allow(LIFTED)))
    assert any(isinstance(order, Acquire) for order in orders)
    assert ("acquiring", f"1.1.0, 1000 bytes ({LIFTED})") in notes(orders)
    ready = Candidate(NEW, Way.FORWARD, Reached.PASSED, judged_against=OLD.digest)
    staged = replace(RUNS, phase=Phase.STAGED, candidate=ready, slots=(*RUNS.slots, SlotFacts(NEW, confirmed=False)))
    state, orders = step(staged, elapsed(0), Answers(may_check=later, may_activate=Allow(LIFTED)))
    assert state.phase is Phase.ACTIVATING
    assert any(isinstance(order, Activate) for order in orders)
    assert ("activating", f"1.1.0 in place of 1.0.0 ({LIFTED})") in notes(orders)
    _, orders = step(staged, elapsed(0), Answers(may_check=later))
    assert ("activating", "1.1.0 in place of 1.0.0") in notes(orders)
