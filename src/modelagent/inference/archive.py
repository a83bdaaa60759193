"""What labels are joined to after a restart: earlier results, which have a label already, and what both versions said.

This file knows results.db as a reader, and labels.db, which it alone writes. It does not know what a label proves.

    archive = Archive(keep_dir / "results.db", keep_dir / "labels.db", horizon=7 * 86400.0)
    archive.find("9f2c-17")               # Earlier(digest, prediction, wall), or None: nobody knows it any more
    archive.mark("9f2c-17")               # True; False when it was marked before, in this run or an earlier one
    archive.keep(shadow.fresh())          # what running version and shadow said of the same frames
    archive.pair("9f2c-17")               # Pair(...), or None
    archive.flush()                       # once per batch

A database that cannot be read or written costs labels, never frames: `find` gives None, marks stay in memory. Pairs are
bounded by number and by the horizon: the oldest go first.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from modelagent.durable import LinkId
from modelagent.inference.wal import check_room, open_wal

_log = logging.getLogger(__name__)

_BUSY: Final = 0.2  # seconds to wait for the sink: the main thread has other things to do
_MEMORY: Final = 100_000  # marks kept when there is no file for them
_FORGET: Final = 3600.0  # seconds between two looks for marks that are older than any label may be
_PAIRS: Final = 20_000  # kept: some 4 MB
_TRIM: Final = 1_000  # pairs written between two looks for the oldest
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS labels (id TEXT PRIMARY KEY, wall REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pairs (number INTEGER PRIMARY KEY, id TEXT UNIQUE, wall REAL, inode INTEGER,
    mtime_ns INTEGER, digest TEXT, shadow TEXT, new INTEGER, old INTEGER);
"""


class Pair(NamedTuple):
    """What two versions said of one frame, whose label has not come yet. `wall`: Unix seconds.

    `link` is the activation of `digest`, which said `new` and whose result has the id `name`; `shadow` said `old`.
    """

    name: str
    wall: float
    link: LinkId
    digest: str
    shadow: str
    new: int
    old: int


class Earlier(NamedTuple):
    """A result of an earlier run, or of this one but no longer in memory. `wall`: Unix seconds."""

    digest: str
    prediction: int | None
    wall: float


class Archive:
    """See the head of the file. Used by one thread.

    Args:
        results: the sink's database; it may be missing.
        labels: ours.
        horizon: seconds after which a label is late.
    """

    def __init__(self, results: Path, labels: Path, *, horizon: float) -> None:
        self._results = results
        self._labels = labels
        self._horizon = horizon
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._marked: dict[str, None] = {}  # in memory, where there is no file
        self._forget_at = 0.0
        self._untrimmed = 0
        self._said = False

    def find(self, name: str) -> Earlier | None:
        """The result of that id that has a decision."""
        return self._result(name) or self._said_in_pair(name)

    def _result(self, name: str) -> Earlier | None:
        try:
            if self._reader is None:
                if not self._results.exists():
                    return None
                check_room(self._results)
                self._reader = sqlite3.connect(f"file:{self._results}?mode=ro", uri=True, timeout=_BUSY)
            row = self._reader.execute(
                "SELECT digest, prediction, wall FROM results WHERE id = ? AND outcome = 'ok'", (name,)
            ).fetchone()
        except sqlite3.Error as error:
            self._complain(error)
            self._drop_reader()
            return None
        return None if row is None else Earlier(str(row[0]), row[1], float(row[2]))

    def _said_in_pair(self, name: str) -> Earlier | None:
        """Results may be kept for a shorter time than pairs, or not at all."""
        pair = self.pair(name)
        return None if pair is None else Earlier(pair.digest, pair.new, pair.wall)

    def pair(self, name: str) -> Pair | None:
        """What running version and shadow said of the frame with that result."""
        try:
            if self._writer is None and not self._labels.exists():
                return None
            row = (
                (self._writer or self._open())
                .execute(
                    "SELECT wall, inode, mtime_ns, digest, shadow, new, old FROM pairs WHERE id = ? AND wall >= ?",
                    (name, time.time() - self._horizon),
                )
                .fetchone()
            )
        except sqlite3.Error as error:
            self._complain(error)
            self._drop_writer()
            return None
        if row is None:
            return None
        wall, inode, mtime_ns, digest, shadow, new, old = row
        return Pair(name, float(wall), LinkId(inode, mtime_ns), str(digest), str(shadow), int(new), int(old))

    def keep(self, pairs: Sequence[Pair]) -> None:
        """Keep these for labels that come after a restart; durable with the next `flush`."""
        if not pairs:
            return
        rows = [(p.name, p.wall, *p.link, p.digest, p.shadow, p.new, p.old) for p in pairs]
        try:
            check_room(self._labels)
            writer = self._writer or self._open()
            writer.executemany(
                "INSERT OR IGNORE INTO pairs (id, wall, inode, mtime_ns, digest, shadow, new, old) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._untrimmed += len(rows)
            if self._untrimmed >= _TRIM:
                self._untrimmed = 0
                writer.execute("DELETE FROM pairs WHERE number <= (SELECT max(number) FROM pairs) - ?", (_PAIRS,))
        except sqlite3.Error as error:
            self._complain(error)
            self._drop_writer()

    def mark(self, name: str) -> bool:
        """Remember that this result has a label; False when it had one."""
        if name in self._marked:
            return False
        try:
            check_room(self._labels)
            writer = self._writer or self._open()
            return writer.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (name, time.time())).rowcount == 1
        except sqlite3.Error as error:
            self._complain(error)
            self._drop_writer()
            self._marked[name] = None
            if len(self._marked) > _MEMORY:
                del self._marked[next(iter(self._marked))]
            return True

    def flush(self) -> None:
        """Make the marks durable, and forget those that no label may be a repetition of."""
        if self._writer is None:
            return
        try:
            if time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + _FORGET
                self._writer.execute("DELETE FROM labels WHERE wall < ?", (time.time() - self._horizon - 86400.0,))
                self._writer.execute("DELETE FROM pairs WHERE wall < ?", (time.time() - self._horizon,))
            self._writer.commit()
        except sqlite3.Error as error:
            self._complain(error)
            self._drop_writer()

    def close(self) -> None:
        """Close both; harmless twice."""
        self.flush()
        self._drop_reader()
        self._drop_writer()

    def _open(self) -> sqlite3.Connection:
        connection = open_wal(self._labels, _BUSY)
        try:
            connection.executescript(_TABLES)
            connection.commit()
        except sqlite3.Error:
            connection.close()
            raise
        self._writer = connection
        return connection

    def _drop_reader(self) -> None:
        if self._reader is not None:
            with contextlib.suppress(sqlite3.Error):
                self._reader.close()
            self._reader = None

    def _drop_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
            self._writer = None

    def _complain(self, error: sqlite3.Error) -> None:
        if not self._said:
            self._said = True
            _log.warning("labels: %s: %s; some labels will not be joined to earlier results", self._labels, error)
