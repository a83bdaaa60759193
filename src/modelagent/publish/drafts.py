"""A release before it is signed: the manifest's draft filled in, its files hashed, everything held against its word.

This file knows what a release must hold to be published. It does not know where it is stored, nor who signs it.

    contents = {name: Content(name, content) for name, content in files.items()}
    data = complete(draft, contents, published, now=clock(), accept_small_canary=False)     # the bytes to sign

`published`: path -> what the metadata say of each release of the model that is out already.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import TargetFile

from modelagent import durable, manifest
from modelagent.errors import ModelError, UsageError
from modelagent.publish import canaries, channels
from modelagent.steps import channel as form

_MOST: Final = 10**15  # a release number for dates and milliseconds alike; every later one must be higher, up to 2**53


class Content:
    """One file of a release: hashed once, stored under its hash.

    Raises:
        UsageError: `file`: not readable, or empty.
    """

    def __init__(self, role: str, content: Path | bytes) -> None:
        self.content = content
        try:
            if isinstance(content, bytes):
                self.sha256, self.length = hashlib.sha256(content).hexdigest(), len(content)
            else:
                with content.open("rb") as stream:
                    self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                    self.length = stream.tell()
        except OSError as error:
            raise UsageError(f"{role} file {content!s}: {error.strerror}; name a readable file", code="file") from error
        if self.length == 0:
            raise UsageError(f"{role} file: it is empty; name the right file", code="file")

    def read(self) -> bytes:
        """Its bytes, the same as were hashed."""
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UsageError(f"{self.content!s}: it changed while it was published; run the command again", code="file")
        return data

    def store(self, directory: Path) -> None:
        """Write it under its hash."""
        durable.write_atomic(directory / self.sha256, self.read(), mode=0o644)


def complete(
    draft: dict[str, Any],
    contents: Mapping[str, Content],
    published: Mapping[str, TargetFile],
    *,
    now: datetime,
    accept_small_canary: bool,
) -> bytes:
    """Fill in what files and repository know, check it all, and give the bytes to sign.

    Raises:
        UsageError: `duplicate-version`, `number`, `small-canary`, `canary-file`, `manifest`.
    """
    highest = max((int((entry.custom or {}).get("number", 0)) for entry in published.values()), default=0)
    draft.setdefault("schema", manifest.SCHEMA)
    draft.setdefault("issued", channels.instant(now))
    draft.setdefault("number", highest + 1)
    draft.setdefault("floor", 0)
    draft["files"] = {name: {"sha256": item.sha256, "length": item.length} for name, item in contents.items()}
    release = _checked(draft, contents, accept_small_canary=accept_small_canary)
    if release.version == channels.NOTHING:
        raise UsageError(
            f"version {release.version}: for a channel that word means no release at all; give another",
            code="manifest",
        )
    if form.manifest_path(release.model, release.version) in published:
        raise UsageError(
            f"{release.model} {release.version} is published already and never changes; give a new version",
            code="duplicate-version",
        )
    if release.number <= highest:
        raise UsageError(
            f"{release.model} {release.version}: release number {release.number} does not rise above {highest}; "
            "leave it out or give a higher one",
            code="number",
        )
    if release.number > max(_MOST, highest + 1):
        raise UsageError(
            f"{release.model} {release.version}: release number {release.number} leaves no room for later releases, "
            f"which must be higher; allowed is at most {_MOST}",
            code="number",
        )
    return manifest.dump(draft)


def _checked(draft: dict[str, Any], contents: Mapping[str, Content], *, accept_small_canary: bool) -> manifest.Manifest:
    """Hold the draft against its own promises; an accepted shortfall is written into its card."""
    release = _parse(draft)
    if shortfall := canaries.shortfall(release):
        if not accept_small_canary:
            raise UsageError(
                f"{release.model} {release.version}: {shortfall}; widen the margin, add samples, or publish with "
                "--accept-small-canary",
                code="small-canary",
            )
        draft["card"] = {**draft["card"], "small_canary": f"accepted by the publisher: {shortfall}"}
        release = _parse(draft)
    for name in ("canary", "warmup"):
        if name in contents:
            canaries.check_file(release, contents[name].content, what=name)
    return release


def json_object(data: bytes) -> dict[str, Any]:
    """A manifest or channel document as it was written.

    Raises:
        UsageError: `manifest`.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"manifest: no JSON ({error}); correct the file", code="manifest") from error
    if not isinstance(document, dict):
        raise UsageError("manifest: found no object; correct the file", code="manifest")
    return document


def _parse(draft: dict[str, Any]) -> manifest.Manifest:
    try:
        return manifest.parse(manifest.dump(draft))
    except ModelError as error:
        # To the publisher the very same refusal is a slip in what was typed, not a model to block.
        message = error.message.removesuffix("; the release must be published again")
        raise UsageError(message, code="manifest") from error
