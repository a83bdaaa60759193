"""Labels that come after the confirmation: the test stays open, the way back stays on disk, a decision still reverts.

The machine's own table with the real judge; what health would say is given by hand.
"""

from dataclasses import replace
from typing import Any

import pytest

from device_simulator import release
from modelagent.core import effects
from modelagent.core.events import Counts, DiskFacts, Elapsed, Event, Finished, Instant, Link, Runs, SlotFacts, Started
from modelagent.core.machine import step
from modelagent.core.state import (
    Aftercare,
    Answers,
    Candidate,
    Cause,
    Evidence,
    Phase,
    Reached,
    Rules,
    State,
    Timer,
    Way,
)
from modelagent.core.verdicts import Deny, SteadyVerdict
from modelagent.judges.probation import ProbationCriteria, judge_probation

OLD, NEW = release("m", 1), release("m", 2)
LINK, BACK = Link(5, 5), Link(6, 6)
DAY = 86_400.0
RULES = Rules(label_horizon_s=7 * DAY)
CRITERIA = ProbationCriteria(frames=10, busy_s=5)
SHUT = Deny("not asked here")


class Bench:
    """One machine and the updater's answers to it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.now = Instant(1.8e9, 1000.0, "boot")
        self.orders: list[effects.Effect] = []
        self.notes: list[effects.Note] = []
        self.steady = SteadyVerdict()

    def turn(self, event: Event) -> None:
        probation = Answers().probation
        if isinstance(event, Runs):
            faults = 0 if self.state.aftercare is not None else event.counts.faults
            probation = judge_probation(replace(event.counts, faults=faults), CRITERIA)
        answers = Answers(SHUT, SHUT, SHUT, SHUT, probation=probation, steady=self.steady, rules=RULES)
        self.state, orders = step(self.state, event, answers)
        self.orders = list(orders)
        self.notes += [note for order in orders if isinstance(order, effects.Persist) for note in order.notes]
        for order in orders:
            if isinstance(order, effects.Confirm):
                self.turn(Finished(self.tick(), 0.5, order.id))
                return

    def tick(self, seconds: float = 1.0) -> Instant:
        self.now = Instant(self.now.wall + seconds, self.now.mono + seconds, "boot")
        return self.now

    def health(self, seconds: float = 1.0, **counts: int) -> None:
        self.turn(Runs(self.tick(seconds), 0.5, LINK, NEW.digest, "boot:e", Counts(**counts)))

    def phase(self) -> Phase:
        return self.state.phase

    def ordered(self, kind: type[effects.Effect]) -> list[Any]:
        return [order for order in self.orders if isinstance(order, kind)]


@pytest.fixture
def bench() -> Bench:
    """1.2.0 on probation in place of 1.1.0."""
    state = State(
        "m",
        phase=Phase.PROBATION,
        candidate=Candidate(NEW, Way.FORWARD, Reached.PASSED, LINK, judged_against=OLD.digest),
        slots=(SlotFacts(OLD, True), SlotFacts(NEW, False)),
        current=NEW.digest,
        link=LINK,
        fallback=OLD.digest,
    )
    made = Bench(state)
    made.health()
    return made


def confirmed(bench: Bench) -> Bench:
    bench.health(frames=20, done=20, busy_s=10)
    assert bench.phase() is Phase.IDLE
    assert any(note.kind == "confirmed" for note in bench.notes)
    return bench


def test_a_confirmation_without_labels_leaves_the_test_open(bench: Bench) -> None:
    after = confirmed(bench).state.aftercare
    assert after is not None
    assert (after.digest, after.previous, after.drifted) == (NEW.digest, OLD.digest, False)
    assert after.until.left(bench.now) == pytest.approx(7 * DAY)


def test_late_labels_that_condemn_lead_back_and_block(bench: Bench) -> None:
    confirmed(bench)
    bad = {"frames": 90, "done": 90, "busy_s": 40, "only_old": 25, "only_new": 1, "both_right": 9}
    bench.health(3600.0, **bad)
    assert bench.phase() is Phase.PROBATION
    assert "labels came late" in bench.notes[-1].text
    bench.health(**bad)
    assert bench.phase() is Phase.REVERTING
    (order,) = bench.ordered(effects.Revert)
    assert (order.leaving, order.target, order.unconfirm) == (NEW.digest, OLD.digest, True)
    assert bench.state.blocks[NEW.digest].cause is Cause.FAILED
    assert bench.state.aftercare is None
    bench.turn(Finished(bench.tick(), 0.5, order.id, link=BACK))
    bench.turn(Runs(bench.tick(), 0.5, BACK, OLD.digest, "boot:e", Counts()))
    assert bench.phase() is Phase.IDLE
    assert bench.state.current == OLD.digest


def test_late_labels_that_acquit_close_the_test(bench: Bench) -> None:
    confirmed(bench)
    bench.health(3600.0, frames=90, done=90, busy_s=40, only_old=4, only_new=20)
    assert bench.phase() is Phase.IDLE
    assert bench.state.aftercare is None
    assert bench.notes[-1].kind == "labels"


def test_after_the_horizon_nothing_decides_any_more(bench: Bench) -> None:
    confirmed(bench)
    bench.health(8 * DAY, frames=90, done=90, busy_s=40)
    assert bench.state.aftercare is None
    bench.health(frames=99, done=99, busy_s=41, only_old=30)
    assert bench.phase() is Phase.IDLE


def test_a_fault_of_a_confirmed_version_does_not_condemn_it(bench: Bench) -> None:
    confirmed(bench)
    bench.health(frames=90, done=90, busy_s=40, faults=3)
    assert bench.phase() is Phase.IDLE
    assert bench.state.current == NEW.digest


def test_a_restart_keeps_the_test_and_the_way_back(bench: Bench) -> None:
    confirmed(bench)
    bench.health(frames=50, done=50, busy_s=20, only_old=6)
    disk = DiskFacts((SlotFacts(OLD, True), SlotFacts(NEW, True)), NEW.digest, LINK, OLD.digest)
    bench.turn(Started(bench.tick(), 0.5, disk, "runtime"))
    (vacuum,) = bench.ordered(effects.Vacuum)
    assert OLD.digest in vacuum.keep
    bench.health(frames=60, done=60, busy_s=25, only_old=25)
    assert bench.phase() is Phase.PROBATION


def test_evidence_alone_is_not_written_with_every_record(bench: Bench) -> None:
    confirmed(bench)
    bench.health(frames=50, done=50, busy_s=20, only_old=1)
    written = 0
    for number in range(20):
        bench.health(frames=51 + number, done=51 + number, busy_s=21 + number, only_old=1)
        written += len(bench.ordered(effects.Persist))
    assert written <= 1


def test_drift_is_told_once_and_compared_only_where_the_settings_ask(bench: Bench) -> None:
    confirmed(bench)
    bench.state = replace(bench.state, aftercare=None)
    bench.steady = SteadyVerdict("58 of 120 labelled results are wrong")
    for _ in range(3):
        bench.health(frames=50, done=50, busy_s=20)
    told = [note for note in bench.notes if note.kind == "drift"]
    assert [note.text for note in told] == ["retraining wanted: 58 of 120 labelled results are wrong"]
    assert told[0].level == "alarm"
    assert bench.state.aftercare is None
    assert "retraining wanted" in bench.state.alarms[-1]


def drifting(bench: Bench) -> Bench:
    confirmed(bench)
    bench.state = replace(bench.state, aftercare=None)
    bench.steady = SteadyVerdict("58 of 120 labelled results are wrong", compare=True)
    bench.health(frames=50, done=50, busy_s=20)
    return bench


def test_the_previous_version_is_run_beside_and_gone_back_to_if_it_is_better(bench: Bench) -> None:
    (shadow,) = drifting(bench).ordered(effects.SetShadow)
    assert shadow.target == OLD.digest
    bench.turn(Finished(bench.tick(), 0.5, shadow.id))
    worse = {"frames": 150, "done": 150, "busy_s": 60, "only_old": 25, "only_new": 1}
    bench.health(**worse)
    bench.health(**worse)
    assert bench.phase() is Phase.REVERTING
    assert NEW.digest not in bench.state.blocks, "it had proved itself: it waits, and may come back"
    assert NEW.digest in bench.state.postponed


def test_where_both_do_alike_the_shadow_goes_and_the_version_stays(bench: Bench) -> None:
    (shadow,) = drifting(bench).ordered(effects.SetShadow)
    bench.turn(Finished(bench.tick(), 0.5, shadow.id))
    bench.health(frames=150, done=150, busy_s=60, only_old=6, only_new=20)
    (gone,) = bench.ordered(effects.SetShadow)
    assert gone.target is None
    assert bench.phase() is Phase.IDLE


def test_a_decision_with_nowhere_to_go_is_an_alarm_and_is_told_once(bench: Bench) -> None:
    confirmed(bench)
    bench.state = replace(bench.state, withdrawn={OLD.digest: "smells"}, fallback=None)
    for number in range(3):
        bench.health(frames=90 + number, done=90 + number, busy_s=40, only_old=20 + number, both_right=9)
    assert bench.phase() is Phase.IDLE
    told = [note.text for note in bench.notes if note.kind == "alarm"]
    assert told == ["late labels speak against 1.2.0, and there is no version to go back to"]
    assert bench.state.aftercare is not None, "should a way back come, it is taken"


PREPARING = (Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING, Phase.CANARY, Phase.STAGED)


@pytest.mark.parametrize("phase", PREPARING, ids=lambda phase: phase.value)
def test_late_labels_do_not_wait_for_what_is_being_prepared(bench: Bench, phase: Phase) -> None:
    confirmed(bench)
    nearly = Candidate(release("m", 3), Way.FORWARD, Reached.OFFERED)
    bench.state = replace(bench.state, phase=phase, candidate=nearly, waiting="a window opens on Sunday")
    bench.health(3600.0, frames=60, done=60, busy_s=30, only_old=3, both_right=9)
    assert (bench.phase(), bench.state.aftercare is None) == (phase, False)
    bench.health(frames=90, done=90, busy_s=40, only_old=25, only_new=1, both_right=9)
    assert bench.phase() is Phase.REVERTING
    (order,) = bench.ordered(effects.Revert)
    assert (order.leaving, order.target, order.unconfirm) == (NEW.digest, OLD.digest, True)
    assert bench.state.blocks[NEW.digest].cause is Cause.FAILED
    assert bench.state.candidate is None
    told = {note.kind: note.text for note in bench.notes}
    assert told["abandoned"] == "1.3.0: 1.2.0, which runs, has to be left first"
    assert "the previous model is better on the same" in told["probation"]


@pytest.mark.parametrize("phase", PREPARING, ids=lambda phase: phase.value)
def test_the_horizon_passes_in_every_phase(bench: Bench, phase: Phase) -> None:
    confirmed(bench)
    nearly = Candidate(release("m", 3), Way.FORWARD, Reached.OFFERED)
    bench.state = replace(bench.state, phase=phase, candidate=nearly)
    bench.health(8 * DAY, frames=60, done=60, busy_s=30)
    assert (bench.phase(), bench.state.aftercare) == (phase, None)
    assert bench.notes[-1].text == "1.2.0 stays: its time is over"


def test_another_version_ends_the_test() -> None:
    at = Instant(1.8e9, 1000.0, "boot")
    after = Aftercare("f" * 64, OLD.digest, Timer.after(at, DAY), Evidence())
    state = State("m", slots=(SlotFacts(NEW, True),), current=NEW.digest, link=LINK, aftercare=after)
    bench = Bench(state)
    bench.health()
    assert bench.state.aftercare is None
    bench.turn(Elapsed(bench.tick(), 0.5))
    assert bench.phase() is Phase.IDLE
