"""Several sources of one repository: what one of them does blocks nothing."""

from pathlib import Path

import pytest

from acquire_rig import offered
from modelagent.errors import SourceError
from modelagent.sources import Source
from modelagent.steps.acquire import Acquirer
from repository_simulator import Clock, RepositorySimulator

# --- mirrors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(simulator: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    """A second way to the same repository, with lies of its own."""
    other = RepositorySimulator(tmp_path / "mirror", simulator.clock, models=("digits", "gears"))
    other.directory, other.source, other.repository = simulator.directory, simulator.source, simulator.repository
    other.label = "mirror"
    return other


def test_a_mirror_that_lies_about_a_file_blocks_nothing(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.swap_bytes(f"files/{release.model_file.sha256}")
    assert acquirer.acquire(offered(acquirer)).digest == release.digest
    mirror.forget_requests()
    acquirer.check("digits", "stable")
    assert mirror.names == []  # set aside: asked last from now on


def test_a_mirror_that_replays_is_named_and_passed_over(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.remember()
    acquirer.check("digits", "stable")
    simulator.release("1.1.0")
    acquirer.check("digits", "stable")
    mirror.replay("timestamp")
    checked = acquirer.check("digits", "stable")
    assert checked.offer is not None
    assert checked.offer.version == "1.1.0"
    assert any("rollback-attack" in note and "mirror" in note for note in checked.notes)


def test_a_mirror_that_is_down_is_passed_over(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.fail(100)
    assert acquirer.acquire(offered(acquirer)).digest == release.digest


def test_a_transfer_goes_on_at_another_mirror(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.truncate(f"files/{release.model_file.sha256}", 5_000)
    acquirer.acquire(offered(acquirer))
    assert (f"files/{release.model_file.sha256}", 5_000) in simulator.requests


def test_without_any_source_it_says_so(state: Path, simulator: RepositorySimulator, clock: Clock) -> None:
    with pytest.raises(SourceError) as caught:
        Acquirer(state, [], simulator.root_bytes, clock).check("digits", "stable")
    assert caught.value.code == "no-source"
