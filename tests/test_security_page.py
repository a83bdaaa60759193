"""docs/security.md names tests, commands and refusals that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
DEFINED = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}
TABLE = PAGE.split("## Attacks, defences, tests")[1].split("\n## ")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and "`test_" in line]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_every_test_that_is_named_exists(name: str) -> None:
    assert name in DEFINED


def test_every_row_names_its_test() -> None:
    body = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| attack")]
    assert body == ROWS
    assert len(ROWS) >= 25


def test_every_refusal_that_is_listed_is_one() -> None:
    listed = re.findall(r"`([a-z-]+)`", TABLE.split("refused by these\nwords:")[1].split("\n\n")[0])
    assert len(listed) > 25
    for code in listed:
        assert f'"{code}"' in SOURCES, code
