"""The client workflow under TUF's command line: signatures, versions, hashes; rollback, freeze, fast-forward."""

import json
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from tuf_client_rig import Client
from tuf_repository import TufRepository, in_days

# --- signatures, versions, hashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_an_unsigned_role_is_refused_and_not_kept(client: Client, repository: TufRepository, role: str) -> None:
    assert client.refresh() == 0
    before = client.roles()
    repository.all()
    repository.sign(role, [])
    assert client.refresh() == 1
    kept = client.roles()
    assert kept[role] == before[role]
    repository.all()
    assert client.refresh() == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_is_missing_is_a_failure(client: Client, repository: TufRepository, role: str) -> None:
    del repository.published[role, None if role == "timestamp" else 1]
    assert client.refresh() == 1
    assert role not in client.roles()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_another_version_than_the_address_says_is_refused(client: Client, repository: TufRepository, role: str) -> None:
    repository.roles[role].version = 5
    data = repository.sign(role)
    repository.roles[role].version = 1
    repository.sign(role)
    repository.published[role, 1] = data
    assert client.refresh() == 1
    assert role not in client.roles()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a_hash_that_does_not_match_is_refused(client: Client, repository: TufRepository, role: str) -> None:
    repository.hashes = True
    repository.all()
    repository.published[role, 2] = repository.published[role, 2] + b" "
    assert client.refresh() == 1
    assert role not in client.roles()


def test_a_role_of_another_type_is_refused(client: Client, repository: TufRepository) -> None:
    repository.published["snapshot", 1] = repository.published["targets", 1]
    assert client.refresh() == 1


def keys_of(repository: TufRepository, role: str, count: int, threshold: int) -> list[CryptoSigner]:
    signers = [*repository.signers[role], *(repository.add_key(role) for _ in range(count - 1))]
    repository.roles["root"].roles[role].threshold = threshold
    repository.publish("root")
    return signers


def test_a_threshold_needs_that_many_keys_and_one_key_counts_once(client: Client, repository: TufRepository) -> None:
    signers = keys_of(repository, "timestamp", 3, 2)
    repository.roles["timestamp"].version += 1
    data = json.loads(repository.sign("timestamp", signers[:1]))
    assert client.refresh() == 1
    data["signatures"] *= 2  # the same key twice
    repository.published["timestamp", None] = json.dumps(data).encode()
    assert client.refresh() == 1
    repository.sign("timestamp", signers[:2])
    assert client.refresh() == 0


def test_a_bad_signature_beside_enough_good_ones_does_no_harm(client: Client, repository: TufRepository) -> None:
    signers = keys_of(repository, "timestamp", 3, 2)
    data = json.loads(repository.sign("timestamp", signers))
    data["signatures"][0]["sig"] = "00" * 64
    repository.published["timestamp", None] = json.dumps(data).encode()
    assert client.refresh() == 0


@pytest.mark.parametrize(
    "make", [CryptoSigner.generate_rsa, CryptoSigner.generate_ecdsa, CryptoSigner.generate_ed25519]
)
def test_the_usual_kinds_of_keys(client: Client, repository: TufRepository, make: Callable[[], CryptoSigner]) -> None:
    signer = make()
    for old in repository.signers.pop("timestamp"):
        repository.roles["root"].revoke_key(old.public_key.keyid, "timestamp")
    repository.add_key("timestamp", signer=signer)
    repository.publish("root")
    repository.publish("timestamp")
    assert client.refresh() == 0


# --- rollback, freeze, fast-forward --------------------------------------------------------------------------------


def test_an_older_timestamp_is_refused(client: Client, repository: TufRepository) -> None:
    old = repository.published["timestamp", None]
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.published["timestamp", None] = old
    assert client.refresh() == 1
    assert client.roles()["timestamp"] == 2


def test_another_timestamp_of_the_same_version_is_nothing_new(client: Client, repository: TufRepository) -> None:
    assert client.refresh() == 0
    first = (client.metadata / "timestamp.json").read_bytes()
    repository.roles["timestamp"].expires += timedelta(days=1)
    repository.sign("timestamp")
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == first


def test_an_older_snapshot_in_a_newer_timestamp_is_refused(client: Client, repository: TufRepository) -> None:
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 0
    repository.roles["timestamp"].snapshot_meta.version = 1
    repository.publish("timestamp")
    assert client.refresh() == 1
    assert client.roles()["snapshot"] == 2


@pytest.mark.parametrize("how", ["older", "gone"])
def test_targets_that_go_back_or_vanish_are_refused(client: Client, repository: TufRepository, how: str) -> None:
    repository.delegate("targets", "role", ["*"])
    repository.all()
    assert client.refresh() == 0
    meta = repository.roles["snapshot"].meta
    if how == "older":
        meta["targets.json"].version = 1
    else:
        del meta["role.json"]
    repository.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.roles()["snapshot"] == 2


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_new_keys_heal_a_fast_forward(client: Client, repository: TufRepository, role: str) -> None:
    repository.roles[role].version = 99_999
    repository.sign(role)
    if role == "snapshot":
        repository.publish("timestamp")
    assert client.refresh() == 0
    assert client.roles()[role] == 99_999
    repository.roles[role].version = 1
    repository.replace_keys("timestamp")
    repository.replace_keys("snapshot")
    repository.publish("root")
    repository.sign("snapshot")
    repository.roles["timestamp"].version = 1
    repository.sign("timestamp")
    assert client.refresh() == 0
    assert client.roles()[role] == 1


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_what_has_expired_is_refused_and_only_a_root_is_kept(
    client: Client, repository: TufRepository, role: str
) -> None:
    repository.roles[role].expires = in_days(-1)
    if role == "root":
        repository.publish("root")
    else:
        repository.all()
    assert client.refresh() == 1
    assert client.roles().get(role) == (2 if role == "root" else None)
    if role == "root":
        assert repository.requests == [("root", 2), ("root", 3)], "nobody is asked for more below an expired root"
    repository.roles[role].expires = in_days(9)
    repository.publish("root") if role == "root" else repository.all()
    assert client.refresh() == 0


def test_expired_local_files_do_not_stand_in_the_way(
    client: Client, repository: TufRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("timestamp", "snapshot", "targets"):
        repository.roles[role].expires = in_days(7)
    repository.all()
    assert client.refresh() == 0
    later = time.time() + 18 * 86400
    monkeypatch.setattr(time, "time", lambda: later)  # what `faketime` does to a new process
    assert client.refresh() == 1
    for role in ("timestamp", "snapshot", "targets"):
        repository.roles[role].expires = in_days(28)
    repository.all()
    assert client.refresh() == 0


def test_expired_local_files_still_protect_against_older_ones(
    client: Client, repository: TufRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repository.published["timestamp", None]
    repository.roles["timestamp"].expires = in_days(7)
    repository.publish("timestamp")
    assert client.refresh() == 0
    later = time.time() + 18 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    repository.published["timestamp", None] = first
    assert client.refresh() == 1
    assert client.roles()["timestamp"] == 2


def test_the_clock_of_a_long_past_build_is_taken_as_it_is(
    client: Client, repository: TufRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite replays repositories of the past: the product's floor under the clock must be off here."""
    past = time.time() - 20 * 365 * 86400
    monkeypatch.setattr(time, "time", lambda: past)
    assert client.refresh() == 0
