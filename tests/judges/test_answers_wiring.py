"""What the updater asks of the judges: settings, evidence and charts reach them, their answers reach the policies."""

from dataclasses import replace
from pathlib import Path

import pytest

from device_simulator import release
from modelagent.core.events import Counts, Elapsed, Instant, Link, Runs, SlotFacts
from modelagent.core.state import Aftercare, Candidate, Evidence, Phase, Reached, State, Timer, Way
from modelagent.core.verdicts import Standing
from modelagent.inputs.config import Settings
from modelagent.policies import Facts
from modelagent.updater.answers import Answerer

OLD, NEW = release("digits", 1), release("digits", 2)
LINK = Link(3, 3)
BETTER = Counts(frames=100, done=100, busy_s=20, only_old=30, only_new=1)


def at(mono: float) -> Instant:
    return Instant(1.8e9 + mono, mono, "boot")


def runs(mono: float, counts: Counts) -> Runs:
    return Runs(at(mono), 0.5, LINK, NEW.digest, "boot:e", counts)


@pytest.fixture
def answerer(tmp_path: Path) -> Answerer:
    settings = Settings.model_validate(
        {
            "paths": {f"{name}_dir": str(tmp_path / name) for name in ("state", "inference", "run", "inference_run")},
            "models": {
                "digits": {
                    "label_horizon": "2d",
                    "probation": {
                        "frames": 10,
                        "seconds": 1,
                        "limit_frames": 10,
                        "limit_seconds": 1,
                        "undecided": "revert",
                    },
                    "drift": {"baseline": 100, "revert": True},
                }
            },
        }
    )
    (tmp_path / "state").mkdir()
    return Answerer(settings, lambda now, _: Facts(now))


def confirmed(**changes: object) -> State:
    state = State("digits", slots=(SlotFacts(OLD, True), SlotFacts(NEW, True)), current=NEW.digest, link=LINK)
    return replace(state, **changes)  # type: ignore[arg-type]


def test_the_settings_reach_the_judge_and_the_machine(answerer: Answerer) -> None:
    candidate = Candidate(NEW, Way.FORWARD, Reached.PASSED, LINK)
    began = Evidence("boot:e")
    state = confirmed(phase=Phase.PROBATION, candidate=candidate, evidence=began)
    undecided = replace(BETTER, only_old=6, only_new=0)
    answers = answerer(state, runs(10.0, undecided), ())
    assert answers.probation.standing is Standing.BAD
    assert "left as the settings say" in answers.probation.reason
    assert answers.rules.label_horizon_s == 2 * 86_400.0
    assert answers.rules.setback_s == 30.0


def test_a_fault_condemns_a_candidate_and_no_confirmed_version(answerer: Answerer) -> None:
    candidate = Candidate(NEW, Way.FORWARD, Reached.PASSED, LINK)
    fault = Counts(frames=5, done=4, faults=1)
    state = confirmed(phase=Phase.PROBATION, candidate=candidate, evidence=Evidence("boot:e"))
    after = Aftercare(OLD.digest, OLD.digest, Timer.after(at(0.0), 100.0), Evidence("boot:e"))
    assert answerer(state, runs(10.0, fault), ()).probation.standing is Standing.BAD
    assert answerer(replace(state, aftercare=after), runs(10.0, fault), ()).probation.standing is Standing.BAD
    own = replace(after, digest=NEW.digest)
    assert answerer(replace(state, aftercare=own), runs(10.0, fault), ()).probation.standing is Standing.OPEN


def test_late_labels_are_judged_on_their_own_evidence(answerer: Answerer) -> None:
    after = Aftercare(NEW.digest, OLD.digest, Timer.after(at(0.0), 100.0), Evidence("boot:e"))
    state = confirmed(aftercare=after)
    assert answerer(state, runs(10.0, BETTER), ()).probation.standing is Standing.BAD
    assert answerer(confirmed(), runs(10.0, BETTER), ()).probation.standing is Standing.OPEN
    assert answerer(state, Elapsed(at(11.0), 0.5), ()).probation.standing is Standing.OPEN


def test_drift_reaches_the_machine_and_the_policies(answerer: Answerer) -> None:
    state = confirmed()
    for number in range(101):
        answerer(state, runs(float(number), Counts(right=number)), ())
    for wrong in range(60):
        answers = answerer(state, runs(101.0 + wrong, Counts(right=100, wrong=wrong)), ())
    assert "labelled results are wrong" in answers.steady.alarm
    assert answers.steady.compare
    answerer(state, Elapsed(at(161.0), 0.5), ())
    facts = answerer.facts("digits")
    assert facts is not None
    assert facts.quality_drop == 1.0
    assert facts.alarm is not None
    assert facts.alarm > 1.8e9
    assert any("retraining wanted" in gate["saw"] for gate in answerer.gates("digits")["check"])


def test_the_confirmed_version_s_own_hiccups_are_what_a_new_one_is_judged_by(answerer: Answerer) -> None:
    peace = confirmed(slots=(SlotFacts(OLD, True), SlotFacts(NEW, True)), current=OLD.digest)
    for second in range(0, 3601, 60):
        counts = Counts(busy_s=second, unsteady_s=second // 20)
        answerer(peace, replace(runs(second, counts), digest=OLD.digest), ())
    candidate = Candidate(NEW, Way.FORWARD, Reached.PASSED, LINK, judged_against=OLD.digest)
    on_probation = confirmed(phase=Phase.PROBATION, candidate=candidate, evidence=Evidence("boot:e"))
    shaky = Counts(frames=2000, done=2000, busy_s=100, unsteady_s=8)
    fair = answerer(on_probation, runs(5000.0, shaky), ()).probation
    assert fair.standing is not Standing.BAD
    assert fair.evidence["fault_p0"] == pytest.approx(0.056, abs=0.002)
    stranger = replace(on_probation, candidate=replace(candidate, judged_against="f" * 64))
    assert answerer(stranger, runs(5001.0, shaky), ()).probation.standing is Standing.BAD
    afterwards = confirmed(aftercare=Aftercare(NEW.digest, OLD.digest, Timer.after(at(0.0), 9e9), Evidence("boot:e")))
    assert answerer(afterwards, runs(5002.0, shaky), ()).probation.standing is not Standing.BAD, "it was confirmed"
