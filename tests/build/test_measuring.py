"""Reading files, judging steps, measuring in a child, and a whole build of a .tflite: all without tensorflow."""

import html.parser
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

import tiny_models
from modelagent.build import chains, evaluate, evidence, graph, pipeline, plans, scoring, trial
from modelagent.build.data import Samples
from modelagent.build.evaluate import FailedError
from modelagent.build.graph import Constant, Inside
from modelagent.cli import main
from modelagent.delta.flatbuffer import read_constants
from modelagent.errors import UsageError
from modelagent.judges.metrics import Scored
from modelagent.publish import deltas

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FLOAT, INT8 = DIGITS / "models" / "digits-1.1.0.tflite", DIGITS / "models" / "digits-1.1.0-int8.tflite"


def digits() -> Samples:
    with np.load(DIGITS / "canary.npz") as archive:
        return Samples((archive["input_0"],), archive["labels"], tuple("0123456789"))


# --- inside a file ----------------------------------------------------------------------------------------------


def test_a_file_is_read_without_the_runtime() -> None:
    found = graph.inspect(FLOAT.read_bytes())
    assert found.operators["CONV_2D"] == 2
    assert found.custom == ()
    assert found.share("float32") == 1.0
    assert found.numbers == 12 * 9 + 24 * 12 * 9 + 384 * 24 + 24 * 10
    small = graph.inspect(INT8.read_bytes())
    assert small.share("int8") == 1.0
    assert small.float_operators == 0
    assert graph.order(FLOAT.read_bytes()) == (["scan"], ["probabilities"])
    # A file that kills whoever loads it may be read all the same.
    assert graph.inspect((DIGITS / "models" / "digits-1.4.0.tflite").read_bytes()).operators["IF"] == 1


def test_what_is_no_file_is_refused() -> None:
    for content in (b"", b"x" * 100, FLOAT.read_bytes()[:40]):
        with pytest.raises(UsageError, match="name the right file"):
            graph.inspect(content)


def test_polishing_renames_and_changes_nothing_else(tmp_path: Path) -> None:
    polished = graph.polish(FLOAT.read_bytes(), ["picture"], ["classes"])
    assert graph.order(polished) == (["picture"], ["classes"])
    assert graph.polish(polished) == polished
    assert {item.data for item in graph.inspect(polished).constants} == {
        item.data for item in graph.inspect(FLOAT.read_bytes()).constants
    }
    for content in (polished, graph.polish(INT8.read_bytes())):
        spans = [item.span for item in read_constants(content) if item.part == "data"]
        assert spans
        assert all(span.offset % 16 == 0 for span in spans)
    assert len(graph.polish(INT8.read_bytes())) < len(INT8.read_bytes())
    with pytest.raises(UsageError, match="1 there"):
        graph.polish(polished, ["a", "b"])


def test_differences_are_named() -> None:
    first = tiny_models.linear(np.eye(4))
    assert graph.differences(first, first) == []
    other = np.eye(4)
    other[0, 0] = 2.0
    (told,) = graph.differences(first, tiny_models.linear(other))
    assert "of 64 bytes" in told
    assert any("operators" in text for text in graph.differences(first, tiny_models.root(np.eye(4))))


# --- did a step do anything? ------------------------------------------------------------------------------------


def inside(*weights: tuple[str, float], floats: int = 0) -> Inside:
    """A file with weights of (type, share of zeros), 100 numbers each."""
    constants = tuple(
        Constant(f"w{index}", kind, (10, 10), 100, round(100 * zeros), bytes([index]))
        for index, (kind, zeros) in enumerate(weights)
    )
    return Inside({"CONV_2D": len(weights)}, (), constants, floats, ())


BASE = inside(("float32", 0.0), ("float32", 0.0))


@pytest.mark.parametrize(
    ("chain", "found", "idle", "word"),
    [
        ("int8", inside(("int8", 0.0), ("int8", 0.0)), None, ""),
        ("int8", BASE, True, "int8 did nothing"),
        ("int8", inside(("int8", 0.0), ("float32", 0.0)), False, "took 50%"),
        ("int8", inside(("int8", 0.0), ("int8", 0.0), floats=1), False, "still compute in float"),
        ("dynamic", BASE, True, "dynamic did nothing"),
        ("float16", BASE, True, "float16 did nothing"),
        ("float16", inside(("float16", 0.0), ("float16", 0.0)), None, ""),
        ("float16", inside(), True, "no weights"),
        ("prune", BASE, True, "prune did nothing"),
        ("prune", inside(("float32", 0.5), ("float32", 0.5)), None, ""),
        ("prune", inside(("float32", 0.5), ("float32", 0.0)), False, "25.0%"),
        ("distil:student=x.keras", BASE, True, "nothing gets smaller"),
        ("distil:student=x.keras", inside(("float32", 0.0)), None, ""),
    ],
)
def test_each_step_is_held_against_its_promise(chain: str, found: Inside, idle: bool | None, word: str) -> None:
    remarks = evidence.judge(chains.parse(chain), BASE, found)
    if idle is None:
        assert remarks == []
    else:
        assert [(remark.idle, word in remark.text) for remark in remarks] == [(idle, True)]


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (389, 400), (1, 3)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    oracle = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert scoring.wilson(right, count) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert scoring.wilson(0, 0) == (0.0, 1.0)


def test_confusion_and_loss() -> None:
    assert evaluate.confusion([0, 1, 1, 9], [0, 1, 0, 1], 2) == [[1, 1], [0, 1]]
    good, bad = Scored(1, 1), Scored(1, 0)
    change, bound = scoring.change("accuracy", [good] * 90 + [bad] * 10, [good] * 100)
    assert change == pytest.approx(-0.1)
    assert -0.2 < bound < -0.1


# --- in a child -------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_model_is_measured_on_the_devices_runtime() -> None:
    found = evaluate.measure(FLOAT, digits(), reference=FLOAT, rounds=5)
    assert found.value == 0.9725
    assert found.interval[0] < 0.9725 < found.interval[1]
    assert 0 < found.p50_us <= found.p95_us
    assert found.latency_ratio is not None
    assert 0.3 < found.latency_ratio < 3.0
    assert 20 < found.peak_mb < 500
    assert found.inputs[0]["name"] == "scan"
    assert found.runtime.startswith("ai-edge-litert")


@pytest.mark.process
def test_an_int8_input_gets_the_samples_rounded() -> None:
    found = evaluate.measure(INT8, digits())
    assert found.value == 0.9725
    assert found.latency_ratio is None
    assert found.probabilities
    assert found.inputs[0]["dtype"] == "int8"


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "code"), [("digits-1.4.0.tflite", "crash"), ("hostile/nan_on_input.tflite", "not-finite")]
)
def test_a_model_that_fails_fails_alone(name: str, code: str) -> None:
    samples = digits()
    glare = Samples(
        (np.concatenate([samples.inputs[0], np.ones((1, 8, 8, 1), np.float32)]),), np.zeros(401, int), ("0",)
    )
    with pytest.raises(FailedError) as caught:
        evaluate.measure(DIGITS / "models" / name, glare)
    assert caught.value.code == code


@pytest.mark.process
def test_a_model_that_hangs_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(FailedError) as caught:
        evaluate.measure(FLOAT, digits(), time_limit=0.001)
    assert caught.value.code == "hang"
    (tmp_path / "bad.tflite").write_bytes(FLOAT.read_bytes()[:3000])
    with pytest.raises(FailedError) as caught:
        evaluate.measure(tmp_path / "bad.tflite", digits())
    assert caught.value.code == "unsupported"


# --- a whole build ----------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Collects tags and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]


def plan(tmp_path: Path, source: Path = FLOAT, **more: Any) -> plans.Plan:
    with np.load(DIGITS / "canary.npz") as archive:
        np.savez(tmp_path / "data.npz", input_0=archive["input_0"], labels=archive["labels"])
    document: dict[str, Any] = {
        "model": {"name": "digits", "source": str(source)},
        "data": {"source": str(tmp_path / "data.npz"), "shares": {"train": 0.1, "validation": 0.2, "canary": 0.7}},
        "variants": {},
        "evaluate": {"rounds": 3},
        **more,
    }
    return plans.make(document)


@pytest.mark.process
def test_a_tflite_file_is_measured_and_chosen_without_tensorflow(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int, str]] = []
    out = tmp_path / "out"
    made = pipeline.build(plan(tmp_path), out, command="as typed", told=lambda *said: heard.append(said))
    assert made.chosen is not None
    assert made.chosen.name == "float32"
    assert made.canary is not None
    assert made.card["metrics"]["canary"] == pytest.approx(made.canary.value, abs=1e-4)
    assert heard[-1][1] < heard[-1][2]
    report = json.loads((out / "report.json").read_text())
    assert report["chosen"] == "float32"
    assert report["command"] == "as typed"
    (row,) = report["variants"]
    assert row["pareto"]
    assert sum(map(sum, row["confusion"])) == len(made.parts.validation)
    page = Page()
    page.feed((out / "report.html").read_text())
    assert {"svg", "table", "circle"} <= set(page.tags)
    assert "script" not in page.tags
    assert page.fetched == []
    again = pipeline.build(plan(tmp_path), out)
    assert again.variants["float32"].reproduced == "the same bytes as the build before"


def test_a_source_or_data_that_do_not_fit_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for content in (FLOAT.read_bytes()[:3000], b"TFL3TFL3" + bytes(9)):
        (tmp_path / "cut.tflite").write_bytes(content)
        with pytest.raises(UsageError, match=r"cut\.tflite: found a damaged \.tflite file") as caught:
            pipeline.build(plan(tmp_path, tmp_path / "cut.tflite"), tmp_path / "out")
        assert caught.value.code == "source"
    made = plan(tmp_path)
    with np.load(tmp_path / "data.npz") as archive:
        flat = archive["input_0"].reshape(len(archive["labels"]), -1)
        np.savez(tmp_path / "flat.npz", input_0=flat, labels=archive["labels"])
    with pytest.raises(UsageError, match=r"flat\.npz.*takes .*\[1, 8, 8, 1\].* holds input_0 \[1, 64\]") as caught:
        pipeline.build(replace(made, data=str(tmp_path / "flat.npz")), tmp_path / "out")
    assert caught.value.code == "data"


@pytest.mark.process
def test_what_an_earlier_build_left_half_written_is_written_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipeline.build(plan(tmp_path), out)
    file = out / "variants" / "float32.tflite"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert pipeline.build(plan(tmp_path), out).variants["float32"].reproduced == ""
    assert file.read_bytes() == whole
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_more_than_ten_inputs_keep_their_order(tmp_path: Path) -> None:
    """What goes to the measuring child as files: by number, not by the letters of their names."""
    for index in range(12):
        np.save(tmp_path / f"input_{index}.npy", np.full((3, 1), index, np.float32))
    found = [float(array[0, 0]) for array in trial.inputs_of(tmp_path)]
    assert found == list(range(12))


@pytest.mark.process
def test_what_cannot_be_done_to_a_file_is_said(tmp_path: Path) -> None:
    wanted = {"pruned": "prune", "taught": "distil:student=x.keras", "aware": "qat"}
    made = pipeline.build(plan(tmp_path, variants=wanted), tmp_path / "out")
    for name in wanted:
        assert "cannot be trained any more" in made.variants[name].failure
    assert made.chosen is not None


@pytest.mark.process
@pytest.mark.parametrize(
    ("source", "parent", "word"),
    [
        ("digits-1.2.0.tflite", FLOAT, "worse than the parent"),
        ("digits-1.1.0.tflite", INT8, "bigger than the parent"),
        ("hostile/slow.tflite", FLOAT, "slower than the parent"),
    ],
)
def test_bigger_slower_or_worse_than_the_parent_is_refused(
    tmp_path: Path, source: str, parent: Path, word: str
) -> None:
    made = pipeline.build(plan(tmp_path, DIGITS / "models" / source, parent={"file": str(parent)}), tmp_path / "out")
    assert made.chosen is None
    assert any(word in reason for reason in made.variants["float32"].refusals)
    assert "No variant fits" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.process
def test_a_baseline_that_fails_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="baseline") as caught:
        pipeline.build(plan(tmp_path, DIGITS / "models" / "digits-1.4.0.tflite"), tmp_path / "out")
    assert caught.value.code == "baseline"


@pytest.mark.process
def test_build_as_it_is_typed(tmp_path: Path) -> None:
    plan(tmp_path)
    words = ["build", str(FLOAT), "--data", str(tmp_path / "data.npz"), "--variant", "float32=", "--name", "digits"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "chosen: float32" in result.stdout
    words += ["--parent", str(INT8), "--json"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert told["chosen"] is None
    # What a device fetches that runs the parent: as the publisher would make it.
    made = (tmp_path / "out" / "variants" / "float32.tflite").read_bytes()
    assert told["variants"][0]["delta"] == deltas.size(INT8.read_bytes(), made) < len(made)
    result = CliRunner().invoke(main, ["build", str(FLOAT), "--data", "x.npz", "--variant", "int8"])
    assert result.exit_code == 2


@pytest.mark.process
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(tmp_path: Path, terminal: bool) -> None:
    plan(tmp_path)
    words = [sys.executable, "-m", "modelagent", "build", str(FLOAT), "--data", str(tmp_path / "data.npz")]
    words += ["--variant", "float32=", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(DIGITS.parents[1] / "src"), "TERM": "xterm", "COLUMNS": "120"}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    try:
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    finally:
        os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # a terminal whose other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    assert child.wait(60) == 0
    text = said.decode()
    assert "measuring" in text
    assert ("\x1b[" in text) is terminal
    assert ("━" in text) is terminal
    assert ("[1/4] data: reading and dividing" in text.splitlines()) is not terminal
