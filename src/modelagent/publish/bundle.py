"""A bundle: what a device without a network needs, in one file or directory, with signatures that last long enough.

This file knows which metadata and files belong into a bundle. It does not know how a device takes one: to a device it
is a mirror, trusted no more than any other.

    write(repository, Path("digits.modelagent"), valid_for=timedelta(days=30))

A timestamp of the server's lives a week, a stick may lie in a drawer for a month: so a bundle gets a timestamp and a
snapshot of its own, signed by the online key with that life, and the repository publishes the next versions of both at
once. That way no two files ever have one version: a device that has seen the repository since takes the bundle for
what it is, older (and takes its files all the same, if what it knows still lists them); every other device takes it
for new, and later goes on with the repository.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp
from tuf.api.serialization.json import JSONSerializer

from modelagent import durable, manifest
from modelagent.errors import UsageError
from modelagent.publish.channels import instant
from modelagent.publish.ledger import CHANNELS, Base
from modelagent.publish.repository import Repository
from modelagent.steps import channel as form

SUFFIX: Final = ".modelagent"
MAX_FILE: Final = 8 * 2**30 - 1  # bytes; what a ustar header can say


@dataclass(frozen=True, slots=True)
class Written:
    """What is in a bundle: releases as (model, channel, version), bytes of all files, until when it is good."""

    releases: tuple[tuple[str, str, str], ...]
    size: int
    until: datetime


def write(
    repository: Repository,
    out: Path,
    *,
    valid_for: timedelta,
    models: Sequence[str] = (),
    channels: Sequence[str] = (),
) -> Written:
    """Write what channels name now, and publish a new snapshot and timestamp of the repository.

    Args:
        repository: takes its online key alone.
        out: a file whose name ends in `.modelagent`, or a directory that is not there yet.
        valid_for: how long devices may take it.
        models: these alone; empty takes all.
        channels: these alone; empty takes all.

    Raises:
        UsageError: `bundle`: something is there already, nothing to pack, or a signature below ends too early.
            Nothing was written.
    """
    if out.exists():
        raise UsageError(f"{out}: it is there already; name another file or directory", code="bundle")
    ledger = repository.ledger
    with ledger.locked():
        now = ledger.now().astimezone(UTC).replace(microsecond=0)
        until = now + valid_for
        _check_life(repository, until)
        documents = [
            document
            for document in repository.channels()
            if (not models or document["model"] in models) and (not channels or document["channel"] in channels)
        ]
        if not documents:
            raise UsageError("no such channel is published; see `modelagent repo status`", code="bundle")
        base = ledger.base()
        snapshot = _sign(repository, Snapshot(meta=dict(base.meta)), base.snapshot + 1, now, until)
        named = MetaFile.from_data(base.snapshot + 1, snapshot, ["sha256"])
        timestamp = _sign(repository, Timestamp(snapshot_meta=named), base.timestamp + 1, now, until)
        contents: dict[str, bytes | Path] = {
            "metadata/timestamp.json": timestamp,
            f"metadata/{base.snapshot + 1}.snapshot.json": snapshot,
        }
        contents |= _metadata(repository, base)
        contents |= _files(repository, documents)
        # The repository first: should this stop here, no device has seen versions that will come again.
        ledger.publish({}, base=Base(base.meta, base.snapshot + 1, base.timestamp + 1))
    _store(out, contents)
    releases = tuple(
        (str(document["model"]), str(document["channel"]), str(document["release"]["version"]))
        for document in documents
        if document["release"] is not None
    )
    return Written(releases, sum(_size(content) for content in contents.values()), until)


def _check_life(repository: Repository, until: datetime) -> None:
    for role, (end, _) in repository.expiries().items():
        if role not in {"timestamp", "snapshot"} and end < until:
            raise UsageError(
                f"the {role} signature ends {end.isoformat()}, before the bundle would ({until.isoformat()}); give a "
                f"shorter --valid-for, or sign {role} again first",
                code="bundle",
            )


def _sign(repository: Repository, signed: Any, version: int, now: datetime, until: datetime) -> bytes:
    signed.version, signed.expires = version, until
    signed.unrecognized_fields["issued"] = instant(now)
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(repository.ledger.keys.signer("online"))
    data: bytes = metadata.to_bytes(JSONSerializer(compact=True))
    return data


def _metadata(repository: Repository, base: Base) -> dict[str, bytes | Path]:
    directory = repository.directory / "metadata"
    names = [path.name for path in directory.glob("*.root.json")]
    names += [f"{meta.version}.{role}" for role, meta in base.meta.items()]
    return {f"metadata/{name}": directory / name for name in sorted(names)}


def _files(repository: Repository, documents: Sequence[dict[str, Any]]) -> dict[str, bytes | Path]:
    """The channels' documents, the manifests that they name, and every file of those releases."""
    found: dict[str, bytes | Path] = {}
    ledger = repository.ledger
    signed = ledger.load_targets(CHANNELS).signed.targets
    for document in documents:
        path = form.target_path(document["model"], document["channel"])
        place = ledger.target_file(path, signed[path].hashes["sha256"])
        found[str(place.relative_to(repository.directory))] = place
        if document["release"] is None:
            continue
        path = form.manifest_path(document["model"], document["release"]["version"])
        place = ledger.target_file(path, document["release"]["digest"])
        found[str(place.relative_to(repository.directory))] = place
        for ref in manifest.parse(place.read_bytes()).files:
            file = repository.directory / "files" / ref.sha256
            _check_file(file, ref)
            found[f"files/{ref.sha256}"] = file
    return found


def _check_file(path: Path, ref: manifest.FileRef) -> None:
    try:
        with path.open("rb") as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == ref.sha256
    except OSError:
        right = False
    if not right or ref.length > MAX_FILE:
        raise UsageError(
            f"{path}: it is not the {ref.role} that was signed (or larger than {MAX_FILE} bytes); restore the "
            "repository from its backup",
            code="untrusted",
        )


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _store(out: Path, contents: dict[str, bytes | Path]) -> None:
    """Write it under another name first: half a bundle must not look like one."""
    partial = out.with_name(f".{out.name}.partial")
    durable.remove_tree(partial)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == SUFFIX:
        with partial.open("xb") as stream:
            _archive(stream, contents)
            stream.flush()
            os.fsync(stream.fileno())
    else:
        for name, content in contents.items():
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with _opened(content) as source, place.open("xb") as stream:
                shutil.copyfileobj(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
    durable.rename(partial, out)


def _archive(stream: Any, contents: dict[str, bytes | Path]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)  # no owner, no times: the same content gives the same bytes
            entry.size, entry.mode = _size(content), 0o644
            with _opened(content) as source:
                archive.addfile(entry, source)


def _opened(content: bytes | Path) -> Any:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
