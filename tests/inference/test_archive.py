"""Labels find results of earlier runs, once."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from line_rig import Rig
from modelagent.inference.archive import Archive
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame
from modelagent.inference.records import Records
from modelagent.inference.results import Row
from modelagent.inference.results.sqlite import SqliteSink

A, B = "a" * 64, "b" * 64


def row(name: str, *, digest: str = A, prediction: int | None = 7, wall: float | None = None, how: str = "ok") -> Row:
    when = time.time() if wall is None else wall
    return Row(name, "f", when, "digits", digest, "1", prediction, str(prediction), 0.9, 5.0, how)


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    sink = SqliteSink(tmp_path / "results.db", max_bytes=1 << 20)
    old = time.time() - 8 * 86400
    sink.write([row("e-1"), row("e-2", digest=B), row("e-3", wall=old), row("e-4", how="dropped")])
    sink.close()
    one = Archive(tmp_path / "results.db", tmp_path / "labels.db", horizon=7 * 86400.0)
    yield one
    one.close()


def records(archive: Archive | None) -> Records:
    return Records("digits", "now", [], recent=4, horizon=7 * 86400.0, archive=archive)


def test_an_earlier_result_is_joined_for_the_version_that_made_it(archive: Archive) -> None:
    made = records(archive)
    assert made.label("e-1", label=7, right=None, running=B) is True
    assert made.label("e-2", label=8, right=None, running=A) is False
    assert made.tally.of(A).labels["right"] == 1
    assert made.tally.of(B).labels["wrong"] == 1
    assert made.tally.of(A).samples["right"] == 1


def test_repetitions_late_ones_and_unknown_ones_are_told_apart(archive: Archive) -> None:
    made = records(archive)
    assert made.label("e-1", label=None, right=True, running=B) is True
    for name in ("e-1", "e-3", "e-4", "e-99", "now-5", "nonsense"):
        assert made.label(name, label=7, right=None, running=B) is None
    assert made.tally.of(A).labels == {"right": 1, "wrong": 0, "unknown": 0, "late": 1, "duplicate": 1}
    assert made.tally.of(B).labels == {"right": 0, "wrong": 0, "unknown": 2, "late": 2, "duplicate": 0}


def test_marks_outlive_the_run_and_reading_again_is_no_repetition(archive: Archive, tmp_path: Path) -> None:
    assert records(archive).label("e-1", label=7, right=None, running=A) is True
    archive.close()
    again = Archive(tmp_path / "results.db", tmp_path / "labels.db", horizon=7 * 86400.0)
    made = records(again)
    assert made.label("e-1", label=7, right=None, running=A, again=True) is None
    assert sum(made.tally.of(A).labels.values()) == 0
    assert made.label("e-1", label=7, right=None, running=A) is None
    assert made.tally.of(A).labels["duplicate"] == 1
    again.close()


def test_a_result_that_memory_has_forgotten_is_found_in_the_file(archive: Archive, tmp_path: Path) -> None:
    made = records(archive)
    frame = Frame("f", (), time.time(), time.monotonic())
    names = [made.done(frame, A, "1", Decision(3, "3", 0.9), 1.0) for _ in range(6)]
    sink = SqliteSink(tmp_path / "results.db", max_bytes=1 << 20)
    sink.write([row(names[0], prediction=3)])
    sink.close()
    assert made.label(names[0], label=3, right=None, running=A) is True
    assert made.label(names[5], label=4, right=None, running=A) is False
    assert made.label(names[5], label=4, right=None, running=A) is None
    assert made.tally.of(A).labels["duplicate"] == 1


def test_without_files_labels_cost_nothing_but_themselves(tmp_path: Path) -> None:
    lost = Archive(tmp_path / "no" / "results.db", tmp_path / "no" / "labels.db", horizon=1.0)
    assert lost.find("e-1") is None
    assert lost.mark("e-1")
    assert not lost.mark("e-1")
    lost.close()
    (tmp_path / "bad.db").write_bytes(b"no database" * 100)
    bad = Archive(tmp_path / "bad.db", tmp_path / "bad.db", horizon=1.0)
    assert bad.find("e-1") is None
    assert bad.mark("e-1")
    bad.close()


def test_old_marks_are_forgotten(tmp_path: Path) -> None:
    one = Archive(tmp_path / "r.db", tmp_path / "labels.db", horizon=10.0)
    one.mark("e-1")
    one.flush()
    with sqlite3.connect(tmp_path / "labels.db") as connection:
        connection.execute("UPDATE labels SET wall = 5")
    connection.close()
    one._forget_at = 0.0
    one.flush()
    assert one.mark("e-1")
    one.close()


@pytest.mark.process
def test_labels_that_come_after_a_restart_still_count(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans()[:20])
        rig.start(fps=200.0, loop=False)
        rig.wait(lambda: rig.total("done") == 20)
        assert rig.stop() == 0
        names = [row["id"] for row in rig.rows()]
        rig.label([{"id": name, "right": True} for name in names[:5]])  # while nobody reads
        rig.start(fps=0.001)
        rig.wait(lambda: rig.counts(only).get("labels", {}).get("right") == 5, 60.0)
        rig.label([{"id": name, "right": False} for name in names[4:8]])
        rig.wait(lambda: rig.counts(only)["labels"]["wrong"] == 3, 60.0)
        assert rig.counts(only)["labels"]["duplicate"] == 1
        assert rig.stop() == 0
        rig.start(fps=0.001)  # the same files lie there still
        rig.label([{"id": names[9], "right": True}])
        rig.wait(lambda: rig.counts(only).get("labels", {}).get("right") == 1, 60.0)
        assert rig.counts(only)["labels"] == {"right": 1, "wrong": 0, "unknown": 0, "late": 0, "duplicate": 0}
