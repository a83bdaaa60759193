"""The client workflow under TUF's command line: new roots, and delegations."""

import pytest
from securesystemslib.signer import CryptoSigner

from tuf_client_rig import Client
from tuf_repository import TufRepository, in_days

# --- root rotation -------------------------------------------------------------------------------------------------


def test_many_roots_are_followed_one_by_one(client: Client, repository: TufRepository) -> None:
    for _ in range(5):
        repository.publish("root")
    assert client.refresh() == 0
    assert repository.requests[:6] == [("root", number) for number in range(2, 8)]
    assert client.roles()["root"] == 6


@pytest.mark.parametrize(
    ("old_signs", "new_signs", "code"), [(True, True, 0), (False, True, 1), (True, False, 1), (False, False, 1)]
)
def test_a_new_root_needs_the_old_keys_and_its_own(
    client: Client, repository: TufRepository, old_signs: bool, new_signs: bool, code: int
) -> None:
    old = repository.signers["root"]
    repository.replace_keys("root")
    new = repository.signers["root"]
    repository.roles["root"].version += 1
    repository.sign("root", [*(old if old_signs else []), *(new if new_signs else [])])
    assert client.refresh() == code
    assert client.roles()["root"] == (2 if code == 0 else 1)


def test_a_root_that_skips_a_version_is_refused(client: Client, repository: TufRepository) -> None:
    repository.roles["root"].version = 3
    data = repository.sign("root")
    repository.published["root", 2] = data
    assert client.refresh() == 1
    assert client.roles()["root"] == 1


def test_roots_are_kept_one_by_one_up_to_the_one_that_fails(client: Client, repository: TufRepository) -> None:
    repository.publish("root")
    repository.roles["root"].version += 1
    repository.sign("root", [])
    assert client.refresh() == 1
    assert client.roles()["root"] == 2


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_after_a_rotation_only_the_new_key_counts(client: Client, repository: TufRepository, role: str) -> None:
    old = repository.signers[role]
    assert client.refresh() == 0
    repository.replace_keys(role)
    repository.publish("root")
    repository.all()
    assert client.refresh() == 0
    repository.all()
    repository.sign(role, old)
    assert client.refresh() == 1


def test_no_more_than_256_roots_are_followed_at_once(client: Client, repository: TufRepository) -> None:
    for _ in range(260):
        repository.publish("root")
    client.refresh()
    assert client.roles()["root"] == 257
    assert client.refresh() == 0
    assert client.roles()["root"] == 261


# --- delegations ---------------------------------------------------------------------------------------------------


def visited(repository: TufRepository) -> list[str]:
    return [role for role, _ in repository.requests if role not in {"root", "timestamp", "snapshot", "targets"}]


def test_delegations_are_searched_depth_first_in_order(client: Client, repository: TufRepository) -> None:
    for delegator, role in [("targets", "A"), ("targets", "B"), ("A", "C"), ("A", "D"), ("C", "E")]:
        repository.delegate(delegator, role, ["*"])
    repository.all()
    assert client.download("nowhere") == 1
    assert visited(repository) == ["A", "C", "E", "D", "B"]


def test_a_cycle_ends(client: Client, repository: TufRepository) -> None:
    repository.delegate("targets", "A", ["*"])
    repository.delegate("A", "B", ["*"])
    repository.delegate("B", "A", ["*"], shared=True)
    repository.all()
    assert client.download("nowhere") == 1
    assert visited(repository) == ["A", "B"]


def test_a_terminating_role_ends_the_search(client: Client, repository: TufRepository) -> None:
    repository.delegate("targets", "A", ["*"], terminating=True)
    repository.delegate("targets", "B", ["*"])
    repository.delegate("A", "C", ["*"])
    repository.add_target("file", b"content", role="B")
    repository.all()
    assert client.download("file") == 1
    assert visited(repository) == ["A", "C"]


@pytest.mark.parametrize(
    ("pattern", "path", "match"),
    [
        ("*", "file", True),
        ("*", "dir/file", False),
        ("dir/*", "dir/file", True),
        ("dir/*", "dir/sub/file", False),
        ("*/*/*.tgz", "a/b/c.tgz", True),
        ("*/*/*.tgz", "a/b/c.zip", False),
        ("file-?.txt", "file-1.txt", True),
        ("file-?.txt", "file-10.txt", False),
        ("*.txt", ".txt", True),
    ],
)
def test_a_star_does_not_cross_a_slash(
    client: Client, repository: TufRepository, pattern: str, path: str, match: bool
) -> None:
    repository.delegate("targets", "A", [pattern])
    repository.add_target(path, b"content", role="A")
    repository.all()
    expected = 0 if match else 1
    code = client.download(path)
    assert visited(repository) == (["A"] if match else [])
    assert code == expected or path.startswith("."), "a hidden name may be refused, never misplaced"


def test_no_more_than_32_delegations_are_searched(client: Client, repository: TufRepository) -> None:
    for index in range(40):
        repository.delegate("targets", f"role-{index}", ["*"])
    repository.add_target("file", b"content", role="role-39")
    repository.all()
    assert client.download("file") == 1
    assert len(visited(repository)) <= 32


def test_a_role_that_the_snapshot_does_not_list_is_refused(client: Client, repository: TufRepository) -> None:
    repository.delegate("targets", "A", ["*"])
    repository.publish("A", "targets")
    del repository.roles["snapshot"].meta["A.json"]
    repository.publish("snapshot", "timestamp")
    assert client.download("file") == 1
    assert visited(repository) == []


@pytest.mark.parametrize("role", ["?", "#", "/x", "../x", "a b", "%2F", "ü", "x" * 300, "a:b", "."])
def test_role_names_never_become_paths(client: Client, repository: TufRepository, role: str) -> None:
    repository.delegate("targets", role, ["*"])
    repository.add_target("file", b"content", role=role)
    repository.all()
    assert client.download("file") == 0
    assert visited(repository) == [role]
    assert len(client.roles()) == 5
    assert not (client.metadata.parent / "x.json").exists()


def diamond(repository: TufRepository, *, known_to_second: bool) -> None:
    """Two roles that delegate to the same third one; the second may know another key of it."""
    repository.delegate("targets", "left", ["left/*"])
    repository.delegate("targets", "right", ["right/*"])
    repository.delegate("left", "shared", ["*/*"])
    repository.delegate("right", "shared", ["*/*"], shared=True)
    if not known_to_second:
        right = repository.roles["right"]
        right.revoke_key(repository.signers["shared"][0].public_key.keyid, "shared")
        right.add_key(CryptoSigner.generate_ed25519().public_key, "shared")
    for path in ("left/file", "right/file"):
        repository.add_target(path, path.encode(), role="shared")
    repository.all()


def test_a_role_known_already_is_held_against_its_present_delegator(client: Client, repository: TufRepository) -> None:
    """The one check that python-tuf 7.0.0 and go-tuf fail: vouched for by one delegator is not by the other."""
    diamond(repository, known_to_second=False)
    assert client.download("left/file", "right/file") == 1
    assert client.artifacts() == [b"left/file"]
    assert client.download("left/file") == 0
    assert client.download("right/file") == 1
    assert client.artifacts() == [b"left/file"]


def test_a_role_that_both_delegators_vouch_for_is_fetched_once(client: Client, repository: TufRepository) -> None:
    diamond(repository, known_to_second=True)
    assert client.download("left/file", "right/file") == 0
    assert client.artifacts() == [b"left/file", b"right/file"]
    assert visited(repository) == ["left", "shared", "right"]


def test_a_cached_role_is_dropped_when_its_delegator_has_new_keys(client: Client, repository: TufRepository) -> None:
    repository.delegate("targets", "A", ["*"])
    repository.add_target("file", b"content", role="A")
    repository.all()
    assert client.download("file") == 0
    old = repository.signers["A"]
    repository.replace_keys("A", "targets")
    repository.publish("targets", "snapshot", "timestamp")
    (client.targets / "file").unlink()
    assert client.download("file") == 1, "the same version, signed by a key that no longer counts"
    repository.all()
    assert client.download("file") == 0
    repository.all()
    repository.sign("A", old)
    assert client.download("file") == 1


def test_a_delegated_role_that_expired_is_refused(client: Client, repository: TufRepository) -> None:
    repository.delegate("targets", "A", ["*"])
    repository.add_target("file", b"content", role="A")
    repository.roles["A"].expires = in_days(-1)
    repository.all()
    assert client.download("file") == 1
    assert "A" not in client.roles()


def test_a_repository_without_consistent_snapshots(client: Client, repository: TufRepository) -> None:
    repository.roles["root"].consistent_snapshot = False
    repository.publish("root")
    repository.add_target("dir/file", b"content")
    repository.all()
    for role in ("snapshot", "targets"):
        repository.published[role, None] = repository.published[role, 2]
    repository.artifacts["dir/file"] = b"content"
    assert client.download("dir/file") == 0
    assert repository.requests == [("root", 2), ("root", 3), ("timestamp", None), ("snapshot", None), ("targets", None)]
    assert repository.artifact_requests == ["dir/file"]


def test_endless_metadata_is_cut_off(client: Client, repository: TufRepository) -> None:
    repository.published["timestamp", None] = repository.published["timestamp", None] + b" " * 20_000
    assert client.refresh() == 1
    assert "timestamp" not in client.roles()
