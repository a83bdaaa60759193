"""Labels: bounded, whole on disk, and gone after a day."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from crash_points import hooked
from modelagent.errors import DeviceError, UsageError
from modelagent.inputs import labels
from modelagent.inputs.labels import MAX_LABELS, Label, collect, parse_labels, spool, sweep

NOW_NS = 1_700_000_000 * 10**9
DAY_NS = 86_400 * 10**9
GOOD: list[dict[str, Any]] = [{"id": "9f2c-1", "label": 7}, {"id": "9f2c-2", "right": False}]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "a list of 1 to"),
        ([], "a list of 1 to"),
        ([{"id": "x", "label": 1}] * (MAX_LABELS + 1), "a list of 1 to"),
        ([1], "labels[0]"),
        ([{"id": "x"}], "labels[0]"),
        ([{"id": "x", "label": 1, "right": True}], "either label or right"),
        ([*GOOD, {"id": "", "label": 1}], "labels[2].id"),
        ([{"id": "a b", "label": 1}], "labels[0].id"),
        ([{"id": "x" * 129, "label": 1}], "labels[0].id"),
        ([{"id": "x", "label": True}], "labels[0].label"),
        ([{"id": "x", "label": -1}], "labels[0].label"),
        ([{"id": "x", "label": 2**40}], "labels[0].label"),
        ([{"id": "x", "label": "7"}], "labels[0].label"),
        ([{"id": "x", "right": 1}], "labels[0].right"),
    ],
)
def test_bad_labels_are_refused_by_place(value: object, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_labels(value)
    assert words in refused.value.message


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_batch_is_spooled_in_the_agreed_format(tmp_path: Path) -> None:
    first = spool(tmp_path / "digits", parse_labels(GOOD), wall_ns=NOW_NS)
    second = spool(tmp_path / "digits", (Label("x", 1),), wall_ns=NOW_NS)
    assert (first.name, second.name) == (f"{NOW_NS}-0.json", f"{NOW_NS}-1.json")
    assert json.loads(first.read_bytes()) == {"schema": 1, "labels": GOOD}
    assert len(names(tmp_path / "digits")) == 2


def test_a_full_spool_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_FILES", 2)
    for n in range(2):
        spool(tmp_path, (Label("x", 1),), wall_ns=NOW_NS + n)
    with pytest.raises(DeviceError, match="2 batches wait already"):
        spool(tmp_path, (Label("x", 1),), wall_ns=NOW_NS + 9)


def test_a_spool_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("a file in the way")
    with pytest.raises(DeviceError, match="labels were not kept"):
        spool(tmp_path / "digits", (Label("x", 1),), wall_ns=NOW_NS)


def test_old_and_future_batches_go(tmp_path: Path) -> None:
    for wall_ns in (NOW_NS - DAY_NS - 1, NOW_NS - DAY_NS + 1, NOW_NS, NOW_NS + DAY_NS + 1):
        spool(tmp_path, (Label("x", 1),), wall_ns=wall_ns)
    (tmp_path / "notes.json").write_text("not ours")
    assert sweep(tmp_path, wall_ns=NOW_NS) == 2
    assert names(tmp_path) == [f"{NOW_NS - DAY_NS + 1}-0.json", f"{NOW_NS}-0.json", "notes.json"]
    assert sweep(tmp_path / "missing", wall_ns=NOW_NS) == 0


def test_a_batch_that_cannot_be_removed_stays_for_the_next_time(tmp_path: Path) -> None:
    spool(tmp_path, (Label("x", 1),), wall_ns=1)

    def read_only(operation: str, path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    with hooked(read_only):
        assert sweep(tmp_path, wall_ns=NOW_NS) == 0
    assert sweep(tmp_path, wall_ns=NOW_NS) == 1


def drop(directory: Path, name: str, content: bytes, *, age_s: float = 60.0) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_bytes(content)
    moment = NOW_NS - int(age_s * 1e9)
    os.utime(path, ns=(moment, moment))
    return path


def test_dropped_files_are_taken(tmp_path: Path) -> None:
    drop(tmp_path / "drop", "a.json", json.dumps(GOOD).encode())
    drop(tmp_path / "drop", "b.json", json.dumps({"labels": GOOD[:1]}).encode())
    drop(tmp_path / "drop", ".c.json", b"hidden")
    assert collect(tmp_path / "drop", tmp_path / "digits", wall_ns=NOW_NS) == (3, ())
    assert names(tmp_path / "drop") == [".c.json"]
    assert len(names(tmp_path / "digits")) == 2


def test_a_dropped_file_that_cannot_be_removed_is_refused_and_not_taken_at_every_look(tmp_path: Path) -> None:
    file = drop(tmp_path / "drop", "a.json", json.dumps(GOOD).encode())

    def forbidden(operation: str, path: str) -> None:
        if operation == "unlink" and path == str(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with hooked(forbidden):
        taken, refusals = collect(tmp_path / "drop", tmp_path / "spool", wall_ns=NOW_NS)
    assert (taken, names(tmp_path / "spool")) == (0, [])
    assert len(refusals) == 1
    assert "let the updater's user write in" in refusals[0]
    assert collect(tmp_path / "drop", tmp_path / "spool", wall_ns=NOW_NS)[0] == len(GOOD)


def test_a_bad_dropped_file_is_put_aside_once_it_has_settled(tmp_path: Path) -> None:
    drop(tmp_path / "drop", "a.json", b'[{"id":', age_s=1)
    assert collect(tmp_path / "drop", tmp_path / "digits", wall_ns=NOW_NS) == (0, ())
    taken, refusals = collect(tmp_path / "drop", tmp_path / "digits", wall_ns=NOW_NS + 60 * 10**9)
    assert taken == 0
    assert "a.json.bad" in refusals[0]
    assert names(tmp_path / "drop") == ["a.json.bad"]


def test_links_pipes_and_giants_in_the_drop_are_put_aside(tmp_path: Path) -> None:
    outside = drop(tmp_path, "outside.json", json.dumps(GOOD).encode())
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "link.json").symlink_to(outside)
    os.mkfifo(tmp_path / "drop" / "pipe.json")
    drop(tmp_path / "drop", "giant.json", b" " * (labels.MAX_BYTES + 1))
    taken, refusals = collect(tmp_path / "drop", tmp_path / "digits", wall_ns=NOW_NS + 10**18)
    assert (taken, len(refusals)) == (0, 3)
    assert outside.exists()


def test_no_drop_directory_is_fine(tmp_path: Path) -> None:
    assert collect(tmp_path / "missing", tmp_path / "digits", wall_ns=NOW_NS) == (0, ())
