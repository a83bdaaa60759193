"""SQLite's write-ahead log on a full disk: refused in time, where SQLite itself dies.

This file knows that SQLite writes the log's index (`-shm`) through a mapping, and allocates it by one byte for each
page of memory (sqlite.org/walformat.html, section 2). Where blocks are smaller than pages (ext4 below 512 MB,
compressed flash) most of such a page is a hole still, and on a full disk writing into it is SIGBUS: the process dies,
and dies again at each start. It does not know what the database holds.

    connection = open_wal(Path("results.db"), 2.0)       # sqlite3.OperationalError without room
    check_room(Path("results.db"))                       # before each write: the same
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

ROOM: Final = 256 << 10  # bytes that must be free: the index, and what others write meanwhile


def check_room(path: Path) -> None:
    """Raise sqlite3.OperationalError when the database's file system is as good as full."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return  # the database's own words say it better
    if found.f_blocks and found.f_bavail * found.f_frsize < ROOM:
        raise sqlite3.OperationalError(f"no space: {found.f_bavail * found.f_frsize} bytes are free, {ROOM} are needed")


def open_wal(path: Path, busy: float) -> sqlite3.Connection:
    """Open a database with a write-ahead log whose index has no holes; sqlite3.Error when that cannot be.

    Args:
        path: the database; made if it is missing.
        busy: seconds to wait for others.
    """
    check_room(path)
    connection = sqlite3.connect(path, timeout=busy)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # maps the index
        _fill_index(path.with_name(path.name + "-shm"))
    except (sqlite3.Error, OSError) as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise
        raise sqlite3.OperationalError(f"no space for its index: {error.strerror}") from error
    return connection


def _fill_index(index: Path) -> None:
    """Allocate every block of it, through SQLite's own descriptor: to close another one would drop SQLite's locks."""
    whole = index.resolve()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if entry.readlink() == whole:
                os.posix_fallocate(int(entry.name), 0, whole.stat().st_size)
                return
        except FileNotFoundError:
            continue  # closed meanwhile, by another thread
