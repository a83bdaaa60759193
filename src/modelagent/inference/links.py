"""What the updater's directory of one model says: three links, and the slots they name.

This file reads; it knows the names in the store. It does not know what is done about them, and it writes nothing.

    links = read_links(model_dir)          # Links(current=Target(link, digest) | None, fallback=..., shadow=...)
    slot = open_slot(model_dir, digest)    # ModelError: this slot cannot be used
    slot.confirmed()                       # asks the disk each time
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

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


NO_LINKS: Final = Links(None, None, None)


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


def read_links(directory: Path, known: Links = NO_LINKS) -> Links:
    """The links of a model's directory; what is absent or no link is None.

    `known`: what was read before. A link is never changed, only replaced by another one, so the one that was known by
    its identity still names the same digest.
    """
    return Links(*map(_read_link, (f"{directory}/{name}" for name in Links._fields), known))


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


def _read_link(name: str, known: Target | None) -> Target | None:
    try:
        found = os.lstat(name)
    except OSError:
        return None
    if known is not None and known.link == (found.st_ino, found.st_mtime_ns):
        return known
    path = Path(name)
    for _ in range(5):  # a rename between the two reads would pair one link's identity with another's digest
        try:
            before = identify_link(path)
            digest = path.readlink().name
            if identify_link(path) == before:
                return Target(before, digest)
        except OSError:
            return None
    return None
