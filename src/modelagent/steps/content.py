"""What a complete slot looks like on disk, and whether a file is what was promised. Reads only.

This file knows the layout of `slots/<digest>/` and how to look at it without following a link that somebody planted.
It does not know who asks, and changes nothing.

    read_slot(Path(".../slots/<digest>"), "digits")       ->  its Manifest, or None: torn, foreign or not there
    Wanted("model.tflite", sha256, length).is_at(path)    ->  True when exactly these bytes are there
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelagent.durable import is_directory
from modelagent.errors import ModelError
from modelagent.manifest import MAX_LENGTH, FileRef, Manifest, parse

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
MANIFEST: Final = "manifest.json"
# Errors that say "there is no such thing here" rather than "it could not be read".
ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as it is promised: its name in the slot, sha256 in hex and length in bytes."""

    name: str
    sha256: str
    length: int | None  # None for the manifest itself, whose length only its signature knows

    @classmethod
    def of(cls, ref: FileRef) -> "Wanted":
        """The file that a manifest lists."""
        return cls(ref.name, ref.sha256, ref.length)

    def is_at(self, path: Path) -> bool:
        """Whether a regular file with exactly this content is there; links are not followed."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in ABSENT:
                return False
            raise
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not self._fits(status.st_size):
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256

    def _fits(self, size: int) -> bool:
        return size <= MAX_LENGTH if self.length is None else size == self.length


def read_slot(directory: Path, model: str) -> Manifest | None:
    """The manifest of a complete slot: its digest is the directory's name, every file is there in full length.

    Content is not hashed here (staging and loading do that). None for everything else; raises OSError only when the
    disk could not be read.
    """
    if DIGEST.fullmatch(directory.name) is None or not is_directory(directory):
        return None
    try:
        data = read(directory / MANIFEST, MAX_LENGTH)
        if hashlib.sha256(data).hexdigest() != directory.name:
            return None
        manifest = parse(data)
        whole = manifest.model == model and all(
            is_file(directory / ref.name) and (directory / ref.name).lstat().st_size == ref.length
            for ref in manifest.files
        )
    except ModelError:
        return None
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    return manifest if whole else None


def read(path: Path, limit: int) -> bytes:
    """The file's first `limit` + 1 bytes; a link in its place is not followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(limit + 1)


def is_file(path: Path) -> bool:
    """Whether a regular file is there, and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise


def entries(directory: Path) -> list[Path]:
    """What a directory holds, by name; nothing when it is none."""
    return sorted(directory.iterdir()) if is_directory(directory) else []


def directories(directory: Path) -> list[Path]:
    """The directories in a directory; links do not count."""
    return [entry for entry in entries(directory) if is_directory(entry)]


@contextlib.contextmanager
def ignoring_bad_sectors() -> Iterator[None]:
    """Pass over what the storage cannot read."""
    # One unreadable slot must not hide the others; anything else (no descriptors, no permission) would hide all.
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
