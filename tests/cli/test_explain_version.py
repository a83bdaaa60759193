"""`explain VERSION`: what was decided about it, in words and in full, from a journal that a real one wrote."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import main
from modelagent.cli.report import page
from modelagent.core.effects import Note
from modelagent.core.events import Counts
from modelagent.core.state import State
from modelagent.judges.canary import CanaryEvidence, ModelRun, Sample, judge_canary
from modelagent.judges.probation import ProbationCriteria, judge_probation
from modelagent.manifest import Canary, Limits
from modelagent.steps.journal import Journal

DIGEST = "5f" * 32


def run(version: str, right: int) -> ModelRun:
    samples = tuple(Sample(k, 900.0, True, 1 if k < right else 0, 1, 0.9, 0.9) for k in range(300))
    return ModelRun(
        version, version, samples, has_labels=True, load_ms=4.0, peak_kb=40_960, runtime="r 1", delegate="cpu"
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "modelagent.toml"
    keys = ("state", "inference", "run", "inference_run")
    file.write_text("[paths]\n" + "".join(f"{k}_dir = '{tmp_path}/{k}'\n" for k in keys) + "[models.digits]\n")
    (tmp_path / "state").mkdir()
    journal = Journal(tmp_path / "state", "digits", State, clock=lambda: 1.75e9)
    journal.load()
    evidence = CanaryEvidence(run("1.2.0", 240), run("1.1.0", 279), run=1, at=0.0)
    canary = judge_canary(evidence, Canary("accuracy", 0.05, 0.95, 0.5, 300), Limits(10.0, 2.0, 100.0, 5.0))
    counts = Counts(60, 60, busy_s=8, right=21, wrong=29, both_right=20, only_old=20, only_new=1, both_wrong=9)
    live = judge_probation(counts, ProbationCriteria())
    for version, kind, text, numbers in (
        ("1.2.0", "canary", f"1.2.0: {canary.outcome.value}: {canary.reason}", canary.evidence),
        ("1.3.0", "probation", f"1.3.0: bad: {live.reason}", live.evidence),
        ("1.3.0", "reverted", "1.1.0 runs again", {}),
    ):
        journal.write(State("digits"), [Note(kind, text, version=version, digest=DIGEST, evidence=numbers)])
    return file


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "explain", *arguments])


def test_a_canary_is_told_gate_by_gate(config: Path) -> None:
    result = call(config, "1.2.0")
    assert result.exit_code == cli.OK, result.output
    assert "80.0 % against 93.0 % on the same 300 samples; between 10.1 and 16.5 points lower" in result.stdout
    assert "floor: pass: 80.0 % right on 300 samples" in result.stdout
    assert "candidate 1.2.0: r 1 on cpu, p50 0.90 ms, p95 0.90 ms, at most 40 MB" in result.stdout
    assert "1.3.0" not in result.stdout


def test_a_probation_is_told_in_counts(config: Path) -> None:
    lines = call(config, "1.3.0").stdout
    assert "60 of 60 frames in 8 s, 0 hard faults" in lines
    assert "1 only this one right, 20 only the previous one, 9 neither" in lines
    assert "to go back" in lines
    assert "reverted: 1.1.0 runs again" in lines


def test_hiccups_and_slow_frames_are_told_where_there_were_any(config: Path) -> None:
    counts = Counts(1800, 1800, busy_s=60, unsteady_s=9, slower_new=3, slower_old=1)
    live = judge_probation(counts, ProbationCriteria())
    journal = Journal(config.parent / "state", "digits", State, clock=lambda: 1.75e9)
    journal.load()
    note = Note("probation", f"1.4.0: bad: {live.reason}", version="1.4.0", digest=DIGEST, evidence=live.evidence)
    journal.write(State("digits"), [note])
    lines = call(config, "1.4.0").stdout
    assert "it fails now and then: in 9 of 60 s with frames one failed at first" in lines
    assert "succeeded when run again, in 9 of 60 s with frames; normal are 0.5 %" in lines
    assert "this one on 3, the previous one on 1" in lines
    assert "succeeded when run again" not in call(config, "1.3.0").stdout


def test_json_has_all_the_evidence_and_a_digest_names_a_release_too(config: Path) -> None:
    lines = json.loads(call(config, "--json", "1.2.0").stdout)
    assert lines[0]["evidence"]["gates"]
    assert lines[0]["evidence"]["candidate"]["right"] == 240
    assert len(json.loads(call(config, "--json", DIGEST[:12]).stdout)) == 3


def test_a_version_that_nobody_knows_is_said_to_be_that(config: Path) -> None:
    result = call(config, "9.9.9")
    assert result.exit_code == cli.REFUSED
    assert "nothing was ever decided about it" in result.output


def test_a_page_with_plots_fetches_nothing_and_runs_nothing(config: Path, tmp_path: Path) -> None:
    for version, words in (
        ("1.2.0", ["80.0 % against 93.0 %", "allowed", "latency-p95: time of one inference", "equal"]),
        ("1.3.0", ["only the previous one", "previous is better", "reverted"]),
    ):
        file = tmp_path / f"{version}.html"
        done = CliRunner().invoke(main, ["--config", str(config), "report", version, "--html", str(file)])
        assert done.exit_code == cli.OK, done.output
        text = file.read_text(encoding="utf-8")
        for plot in re.findall(r"<svg.*?</svg>", text):
            ET.fromstring(plot)  # noqa: S314 - our own
        assert all(word in text for word in words), text
        assert not re.search(r"https?:|<script|src=|url\(|@import", text)
        assert "default-src 'none'" in text


def test_what_history_holds_cannot_break_out_of_the_page() -> None:
    line = {
        "kind": "<b>",
        "level": '"><script>',
        "text": "<script>alert(1)</script>",
        "wall": 1.0,
        "model": "<i>",
        "evidence": {"paired": "open", "only_old": 2, "paired_evidence": 1.0, "paired_threshold": "<svg>"},
    }
    text = page("<u>", [line])
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<u>" not in text


def test_a_page_that_cannot_be_written_and_a_version_that_nobody_knows(config: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none" / "x.html")
    failed = CliRunner().invoke(main, ["--config", str(config), "report", "1.2.0", "--html", nowhere])
    assert failed.exit_code == cli.FAILED
    assert nowhere in failed.stderr
    unknown = CliRunner().invoke(main, ["--config", str(config), "report", "9.9.9", "--html", str(tmp_path / "x.html")])
    assert unknown.exit_code == cli.REFUSED
    done = CliRunner().invoke(
        main, ["--config", str(config), "report", "1.2.0", "--json", "--html", str(tmp_path / "x.html")]
    )
    assert json.loads(done.stdout)["lines"] == 1
