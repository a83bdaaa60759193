"""A directory as a source: plain files below it and nothing else."""

import os
from pathlib import Path

import pytest

from modelagent.errors import SourceError, TrustError
from modelagent.sources.directory import DirectorySource, place_of


@pytest.fixture
def source(tmp_path: Path) -> DirectorySource:
    (tmp_path / "stick" / "files").mkdir(parents=True)
    (tmp_path / "stick" / "files" / "x").write_bytes(b"0123456789")
    (tmp_path / "secret").write_bytes(b"secret")
    return DirectorySource(tmp_path / "stick")


def read(source: DirectorySource, name: str = "files/x", *, limit: int = 100, offset: int = 0) -> bytes:
    with source.fetch(name, limit=limit, offset=offset) as body:
        return b"".join(body)


def test_a_file_comes_whole_or_from_an_offset(source: DirectorySource) -> None:
    assert read(source) == b"0123456789"
    assert read(source, offset=4, limit=10) == b"456789"
    with source.fetch("files/x", limit=10, offset=11) as body:
        assert (body.offset, body.total) == (0, 10)  # the file shrank: from the start


def test_more_than_the_limit_is_endless_data(source: DirectorySource) -> None:
    with pytest.raises(TrustError) as caught:
        read(source, limit=9)
    assert caught.value.code == "endless-data"


def test_what_is_not_there_is_not_found(source: DirectorySource, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read(source, "files/y")
    assert caught.value.code == "not-found"
    with pytest.raises(SourceError, match="mounted") as caught:
        read(DirectorySource(tmp_path / "gone"))
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("name", ["../secret", "files/../../secret", "files/%2e%2e/%2e%2e/secret", "files%2Fx"])
def test_a_name_that_climbs_is_a_path_trick(source: DirectorySource, name: str) -> None:
    with pytest.raises(TrustError) as caught:
        read(source, name)
    assert caught.value.code == "path-trick"


@pytest.mark.parametrize("kind", ["link", "directory-link", "pipe", "directory"])
def test_only_plain_files_are_opened(source: DirectorySource, tmp_path: Path, kind: str) -> None:
    name = "files/trap"
    trap = tmp_path / "stick" / "files" / "trap"
    if kind == "link":
        trap.symlink_to(tmp_path / "secret")
    elif kind == "directory-link":
        trap.symlink_to(tmp_path)
        name = "files/trap/secret"
    elif kind == "pipe":
        os.mkfifo(trap)
    else:
        trap.mkdir()
    with pytest.raises(SourceError) as caught:
        read(source, name)
    assert caught.value.code == "unreachable"


def test_no_descriptor_is_left_open(source: DirectorySource) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read(source)
        for name, limit in (("files/y", 10), ("files/x", 1), ("files", 10)):
            with pytest.raises((SourceError, TrustError)):
                read(source, name, limit=limit)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("/media/a b?c", Path("/media/a b?c")),
        ("file:///media/a%20b", Path("/media/a b")),
        ("file://localhost/media", Path("/media")),
        ("FILE:/media", Path("/media")),
        ("https://models.example.org/x", None),
        ("HTTP://models.example.org/x", None),
    ],
)
def test_the_place_that_an_address_names(address: str, place: Path | None) -> None:
    assert place_of(address) == place
