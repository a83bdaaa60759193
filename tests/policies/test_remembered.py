"""What policies remember survives a restart of the updater, and a bad file costs nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from modelagent.core.events import Instant
from modelagent.core.verdicts import Allow, Wait
from modelagent.policies import Facts, Memory, Past, Question, compose
from modelagent.policies.conditional import Conditional, unmetered
from modelagent.policies.feedback import Feedback
from modelagent.updater.memory import Remembered

NOW = 1_767_225_600.0


def at(seconds: float, boot: str = "a") -> Instant:
    return Instant(NOW + seconds, seconds, boot)


def facts(seconds: float, boot: str = "a") -> Facts:
    return Facts(at(seconds, boot), seed="s")


def test_the_interval_and_the_wait_go_on(tmp_path: Path) -> None:
    path = tmp_path / "policies" / "digits.json"
    policies = (
        Feedback(900, 7200, 7200, 0.0),
        Conditional((replace(unmetered(), max_wait_s=3600, go_ahead=True),)),
    )
    remembered = Remembered(path)
    memory = remembered.load()
    assert memory == {}
    for second in (0.0, 1.0, 1200.0):
        base = replace(facts(second), metered=True, drift=1.0, last_check=NOW + min(second, 1.0))
        for question in (Question.CHECK, Question.ACQUIRE):
            memory = compose(question, policies, base, memory).memory
        remembered.save(memory, second)
    again = Remembered(path).load()
    assert again["feedback/interval"].value == 3600.0
    # After a reboot the monotonic clock begins anew, and the wall clock tells how long has been waited.
    late = replace(facts(3700, boot="b"), at=Instant(NOW + 3700, 30.0, "b"), metered=True)
    assert isinstance(compose(Question.ACQUIRE, policies, late, again).verdict, Allow)
    assert isinstance(compose(Question.ACQUIRE, policies, late, {}).verdict, Wait)


def test_it_is_written_for_news_only_and_once_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "digits.json"
    remembered = Remembered(path)

    def save(mono: float, kind: str, value: float, *, at_once: bool = False) -> bool:
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.unlink(missing_ok=True)
        memory: Memory = {"canary/load/state": Past(kind, at(mono), value)}
        remembered.save(memory, mono, at_once=at_once)
        return path.exists() and path.stat().st_mtime_ns != before

    assert save(0.0, "open", 0.1)
    assert not save(61.0, "open", 0.7), "a fact that wavers is no news"
    assert save(62.0, "closed", 0.9)
    assert not save(63.0, "open", 0.1), "a minute has not passed"
    assert save(64.0, "open", 0.1, at_once=True)
    assert save(125.0, "settling", 0.1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": 2, "memory": {}}',
        b'{"schema": 1}',
        b'{"schema": 1, "memory": {"x": 3}}',
        b'{"schema": 1, "memory": {"x": ["open", [1, 2], 0]}}',
        b'{"schema": 1, "memory": {"x": ["open", ["a", 2, "b"], 0]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_spoiled_file_begins_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "digits.json"
    path.write_bytes(content)
    assert Remembered(path).load() == {}


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "policies").write_text("in the way")
    Remembered(tmp_path / "policies" / "digits.json").save({"x": Past("Wait", at(0))}, 0.0)
