"""What the storage cannot read any more is fetched again, and stands in no release's way."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from modelagent.sources import Body
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.acquire import Acquirer
from modelagent.steps.transfer import Transfer
from repository_simulator import RepositorySimulator

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Honest:
    name = "honest"
    remote = True

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        return Body([CONTENT[offset:]], offset=offset, total=len(CONTENT))

    def close(self) -> None:
        """Nothing is open."""


def spoil(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this very file cannot be read, under whatever name."""
    spoiled, pread, digest = path.stat().st_ino, os.pread, hashlib.file_digest

    def look(fd: int) -> None:
        if os.fstat(fd).st_ino == spoiled:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def reading(fd: int, count: int, offset: int) -> bytes:
        look(fd)
        return pread(fd, count, offset)

    def hashing(file: BinaryIO, kind: str | Callable[[], object]) -> object:
        look(file.fileno())
        return digest(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pread", reading)
    monkeypatch.setattr(hashlib, "file_digest", hashing)


def test_a_partial_that_cannot_be_read_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / f"{DIGEST}.part"
    part.write_bytes(CONTENT[:5000])
    keeper = tmp_path / "second-name"  # so that the number of the file is not given out again
    os.link(part, keeper)
    spoil(part, monkeypatch)
    before = len(list(Path("/proc/self/fd").iterdir()))
    Transfer(tmp_path, Mirrors([Honest()]), lambda _: None).fetch(
        DIGEST, len(CONTENT), progress=lambda _: None, abandoned=lambda: False
    )
    assert (tmp_path / DIGEST).read_bytes() == CONTENT
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_cannot_be_read_is_fetched_again(
    acquirer: Acquirer, simulator: RepositorySimulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.release("1.0.0")
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    acquirer.acquire(offer)
    model = state / "incoming" / offer.model_file
    os.link(model, state / "second-name")
    spoil(model, monkeypatch)
    simulator.forget_requests()
    acquirer.acquire(offer)
    assert simulator.names == [f"files/{offer.model_file}"]
    assert hashlib.sha256(model.read_bytes()).hexdigest() == offer.model_file
