"""Commands that speak with the updater: a fake updater on a real socket, answers and exit codes."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import main
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.config import load, remember
from modelagent.inputs.control import ControlServer


class Updater:
    """Answers from a script: `answers` in turn for what steers, `result` for what only asks."""

    def __init__(self, directory: Path) -> None:
        self.requests: list[Request] = []
        self.answers: list[tuple[str, str]] = [("done", "")]
        self.result: Mapping[str, Any] = {"models": {}}
        self.results: list[Mapping[str, Any]] = []  # told once each, before `result`
        self.socket = directory / "run" / "control.sock"
        self.socket.parent.mkdir()

    def submit(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        for status, reason in self.answers:
            reply(answer(request.id, status, reason))

    def view(self, request: Request) -> Mapping[str, Any]:
        self.requests.append(request)
        return self.results.pop(0) if self.results else self.result


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "modelagent.toml"
    file.write_text(
        "[device]\nid = 'box-7'\n[paths]\n"
        + "".join(f"{key}_dir = '{tmp_path}/{key}'\n" for key in ("state", "inference", "run", "inference_run"))
        + "[models.digits]\n[models.gauge]\n"
    )
    return file


@pytest.fixture
def updater(tmp_path: Path, config: Path) -> Iterator[Updater]:
    fake = Updater(tmp_path)
    with ControlServer(fake.socket, Desk(submit=fake.submit, view=fake.view, now=time.time)):
        yield fake


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


@pytest.mark.parametrize(
    ("arguments", "verb", "argument"),
    [
        (["check"], "check", ""),
        (["update"], "update", ""),
        (["pin", "1.1.0"], "pin", "1.1.0"),
        (["unpin"], "unpin", ""),
        (["hold", "--reason", "audit week"], "hold", "audit week"),
        (["resume"], "resume", ""),
        (["rollback", "--reason", "wrong"], "rollback", "wrong"),
        (["block", "add", "1.2.0"], "block", "1.2.0"),
        (["block", "lift", "1.2.0"], "lift", "1.2.0"),
    ],
)
def test_a_command_arrives_as_its_verb(
    config: Path, updater: Updater, arguments: list[str], verb: str, argument: str
) -> None:
    result = call(config, *arguments, "--model", "digits", "--id", "x-1")
    assert result.exit_code == cli.OK, result.output
    (request,) = updater.requests
    assert (request.verb, request.argument, request.model, request.id, request.origin) == (
        verb,
        argument,
        "digits",
        "x-1",
        "cli",
    )


@pytest.mark.parametrize(
    ("status", "code"), [("done", 0), ("accepted", 0), ("refused", cli.REFUSED), ("failed", cli.FAILED)]
)
def test_the_answer_decides_the_exit_code(config: Path, updater: Updater, status: str, code: int) -> None:
    updater.answers = [(status, "because")]
    result = call(config, "pin", "1.2.0", "-m", "digits")
    assert result.exit_code == code
    assert "because" in (result.stdout if code == 0 else result.stderr)
    document = json.loads(call(config, "pin", "1.2.0", "-m", "digits", "--json").stdout)
    assert (document["status"], document["reason"]) == (status, "because")


def test_ids_differ_unless_given(config: Path, updater: Updater) -> None:
    for _ in range(2):
        call(config, "check", "-m", "digits")
    assert len({request.id for request in updater.requests}) == 2


def test_with_several_models_one_must_be_named(config: Path, updater: Updater) -> None:
    result = call(config, "hold")
    assert result.exit_code == cli.USAGE
    assert "digits, gauge" in result.stderr
    assert call(config, "hold", "-m", "nonsense").exit_code == cli.USAGE
    assert not updater.requests


def test_an_absent_updater_is_exit_code_4_with_the_remedy(config: Path) -> None:
    result = call(config, "check", "-m", "digits")
    assert result.exit_code == cli.UNREACHABLE
    assert "modelagent run updater" in result.stderr


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ({"phase": "Idle", "current": {"version": "1.0.0", "digest": "a" * 64}}, cli.OK, "digits: done: 1.0.0 runs"),
        ({"phase": "Idle", "waiting": "no target loads"}, cli.FAILED, "digits: failed: it was not left"),
        ({"phase": "Reverting"}, cli.FAILED, "digits: waiting: not over after 0.2 s: Reverting"),
    ],
)
def test_wait_follows_a_command_to_its_end(
    config: Path, updater: Updater, status: Mapping[str, Any], code: int, words: str
) -> None:
    updater.answers = [("accepted", "going back to 1.0.0")]
    updater.result = {"models": {"digits": status}}
    before = {"models": {"digits": {"phase": "Idle", "current": {"version": "1.1.0", "digest": "b" * 64}}}}
    updater.results = [before]
    result = call(config, "rollback", "-m", "digits", "--wait", "--timeout", "0.2")
    assert result.exit_code == code, result.output
    assert "accepted: going back to 1.0.0" in result.stdout
    assert words in result.output
    updater.results = [before]
    document = json.loads(call(config, "rollback", "-m", "digits", "--timeout", "200ms", "--json").stdout)
    assert (document["status"], document["good"]) == ("accepted", code == cli.OK)


def test_wait_ends_at_once_with_what_is_refused(config: Path, updater: Updater) -> None:
    updater.answers = [("refused", "nothing is on probation")]
    assert call(config, "confirm", "-m", "digits", "--wait").exit_code == cli.REFUSED
    assert call(config, "check", "-m", "digits", "--timeout", "soon").exit_code == cli.USAGE


# ---- labels ----------------------------------------------------------------------------------------------------


def test_labels_by_hand_and_from_a_file(config: Path, updater: Updater, tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text('[{"id": "a-1", "label": 7}, {"id": "a-2", "right": true}]')
    for arguments in (["a-3", "4"], ["a-4", "--wrong"], ["--file", str(file)]):
        assert call(config, "label", *arguments, "-m", "digits").exit_code == cli.OK
    assert [entry.document for request in updater.requests for entry in request.labels] == [
        {"id": "a-3", "label": 4},
        {"id": "a-4", "right": False},
        {"id": "a-1", "label": 7},
        {"id": "a-2", "right": True},
    ]


@pytest.mark.parametrize("arguments", [[], ["a-1"], ["a-1", "3", "--right"], ["a-1", "-3"]])
def test_a_label_without_its_truth_is_refused_before_it_is_sent(
    config: Path, updater: Updater, arguments: list[str]
) -> None:
    assert call(config, "label", *arguments, "-m", "digits").exit_code == cli.USAGE
    assert not updater.requests


# ---- status ----------------------------------------------------------------------------------------------------


def write_health(config: Path, model: str, **more: object) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = time.monotonic()
    document: dict[str, object] = {
        "schema": 1,
        "model": model,
        "boot_id": boot_id,
        "epoch": "e1",
        "seq": 4,
        "wall": time.time(),
        "mono": now,
        "pid": os.getpid(),
        "link": {"inode": 1, "mtime_ns": 2},
        "running": {"digest": "a" * 64, "version": "1.1.0", "worker_pid": 1, "since_mono": now - 90},
        "loading": None,
        "refused": None,
        "fell_back": None,
        "idle": "",
        "counters": {"a" * 64: {"frames": 10, "done": 9, "dropped": 1, "faults": {"crash": 0}}},
        "source": {"kind": "replay", "rate_fps": 29.9},
    }
    file = config.parent / "inference_run" / model / "health.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document | more))


SAID = {
    "phase": "Deferred",
    "waiting": "on hold by cli: audit week",
    "current": {"version": "1.0.0", "digest": "b" * 64, "confirmed": True},
    "fallback": {"version": "1.0.0", "digest": "b" * 64, "confirmed": True},
    "candidate": None,
    "channel": "stable",
    "hold": {"by": "cli", "reason": "audit week"},
    "blocks": [{"version": "1.2.0", "digest": "c" * 64, "cause": "failed", "reason": "canary: 71 %", "at": 1.7e9}],
    "check": {"last_ok": 1.7e9, "last_try": 1.7e9, "error": "", "next": None, "state": "Resting"},
    "alarms": [],
}


def test_status_shows_what_health_says_and_never_the_link(config: Path, updater: Updater) -> None:
    updater.result = {"models": {"digits": SAID}}
    write_health(config, "digits", results={"written": 7, "lost": 2})
    result = call(config, "status", "-m", "digits")
    assert result.exit_code == cli.OK, result.output
    assert "7 written, 2 lost; inference's log says why" in result.stdout
    lines = result.stdout.splitlines()
    assert "device box-7" in lines[0]
    (runs,) = [line for line in lines if line.strip().startswith("runs")]
    assert "1.1.0" in runs
    assert "since 90 s" in runs
    assert "audit week" in result.stdout
    assert "1.2.0  failed: canary: 71 %" in result.stdout
    assert "29.9 frames/s, 9 done, 1 dropped" in result.stdout
    document = json.loads(call(config, "status", "-m", "digits", "--json").stdout)
    assert document["models"]["digits"]["running"]["version"] == "1.1.0"
    assert document["models"]["digits"]["current"]["version"] == "1.0.0"
    assert document["updater"] == {"answers": True, "reason": ""}


def test_status_shows_a_doubted_clock_and_whatever_else_is_unusual_on_the_way_to_the_repository(
    config: Path, updater: Updater
) -> None:
    way = {
        "clock": {"believed": False, "reason": "the clock stands before the newest signed time"},
        "set_aside": {"http://mirror": "tampered-file"},
        "attached": ["/media/stick/digits.modelagent"],
        "budget_left": 2.5e6,
    }
    note = "the repository's timestamp signature ends soon"
    updater.result = {
        "repository": way,
        "models": {"digits": {**SAID, "check": {**SAID["check"], "notes": [note]}}},  # type: ignore[dict-item]
    }
    write_health(config, "digits")
    lines = call(config, "status", "-m", "digits").stdout.splitlines()
    assert "clock: the clock stands before the newest signed time" in lines
    assert "source set aside: http://mirror (tampered-file); asked last for a week" in lines
    assert "bundle attached: /media/stick/digits.modelagent" in lines
    assert "downloads: 2.5 MB left today" in lines
    assert any(line.split(maxsplit=1) == ["repository", note] for line in lines)


def test_status_of_all_models_and_an_alarm_is_unhealthy(config: Path, updater: Updater) -> None:
    updater.result = {"models": {"digits": SAID, "gauge": {**SAID, "alarms": ["drift: class mix"]}}}
    write_health(config, "digits")
    write_health(config, "gauge")
    result = call(config, "status")
    assert result.exit_code == cli.FAILED
    assert "drift: class mix" in result.stdout


def test_silent_inference_is_unhealthy_and_its_last_word_is_called_old(config: Path, updater: Updater) -> None:
    updater.result = {"models": {"digits": SAID}}
    write_health(config, "digits", mono=time.monotonic() - 500)
    result = call(config, "status", "-m", "digits")
    assert result.exit_code == cli.FAILED
    assert "no sign of life" in result.stdout


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "boot_id": "x"}'])
def test_a_strange_health_file_is_no_crash(config: Path, updater: Updater, text: str) -> None:
    write_health(config, "digits")
    (config.parent / "inference_run" / "digits" / "health.json").write_text(text)
    assert call(config, "status", "-m", "digits").exit_code == cli.FAILED


def test_an_idle_device_says_why_nothing_runs(config: Path, updater: Updater) -> None:
    write_health(config, "digits", running=None, idle="no model yet")
    result = call(config, "status", "-m", "digits")
    assert result.exit_code == cli.FAILED
    assert "nothing: no model yet" in result.stdout


def test_status_without_updater_reads_its_state_and_says_so(config: Path) -> None:
    write_health(config, "digits")
    result = call(config, "status", "-m", "digits")
    assert result.exit_code == cli.UNREACHABLE
    assert "updater does not answer" in result.stdout
    assert "1.1.0" in result.stdout
    assert not (config.parent / "state").exists()  # only read


def test_block_list(config: Path, updater: Updater) -> None:
    assert "nothing is blocked" in call(config, "block", "list").stdout
    updater.result = {"models": {"digits": SAID}}
    assert "canary: 71 %" in call(config, "block", "list").stdout
    (row,) = json.loads(call(config, "block", "list", "--json").stdout)["blocks"]
    assert (row["model"], row["version"], row["cause"]) == ("digits", "1.2.0", "failed")


def test_a_bad_settings_file_takes_no_command_away(config: Path, updater: Updater, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    remember(load(config), tmp_path / "state")
    config.write_text(config.read_text().replace("[models.gauge]", "[models.gauge]\nchannel = 3"))
    result = call(config, "hold", "--model", "digits")
    assert (result.exit_code, updater.requests[-1].verb) == (cli.OK, "hold")
    assert "models.gauge.channel: found 3" in result.stderr
    assert "going on with the last good settings" in result.stderr
    shown = call(config, "status", "--json")
    assert list(json.loads(shown.stdout)["models"]) == ["digits", "gauge"]
    assert call(config, "config", "check").exit_code == cli.USAGE


def test_without_an_updater_nobody_says_that_nothing_is_blocked(config: Path) -> None:
    result = call(config, "block", "list")
    assert (result.exit_code, result.stdout) == (cli.UNREACHABLE, "")
    assert "the updater is not running" in result.stderr
    assert "no state was written yet" in result.stderr


def test_a_lock_that_may_not_be_taken_is_said_with_its_remedy(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELAGENT_CONFIG", str(config))  # `run` sets it for its own process, which is this one here
    (tmp_path / "run").write_text("in the way")
    result = call(config, "run", "updater")
    assert result.exit_code == cli.FAILED
    assert "take the updater's lock" in result.stderr


def test_a_file_that_does_not_say_whose_it_is_is_not_taken_for_this_machines(tmp_path: Path) -> None:
    (tmp_path / "typo.toml").write_text("[[[")
    result = call(tmp_path / "typo.toml", "rollback", "--model", "digits")
    assert result.exit_code == cli.USAGE
    assert "not valid TOML" in result.stderr
