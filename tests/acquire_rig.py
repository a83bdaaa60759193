"""What the tests of acquire do again and again."""

from pathlib import Path

from modelagent.errors import SourceError
from modelagent.manifest import Manifest, Release
from modelagent.sources import Body
from modelagent.steps.acquire import Acquirer


class NoNetwork:
    """A source that nobody may ask."""

    name = "no network"
    remote = True

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        raise SourceError(f"{name}: no network", code="unreachable")

    def close(self) -> None:
        pass


def offered(acquirer: Acquirer, model: str = "digits") -> Release:
    offer = acquirer.check(model, "stable").offer
    assert offer is not None
    return offer


def make_slot(state: Path, manifest: Manifest, incoming: Path) -> Path:
    """What the slots step makes of a release in incoming/."""
    slot = state / "models" / manifest.model / "slots" / manifest.digest
    slot.mkdir(parents=True)
    (incoming / manifest.digest).rename(slot / "manifest.json")
    for ref in manifest.files:
        (incoming / ref.sha256).rename(slot / ref.name)
    return slot
