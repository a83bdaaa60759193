"""What the tests of acquire share: they are about order and content, so no call waits for the disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.steps.acquire import Acquirer
from repository_simulator import Clock, RepositorySimulator


def unsynced(fd: int) -> None:
    """What a killed process wrote stays in the page cache; the hook of `durable` still sees each sync."""


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", unsynced)
        yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def simulator(tmp_path: Path, clock: Clock) -> RepositorySimulator:
    return RepositorySimulator(tmp_path / "publisher", clock, models=("digits", "gears"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def acquirer(state: Path, simulator: RepositorySimulator, clock: Clock) -> Acquirer:
    return Acquirer(state, simulator, simulator.root_bytes, clock)
