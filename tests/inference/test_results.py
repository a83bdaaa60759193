"""Sinks: bounded, whole, and never in the way."""

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from modelagent.inference import wal
from modelagent.inference.results import Outlet, Row, sqlite
from modelagent.inference.results.jsonl import JsonlSink
from modelagent.inference.results.sqlite import SqliteSink


def rows(count: int, first: int = 0) -> list[Row]:
    return [
        Row(f"e-{i}", f"f-{i}", 1.5, "m", "d" * 64, "1.0", 7, "seven", 0.5, 12.0, "ok")
        for i in range(first, first + count)
    ]


def stored(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT id FROM results ORDER BY rowid")]


def test_sqlite_keeps_rows_and_ignores_a_repetition(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path / "r.db", max_bytes=1 << 20)
    sink.write(rows(5))
    sink.write(rows(5, first=3))
    assert stored(tmp_path / "r.db") == [f"e-{i}" for i in range(8)]
    with closing(sqlite3.connect(tmp_path / "r.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT * FROM results").fetchone() == tuple(rows(1)[0])
    sink.close()


def test_sqlite_stays_within_its_size_and_loses_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    limit = 200_000
    sink = SqliteSink(path, max_bytes=limit)
    for turn in range(60):
        sink.write(rows(100, first=turn * 100))
        assert path.stat().st_size < limit * 1.3
    names = stored(path)
    sink.close()
    assert names[-1] == "e-5999"
    assert names == [f"e-{i}" for i in range(6000 - len(names), 6000)]
    assert len(names) > 300


def test_a_database_of_a_later_version_takes_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    sink = SqliteSink(path, max_bytes=1 << 20)
    sink.write(rows(1))
    sink.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE results ADD COLUMN colour TEXT")
    sink.write(rows(1, first=1))
    sink.close()
    assert stored(path) == ["e-0", "e-1"]


def test_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"this is no database" * 100)
    sink = SqliteSink(path, max_bytes=1 << 20)
    sink.write(rows(3))
    sink.close()
    assert stored(path) == ["e-0", "e-1", "e-2"]
    assert (tmp_path / "r.db.damaged").read_bytes().startswith(b"this is no database")


def test_a_database_that_cannot_be_written_is_an_oserror_and_is_not_hammered(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path / "absent" / "r.db", max_bytes=1 << 20)
    with pytest.raises(OSError, match="unable to open"):
        sink.write(rows(1))
    with pytest.raises(OSError, match="waiting"):
        sink.write(rows(1))


def test_a_database_on_a_full_disk_refuses_and_does_not_touch_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.db"
    sink = SqliteSink(path, max_bytes=1 << 20)
    sink.write(rows(2))
    index = tmp_path / "r.db-shm"
    assert index.stat().st_blocks * 512 >= index.stat().st_size > 0  # no hole, into which a mapping would write
    monkeypatch.setattr(wal, "ROOM", 1 << 62)
    with pytest.raises(OSError, match=r"no space: .* free space"):
        sink.write(rows(1, first=2))
    monkeypatch.undo()
    monkeypatch.setattr(sqlite, "_PAUSE", 0.0)
    sink = SqliteSink(path, max_bytes=1 << 20)
    sink.write(rows(1, first=2))
    sink.close()
    assert stored(path) == ["e-0", "e-1", "e-2"]


def test_json_lines_keep_two_files_at_most(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = JsonlSink(path, max_bytes=20_000)
    for turn in range(30):
        sink.write(rows(10, first=turn * 10))
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.1"]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 20_000
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1] == rows(1, first=299)[0]._asdict()
    again = JsonlSink(path, max_bytes=20_000)
    again.write(rows(1, first=300))
    again.close()
    assert json.loads(path.read_text().splitlines()[-1])["id"] == "e-300"


def test_somebody_who_reads_for_long_makes_sqlite_refuse_rows_and_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOG", 1 << 20)
    monkeypatch.setattr(sqlite, "_BUSY", 0.01)
    monkeypatch.setattr(sqlite, "_PAUSE", 0.0)
    path = tmp_path / "r.db"
    sink = SqliteSink(path, max_bytes=400_000)
    sink.write(rows(1))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM results").fetchone()
        refused = 0
        for turn in range(40):
            try:
                sink.write(rows(500, first=turn * 500 + 1))
            except OSError:
                refused += 1
        assert refused > 10
        with pytest.raises(OSError, match="reading"):
            sink.write(rows(1, first=40_000))
        assert (tmp_path / "r.db-wal").stat().st_size < 2 << 20
    sink.write(rows(5, first=50_000))
    assert stored(path)[-1] == "e-50004"
    sink.close()


def test_a_torn_line_costs_no_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = JsonlSink(path, max_bytes=20_000)
    sink.write(rows(1))
    sink.close()
    with path.open("a") as file:
        file.write('{"id": "e-1", "fra')
    sink = JsonlSink(path, max_bytes=20_000)
    sink.write(rows(2, first=2))
    sink.close()
    first, torn, *rest = path.read_text().splitlines()
    assert json.loads(first)["id"] == "e-0"
    assert torn == '{"id": "e-1", "fra'
    assert [json.loads(line)["id"] for line in rest] == ["e-2", "e-3"]


def test_lines_go_on_in_a_new_file_when_somebody_takes_the_old_one_away(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = JsonlSink(path, max_bytes=1 << 20)
    sink.write(rows(1))
    path.rename(tmp_path / "kept")
    sink.write(rows(1, first=1))
    path.unlink()
    sink.write(rows(1, first=2))
    sink.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["e-2"]
    assert (tmp_path / "kept").read_text().count("\n") == 1


class Slow:
    """A sink that stands still until it is let go, and then fails or works."""

    name = "slow"

    def __init__(self, *, fails: bool = False) -> None:
        self.go = threading.Event()
        self.began = threading.Event()
        self.rows: list[Row] = []
        self.fails = fails

    def write(self, rows: Sequence[Row]) -> None:
        self.began.set()
        assert self.go.wait(10.0)
        if self.fails:
            raise OSError("the disk is gone")
        self.rows.extend(rows)

    def close(self) -> None:
        return


def test_a_slow_sink_never_holds_the_loop_and_its_losses_are_counted() -> None:
    sink = Slow()
    outlet = Outlet(sink, capacity=10)
    for row in rows(10):
        outlet.put(row)
    assert sink.began.wait(5.0)
    for row in rows(7, first=10):
        outlet.put(row)
    assert outlet.lost == 7
    sink.go.set()
    outlet.close(5.0)
    assert [row.id for row in sink.rows] == [f"e-{i}" for i in range(10)]
    assert outlet.written == 10


def test_a_row_that_no_sink_can_write_does_not_end_the_sink(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outlet = Outlet(SqliteSink(tmp_path / "r.db", max_bytes=1 << 20))
    outlet.put(rows(1)[0]._replace(label="half a character: \udc80"))
    deadline = time.monotonic() + 10.0
    while not outlet.lost:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    outlet.put(rows(1, first=1)[0])
    outlet.close(5.0)
    assert (outlet.lost, outlet.written) == (1, 1)
    assert "UnicodeEncodeError" in caplog.text
    assert stored(tmp_path / "r.db") == ["e-1"]


def test_a_broken_sink_costs_its_rows_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    sink = Slow(fails=True)
    sink.go.set()
    outlet = Outlet(sink)
    for row in rows(5):
        outlet.put(row)
    outlet.close(5.0)
    assert (outlet.lost, outlet.written) == (5, 0)
    assert "the disk is gone" in caplog.text
