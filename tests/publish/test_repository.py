"""The publisher: what it signs, what it refuses to sign, and that readers never see half a publication."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelagent import durable
from modelagent.errors import UsageError
from modelagent.publish.keys import KeyRing, passphrase_from
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from repository_simulator import (
    Clock,
    Lifetimes,
    RepositorySimulator,
    fake_model,
    make_canary,
    make_manifest,
)


@pytest.fixture
def simulator(tmp_path: Path) -> RepositorySimulator:
    return RepositorySimulator(tmp_path)


@pytest.fixture
def repository(simulator: RepositorySimulator) -> Repository:
    return simulator.repository


def files() -> dict[str, Path | bytes]:
    return {"model": fake_model("x"), "canary": make_canary()}


def document(**overrides: object) -> dict[str, object]:
    found = make_manifest(**overrides)
    if "number" not in overrides:
        del found["number"]
    return found


def refuses(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.code == code, caught.value.message
    return caught.value.message


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- add --------------------------------------------------------------------------------------------------------


def test_add_fills_in_what_the_files_and_the_repository_know(repository: Repository) -> None:
    content = files()
    draft = document()
    for key in ("schema", "issued", "floor", "files"):
        del draft[key]
    first = repository.add(draft, content)
    second = repository.add(document(version="1.0.1"), content)
    assert (first.number, second.number) == (1, 2)
    assert first.issued == repository.ledger.now().timestamp()
    for ref in first.files:
        data = content[ref.role]
        assert isinstance(data, bytes)
        assert (ref.sha256, ref.length) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (repository.directory / "files" / ref.sha256).read_bytes() == data
    assert repository.releases("digits") == [("1.0.0", first.digest, 1), ("1.0.1", second.digest, 2)]


def test_add_takes_bytes_and_paths(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"model")
    release = repository.add(json.dumps(document()).encode(), {"model": tmp_path / "model", "canary": make_canary()})
    assert release.model_file.length == 5


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"model": "wheels"}, "unknown-model"),
        ({"model": "../x"}, "bad-name"),
        ({"model": 7}, "bad-name"),
        ({"version": "../x"}, "manifest"),
        ({"number": 1}, "number"),
        ({"version": "1.0.0"}, "duplicate-version"),
        ({"number": 5, "floor": 6}, "manifest"),
        ({"unknown": 1}, "manifest"),
        ({"inputs": [{"name": "x", "shape": [1, 5], "dtype": "float32", "quantisation": None}]}, "canary-file"),
        ({"inputs": [{"name": "x", "shape": [1, 4], "dtype": "int8", "quantisation": None}]}, "canary-file"),
    ],
)
def test_what_add_refuses_it_does_not_publish(
    simulator: RepositorySimulator, overrides: dict[str, object], code: str
) -> None:
    simulator.release("1.0.0")
    before = tree(simulator.directory)
    refuses(code, lambda: simulator.repository.add(document(**({"version": "1.1.0"} | overrides)), files()))
    assert tree(simulator.directory) == before


def test_a_new_model_needs_only_to_be_asked_for(repository: Repository) -> None:
    message = refuses("unknown-model", lambda: repository.add(document(model="wheels"), files()))
    assert "--new-model" in message
    assert repository.add(document(model="wheels"), files(), new_model=True).model == "wheels"
    assert repository.models() == ["digits", "wheels"]


@pytest.mark.parametrize(
    "content",
    [{"canary": make_canary()}, {"model": b""}, {"model": Path("/nonexistent")}, {"model": b"x", "extra": b"y"}],
)
def test_add_needs_the_right_files(repository: Repository, content: dict[str, Path | bytes]) -> None:
    with pytest.raises(UsageError):
        repository.add(document(), content)


def test_a_small_canary_is_refused_with_the_margin_it_supports(repository: Repository) -> None:
    content: dict[str, Path | bytes] = {"model": b"model", "canary": make_canary(100)}
    canary = {"metric": "accuracy", "margin": 0.05, "confidence": 0.95, "floor": 0.5, "samples": 100}
    message = refuses("small-canary", lambda: repository.add(document(canary=canary), content))
    assert "0.079" in message
    assert "248" in message
    release = repository.add(document(canary=canary), content, accept_small_canary=True)
    assert "0.079" in release.card["small_canary"]


def test_a_canary_file_with_another_number_of_samples_is_refused(repository: Repository) -> None:
    content: dict[str, Path | bytes] = {"model": b"model", "canary": make_canary(299)}
    assert "300" in refuses("canary-file", lambda: repository.add(document(), content))


# --- channels ---------------------------------------------------------------------------------------------------


def test_what_is_withdrawn_stays_withdrawn(simulator: RepositorySimulator) -> None:
    repository = simulator.repository
    simulator.release("1.0.0")
    simulator.release("1.1.0")
    repository.channel("digits", "beta", "1.0.0", waves=[(simulator.clock.now, 0.5)])
    said = {document.channel: document for document in repository.withdraw("digits", "1.1.0", "bad", instead="1.0.0")}
    assert said["stable"].version == said["beta"].version == "1.0.0"
    assert len(said["beta"].waves) == 1
    simulator.release("1.2.0")
    for document_ in repository.channels():
        assert [entry["version"] for entry in document_["withdrawn"]] == ["1.1.0"]
    assert "bad" in refuses("withdrawn", lambda: repository.channel("digits", "stable", "1.1.0"))


def test_a_withdrawal_without_a_replacement_leaves_nothing(simulator: RepositorySimulator) -> None:
    simulator.release("1.0.0")
    assert simulator.repository.withdraw("digits", "1.0.0", "bad")[0].version is None


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda r: r.channel("digits", "stable", "9.9.9"), "unknown-version"),
        (lambda r: r.channel("wheels", "stable", None), "unknown-model"),
        (lambda r: r.channel("digits", "a/b", None), "bad-name"),
        (lambda r: r.channel("digits", "stable", "1.0.0", waves=[(datetime(2026, 1, 1, tzinfo=UTC), 1.5)]), "bad-wave"),
        (lambda r: r.channel("digits", "x", "1.0.0", waves=[(datetime(2026, 1, 1), 0.5)]), "bad-wave"),  # noqa: DTZ001
        (
            lambda r: r.channel(
                "digits",
                "stable",
                "1.0.0",
                waves=[(datetime(2026, 1, 2, tzinfo=UTC), 0.1), (datetime(2026, 1, 1, tzinfo=UTC), 0.5)],
            ),
            "bad-wave",
        ),
        (
            lambda r: r.channel(
                "digits",
                "stable",
                "1.0.0",
                waves=[(datetime(2026, 1, 1, tzinfo=UTC), 0.5), (datetime(2026, 1, 2, tzinfo=UTC), 0.1)],
            ),
            "bad-wave",
        ),
        (lambda r: r.withdraw("digits", "9.9.9", "x"), "unknown-version"),
        (lambda r: r.withdraw("digits", "1.0.0", "x", instead="1.0.0"), "withdrawn"),
    ],
)
def test_what_a_channel_refuses_it_does_not_publish(
    simulator: RepositorySimulator, call: Callable[[Repository], object], code: str
) -> None:
    simulator.release("1.0.0")
    before = tree(simulator.directory)
    refuses(code, lambda: call(simulator.repository))
    assert tree(simulator.directory) == before


def test_a_withdrawal_that_no_device_could_learn_of_is_refused(simulator: RepositorySimulator) -> None:
    simulator.release("1.0.0", channel=None)
    refuses("no-channel", lambda: simulator.repository.withdraw("digits", "1.0.0", "x"))


# --- signatures -------------------------------------------------------------------------------------------------


def test_lifetimes_are_those_of_the_roles(tmp_path: Path) -> None:
    clock = Clock()
    wanted = Lifetimes(timestamp=timedelta(hours=6), snapshot=timedelta(days=2))
    simulator = RepositorySimulator(tmp_path, clock, lifetimes=wanted)
    again = Repository(simulator.directory, KeyRing(tmp_path / "keys"), now=clock.read)
    ends = {role: end - clock.now for role, (end, _) in again.expiries().items()}
    assert ends["timestamp"] == timedelta(hours=6)
    assert ends["snapshot"] == timedelta(days=2)
    assert ends["models-digits"] == ends["root"] == timedelta(days=365)


def test_refresh_takes_the_online_key_alone(simulator: RepositorySimulator, tmp_path: Path) -> None:
    simulator.release("1.0.0")
    server = tmp_path / "server"
    server.mkdir()
    for name in ("online.pem", "root.json"):
        (server / name).write_bytes((tmp_path / "keys" / name).read_bytes())
        (server / name).chmod(0o600)
    repository = Repository(simulator.directory, KeyRing(server), now=simulator.clock.read)
    snapshots = len(list((simulator.directory / "metadata").glob("*.snapshot.json")))
    simulator.clock.advance(days=3)
    repository.refresh()
    assert len(list((simulator.directory / "metadata").glob("*.snapshot.json"))) == snapshots
    simulator.clock.advance(days=13)
    repository.refresh()
    assert len(list((simulator.directory / "metadata").glob("*.snapshot.json"))) == snapshots + 1
    assert not any(soon for _, soon in repository.expiries().values())
    for call in (
        lambda: repository.add(document(version="2"), files()),
        lambda: repository.channel("digits", "stable", None),
        lambda: repository.rotate("root"),
        lambda: repository.add_model("x"),
    ):
        before = tree(simulator.directory)
        refuses("no-key", call)
        assert tree(simulator.directory) == before


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "1.targets.json", "2.models-digits.json"])
def test_nothing_is_signed_on_top_of_a_changed_repository(simulator: RepositorySimulator, name: str) -> None:
    simulator.release("1.0.0")
    path = simulator.directory / "metadata" / name
    path.write_bytes(path.read_bytes().replace(b'"version":', b'"version": '))
    assert simulator.repository.models() == ["digits"]  # white space is not signed
    changed = json.loads(path.read_bytes())
    changed["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(changed))
    refuses("untrusted", lambda: simulator.repository.add(document(version="1.1.0"), files()))


def test_a_changed_channel_document_is_noticed(simulator: RepositorySimulator) -> None:
    simulator.release("1.0.0")
    path = next((simulator.directory / "targets" / "channels").rglob("*.json"))
    path.write_bytes(path.read_bytes().replace(b"stable", b"beta__"))
    refuses("untrusted", lambda: simulator.repository.channel("digits", "stable", "1.0.0"))


@pytest.mark.parametrize("name", ["root", "targets", "release", "operations", "online"])
def test_a_replaced_key_signs_and_the_old_one_no_longer_does(
    simulator: RepositorySimulator, tmp_path: Path, name: str
) -> None:
    simulator.release("1.0.0")
    old = KeyRing(tmp_path / "keys").signer(name)
    simulator.repository.rotate(name)
    assert KeyRing(tmp_path / "keys").signer(name).public_key.keyid != old.public_key.keyid
    simulator.release("1.1.0")
    simulator.repository.refresh()
    again = Repository(simulator.directory, KeyRing(tmp_path / "keys"), now=simulator.clock.read)
    again.expiries()
    (tmp_path / "state").mkdir()
    acquirer = Acquirer(tmp_path / "state", simulator, simulator.root_bytes, simulator.clock)  # with the first root
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    assert offer.version == "1.1.0"


def test_a_threshold_of_root_keys_must_be_here(tmp_path: Path) -> None:
    simulator = RepositorySimulator(tmp_path, root_keys=3, root_threshold=2)
    simulator.repository.rotate("root-2")
    for name in ("root", "root-3"):
        (tmp_path / "keys" / f"{name}.pem").rename(tmp_path / f"{name}.pem")
    ring = KeyRing(tmp_path / "keys")
    repository = Repository(simulator.directory, ring, now=simulator.clock.read)
    assert "2 must sign" in refuses("no-key", lambda: repository.rotate("online"))
    refuses("no-key", lambda: repository.rotate("root"))
    refuses("no-key", lambda: repository.rotate("../root"))
    refuses(
        "threshold",
        lambda: Repository.init(tmp_path / "r2", tmp_path / "k2", ["x"], root_keys=1, root_threshold=2),
    )


# --- order, locks, places ---------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The publisher dies here."""


def unsynced(fd: int) -> None:
    """A killed publisher loses no page cache: what counts is the order of the writes."""


def test_a_publisher_that_dies_anywhere_leaves_a_whole_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after every write of a publication: readers get the old state or the new, and the next try works."""
    monkeypatch.setattr(os, "fsync", unsynced)
    step = 0
    outcomes = set()
    while True:
        place = tmp_path / str(step)
        place.mkdir()
        simulator = RepositorySimulator(place)
        simulator.release("1.0.0")
        count = 0

        def stop(operation: str, path: str, at: int = step) -> None:
            nonlocal count
            if count == at:
                raise Stopped
            count += 1

        durable.set_hook(stop)
        try:
            simulator.release("1.1.0")
            died = False
        except Stopped:
            died = True
        finally:
            durable.set_hook(None)
        (place / "state").mkdir()
        source = DirectorySource(simulator.directory)
        acquirer = Acquirer(place / "state", source, simulator.root_bytes, simulator.clock)
        offer = acquirer.check("digits", "stable").offer
        assert offer is not None
        acquirer.acquire(offer)
        outcomes.add(offer.version)
        if not died:
            break
        if "1.1.0" not in {version for version, _, _ in simulator.repository.releases("digits")}:
            simulator.release("1.1.0", channel=None)
        simulator.repository.channel("digits", "stable", "1.1.0")
        offer = acquirer.check("digits", "stable").offer
        assert offer is not None
        assert offer.version == "1.1.0"
        acquirer.acquire(offer)
        step += 1
    assert outcomes == {"1.0.0", "1.1.0"}
    assert step > 20


def test_two_publishers_are_kept_apart(simulator: RepositorySimulator) -> None:
    fd = os.open(simulator.directory / ".publisher.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        refuses("locked", simulator.repository.refresh)
    finally:
        os.close(fd)
    simulator.repository.refresh()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    RepositorySimulator(tmp_path)
    before = tree(tmp_path)
    refuses("exists", lambda: Repository.init(tmp_path / "repository", tmp_path / "keys2", ["digits"]))
    refuses("key-exists", lambda: Repository.init(tmp_path / "other", tmp_path / "keys", ["digits"]))
    refuses("bad-name", lambda: Repository.init(tmp_path / "other", tmp_path / "keys2", ["a/b"]))
    assert tree(tmp_path) == before
    refuses("no-repository", lambda: Repository(tmp_path / "nowhere", KeyRing(tmp_path / "keys")))


# --- keys -------------------------------------------------------------------------------------------------------


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    ring = KeyRing.generate(tmp_path / "keys")
    for name in ring.names():
        assert ring.path(name).stat().st_mode & 0o777 == 0o600
    ring.path("root").chmod(0o640)
    assert "chmod 600" in refuses("key-mode", lambda: KeyRing(tmp_path / "keys").signer("root"))


def asked(name: str) -> str:
    """A person who knows the passphrase of every key."""
    return "right"


def test_encrypted_keys_need_their_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELAGENT_PASSPHRASE", "right")
    Repository.init(tmp_path / "repo", tmp_path / "keys", ["digits"], passphrase=passphrase_from(None))
    for name in ("root", "targets", "release", "operations"):
        assert b"ENCRYPTED" in (tmp_path / "keys" / f"{name}.pem").read_bytes()
    assert b"ENCRYPTED" not in (tmp_path / "keys" / "online.pem").read_bytes()
    assert KeyRing(tmp_path / "keys", passphrase_from(None)).signer("release")
    monkeypatch.setenv("MODELAGENT_PASSPHRASE", "wrong")
    refuses("passphrase", lambda: KeyRing(tmp_path / "keys", passphrase_from(None)).signer("release"))
    monkeypatch.delenv("MODELAGENT_PASSPHRASE")
    refuses("passphrase", lambda: KeyRing(tmp_path / "keys", passphrase_from(None)).signer("release"))
    (tmp_path / "secret").write_text("right\n")
    assert KeyRing(tmp_path / "keys", passphrase_from(tmp_path / "secret")).signer("release")
    assert KeyRing(tmp_path / "keys", passphrase_from(None, asked)).signer("release")
    refuses("passphrase", lambda: passphrase_from(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    ring = KeyRing.generate(tmp_path / "keys", ["release"])
    ring.path("release").write_bytes(content)
    refuses("bad-key", lambda: KeyRing(tmp_path / "keys").signer("release"))
