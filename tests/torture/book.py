"""What a stage of the campaign has done so far, on disk: it may stop after some minutes and go on where it stopped.

    book = Book(Path("build/torture/kill.jsonl"), {"commit": "ef9b301", "seed": 1})
    book.plan(["update: swap|models/digits/current|Activating|1|kill|free", ...])    # those that are new are added
    for key in book.left(): ...; book.note(Done(key, fired=True, problems=[]))         # from any process
    book.done()

The first line says what the counts are from; another head (a later commit, another seed) begins a new book. Lines
are appended whole, so that several processes may write. A plan is in the book once it was seen: points that only a
later enumeration shows make the number of points larger, never smaller.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

_NEVER: Final = "not reached in any try"


class Done(NamedTuple):
    """What came of one plan."""

    key: str
    fired: bool
    problems: list[str]
    seconds: float = 0.0
    ends: tuple[str, ...] = ()


class Book:
    """The plans of one stage and what came of them."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._lines()
        if not lines or lines[0] != {"head": dict(head)}:
            path.write_text(json.dumps({"head": dict(head)}) + "\n")

    def plan(self, keys: Iterable[str]) -> None:
        """Add the plans that are not in it yet."""
        known = set(self.planned())
        self._append(*({"plan": key} for key in keys if key not in known))

    def note(self, done: Done) -> None:
        """Write down what came of one plan."""
        self._append({"done": done._asdict()})

    def planned(self) -> list[str]:
        """All plans, in order."""
        return [line["plan"] for line in self._lines() if "plan" in line]

    def done(self) -> list[Done]:
        """What came of those that were lived; the last time counts."""
        found = {}
        for line in self._lines():
            if "done" in line:
                entry = line["done"]
                found[entry["key"]] = Done(**{**entry, "ends": tuple(entry["ends"])})
        return list(found.values())

    def left(self) -> list[str]:
        """Plans that were not lived yet, or whose point did not come: the same call again tries it again."""
        lived = {done.key for done in self.done() if done.fired or done.problems}
        return [key for key in self.planned() if key not in lived]

    def problems(self) -> list[str]:
        """What failed, and what was never reached, as sentences."""
        told = [f"{done.key}: {'; '.join(done.problems)}" for done in self.done() if done.problems]
        return told + [f"{done.key}: {_NEVER}" for done in self.done() if not done.fired and not done.problems]

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def _append(self, *documents: Mapping[str, Any]) -> None:
        if documents:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, "".join(json.dumps(document) + "\n" for document in documents).encode())
            finally:
                os.close(fd)
