"""Replacing keys where something goes wrong: publishers that die or have no room, keys that count no more."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import crash_points
from modelagent.errors import UsageError
from modelagent.publish import rotation
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from repository_simulator import RepositorySimulator

KEYS = ("root", "targets", "release", "operations", "online")


def unsynced(fd: int) -> None:
    """A killed publisher loses no page cache: what counts is the order of the writes."""


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RepositorySimulator:
    monkeypatch.setattr(os, "fsync", unsynced)
    made = RepositorySimulator(tmp_path / "first")
    made.release("1.0.0")
    return made


def copied(simulator: RepositorySimulator, place: Path) -> Repository:
    shutil.copytree(simulator.directory, place / "repository")
    shutil.copytree(simulator.repository.keys.directory, place / "keys")
    return Repository(place / "repository", KeyRing(place / "keys"), now=simulator.clock.read)


def checked(simulator: RepositorySimulator, repository: Repository, state: Path) -> str:
    """What a device that has the first root is offered."""
    state.mkdir(exist_ok=True)
    acquirer = Acquirer(state, DirectorySource(repository.directory), simulator.root_bytes, simulator.clock)
    offer = acquirer.check("digits", "stable").offer
    acquirer.close()
    assert offer is not None
    return offer.version


@pytest.mark.parametrize("name", KEYS)
def test_a_publisher_that_dies_while_it_replaces_a_key(
    simulator: RepositorySimulator, tmp_path: Path, name: str
) -> None:
    points = crash_points.points_of(lambda: copied(simulator, tmp_path / "count").rotate(name))
    assert len(points) > 5
    for count in range(len(points)):
        place = tmp_path / str(count)
        repository = copied(simulator, place)
        assert crash_points.killed_at(count, lambda: repository.rotate(name))  # noqa: B023 - runs within the turn
        # Readers, new or not, see what they can verify.
        assert checked(simulator, repository, place / "state") == "1.0.0"
        # The next publisher, which knows nothing of it, goes on; so does the device that looked in between.
        again = Repository(place / "repository", KeyRing(place / "keys"), now=simulator.clock.read)
        again.channel("digits", "stable", "1.0.0")
        again.refresh()
        assert checked(simulator, again, place / "state") == "1.0.0"
        again.rotate(name)
        assert checked(simulator, again, place / "state") == "1.0.0"
        assert checked(simulator, again, place / "fresh") == "1.0.0"
        assert again.keys.successors() == []
        assert set(KEYS) <= set(again.keys.names())


@pytest.mark.parametrize("name", KEYS)
def test_no_room_while_a_key_is_replaced_loses_no_key(
    simulator: RepositorySimulator, tmp_path: Path, name: str
) -> None:
    repository = copied(simulator, tmp_path / "full")

    def full(operation: str, path: str) -> None:
        if operation in crash_points.SPACE_TAKING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    before = {found: repository.keys.path(found).read_bytes() for found in KEYS}
    with crash_points.hooked(full), pytest.raises(OSError, match="No space"):
        repository.rotate(name)
    assert {found: repository.keys.path(found).read_bytes() for found in KEYS} == before
    repository.rotate(name)
    assert checked(simulator, repository, tmp_path / "state") == "1.0.0"


def test_a_root_that_somebody_put_there_is_not_followed(simulator: RepositorySimulator, tmp_path: Path) -> None:
    stranger = RepositorySimulator(tmp_path / "stranger")
    stranger.repository.rotate("root")
    shutil.copy(stranger.directory / "metadata" / "2.root.json", simulator.directory / "metadata" / "2.root.json")
    held = simulator.repository.keys.root_file.read_bytes()
    with pytest.raises(UsageError, match=r"2\.root\.json.*backup") as caught:
        simulator.repository.refresh()
    assert caught.value.code == "untrusted"
    assert simulator.repository.keys.root_file.read_bytes() == held


def test_an_init_that_died_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", unsynced)

    def init(place: Path) -> Repository:
        return Repository.init(place / "repository", place / "keys", ["digits"])

    points = crash_points.points_of(lambda: init(tmp_path / "count"))
    said: set[tuple[str, bool]] = set()
    for count in range(0, len(points), 3):
        place = tmp_path / str(count)
        assert crash_points.killed_at(count, lambda: init(place))  # noqa: B023 - runs within the turn
        try:
            init(place)
        except UsageError as error:
            said.add((error.code, "remove" in error.message))
    assert said - {("exists", False)} == {("key-exists", True), ("unfinished", True)}


def test_settings_that_cannot_be_read_are_not_taken_for_none(simulator: RepositorySimulator) -> None:
    settings = simulator.directory / "publisher.json"
    for content in (b"", b"[1]", b'{"schema": 1, "lifetimes": {"timestamp": "long"}}'):
        settings.write_bytes(content)
        with pytest.raises(UsageError, match=r"publisher\.json.*backup"):
            Repository(simulator.directory, simulator.repository.keys)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("release", lambda repository: rotation.renew(repository.ledger, ["models-digits"])),
        ("release", lambda repository: repository.add_model("wheels")),  # never delegated to a key that was taken back
        ("operations", lambda repository: repository.channel("digits", "stable", "1.0.0")),
        ("online", lambda repository: repository.refresh()),
        ("targets", lambda repository: repository.add_model("wheels")),
    ],
)
def test_a_key_that_was_replaced_signs_nothing(
    simulator: RepositorySimulator, tmp_path: Path, name: str, act: Any
) -> None:
    """A CI job that still has the old secret: what it signed no device would take, and no publisher could repair."""
    repository = copied(simulator, tmp_path / "ci")
    old = repository.keys.path(name).read_bytes()
    repository.rotate(name)
    repository.keys.path(name).write_bytes(old)
    stale = Repository(repository.directory, KeyRing(repository.keys.directory), now=simulator.clock.read)
    before = {path: path.read_bytes() for path in repository.directory.rglob("*.json")}
    with pytest.raises(UsageError) as caught:
        act(stale)
    assert caught.value.code == "wrong-key"
    assert f"{name}.pem" in caught.value.message
    assert {path: path.read_bytes() for path in repository.directory.rglob("*.json")} == before
