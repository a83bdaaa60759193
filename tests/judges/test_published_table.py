"""The chances that docs/judging.md publishes are those of the shipped rule: every outcome summed, none drawn."""

import re
from pathlib import Path

import pytest
from benchmarks.figures.judges import rule

PAGE = Path(__file__).parents[2] / "docs" / "judging.md"
ROW = re.compile(r"\| (\d+) \| (\d+) % \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|")
ROWS = [tuple(float(text) for text in found) for found in ROW.findall(PAGE.read_text(encoding="utf-8"))]


def test_the_table_is_there() -> None:
    assert len(ROWS) >= 6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]:.0f}-{row[1]:.0f}")
def test_at_no_loss_half_the_margin_the_margin_and_twice_that(row: tuple[float, ...]) -> None:
    n, margin = int(row[0]), row[1] / 100.0
    passes = [rule(n, margin, -loss, 0.10)[0] for loss in (0.0, margin / 2.0, margin)]
    fails = rule(n, margin, -2.0 * margin, 0.10)[1]
    assert [*passes, fails] == pytest.approx(list(row[2:]), abs=0.006)
    assert passes[2] <= 0.05
