"""Results in a SQLite file: bounded, indexed by id and frame, readable while it is written.

This file knows the table and how to keep it small. It does not know who reads it.

    sink = SqliteSink(Path("results.db"), max_bytes=64 << 20)
    sink.write([row, ...])                 # one transaction

WAL with synchronous=NORMAL: a power cut loses the last moments at worst and never the file (sqlite.org/wal.html). The
log beside the file is bounded too: while somebody reads for so long that it cannot be emptied, rows are refused. A file
that is damaged all the same is set aside as `results.db.damaged`, and a new one is begun: results are evidence,
not state.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from modelagent.inference.results import Row
from modelagent.inference.wal import check_room, open_wal

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, frame TEXT, wall REAL, model TEXT, digest TEXT, "
    "version TEXT, prediction INTEGER, label TEXT, confidence REAL, latency_us REAL, outcome TEXT, detail TEXT)"
)
# By name: a later version may have added columns, and this one be in use again.
_INSERT: Final = (
    f"INSERT OR IGNORE INTO results ({','.join(Row._fields)}) "  # noqa: S608 - constants
    f"VALUES ({','.join('?' * len(Row._fields))})"
)
_PAUSE: Final = 5.0  # seconds without trying after a failure: a dead disk must not be hammered
_TRIM: Final = 0.1  # share of the rows that goes when the file is full
_AGE_LOOK: Final = 60.0  # seconds between two looks for rows that are too old
_LOG: Final = 8 << 20  # bytes, or a quarter of `max_bytes`: a log that is longer is emptied before more is written
_BUSY: Final = 2.0  # seconds to wait for a reader that holds the file


class SqliteSink:
    """See ResultSink.

    Args:
        path: the database; its directory must exist.
        max_bytes: the used size at which the oldest tenth of the rows goes.
        max_age_s: seconds after which a row goes; 0: none goes for its age.
    """

    name = "sqlite"

    def __init__(self, path: Path, *, max_bytes: int, max_age_s: float = 0.0) -> None:
        self._path = path
        self._max = max_bytes
        self._max_age_s = max_age_s
        self._aged = 0.0
        self._connection: sqlite3.Connection | None = None
        self._not_before = 0.0

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows in one transaction; OSError if it could not be done."""
        if time.monotonic() < self._not_before:
            raise OSError(f"{self._path}: waiting after a failure")
        try:
            self._store(rows)
        except sqlite3.OperationalError as error:  # busy, full, unreadable: another time
            self._give_up()
            raise OSError(f"{self._path}: {error}; free space or correct permissions") from error
        except sqlite3.DatabaseError as error:  # damaged: begin a new file
            self._give_up()
            self._set_aside()
            try:
                self._not_before = 0.0
                self._store(rows)
            except sqlite3.Error as again:
                self._give_up()
                raise OSError(f"{self._path}: {error}, and a new one: {again}") from again

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _store(self, rows: Sequence[Row]) -> None:
        check_room(self._path)
        connection = self._connection or self._open()
        self._empty_log(connection)
        with connection:
            connection.executemany(_INSERT, [(*row[:-1], _text(row.detail)) for row in rows])
        used, size = self._pages(connection)
        if used * size > self._max:
            with connection:
                connection.execute(
                    "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results ORDER BY rowid LIMIT "
                    "(SELECT 1 + CAST(count(*) * ? AS INTEGER) FROM results))",
                    (_TRIM,),
                )

        if self._max_age_s and time.monotonic() >= self._aged:
            self._aged = time.monotonic() + _AGE_LOOK
            with connection:
                # Rows lie in the order of their coming: the first young one ends the search.
                connection.execute(
                    "DELETE FROM results WHERE rowid < coalesce((SELECT rowid FROM results WHERE wall >= ? "
                    "ORDER BY rowid LIMIT 1), (SELECT 1 + max(rowid) FROM results))",
                    (time.time() - self._max_age_s,),
                )

    def _open(self) -> sqlite3.Connection:
        connection = open_wal(self._path, _BUSY)
        try:
            connection.execute(f"PRAGMA journal_size_limit={min(self._max, 4 << 20)}")
            connection.execute("PRAGMA cache_size=-512")  # KiB: this process is to stay small
            with connection:
                connection.execute(_TABLE)
                columns = {column[1] for column in connection.execute("PRAGMA table_info(results)")}
                if "detail" not in columns:  # a file of an earlier version
                    connection.execute("ALTER TABLE results ADD COLUMN detail TEXT")
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        log = self._path.with_name(self._path.name + "-wal")
        most = max(_LOG, self._max // 4)
        if not log.exists() or log.stat().st_size <= most:
            return
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if log.stat().st_size > most:
            self._not_before = time.monotonic() + _PAUSE
            raise OSError(
                f"{log}: more than {most} bytes, because somebody has been reading {self._path.name} since; end it"
            )

    @staticmethod
    def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
        count = connection.execute("PRAGMA page_count").fetchone()[0]
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        return count - free, size

    def _give_up(self) -> None:
        self.close()
        self._not_before = time.monotonic() + _PAUSE

    def _set_aside(self) -> None:
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()
        with contextlib.suppress(OSError):
            self._path.replace(self._path.with_name(self._path.name + ".damaged"))


def _text(detail: dict[str, Any] | None) -> str | None:
    return None if detail is None else json.dumps(detail, separators=(",", ":"))
