"""`--wait`: from which status on a command is over, and how it ended."""

from collections.abc import Mapping
from typing import Any

import pytest

from modelagent.cli.follow import Wait, follow
from modelagent.errors import DeviceError

OLD, NEW = {"version": "1.0.0", "digest": "a" * 64, "confirmed": True}, {"version": "1.1.0", "digest": "b" * 64}


def told(
    phase: str = "Idle",
    current: Mapping[str, Any] | None = OLD,
    *,
    check: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A model's status, checked once since `BEFORE` unless `check` says otherwise."""
    entry = {"state": "Resting", "asked": False, "last_try": 2.0, "error": "", **(check or {})}
    return {"phase": phase, "waiting": "", "current": current, "offer": NEW, "check": entry, **more}


BEFORE = told(check={"last_try": 1.0})


@pytest.mark.parametrize(
    ("verb", "argument", "status", "good", "words"),
    [
        # A check is over when the repository was asked once more.
        ("check", "", BEFORE, None, ""),
        ("check", "", told(check={"asked": True, "last_try": 1.0}), None, ""),
        ("check", "", told(check={"state": "Checking"}), None, ""),
        ("check", "", told("Deferred", waiting="the link is metered"), True, "offers 1.1.0: the link is metered"),
        ("check", "", told(check={"error": "mirror: timed out"}), False, "timed out"),
        ("check", "", told(offer=None), True, "offers nothing"),
        # An update is over when nothing is in progress any more, and good when the offer runs.
        ("update", "", BEFORE, None, ""),
        ("update", "", told("Canary", candidate=NEW), None, ""),
        ("update", "", told("Deferred", candidate=NEW, waiting="on hold by cli"), None, ""),
        ("update", "", told("Probation", NEW, candidate=NEW), None, ""),
        ("update", "", told("Idle", standby=NEW), None, ""),
        ("update", "", told(current={**NEW, "confirmed": True}), True, "1.1.0 runs and is confirmed"),
        ("update", "", told(waiting="1.1.0 is blocked (failed): 80 %"), False, "blocked (failed): 80 %"),
        ("update", "", told(offer=None), True, "nothing is offered"),
        ("set-channel", "beta", told(current={**NEW, "confirmed": True}), True, "1.1.0 runs"),
        ("pin", "1.0.0", told(), True, "1.0.0 runs"),
        ("pin", "a" * 64, told(), True, "1.0.0 runs"),
        ("pin", "2.0", told(waiting="the repository has not shown it"), False, "2.0 does not run: the repository"),
        # A rollback and a confirmation ask nobody.
        ("rollback", "", told("Reverting", leaving={"to": NEW}), None, ""),
        ("rollback", "", told("Activating"), None, ""),
        ("rollback", "", told(current=NEW), True, "1.1.0 runs"),
        ("rollback", "", told("Canary", NEW, candidate=OLD), True, "1.1.0 runs"),
        ("rollback", "", told(waiting="no target loads"), False, "no target loads"),
        ("rollback", "", told(current=None), False, "was not left"),
        ("confirm", "", told("Probation"), None, ""),
        ("confirm", "", told(), True, "1.0.0 is confirmed"),
        ("confirm", "", told("Reverting", NEW), False, "not confirmed"),
    ],
)
def test_when_a_command_is_over(
    verb: str, argument: str, status: dict[str, Any], good: bool | None, words: str
) -> None:
    ending = Wait(verb, BEFORE, argument).look(status)
    assert (ending.good if ending else None) == good
    assert ending is None or (words in ending.text and ending.over)


def test_a_rollback_on_probation_leaves_the_candidate() -> None:
    wait = Wait("rollback", told("Probation", NEW, candidate=NEW), "")
    assert wait.look(told("Reverting", NEW, leaving={"to": OLD})) is None
    ending = wait.look(told(current=OLD))
    assert ending is not None
    assert ending.good


def test_each_stage_is_said_once_and_a_restart_of_the_updater_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelagent.cli.follow.LOOK_S", 0.0)
    stages = [
        told(check={"asked": True, "last_try": 1.0}),
        told(check={"asked": True, "last_try": 1.0}),
        told("Canary", candidate=NEW),
        None,
        told("Probation", NEW, candidate=NEW, waiting="10 of 50 frames"),
        told("Probation", NEW, candidate=NEW, waiting="20 of 50 frames"),
        told(current={**NEW, "confirmed": True}),
    ]

    def look(verb: str) -> Mapping[str, Any]:
        if verb == "explain":
            return {"check": {"answer": "wait", "reason": "the link is metered"}}
        if (stage := stages.pop(0)) is None:
            raise DeviceError("run/control.sock: the updater is not running", code="down")
        return stage

    said: list[str] = []
    ending = follow(look, Wait("update", BEFORE, ""), 60.0, said.append)
    assert (ending.good, ending.text) == (True, "1.1.0 runs and is confirmed")
    assert said == [
        "no check yet: the link is metered",
        "Canary",
        "run/control.sock: the updater is not running; still waiting for it",
        "Probation",
    ]


def test_an_updater_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelagent.cli.follow.LOOK_S", 0.0)
    monkeypatch.setattr("modelagent.cli.follow.GONE_S", 0.0)

    def look(verb: str) -> Mapping[str, Any]:
        raise DeviceError(f"{verb}: the updater is not running", code="down")

    with pytest.raises(DeviceError, match="not running"):
        follow(look, Wait("update", BEFORE, ""), 60.0, lambda _: None)


def test_the_time_may_end_first_and_says_what_it_waited_for() -> None:
    ending = follow(
        lambda _: told("Deferred", waiting="on hold by cli"), Wait("update", BEFORE, ""), 0.05, lambda _: None
    )
    assert (ending.good, ending.over) == (False, False)
    assert "not over after 0.05 s: Deferred: on hold by cli" in ending.text
