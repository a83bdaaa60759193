"""Results as lines of JSON, in two files at most.

This file knows the line and when to begin a new file. It does not know who reads it.

    sink = JsonlSink(Path("results.jsonl"), max_bytes=64 << 20)

When the file reaches half of `max_bytes` it becomes `results.jsonl.1` and the previous one of that name goes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from modelagent.inference.results import Row


class JsonlSink:
    """See ResultSink. `path`: the file; `max_bytes`: of both files together."""

    name = "jsonl"

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._half = max(max_bytes // 2, 1)
        self._fd = -1
        self._size = 0

    def write(self, rows: Sequence[Row]) -> None:
        """Append one line per row, in one write."""
        data = b"".join(json.dumps(row._asdict(), separators=(",", ":")).encode() + b"\n" for row in rows)
        self._look_again()
        if self._fd >= 0 and self._size + len(data) > self._half:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size
            if self._size and not self._ends_whole():
                data = b"\n" + data  # a power cut tore the last line: the next one begins anew
        written = os.write(self._fd, data)
        if written != len(data):  # the disk is full: take the torn line back, all or none
            os.ftruncate(self._fd, self._size)
            raise OSError(f"{self._path}: {written} of {len(data)} bytes written; free space")
        self._size += written

    def _look_again(self) -> None:
        """Whoever moved or removed the file wants a new one."""
        if self._fd >= 0:
            try:
                same = os.path.samestat(self._path.stat(), os.fstat(self._fd))
            except FileNotFoundError:
                same = False
            if not same:
                self.close()

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
