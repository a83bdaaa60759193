"""One test an attack: it is refused by its name, leaves nothing usable behind, and the next honest try succeeds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from modelagent.errors import AgentError, SourceError, TrustError
from modelagent.manifest import Manifest, dump
from modelagent.steps.acquire import Acquirer
from repository_simulator import Clock, RepositorySimulator, make_canary, make_manifest


class Device:
    """A device and its repository; `attempt` does what the updater does: check, then acquire."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.simulator = RepositorySimulator(directory / "publisher", self.clock, models=("digits", "gears"))
        self.state = directory / "state"
        self.state.mkdir()
        self.restart()

    def restart(self) -> None:
        self.acquirer = Acquirer(self.state, self.simulator, self.simulator.root_bytes, self.clock)

    def attempt(self) -> Manifest:
        checked = self.acquirer.check("digits", "stable")
        assert checked.offer is not None
        return self.acquirer.acquire(checked.offer)

    def refuses(self, code: str, family: type[AgentError] = TrustError) -> AgentError:
        with pytest.raises(family) as caught:
            self.attempt()
        assert caught.value.code == code, caught.value.message
        return caught.value

    def succeeds(self, version: str) -> None:
        """The honest try: every file is there under its true hash."""
        self.simulator.honest()
        manifest = self.attempt()
        assert manifest.version == version
        assert self.usable() == {manifest.digest, *(ref.sha256 for ref in manifest.files)}

    def usable(self) -> set[str]:
        """What could be taken for good in incoming/: everything that is not named a partial."""
        names = {path.name for path in (self.state / "incoming").glob("*") if path.suffix != ".part"}
        for name in names:
            assert hashlib.sha256((self.state / "incoming" / name).read_bytes()).hexdigest() == name
        return names

    def complete(self, manifest: Manifest) -> bool:
        return manifest.digest in self.usable()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.fixture
def settled(device: Device) -> Device:
    """A device that has taken 1.0.0 while 1.1.0 is now published."""
    device.simulator.release("1.0.0")
    device.attempt()
    for path in (device.state / "incoming").glob("*"):
        path.unlink()
    device.simulator.remember()
    device.simulator.release("1.1.0")
    return device


def unchanged(targets: Targets) -> None:
    """An edit that edits nothing: only the signature is wrong."""


def model_file(manifest: Manifest) -> str:
    return f"files/{manifest.model_file.sha256}"


def test_swapped_bytes_in_the_model_are_a_tampered_file(device: Device) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.swap_bytes(model_file(release))
    error = device.refuses("tampered-file")
    assert release.model_file.sha256 in error.message
    assert not device.complete(release)
    assert not list((device.state / "incoming").glob("*.part"))
    device.succeeds("1.0.0")


@pytest.mark.parametrize("by", [1, 1_000_000, -1])
def test_wrong_length_of_the_model(device: Device, by: int) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.wrong_length(model_file(release), by=by)
    device.refuses("wrong-length")
    assert not device.complete(release)
    device.succeeds("1.0.0")


def test_endless_data_instead_of_the_model(device: Device) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.endless_data(model_file(release))
    device.refuses("endless-data")
    assert device.simulator.sent < release.model_file.length + 100_000
    assert not list((device.state / "incoming").glob("*.part"))
    device.succeeds("1.0.0")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models-digits", "channels"])
def test_endless_data_instead_of_metadata(device: Device, role: str) -> None:
    device.simulator.release("1.0.0")
    device.simulator.endless_data(device.simulator.current(role))
    device.refuses("endless-data")
    device.succeeds("1.0.0")


@pytest.mark.parametrize("role", ["snapshot", "models-digits", "channels"])
def test_replayed_metadata_is_a_rollback_attack(settled: Device, role: str) -> None:
    settled.simulator.replay(role)
    settled.refuses("rollback-attack")
    assert not settled.usable()
    settled.succeeds("1.1.0")


def test_replayed_targets_are_a_rollback_attack(settled: Device) -> None:
    settled.simulator.repository.add_model("wheels")
    settled.simulator.replay("targets")
    settled.refuses("rollback-attack")
    settled.succeeds("1.1.0")


def test_a_replayed_timestamp_is_a_rollback_attack(settled: Device) -> None:
    settled.attempt()
    settled.simulator.replay("timestamp")
    settled.refuses("rollback-attack")
    settled.succeeds("1.1.0")


def test_a_timestamp_held_back_shows_what_was_true_until_it_expires(settled: Device) -> None:
    """Between publications nobody can tell old from newest; that is what expiry is for."""
    settled.simulator.replay("timestamp")
    assert settled.attempt().version == "1.0.0"
    settled.clock.advance(days=8)
    settled.refuses("freeze-attack")
    settled.simulator.honest()
    settled.simulator.repository.refresh()
    assert settled.attempt().version == "1.1.0"


def test_a_whole_repository_replayed_after_a_restart_is_a_rollback_attack(settled: Device) -> None:
    settled.attempt()
    settled.simulator.replay("timestamp")
    settled.restart()
    settled.refuses("rollback-attack")
    settled.succeeds("1.1.0")


def test_expired_metadata_is_a_freeze_attack(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.clock.advance(days=8)
    error = device.refuses("freeze-attack")
    assert "timestamp" in error.message
    assert "2026-11-08T12:00:00" in error.message
    assert "clock" in error.message
    device.simulator.repository.refresh()
    device.succeeds("1.0.0")


def test_expired_snapshot_is_a_freeze_attack(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.clock.advance(days=16)
    device.simulator.repository.refresh()  # past half its life: the snapshot too
    device.clock.advance(days=6)
    device.succeeds("1.0.0")
    device.clock.advance(days=400)
    assert "root" in device.refuses("freeze-attack").message


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models-digits", "channels"])
def test_a_flipped_bit_in_metadata_is_refused(device: Device, role: str) -> None:
    device.simulator.release("1.0.0")
    device.simulator.swap_bytes(device.simulator.current(role))
    with pytest.raises((TrustError, SourceError)) as caught:
        device.attempt()
    assert caught.value.code in {"tampered-file", "arbitrary-software", "malformed"}
    assert not device.usable()
    device.succeeds("1.0.0")


def test_a_timestamp_signed_by_a_stranger_is_arbitrary_software(device: Device, tmp_path: Path) -> None:
    device.simulator.release("1.0.0")
    stranger = RepositorySimulator(tmp_path / "stranger", device.clock)
    stranger.release("6.6.6")
    for name in ("metadata/timestamp.json", "metadata/3.snapshot.json"):
        device.simulator.serve_instead(name, (stranger.directory / name).read_bytes())
    device.refuses("arbitrary-software")
    device.succeeds("1.0.0")


def test_canary_of_another_release_is_mix_and_match(settled: Device) -> None:
    simulator = settled.simulator
    old = simulator.release("1.2.0", canary_bytes=make_canary(seed=1))
    settled.attempt()
    new = simulator.release("1.3.0", canary_bytes=make_canary(seed=2))
    old_canary, new_canary = old.file("canary"), new.file("canary")
    assert old_canary is not None
    assert new_canary is not None
    bytes_of_old = (simulator.directory / "files" / old_canary.sha256).read_bytes()
    simulator.serve_instead(f"files/{new_canary.sha256}", bytes_of_old)
    error = settled.refuses("mix-and-match")
    assert "digits 1.2.0 (canary)" in error.message
    assert not settled.complete(new)
    simulator.honest()
    assert settled.attempt().digest == new.digest


def test_model_of_another_release_is_mix_and_match(settled: Device) -> None:
    simulator = settled.simulator
    new = simulator.release("1.2.0")
    old_bytes = (simulator.directory / "files").joinpath(
        next(
            ref["sha256"]
            for path in simulator.directory.glob("targets/models/digits/1.0.0/*")
            for role, ref in json.loads(path.read_bytes())["files"].items()
            if role == "model"
        )
    )
    simulator.serve_instead(model_file(new), old_bytes.read_bytes())
    settled.refuses("mix-and-match")
    settled.succeeds("1.2.0")


def test_a_channel_signed_by_the_release_key_is_arbitrary_software(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.attempt()
    device.simulator.sign_with("channels", "release", unchanged)
    device.refuses("arbitrary-software")
    device.simulator.restore("channels")
    device.succeeds("1.0.0")


def test_a_release_signed_by_the_operations_key_is_arbitrary_software(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.sign_with("models-digits", "operations", unchanged)
    device.refuses("arbitrary-software")
    assert not device.usable()
    device.simulator.restore("models-digits")
    device.succeeds("1.0.0")


def test_a_release_that_the_operations_key_lists_itself_is_not_found(device: Device) -> None:
    """The operations key cannot make a release: its role may name channels alone."""
    simulator = device.simulator
    simulator.release("1.0.0")
    forged = dump(make_manifest(version="6.6.6", number=666))
    simulator.publish_document("models/digits/6.6.6/manifest.json", forged, role="channels")
    simulator.publish_document(
        "channels/digits/stable.json",
        channel_document(version="6.6.6", digest=hashlib.sha256(forged).hexdigest()),
        role="channels",
    )
    device.refuses("not-found", SourceError)
    assert not device.usable()
    simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


def test_a_channel_that_names_an_unknown_release_is_not_found(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.publish_document(
        "channels/digits/stable.json", channel_document(version="9.9.9", digest="9" * 64), role="channels"
    )
    device.refuses("not-found", SourceError)
    device.simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


def test_a_channel_with_the_digest_of_another_release_is_mix_and_match(device: Device) -> None:
    device.simulator.release("1.0.0")
    document = channel_document(version="1.0.0", digest="9" * 64)
    device.simulator.publish_document("channels/digits/stable.json", document, role="channels")
    device.refuses("mix-and-match")
    device.simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


def test_the_channel_of_another_model_is_mix_and_match(device: Device) -> None:
    simulator = device.simulator
    simulator.release("1.0.0")
    gears = simulator.release("1.0.0", model="gears")
    simulator.publish_document(
        "channels/digits/stable.json",
        channel_document(model="gears", version="1.0.0", digest=gears.digest),
        role="channels",
    )
    device.refuses("mix-and-match")
    simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


def test_the_manifest_of_another_version_is_mix_and_match(device: Device) -> None:
    simulator = device.simulator
    simulator.release("1.0.0")
    other = dump(make_manifest(version="1.0.0", number=7))
    simulator.publish_document("models/digits/1.1.0/manifest.json", other, role="models-digits")
    document = channel_document(version="1.1.0", digest=hashlib.sha256(other).hexdigest())
    simulator.publish_document("channels/digits/stable.json", document, role="channels")
    device.refuses("mix-and-match")
    simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


@pytest.mark.parametrize(
    "version", ["../../../etc/passwd", "..", "a/b", "/abs", "%2e%2e", "a\0b", ".hidden", "x" * 300]
)
def test_a_path_trick_in_the_channel_is_refused(device: Device, version: str) -> None:
    device.simulator.release("1.0.0")
    document = json.loads(channel_document(version="1.0.0", digest="9" * 64))
    document["release"]["version"] = version
    device.simulator.publish_document("channels/digits/stable.json", json.dumps(document).encode(), role="channels")
    device.refuses("path-trick")
    assert not device.usable()
    device.simulator.repository.channel("digits", "stable", "1.0.0")
    device.succeeds("1.0.0")


def test_a_digest_that_is_a_path_is_refused(device: Device) -> None:
    device.simulator.release("1.0.0")
    document = json.loads(channel_document(version="1.0.0", digest="9" * 64))
    document["release"]["digest"] = "../" * 20 + "a" * 4
    device.simulator.publish_document("channels/digits/stable.json", json.dumps(document).encode(), role="channels")
    device.refuses("path-trick")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models-digits", "channels"])
def test_truncated_metadata_is_no_verdict_on_the_repository(device: Device, role: str) -> None:
    device.simulator.release("1.0.0")
    device.simulator.truncate(device.simulator.current(role), 100)
    device.refuses("cut", SourceError)
    device.succeeds("1.0.0")


def test_a_truncated_model_is_kept_and_resumed(device: Device) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.truncate(model_file(release), 7_000)
    device.refuses("cut", SourceError)
    assert not device.complete(release)
    device.simulator.honest()
    device.simulator.forget_requests()
    device.attempt()
    assert (model_file(release), 7_000) in device.simulator.requests


def test_a_storm_of_server_errors_ends_when_the_server_recovers(device: Device) -> None:
    device.simulator.release("1.0.0")
    for _ in range(5):
        device.simulator.fail(1)
        device.refuses("server-error", SourceError)
    device.succeeds("1.0.0")


@pytest.mark.parametrize("part", ["model", "canary"])
def test_a_missing_file_is_an_incomplete_release(device: Device, part: str) -> None:
    release = device.simulator.release("1.0.0")
    ref = release.file(part)
    assert ref is not None
    device.simulator.lose(f"files/{ref.sha256}")
    assert part in device.refuses("incomplete", SourceError).message
    assert not device.complete(release)
    device.succeeds("1.0.0")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models-digits", "channels"])
def test_missing_metadata_is_not_found(device: Device, role: str) -> None:
    device.simulator.release("1.0.0")
    device.simulator.lose(device.simulator.current(role))
    device.refuses("not-found", SourceError)
    device.succeeds("1.0.0")


def test_a_captive_portal_is_not_taken_for_an_attack(device: Device) -> None:
    device.simulator.release("1.0.0")
    page = b"<html><body>Please log in</body></html>"
    device.simulator.serve_instead("metadata/timestamp.json", page)
    device.simulator.serve_instead("metadata/2.root.json", page)
    device.refuses("captive-portal", SourceError)
    device.succeeds("1.0.0")


def test_a_root_that_the_old_root_did_not_sign_is_arbitrary_software(device: Device, tmp_path: Path) -> None:
    device.simulator.release("1.0.0")
    stranger = RepositorySimulator(tmp_path / "stranger", device.clock)
    stranger.repository.rotate("root")
    foreign = (stranger.directory / "metadata" / "2.root.json").read_bytes()
    device.simulator.serve_instead("metadata/2.root.json", foreign)
    device.refuses("arbitrary-software")
    device.succeeds("1.0.0")


def test_a_replayed_root_is_a_rollback_attack(device: Device) -> None:
    device.simulator.release("1.0.0")
    first = (device.simulator.directory / "metadata" / "1.root.json").read_bytes()
    device.simulator.serve_instead("metadata/2.root.json", first)
    device.refuses("rollback-attack")
    device.succeeds("1.0.0")


def test_an_endless_root_is_endless_data(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.endless_data("metadata/2.root.json")
    device.refuses("endless-data")
    device.succeeds("1.0.0")


def test_swapped_bytes_in_a_manifest_are_a_tampered_file(device: Device) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.swap_bytes(f"targets/models/digits/1.0.0/{release.digest}.manifest.json")
    device.refuses("tampered-file")
    assert not device.usable()
    device.succeeds("1.0.0")


@pytest.mark.parametrize(
    "attack",
    [
        lambda simulator, name: simulator.wrong_length(name, by=5),
        lambda simulator, name: simulator.wrong_length(name, by=-5),
    ],
)
def test_wrong_length_of_a_manifest(device: Device, attack: Callable[[RepositorySimulator, str], None]) -> None:
    release = device.simulator.release("1.0.0")
    attack(device.simulator, f"targets/models/digits/1.0.0/{release.digest}.manifest.json")
    with pytest.raises(TrustError) as caught:
        device.attempt()
    assert caught.value.code in {"wrong-length", "endless-data"}
    device.succeeds("1.0.0")


def channel_document(*, version: str, digest: str, model: str = "digits") -> bytes:
    return json.dumps(
        {
            "schema": 1,
            "model": model,
            "channel": "stable",
            "issued": "2026-11-01T12:00:00Z",
            "release": {"version": version, "digest": digest},
            "waves": [],
            "withdrawn": [],
        }
    ).encode()
