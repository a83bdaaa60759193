"""The charts of a confirmed version: baselines, alarms, restarts, and how often they err."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelagent.core.events import Counts, Instant, Link, Runs
from modelagent.core.verdicts import SteadyVerdict
from modelagent.updater.steady import Steady

LINK = Link(1, 1)


def wishes(**changes: Any) -> Any:
    known = {
        "enabled": True,
        "baseline": 200,
        "factor": 2.0,
        "run_length": 10_000,
        "confidence": True,
        "block": 10.0,
        "revert": False,
    }
    return SimpleNamespace(**(known | changes))


class Line:
    """A line whose health is looked at once a second."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.path = path
        self.steady = Steady(path)
        self.wishes = wishes(**changes)
        self.right = self.wrong = self.confident = self.confidence = 0
        self.mono = 100.0
        self.epoch = "boot:a"

    def look(
        self, right: int = 0, wrong: int = 0, *, confidence: float | None = None, digest: str = "d"
    ) -> SteadyVerdict:
        self.right += right
        self.wrong += wrong
        if confidence is not None:
            self.confident += 100
            self.confidence += round(100_000 * confidence)
        self.mono += 1.0
        counts = Counts(right=self.right, wrong=self.wrong, confident=self.confident, confidence=self.confidence)
        at = Instant(1.8e9 + self.mono, self.mono, "boot")
        return self.steady.take(Runs(at, 0.5, LINK, digest, self.epoch, counts), self.wishes)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    made = Line(tmp_path / "steady" / "m.json")
    made.look()
    return made


def feed(line: Line, share: float, count: int, *, seed: int = 1) -> int | None:
    """Labelled results until the alarm."""
    wrong = np.random.default_rng(seed).random(count) < share
    for number, bad in enumerate(wrong, start=1):
        if line.look(right=int(not bad), wrong=int(bad)).alarm:
            return number
    return None


def test_nothing_is_known_until_the_baseline_is_complete(line: Line) -> None:
    assert feed(line, 0.9, 199) is None
    assert (line.steady.quality_drop, line.steady.drift, line.steady.alarmed) == (None, None, None)


def test_a_doubled_error_rate_is_called_with_the_numbers_and_when(line: Line) -> None:
    assert feed(line, 0.10, 200) is None
    assert feed(line, 0.10, 300, seed=2) is None
    assert line.steady.quality_drop is not None
    delay = feed(line, 0.30, 400, seed=3)
    assert delay is not None
    assert delay < 150
    verdict = line.look(wrong=1)
    assert "labelled results are wrong" in verdict.alarm
    assert "normal are" in verdict.alarm
    assert not verdict.compare
    assert line.steady.quality_drop == 1.0
    assert line.steady.alarmed == pytest.approx(1.8e9 + line.mono - 1.0, abs=2.0)
    alarms = [bool(line.look(right=1).alarm) for _ in range(200)]
    assert alarms[0], "the alarm lasts a while"
    assert not alarms[-1], "and ends in better times"


def test_comparing_is_for_those_who_asked(tmp_path: Path) -> None:
    line = Line(tmp_path / "m.json", revert=True)
    line.look()
    feed(line, 0.05, 200)
    feed(line, 0.9, 200)
    assert line.look(wrong=1).compare


def test_a_restart_goes_on_where_it_was_and_counts_nothing_twice(line: Line) -> None:
    feed(line, 0.10, 200)
    feed(line, 0.10, 50)
    line.mono += 61.0
    line.look()
    before = line.steady.quality_drop
    line.steady = Steady(line.path)
    line.look(wrong=50)  # nobody saw these come
    line.look()
    assert line.steady.quality_drop == before
    line.epoch, line.right, line.wrong = "boot:b", 0, 5
    line.look()
    line.look()
    assert line.steady.quality_drop == before, "a new process begins at its first record"


def test_another_version_begins_anew(line: Line) -> None:
    feed(line, 0.05, 200)
    assert feed(line, 0.9, 100) is not None
    assert not line.look(wrong=1, digest="e").alarm
    assert line.steady.quality_drop is None


def test_a_mean_confidence_that_sinks_is_called(tmp_path: Path) -> None:
    line = Line(tmp_path / "m.json", enabled=False, block=1.0)
    chance = np.random.default_rng(4)
    for _ in range(1100):
        assert not line.look(confidence=0.9 + 0.01 * chance.normal()).alarm
    for _ in range(60):
        verdict = line.look(confidence=0.88 + 0.01 * chance.normal())
        if verdict.alarm:
            break
    assert verdict.alarm.startswith("the mean confidence has become lower than its normal 0.899")
    assert not verdict.compare, "nobody knows which of two confidences is the better one"
    assert line.steady.drift == 1.0


def test_an_idle_line_and_a_constant_confidence_say_nothing(tmp_path: Path) -> None:
    line = Line(tmp_path / "m.json", block=1.0)
    for _ in range(150):
        assert not line.look().alarm
    for _ in range(150):
        assert not line.look(confidence=1.0).alarm
    assert line.steady.drift is None


def test_a_broken_memory_costs_the_memory_only(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"digest": 3, "unknown": 1}'):
        (tmp_path / "m.json").write_text(text)
        assert not Line(tmp_path / "m.json").look().alarm
    (tmp_path / "file").write_text("")
    line = Line(tmp_path / "file" / "below" / "m.json")
    line.look()
    assert feed(line, 0.1, 10) is None


def test_stable_lines_seldom_alarm_and_doubled_errors_are_found(tmp_path: Path) -> None:
    alarms, delays = 0, []
    for seed in range(25):
        line = Line(tmp_path / f"{seed}.json", confidence=False)
        line.look()
        feed(line, 0.10, 200, seed=seed)
        alarms += feed(line, 0.10, 1000, seed=100 + seed) is not None
        delays.append(feed(line, 0.25, 1000, seed=200 + seed) or 1000)
    assert alarms <= 2
    assert sorted(delays)[12] <= 200


def test_hiccups_are_added_up_for_one_version_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "steady" / "m.json"

    def look(steady: Steady, epoch: str, busy: int, unsteady: int, *, digest: str = "d", mono: float = 100.0) -> None:
        counts = Counts(busy_s=busy, unsteady_s=unsteady)
        steady.take(Runs(Instant(1.8e9, mono, "boot"), 0.5, LINK, digest, epoch, counts), wishes())

    steady = Steady(path)
    look(steady, "a", 100, 5)  # from before anybody looked: not known when
    look(steady, "a", 160, 7)
    assert steady.hiccups("d") == (2, 60)
    look(steady, "b", 30, 3)  # inference has begun anew
    look(steady, "b", 50, 3, mono=300.0)
    assert steady.hiccups("d") == (2, 80)
    assert steady.hiccups("e") == (0, 0)
    assert steady.hiccups(None) == (0, 0)
    assert Steady(path).hiccups("d") == (2, 80)
    look(steady, "b", 60, 4, digest="e")
    assert steady.hiccups("d") == (0, 0)
