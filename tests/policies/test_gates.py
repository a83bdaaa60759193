"""Conditions, feedback, waves and composition; thirty days in under a second."""

import itertools
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.effects import Revert
from modelagent.core.events import Instant, Learned, RevertWanted, SlotFacts, Wave, Withdrawal
from modelagent.core.machine import step
from modelagent.core.state import Answers, Phase, State, Watch, Watching
from modelagent.core.verdicts import Allow, Deny, Wait
from modelagent.errors import UsageError
from modelagent.manifest import Release
from modelagent.policies import Composed, Facts, Memory, Policy, Question, compose, elapsed, fraction
from modelagent.policies.conditional import (
    Condition,
    Conditional,
    budget,
    least,
    link_up,
    most,
    room,
    undisturbed,
    unmetered,
)
from modelagent.policies.feedback import Feedback
from modelagent.policies.periodic import Periodic
from modelagent.policies.rollout import Rollout
from modelagent.policies.standard import SOFT, standard
from modelagent.policies.window import Windows

NOW = 1_767_225_600.0  # Thursday 2026-01-01 00:00 UTC


def at(seconds: float, boot: str = "boot") -> Instant:
    return Instant(NOW + seconds, seconds, boot)


def facts(seconds: float = 0.0) -> Facts:
    return Facts(at(seconds))


def next_time(composed: Composed, asked: Facts) -> float | None:
    """When to ask again: now for Allow, never for Deny, which only new facts or settings can help."""
    verdict = composed.verdict
    return asked.at.wall if isinstance(verdict, Allow) else verdict.until if isinstance(verdict, Wait) else None


LOAD = most("load", "load_per_cpu", 1.0, " per CPU", {Question.CANARY}, slack=0.2)


class TestConditions:
    @pytest.mark.parametrize(
        ("condition", "question", "bad", "good"),
        [
            (link_up(), Question.CHECK, {"link_up": False}, {"link_up": True}),
            (link_up(), Question.ACQUIRE, {"link_up": False}, {"link_up": True}),
            (unmetered(), Question.ACQUIRE, {"metered": True}, {"metered": False}),
            (budget(), Question.ACQUIRE, {"budget_left": 0.0}, {"budget_left": 5.0}),
            (room(256), Question.ACQUIRE, {"disk_free_mb": 300.0, "needed_mb": 50.0}, {"disk_free_mb": 300.0}),
            (undisturbed(), Question.ACTIVATE, {"inhibited": ("surgery",)}, {"inhibited": ()}),
            (undisturbed(), Question.CANARY, {"inhibited": ("surgery",)}, {"inhibited": ()}),
            (LOAD, Question.CANARY, {"load1": 4.4, "cpus": 4}, {"load1": 4.0, "cpus": 4}),
            (
                least("battery", "battery", 30, " %", {Question.ACQUIRE}),
                Question.ACQUIRE,
                {"battery_percent": 20.0, "on_ac": False},
                {"battery_percent": 20.0, "on_ac": True},
            ),
            (
                most("psi", "psi_cpu", 20, " %", {Question.CANARY}),
                Question.CANARY,
                {"psi_cpu": 21.0},
                {"psi_cpu": 20.0},
            ),
            (
                most("queue", "queue_fill", 0.5, "", {Question.CANARY}),
                Question.CANARY,
                {"queue_fill": 0.6},
                {"queue_fill": 0.1},
            ),
            (least("rate", "rate_bps", 1e6, " bit/s", {Question.ACQUIRE}), Question.ACQUIRE, {"rate_bps": 1e5}, {}),
        ],
    )
    def test_table(
        self, condition: Condition, question: Question, bad: dict[str, object], good: dict[str, object]
    ) -> None:
        policy = Conditional((condition,))
        waiting = compose(question, (policy,), replace(facts(), **bad))  # type: ignore[arg-type]
        assert isinstance(waiting.verdict, Wait)
        assert waiting.verdict.until > NOW
        assert waiting.verdict.reason
        assert waiting.verdict.gate == condition.name
        assert isinstance(compose(question, (policy,), replace(facts(), **good)).verdict, Allow)  # type: ignore[arg-type]

    def test_what_is_not_known_holds_nothing_up(self) -> None:
        conditions = (link_up(), unmetered(), budget(), room(256), undisturbed(), LOAD)
        for question in Question:
            assert isinstance(compose(question, (Conditional(conditions),), facts()).verdict, Allow)

    @given(values=st.lists(st.floats(0.81, 1.0), min_size=1, max_size=50))
    def test_a_wavering_value_does_not_flap(self, values: list[float]) -> None:
        policy = Conditional((LOAD,))
        memory: Memory = {}
        composed = compose(Question.CANARY, (policy,), replace(facts(), load1=1.5), memory)
        for second, value in enumerate(values):
            composed = compose(Question.CANARY, (policy,), replace(facts(second), load1=value), composed.memory)
            assert isinstance(composed.verdict, Wait), "closed until clearly below the limit"
        composed = compose(Question.CANARY, (policy,), replace(facts(99), load1=0.8), composed.memory)
        for second, value in enumerate(values, start=100):
            assert isinstance(composed.verdict, Allow)
            composed = compose(Question.CANARY, (policy,), replace(facts(second), load1=value), composed.memory)

    @given(value=st.floats(0, 10), better=st.floats(0, 10), closed=st.booleans())
    def test_monotone_in_the_fact(self, value: float, better: float, closed: bool) -> None:
        high, low = most("h", "load1", 5, "", set(Question)), least("l", "load1", 5, "", set(Question))
        if high.good(value, closed) and better <= value:
            assert high.good(better, closed)
        if low.good(value, closed) and better >= value:
            assert low.good(better, closed)
        assert high.good(value, closed=False) or not high.good(value, closed=True), "closed is never easier"

    def test_a_link_has_to_settle(self) -> None:
        policy = Conditional((unmetered(settle_s=30),))

        def ask(second: float, metered: bool, memory: Memory) -> Composed:
            return compose(Question.ACQUIRE, (policy,), replace(facts(second), metered=metered), memory)

        composed = ask(0, True, {})
        composed = ask(10, False, composed.memory)
        assert isinstance(composed.verdict, Wait)
        assert composed.verdict.until == NOW + 40
        composed = ask(20, True, composed.memory)
        composed = ask(30, False, composed.memory)
        assert isinstance(ask(59, False, composed.memory).verdict, Wait)
        assert isinstance(ask(60, False, composed.memory).verdict, Allow)
        assert isinstance(ask(5, False, {}).verdict, Allow), "a link that was never bad needs no settling"

    @pytest.mark.parametrize("go_ahead", [False, True])
    @pytest.mark.parametrize("hard", [False, True])
    def test_waiting_is_bounded_and_loud(self, go_ahead: bool, hard: bool) -> None:
        condition = most("load", "load1", 1, "", {Question.CANARY}, hard=hard)
        policy = Conditional((replace(condition, max_wait_s=100, go_ahead=go_ahead),))
        composed = Composed(Allow())
        for second in range(0, 100, 10):
            composed = compose(Question.CANARY, (policy,), replace(facts(second), load1=5), composed.memory)
            assert isinstance(composed.verdict, Wait)
            assert composed.loud == ()
        composed = compose(Question.CANARY, (policy,), replace(facts(100), load1=5), composed.memory)
        assert len(composed.loud) == 1
        assert isinstance(composed.verdict, Allow if go_ahead and not hard else Wait)
        composed = compose(Question.CANARY, (policy,), replace(facts(110), load1=0), composed.memory)
        composed = compose(Question.CANARY, (policy,), replace(facts(120), load1=5), composed.memory)
        assert isinstance(composed.verdict, Wait)
        assert composed.loud == ()

    def test_since_when(self) -> None:
        policy = Conditional((LOAD, undisturbed()))
        composed = compose(Question.CANARY, (policy,), replace(facts(0), load1=0.5))
        composed = compose(Question.CANARY, (policy,), replace(facts(50), load1=5), composed.memory)
        composed = compose(Question.CANARY, (policy,), replace(facts(90), load1=6), composed.memory)
        assert {gate.name: gate.since for gate in composed.gates} == {"load": at(50), "inhibit": at(0)}

    def test_each_question_has_its_own_hysteresis(self) -> None:
        policy = Conditional((link_up(),))
        composed = compose(Question.CHECK, (policy,), replace(facts(0), link_up=False))
        assert isinstance(compose(Question.ACQUIRE, (policy,), replace(facts(1), link_up=True)).verdict, Allow)
        composed = compose(Question.CHECK, (policy,), replace(facts(1), link_up=True), composed.memory)
        assert isinstance(composed.verdict, Wait)


class TestFeedback:
    policy = Feedback(floor_s=900, start_s=7200, ceiling_s=86400, jitter=0.0)

    def run(self, signals: list[float | None], alarms: list[float] | None = None) -> list[float]:
        """Times of checks while the signals hold for one check each."""
        memory: Memory = {}
        last, now = 0.0, 0.0
        times = []
        for index, signal in enumerate(signals):
            alarm = alarms[index] if alarms else None
            base = replace(facts(), last_check=NOW + last, drift=signal, alarm=None if alarm is None else NOW + alarm)
            for _ in range(3):
                composed = compose(Question.CHECK, (self.policy,), replace(base, at=at(now)), memory)
                memory = composed.memory
                if isinstance(composed.verdict, Allow):
                    break
                assert isinstance(composed.verdict, Wait)
                now = composed.verdict.until - NOW
            times.append(now)
            last = now
        return times

    @given(signals=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=40))
    def test_always_between_floor_and_ceiling(self, signals: list[float | None]) -> None:
        times = [0.0, *self.run(signals)]
        for before, after in itertools.pairwise(times):
            assert 900 <= round(after - before, 3) <= 86400

    @given(signals=st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_alarms_never_break_the_floor(self, signals: list[float]) -> None:
        times = [0.0, *self.run(list(signals), alarms=[1e9] * len(signals))]
        assert all(round(after - before, 3) == 900 for before, after in itertools.pairwise(times))

    def test_trouble_halves_and_calm_lengthens(self) -> None:
        gaps = [round(b - a) for a, b in itertools.pairwise([0.0, *self.run([0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])])]
        assert gaps[0] == 7200
        assert gaps[1:5] == sorted(gaps[1:5], reverse=True)
        assert gaps[4] == 900
        assert gaps[5:] == sorted(gaps[5:])

    @given(drift=st.floats(0, 1), more=st.floats(0, 1), age=st.floats(0, 1e5))
    def test_more_trouble_never_checks_later(self, drift: float, more: float, age: float) -> None:
        base = replace(facts(age), last_check=NOW)
        low, high = sorted((drift, more))
        calm = next_time(compose(Question.CHECK, (self.policy,), replace(base, drift=low)), base)
        worse = next_time(compose(Question.CHECK, (self.policy,), replace(base, drift=high)), base)
        assert calm is not None
        assert worse is not None
        assert worse <= calm

    def test_an_alarm_asks_at_once_and_says_so(self) -> None:
        base = replace(facts(1000), last_check=NOW, alarm=NOW + 950)
        composed = compose(Question.CHECK, (self.policy,), base)
        assert isinstance(composed.verdict, Allow)
        assert "retraining wanted" in composed.gates[0].saw

    def test_asked_by_a_person_is_not_a_signal(self) -> None:
        base = replace(facts(10), last_check=NOW, asked_check=NOW + 5)
        assert isinstance(compose(Question.CHECK, (self.policy,), base).verdict, Allow)

    @pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
    def test_impossible_numbers(self, numbers: tuple[float, float, float]) -> None:
        with pytest.raises(UsageError, match="rising order"):
            Feedback(*numbers)


class TestWaves:
    waves = (Wave(NOW + 100, 0.1), Wave(NOW + 200, 0.5), Wave(NOW + 300, 1.0))

    @given(seed=st.text(), second=st.floats(0, 400), later=st.floats(0, 400))
    def test_monotone_in_time_and_at_its_turn(self, seed: str, second: float, later: float) -> None:
        base = replace(facts(second), seed=seed, waves=self.waves)
        place = fraction(seed, "wave")
        turn = 100 if place < 0.1 else 200 if place < 0.5 else 300
        verdict = compose(Question.ACQUIRE, (Rollout(),), base).verdict
        assert isinstance(verdict, Allow if second >= turn else Wait)
        if isinstance(verdict, Wait):
            assert verdict.until == NOW + turn
        else:
            after = replace(base, at=at(second + later))
            assert isinstance(compose(Question.ACQUIRE, (Rollout(),), after).verdict, Allow)
        for lifted in (replace(base, now=True), replace(base, back=True), replace(base, waves=())):
            assert isinstance(compose(Question.ACTIVATE, (Rollout(),), lifted).verdict, Allow)

    def test_the_share_is_kept_over_a_fleet(self) -> None:
        base = replace(facts(150), waves=self.waves)
        started = [
            isinstance(compose(Question.ACQUIRE, (Rollout(),), replace(base, seed=str(n))).verdict, Allow)
            for n in range(5000)
        ]
        assert 0.085 < sum(started) / 5000 < 0.115

    @pytest.mark.parametrize(
        ("groups", "hardware", "starts"),
        [
            ((), "x86_64", 300),
            (("lab",), "x86_64", 0),
            (("line-3", "lab"), "x86_64", 0),
            (("pilot",), "aarch64", 100),
            (("pilot",), "x86_64", 200),
            (("other",), "aarch64", 200),
        ],
    )
    def test_groups_and_hardware(self, groups: tuple[str, ...], hardware: str, starts: int) -> None:
        waves = (
            Wave(NOW, 1.0, groups=("lab",)),
            Wave(NOW + 100, 1.0, groups=("pilot",), hardware=("aarch64", "armv7l")),
            Wave(NOW + 200, 1.0, hardware=("aarch64",)),
            Wave(NOW + 200, 1.0, groups=("pilot", "lab")),
            Wave(NOW + 300, 1.0),
        )
        base = replace(facts(), seed="s", groups=groups, hardware=hardware, waves=waves)
        (gate,) = compose(Question.ACQUIRE, (Rollout(),), base).gates
        verdict = gate.verdict
        assert "100% of lab from 2026-01-01 00:00+00:00" in gate.saw
        assert isinstance(verdict, Wait if starts else Allow)
        assert not isinstance(verdict, Wait) or verdict.until == NOW + starts

    def test_no_wave_for_this_device(self) -> None:
        base = replace(facts(150), seed="x", waves=(Wave(NOW, 0.0001),))
        assert isinstance(compose(Question.ACQUIRE, (Rollout(),), base).verdict, Deny)


class TestComposition:
    def test_nothing_refuses(self) -> None:
        for question in Question:
            assert isinstance(compose(question, (), facts()).verdict, Deny)
        assert isinstance(compose(Question.ACQUIRE, (Periodic(60),), facts()).verdict, Deny)

    def test_the_strictest_counts_and_all_are_explained(self) -> None:
        base = replace(facts(), metered=True, waves=(Wave(NOW + 5000, 1.0),))
        composed = compose(Question.ACQUIRE, (Windows(), Conditional((unmetered(),)), Rollout()), base)
        assert composed.verdict == Wait(NOW + 5000, composed.verdict.reason, "wave")
        assert [gate.name for gate in composed.gates] == ["window", "metered", "wave"]
        assert all(gate.verdict.gate == gate.name for gate in composed.gates)
        assert next_time(composed, base) == NOW + 5000

    def test_elapsed_survives_jumping_clocks(self) -> None:
        assert elapsed(Instant(1e9, 10, "a"), Instant(5, 40, "a")) == 30
        assert elapsed(Instant(100, 10, "a"), Instant(150, 1, "b")) == 50
        assert elapsed(Instant(1e9, 10, "a"), Instant(5, 1, "b")) == 0


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
