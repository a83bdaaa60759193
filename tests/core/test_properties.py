"""Anything may happen, at any moment, to two models on one device; what must hold, holds.

The invariants themselves are the simulator's (`_check_step`, `_check_disk`): they are looked at after every step and
every change of the disk. What may happen is in `device_chaos`. Hypothesis finds short stories and shrinks them; the
seeded runs go deeper. MODELAGENT_HYPOTHESIS=heavy does more of both.
"""

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from device_chaos import GATES, HANDS, HIGHEST, LIVES, OUTCOMES, PATIENT, TRUTHS, VERBS, Chaos, seeded
from device_simulator import ENOUGH, FPS, Conduct, Device, release
from modelagent.core import effects
from modelagent.core.events import Counts, Instant, Link, Runs, SlotFacts
from modelagent.core.state import Evidence, Phase, State, Timer, add, gather, subtract
from modelagent.core.verdicts import Outcome
from modelagent.errors import Remedy

HEAVY = os.environ.get("MODELAGENT_HYPOTHESIS") == "heavy"
MODELS = st.sampled_from(["a", "b"])
NUMBERS = st.integers(1, HIGHEST)
CONDUCT = st.builds(
    Conduct,
    st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=3).map(tuple),
    st.sampled_from(LIVES),
    st.sampled_from(TRUTHS),
)
CONDUCTS = st.lists(CONDUCT, min_size=HIGHEST, max_size=HIGHEST)
WHICH = st.integers(0, 10**6)


class Anything(RuleBasedStateMachine):
    """Two models, one device, and everything that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device("a", "b", rules=PATIENT)
        self.chaos = Chaos(self.device)

    @initialize(one=st.integers(0, 3), other=st.integers(0, 3), conducts=CONDUCTS, others=CONDUCTS)
    def provision(self, one: int, other: int, conducts: list[Conduct], others: list[Conduct]) -> None:
        self.chaos.provision("a", one, conducts)
        self.chaos.provision("b", other, others)

    @rule(seconds=st.sampled_from([1, 1, 2, 4]), drain=st.booleans(), draw=st.floats(0, 0.99))
    def time_passes(self, seconds: int, drain: bool, draw: float) -> None:
        self.device.draw = draw
        self.device.tick(seconds, drain=drain)

    @rule(seconds=st.integers(2, 20))
    def a_while_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.device.tick()

    @rule(draws=st.lists(st.integers(0, 7), min_size=1, max_size=4), too_late=st.booleans())
    def hands_move(self, draws: list[int], too_late: bool) -> None:
        self.device.too_late = too_late
        for draw in draws:
            self.device.some_work(draw)

    @rule(model=MODELS, number=NUMBERS, seconds=st.integers(0, 20))
    def a_release_is_named(self, model: str, number: int, seconds: int) -> None:
        self.chaos.name_release(model, number, 2 if number == 5 else 0)
        self.a_while_passes(seconds)

    @rule(model=MODELS, number=NUMBERS)
    def a_version_is_withdrawn(self, model: str, number: int) -> None:
        self.device.withdraw(model, release(model, number))

    @rule(model=MODELS)
    def the_repository_calms_down(self, model: str) -> None:
        self.device.withdrawn[model].clear()
        self.device.publish(model, None)

    @rule(model=MODELS)
    def labels_come(self, model: str) -> None:
        self.device.label(model)

    @rule(model=MODELS, away=st.booleans())
    def the_input_moves(self, model: str, away: bool) -> None:
        self.chaos.move_input(model, away=away)

    @rule(gate=st.sampled_from(GATES), closed=st.booleans())
    def a_gate_moves(self, gate: str, closed: bool) -> None:
        self.chaos.move_gate(gate, closed=closed)

    @rule(hand=st.sampled_from(HANDS), remedy=st.sampled_from([None, None, *Remedy]), full=st.booleans())
    def a_hand_fails(self, hand: str, remedy: Remedy | None, full: bool) -> None:
        self.chaos.fail_hand(hand, remedy)
        self.device.full = full and remedy is not None

    @rule(
        switch=st.sampled_from([effects.Activate, effects.Revert]),
        part=st.sampled_from(["", "", "nothing", "fallback", "current"]),
    )
    def a_switch_breaks_half_way(self, switch: type[effects.Effect], part: str) -> None:
        self.device.broken_after[switch] = part

    @rule(model=MODELS, number=NUMBERS)
    def a_slot_rots(self, model: str, number: int) -> None:
        self.chaos.rot(model, number)

    @rule(model=MODELS, asleep=st.booleans(), back=st.booleans())
    def inference_dies(self, model: str, asleep: bool, back: bool) -> None:
        self.device.end_inference(model)
        self.device.inference[model].asleep = asleep
        if back:
            self.device.start_inference(model)

    @rule(points=st.integers(0, 12), power=st.booleans())
    def the_updater_is_killed(self, points: int, power: bool) -> None:
        if points:
            self.chaos.kill_soon(points, power=power)
        elif power:
            self.chaos.power_cycle(3600.0)
        else:
            self.device.kill()

    @rule(seconds=st.sampled_from([-1e9, -3600.0, 3600.0, 1e7]), runtime=st.sampled_from(["litert 2", "litert 3"]))
    def clock_and_runtime_change(self, seconds: float, runtime: str) -> None:
        self.chaos.jump_clock(seconds)
        self.chaos.change_runtime(runtime)

    @rule(model=MODELS, verb=st.sampled_from(VERBS), number=NUMBERS)
    def a_command(self, model: str, verb: str, number: int) -> None:
        self.chaos.command(model, verb, number)

    @rule(which=WHICH)
    def a_command_is_repeated(self, which: int) -> None:
        self.chaos.repeat_command(which)

    @rule(
        model=MODELS,
        wish=st.fixed_dictionaries(
            {
                "hold": st.booleans(),
                "updates": st.booleans(),
                "pin": st.sampled_from(["", "1.2.0"]),
                "forbid": st.sampled_from([(), ("1.3.0",)]),
                "safe_action": st.sampled_from(["stop", "keep-and-alarm"]),
            }
        ),
    )
    def the_settings_change(self, model: str, wish: dict[str, object]) -> None:
        self.chaos.configure(model, **wish)

    @rule(which=WHICH)
    def late_health(self, which: int) -> None:
        self.chaos.late_health(which)

    @rule(which=WHICH)
    def an_answer_comes_twice(self, which: int) -> None:
        self.chaos.answer_twice(which)

    @invariant()
    def it_rests_and_says_why(self) -> None:
        self.chaos.check_rest()

    def teardown(self) -> None:
        self.chaos.calm_down()


TestAnything = Anything.TestCase


@pytest.mark.parametrize("seed", range(1000, 3000 if HEAVY else 1016))
def test_a_long_seeded_run(seed: int) -> None:
    device = seeded(seed, 200)
    for model in device.models:
        assert {a.command for a in device.answers}, "commands were given"
        assert device.states[model].phase is Phase.IDLE


# -- failures end ----------------------------------------------------------------------------------------------------


BAD = [
    *[("hand " + hand, Conduct()) for hand in ("Acquire", "Stage", "RunCanary", "Activate")],
    *[(f"canary {o.value}", Conduct(canary=(o,))) for o in Outcome if o is not Outcome.PASS],
    *[(f"live {live}", Conduct(live=live)) for live in ("bad", "crash", "refuse", "hang")],
]


@pytest.mark.parametrize("have", [(), (1, 2)], ids=["first", "next"])
@pytest.mark.parametrize("what", BAD, ids=lambda w: w[0])
def test_any_run_of_failures_ends(what: tuple[str, Conduct], have: tuple[int, ...]) -> None:
    """Nothing gets better for an hour and a half: what costs bytes or a switch is tried a bounded number of times."""
    for remedy in Remedy if what[0].startswith("hand") else [Remedy.RETRY]:
        device = Device("m")
        if have:
            device.install("m", *(release("m", n) for n in have))
        if what[0].startswith("hand"):
            device.failing[what[0].removeprefix("hand ")] = remedy
        device.publish("m", release("m", 7), what[1])
        began = device.wall
        while device.wall < began + 5400:
            device.tick(1.0 if device.wall < began + 100 else 5.0)
        spent = Counter(word for when, _, word in device.spent if when < began + 3600)
        assert all(count <= 20 for count in spent.values()), (remedy, spent)
        later = Counter(word for when, _, word in device.spent if when >= began + 3600)
        assert all(count <= 8 for count in later.values()), (remedy, later)
        assert len([n for _, n in device.notes if n.level != "info"]) < 60, "the log is not flooded either"
        if have:
            assert device.end_state("m")["runs"] == f"1.{have[-1]}.0", "and what ran goes on running"


def test_a_used_up_limit_postpones_for_longer_each_time() -> None:
    device = Device("m")
    device.install("m", release("m", 1))
    device.failing["Acquire"] = Remedy.RETRY
    device.publish("m", release("m", 2))
    device.until(lambda d: "postponed" in [n.kind for _, n in d.notes], 20_000)
    for _ in range(1000):
        device.tick(5.0)
    when = [float(n.text.split(" for ")[1].split(" s")[0]) for _, n in device.notes if n.kind == "postponed"]
    assert when == [device.rules.postpone_s * 2**k for k in range(len(when))]
    assert len(when) >= 3
    device.failing.clear()
    device.until(lambda d: d.states["m"].current == release("m", 2).digest, 30_000)
    device.settle()
    assert not device.states["m"].postponed, "confirmed: forgiven"


def test_progress_resets_the_count() -> None:
    """A download that gets further each time is not given up, however often it breaks off; one that does not is."""
    device = Device("m")
    device.failing["Acquire"] = Remedy.RETRY
    device.publish("m", release("m", 1))
    for _ in range(4 * device.rules.attempts):
        device.reach("m", Phase.ACQUIRING)
        device.progress += 1000
        device.tick()
        assert device.states["m"].attempts.failures == 1
    for failures in range(2, device.rules.attempts):
        device.reach("m", Phase.ACQUIRING)
        device.tick()
        assert device.states["m"].attempts.failures == failures
    device.reach("m", Phase.ACQUIRING)
    device.tick()
    assert device.states["m"].postponed


# -- timers ----------------------------------------------------------------------------------------------------------


SECONDS = st.floats(0, 1e6)


@given(start=SECONDS, length=SECONDS, later=SECONDS, jump=st.floats(-1e9, 1e9))
def test_in_one_boot_only_the_monotonic_clock_counts(start: float, length: float, later: float, jump: float) -> None:
    timer = Timer.after(Instant(1.8e9, start, "boot"), length)
    left = timer.left(Instant(1.8e9 + jump, start + later, "boot"))
    assert left == pytest.approx(max(0.0, length - later), abs=1e-3)


@given(length=SECONDS, off=st.floats(-1e9, 1e9), mono=SECONDS)
def test_after_a_reboot_nobody_waits_longer_than_was_asked_for(length: float, off: float, mono: float) -> None:
    timer = Timer.after(Instant(1.8e9, 50.0, "boot"), length)
    left = timer.left(Instant(1.8e9 + off, mono, "another"))
    assert 0 <= left <= length
    if 1 <= off <= length - 1:
        assert left == pytest.approx(length - off, abs=1e-3), "a clock that goes right is believed"
    if off < -1 or off > length + 1:
        assert left == 0


# -- evidence --------------------------------------------------------------------------------------------------------


LINK, OTHER = Link(1, 1), Link(2, 2)
NEW = release("m", 2)
WATCHED = State("m", current=NEW.digest, link=LINK, slots=(SlotFacts(NEW, confirmed=False),))


def record(epoch: str, done: int, link: Link | None = LINK, digest: str = NEW.digest, right: int = 0) -> Runs:
    counts = Counts(frames=done, done=done, both_right=right)
    return Runs(Instant(1.8e9, 1.0, "boot"), 0.5, link, digest, epoch, counts)


def added(*records: Runs) -> Counts:
    state = WATCHED
    for one in records:
        state = replace(state, evidence=gather(state, one))
    return state.evidence.total


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 50), min_size=1, max_size=6)), min_size=1, max_size=5
    ),
    st.data(),
)
def test_late_duplicate_and_foreign_records_never_add(lives: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    """Truth: per epoch, what was done after its first record. Disturbed delivery never exceeds it."""
    said, truth = [], 0
    for number, (base, gains) in enumerate(lives):
        done = base
        said.append(record(f"epoch-{number}", done))
        for gain in gains:
            done += gain
            said.append(record(f"epoch-{number}", done))
        truth += sum(gains)
    assert added(*said).done == truth
    disturbed = []
    for place, one in enumerate(said):
        disturbed.append(one)
        for _ in range(data.draw(st.integers(0, 2))):
            old = said[data.draw(st.integers(0, place))]
            foreign = data.draw(st.sampled_from(["late", "link", "no link", "digest"]))
            match foreign:
                case "link":
                    old = replace(old, link=OTHER)
                case "no link":
                    old = replace(old, link=None)
                case "digest":
                    old = replace(old, digest="0" * 64)
            disturbed.append(old)
    assert added(*disturbed).done == truth


def test_the_first_record_is_the_zero() -> None:
    assert added(record("e", 500)).done == 0
    assert added(record("e", 500), record("e", 510)).done == 10


def test_pairs_begin_again_with_the_shadow_worker_and_nothing_is_lost_or_doubled() -> None:
    total = added(
        record("e", 10), record("e", 20, right=5), record("e", 30, right=2), record("e", 40, right=6), record("e", 50)
    )
    assert (total.done, total.both_right) == (40, 9)
    assert added(record("e", 10), record("e", 50, right=7), record("e", 60), record("e", 70, right=1)).both_right == 8


def test_counts_add_and_subtract_field_by_field() -> None:
    one, other = Counts(*range(11)), Counts(*range(11, 22))
    assert subtract(add(one, other), other) == one
    assert Evidence().total == Counts()


def test_a_device_counts_what_its_link_did_and_no_more() -> None:
    device = Device("m")
    device.install("m", release("m", 1))
    device.publish("m", release("m", 2), Conduct(live="open"))
    device.reach("m", Phase.PROBATION)
    for _ in range(3):
        for _ in range(3):
            device.tick()
        device.end_inference("m")
        device.tick()
        device.start_inference("m")
    state = device.states["m"]
    assert state.link is not None
    assert 0 < state.evidence.total.done <= device.produced[release("m", 2).digest, state.link]
    assert state.evidence.total.done < ENOUGH * FPS
