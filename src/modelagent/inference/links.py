"""What the updater's directory of one model says: three links, and the slots they name.

This file reads; it knows the names in the store. It does not know what is done about them, and it writes nothing.

    links = read_links(model_dir)          # Links(current=Target(link, digest) | None, fallback=..., shadow=...)
    slot = open_slot(model_dir, digest)    # ModelError: this slot cannot be used
    slot.confirmed()                       # asks the disk each time
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modelagent.durable import LinkId, identify_link
from modelagent.errors import ModelError
from modelagent.inference.exchange import Layout, plan
from modelagent.manifest import MAX_LENGTH, Manifest, parse


class Target(NamedTuple):
    """One link: its identity, and the digest that it names."""

    link: LinkId
    digest: str


class Links(NamedTuple):
    """The three links, as they were at one moment (each by itself: they are moved one after the other)."""

    current: Target | None
    fallback: Target | None
    shadow: Target | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A complete slot whose manifest is the one that its name says."""

    path: Path
    digest: str
    manifest: Manifest
    layout: Layout

    def confirmed(self) -> bool:
        """Whether the updater has confirmed it."""
        return (self.path / "confirmed").exists()


def read_links(directory: Path) -> Links:
    """The links of a model's directory; what is absent or no link is None."""
    return Links(*(_read_link(directory / name) for name in ("current", "fallback", "shadow")))


def open_slot(directory: Path, digest: str) -> Slot:
    """Open the slot of that digest.

    Raises:
        ModelError: `missing`, `hash` (the manifest is not the one of that name), `manifest` or `contract`.
    """
    path = directory / "slots" / digest
    try:
        with (path / "manifest.json").open("rb") as file:
            data = file.read(MAX_LENGTH + 1)
    except OSError as error:
        raise ModelError(
            f"slot {digest[:12]}: manifest.json: {error.strerror}; the updater must fetch this release again",
            code="missing",
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelError(
            f"slot {digest[:12]}: manifest.json has another hash; the updater must fetch this release again",
            code="hash",
        )
    manifest = parse(data)
    return Slot(path, digest, manifest, plan(manifest.inputs, manifest.outputs, stateful=manifest.stateful))


def _read_link(path: Path) -> Target | None:
    for _ in range(5):  # a rename between the two reads would pair one link's identity with another's digest
        try:
            before = identify_link(path)
            digest = path.readlink().name
            if identify_link(path) == before:
                return Target(before, digest)
        except OSError:
            return None
    return None
