"""A model file from one that this device has and a delta: the work is done in a cage, and nothing of it is believed.

This file knows what a release may list of deltas, which of them fits this device, and how the program that applies one
is started, watched and ended. It does not know the format (`modelagent.delta` does, and is never imported here) nor
how bytes are fetched. Whoever asked compares the result's sha256 with the signed one.

    rebuilder = Rebuilder(state_dir)
    Acquirer(..., delta=rebuilder)          # asks it before a model file is fetched in full

A release's signed `custom` data lists:

    {"deltas": [{"from": "<sha256 of a model file>" | null, "sha256": "...", "length": 4711, "format": 1}]}

`from` null needs no base: the file itself, compressed. What is not understood in the list is passed over: the full
file is always there. Call it from a long-lived thread (see `children.py`).
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelagent import durable
from modelagent.children import Child, Limits, bare_environment, describe_exit, spawn
from modelagent.errors import AgentError, DeviceError, SourceError
from modelagent.manifest import FileRef
from modelagent.steps.content import DIGEST, Wanted

_log = logging.getLogger("modelagent.updater")

PROGRAM: Final = (sys.executable, "-m", "modelagent.delta.apply")
FORMAT: Final = 1
_LISTED_MAX: Final = 64
_CUTS: Final = 3  # times that fetching one delta may be cut before the full file is preferred
_OUTPUT: Final = 4096  # bytes of the program's output that are kept for the reason
_TICK_S: Final = 0.1
_START_S: Final = 60.0  # imports on a slow card without compiled files
_PACE: Final = 100_000  # bytes a second, far below what the slowest board does at the lowest priority
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Listed:
    """One delta that a release offers: what it starts from (None: nothing), its sha256 and length in bytes."""

    base: str | None
    sha256: str
    length: int


def listed(custom: Mapping[str, Any]) -> list[Listed]:
    """The deltas that signed `custom` data offers and this agent can read, smallest first."""
    entries = custom.get("deltas")
    found = []
    for entry in entries[:_LISTED_MAX] if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            continue
        base, sha256, length = entry.get("from"), entry.get("sha256"), entry.get("length")
        if (
            (base is None or (isinstance(base, str) and DIGEST.fullmatch(base)))
            and isinstance(sha256, str)
            and DIGEST.fullmatch(sha256)
            and isinstance(length, int)
            and not isinstance(length, bool)
            and length > 0
        ):
            found.append(Listed(base, sha256, length))
    return sorted(found, key=lambda item: item.length)


class Rebuilder:
    """Makes model files from deltas; what `steps.acquire.Delta` describes.

    Args:
        state_dir: model files to start from are in `models/*/slots/*/model.tflite` below it.
        program: what applies a delta; the JSON argument is appended. Tests put stand-ins here.
        patience: seconds that starting may take, on top of what the size of the files allows.
    """

    def __init__(self, state_dir: Path, *, program: Sequence[str] = PROGRAM, patience: float = _START_S) -> None:
        self._state = state_dir
        self._program = tuple(program)
        self._patience = patience
        self._useless: set[str] = set()
        self._cuts: Counter[str] = Counter()

    def __call__(
        self,
        ref: FileRef,
        custom: Mapping[str, Any],
        fetch: Callable[[str, int], Path],
        place: Path,
        abandoned: Callable[[], bool],
    ) -> bool:
        """Make one model file at `place` if a delta is listed that fits and is shorter; see `steps.acquire.Delta`.

        Raises:
            SourceError: `delta`: the delta came and could not be used; it is not tried again by this process.
                Another code: the link failed while the delta was fetched; what came is kept, so try again later.
            TrustError: the delta's bytes were not the signed ones.
            DeviceError: `abandoned`, ...
        """
        if ref.role != "model":
            return False
        for offer in listed(custom):
            if offer.length >= ref.length or offer.sha256 in self._useless or self._cuts[offer.sha256] >= _CUTS:
                continue
            base = None if offer.base is None else self._base(offer.base)
            if base is None and offer.base is not None:
                continue
            self._make(offer, base, ref, fetch=fetch, place=place, abandoned=abandoned)
            return True
        return False

    def _make(
        self,
        offer: Listed,
        base: Path | None,
        ref: FileRef,
        *,
        fetch: Callable[[str, int], Path],
        place: Path,
        abandoned: Callable[[], bool],
    ) -> None:
        delta = place.parent / offer.sha256
        if not Wanted("", offer.sha256, offer.length).is_at(delta):
            durable.remove_tree(delta)
            try:
                delta = fetch(offer.sha256, offer.length)
            except SourceError:
                self._cuts[offer.sha256] += 1
                raise
        began = time.monotonic()
        try:
            self._apply(base, delta, ref, place, abandoned)
            if not Wanted("", ref.sha256, ref.length).is_at(place):
                raise _unusable(offer, "it gives other bytes than the signed ones")
        except AgentError as error:
            if error.code != "abandoned":
                self._useless.add(offer.sha256)
                durable.dispose(delta)
            raise
        durable.dispose(delta)
        took = time.monotonic() - began
        _log.info("%s: %d bytes made from a delta of %d in %.1f s", ref.sha256, ref.length, offer.length, took)

    def _base(self, sha256: str) -> Path | None:
        """A model file in a slot with exactly this content, or None."""
        for path in self._candidates(sha256):
            if Wanted("", sha256, path.stat().st_size).is_at(path):
                return path
        return None

    def _candidates(self, sha256: str) -> Iterator[Path]:
        needle = sha256.encode()
        for path in sorted(self._state.glob("models/*/slots/*/manifest.json")):
            model = path.with_name("model.tflite")
            # A manifest that does not so much as contain the hash is not worth hashing its model for.
            if model.is_file() and needle in path.read_bytes():
                yield model

    # --- the program -------------------------------------------------------------------------------------------

    def _apply(self, base: Path | None, delta: Path, ref: FileRef, place: Path, abandoned: Callable[[], bool]) -> None:
        with _opened(delta) as changes, _created(place) as new:
            if base is None:
                self._run(None, changes, new, ref, abandoned)
            else:
                with _opened(base) as old:
                    self._run(old, changes, new, ref, abandoned)

    def _run(
        self, old: BinaryIO | None, delta: BinaryIO, new: BinaryIO, ref: FileRef, abandoned: Callable[[], bool]
    ) -> None:
        size = ref.length + (0 if old is None else os.fstat(old.fileno()).st_size)
        limits = {
            # In the worst case (no tensor pairs) zstd holds the old file twice and the new one once.
            "memory_mb": 2 * size // _MIB + 48,
            "cpu_s": int(self._patience + size / _PACE),
            "files": 64,
            "fsize_mb": ref.length // _MIB + 1,
        }
        argument = {
            "old": None if old is None else old.fileno(),
            "delta": delta.fileno(),
            "new": new.fileno(),
            "length": ref.length,
            "parent": os.getpid(),
            "limits": limits,
        }
        files = [file.fileno() for file in (old, delta, new) if file is not None]
        try:
            child = spawn(
                [*self._program, json.dumps(argument)],
                pass_fds=files,
                env=bare_environment(),
                capture=_OUTPUT,
            )
        except OSError as error:
            raise SourceError(
                f"no program to apply a delta could be started ({error}); the full file is used instead", code="delta"
            ) from error
        try:
            child.confine(
                Limits(
                    # From outside the size of numpy is not known, so the cage is looser than the program's own.
                    memory_mb=limits["memory_mb"] + 4096,
                    cpu_s=limits["cpu_s"],
                    files=limits["files"],
                    fsize_mb=limits["fsize_mb"],
                )
            )
            self._watch(child, self._patience + size / _PACE, abandoned)
        finally:
            child.close()

    @staticmethod
    def _watch(child: Child, patience: float, abandoned: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patience
        while (status := child.wait(_TICK_S)) is None:
            if abandoned():
                raise DeviceError("applying a delta: given up on request", code="abandoned")
            if time.monotonic() > deadline:
                raise SourceError(
                    f"applying a delta took more than {patience:.0f} s; the full file is used instead", code="delta"
                )
        if status != 0:
            why = f"the program that applies a delta {describe_exit(status)}"
            raise SourceError(f"{why}: {child.said(300) or 'it said nothing'}", code="delta")


def _unusable(offer: Listed, why: str) -> SourceError:
    return SourceError(f"the delta files/{offer.sha256}: {why}; the full file is used instead", code="delta")


def _opened(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _created(path: Path) -> BinaryIO:
    durable.point("create", path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o640), "wb")
