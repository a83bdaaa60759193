"""Who holds the online keys may state any length of what lies below: it is held in memory, so there is a bound."""

import time
from pathlib import Path

import pytest

from modelagent.errors import SourceError, TrustError
from modelagent.sources import Body, endless
from modelagent.steps.metadata import View
from modelagent.steps.workflow import LONGEST
from tuf_repository import TufRepository


class Memory:
    """The published metadata as a source; every file but root and timestamp has no end."""

    name = "memory"
    remote = False

    def __init__(self, repository: TufRepository) -> None:
        self.repository = repository
        self.limits: dict[str, int] = {}

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        del offset, validator
        stated = name.rpartition("/")[2].removesuffix(".json")
        version, _, role = stated.rpartition(".")
        self.limits[role] = limit
        data = self.repository.published.get((role, int(version) if version else None))
        if data is None:
            raise SourceError(f"{name}: not found", code="not-found")
        if role == self.endless:
            raise endless(self.name, name, limit)
        return Body([data])

    def close(self) -> None:
        """Nothing is open."""

    endless = ""


@pytest.mark.parametrize(("role", "above"), [("snapshot", "timestamp"), ("targets", "snapshot")])
def test_a_stated_length_is_believed_up_to_a_bound(role: str, above: str, tmp_path: Path) -> None:
    repository = TufRepository()
    signed = repository.roles[above]
    meta = signed.snapshot_meta if above == "timestamp" else signed.meta["targets.json"]
    meta.length = 10**15
    repository.published[above, None if above == "timestamp" else signed.version] = repository.sign(above)
    source = Memory(repository)
    source.endless = role
    view = View(tmp_path / "tuf", source, repository.published["root", 1], time.time())
    with pytest.raises(TrustError) as caught:
        view.refresh()
    assert caught.value.code == "endless-data"
    assert source.limits[role] == LONGEST
