"""The command line of TUF's conformance suite: commands, files, the order of requests, artifacts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from modelagent.cli.tuf_client import main, place_of
from tuf_client_rig import FRESH, Client
from tuf_repository import TufRepository, digest_of

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
