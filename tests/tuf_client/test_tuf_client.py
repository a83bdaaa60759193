"""The command line of TUF's conformance suite: requests, files, exit codes, and each check of the client workflow."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from modelagent.cli.tuf_client import main, place_of
from tuf_repository import Site, TufRepository, digest_of, in_days, serving


class Client:
    """One client with its two directories; each command is what a new process would do."""

    def __init__(self, directory: Path, repository: TufRepository, site: Site) -> None:
        self.metadata = directory / "metadata"
        self.targets = directory / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.repository = repository
        self.site = site
        self.root = directory / "initial_root.json"

    def init(self, data: bytes | None = None) -> int:
        self.root.write_bytes(self.repository.published["root", 1] if data is None else data)
        return main(["--metadata-dir", str(self.metadata), "init", str(self.root)])

    def refresh(self) -> int:
        self.repository.requests.clear()
        return main(["--metadata-url", self.site.metadata_url, "--metadata-dir", str(self.metadata), "refresh"])

    def download(self, *names: str) -> int:
        self.repository.requests.clear()
        self.repository.artifact_requests.clear()
        words = ["--metadata-url", self.site.metadata_url, "--metadata-dir", str(self.metadata)]
        for name in names:
            words += ["--target-name", name]
        return main([*words, "--target-dir", str(self.targets), "--target-base-url", self.site.targets_url, "download"])

    def roles(self) -> dict[str, int]:
        """Every `*.json` directly in the metadata directory, parsed as the suite does."""
        return {
            path.name.removesuffix(".json"): Metadata[Any].from_bytes(path.read_bytes()).signed.version
            for path in self.metadata.glob("*.json")
        }

    def artifacts(self) -> list[bytes]:
        """Every regular file below the target directory, in the order of modification.

        Two written within one tick of the kernel's clock have the same time: these in the order of their bytes.
        """
        found = [path for path in self.targets.rglob("*") if path.is_file()]
        return [data for _, data in sorted((path.stat().st_mtime_ns, path.read_bytes()) for path in found)]


@pytest.fixture
def repository() -> TufRepository:
    return TufRepository()


@pytest.fixture
def client(
    tmp_path: Path, repository: TufRepository, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with serving(repository, f"{request.node.name}[?/#]") as site:
        made = Client(tmp_path, repository, site)
        assert made.init() == 0
        assert repository.requests == []
        yield made


FRESH = [("root", 2), ("timestamp", None), ("snapshot", 1), ("targets", 1)]


# --- commands, files, requests -------------------------------------------------------------------------------------


def test_a_refresh_asks_in_order_and_keeps_the_exact_bytes(client: Client, repository: TufRepository) -> None:
    assert client.refresh() == 0
    assert repository.requests == FRESH
    assert client.roles() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    for role in ("root", "snapshot", "targets"):
        assert (client.metadata / f"{role}.json").read_bytes() == repository.published[role, 1]
    assert (client.metadata / "timestamp.json").read_bytes() == repository.published["timestamp", None]
    assert set(client.site.methods) == {"GET"}


def test_a_refresh_without_news_asks_twice(client: Client, repository: TufRepository) -> None:
    assert client.refresh() == 0
    assert client.refresh() == 0
    assert repository.requests == [("root", 2), ("timestamp", None)]


def test_a_download_refreshes_first_and_an_unknown_target_fails_after_it(
    client: Client, repository: TufRepository
) -> None:
    assert client.download("nobody knows") == 1
    assert repository.requests == FRESH
    assert len(client.roles()) == 4
    assert client.artifacts() == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"not JSON", b"[]"])
def test_a_corrupt_first_root_asks_nobody(client: Client, repository: TufRepository, damage: bytes) -> None:
    client.init(damage)
    assert client.refresh() == 1
    assert repository.requests == []


def test_an_unsigned_first_root_asks_nobody(client: Client, repository: TufRepository) -> None:
    client.init(repository.sign("root", []))
    assert client.refresh() == 1
    assert repository.requests == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["refresh"],
        ["--metadata-dir", "/nowhere", "dance"],
        ["--metadata-dir", "/nowhere", "refresh"],
        ["--metadata-dir", "/nowhere", "--metadata-url", "http://127.0.0.1:9/", "download"],
        ["--metadata-dir", "/nowhere/at/all", "init", "/no/such/file"],
        ["--metadata-dir", "/nowhere", "--metadata-url", "not an address", "refresh"],
    ],
)
def test_everything_that_cannot_be_done_is_exit_code_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert capsys.readouterr().err


@pytest.mark.process
def test_it_is_one_executable_that_ends_by_itself(client: Client) -> None:
    words = ["--metadata-url", client.site.metadata_url, "--metadata-dir", str(client.metadata), "refresh"]
    ended = subprocess.run([sys.executable, "-m", "modelagent.cli.tuf_client", *words], check=False, timeout=30)
    assert ended.returncode == 0
    assert len(client.roles()) == 4


def test_unknown_fields_are_kept(client: Client, repository: TufRepository) -> None:
    repository.roles["targets"].unrecognized_fields["x-ours"] = {"a": [1, None, "ü"]}
    repository.all()
    assert client.refresh() == 0
    assert json.loads((client.metadata / "targets.json").read_bytes())["signed"]["x-ours"] == {"a": [1, None, "ü"]}


# --- artifacts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["file", "a/b/c.tgz", "with blank", "ümlaut/€", "../../etc/x", "..", ".hidden", "a%2Fb"]
)
def test_an_artifact_has_one_file_of_its_own(client: Client, repository: TufRepository, name: str) -> None:
    repository.add_target(name, b"content")
    repository.all()
    code = client.download(name)
    assert client.artifacts() in ([b"content"], [])
    assert {path.parent for path in client.targets.rglob("*")} <= {client.targets}
    assert code == 0 or ".." in name or name == ".hidden", "only names that could lead elsewhere may be refused"
    if code == 0:
        assert (client.targets / place_of(name)).read_bytes() == b"content"


def test_names_become_single_parts() -> None:
    names = ["a/b", "..", ".", ".x", "a" * 400, "a" * 401, "A", "a", "x\0y", "a%2Fb"]
    places = [place_of(name) for name in names]
    assert len(set(places)) == len(places)
    assert all("/" not in place and not place.startswith(".") and len(place) < 255 for place in places)


def test_an_unchanged_artifact_is_not_asked_for_again_and_keeps_its_time(
    client: Client, repository: TufRepository
) -> None:
    repository.add_target("file", b"content")
    repository.all()
    assert client.download("file") == 0
    stamp = (client.targets / "file").stat().st_mtime_ns
    assert client.download("file") == 0
    assert repository.artifact_requests == []
    assert (client.targets / "file").stat().st_mtime_ns == stamp


def test_eleven_rounds_of_change(client: Client, repository: TufRepository) -> None:
    for index in range(11):
        repository.add_target("file", b"round %d" % index)
        repository.all()
        assert client.download("file") == 0
        assert client.artifacts() == [b"round %d" % index]


def test_substituted_bytes_never_appear_and_the_good_ones_stay(client: Client, repository: TufRepository) -> None:
    repository.add_target("file", b"good")
    repository.all()
    assert client.download("file") == 0
    repository.add_target("file", b"next")
    repository.all()
    repository.artifacts[f"{digest_of(b'next')}.file"] = b"evil"
    assert client.download("file") == 1
    assert client.artifacts() == [b"good"]
    repository.artifacts[f"{digest_of(b'next')}.file"] = b"next and more"
    assert client.download("file") == 1
    assert client.artifacts() == [b"good"]
    repository.artifacts[f"{digest_of(b'next')}.file"] = b"next"
    assert client.download("file") == 0
    assert client.artifacts() == [b"next"]


@pytest.mark.parametrize("kinds", [("sha256",), ("sha512",), ("sha256", "sha512")])
def test_every_known_hash_counts(client: Client, repository: TufRepository, kinds: tuple[str, ...]) -> None:
    repository.add_target("file", b"content", algorithms=kinds)
    repository.all()
    assert client.download("file") == 0
    entry = repository.roles["targets"].targets["file"]
    entry.hashes[kinds[-1]] = digest_of(b"other", kinds[-1])
    for kind in kinds:
        repository.artifacts[f"{entry.hashes[kind]}.file"] = b"content"
    repository.all()
    assert client.download("file") == 1
    assert client.artifacts() == [b"content"]


def test_an_unknown_hash_alone_is_refused_and_beside_a_known_one_passed_over(
    client: Client, repository: TufRepository
) -> None:
    entry = TargetFile(4, {"md99": "00"}, "file")
    repository.roles["targets"].targets["file"] = entry
    repository.artifacts["00.file"] = b"data"
    repository.all()
    assert client.download("file") == 1
    assert client.artifacts() == []
    entry.hashes = {"md99": "00", "sha256": digest_of(b"data")}
    repository.all()
    assert client.download("file") == 0


def test_downloads_stop_at_the_first_that_fails(client: Client, repository: TufRepository) -> None:
    for name in ("one", "three"):
        repository.add_target(name, name.encode())
    repository.all()
    assert client.download("one", "two", "three") == 1
    assert client.artifacts() == [b"one"]


def test_a_link_in_the_target_directory_is_replaced_not_followed(
    client: Client, repository: TufRepository, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"content")
    (client.targets / "file").symlink_to(outside)
    repository.add_target("file", b"content")
    repository.all()
    assert client.download("file") == 0
    assert not (client.targets / "file").is_symlink()
    assert outside.read_bytes() == b"content"


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
