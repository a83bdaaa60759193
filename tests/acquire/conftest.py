"""What the tests of acquire share: they are about order and content, so no call waits for the disk."""

import os
from collections.abc import Iterator

import pytest


def unsynced(fd: int) -> None:
    """What a killed process wrote stays in the page cache; the hook of `durable` still sees each sync."""


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", unsynced)
        yield
