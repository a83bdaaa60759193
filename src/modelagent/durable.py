"""The only door to durable writes: after a call returns, a power cut cannot undo it, and before it returns the
old state is whole.

This file knows files, directories, renames and fsync (the order of Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014: write, fsync file, rename, fsync directory). It does not know what the files mean.

    write_atomic(path, b"...")      # path holds the old bytes or the new, never a mixture and never nothing
    swap_link(prepared, link)       # one rename: `link` names the old or the new, never nothing

Each system call that changes the disk goes through `point`, so that tests can enumerate and interrupt every one.
All functions raise OSError as the kernel gives it; callers turn it into DeviceError with the remedy.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Called with (operation, path) immediately before each system call that changes the disk. Tests replace it to
# kill, fail or count; in production it does nothing. One place, so that no write can be forgotten.
_hook: Callable[[str, str], None] | None = None


class LinkId(NamedTuple):
    """Identity of one symbolic link: survives the rename that puts it in place, never repeats."""

    inode: int
    mtime_ns: int


def set_hook(hook: Callable[[str, str], None] | None) -> None:
    """Install (or with None remove) the observer of every disk-changing call. For tests."""
    global _hook  # noqa: PLW0603 - one seam for fault injection, by design
    _hook = hook


def point(operation: str, path: Path | str) -> None:
    """Announce that `operation` is about to change `path`."""
    if _hook is not None:
        _hook(operation, str(path))


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    point("fsync-dir", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    point("fsync", path)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes, *, mode: int = 0o640) -> None:
    """Write and sync a file that must not exist yet; the name is not durable until its directory is synced."""
    point("create", path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, path, data)
        point("fsync", path)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o640, durable: bool = True) -> None:
    """Replace `path` by `data` in one rename.

    Args:
        path: the final name.
        data: the whole content.
        mode: permission bits of the new file.
        durable: sync file and directory; without it the file is still never torn, but may be the old one after
            a power cut (right for health, wrong for state).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        point("create", temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            _write_all(fd, temporary, data)
            if durable:
                point("fsync", temporary)
                os.fsync(fd)
        finally:
            os.close(fd)
        point("rename", path)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename durably: after the return both directories know."""
    point("rename", target)
    source.rename(target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def prepare_link(prepared: Path, destination: str) -> LinkId:
    """Make (or make anew) a link beside its future name, so that switching later needs no new inode.

    Returns:
        The link's identity, which `swap_link` keeps.
    """
    with contextlib.suppress(FileNotFoundError):
        point("unlink", prepared)
        prepared.unlink()
    point("symlink", prepared)
    prepared.symlink_to(destination)
    sync_directory(prepared.parent)
    return identify_link(prepared)


def swap_link(prepared: Path, link: Path) -> LinkId:
    """Put a prepared link in place by one rename; both must lie in the same directory."""
    identity = identify_link(prepared)
    point("swap", link)
    prepared.replace(link)
    sync_directory(link.parent)
    return identity


def identify_link(link: Path) -> LinkId:
    """Identity of a symbolic link; raises FileNotFoundError, or OSError when it is no link."""
    status = link.lstat()
    link.readlink()
    return LinkId(status.st_ino, status.st_mtime_ns)


def remove(path: Path) -> None:
    """Remove a file or link durably; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        point("unlink", path)
        path.unlink()
        sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory tree without following links; absent is fine."""
    if not path.is_dir() or path.is_symlink():
        remove(path)
        return
    for entry in _entries(path):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            with contextlib.suppress(FileNotFoundError):
                point("unlink", entry)
                entry.unlink()
    point("rmdir", path)
    path.rmdir()
    sync_directory(path.parent)


def _entries(path: Path) -> Iterator[Path]:
    return iter(sorted(path.iterdir()))


def _write_all(fd: int, path: Path, data: bytes) -> None:
    point("write", path)
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        view = view[written:]
