"""Check and acquire: what the repository offers, and every verified file of a release in incoming/.

This file knows releases, channels and the directories they pass through. It does not know when to check, whether to
want a release, or how a slot is made; `metadata.py` holds the trust, `transfer.py` brings the bytes.

    acquirer = Acquirer(state_dir, HttpSource(url), root_bytes, time.time)
    checked = acquirer.check("digits", "stable")
    acquirer.acquire(checked.offer, progress=show, abandoned=stop.is_set)

Afterwards `incoming/` holds each file of the manifest under its sha256 and, written last, the manifest itself under
its own: a release is complete if and only if `incoming/<release digest>` is there. What a slot holds already is
linked, not fetched, and with everything there no network is needed.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelagent import durable, manifest
from modelagent.core.events import Wave, Withdrawal
from modelagent.errors import AgentError, DeviceError, ModelError, SourceError, TrustError, UsageError
from modelagent.manifest import FileRef, Manifest, Release
from modelagent.sources import Source
from modelagent.sources.mirrors import Mirrors
from modelagent.steps import channel as form
from modelagent.steps.metadata import View, read_verified, sweep
from modelagent.steps.transfer import Transfer

_POLL: Final = 0.2  # seconds between two looks at whether a waiting transfer is still wanted
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Wish:
    """What one model wants to know: its channel, and the version it is pinned to (empty: none)."""

    model: str
    channel: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the repository says of one model.

    `offer` is what the channel names, `pinned` the release of the wanted pin; each None where there is none.
    `signed_time` is the newest signed time seen, Unix seconds: what a device without a clock may believe.
    """

    model: str
    channel: str
    offer: Release | None
    pinned: Release | None
    withdrawn: tuple[Withdrawal, ...]
    waves: tuple[Wave, ...]
    notes: tuple[str, ...]
    signed_time: float


def accept(found: Manifest) -> None:
    """The suitability check of a device that takes everything."""


def _untold(done: int, total: int) -> None:
    """The progress of which nobody wants to hear."""


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class Acquirer:
    """The device's way to the repository. Safe to call from several threads.

    Args:
        state_dir: `tuf/`, `incoming/` and `models/` are below it.
        sources: asked in this order; one that lied is asked last.
        root_bytes: the root metadata that came with the configuration.
        clock: Unix seconds, against which expiry is judged (the caller decides which clock to trust).
        reserve: bytes that must stay free.
        suits: raises ModelError for a manifest that this device cannot serve; see `check_suitable`.
        free: how many bytes are free.
    """

    def __init__(
        self,
        state_dir: Path,
        sources: Source | Sequence[Source],
        root_bytes: bytes,
        clock: Callable[[], float],
        *,
        reserve: int = 0,
        suits: Callable[[Manifest], None] = accept,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._state = state_dir
        self._incoming = state_dir / "incoming"
        self._tuf = state_dir / "tuf"
        self._mirrors = Mirrors(sources if isinstance(sources, Sequence) else [sources])
        self._root_bytes = root_bytes
        self._clock = clock
        self._reserve = reserve
        self._suits = suits
        self._free = free
        self._metadata_lock = threading.Lock()
        self._transfer_lock = threading.Lock()
        self._swept = False
        self._transfer = Transfer(self._incoming, self._mirrors, self._recognise)

    def close(self) -> None:
        """Let go of connections."""
        self._mirrors.close()

    # --- check -------------------------------------------------------------------------------------------------

    def check(self, model: str, channel: str, pin: str = "") -> Checked:
        """Ask what one model should run; see `check_many`, whose errors this raises."""
        answer = self.check_many([Wish(model, channel, pin)])[0]
        if isinstance(answer, AgentError):
            raise answer
        return answer

    def check_many(self, wishes: Sequence[Wish]) -> list[Checked | AgentError]:
        """Ask for several models with one refresh of the metadata; one model's trouble is not the others'.

        Returns:
            For each wish, in order, the answer or what stood in its way: TrustError (code names the attack),
            SourceError, DeviceError, ModelError (a manifest this agent cannot read), UsageError (a name that is none).
        """
        answers: list[Checked | AgentError | None] = [_misnamed(wish) for wish in wishes]
        with self._metadata_lock:
            notes = self._prepare()
            for source in self._mirrors.in_turn():
                if not any(answer is None or _elsewhere(answer) for answer in answers):
                    break
                try:
                    view = View(self._tuf, source, self._root_bytes, self._clock())
                    view.refresh()
                except AgentError as error:
                    self._blame(source, error)
                    notes.append(f"{error.code}: {error.message}")
                    answers = [error if answer is None else answer for answer in answers]
                    continue
                notes += view.expiring()
                for index, wish in enumerate(wishes):
                    before = answers[index]
                    if before is None or _elsewhere(before):
                        try:
                            answers[index] = self._answer(view, wish, tuple(notes))
                        except AgentError as error:
                            self._blame(source, error)
                            answers[index] = before if isinstance(before, TrustError) else error
        nowhere = SourceError("no source is configured; set [repository] url", code="no-source")
        return [nowhere if answer is None else answer for answer in answers]

    def _answer(self, view: View, wish: Wish, notes: tuple[str, ...]) -> Checked:
        path = form.target_path(wish.model, wish.channel)
        data = view.target(path)
        if data is None:
            raise SourceError(
                f"{view.source.name}: {path}: the repository has no such channel; publish it "
                f"(`modelagent repo channel {wish.model} {wish.channel} VERSION`) or correct `channel`",
                code="not-found",
            )
        document = form.parse(data)
        if (document.model, document.channel) != (wish.model, wish.channel):
            raise TrustError(
                f"{path}: found the document of {document.model} {document.channel}; nothing of it is used",
                code="mix-and-match",
            )
        offer = None
        if document.version is not None and document.digest is not None:
            offer = self._resolve(view, wish.model, document.version)
            if offer is None:
                raise SourceError(
                    f"{path}: names {wish.model} {document.version}, which no release key signed; publish that release "
                    "or let the channel name another",
                    code="not-found",
                )
            if offer.digest != document.digest:
                raise TrustError(
                    f"{path}: {wish.model} {document.version} is {offer.digest}, the channel says {document.digest}; "
                    "nothing of it is used",
                    code="mix-and-match",
                )
        pinned = self._resolve(view, wish.model, wish.pin) if wish.pin else None
        if wish.pin and pinned is None:
            notes = (*notes, f"the repository has no {wish.model} {wish.pin}, which is pinned")
        times = [view.signed_time, document.issued]
        times += [release.issued for release in (offer, pinned) if release is not None]
        return Checked(
            model=wish.model,
            channel=wish.channel,
            offer=offer,
            pinned=pinned,
            withdrawn=document.withdrawn,
            waves=document.waves,
            notes=notes,
            signed_time=max(times),
        )

    def _resolve(self, view: View, model: str, version: str) -> Release | None:
        """The release under a name that the release key signed, or None."""
        data = view.target(form.manifest_path(model, version), self._find(model))
        return None if data is None else _named(data, model, version).release

    def _prepare(self) -> list[str]:
        """Make the directories; at the first check of this process also look over the cache."""
        with durable.device_errors("the state directory"):
            for path in (self._tuf, self._incoming):
                if path.exists() and not durable.is_directory(path):
                    durable.remove_tree(path)
                durable.make_directory(path)
            if self._swept:
                return []
            notes = sweep(self._tuf)
            self._swept = True
            return notes

    def _blame(self, source: Source, error: AgentError) -> None:
        if isinstance(error, TrustError):
            self._mirrors.blame(source)
        if isinstance(error, DeviceError):
            self._swept = False  # something in the cache is in the way: look it over before the next check

    # --- acquire -----------------------------------------------------------------------------------------------

    def acquire(
        self,
        release: Release,
        progress: Callable[[int, int], None] | None = None,
        abandoned: Callable[[], bool] | None = None,
    ) -> Manifest:
        """Bring every file of a release into incoming/.

        Args:
            release: as a check gave it.
            progress: told (bytes here, bytes in all) as they land.
            abandoned: asked often; True ends the transfer, and what came is kept.

        Returns:
            The manifest; `incoming/` now holds it and all its files.

        Raises:
            TrustError, SourceError: as `Transfer.fetch`; nothing that could be mistaken for good is left.
            DeviceError: `no-space` (with the numbers, before anything is fetched), `abandoned`, ...
            ModelError: this device cannot serve it; nothing was fetched.
        """
        abandoned = abandoned or (lambda: False)
        while not self._transfer_lock.acquire(timeout=_POLL):
            if abandoned():
                raise DeviceError(f"{release.model} {release.version}: given up on request", code="abandoned")
        try:
            return self._acquire(release, progress or _untold, abandoned)
        finally:
            self._transfer_lock.release()

    def _acquire(
        self, release: Release, progress: Callable[[int, int], None], abandoned: Callable[[], bool]
    ) -> Manifest:
        data = self._manifest_of(release)
        found = _named(data, release.model, release.version)
        self._suits(found)
        total = found.release.size
        missing = [ref for ref in found.files if not self._held(ref)]
        self._check_space(release, missing)
        done = total - sum(ref.length for ref in missing)
        for ref in missing:
            base = done
            self._transfer.fetch(
                ref.sha256,
                ref.length,
                progress=lambda here, base=base: progress(base + here, total),  # type: ignore[misc]
                abandoned=abandoned,
            )
            done += ref.length
        with durable.device_errors("incoming"):
            if read_verified(self._incoming / release.digest, release.digest) is None:
                durable.remove_tree(self._incoming / release.digest)
                durable.write_atomic(self._incoming / release.digest, data)
        progress(total, total)
        return found

    def _manifest_of(self, release: Release) -> bytes:
        """The manifest's bytes: from this device if it has them, else from the repository."""
        with self._metadata_lock:
            self._prepare()
            data = self._find(release.model)(release.digest)
            data = data or read_verified(self._tuf / "targets" / release.digest, release.digest)
            if data is not None:
                return data
            trouble: AgentError = SourceError("no source is configured; set [repository] url", code="no-source")
            for source in self._mirrors.in_turn():
                try:
                    view = View(self._tuf, source, self._root_bytes, self._clock())
                    view.refresh()
                    data = view.target(form.manifest_path(release.model, release.version))
                except AgentError as error:
                    self._blame(source, error)
                    trouble = error
                    continue
                if data is not None and hashlib.sha256(data).hexdigest() == release.digest:
                    return data
                trouble = SourceError(
                    f"{source.name}: {release.model} {release.version} ({release.digest[:12]}) is no longer there",
                    code="not-found",
                )
            raise trouble

    def _check_space(self, release: Release, missing: Sequence[FileRef]) -> None:
        need = sum(max(0, ref.length - self._transfer.partial(ref.sha256)) for ref in missing)
        with durable.device_errors("incoming"):
            free = self._free(self._incoming)
        if need and need + manifest.MAX_LENGTH + self._reserve > free:
            raise DeviceError(
                f"{release.model} {release.version}: {need} bytes to fetch and {self._reserve} to keep free, found "
                f"{free} free; nothing was fetched: make room",
                code="no-space",
            )

    # --- what is here already ----------------------------------------------------------------------------------

    def _held(self, ref: FileRef) -> bool:
        """Whether incoming/ holds the file, whole and right; if a slot does, incoming/ gets a link to it."""
        place = self._incoming / ref.sha256
        with durable.device_errors(f"incoming/{ref.sha256}"):
            if _is_whole(place, ref):
                return True
            durable.remove_tree(place)
            for slot, held in self._slots():
                same = next((other for other in held.files if other.sha256 == ref.sha256), None)
                if same is not None and _is_whole(slot / same.name, ref):
                    try:
                        durable.link_file(slot / same.name, place)
                    except OSError:  # another file system, too many links: fetch it, that always works
                        return False
                    durable.sync_directory(self._incoming)
                    return True
        return False

    def _find(self, model: str) -> Callable[[str], bytes | None]:
        """Where a manifest may be on this device."""

        def find(sha256: str) -> bytes | None:
            for path in (
                self._incoming / sha256,
                self._state / "models" / model / "slots" / sha256 / "manifest.json",
            ):
                data = read_verified(path, sha256, manifest.MAX_LENGTH)
                if data is not None:
                    return data
            return None

        return find

    def _slots(self) -> Iterator[tuple[Path, Manifest]]:
        for path in sorted(self._state.glob("models/*/slots/*/manifest.json")):
            found = _read_manifest(path)
            if found is not None:
                yield path.parent, found

    def _recognise(self, sha256: str) -> str | None:
        """The release that bytes belong to, if this device has ever seen its manifest."""
        for path in (
            *self._tuf.glob("targets/*"),
            *(path for path in self._incoming.glob("*") if path.suffix != ".part"),
            *self._state.glob("models/*/slots/*/manifest.json"),
        ):
            found = _read_manifest(path)
            for ref in () if found is None else found.files:
                if found is not None and ref.sha256 == sha256:
                    return f"{found.model} {found.version} ({ref.role})"
        return None


def check_suitable(found: Manifest, hardware: str, runtime_version: str) -> None:
    """Refuse a release that this device cannot serve, from its manifest alone.

    Args:
        found: the verified manifest.
        hardware: this device's name for itself, from the settings.
        runtime_version: of the installed runtime, for instance `2.3.0`.

    Raises:
        ModelError: `wrong-hardware`, `runtime-too-old` or `runtime-too-new`.
    """
    what = f"{found.model} {found.version}"
    if found.hardware and hardware not in found.hardware:
        raise ModelError(
            f"{what}: made for {', '.join(found.hardware)}, this device is {hardware or 'of no stated hardware'}; "
            "publish a release for it, or correct [device] hardware",
            code="wrong-hardware",
        )
    have = _numbers(runtime_version)
    if found.runtime_min is not None and have < _numbers(found.runtime_min):
        raise ModelError(
            f"{what}: needs runtime {found.runtime_min} or newer, found {runtime_version}; update the agent first",
            code="runtime-too-old",
        )
    if found.runtime_max is not None:
        most = _numbers(found.runtime_max)
        if have[: len(most)] > most:  # 2.3 allows every 2.3.x
            raise ModelError(
                f"{what}: works up to runtime {found.runtime_max}, found {runtime_version}; publish it anew",
                code="runtime-too-new",
            )


def _named(data: bytes, model: str, version: str) -> Manifest:
    """Parse a manifest and hold it against the name it came under."""
    found = manifest.parse(data)
    if (found.model, found.version) != (model, version):
        raise TrustError(
            f"{form.manifest_path(model, version)}: found the manifest of {found.model} {found.version}; nothing of "
            "it is used",
            code="mix-and-match",
        )
    return found


def _misnamed(wish: Wish) -> AgentError | None:
    for what, name, pattern in (
        ("model", wish.model, form.NAME),
        ("channel", wish.channel, form.NAME),
        ("pin", wish.pin or "1", form.VERSION),
    ):
        if not pattern.fullmatch(name):
            return UsageError(f"{what} {name!r}: allowed is /{pattern.pattern}/; correct it", code="path-trick")
    return None


def _elsewhere(answer: Checked | AgentError | None) -> bool:
    """Whether another mirror might answer better."""
    return isinstance(answer, SourceError | TrustError)


def _is_whole(path: Path, ref: FileRef) -> bool:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != ref.length:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == ref.sha256
    except FileNotFoundError:
        return False


def _read_manifest(path: Path) -> Manifest | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > manifest.MAX_LENGTH:
            return None
        return manifest.parse(path.read_bytes())
    except (OSError, ModelError):
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _NUMBER.findall(version))
