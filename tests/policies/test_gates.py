"""Conditions, feedback, waves and their composition."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gate_facts import NOW, at, facts, next_time
from modelagent.core.events import Instant, Wave
from modelagent.core.verdicts import Allow, Deny, Wait
from modelagent.errors import UsageError
from modelagent.policies import Composed, Memory, Question, compose, elapsed, fraction
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
from modelagent.policies.window import Windows

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
