"""File systems that really lose what was not synced: ext4 and XFS on loop devices, ended by their own shutdown ioctl.

    keep_mounts_private()                   # once, in a process of its own
    with Disk("ext4", directory) as disk:
        ...                                 # some process calls the ioctl (device.end), writes are gone
        disk.power_returns()                # unmounted, mounted, the journal replayed
        disk.renew(base)                    # `state` is a copy of `base` again, all of it on the device

`missing()` says what this host lacks; needs root. ext4 is mounted with `noauto_da_alloc`: its default forgives a
rename without fsync and would prove nothing.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAKE: Final = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
OPTIONS: Final = {"ext4": "noauto_da_alloc", "xfs": "defaults"}
SIZE_MB: Final = 320  # XFS takes no less than 300
CLONE_NEWNS: Final = 0x00020000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


def keep_mounts_private() -> None:
    """Give this process its own view of mounts, for good.

    Anybody who makes a view of his own while a disk is mounted (a container, a unit) would hold it: its file system
    would stay as it was ended, however often it is unmounted here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "a view of mounts of its own cannot be had")


def missing(kinds: tuple[str, ...] = ("ext4", "xfs")) -> str:
    """What this host lacks for cutting the power of a file system; empty when nothing."""
    if os.geteuid() != 0:
        return "not root"
    programs = ["losetup", "mount", *(MAKE[kind][0] for kind in kinds)]
    absent = [name for name in programs if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    return ""


class Disk:
    """One file system in a file, mounted between `__enter__` and `__exit__`."""

    def __init__(self, kind: str, directory: Path, size_mb: int = SIZE_MB) -> None:
        self.kind = kind
        self.mount_point = directory / f"mnt-{kind}"
        self._image = directory / f"{kind}.img"
        self._size = size_mb * 2**20
        self._device = ""
        self.state_dir = self.mount_point / "state"

    def __enter__(self) -> Self:
        self.mount_point.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(self._size)
        _do(*MAKE[self.kind], str(self._image))
        self._device = _do("losetup", "--find", "--show", str(self._image)).strip()
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
        _do("losetup", "--detach", self._device)
        self._image.unlink()

    def power_returns(self) -> None:
        """Unmount what is left of the file system and mount it again: the kernel replays its journal."""
        self._unmount()
        self._mount()

    def renew(self, base: Path) -> None:
        """Put a copy of `base` in place, and all of it on the device."""
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if base.exists():
            shutil.copytree(base, self.state_dir, symlinks=True)
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs", str(self.mount_point))
        finally:
            os.close(fd)

    def _mount(self) -> None:
        _do("mount", "-t", self.kind, "-o", OPTIONS[self.kind], self._device, str(self.mount_point))

    def _unmount(self) -> None:
        for again in range(50):  # whoever looks (udev, a search) may hold it for a moment
            try:
                _do("umount", str(self.mount_point))
                return
            except OSError:
                if again == 49:
                    raise
                time.sleep(0.05)


def _do(*words: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={"PATH": _PATH, "LC_ALL": "C"}, timeout=60
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":  # script/test asks: the reason and status 1 where no power can be cut
    if why := missing():
        sys.exit(why)
