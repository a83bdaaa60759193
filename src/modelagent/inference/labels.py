"""Reads the batches of labels that the updater spools.

This file knows the spool's format and which files have been read. It does not know results.

    spool = Spool(directory)              # what lies there already may have been read by an earlier run
    for name, label, right, again in spool.news(): ...

The files are the updater's, which removes them after a day; here they are only read.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_MAX_BYTES: Final = 4 << 20  # 5000 labels of 128 characters are well below it
_MAX_FILES: Final = 50  # taken up at once; the rest a second later

# id of the result, true class, whether the prediction was right, whether an earlier run may have read it
Label = tuple[str, int | None, bool | None, bool]


class Spool:
    """One model's spool. Used by one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._old = self._present()
        self._read: set[str] = set()

    def news(self) -> Iterator[Label]:
        """The labels of files that have appeared since; bad files are passed over, and said once."""
        present = self._present()
        self._read &= present
        for name in sorted(present - self._read)[:_MAX_FILES]:
            self._read.add(name)
            for label in self._labels(self._directory / name):
                yield (*label, name in self._old)

    def _present(self) -> set[str]:
        try:
            return {
                path.name
                for path in self._directory.iterdir()
                if path.suffix == ".json" and not path.name.startswith(".")
            }
        except OSError:
            return set()

    @staticmethod
    def _labels(path: Path) -> list[tuple[str, int | None, bool | None]]:
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            if document["schema"] != 1:
                raise ValueError(f"schema {document['schema']!r}")
            return [
                (
                    str(entry["id"]),
                    int(entry["label"]) if "label" in entry else None,
                    None if "label" in entry else bool(entry["right"]),
                )
                for entry in document["labels"]
            ]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            _log.warning("labels %s: passed over: %s", path, error)
            return []
