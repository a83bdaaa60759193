"""What the torture campaign counted. `make torture` runs for about an hour; these figures read what it wrote.

This file knows build/torture.json. The campaign is tests/torture; docs/reliability.md says what it does.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.measure import Figure, Group, Measured, NotHereError

_ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.append(str(_ROOT / "tests"))

from torture.report import totals  # noqa: E402 - the line above makes it importable

_FIGURES: Final = (
    Figure("torture.cycles", "chapters", ">= 1000"),
    Figure("torture.failures", "", "<= 0"),
    Figure("cuts.total", "cuts", ">= 500"),
    Figure("cuts.failures", "", "<= 0"),
    Figure("points.covered_ratio", "", ">= 1.0"),
)


def _read(folder: Path) -> Mapping[str, Measured]:
    path = folder.parent / "torture.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotHereError("the campaign was not run here; run `make torture` first (about an hour, root)") from error
    age = (time.time() - path.stat().st_mtime) / 3600
    how = f"counted by `make torture` {age:.1f} h ago: {', '.join(results)}"
    return {name: Measured(value, how) for name, value in totals(results).items()}


GROUPS: Final = (Group(_FIGURES, _read),)
