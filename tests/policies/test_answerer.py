"""Between machine and policies: what is waited for, what health does not ask, what is loud."""

from dataclasses import replace
from pathlib import Path

import pytest

from modelagent.core.events import Counts, Elapsed, Event, Instant, Runs
from modelagent.core.state import Candidate, Phase, Reached, State, Way
from modelagent.core.verdicts import Allow, Deny, Wait
from modelagent.inputs.config import Settings, parse
from modelagent.manifest import Release
from modelagent.policies import Facts, Question
from modelagent.updater.answers import Answerer, pending

NEW = Release("digits", "1.1.0", "c" * 64, 2, 0, "d" * 64, 1000, 0.0)
WAITS = State("digits", phase=Phase.DEFERRED, candidate=Candidate(NEW, Way.FORWARD))


def settings(tmp_path: Path) -> Settings:
    paths = {"state_dir": str(tmp_path)}
    policy = {"download": {"unmetered": True, "max_wait": 100}}
    return parse({"paths": paths, "policy": policy, "models": {"digits": {}}}, Path("test.toml"))


def at(second: float) -> Instant:
    return Instant(1e9 + second, second, "boot")


class Device:
    def __init__(self) -> None:
        self.asked = 0
        self.metered = True

    def __call__(self, moment: Instant, _model: str) -> Facts:
        self.asked += 1
        return Facts(moment, seed="s", metered=self.metered)


@pytest.mark.parametrize(
    ("phase", "reached", "question"),
    [
        (Phase.IDLE, None, None),
        (Phase.DEFERRED, Reached.OFFERED, Question.ACQUIRE),
        (Phase.DEFERRED, Reached.STAGED, Question.CANARY),
        (Phase.ACQUIRING, Reached.OFFERED, Question.ACQUIRE),
        (Phase.STAGING, Reached.OFFERED, None),
        (Phase.CANARY, Reached.STAGED, Question.CANARY),
        (Phase.STAGED, Reached.PASSED, Question.ACTIVATE),
        (Phase.ACTIVATING, Reached.PASSED, None),
        (Phase.PROBATION, Reached.PASSED, None),
        (Phase.REVERTING, None, None),
    ],
)
def test_what_is_waited_for(phase: Phase, reached: Reached | None, question: Question | None) -> None:
    candidate = None if reached is None else Candidate(NEW, Way.FORWARD, reached)
    expected = {Question.CHECK} | ({question} if question is not None else set())
    assert pending(State("digits", phase=phase, candidate=candidate)) == expected


def test_loud_only_for_what_is_waited_for(tmp_path: Path) -> None:
    for state, loud in (
        (WAITS, ("download has waited for more than 1.667 min: the link is metered",)),
        (State("digits"), ()),
    ):
        answerer = Answerer(settings(tmp_path), Device(), remember=False)
        said = [answerer(state, Elapsed(at(second), 0.5), ()).overdue for second in (0, 50, 99, 100)]
        assert said == [(), (), (), loud]


def test_health_asks_no_policy(tmp_path: Path) -> None:
    device = Device()
    answerer = Answerer(settings(tmp_path), device, remember=False)
    runs: Event = Runs(at(0), 0.5, None, None, "epoch", Counts())
    assert isinstance(answerer(WAITS, runs, ()).may_acquire, Wait), "the first answers are asked for by anything"
    device.metered = False
    for second in range(1, 50):
        assert isinstance(answerer(WAITS, replace(runs, at=at(second)), ()).may_acquire, Wait)
    assert device.asked == 1
    answerer(WAITS, Elapsed(at(50), 0.5), ())
    assert isinstance(answerer(WAITS, Elapsed(at(81), 0.5), ()).may_acquire, Allow), "once it has settled"
    assert device.asked == 3


def test_offline_refuses_all_and_writes_nothing(tmp_path: Path) -> None:
    answerer = Answerer(settings(tmp_path), Device(), offline=True)
    answers = answerer(WAITS, Elapsed(at(0), 0.5), ())
    for verdict in (answers.may_check, answers.may_acquire, answers.may_canary, answers.may_activate):
        assert isinstance(verdict, Deny)
    answerer.keep(1.0)
    assert not list(tmp_path.iterdir())


def test_an_answer_after_a_restart_remembers(tmp_path: Path) -> None:
    device = Device()
    answerer = Answerer(settings(tmp_path), device)
    answerer(WAITS, Elapsed(at(0), 0.5), ())
    answerer.keep(0.0)
    again = Answerer(settings(tmp_path), device)
    assert again(WAITS, Elapsed(at(100), 0.5), ()).overdue
    gates = {gate["gate"]: gate for gate in again.gates("digits")["download"]}
    assert gates["metered"]["since"] == 1e9
    assert gates["metered"]["loud"]
    facts = again.facts("digits")
    assert facts is not None
    assert facts.metered is True
