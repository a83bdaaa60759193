"""The shipped JSON Schemas: every document that the code makes is described; parser and schema agree."""

import copy
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from device_simulator import Conduct, Device, release
from modelagent.core.describe import describe
from modelagent.core.effects import Note
from modelagent.core.events import Instant
from modelagent.core.state import Cause, Phase
from modelagent.inputs import Reply
from modelagent.inputs.commands import VERBS, Desk, Request, RequestError, answer, parse_request
from modelagent.inputs.config import Mqtt
from modelagent.inputs.mqtt import Session
from modelagent.sinks.event import Events
from modelagent.sinks.log import LEVELS

NAMES = ("command", "reply", "status", "event")


def load(name: str) -> dict[str, Any]:
    found = json.loads((resources.files("modelagent") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def strict(schema: Any) -> Any:
    """The same without room for keys that are not described: what is told must be described."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if "properties" in found and "type" in found:
        found.setdefault("additionalProperties", False)
    return found


STRICT = {name: Draft202012Validator(strict(load(name))) for name in NAMES}
COMMAND = Draft202012Validator(load("command"))


def check(name: str, document: Mapping[str, Any]) -> None:
    STRICT[name].validate(json.loads(json.dumps(document)))


@pytest.mark.parametrize("name", NAMES)
def test_each_schema_is_a_schema_and_explains_itself(name: str) -> None:
    schema = load(name)
    Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["description"]
    assert schema["$id"].endswith(f"/{name}.schema.json")


def test_the_words_are_the_codes() -> None:
    assert set(load("command")["properties"]["verb"]["enum"]) == set(VERBS)
    assert set(load("status")["$defs"]["model"]["properties"]["phase"]["enum"]) == {phase.value for phase in Phase}
    assert set(load("event")["properties"]["level"]["enum"]) == set(LEVELS)
    causes = {cause.value for cause in Cause} | {"withdrawn"}
    assert set(load("status")["$defs"]["block"]["properties"]["cause"]["enum"]) == causes


# ---- what comes out ----------------------------------------------------------------------------------------------


def eventful() -> Device:
    """A device to which nearly everything has happened."""
    device = Device("m")
    device.install("m", release("m", 1))
    device.publish("m", release("m", 2))
    device.start()
    device.settle()
    for number, live in ((3, "bad"), (4, "crash"), (5, "good")):
        device.publish("m", release("m", number), Conduct(live=live))
        device.settle()
    device.command("m", "hold", "audit week")
    device.command("m", "rollback", "wrong")
    device.settle()
    device.withdraw("m", release("m", 1))
    for _ in range(60):
        device.tick()
    return device


def test_every_event_is_described() -> None:
    device, events = eventful(), Events("9f2c")
    assert len({note.kind for _, note in device.notes}) > 8
    for model, note in device.notes:
        check("event", events.document(model, device.now, note))
    check("event", events.document("", Instant(1e300, 0.0, "b"), Note("clock", "far out", level="alarm")))


def test_every_status_is_described() -> None:
    device = eventful()
    told = describe(device.states["m"])
    assert told["blocks"]
    desk = Desk(submit=lambda _, reply: reply({}), view=lambda _: {}, now=lambda: 0.0)
    session = Session(Mqtt(host="nowhere"), device="box-17", groups=("lab",), desk=desk, draw=lambda: 0.0)
    check("status", json.loads(session._status_payload(online=False)))
    session.set_status(
        {
            "version": "0.1.0",
            "settings_problem": "",
            "models": {
                "m": {
                    "running": {"version": "1.1.0", "digest": release("m", 1).digest},
                    "phase": told["phase"],
                    "reason": told["waiting"],
                    "candidate": None,
                    "blocks": told["blocks"],
                    "alarms": told["alarms"],
                    "health": "",
                }
            },
        }
    )
    for online in (True, False):
        check("status", json.loads(session._status_payload(online=online)))


def test_a_status_that_is_sent_again_keeps_its_id_and_a_new_one_does_not() -> None:
    desk = Desk(submit=lambda _, reply: reply({}), view=lambda _: {}, now=lambda: 0.0)
    session = Session(Mqtt(host="nowhere"), device="d", groups=(), desk=desk, draw=lambda: 0.0, wall=lambda: 1e9)
    session.set_status({"a": 1})
    first = session._status_payload(online=True)
    session.set_status({"a": 1})
    assert session._status_payload(online=True) == first
    session.set_status({"a": 2})
    assert json.loads(session._status_payload(online=True))["id"] != json.loads(first)["id"]


def replies(line: bytes) -> list[Mapping[str, Any]]:
    said: list[Mapping[str, Any]] = []

    def submit(request: Request, reply: Reply) -> None:
        reply(answer(request.id, "refused", "1.2.0 is blocked", code="blocked"))
        reply(answer(request.id, "done"))

    desk = Desk(submit=submit, view=lambda _: {"phase": "Idle"}, now=lambda: 100.0)
    for _ in range(2):
        desk.take(line, origin="mqtt", limit=2000, reply=said.append)
    return said


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hold!",
        b'{"id":"1","verb":"format"}',
        b'{"id":"1","verb":"hold","expires":1}',
        b'{"id":"1","verb":"hold"}',
        b'{"id":"1","verb":"status"}',
        b'{"id":"1","verb":"watch"}',
        b'{"id":"1","verb":"label","labels":[]}',
        b"x" * 3000,
    ],
)
def test_every_reply_is_described(line: bytes) -> None:
    said = replies(line)
    assert len(said) >= 2
    for document in said:
        check("reply", document)
        check("reply", {**document, "device": "box-17"})


# ---- what comes in -----------------------------------------------------------------------------------------------

GOOD: list[dict[str, Any]] = [
    {"id": "7f3a", "verb": "status"},
    {"id": "a:b/c.d_e-f", "verb": "pin", "model": "digits", "argument": "1.2.0", "expires": 1767225600},
    {"id": "1", "verb": "label", "labels": [{"id": "9f2c-17", "label": 7}, {"id": "9f2c-18", "right": False}]},
    {"id": "1", "verb": "set-channel", "argument": "beta", "model": None, "expires": None},
    {"id": "1", "verb": "confirm", "argument": "1.2.0"},
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**40),
    st.text(max_size=6),
    st.sampled_from([*VERBS, "", "a\nb", "x" * 2000, "Digits", [], {}, [{"id": "r", "label": -1}], [{"id": "r"}]]),
    st.just([{"id": "r", "label": 1, "right": True}]),
    st.just([{"id": "r s", "right": True}]),
)


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(["id", "verb", "model", "argument", "expires", "labels", "other"]))
        if draw(st.booleans()):
            document.pop(key, None)
        else:
            document[key] = draw(VALUES)
    return document


@pytest.mark.parametrize("document", GOOD, ids=[document["verb"] for document in GOOD])
def test_good_commands_are_good_for_both(document: dict[str, Any]) -> None:
    COMMAND.validate(document)
    parse_request(json.dumps(document).encode(), origin="mqtt", limit=16384)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(document=mutants())
def test_parser_and_schema_agree(document: dict[str, Any]) -> None:
    argument = document.get("argument")
    if isinstance(argument, str) and not argument.isascii():
        return  # what is printable in Unicode changes with its version; the parser has the last word
    try:
        parse_request(json.dumps(document).encode(), origin="mqtt", limit=16384)
        taken = True
    except RequestError:
        taken = False
    assert COMMAND.is_valid(document) == taken
