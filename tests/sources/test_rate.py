"""The measured rate of recent transfers: what the gate on a slow link looks at."""

from pathlib import Path

import pytest

from modelagent.core.events import Instant
from modelagent.sources.allowance import Allowance, Metered
from modelagent.sources.directory import DirectorySource


class Clock:
    mono = 0.0

    def now(self) -> Instant:
        return Instant(1e9 + self.mono, self.mono, "boot")


def test_the_newest_counts_most_and_it_is_forgotten() -> None:
    clock = Clock()
    allowance = Allowance(None, clock=clock.now)
    assert allowance.rate() is None
    allowance.measured(10_000, 0.001)
    assert allowance.rate() is None, "short transfers measure the round trip"
    allowance.measured(1_000_000, 8.0)
    assert allowance.rate() == 1e6
    allowance.measured(1_000_000, 80.0)
    assert allowance.rate() == 0.55e6
    clock.mono = 1800.0
    assert allowance.rate() == 0.55e6
    clock.mono = 1800.1
    assert allowance.rate() is None, "only trying tells"
    allowance.measured(1_000_000, 80.0)
    assert allowance.rate() == 0.1e6
    clock.mono = 0.0
    assert allowance.rate() is None, "measured in the future: after a reboot"


@pytest.mark.parametrize("per_second", [0.0, 400_000.0])
def test_a_transfer_measures_without_our_own_pauses(tmp_path: Path, per_second: float) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x").write_bytes(b"x" * 400_000)
    slept: list[float] = []
    allowance = Allowance(None, per_second=per_second, clock=Clock().now, sleep=slept.append)
    body = Metered(DirectorySource(tmp_path), allowance).fetch("files/x", limit=400_000)
    assert sum(len(chunk) for chunk in body) == 400_000
    body.close()
    rate = allowance.rate()
    if per_second:
        assert sum(slept) > 0
    else:
        assert rate is not None
        assert rate > 1e6
