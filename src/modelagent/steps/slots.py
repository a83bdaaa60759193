"""The slots of one model and the links that name them: stage, activate, revert, confirm, vacuum.

This file is the only writer of `models/<model>/slots` and of the links. It knows slots, links and the order in
which they may change. It does not know why they change, where bytes come from, or what a phase is.

    store = SlotStore(Path("/var/lib/modelagent"), "digits")
    store.stage(new, incoming, fallback=old)        # slots/<new>/ complete and durable, links prepared
    store.activate(new, fallback=old, shadow=old)   # `fallback`, then `shadow`, then `current`: one rename each
    store.revert(leaving=new, target=old, fallback=None, unconfirm=False)      # needs no space at all

Every operation may be cut at any system call and simply be done again: a slot is complete before its name exists,
and a link is switched by one rename (the scheme of systemd-sysupdate and OSTree, see docs/reliability.md). Links
that will be needed are made while there is room (`.current.next`, `.fallback.next`, `.current.revert`), because a
full disk must never keep a device from going back.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelagent import durable
from modelagent.core.events import DiskFacts, Link, SlotFacts
from modelagent.durable import device_errors, is_directory
from modelagent.errors import DeviceError, SourceError, TrustError
from modelagent.manifest import MAX_LENGTH, Manifest, parse
from modelagent.steps.content import (
    ABSENT,
    DIGEST,
    MANIFEST,
    Wanted,
    directories,
    entries,
    ignoring_bad_sectors,
    is_file,
    read,
    read_slot,
)

_TARGET: Final = re.compile(r"slots/([0-9a-f]{64})")
_CONFIRMED: Final = "confirmed"
_MEASURED: Final = "measured.json"
_FILE_MODE: Final = 0o640  # the inference user reads through the group


class SlotStore:
    """The store of one model below `state_dir`.

    Args:
        state_dir: the updater's directory; `models/<model>/` and `incoming/` live in it.
        model: the model's name, already checked by the settings.

    Every method raises DeviceError (no-space, read-only, permission, io, foreign-entry, missing-slot) when this
    device cannot. `warnings` tells what the last operation could not do beside its main purpose.
    """

    def __init__(self, state_dir: Path, model: str) -> None:
        self.model = model
        self.root = state_dir / "models" / model
        self.slots = self.root / "slots"
        self.incoming = state_dir / "incoming"
        self.warnings: list[str] = []

    # -- looking ------------------------------------------------------------------------------------------------

    def path(self, digest: str) -> Path:
        """Where the slot of that digest is, or would be."""
        return self.slots / digest

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a complete slot; DeviceError `missing-slot` when there is none."""
        with self._looking("read the slot"):
            found = read_slot(self.path(digest), self.model)
        if found is None:
            raise DeviceError(
                f"{self.path(digest)}: no complete slot of {self.model}; it has to be fetched again",
                code="missing-slot",
            )
        return found

    def facts(self) -> DiskFacts:
        """What is on disk: complete slots by release number, and what the links name.

        A link is reported as it stands, even when its slot is not among the complete ones.
        """
        with self._looking("look at the store"):
            found = []
            for directory in directories(self.slots):
                with ignoring_bad_sectors():
                    manifest = read_slot(directory, self.model)
                    if manifest is not None:
                        confirmed = is_file(directory / _CONFIRMED)
                        found.append(SlotFacts(manifest.release, confirmed))
            current = self._named("current")
            return DiskFacts(
                slots=tuple(sorted(found, key=lambda s: (s.release.number, s.release.digest))),
                current=current,
                link=self._identity("current") if current else None,
                fallback=self._named("fallback"),
            )

    def locate(self, sha256: str, length: int) -> Path | None:
        """A file with this content in any complete slot of any model; its bytes are still to be hashed."""
        with self._looking("look for a file"):
            for model in directories(self.root.parent):
                for directory in directories(model / "slots"):
                    with ignoring_bad_sectors():
                        manifest = read_slot(directory, model.name)
                        for ref in manifest.files if manifest else ():
                            if (ref.sha256, ref.length) == (sha256, length):
                                return directory / ref.name
        return None

    # -- staging ------------------------------------------------------------------------------------------------

    def stage(self, digest: str, incoming: Path, fallback: str | None, shared: Collection[str] = ()) -> Link:
        """Make the slot complete and durable, and prepare the links for its activation.

        Args:
            digest: sha256 of the release's manifest.
            incoming: directory of verified files, each named by its sha256 (the manifest too). They are moved,
                not copied; a file that another slot holds is linked from there.
            fallback: what `fallback` shall name once this slot is active.
            shared: sha256 of files that other pending releases still need in `incoming`; they are linked.

        Returns:
            The identity that `current` will have.

        Raises:
            TrustError: `tampered-file`: bytes that do not hash to their name; they are removed.
            SourceError: `missing-file`: a file is not there (any more); acquire the release again.
            ModelError: the manifest, although signed, cannot be read.
        """
        with self._doing(f"stage {digest[:12]}"):
            self._guard(incoming)
            for directory in (self.root.parent, self.root, self.slots):
                durable.make_directory(directory)
            home = self.path(digest)
            if os.path.lexists(home):
                if not is_directory(home):
                    raise self._foreign(home)
                work = home
            else:
                work = self.slots / f".{digest}.new"
                if not is_directory(work):
                    durable.discard_tree(work)
                durable.make_directory(work)
            self._fill(work, digest, incoming, shared)
            durable.sync_directory(work)
            durable.sync_directory(incoming)
            if work == home:
                durable.sync_directory(self.slots)
            else:
                durable.rename(work, home)
            if fallback is not None:
                self.manifest(fallback)
            self._prepare(".fallback.next", fallback if fallback != self._named("fallback") else None)
            self._prepare(".current.next", digest)
            self._ready_revert()
            return self._identity(".current.next")

    def _fill(self, work: Path, digest: str, incoming: Path, shared: Collection[str]) -> None:
        """Bring every file of the release into `work`, hashed and synced."""
        source = incoming / digest
        self._take(work, Wanted(MANIFEST, digest, None), incoming, shared)
        manifest = parse(read(work / MANIFEST, MAX_LENGTH))
        if manifest.model != self.model:
            raise TrustError(
                f"{source}: the manifest is of model {manifest.model}, not of {self.model}; it is not used",
                code="mix-and-match",
            )
        names = {MANIFEST, _CONFIRMED, _MEASURED}
        for ref in manifest.files:
            self._take(work, Wanted.of(ref), incoming, shared)
            names.add(ref.name)
        for entry in sorted(work.iterdir()):
            if entry.name not in names:
                durable.discard_tree(entry)

    def _take(self, work: Path, wanted: Wanted, incoming: Path, shared: Collection[str]) -> None:
        target, source = work / wanted.name, incoming / wanted.sha256
        if not wanted.is_at(target):
            spoiled = os.path.lexists(target)
            if is_directory(target):
                durable.discard_tree(target)
            if os.path.lexists(source):
                if not wanted.is_at(source):
                    durable.remove_tree(source)
                    raise _tampered(source, f"sha256 {wanted.sha256}")
                if wanted.sha256 in shared:
                    durable.unlink(target)
                    durable.link_file(source, target)
                else:
                    durable.move(source, target)
            elif (twin := self._twin(work, wanted)) is not None:
                durable.unlink(target)
                durable.link_file(twin, target)
            elif spoiled:
                # What a link names stays as it is: a worker may run on it, and inference hashes before it loads.
                if work.name not in self._linked():
                    durable.remove(target)
                raise _tampered(target, f"sha256 {wanted.sha256}")
            else:
                raise self._missing(wanted.sha256, wanted.name, source)
        elif wanted.sha256 not in shared and os.path.lexists(source):
            durable.discard_tree(source)  # fetched or linked again after a cut: the slot has it
        durable.set_mode(target, _FILE_MODE)
        try:
            durable.sync_file(target)
        except OSError as error:
            # After a failed fsync the kernel may hold pages it never wrote, and call them clean: fetch anew.
            if error.errno == errno.EIO and work.name not in self._linked():
                with contextlib.suppress(OSError):
                    durable.unlink(target)
            raise

    def _twin(self, work: Path, wanted: Wanted) -> Path | None:
        found = self.locate(wanted.sha256, wanted.length) if wanted.length is not None else None
        if found is None or found.parent == work or not wanted.is_at(found):
            return None
        return found

    # -- switching ----------------------------------------------------------------------------------------------

    def activate(self, digest: str, fallback: str | None, shadow: str | None) -> Link:
        """Switch to the slot: `fallback` first, then `shadow` (best effort), then `current`.

        Done again after a crash it changes nothing that was done. Returns the identity of `current`.
        """
        with self._doing(f"activate {digest[:12]}"):
            for needed in (digest, fallback):
                if needed is not None:
                    self.manifest(needed)
            self._point("fallback", fallback)
            with self._trying("set the shadow link"):
                self._point("shadow", shadow if shadow and read_slot(self.path(shadow), self.model) else None)
            self._ready_revert()
            prepared = self.root / ".current.next"
            if self._named("current") == digest and self._named(".current.next") != digest:
                durable.sync_directory(self.root)  # the rename happened, but perhaps only in memory
                return self._identity("current")
            self._prepare(".current.next", digest)
            return _link(durable.swap_link(prepared, self.root / "current"))

    def revert(self, leaving: str | None, target: str, fallback: str | None, *, unconfirm: bool) -> Link:
        """Go back: `current` first, in one rename that needs no space; everything else is best effort.

        When `fallback` cannot be set it is removed, so that it never names the slot being left; `warnings` says so.
        Returns the identity of `current`.
        """
        with self._doing(f"go back to {target[:12]}"):
            if self._named("current") == target:
                durable.sync_directory(self.root)
                link = self._identity("current")
            else:
                self.manifest(target)
                link = _link(durable.swap_link(self._spare(target), self.root / "current"))
            with self._trying("set the fallback link; it is removed"):
                fit = fallback if fallback and read_slot(self.path(fallback), self.model) else None
                self._point("fallback", fit)
            if self._named("fallback") not in (None, fallback):
                with self._trying("remove the fallback link"):
                    durable.remove(self.root / "fallback")
            with self._trying("drop the shadow link"):
                durable.remove(self.root / "shadow")
            if unconfirm and leaving is not None:
                with self._trying("take the confirmed mark away"):
                    durable.remove(self.path(leaving) / _CONFIRMED)
            self._ready_revert()
            return link

    def _spare(self, target: str) -> Path:
        """A link that names `target` and may be renamed onto `current`; made anew only if none is there."""
        for name in (".current.revert", ".fallback.next", ".shadow.next"):
            if self._named(name) == target:
                return self.root / name
        try:
            durable.prepare_link(self.root / ".current.revert", f"slots/{target}")
        except OSError:
            if self._named("fallback") != target:
                raise
            return self.root / "fallback"
        return self.root / ".current.revert"

    def confirm(self, digest: str) -> None:
        """Mark the slot confirmed, durably, and drop the shadow link."""
        with self._doing(f"confirm {digest[:12]}"):
            self.manifest(digest)
            mark = self.path(digest) / _CONFIRMED
            if is_file(mark):
                durable.sync_directory(mark.parent)
            else:
                durable.write_atomic(mark, b"", mode=_FILE_MODE)
            durable.remove(self.root / "shadow")
            self._ready_revert()

    def keep_peak(self, digest: str, peak_kb: int) -> None:
        """Write `measured.json` into the slot: the most memory that its canary's worker had, KiB.

        Inference believes it before its own estimate. It is advice: no hash covers it, and the slot is whole without.
        """
        with self._doing(f"keep what the canary of {digest[:12]} measured"):
            self.manifest(digest)
            data = json.dumps({"schema": 1, "peak_kb": peak_kb}).encode()
            durable.write_atomic(self.path(digest) / _MEASURED, data, mode=_FILE_MODE)

    def set_fallback(self, target: str | None) -> None:
        """Make `fallback` name the slot, or remove it."""
        with self._doing("set the fallback link"):
            if target is not None:
                self.manifest(target)
            self._point("fallback", target)
            self._ready_revert()

    def set_shadow(self, digest: str | None) -> None:
        """Make `shadow` name the slot, or remove it."""
        with self._doing("set the shadow link"):
            if digest is not None:
                self.manifest(digest)
            self._point("shadow", digest)

    def stop(self) -> None:
        """Remove `current` (and `shadow`): inference idles. `fallback` stays for the way back."""
        with self._doing("stop"):
            durable.remove(self.root / "current")
            durable.remove(self.root / "shadow")

    # -- vacuum -------------------------------------------------------------------------------------------------

    def vacuum(
        self, keep: Collection[str], partials: Collection[str], max_age_s: float, max_bytes: int, now: float
    ) -> list[str]:
        """Remove what nobody names: torn slots and temporary names at once, the rest by age and total size.

        Args:
            keep: slots (digests) that are wanted, beside those that links name.
            partials: sha256 of files in `incoming` that any model still wants; a name may carry a suffix.
            max_age_s: what is not wanted goes when it is older.
            max_bytes: what is not wanted goes, oldest first, until it takes no more than this.
            now: Unix seconds. A clock set back makes things look young; the size limit holds regardless.

        Returns:
            What was removed, relative to the state directory. One entry that cannot be removed does not stop the
            others; it is raised at the end.
        """
        with self._doing("vacuum"):
            self._guard(self.incoming)
            spared = set(keep) | self._linked()
            waste = list(self._stale_links(set(keep)))
            loose: list[_Loose] = []
            for entry in entries(self.slots):
                if entry.name in spared and is_directory(entry):
                    waste += [e for e in entries(entry) if e.name.startswith(".") and not _in_flight(e)]
                elif not (entry.name[1:-4] in spared and entry.name.endswith(".new") and is_directory(entry)):
                    torn = False
                    with contextlib.suppress(OSError):  # unreadable for now is not the same as torn
                        torn = read_slot(entry, self.model) is None
                        loose += [] if torn else [_Loose.of(entry)]
                    waste += [entry] if torn else []
            for entry in entries(self.incoming):
                if (entry.name[:64] not in partials or not is_file(entry)) and not _in_flight(entry):
                    known = DIGEST.match(entry.name) is not None and is_file(entry)
                    loose += [_Loose.of(entry)] if known else []
                    waste += [] if known else [entry]
            total = sum(item.size for item in loose)
            for item in sorted(loose, key=lambda item: item.changed):
                if now - item.changed > max_age_s or total > max_bytes:
                    waste.append(item.path)
                    total -= item.size
            gone = self._discard(waste)
            self._ready_revert()
            return gone

    def _stale_links(self, keep: set[str]) -> Iterator[Path]:
        fit: dict[str, set[str | None]] = {
            ".current.next": {*keep},
            ".fallback.next": {*keep, *self._linked()},
            ".shadow.next": set(),  # made and renamed in one step: what stands there is left of one that failed
            ".current.revert": {self._named("fallback")},
        }
        for entry in entries(self.root):
            if entry.name in fit:
                if self._named(entry.name) not in fit[entry.name]:
                    yield entry
            elif entry.name.startswith(".") and entry.name.endswith(".tmp") and not _in_flight(entry):
                yield entry

    def _discard(self, waste: list[Path]) -> list[str]:
        gone: list[str] = []
        failed: OSError | None = None
        for path in waste:
            try:
                doomed = path
                if path.parent == self.slots and is_directory(path) and not path.name.startswith("."):
                    # Out of its name first: half a slot must never stand under a slot's name.
                    doomed = self.slots / f".{path.name}.gone"
                    durable.discard_tree(doomed)
                    durable.rename(path, doomed)
                durable.discard_tree(doomed)
                gone.append(str(path.relative_to(self.incoming.parent)))
            except OSError as error:
                failed = failed or error
        for directory in sorted({path.parent for path in waste}):
            durable.sync_directory(directory)
        if failed is not None:
            raise failed
        return gone

    # -- links --------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> str | None:
        """The digest that a link names; None when it is absent, no link, or names no slot."""
        try:
            target = _TARGET.fullmatch(str((self.root / name).readlink()))
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        return target[1] if target else None

    def _linked(self) -> set[str]:
        names = (self._named(name) for name in ("current", "fallback", "shadow"))
        return {name for name in names if name is not None}

    def _identity(self, name: str) -> Link:
        return _link(durable.identify_link(self.root / name))

    def _prepare(self, name: str, digest: str | None) -> None:
        """Have a link of that name ready, or none."""
        if digest is None:
            if os.path.lexists(self.root / name):
                durable.remove(self.root / name)
        elif self._named(name) != digest:
            durable.prepare_link(self.root / name, f"slots/{digest}")

    def _point(self, name: str, digest: str | None) -> None:
        """Switch a link to name the slot, or remove it; as it stands it is only made durable."""
        link = self.root / name
        if digest is None:
            durable.remove(link)
        elif self._named(name) == digest:
            durable.sync_directory(self.root)
        else:
            self._prepare(f".{name}.next", digest)
            durable.swap_link(self.root / f".{name}.next", link)

    def _ready_revert(self) -> None:
        """Keep a link to what `fallback` names ready to be renamed; without it `fallback` itself would serve."""
        with self._trying("prepare the revert link"):
            self._prepare(".current.revert", self._named("fallback"))

    # -- faults -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _doing(self, action: str) -> Iterator[None]:
        self.warnings = []
        with self._looking(action):
            yield

    @contextlib.contextmanager
    def _looking(self, action: str) -> Iterator[None]:
        with device_errors(f"{self.model}: {action}"):
            self._guard(self.root.parent, self.root, self.slots)
            yield

    def _guard(self, *places: Path) -> None:
        for place in places:
            if os.path.lexists(place) and not is_directory(place):
                raise self._foreign(place)

    @contextlib.contextmanager
    def _trying(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.warnings.append(f"{self.model}: could not {action}: {error.strerror or error}")

    def _foreign(self, path: Path) -> DeviceError:
        return DeviceError(
            f"{path}: is no directory although the store keeps one there; nothing is followed or written; "
            f"look who put it there and remove it",
            code="foreign-entry",
        )

    def _missing(self, digest: str, name: str, source: Path) -> SourceError:
        return SourceError(
            f"{self.model}: {name} ({digest[:12]}) is not in {source.parent}; the release is acquired again",
            code="missing-file",
        )


@dataclass(frozen=True, slots=True)
class _Loose:
    """Something that may go: when it last changed, and its size in bytes."""

    path: Path
    changed: float
    size: int

    @classmethod
    def of(cls, path: Path) -> "_Loose":
        status = path.lstat()
        size = sum(e.lstat().st_size for e in path.iterdir()) if is_directory(path) else status.st_size
        return cls(path, status.st_mtime, size)


def _in_flight(path: Path) -> bool:
    # This process's own temporary files (`durable.write_atomic`) may be in use by another of its threads; those of
    # any other process are leftovers, since only the holder of the updater's lock writes here.
    return path.name.endswith(f".{os.getpid()}.tmp")


def _link(identity: durable.LinkId) -> Link:
    return Link(identity.inode, identity.mtime_ns)


def _tampered(path: Path, expected: str) -> TrustError:
    return TrustError(
        f"{path}: tampered file: expected {expected}; it is not used and will be fetched again", code="tampered-file"
    )
