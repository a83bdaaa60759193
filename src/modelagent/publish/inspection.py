"""Is this repository whole? Asked as a device would ask, and then everything else that is published.

This file knows the device's own client and walks a repository with it. It signs nothing and needs no private key.

    findings = verify(Repository(Path("repo"), KeyRing(Path("keys"))), now=time.time)
    findings.errors                 # [] when every device can take every release

The same code that a device runs does the checking (`steps.acquire`), from an empty state, so a slip that only a
device would notice is noticed here.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modelagent import manifest
from modelagent.errors import AgentError
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps import channel as form
from modelagent.steps.acquire import Acquirer
from modelagent.steps.delta import listed
from modelagent.steps.metadata import View


@dataclass
class Findings:
    """What was looked at and what is wrong. `strangers`: files that no metadata names."""

    checked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def verify(repository: Repository, *, now: Callable[[], float]) -> Findings:
    """Check channels by taking what they offer, then every release and file.

    Args:
        repository: opened with the root of trust; no private key is used.
        now: Unix seconds, against which expiry is judged.
    """
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="modelagent-verify-") as folder:
        state = Path(folder)
        try:
            root = repository.keys.root_file.read_bytes()
            documents = [(str(item["model"]), str(item["channel"])) for item in repository.channels()]
            releases = [
                (model, version) for model in repository.models() for version, _, _ in repository.releases(model)
            ]
        except OSError as error:
            found.errors.append(f"{error.filename}: {error.strerror}; --keys names the directory that holds root.json")
            return found
        except AgentError as error:
            found.errors.append(str(error))
            return found
        source = DirectorySource(repository.directory)
        acquirer = Acquirer(state, source, root, now)
        try:
            for model, channel in documents:
                _take(found, acquirer, model, channel)
        finally:
            acquirer.close()
        (state / "walk").mkdir()
        _walk(found, repository, View(state / "walk", source, root, now()), releases)
    found.strangers = strangers(repository)
    return found


def _take(found: Findings, acquirer: Acquirer, model: str, channel: str) -> None:
    try:
        offer = acquirer.check(model, channel).offer
        if offer is not None:
            acquirer.acquire(offer)
        found.checked.append(f"{model} {channel}: {offer.version if offer else 'names no release'}")
    except AgentError as error:
        found.errors.append(f"{model} {channel}: {error.message} ({error.code})")


def _walk(
    found: Findings,
    repository: Repository,
    view: View,
    releases: Iterable[tuple[str, str]],
) -> None:
    try:
        view.refresh()
    except AgentError as error:
        found.errors.append(f"metadata: {error.message} ({error.code})")
        return
    for model, version in releases:
        try:
            data = view.target(form.manifest_path(model, version))
            if data is None:
                found.errors.append(f"{model} {version}: no trusted role lists it")
                continue
            for ref in manifest.parse(data).files:
                if reason := _file_fault(repository.directory / "files" / ref.sha256, ref):
                    found.errors.append(f"{model} {version}: {ref.role} file: {reason}")
            for item in listed(view.custom(form.manifest_path(model, version))):
                ref = manifest.FileRef("delta", item.sha256, item.length)
                if reason := _file_fault(repository.directory / "files" / ref.sha256, ref):
                    found.errors.append(f"{model} {version}: delta: {reason}")
            found.checked.append(f"{model} {version}")
        except AgentError as error:
            found.errors.append(f"{model} {version}: {error.message} ({error.code})")


def _file_fault(path: Path, ref: manifest.FileRef) -> str:
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            length = stream.tell()
    except OSError as error:
        return f"{path}: {error.strerror}; copy it again from where it was published"
    if (sha256, length) != (ref.sha256, ref.length):
        return f"{path}: its bytes are not the signed ones; copy it again from where it was published"
    return ""


def named_files(repository: Repository) -> set[Path]:
    """Every file that the present metadata names; all roots count, because old devices walk through them."""
    ledger = repository.ledger
    metadata, snapshot = repository.directory / "metadata", ledger.load_timestamp().signed.snapshot_meta
    named = {metadata / "timestamp.json", metadata / f"{snapshot.version}.snapshot.json", metadata / "root.json"}
    named |= set(metadata.glob("*.root.json"))
    for name, meta in ledger.load_snapshot().signed.meta.items():
        named.add(metadata / f"{meta.version}.{name}")
        for path, entry in ledger.load_targets(name.removesuffix(".json")).signed.targets.items():
            place = ledger.target_file(path, entry.hashes["sha256"])
            named.add(place)
            if path.startswith("models/"):
                refs = manifest.parse(place.read_bytes()).files
                named |= {repository.directory / "files" / ref.sha256 for ref in refs}
                named |= {repository.directory / "files" / item.sha256 for item in listed(entry.custom or {})}
    return named


def strangers(repository: Repository) -> list[str]:
    """Files, relative to the repository, that the present metadata does not name: leftovers of prunings and crashes."""
    named = named_files(repository)
    found = []
    for part in ("metadata", "targets", "files"):
        present = sorted(path for path in (repository.directory / part).rglob("*") if path.is_file())
        found += [str(path.relative_to(repository.directory)) for path in present if path not in named]
    return found
