"""A write that failed leaves nothing behind, even where the disk did not let go of its temporary file at once."""

import errno
from pathlib import Path

import pytest

from crash_points import hooked
from modelagent import durable


def test_a_temporary_file_that_could_not_be_removed_goes_with_the_next_write(tmp_path: Path) -> None:
    def broken(operation: str, path: str) -> None:
        if operation != "create":
            raise OSError(errno.EIO, "Input/output error", path)

    with hooked(broken), pytest.raises(OSError, match="Input/output"):
        durable.write_atomic(tmp_path / "a", b"1")
    assert len(list(tmp_path.iterdir())) == 1
    durable.write_atomic(tmp_path / "b", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_cannot_be_removed_yet_is_tried_again_by_whoever_asks(tmp_path: Path) -> None:
    def broken(operation: str, path: str) -> None:
        if operation in {"write", "unlink"}:
            raise OSError(errno.EROFS, "Read-only file system", path)

    with hooked(broken):
        with pytest.raises(OSError, match="Read-only"):
            durable.write_atomic(tmp_path / "a", b"1")
        durable.tidy()
        assert len(list(tmp_path.iterdir())) == 1
    durable.tidy()
    assert list(tmp_path.iterdir()) == []


def test_what_is_disposed_of_goes_with_a_later_write(tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(b"patch")

    def broken(operation: str, path: str) -> None:
        if operation == "unlink":
            raise OSError(errno.EIO, "Input/output error", path)

    with hooked(broken):
        durable.dispose(tmp_path / "delta")
    assert (tmp_path / "delta").exists()
    durable.write_atomic(tmp_path / "b", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    durable.dispose(tmp_path / "b")
    durable.dispose(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("faults", "left"), [(3, 0), (9, 1)])
def test_a_process_that_ends_tries_again_for_a_moment(tmp_path: Path, faults: int, left: int) -> None:
    def broken(operation: str, path: str) -> None:
        nonlocal faults
        if operation in {"write", "unlink"} and faults:
            faults -= 1
            raise OSError(errno.EIO, "Input/output error", path)

    with hooked(broken):
        with pytest.raises(OSError, match="Input/output"):
            durable.write_atomic(tmp_path / "a", b"1")
        durable.tidy_to_end(tries=3, pause=0.0)
    assert len(list(tmp_path.iterdir())) == left
    durable.tidy()
