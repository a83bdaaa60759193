"""The only door to durable writes: what has returned survives a power cut, what has not leaves the old state whole.

This file knows files, directories, renames and fsync (the order of Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014: write, fsync file, rename, fsync directory). It does not know what the files mean.

    write_atomic(path, b"...")      # path holds the old bytes or the new, never a mixture and never nothing
    swap_link(prepared, link)       # one rename: `link` names the old or the new, never nothing

Each system call that changes the disk goes through `point`, so that tests can enumerate and interrupt every one.
All functions raise OSError as the kernel gives it; callers turn it into DeviceError with the remedy, by
`device_errors`.
"""

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from modelagent.errors import DeviceError

# errno -> (code, remedy) of the DeviceError it becomes. The kernel says ENOSPC for blocks and for inodes alike.
_REMEDIES: Final = {
    errno.ENOSPC: ("no-space", "free some space or inodes; nothing that runs is touched"),
    errno.EDQUOT: ("no-space", "raise the quota or free some space; nothing that runs is touched"),
    errno.EROFS: ("read-only", "mount the file system read-write; see `dmesg` if the kernel made it read-only"),
    errno.EACCES: ("permission", "give the directory to the updater's user (see `modelagent doctor`)"),
    errno.EPERM: ("permission", "give the directory to the updater's user (see `modelagent doctor`)"),
    errno.EMFILE: ("too-many-files", "raise LimitNOFILE of the unit"),
    errno.ENFILE: ("too-many-files", "raise fs.file-max of the machine"),
}
_TEMPORARY: Final = re.compile(r"\..+\.\d+\.tmp")  # as `write_atomic` names it
_NO_REMEDY: Final = ("io", "see `dmesg`: the storage may be failing")

# Called with (operation, path) immediately before each system call that changes the disk. Tests replace it to
# kill, fail or count; in production it does nothing. One place, so that no write can be forgotten.
_hook: Callable[[str, str], None] | None = None
_waste: Final[set[Path]] = set()  # files of nobody's that have to go, and could not yet
_waste_guard: Final = threading.Lock()


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


@contextlib.contextmanager
def device_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the body into DeviceError; `action` says what was being done, for a person."""
    try:
        yield
    except OSError as error:
        code, remedy = _REMEDIES.get(error.errno or 0, _NO_REMEDY)
        where = f": {error.filename}" if error.filename else ""
        raise DeviceError(f"{action}{where}: {error.strerror or error}; {remedy}", code=code) from error


def is_directory(path: Path) -> bool:
    """Whether `path` is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def make_directory(path: Path, *, mode: int = 0o750) -> None:
    """Make a directory durably; an existing one is fine, anything else under that name is NotADirectoryError."""
    if not is_directory(path):
        try:
            point("mkdir", path)
            path.mkdir(mode)
        except FileExistsError as error:
            if not is_directory(path):  # else another thread was as quick
                raise NotADirectoryError(
                    errno.ENOTDIR, "is no directory (a link or a file was put there)", str(path)
                ) from error
    sync_directory(path.parent)


def have_directory(path: Path, *, replace: bool = False) -> None:
    """Like `make_directory`, but one that is there costs the disk nothing; `replace`: whatever else is there goes."""
    if not is_directory(path):
        if replace:
            remove_tree(path)
        make_directory(path)


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
    with _waste_guard:
        _waste.discard(temporary)
    if os.path.lexists(temporary):
        unlink(temporary)
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
        with _waste_guard:
            _waste.add(temporary)
        tidy()
        raise
    if durable:
        sync_directory(path.parent)
    tidy()


def append(path: Path, data: bytes, *, mode: int = 0o640, sync: bool = True) -> None:
    """Append and sync; a failure takes back what was written of `data`, as far as the device lets it.

    Without `sync` it survives the death of this process, and a power cut once the kernel has written it.
    """
    point("append", path)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        before = os.fstat(fd).st_size
        try:
            _write_all(fd, path, data)
            if sync:
                point("fsync", path)
                os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                point("truncate", path)
                os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)
    if sync and before == 0:
        sync_directory(path.parent)
    tidy()


def overwrite(path: Path, offset: int, data: bytes, *, sync: bool = True) -> None:
    """Write `data` in place at `offset` of an existing file and sync. Not atomic: the caller keeps a second copy.

    Without `sync` it survives the death of this process, and a power cut once the kernel has written it.
    """
    point("overwrite", path)
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        _write_all(fd, path, data)
        if sync:
            point("fsync", path)
            os.fsync(fd)
    finally:
        os.close(fd)
    tidy()


def truncate(path: Path, length: int) -> None:
    """Cut a file to `length` bytes, durably."""
    point("truncate", path)
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, length)
        point("fsync", path)
        os.fsync(fd)
    finally:
        os.close(fd)


def move(source: Path, target: Path) -> None:
    """Rename without syncing: for many files at once, followed by one `sync_directory` of each directory."""
    point("rename", target)
    source.replace(target)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, without copying and without syncing."""
    point("link", target)
    os.link(source, target, follow_symlinks=False)


def set_mode(path: Path, mode: int) -> None:
    """Set permission bits of a file or directory if they differ."""
    if stat.S_IMODE(path.lstat().st_mode) != mode:
        point("chmod", path)
        path.chmod(mode)


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
    # The kernel stamps files with a coarse clock and reuses inodes at once: two links made within one tick could
    # look the same. The fine clock keeps the identity from ever repeating.
    now = time.time_ns()
    os.utime(prepared, ns=(now, now), follow_symlinks=False)
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
    """Remove a file or link durably; absent is fine, and synced all the same (an earlier try may have been cut)."""
    unlink(path)
    with contextlib.suppress(FileNotFoundError):
        sync_directory(path.parent)


def sweep(directory: Path) -> None:
    """Remove what `write_atomic` left anywhere below `directory` in processes that died in it.

    Only for whoever alone writes there, before he does. What cannot be removed stays, for the next time.
    """
    for path in directory.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                unlink(path)


def tidy() -> None:
    """Remove what writes that failed have left, and what was disposed of; what the disk keeps stays for later.

    Every write tries it, and whoever may not write for hours calls it now and then.
    """
    if _waste:
        with _waste_guard:
            for path in tuple(_waste):
                with contextlib.suppress(OSError):
                    if os.path.lexists(path):
                        unlink(path)
                    _waste.discard(path)


def tidy_to_end(tries: int = 5, pause: float = 0.1) -> None:
    """Like `tidy`, for a process that ends now: what the disk does not let go of is tried again after `pause` s."""
    for _ in range(tries):
        tidy()
        if not _waste:
            return
        time.sleep(pause)


def dispose(path: Path) -> None:
    """Remove a file durably that nobody needs any more; where the disk does not let go of it now, `tidy` does later."""
    try:
        remove(path)
    except OSError:
        with _waste_guard:
            _waste.add(path)


def unlink(path: Path) -> None:
    """Remove a file or link without syncing; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        point("unlink", path)
        path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a directory tree (or a file or link) durably, without following links; absent is fine."""
    discard_tree(path)
    with contextlib.suppress(FileNotFoundError):
        sync_directory(path.parent)


def discard_tree(path: Path) -> None:
    """Like `remove_tree`, without syncing: for many at once, followed by one `sync_directory`."""
    if not is_directory(path):
        unlink(path)
        return
    for entry in sorted(path.iterdir()):
        discard_tree(entry)
    point("rmdir", path)
    path.rmdir()


def _write_all(fd: int, path: Path, data: bytes) -> None:
    view = memoryview(data)
    if view:
        point("write", path)
    while view:
        try:
            written = os.write(fd, view)
        except OSError as error:
            error.filename = str(path.parent)  # the kernel knows no name here, and a person wants the place
            raise
        view = view[written:]
