"""What the device keeps for itself in small files: whatever a dying card makes of them, no process ends of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modelagent.core.clock import Trust
from modelagent.core.events import Instant
from modelagent.inference.starts import Starts
from modelagent.sources.allowance import Allowance
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.clock import FloorClock
from modelagent.updater.memory import Remembered
from modelagent.updater.steady import Steady

DAY_BYTES = 1000
GIANT = "9" * 400  # JSON knows no limit to a number, float() does
WITHOUT_MEASURE = (
    '{"schema": 1, "spent": 1e999, "passed": 0, "wall": 0, "mono": 0, "boot_id": "", "digest": "d", "left": null, '
    f'"consecutive_starts_without_progress": 1e999, "aside": {{"a": [{GIANT}, "x"]}}, '
    f'"signed": {{"root": [{GIANT}, []]}}, "memory": {{"k": ["open", [{GIANT}, 0, "b"], 1]}}}}'
)


def budget(path: Path) -> object:
    """A day whose account cannot be read counts as spent: a torn file must not be a way around the limit."""
    allowance = Allowance(path, per_day=DAY_BYTES, clock=lambda: Instant(1e9, 1.0, "boot"))
    return allowance.left()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"[]", b"null", b'"x"', b"[" * 100_000, b'{"schema": 1', WITHOUT_MEASURE.encode()],
    ids=["empty", "zeros", "list", "null", "text", "brackets", "torn", "giant"],
)
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (budget, 0),
        (lambda path: Mirrors([], path).in_turn(), []),
        (lambda path: FloorClock(path, Trust.SIGNED_FLOOR, lambda: 0.0, built=1e9).last.now, 1e9),
        (lambda path: Remembered(path).load(), {}),
        (lambda path: Steady(path).hiccups("digest"), (0, 0)),
        (lambda path: Starts(path).left, None),
    ],
    ids=["allowance", "mirrors", "clock", "policies", "charts", "starts"],
)
def test_what_cannot_be_read_begins_anew(
    tmp_path: Path, read: Callable[[Path], object], expected: object, content: bytes
) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    assert read(path) == expected
