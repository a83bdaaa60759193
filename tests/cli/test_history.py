"""`history`, and the state read from disk: what a real journal wrote, chosen and shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import main
from modelagent.cli.show import ago, span
from modelagent.core.describe import describe
from modelagent.core.effects import Note
from modelagent.core.events import Counts, Instant, Link, SlotFacts
from modelagent.core.state import (
    Block,
    Candidate,
    Cause,
    Declined,
    Desired,
    Evidence,
    Going,
    Hold,
    Phase,
    Pin,
    Postponed,
    Reached,
    State,
    Timer,
    Way,
)
from modelagent.manifest import Release
from modelagent.steps.journal import Journal

AT = Instant(1.8e9, 100.0, "boot")


def release(version: str, number: int) -> Release:
    digest = f"{number:064x}"
    return Release("digits", version, digest, number, 0, digest, 70_000, 1.7e9)


ONE, TWO, THREE = release("1.0.0", 1), release("1.1.0", 2), release("1.2.0", 3)
FULL = State(
    "digits",
    phase=Phase.PROBATION,
    waiting="on probation: 312 of 500 frames",
    current=TWO.digest,
    fallback=ONE.digest,
    link=Link(1, 2),
    slots=(SlotFacts(ONE, confirmed=True), SlotFacts(TWO, confirmed=False)),
    candidate=Candidate(TWO, Way.FORWARD, Reached.PASSED),
    standby=Candidate(THREE, Way.FORWARD, Reached.STAGED),
    going=Going(leaving=TWO.digest, target=ONE.digest, reason="crash", unconfirm=False),
    desired=Desired(
        offer=THREE, pin=Pin("1.1.0", "mqtt", "p-1"), hold=Hold("cli", "h-1", "audit week"), now=False, pinned=TWO
    ),
    blocks={"f" * 64: Block(Cause.FAILED, "canary: 71 %", "0.9", 1.7e9)},
    withdrawn={"e" * 64: "wrong labels"},
    postponed={THREE.digest: Postponed(Timer.after(AT, 60.0), 1, "five attempts")},
    declined=(Declined(THREE.digest, ONE.digest, "litert", "too few samples"),),
    evidence=Evidence("e1", Counts(done=10), Counts(done=322, busy_s=5)),
    timer=Timer.after(AT, 30.0),
    alarms=("drift: class mix",),
    floor=1,
)


def test_a_full_state_is_plain_data_and_an_empty_one_too() -> None:
    for state in (FULL, State("digits"), replace(FULL, candidate=None, slots=(), current=None, going=None)):
        assert json.loads(json.dumps(describe(state)))["model"] == "digits"


def test_what_a_person_needs_is_in_the_description() -> None:
    told = describe(FULL)
    assert told["current"] == {"version": "1.1.0", "digest": TWO.digest, "confirmed": False}
    assert told["leaving"]["to"]["version"] == "1.0.0"
    assert told["evidence"]["done"] == 312
    assert {block["cause"] for block in told["blocks"]} == {"failed", "withdrawn"}
    assert told["postponed"][0]["until"] == AT.wall + 60.0
    assert told["offer"]["version"] == "1.2.0"
    assert told["hold"] == {"by": "cli", "reason": "audit week"}
    assert describe(replace(FULL, phase=Phase.IDLE))["evidence"] is None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "modelagent.toml"
    keys = ("state", "inference", "run", "inference_run")
    file.write_text("[paths]\n" + "".join(f"{k}_dir = '{tmp_path}/{k}'\n" for k in keys) + "[models.digits]\n")
    (tmp_path / "state").mkdir()
    journal = Journal(tmp_path / "state", "digits", State, clock=lambda: 1.75e9)
    journal.load()
    journal.write(State("digits"), [Note("offered", "1.0.0 offered", version="1.0.0")])
    journal.write(State("digits"), [Note("activated", "1.0.0 [bold]runs[/bold]", version="1.0.0", origin="cli")])
    evidence = {"accuracy": 0.71}
    journal.write(FULL, [Note("canary", "worse", version="1.1.0", level="warning", evidence=evidence)])
    return file


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


def test_history_shows_what_and_why_oldest_first(config: Path) -> None:
    result = call(config, "history")
    assert result.exit_code == cli.OK
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert "offered" in lines[1]
    assert "1.0.0 [bold]runs[/bold] [cli]" in lines[2]
    assert "accuracy" not in result.stdout
    assert '{"accuracy": 0.71}' in call(config, "history", "-v").stdout


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["-n", "1"], ["canary"]),
        (["--version", "1.0.0"], ["offered", "activated"]),
        (["--kind", "canary"], ["canary"]),
        (["--all", "-m", "digits"], ["offered", "activated", "canary"]),
        (["--kind", "nothing"], []),
    ],
)
def test_history_is_chosen_by_the_options(config: Path, arguments: list[str], kinds: list[str]) -> None:
    assert [line["kind"] for line in json.loads(call(config, "history", "--json", *arguments).stdout)] == kinds


def test_an_empty_history_says_so(config: Path) -> None:
    assert "no such line" in call(config, "history", "--kind", "nothing").stdout
    for file in (config.parent / "state").glob("history*"):
        file.unlink()
    assert "nothing has happened yet" in call(config, "history").stdout


def test_status_without_updater_words_the_state_as_the_updater_would(config: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.parent.rglob("*")}
    result = call(config, "status")
    assert result.exit_code == cli.UNREACHABLE
    for text in ("Probation: 312 frames", "on probation: 312 of 500", "pinned", "audit week", "canary: 71 %", "drift"):
        assert text in result.stdout, text
    assert {path: path.stat().st_mtime_ns for path in config.parent.rglob("*")} == before


def test_an_unreadable_state_is_said_and_no_crash(config: Path) -> None:
    (config.parent / "state" / "models" / "digits" / "state").write_bytes(b"\x01" * 1000)
    result = call(config, "status")
    assert result.exit_code == cli.UNREACHABLE
    assert "its state is unreadable" in result.stdout


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (95, "95 s"), (150, "2 min"), (7500, "2 h"), (200_000, "2 d"), (-95, "95 s")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_moments_seen_from_now() -> None:
    assert ago(None, 1000.0) == "never"
    assert ago(940.0, 1000.0) == "60 s ago"
    assert ago(1060.0, 1000.0) == "in 60 s"
