"""Check and acquire: what the repository offers, and every verified file of a release in incoming/.

This file knows releases and the directories they pass through. It does not know when to check, whether to want a
release, or how a slot is made; `check.py` asks the repository, `transfer.py` brings the bytes.

    acquirer = Acquirer(state_dir, HttpSource(url), root_bytes, time.time)
    checked = acquirer.check("digits", "stable")
    acquirer.acquire(checked.offer, progress=show, abandoned=stop.is_set)

Afterwards `incoming/` holds each file of the manifest under its sha256 and, written last, the manifest itself under
its own: a release is complete if and only if `incoming/<release digest>` is there. What a slot holds already is
linked, not fetched, and with everything there no network is needed.
"""

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from modelagent import durable, manifest
from modelagent.core.clock import Trust
from modelagent.errors import AgentError, DeviceError, ModelError, SourceError, TrustError
from modelagent.manifest import FileRef, Manifest, Release
from modelagent.sources import Source
from modelagent.sources.allowance import Allowance
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.check import Checked, Checker, Wish, named
from modelagent.steps.clock import FloorClock
from modelagent.steps.metadata import read_verified
from modelagent.steps.suitable import check_suitable
from modelagent.steps.transfer import Abandoned, FinalError, Transfer
from modelagent.steps.workflow import Clock, Fixed

__all__ = ["Acquirer", "Checked", "Delta", "Wish", "check_suitable"]

_log = logging.getLogger("modelagent.updater")
_POLL: Final = 0.2  # seconds between two looks at whether a waiting transfer is still wanted
_DIGEST_LENGTH: Final = 64  # characters
_UNTOLD_MAX: Final = 20
_NOT_NOW: Final = ("abandoned", "byte-budget")
_NO_DELTA: Final = (
    "delta",
    "not-found",
    "refused",
)  # faults of a delta; any other SourceError is the link's: go on later


class Delta(Protocol):
    """Makes a file from another one that this device has; asked before a file is fetched in full."""

    def __call__(
        self,
        ref: FileRef,
        custom: Mapping[str, Any],
        fetch: Callable[[str, int], Path],
        place: Path,
        abandoned: Abandoned,
    ) -> bool:
        """Try to make one file.

        Args:
            ref: what is wanted: sha256 and length are signed.
            custom: the signed `custom` data of the release's manifest.
            fetch: brings a content-addressed file (sha256, length) and says where it is; bounded, resumed, counted.
            place: where the file is to be written; whoever asked hashes it again and removes what is wrong.
            abandoned: asked often; True ends the work.

        Returns:
            Whether the file was made. False means: fetch it in full.

        Raises:
            SourceError: `delta`, `not-found` or `refused`: fetch it in full. Another code: the link failed while a
                delta came; what came is kept, and the whole is tried again later.
            DeviceError: `abandoned`, `byte-budget`: not now. Another code, and TrustError: fetch it in full.
        """


def accept(found: Manifest) -> None:
    """The suitability check of a device that takes everything."""


def _untold(done: int, total: int) -> None:
    """The progress of which nobody wants to hear."""


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class _Believed:
    """A clock that is read anew for each question and believed."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def judge(self, root: Any) -> Any:
        return Fixed(self._now()).judge(root)

    def learn(self, root: Any, *, online: float, offline: float) -> None:
        pass


class Acquirer:
    """The device's way to the repository. Safe to call from several threads.

    Args:
        state_dir: `tuf/`, `incoming/` and `models/` are below it.
        sources: asked in this order; one that lied is asked last.
        root_bytes: the root metadata that came with the configuration.
        clock: Unix seconds by this device.
        trust: how far that clock is believed; None believes it.
        reserve: bytes that must stay free.
        suits: raises ModelError for a manifest that this device cannot serve; see `check_suitable`.
        free: how many bytes are free.
        allowance: what may be taken of the link; the sources are to be `Metered` by the same.
        delta: makes files from others; None fetches every file in full.
    """

    def __init__(
        self,
        state_dir: Path,
        sources: Source | Sequence[Source],
        root_bytes: bytes,
        clock: Callable[[], float],
        *,
        trust: Trust | None = None,
        reserve: int = 0,
        suits: Callable[[Manifest], None] = accept,
        free: Callable[[Path], int] = free_bytes,
        allowance: Allowance | None = None,
        delta: Delta | None = None,
    ) -> None:
        self._state = state_dir
        self._incoming = state_dir / "incoming"
        self._tuf = state_dir / "tuf"
        listed = sources if isinstance(sources, Sequence) else [sources]
        self._mirrors = Mirrors(listed, state_dir / "mirrors.json", clock)
        self._floor = None if trust is None else FloorClock(state_dir / "clock.json", trust, clock)
        judge: Clock = self._floor or _Believed(clock)
        self._checker = Checker(self._tuf, self._mirrors, root_bytes, judge, self._find)
        self._reserve = reserve
        self._suits = suits
        self._free = free
        self._allowance = allowance
        self._delta = delta
        self._transfer_lock = threading.Lock()
        self._remarks: list[str] = []
        self._at_hand: frozenset[str] = frozenset()  # releases whose every missing file is on what is attached
        self._transfer = Transfer(
            self._incoming, self._mirrors, self._recognise, allowance=allowance, told=self._remember
        )

    def close(self) -> None:
        """Let go of connections."""
        self._mirrors.close()

    # --- what is attached, and what there is to say --------------------------------------------------------------

    def attach(self, source: Source) -> None:
        """Ask this source too, before the mirrors: a stick, a bundle. It is trusted no more than they are."""
        self._mirrors.attach(source)

    def detach(self, name: str) -> None:
        """Forget the source that was attached under this name."""
        self._mirrors.detach(name)

    def attached(self) -> list[str]:
        """The names of what is attached."""
        return [source.name for source in self._mirrors.attached()]

    def is_at_hand(self, digest: str) -> bool:
        """Whether nothing of this release has to come over a network, as the last check found."""
        return digest in self._at_hand

    def left(self) -> float | None:
        """Bytes that may still be fetched over a network today; None without a budget."""
        return None if self._allowance is None else self._allowance.left()

    def rate(self) -> float | None:
        """Bits a second that recent transfers over a network had; None when there were none."""
        return None if self._allowance is None else self._allowance.rate()

    def describe(self) -> dict[str, Any]:
        """For `status`: the clock that counts, sources that are set aside, what is attached, bytes left today."""
        return {
            "clock": None if self._floor is None else self._floor.view(),
            "set_aside": self._mirrors.aside(),
            "attached": self.attached(),
            "budget_left": self.left(),
        }

    def _remember(self, error: AgentError) -> None:
        """A source was refused although another may have had the file: said with the next check."""
        _log.warning("%s: %s", error.code, error.message)
        self._remarks = [*self._remarks, f"{error.code}: {error.message}"][-_UNTOLD_MAX:]

    # --- check -------------------------------------------------------------------------------------------------

    def check(self, model: str, channel: str, pin: str = "") -> Checked:
        """Ask what one model should run; see `check_many`, whose errors this raises."""
        answer = self.check_many([Wish(model, channel, pin)])[0]
        if isinstance(answer, AgentError):
            raise answer
        return answer

    def check_many(self, wishes: Sequence[Wish]) -> list[Checked | AgentError]:
        """Ask for several models with one refresh of the metadata; see `Checker.check_many`."""
        self._prepare()
        told, self._remarks = self._remarks, []
        answers = self._checker.check_many(wishes, told)
        offers = [answer.offer for answer in answers if isinstance(answer, Checked)]
        offers += [answer.pinned for answer in answers if isinstance(answer, Checked)]
        self._at_hand = frozenset(offer.digest for offer in offers if offer is not None and self._here(offer))
        return answers

    def _here(self, release: Release) -> bool:
        """Whether what is attached has every file of a release, as far as one can tell without reading them."""
        attached = self._mirrors.attached()
        find = self._find(release.model)
        data = find(release.digest) or read_verified(self._tuf / "targets" / release.digest, release.digest)
        if not attached or data is None:
            return False
        return all(any(_offers(source, ref) for source in attached) for ref in manifest.parse(data).files)

    def _prepare(self) -> None:
        with durable.device_errors("the state directory"):
            durable.have_directory(self._incoming, replace=True)

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
            TrustError, SourceError: as `Transfer.bring`; nothing that could be mistaken for good is left.
            SourceError: `incomplete`: a file that the manifest lists is nowhere; nothing of the release is used.
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
        self._prepare()
        data = self._checker.manifest_of(release)
        found = named(data, release.model, release.version)
        self._suits(found)
        total = found.release.size
        missing = [ref for ref in found.files if not self._held(ref)]
        self._check_space(release, missing)
        done = total - sum(ref.length for ref in missing)
        whole = release.digest in self._at_hand  # then a delta over the network would be a poor bargain
        custom = self._checker.custom_of(release) if missing and self._delta is not None and not whole else {}
        for ref in missing:
            base = done
            if not self._made(ref, custom, abandoned):
                self._fetch(found, ref, lambda here, base=base: progress(base + here, total), abandoned)  # type: ignore[misc]
            done += ref.length
            progress(done, total)
        with durable.device_errors("incoming"):
            if read_verified(self._incoming / release.digest, release.digest) is None:
                durable.remove_tree(self._incoming / release.digest)
                durable.write_atomic(self._incoming / release.digest, data)
        progress(total, total)
        return found

    def _fetch(
        self, found: Manifest, ref: FileRef, progress: Callable[[int], None], abandoned: Callable[[], bool]
    ) -> None:
        """Bring one file in full."""
        try:
            self._transfer.fetch(ref.sha256, ref.length, progress=progress, abandoned=abandoned)
        except SourceError as error:
            if error.code != "not-found":
                raise
            raise FinalError(
                f"{found.model} {found.version} is incomplete: its {ref.role} is missing ({error.message}); nothing "
                "of the release is used",
                code="incomplete",
            ) from error

    def _made(self, ref: FileRef, custom: Mapping[str, Any], abandoned: Callable[[], bool]) -> bool:
        """Whether incoming/ has the file now because it could be made from another one."""
        if self._delta is None or not custom or self._transfer.partial(ref.sha256):
            return False
        place = self._incoming / f"{ref.sha256}.made"
        begun: list[str] = []

        def fetch(sha256: str, length: int) -> Path:
            begun.append(sha256)
            self._transfer.fetch(sha256, length, progress=lambda _: None, abandoned=abandoned)
            return self._incoming / sha256

        try:
            with durable.device_errors(f"making {ref.sha256} from a delta"):
                durable.remove_tree(place)
                if not self._delta(ref, custom, fetch, place, abandoned):
                    return False
                if not _is_whole(place, ref):
                    self._remember(TrustError(f"the delta to {ref.sha256} gives other bytes", code="tampered-file"))
                    return False
                durable.sync_file(place)
                durable.rename(place, self._incoming / ref.sha256)
                self._transfer.forget(ref.sha256)  # begun, and not one byte of it came
                return True
        except AgentError as error:
            if error.code in _NOT_NOW or (isinstance(error, SourceError) and error.code not in _NO_DELTA):
                raise
            self._remember(error)
            for sha256 in begun:
                self._transfer.forget(sha256)
            return False
        finally:
            durable.unlink(place)

    def _check_space(self, release: Release, missing: Sequence[FileRef]) -> None:
        """Refuse before anything is fetched, so that nothing is tried again until there is more room.

        A slot takes no second copy: its files are renamed into it.
        """
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
            *(path for path in self._incoming.glob("*") if len(path.name) == _DIGEST_LENGTH),
            *self._state.glob("models/*/slots/*/manifest.json"),
        ):
            found = _read_manifest(path)
            for ref in () if found is None else found.files:
                if found is not None and ref.sha256 == sha256:
                    return f"{found.model} {found.version} ({ref.role})"
        return None


def _offers(source: Source, ref: FileRef) -> bool:
    try:
        with source.fetch(f"files/{ref.sha256}", limit=ref.length) as body:
            return body.total == ref.length
    except AgentError:
        return False


def _is_whole(path: Path, ref: FileRef) -> bool:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != ref.length:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == ref.sha256
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):  # what the storage cannot read can be fetched again
            return False
        raise


def _read_manifest(path: Path) -> Manifest | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > manifest.MAX_LENGTH:
            return None
        return manifest.parse(path.read_bytes())
    except (OSError, ModelError):
        return None
