"""`modelagent repo ...` as it is typed, with a real model file."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelagent.cli import main
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "models" / "digits-1.0.0.tflite"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELAGENT_REPO", str(tmp_path / "repo"))
    monkeypatch.setenv("MODELAGENT_KEYS", str(tmp_path / "keys"))
    return tmp_path


def run(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["repo", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def answer(*words: str | Path, code: int = 0) -> dict[str, object]:
    found: dict[str, object] = json.loads(run(*words, "--json", code=code).stdout)
    return found


@pytest.mark.process
def test_from_nothing_to_a_channel(place: Path) -> None:
    run("init", "--model", "digits")
    (place / "names").write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    added = answer(
        "add", MODEL, "--model", "digits", "--version", "1.0.0", "--canary", DIGITS / "canary.npz",
        "--warmup", DIGITS / "warmup.npz", "--labels", place / "names", "--floor-accuracy", "0.8",
    )  # fmt: skip
    assert added["number"] == 1
    manifest = json.loads(next((place / "repo" / "targets" / "models").rglob("*.manifest.json")).read_bytes())
    assert manifest["inputs"] == [{"name": "scan", "shape": [1, 8, 8, 1], "dtype": "float32", "quantisation": None}]
    assert manifest["labels"][3] == "three"
    assert manifest["canary"]["floor"] == 0.8
    assert set(manifest["files"]) == {"model", "canary", "warmup", "labels"}
    run("add", MODEL, "--model", "digits", "--version", "1.1.0", "--canary", DIGITS / "canary.npz",
        "--parent", "1.0.0", "--number", "20", "--floor", "2")  # fmt: skip
    assert "1.1.0" in run("channel", "digits", "stable", "1.1.0", "--wave", "2026-11-01T12:00Z=0.1").stdout
    assert "stable -> 1.1.0, in waves 2026-11-01T12:00:00Z=0.1" in run("status").stdout
    assert (
        "to go on, for all at once or with --wave: modelagent repo channel digits stable 1.1.0"
        in run("pause", "digits", "stable").stdout
    )
    assert "stable -> 1.1.0, paused" in run("status").stdout
    said = answer("withdraw", "digits", "1.1.0", "--reason", "wrong labels", "--instead", "1.0.0")
    assert said["channels"] == [{"channel": "stable", "version": "1.0.0"}]
    assert "until" in run("refresh").stdout
    status = answer("status")
    assert isinstance(status["models"], dict)
    assert [entry["version"] for entry in status["models"]["digits"]] == ["1.0.0", "1.1.0"]
    assert "withdrawn: 1.1.0" in run("status").stdout
    run("keys", "rotate", "online")
    rows = answer("keys", "list")["keys"]
    assert isinstance(rows, list)
    assert {row["name"] for row in rows} >= {"root", "targets", "release", "operations", "online", "online.old-1"}
    assert answer("channel", "digits", "stable", "none")["version"] is None


@pytest.mark.process
def test_a_model_file_that_the_runtime_refuses_or_dies_of(place: Path) -> None:
    run("init", "--model", "digits")
    broken = place / "broken.tflite"
    add = ("--model", "digits", "--version", "1.0.0", "--canary", DIGITS / "canary.npz")
    for content in (b"not a model", MODEL.read_bytes()[:3000]):
        broken.write_bytes(content)
        assert str(broken) in run("add", broken, *add, code=2).stderr
    assert "no such file" in run("add", place / "nowhere", *add, code=2).stderr
    deadly = DIGITS / "models" / "digits-1.4.0.tflite"
    assert "crashes the runtime" in run("add", deadly, *add, code=2).stderr
    contract = {key: json.loads((DIGITS / "releases.json").read_bytes())[key] for key in ("inputs", "outputs")}
    (place / "contract.json").write_text(json.dumps(contract))
    assert answer("add", deadly, *add, "--manifest", place / "contract.json")["version"] == "1.0.0"


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--margin", "0.01"), "6183 samples"),
        (("--labels", "{place}/nowhere"), "nowhere: No such file or directory; name a readable file"),
        (("--labels", "{place}/empty"), "found no class name"),
        (("--labels", "{place}/deep.json"), "deep.json: no JSON"),
        (("--manifest", "{place}/deep.json"), "deep.json: no JSON"),
        (("--warmup", "{place}/list.json"), "warmup file: {place}/list.json: found File is not a zip file"),
        (("--canary", "{place}/nowhere"), "canary file: {place}/nowhere: found No such file or directory"),
        (("--margin", "nan"), "'--margin': found 'nan'; allowed: a number"),
        (("--latency-ms", "inf"), "'--latency-ms': found 'inf'; allowed: a number"),
        (("--confidence", "much"), "'--confidence': found 'much'; allowed: a number"),
        (("--version", "none"), "means no release at all"),
        (("--number", "9007199254740990"), "leaves no room for later releases"),
        (("--manifest", "{place}/list.json"), "no JSON object"),
        (("--parent", "9.9"), "no such release"),
        (("--hardware", "x" * 300), "hardware"),
        (("--model", "wheels"), "knows no such model"),
    ],
)
def test_what_is_refused_says_why(place: Path, words: tuple[str, ...], said: str) -> None:
    run("init", "--model", "digits")
    (place / "list.json").write_text("[1]")
    (place / "deep.json").write_text("[" * 100_000)
    (place / "empty").write_text("\n")
    typed = [word.format(place=place) for word in words]
    add = ("add", MODEL, "--model", "digits", "--version", "1", "--canary", DIGITS / "canary.npz")
    result = run(*add, *typed, code=2)
    assert said.format(place=place) in result.stderr
    assert answer("status")["models"] == {"digits": []}


def test_errors_are_documents_where_json_is_asked_for(place: Path) -> None:
    assert answer("status", code=2)["code"] == "no-repository"
    run("init", "--model", "digits")
    assert answer("init", code=2)["code"] == "exists"
    assert answer("channel", "digits", "stable", "1.0.0", code=2)["code"] == "unknown-version"
    assert answer("channel", "digits", "stable", "none", "--wave", "soon=1", code=2)["code"] == "bad-wave"
    for moment in ("0001-01-01T00:00+23:00", "9999-12-31T23:59-23:00"):
        assert answer("channel", "digits", "stable", "none", "--wave", f"{moment}=1", code=2)["code"] == "bad-wave"
    assert answer("withdraw", "digits", "1.0.0", "--reason", " ", code=2)["code"] == "no-reason"
    assert answer("keys", "rotate", "nobody", code=2)["code"] == "no-key"
    assert answer("keys", "new", "../root-2", code=2)["code"] == "bad-name"
    assert answer("serve", "--port", "99999", code=2)["code"] == "usage"
    assert "no plan, whose name ends in .toml" in str(answer("release", place / "plan", "--version", "1", code=2))
    wrong = answer("verify", "--keys", place, code=1)["errors"]
    assert wrong == [f"{place}/root.json: No such file or directory; --keys names the directory that holds root.json"]


@pytest.mark.parametrize(
    "words", [("--root-days", "99999999999"), ("--root-keys", "100000"), ("--timestamp-days", "-5")], ids=" ".join
)
def test_numbers_beyond_reason_make_no_repository(place: Path, words: tuple[str, ...]) -> None:
    assert "not in the range" in run("init", "--model", "digits", *words, code=2).stderr
    assert not (place / "repo").exists()


def test_a_place_that_cannot_be_used_is_named_and_a_second_try_finds_no_keys_in_its_way(place: Path) -> None:
    (place / "file").write_text("")
    said = answer("init", "--model", "digits", "--repo", place / "file" / "repo", code=1)
    assert said == {"error": f"{place}/file/repo: Not a directory; name another place", "code": "file"}
    run("init", "--model", "digits")


def test_a_passphrase_file_that_is_none_is_refused(place: Path) -> None:
    (place / "rubbish").write_bytes(bytes(range(1, 256)) * 8)
    said = run("init", "--encrypt", "--passphrase-file", place / "rubbish", code=2).stderr
    assert "a passphrase has at most 1023; name the right file" in said


def test_keys_are_encrypted_where_a_passphrase_is_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer("init", "--encrypt", code=2)["code"] == "passphrase"
    monkeypatch.setenv("MODELAGENT_PASSPHRASE", "secret")
    run("init", "--encrypt", "--model", "digits")
    rows = answer("keys", "list")["keys"]
    assert isinstance(rows, list)
    assert {row["name"]: row["encrypted"] for row in rows} == {
        "root": True, "targets": True, "release": True, "operations": True, "online": False,
    }  # fmt: skip
    run("channel", "digits", "stable", "none")
    monkeypatch.delenv("MODELAGENT_PASSPHRASE")
    assert answer("channel", "digits", "stable", "none", code=2)["code"] == "passphrase"
    run("refresh")


def test_who_publishes_under_a_signature_that_is_over_hears_of_it(place: Path) -> None:
    run("init", "--model", "digits")
    assert "warning" not in run("channel", "digits", "stable", "none").stderr
    repository = Repository(place / "repo", KeyRing(place / "keys"))
    root = repository.ledger.load_root()
    root.signed.version += 1
    root.signed.expires = datetime(2020, 1, 1, tzinfo=UTC)
    repository.ledger.write_root(root, [repository.keys.signer("root")])
    for words in (("channel", "digits", "stable", "none"), ("refresh",)):
        said = run(*words, "--json")
        assert "the signature of root is over" in said.stderr
        assert "renew" in said.stderr
        json.loads(said.stdout)
    run("renew", "root")
    assert "warning" not in run("refresh").stderr


def test_status_fails_when_a_signature_is_near_its_end(place: Path) -> None:
    run("init", "--model", "digits", "--timestamp-days", "0", "--snapshot-days", "0")
    assert "OVER: sign it again" in run("status", code=1).stdout
    settings = place / "r2" / "publisher.json"
    run("init", "--model", "digits", "--repo", place / "r2", "--keys", place / "k2")
    settings.write_text(settings.read_text().replace('"timestamp": 604800', '"timestamp": 60480000'))
    assert "SOON: sign it again" in run("status", "--repo", place / "r2", "--keys", place / "k2", code=1).stdout


@pytest.mark.process
def test_serve_tells_its_address_and_ends_at_once(place: Path) -> None:
    run("init", "--model", "digits")
    child = subprocess.Popen(
        [sys.executable, "-m", "modelagent", "repo", "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    try:
        assert child.stdout is not None
        text = b""
        while not text.rstrip().endswith(b"}"):
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            text += line
        url = json.loads(text)["url"]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url + "metadata/timestamp.json", timeout=10) as response:  # noqa: S310
            assert response.read() == (place / "repo" / "metadata" / "timestamp.json").read_bytes()
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.communicate()


def test_every_command_explains_itself() -> None:
    for words in (
        (), ("init",), ("add",), ("channel",), ("withdraw",), ("refresh",), ("serve",), ("status",),
        ("keys",), ("keys", "list"), ("keys", "rotate"),
    ):  # fmt: skip
        text = run(*words, "--help").stdout
        assert "Usage:" in text
        assert "Exit codes" in text or not words
