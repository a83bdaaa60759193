"""A repository, and a client that knows its first root."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuf_client_rig import Client
from tuf_repository import TufRepository, serving


@pytest.fixture
def repository() -> TufRepository:
    return TufRepository()


@pytest.fixture
def client(
    tmp_path: Path, repository: TufRepository, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with serving(repository, f"{request.node.name}[?/#]") as site:
        made = Client(tmp_path, repository, site)
        assert made.init() == 0
        assert repository.requests == []
        yield made
