"""Waves for groups and hardware classes, from the typed option to the device's parser."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from modelagent.cli.repo import wave_of
from modelagent.core.events import Wave
from modelagent.errors import TrustError, UsageError
from modelagent.publish.channels import Plan, compose, plan_of
from modelagent.steps.channel import parse

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
RELEASE = ("1.0.0", "a" * 64)


def channel(*waves: Plan) -> bytes:
    return compose("digits", "stable", None, now=NOON, release=RELEASE, waves=waves)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("2026-11-01T12:00Z=0.1", Plan(NOON, 0.1)),
        ("2026-11-01T12:00=1@lab", Plan(NOON, 1.0, ("lab",))),
        ("2026-11-01T12:00Z=0.5@lab,line-3/aarch64,armv7l", Plan(NOON, 0.5, ("lab", "line-3"), ("aarch64", "armv7l"))),
        ("2026-11-01T12:00Z=1/x86_64", Plan(NOON, 1.0, (), ("x86_64",))),
    ],
)
def test_as_typed_as_signed_as_parsed(text: str, plan: Plan) -> None:
    assert wave_of(text) == plan
    data = channel(plan)
    assert parse(data).waves == (Wave(NOON.timestamp(), plan.share, plan.groups, plan.hardware),)
    assert plan_of(json.loads(data)["waves"][0]) == plan


def test_a_wave_for_all_is_written_as_ever() -> None:
    assert json.loads(channel(Plan(NOON, 0.5)))["waves"] == [{"start": "2026-11-01T12:00:00Z", "share": 0.5}]


@pytest.mark.parametrize("text", ["now=1", "2026-11-01T12:00Z", "2026-11-01T12:00Z=@lab", "2026-11-01T12:00Z=x/y"])
def test_typed_wrong(text: str) -> None:
    with pytest.raises(UsageError, match="allowed is TIME=SHARE"):
        wave_of(text)


@pytest.mark.parametrize("name", ["../x", "", "a b", "x" * 65])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="is a name such as"):
        channel(Plan(NOON, 1.0, (name,)))


def test_shares_rise_within_one_kind_of_device() -> None:
    channel(Plan(NOON, 1.0, ("lab",)), Plan(NOON, 0.1), Plan(NOON, 0.2))
    with pytest.raises(UsageError, match="more devices than the one before"):
        channel(Plan(NOON, 0.2, ("lab",)), Plan(NOON, 0.5), Plan(NOON, 0.1, ("lab",)))


@pytest.mark.parametrize(
    "more",
    [{"groups": "lab"}, {"groups": ["../lab"]}, {"hardware": [1]}, {"hardware": ["x"] * 201}, {"colour": ["red"]}],
)
def test_a_document_with_nonsense_is_refused(more: dict[str, Any]) -> None:
    document = json.loads(channel(Plan(NOON, 1.0)))
    document["waves"][0] |= more
    with pytest.raises(TrustError, match=r"waves\[0\]"):
        parse(json.dumps(document).encode())
