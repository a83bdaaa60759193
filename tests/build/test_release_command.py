"""`repo release` from ready .tflite files: no tensorflow, and everything from the plan to a device's canary."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from modelagent import manifest
from modelagent.cli import main
from modelagent.core.verdicts import Outcome
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.slots import SlotStore

pytestmark = pytest.mark.process
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def run(*words: str | Path, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["repo", *map(str, words), "--json"])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def plan(version: str) -> Path:
    """A plan around one of the example's files, in the working directory."""
    path = Path(f"{version}.toml")
    lines = [
        f'[model]\nname = "digits"\nsource = "{DIGITS / "models" / f"digits-{version}.tflite"}"\n',
        f'[data]\nsource = "{Path.cwd() / "data.npz"}"\nshares = {{ train = 0.1, validation = 0.2, canary = 0.7 }}\n',
        # The parent's time is compared with wide limits: other tests keep this machine busy.
        "[variants]\n[evaluate]\nrounds = 3\n[parent]\nmax_latency_ratio = 5\nmax_size_ratio = 1.01\nmargin = 0.08\n",
    ]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with np.load(DIGITS / "canary.npz") as archive:
        np.savez(tmp_path / "data.npz", input_0=archive["input_0"], labels=archive["labels"])
    run("init", "--model", "digits")
    return tmp_path


def test_from_a_file_to_a_device(place: Path) -> None:
    words = ("--channel", "stable", "--version")
    told = run("release", plan("1.0.0"), *words, "1.0.0", "--dry-run")
    assert (told["published"], told["canary_samples"]) == (False, 248)
    assert run("status")["models"]["digits"] == []
    first = run("release", plan("1.0.0"), *words, "1.0.0", "--hardware", "meter-1")
    second = run("release", plan("1.1.0"), *words, "1.1.0", "--wave", "2026-11-01T12:00Z=0.5")
    assert (first["number"], second["number"]) == (1, 2)
    worse = run("release", plan("1.2.0"), *words, "1.2.0", code=3)
    assert "worse than the parent" in str(worse["reasons"])
    assert run("release", plan("1.2.0"), *words, "1.1.0", code=2)["code"] == "duplicate-version"
    assert [row["version"] for row in run("status")["models"]["digits"]] == ["1.0.0", "1.1.0"]
    assert run("verify")["good"]

    repository = Repository(place / "repository", KeyRing(place / "keys"))
    release = manifest.parse(repository.manifest_bytes("digits", "1.1.0"))
    assert release.parent == first["digest"]
    assert release.canary.samples == 248
    assert 0.8 < release.canary.floor < 0.97
    assert release.card["metrics"]["change_bound"] > -0.08
    assert manifest.parse(repository.manifest_bytes("digits", "1.0.0")).hardware == ("meter-1",)
    canary = release.file("canary")
    assert canary is not None
    with np.load(io.BytesIO((place / "repository" / "files" / canary.sha256).read_bytes())) as archive:
        found = np.bincount(archive["labels"])
    with np.load(place / "data.npz") as archive:
        wanted = np.bincount(archive["labels"]) * 248 / 400
    assert np.abs(found - wanted).max() <= 2  # every digit in its share

    state = place / "device"
    state.mkdir()
    root = (place / "keys" / "root.json").read_bytes()
    acquirer = Acquirer(state, DirectorySource(place / "repository"), root, lambda: repository.ledger.now().timestamp())
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    acquirer.acquire(offer)
    store = SlotStore(state, "digits")
    store.stage(offer.digest, state / "incoming", None)
    verdict = CanaryRunner(clock=lambda: 0.0).run(store.path(offer.digest), None, 1, release, lambda: False)
    assert verdict.outcome is Outcome.PASS, verdict


def test_what_is_typed_wrong_or_missing_is_refused_before_anything_is_built(place: Path) -> None:
    for words, code in (
        (("--version", "a/b"), "bad-name"),
        (("--version", "1", "--channel", "Not So"), "bad-name"),
        (("--version", "1", "--margin", "nan"), "usage"),
        (("--version", "1", "--margin", "-1"), "bad-option"),
        (("--version", "1", "--confidence", "2"), "bad-option"),
        (("--version", "1", "--wave", "soon=1"), "bad-wave"),
    ):
        assert run("release", plan("1.0.0"), *words, code=2)["code"] == code, words
    (place / "keys" / "operations.pem").rename(place / "operations.pem")
    missing = run("release", plan("1.0.0"), "--version", "1", "--channel", "stable", code=2)
    assert missing["code"] == "no-key"
    assert "operations.pem" in missing["error"]
    assert not Path("build").exists()


def test_what_cannot_be_published_is_refused_with_its_reason(place: Path) -> None:
    words = ("release", plan("1.0.0"), "--version", "1.0.0")
    assert "6183" in run(*words, "--margin", "0.01", code=2)["error"]
    assert run(*words, "--margin", "0.01", "--accept-small-canary")["published"]
    assert run("release", plan("1.1.0"), "--version", "1.1.0", "--name", "wheels", code=2)["code"] == "unknown-model"
    fresh = run("release", plan("1.1.0"), "--version", "1.1.0", "--name", "wheels", "--new-model", "--channel", "beta")
    assert fresh["model"] == "wheels"
    assert run("release", "nowhere.toml", "--version", "2", code=2)["code"] == "plan"
    (place / "keys" / "release.pem").unlink()
    assert run("release", plan("1.1.0"), "--version", "1.2.0", "--accept-worse", code=2)["code"] == "no-key"
