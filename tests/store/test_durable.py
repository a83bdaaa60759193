import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crash_points import failing_once, hooked, killed_at, points_of
from modelagent import durable
from modelagent.errors import DeviceError


@pytest.mark.process
def test_write_atomic_is_old_or_new_at_every_point(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    points = points_of(lambda: durable.write_atomic(path, b"new"))
    assert [name for name, _ in points] == ["create", "write", "fsync", "rename", "fsync-dir"]
    for count in range(len(points)):
        path.write_bytes(b"old")
        assert killed_at(count, lambda: durable.write_atomic(path, b"new"))
        assert path.read_bytes() == (b"old" if count < 4 else b"new")


def test_write_atomic_leaves_no_temporary_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for count in range(4):
        with hooked(failing_once(count, errno.ENOSPC)), pytest.raises(OSError, match="No space"):
            durable.write_atomic(path, b"new")
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        durable.write_atomic(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_keep_their_identity_through_the_swap_and_never_repeat(tmp_path: Path) -> None:
    prepared, link = tmp_path / ".next", tmp_path / "current"
    seen = set()
    for number in range(200):
        identity = durable.prepare_link(prepared, f"slots/{number}")
        assert durable.swap_link(prepared, link) == identity == durable.identify_link(link)
        assert not prepared.is_symlink()
        seen.add(identity)
    assert len(seen) == 200


def test_identify_link_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        durable.identify_link(tmp_path / "file")


def test_append_takes_back_what_it_could_not_finish(tmp_path: Path) -> None:
    path = tmp_path / "log"
    durable.append(path, b"one\n")
    with hooked(failing_once(2, errno.EIO)), pytest.raises(OSError, match="Input/output"):
        durable.append(path, b"two\n")
    assert path.read_bytes() == b"one\n"
    durable.append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_overwrite_and_truncate(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    durable.overwrite(path, 4, b"xx")
    durable.truncate(path, 7)
    assert path.read_bytes() == b"0123xx6"


@pytest.mark.parametrize(
    "operation",
    [
        lambda path: durable.append(path, b"x"),
        lambda path: durable.overwrite(path, 0, b"x"),
        lambda path: durable.truncate(path, 0),
        durable.sync_file,
    ],
)
def test_a_planted_link_is_not_followed(tmp_path: Path, operation: Callable[[Path], None]) -> None:
    precious, planted = tmp_path / "precious", tmp_path / "planted"
    precious.write_bytes(b"precious")
    planted.symlink_to(precious)
    with pytest.raises(OSError):
        operation(planted)
    assert precious.read_bytes() == b"precious"


def test_write_atomic_replaces_a_planted_link(tmp_path: Path) -> None:
    precious, planted = tmp_path / "precious", tmp_path / "planted"
    precious.write_bytes(b"precious")
    planted.symlink_to(precious)
    durable.write_atomic(planted, b"x")
    assert precious.read_bytes() == b"precious"
    assert not planted.is_symlink()


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    doomed = tmp_path / "doomed"
    (doomed / "deep").mkdir(parents=True)
    (doomed / "deep" / "file").touch()
    (doomed / "link").symlink_to(outside)
    durable.remove_tree(doomed)
    durable.remove_tree(doomed)
    assert (outside / "precious").exists()
    assert not doomed.exists()
    (tmp_path / "top").symlink_to(outside)
    durable.remove_tree(tmp_path / "top")
    assert (outside / "precious").exists()
    assert not (tmp_path / "top").is_symlink()


def test_make_directory(tmp_path: Path) -> None:
    durable.make_directory(tmp_path / "new")
    durable.make_directory(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            durable.make_directory(tmp_path / name)


def test_two_threads_may_make_one_directory(tmp_path: Path) -> None:
    def as_quick(operation: str, path: str) -> None:
        if operation == "mkdir":
            Path(path).mkdir()

    with hooked(as_quick):
        durable.make_directory(tmp_path / "new")
    assert durable.is_directory(tmp_path / "new")


def test_have_directory_costs_nothing_where_there_is_one_and_replaces_only_when_asked(tmp_path: Path) -> None:
    place = tmp_path / "new"
    assert [name for name, _ in points_of(lambda: durable.have_directory(place))] == ["mkdir", "fsync-dir"]
    (place / "kept").touch()
    assert points_of(lambda: durable.have_directory(place, replace=True)) == []
    assert (place / "kept").exists()
    link = tmp_path / "link"
    link.symlink_to(place)
    with pytest.raises(NotADirectoryError):
        durable.have_directory(link)
    durable.have_directory(link, replace=True)
    assert durable.is_directory(link)
    assert (place / "kept").exists()


def test_set_mode_only_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    assert points_of(lambda: durable.set_mode(path, 0o640)) == [("chmod", str(path))]
    assert points_of(lambda: durable.set_mode(path, 0o640)) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "no-space"),
        (errno.EDQUOT, "no-space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EPERM, "permission"),
        (errno.EMFILE, "too-many-files"),
        (errno.EIO, "io"),
    ],
)
def test_device_errors_name_place_and_remedy(number: int, code: str) -> None:
    with pytest.raises(DeviceError) as caught, durable.device_errors("write the state"):
        raise OSError(number, os.strerror(number), "/var/lib/x")
    assert caught.value.code == code
    assert caught.value.message.startswith("write the state: /var/lib/x: ")
    assert "; " in caught.value.message
