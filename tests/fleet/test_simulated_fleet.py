"""The fleet simulator in small: nothing is lost and nothing is done twice through a broker's restart."""

from pathlib import Path

import pytest
from benchmarks.fleet import play

pytestmark = [pytest.mark.broker, pytest.mark.process]


def test_a_small_fleet_through_a_restart(tmp_path: Path) -> None:
    found = play(60, tmp_path / "fleet")
    assert (found.devices, found.events, found.answers, found.lost, found.twice) == (60, 480, 240, 0, 0)
