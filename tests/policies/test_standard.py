"""The composition that every device runs: made from its settings, over days, in schedules."""

import itertools
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gate_facts import NOW, facts, next_time
from modelagent.core.effects import Revert
from modelagent.core.events import Learned, RevertWanted, SlotFacts, Wave, Withdrawal
from modelagent.core.machine import step
from modelagent.core.state import Answers, Phase, State, Watch, Watching
from modelagent.core.verdicts import Allow, Wait
from modelagent.manifest import Release
from modelagent.policies import Memory, Policy, Question, compose
from modelagent.policies.standard import SOFT, standard


@dataclass(frozen=True)
class Wanted:
    unmetered: bool = False
    min_rate_kbps: float = 0.0
    on_mains: bool = False
    min_battery_percent: int = 0
    max_load: float = 0.0
    max_pressure: float = 0.0
    min_free_memory_mb: int = 0
    max_temperature_c: float = 0.0
    max_queue: float = 0.0
    max_p95: float = 0.0
    undisturbed: bool = False
    max_wait: float = 7 * 86400.0
    go_ahead: tuple[str, ...] = ()


ANY = Wanted()
ALL = Wanted(True, 100.0, True, 20, 1.0, 40.0, 64, 80.0, 0.5, 0.8, True)


@dataclass(frozen=True)
class Wishes:
    check_interval: float = 3600.0
    jitter: float = 0.1
    check_cron: str = ""
    feedback: bool = False
    check_floor: float = 900.0
    check_ceiling: float = 0.0
    timezone: str = "Europe/Madrid"
    download_windows: tuple[str, ...] = ("22:00-05:00",)
    activate_windows: tuple[str, ...] = ("Mon-Fri 03:00-04:00",)
    check: Wanted = ANY
    download: Wanted = Wanted(unmetered=True)
    canary: Wanted = Wanted(max_load=1.0, min_free_memory_mb=64)
    activate: Wanted = Wanted(undisturbed=True)


PLAIN = Wishes(timezone="UTC", download_windows=(), activate_windows=(), download=ANY, canary=ANY, activate=ANY)
SECTIONS = {
    Question.CHECK: "check",
    Question.ACQUIRE: "download",
    Question.CANARY: "canary",
    Question.ACTIVATE: "activate",
}
BAD: list[dict[str, object]] = [
    {"metered": True},
    {"rate_bps": 50e3},
    {"on_ac": False},
    {"battery_percent": 10.0},
    {"load1": 9.0, "cpus": 2},
    {"psi_cpu": 70.0},
    {"memory_available_mb": 10.0},
    {"temperature_c": 90.0},
    {"queue_fill": 0.9},
    {"p95_ms": 90.0, "p95_budget_ms": 100.0},
    {"inhibited": ("busy",)},
]


class TestStandard:
    def test_says_something_on_every_question(self) -> None:
        for question in Question:
            assert isinstance(compose(question, standard(PLAIN, 256), facts()).verdict, Allow)

    @pytest.mark.parametrize("question", list(Question))
    @pytest.mark.parametrize("fact", BAD, ids=lambda fact: next(iter(fact)))
    def test_each_condition_holds_its_own_question_up_and_no_other(
        self, question: Question, fact: dict[str, object]
    ) -> None:
        policies = standard(replace(PLAIN, **{SECTIONS[question]: ALL}), 256)  # type: ignore[arg-type]
        bad = replace(facts(), now=True, **fact)  # type: ignore[arg-type]
        for asked in Question:
            verdict = compose(asked, policies, bad).verdict
            assert isinstance(verdict, Wait if asked is question else Allow), '"now" lifts no safety'

    @pytest.mark.parametrize(
        ("question", "fact"),
        [
            (Question.CHECK, {"link_up": False}),
            (Question.ACQUIRE, {"link_up": False}),
            (Question.ACQUIRE, {"budget_left": 0.0}),
            (Question.ACQUIRE, {"disk_free_mb": 100.0}),
        ],
    )
    def test_what_holds_for_everyone(self, question: Question, fact: dict[str, object]) -> None:
        bad = replace(facts(), now=True, **fact)  # type: ignore[arg-type]
        assert isinstance(compose(question, standard(PLAIN, 256), bad).verdict, Wait)

    def test_every_soft_gate_goes_ahead_and_no_hard_one(self) -> None:
        wanted = replace(ALL, max_wait=100.0, go_ahead=SOFT)
        policies = standard(replace(PLAIN, download=wanted), 256)
        for fact in BAD:
            memory: Memory = {}
            for second in range(0, 120, 10):
                base = replace(facts(second), **fact)  # type: ignore[arg-type]
                composed = compose(Question.ACQUIRE, policies, base, memory)
                memory = composed.memory
            (gate,) = (gate for gate in composed.gates if gate.loud)
            assert isinstance(composed.verdict, Allow) is (gate.name in SOFT), gate
            assert gate.lifted is (gate.name in SOFT)
            assert bool(composed.lifted) is (gate.name in SOFT)

    def test_what_nobody_waits_for_is_never_late(self) -> None:
        wanted = replace(ALL, max_wait=100.0, go_ahead=SOFT)
        policies = standard(replace(PLAIN, download=wanted), 256)
        memory: Memory = {}
        for second in range(0, 1000, 10):
            base = replace(facts(second), metered=True, pending=frozenset({Question.CHECK}))
            composed = compose(Question.ACQUIRE, policies, base, memory)
            memory = composed.memory
            assert isinstance(composed.verdict, Wait)
            assert not composed.loud
        for second in range(1000, 1100, 10):
            base = replace(facts(second), metered=True, pending=frozenset({Question.ACQUIRE}))
            composed = compose(Question.ACQUIRE, policies, base, composed.memory)
            assert isinstance(composed.verdict, Wait), "its own wait has only begun"
        base = replace(facts(1100), metered=True, pending=frozenset({Question.ACQUIRE}))
        assert isinstance(compose(Question.ACQUIRE, policies, base, composed.memory).verdict, Allow)

    @given(values=st.lists(st.sampled_from([0.1, 0.9]), min_size=30, max_size=60))
    def test_changing_obstacles_do_not_postpone_for_ever(self, values: list[float]) -> None:
        """Metered by day, a full queue by night: the wait counts as one."""
        wanted = replace(ANY, unmetered=True, max_queue=0.5, max_wait=200.0, go_ahead=SOFT)
        policies = standard(replace(PLAIN, download=wanted), 256)
        memory: Memory = {}
        for place, value in enumerate(values):
            base = replace(facts(place * 10.0), metered=value < 0.5, queue_fill=value)
            composed = compose(Question.ACQUIRE, policies, base, memory)
            memory = composed.memory
            assert isinstance(composed.verdict, Allow if place >= 20 else Wait)

    def test_now_lifts_windows_and_waves_and_says_so(self) -> None:
        closed = replace(PLAIN, download_windows=("03:00-04:00",))
        late = replace(facts(), waves=(Wave(NOW + 5000, 1.0),))
        assert isinstance(compose(Question.ACQUIRE, standard(closed, 256), late).verdict, Wait)
        composed = compose(Question.ACQUIRE, standard(closed, 256), replace(late, now=True))
        assert isinstance(composed.verdict, Allow)
        assert composed.lifted == (
            'window: closed, and lifted by "now"; wave: not this device\'s turn yet, lifted by "now"'
        )
        assert compose(Question.ACQUIRE, standard(PLAIN, 256), replace(facts(), now=True)).lifted == ""


class TestSchedules:
    """Which schedule counts: the interval, the calendar, and what quality says."""

    def due(self, wishes: Wishes, **more: object) -> float:
        base = replace(facts(1.0), last_check=NOW, **more)  # type: ignore[arg-type]
        when = next_time(compose(Question.CHECK, standard(wishes, 256), base), base)
        assert when is not None
        return when - NOW

    def test_interval(self) -> None:
        assert 3600 <= self.due(PLAIN) <= 3960

    def test_feedback_stays_with_the_interval_in_calm_and_halves_it_in_trouble(self) -> None:
        wishes = replace(PLAIN, feedback=True)
        assert self.due(wishes) == self.due(PLAIN)
        assert 1800 <= self.due(wishes, drift=1.0) <= 1980
        assert self.due(wishes, alarm=NOW + 0.5) == 900
        assert self.due(replace(PLAIN, feedback=False), drift=1.0, alarm=NOW + 0.5) == self.due(PLAIN)

    def test_calendar(self) -> None:
        wishes = replace(PLAIN, check_cron="0 3 * * *", feedback=True)
        assert 3 * 3600 <= self.due(wishes) <= 3 * 3600 + 300
        assert 1800 <= self.due(wishes, quality_drop=0.7) <= 1980, "in trouble the sooner of the two"
        assert self.due(wishes, alarm=NOW + 0.5) == 900
        assert self.due(replace(wishes, check_cron="5 0 * * *"), quality_drop=0.7) <= 600

    def test_an_interval_below_the_floor_is_a_persons_word(self) -> None:
        assert self.due(replace(PLAIN, check_interval=60.0, feedback=True), alarm=NOW + 0.5) == 60
        assert self.due(replace(PLAIN, check_floor=0.0, feedback=True), alarm=NOW + 0.5) == 3600

    def test_calm_lengthens_only_where_a_ceiling_is_given(self) -> None:
        for ceiling, longest in ((0.0, 3600), (7200.0, 7200)):
            policies = standard(replace(PLAIN, feedback=True, jitter=0.0, check_ceiling=ceiling), 256)
            memory: Memory = {}
            now, last = 0.0, 0.0
            gaps = []
            for _ in range(20):
                composed = compose(Question.CHECK, policies, replace(facts(now), last_check=NOW + last), memory)
                memory = composed.memory
                if isinstance(composed.verdict, Allow):
                    gaps.append(now - last)
                    last = now
                else:
                    assert isinstance(composed.verdict, Wait)
                    now = composed.verdict.until - NOW
            assert gaps[0] == 3600
            assert gaps[-1] == longest
            assert gaps == sorted(gaps)

    @given(back=st.floats(0, 1e8), later=st.floats(0, 1e6), cron=st.booleans(), signal=st.sampled_from([None, 1.0]))
    def test_a_clock_set_back_never_stops_checks(
        self, back: float, later: float, cron: bool, signal: float | None
    ) -> None:
        """At most one interval (or one day of the calendar) passes, by the new clock."""
        policies = standard(replace(PLAIN, feedback=True, check_cron="0 3 * * *" if cron else ""), 256)
        base = replace(facts(later - back), last_check=NOW, started=NOW - 1e6, drift=signal)
        when = next_time(compose(Question.CHECK, policies, base), base)
        assert when is not None
        assert when <= max(base.at.wall, NOW) + (86400 + 300 if cron else 3960)
        if base.at.wall < NOW:
            assert when == base.at.wall, "the last check lies ahead: due"


class TestWithdrawal:
    """No gate stands before going back, whatever the policies say."""

    def test_nothing_is_asked(self) -> None:
        closed = replace(Wishes(), check=ALL, download=ALL, canary=ALL, activate=ALL)
        bad: dict[str, object] = {}
        for fact in BAD:
            bad |= fact
        bad |= {"link_up": False, "disk_free_mb": 0.0, "waves": (Wave(NOW, 1e-9),)}
        base = replace(facts(), **bad)  # type: ignore[arg-type]
        answers = {question: compose(question, standard(closed, 256), base).verdict for question in Question}
        assert not any(isinstance(verdict, Allow) for verdict in answers.values())
        said = Answers(
            may_check=answers[Question.CHECK],
            may_acquire=answers[Question.ACQUIRE],
            may_canary=answers[Question.CANARY],
            may_activate=answers[Question.ACTIVATE],
        )
        old, new = release("1.0.0", 1), release("1.1.0", 2)
        slots = (SlotFacts(old, confirmed=True), SlotFacts(new, confirmed=True))
        running = State("digits", slots=slots, current=new.digest, fallback=old.digest)
        checking = replace(running, watch=Watch(kind=Watching.CHECKING, effect=7))
        withdrawn = (Withdrawal(new.digest, new.version, "it is wrong"),)
        for state, event in (
            (checking, Learned(base.at, 0.5, 7, offer=new, withdrawn=withdrawn)),
            (running, RevertWanted(base.at, 0.5, "cli", "r1")),
        ):
            after, orders = step(state, event, said)
            assert after.phase is Phase.REVERTING
            assert any(isinstance(order, Revert) and order.target == old.digest for order in orders)


def release(version: str, number: int) -> Release:
    return Release("digits", version, f"{number:064x}", number, 0, f"{number + 100:064x}", 1000, NOW)


def simulate(policies: tuple[Policy, ...], days: float) -> dict[Question, list[float]]:
    """A device with a release each day: times of checks, downloads and switches."""
    done: dict[Question, list[float]] = {question: [] for question in Question}
    memory: Memory = {}
    now, last, stage = 0.0, None, 0
    stages = (Question.ACQUIRE, Question.CANARY, Question.ACTIVATE)
    while now < days * 86400:
        hour = now / 3600 % 24
        base = replace(
            facts(now), seed="s", last_check=last, load1=2.0 if 8 <= hour < 18 else 0.2, cpus=1, metered=6 <= hour < 20
        )
        asked = [Question.CHECK]
        if stage < 3 and len(done[Question.ACTIVATE]) <= now // 86400:
            asked.append(stages[stage])
        times = []
        for question in asked:
            composed = compose(question, policies, base, memory)
            memory = composed.memory
            when = next_time(composed, base)
            if isinstance(composed.verdict, Allow):
                done[question].append(now)
                if question is Question.CHECK:
                    last = NOW + now
                else:
                    stage = (stage + 1) % 3
                when = base.at.wall + 1
            assert when is not None
            assert when > base.at.wall
            times.append(when)
        now = min(times) - NOW
    return done


def test_thirty_days_in_under_a_second() -> None:
    policies = standard(Wishes(), 256)
    simulate(policies, 1)
    began = time.process_time()
    done = simulate(policies, 30)
    took = time.process_time() - began
    assert took < 1.0
    gaps = [b - a for a, b in itertools.pairwise(done[Question.CHECK])]
    assert min(gaps) >= 3600
    assert max(gaps) <= 3960
    assert len(done[Question.ACTIVATE]) == 30
    assert all((t // 86400 + 3) % 7 < 5 for t in done[Question.ACTIVATE]), "weekdays only; the first was a Thursday"
    assert all(2 <= t / 3600 % 24 < 3 for t in done[Question.ACTIVATE]), "03:00 to 04:00 in Madrid, in winter"
    assert all(not 6 <= t / 3600 % 24 < 20 for t in done[Question.ACQUIRE])
