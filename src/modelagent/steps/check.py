"""The check: what the repository offers each model, as far as the root of trust vouches for it.

This file knows channels, releases and which source is asked in which order. It does not know when to check, or how
files are fetched; `metadata.py` holds the trust.

    checker = Checker(state_dir / "tuf", mirrors, root_bytes, clock, find)
    checker.check_many([Wish("digits", "stable")])      # a Checked or an error for each, in order

A check without news costs two requests (the next root, the timestamp), and no work that grows with the number of
releases: while the timestamp names the snapshot that the last answer came from, that answer still holds.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.core.events import Wave, Withdrawal
from modelagent.errors import AgentError, DeviceError, SourceError, TrustError, UsageError, sayable
from modelagent.manifest import Manifest, Release, parse
from modelagent.sources import Source
from modelagent.sources.mirrors import Mirrors
from modelagent.steps import channel as form
from modelagent.steps.metadata import Find, View, expiring, read_verified, sweep
from modelagent.steps.workflow import Clock

# What says nothing against the source: time, this device's or the publisher's, is what is wrong.
_OF_TIME: Final = {"freeze-attack", "wrong-clock"}


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


@dataclass(frozen=True, slots=True)
class _Memo:
    """The last answers: what they came from, the signatures that vouch for them, and until when these last."""

    state: str
    lives: list[tuple[str, float, float]]
    answers: Mapping[Wish, Checked] = field(default_factory=dict)

    def holds(self, state: str, now: float, wishes: Sequence[Wish]) -> bool:
        """Whether nothing has changed that the answers depend on."""
        fresh = bool(state) and state == self.state and all(end > now for _, _, end in self.lives)
        return fresh and all(wish in self.answers for wish in wishes)


_NOTHING: Final = _Memo("", [])
_REMEMBERED: Final = 64  # answers
Answers = list[Checked | AgentError | None]


class Checker:
    """Asks the repository. Safe to call from several threads.

    Args:
        tuf: the metadata cache.
        mirrors: whom to ask.
        root_bytes: the root metadata that came with the configuration.
        clock: against which expiry is judged.
        find: model -> where verified manifests may be on this device.
    """

    def __init__(
        self, tuf: Path, mirrors: Mirrors, root_bytes: bytes, clock: Clock, find: Callable[[str], Find]
    ) -> None:
        self._tuf = tuf
        self._mirrors = mirrors
        self._root_bytes = root_bytes
        self._clock = clock
        self._find = find
        self._lock = threading.Lock()
        self._memo = _NOTHING
        self._swept = False

    def check_many(self, wishes: Sequence[Wish], told: Sequence[str] = ()) -> list[Checked | AgentError]:
        """Ask for several models with one refresh of the metadata; one model's trouble is not the others'.

        What is attached is asked first, and then the mirrors until one has answered everything; their answer is the
        newer one, and counts. `told` are notes to add.

        Returns:
            For each wish, in order, the answer or what stood in its way: TrustError (code names the attack),
            SourceError, DeviceError, ModelError (a manifest this agent cannot read), UsageError (a name that is none).
        """
        misnamed = [_misnamed(wish) for wish in wishes]
        with self._lock:
            notes = [*told, *self._prepare()]
            attached = self._mirrors.attached()
            answers: Answers
            local: Answers = list(misnamed)
            for source in attached:
                answers = list(misnamed)
                self._ask(source, wishes, answers, notes, attached=True)
                # What is older than something seen is refused, so the later answer is the newer one.
                local = [_better(answer, beside) for answer, beside in zip(answers, local, strict=True)]
            answers = list(misnamed)
            others = [source for source in self._mirrors.in_turn() if source not in attached]
            for source in others:
                if any(answer is None or _elsewhere(answer) for answer in answers):
                    self._ask(source, wishes, answers, notes)
        nowhere = SourceError("no source is configured; set [repository] url", code="no-source")
        return [
            _with_notes(_better(answer, beside) or nowhere, notes)
            for answer, beside in zip(answers, local, strict=True)
        ]

    def manifest_of(self, release: Release) -> bytes:
        """The manifest's bytes: from this device if it has them, else from the repository.

        Raises:
            SourceError, TrustError, DeviceError: what the last source said.
        """
        with self._lock:
            self._prepare()
            data = self._find(release.model)(release.digest)
            data = data or read_verified(self._tuf / "targets" / release.digest, release.digest)
            if data is not None:
                return data
            trouble: AgentError = SourceError("no source is configured; set [repository] url", code="no-source")
            for source in self._mirrors.in_turn():
                try:
                    view = self._view(source)
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

    def custom_of(self, release: Release) -> Mapping[str, Any]:
        """The signed `custom` data of the release's manifest, from what was verified already; empty if that ended."""
        sources = self._mirrors.in_turn()
        if not sources:
            return {}
        with self._lock:
            try:
                view = self._view(sources[0])
                view.refresh_known()
                path = form.manifest_path(release.model, release.version)
                info = view.info(path)
                same = info is not None and info.hashes.get("sha256") == release.digest
                return view.custom(path) if same else {}
            except AgentError:
                return {}

    # --- one source --------------------------------------------------------------------------------------------

    def _view(self, source: Source) -> View:
        return View(self._tuf, source, self._root_bytes, self._clock)

    def _ask(
        self, source: Source, wishes: Sequence[Wish], answers: Answers, notes: list[str], *, attached: bool = False
    ) -> None:
        """Put this source's answers where there is none yet, or none that is good."""
        try:
            view = self._view(source)
            state = view.refresh_top()
            if self._memo.holds(state, view.now.timestamp(), wishes):
                found = [self._memo.answers[wish] for wish in wishes]
                answers[:] = [
                    replace(answer, signed_time=max(answer.signed_time, view.signed_time)) for answer in found
                ]
                notes += expiring([*self._memo.lives, *view.lives()], view.now.timestamp())
                return
            view.refresh_rest()
        except AgentError as error:
            self._blame(source, error)
            notes.append(f"{error.code}: {error.message}")
            known = self._known(source) if attached else None
            if known is None:
                answers[:] = [error if answer is None else answer for answer in answers]
                return
            where = "its files are taken where metadata that was verified before lists them"
            notes.append(sayable(f"{source.name}: {where}"))
            state, view = "", known
        given: dict[Wish, Checked] = {}
        for index, wish in enumerate(wishes):
            before = answers[index]
            if before is None or _elsewhere(before):
                try:
                    answers[index] = given[wish] = self._answer(view, wish)
                except AgentError as error:
                    self._blame(source, error)
                    answers[index] = before if isinstance(before, TrustError) else error
        notes += expiring(view.lives(), view.now.timestamp())
        if len(given) == len(set(wishes)):  # what another source has said is not what this state says
            below = [life for life in view.lives() if life[0] not in {"root", "timestamp"}]
            kept = self._memo if state and state == self._memo.state else _NOTHING
            if len(kept.answers) > _REMEMBERED:
                kept = _NOTHING
            self._memo = _Memo(state, [*dict.fromkeys((*kept.lives, *below))], {**kept.answers, **given})

    def _known(self, source: Source) -> View | None:
        """What this device has verified already, with this source for the bytes of targets."""
        try:
            view = self._view(source)
            view.refresh_known()
        except AgentError:
            return None
        return view

    def _answer(self, view: View, wish: Wish) -> Checked:
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
        times = [view.signed_time, document.issued]
        times += [release.issued for release in (offer, pinned) if release is not None]
        missing = wish.pin and pinned is None
        return Checked(
            model=wish.model,
            channel=wish.channel,
            offer=offer,
            pinned=pinned,
            withdrawn=document.withdrawn,
            waves=document.waves,
            notes=(f"the repository has no {wish.model} {wish.pin}, which is pinned",) if missing else (),
            signed_time=max(times),
        )

    def _resolve(self, view: View, model: str, version: str) -> Release | None:
        """The release under a name that the release key signed, or None."""
        data = view.target(form.manifest_path(model, version), self._find(model))
        return None if data is None else named(data, model, version).release

    def _prepare(self) -> list[str]:
        """Make the cache; at the first check of this process, and after trouble with the disk, also look it over."""
        with durable.device_errors("the state directory"):
            durable.have_directory(self._tuf, replace=True)
            if self._swept:
                return []
            notes = sweep(self._tuf)
            self._swept = True
            return notes

    def _blame(self, source: Source, error: AgentError) -> None:
        if isinstance(error, TrustError) and error.code not in _OF_TIME:
            self._mirrors.blame(source, error.code)
        if isinstance(error, DeviceError):
            self._swept = False  # something in the cache is in the way: look it over before the next check


def named(data: bytes, model: str, version: str) -> Manifest:
    """Parse a manifest and hold it against the name it came under.

    Raises:
        ModelError: it cannot be read.
        TrustError: `mix-and-match`.
    """
    found = parse(data)
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
    """Whether another source might answer better."""
    return isinstance(answer, SourceError | TrustError)


def _better(answer: Checked | AgentError | None, beside: Checked | AgentError | None) -> Checked | AgentError | None:
    """The mirrors' answer where there is one, else that of what is attached, else whose refusal says more."""
    if isinstance(answer, Checked) or beside is None:
        return answer
    return beside if isinstance(beside, Checked) or answer is None else answer


def _with_notes(answer: Checked | AgentError, notes: Sequence[str]) -> Checked | AgentError:
    if not isinstance(answer, Checked):
        return answer
    return replace(answer, notes=tuple(dict.fromkeys((*notes, *answer.notes))))
