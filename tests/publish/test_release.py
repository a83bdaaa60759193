"""A release in one step, and what happens to it afterwards: promoted, paused, verified, pruned."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

import crash_points
from modelagent import manifest
from modelagent.errors import UsageError
from modelagent.publish import inspection, pruning
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import PAUSED, Repository
from modelagent.steps import channel as form
from modelagent.steps.acquire import Acquirer
from repository_simulator import RepositorySimulator, fake_model, make_canary, make_manifest


@pytest.fixture
def simulator(tmp_path: Path) -> RepositorySimulator:
    return RepositorySimulator(tmp_path)


def document(version: str = "1.0.0", **overrides: object) -> dict[str, object]:
    made = make_manifest(version=version, **overrides)
    for key in ("number", "files"):
        del made[key]
    return made


def files(version: str = "1.0.0") -> dict[str, Path | bytes]:
    return {"model": fake_model(version), "canary": make_canary()}


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def refuses(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.message


def device(simulator: RepositorySimulator, place: Path) -> Acquirer:
    place.mkdir()
    return Acquirer(place, simulator, simulator.root_bytes, simulator.clock)


# --- release ----------------------------------------------------------------------------------------------------


def test_a_release_and_its_channel_appear_together(simulator: RepositorySimulator, tmp_path: Path) -> None:
    before = simulator.repository.ledger.load_timestamp().signed.version
    start = simulator.clock.read() + timedelta(hours=1)
    made = simulator.repository.release(document(), files(), channel="stable", waves=[(start, 0.1)])
    assert simulator.repository.ledger.load_timestamp().signed.version == before + 1
    checked = device(simulator, tmp_path / "device").check("digits", "stable")
    assert checked.offer is not None
    assert checked.offer.digest == made.digest
    assert [wave.share for wave in checked.waves] == [0.1]


def test_a_dry_run_checks_everything_and_writes_nothing(simulator: RepositorySimulator, tmp_path: Path) -> None:
    before = tree(simulator.directory)
    made = simulator.repository.release(document(), files(), channel="stable", dry_run=True)
    assert made.number == 1
    assert tree(simulator.directory) == before
    assert simulator.repository.releases("digits") == []
    fresh = document(model="wheels")
    assert (
        simulator.repository.release(fresh, files(), channel="stable", new_model=True, dry_run=True).model == "wheels"
    )
    assert simulator.repository.models() == ["digits"]
    (tmp_path / "keys" / "operations.pem").unlink()
    ring = KeyRing(tmp_path / "keys")
    without = Repository(simulator.directory, ring, now=simulator.clock.read)
    refuses("no-key", lambda: without.release(document(), files(), channel="stable", dry_run=True))
    assert without.release(document(), files(), dry_run=True).version == "1.0.0"


@pytest.mark.parametrize(
    ("code", "change", "options"),
    [
        ("small-canary", {"canary": {**make_manifest()["canary"], "margin": 0.01}}, {}),
        ("bad-name", {}, {"channel": "No Such Name"}),
        ("manifest", {"limits": {}}, {"channel": "stable"}),
    ],
)
def test_what_is_refused_leaves_nothing(
    simulator: RepositorySimulator, code: str, change: dict[str, Any], options: dict[str, str]
) -> None:
    before = tree(simulator.directory)
    refuses(code, lambda: simulator.repository.release(document(**change), files(), channel=options.get("channel")))
    assert tree(simulator.directory) == before


def unsynced(fd: int) -> None:
    """A killed publisher loses no page cache: what counts is the order of the writes."""


def test_a_publisher_killed_at_any_point_leaves_a_repository_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", unsynced)

    def publish(simulator: RepositorySimulator) -> None:
        simulator.repository.release(document("1.1.0"), files("1.1.0"), channel="stable")

    first = RepositorySimulator(tmp_path / "count")
    first.release("1.0.0")
    points = crash_points.points_of(lambda: publish(first))
    assert len(points) > 20
    outcomes = set()
    for count in range(len(points)):
        simulator = RepositorySimulator(tmp_path / str(count))
        simulator.release("1.0.0")
        assert crash_points.killed_at(count, lambda: publish(simulator))  # noqa: B023 - runs within the turn
        found = inspection.verify(simulator.repository, now=simulator.clock)
        assert found.errors == []
        outcomes |= {text for text in found.checked if "stable" in text}
        # Never the release without its channel: the two come with one timestamp.
        listed = {version for version, _, _ in simulator.repository.releases("digits")}
        assert ("digits stable: 1.1.0" in found.checked) == ("1.1.0" in listed)
    assert outcomes == {"digits stable: 1.0.0", "digits stable: 1.1.0"}


def test_two_publishers_at_once(simulator: RepositorySimulator) -> None:
    with simulator.repository.ledger.locked():
        assert "another publisher" in refuses("locked", lambda: simulator.repository.release(document(), files()))
        refuses("locked", lambda: simulator.repository.pause("digits", "stable"))
        refuses("locked", lambda: pruning.prune(simulator.repository, "digits", keep=1))
    simulator.repository.release(document(), files())


# --- channels ---------------------------------------------------------------------------------------------------


def test_promote_takes_what_the_other_channel_names(simulator: RepositorySimulator) -> None:
    simulator.release("1.0.0", channel="beta")
    said = simulator.repository.promote("digits", "beta", "stable", [(simulator.clock.read(), 0.5)])
    assert (said.channel, said.version, len(said.waves)) == ("stable", "1.0.0", 1)
    assert "names no release" in refuses(
        "no-channel", lambda: simulator.repository.promote("digits", "gamma", "stable")
    )


def test_pause_keeps_the_version_and_lets_nobody_begin(simulator: RepositorySimulator, tmp_path: Path) -> None:
    simulator.release("1.0.0")
    simulator.repository.pause("digits", "stable")
    checked = device(simulator, tmp_path / "device").check("digits", "stable")
    assert checked.offer is not None
    assert [wave.start for wave in checked.waves] == [PAUSED.timestamp()]
    refuses("no-channel", lambda: simulator.repository.pause("digits", "beta"))
    assert simulator.repository.channel("digits", "stable", "1.0.0").waves == ()


# --- verify -----------------------------------------------------------------------------------------------------


def test_verify_takes_every_channel_and_file_as_a_device_would(simulator: RepositorySimulator) -> None:
    for version in ("1.0.0", "1.1.0"):
        simulator.release(version)
    simulator.release("2.0.0", channel="beta")
    found = inspection.verify(simulator.repository, now=simulator.clock)
    assert found.errors == []
    assert {"digits stable: 1.1.0", "digits beta: 2.0.0", "digits 1.0.0"} <= set(found.checked)


def test_verify_needs_no_private_key(simulator: RepositorySimulator, tmp_path: Path) -> None:
    simulator.release("1.0.0")
    for path in (tmp_path / "keys").glob("*.pem"):
        path.unlink()
    repository = Repository(simulator.directory, KeyRing(tmp_path / "keys"), now=simulator.clock.read)
    assert inspection.verify(repository, now=simulator.clock).errors == []


def test_verify_names_what_is_wrong(simulator: RepositorySimulator) -> None:
    old = simulator.release("1.0.0")
    new = simulator.release("1.1.0")
    (simulator.directory / "files" / old.model_file.sha256).write_bytes(b"something else")
    errors = inspection.verify(simulator.repository, now=simulator.clock).errors
    assert len(errors) == 1
    assert "digits 1.0.0: model file" in errors[0]
    (simulator.directory / "files" / new.model_file.sha256).unlink()
    assert len(inspection.verify(simulator.repository, now=simulator.clock).errors) == 3  # channel, both releases
    simulator.clock.advance(days=8)
    assert any("freeze" in text for text in inspection.verify(simulator.repository, now=simulator.clock).errors)


# --- prune ------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_and_what_channels_name(simulator: RepositorySimulator) -> None:
    made = {f"1.{number}": simulator.release(f"1.{number}", channel=None) for number in range(6)}
    simulator.repository.channel("digits", "stable", "1.1")
    assert pruning.prune(simulator.repository, "digits", keep=2, dry_run=True) == ["1.0", "1.2", "1.3"]
    assert len(simulator.repository.releases("digits")) == 6
    assert pruning.prune(simulator.repository, "digits", keep=2) == ["1.0", "1.2", "1.3"]
    assert [version for version, _, _ in simulator.repository.releases("digits")] == ["1.1", "1.4", "1.5"]
    # The files stay for those who read the old metadata a minute ago ...
    gone = simulator.directory / "files" / made["1.0"].model_file.sha256
    now = simulator.clock()
    assert pruning.sweep(simulator.repository, grace=3600, now=now) == []
    assert pruning.sweep(simulator.repository, grace=3600, now=now + 3599) == []
    assert gone.exists()
    # ... and go when the time of grace is over, seen from the first time that nothing named them.
    removed = pruning.sweep(simulator.repository, grace=3600, now=now + 3600)
    assert f"files/{made['1.0'].model_file.sha256}" in removed
    assert not gone.exists()
    found = inspection.verify(simulator.repository, now=simulator.clock)
    assert (found.errors, found.strangers) == ([], [])
    refuses("keep", lambda: pruning.prune(simulator.repository, "digits", keep=0))
    assert simulator.release("1.6").number == 7  # numbers go on


def test_a_file_that_is_named_again_is_not_removed(simulator: RepositorySimulator) -> None:
    stray = simulator.directory / "files" / ("0" * 64)
    stray.write_bytes(b"left by a publisher that was killed")
    assert pruning.sweep(simulator.repository, grace=10, now=0.0) == []
    assert pruning.sweep(simulator.repository, grace=10, now=100.0, dry_run=True) == [f"files/{'0' * 64}"]
    assert stray.exists()
    stray.rename(stray.with_name("1" * 64))
    assert pruning.sweep(simulator.repository, grace=10, now=100.0) == []


# --- python-tuf -------------------------------------------------------------------------------------------------


class Files(FetcherInterface):
    """Python-tuf's own client, reading a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _fetch(self, url: str) -> list[bytes]:  # type: ignore[override]
        path = self.directory / url.removeprefix("http://here/")
        if not path.is_file():
            raise DownloadHTTPError("missing", 404)
        return [path.read_bytes()]


def test_python_tufs_own_client_verifies_our_repository(tmp_path: Path) -> None:
    # Its client knows no other clock than the machine's, so this repository is signed by that one.
    repository = Repository.init(tmp_path / "repo", tmp_path / "keys", ["digits"])
    made = repository.release(document(), files(), channel="stable")
    for _ in range(3):
        repository.rotate("root")
    repository.rotate("release")
    for name in ("metadata", "downloads"):
        (tmp_path / name).mkdir()
    updater = Updater(
        str(tmp_path / "metadata"),
        "http://here/metadata/",
        str(tmp_path / "downloads"),
        "http://here/targets/",
        fetcher=Files(tmp_path / "repo"),
        bootstrap=(tmp_path / "repo" / "metadata" / "1.root.json").read_bytes(),
    )
    updater.refresh()
    for path in (form.manifest_path("digits", "1.0.0"), form.target_path("digits", "stable")):
        target = updater.get_targetinfo(path)
        assert target is not None
        data = Path(updater.download_target(target)).read_bytes()
        if path.startswith("models/"):
            assert manifest.parse(data).digest == made.digest
        else:
            assert form.parse(data).digest == made.digest
    assert updater.get_targetinfo("models/digits/9.9.9/manifest.json") is None


def test_a_private_umask_makes_no_private_repository(tmp_path: Path) -> None:
    """A CI job keeps its keys to itself, and a web server must read what it uploads all the same."""
    before = os.umask(0o077)
    try:
        made = RepositorySimulator(tmp_path)
        made.repository.release(document("1.0.0"), files("1.0.0"), channel="stable")
        made.repository.refresh()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    published = [path for part in inspection.named_files(made.repository) for path in (part, part.parent)]
    assert len(published) > 10
    assert [path for path in published if path.stat().st_mode & 0o044 != 0o044] == []
    keys = made.repository.keys
    assert {keys.path(name).stat().st_mode & 0o777 for name in keys.names()} == {0o600}


def test_a_copy_without_its_empty_directories_can_be_published_to(tmp_path: Path) -> None:
    """As an object store or a version control keeps a repository that holds no release yet."""
    made = RepositorySimulator(tmp_path)
    for part in ("files", "targets"):
        shutil.rmtree(made.directory / part)
    assert inspection.verify(made.repository, now=made.clock).errors == []
    made.repository.release(document("1.0.0"), files("1.0.0"), channel="stable")
    assert inspection.verify(made.repository, now=made.clock).errors == []
