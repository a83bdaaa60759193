"""Deltas to a release from those before it: made at publication, listed in the release's signed `custom` data.

This file knows which model files a delta is worth making from and what the list says. It does not know the format
(`modelagent.delta`), nor how metadata are signed.

    made = make([("1.0.0", old), ("1.1.0", newer)], new)        # paths of model files
    made[0].entry       # {"from": "<sha256>", "sha256": "...", "length": 4711, "format": 1}
    made[0].data        # to be stored as files/<sha256>

Besides one delta for each base there is one that needs none: the file itself, compressed. It is what a device takes
that has none of the bases, and the bound for the others: one that is no shorter is not listed.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Targets

from modelagent.delta import DeltaError, form
from modelagent.delta.make import make as make_delta

KEPT: Final = 8  # newest releases that keep their deltas
_WORTH: Final = 0.98  # of the file's length; a shorter one that saves less is not worth the device's work


@dataclass(frozen=True, slots=True)
class Made:
    """One delta. `base` is the version it starts from, empty for none."""

    base: str
    entry: Mapping[str, Any]
    data: bytes


def make(bases: Sequence[tuple[str, Path]], new: bytes) -> list[Made]:
    """Make what is worth listing.

    Args:
        bases: version and model file of each release to start from; a file that is gone or the same is passed over.
        new: the new model file.
    """
    alone = _made("", None, new)
    found = [] if alone is None or len(alone.data) > _WORTH * len(new) else [alone]
    bound = min(len(item.data) for item in found) if found else int(_WORTH * len(new))
    seen = {hashlib.sha256(new).digest()}
    for version, path in bases:
        try:
            old = path.read_bytes()
        except FileNotFoundError:
            continue
        digest = hashlib.sha256(old).digest()
        if digest in seen:
            continue
        seen.add(digest)
        made = _made(version, old, new)
        if made is not None and len(made.data) < bound:
            found.append(made)
    return found


def forget(targets: Targets, named: Collection[str]) -> None:
    """Take the lists of deltas off all but the newest releases and those in `named` (target paths).

    Every device reads this metadata at every check, so what hardly any device can use must not make it grow. A device
    that does go to such a release fetches it in full.
    """
    numbers = {path: int((entry.custom or {}).get("number", 0)) for path, entry in targets.targets.items()}
    kept = {*sorted(numbers, key=numbers.__getitem__)[-KEPT:], *named}
    for path, entry in targets.targets.items():
        if path not in kept and entry.custom is not None:
            entry.custom.pop("deltas", None)


def size(old: bytes | None, new: bytes) -> int:
    """How many bytes a device that runs `old` would fetch to get `new`: the delta, or what is smaller."""
    candidates = [len(new)]
    for base in (None, old) if old is not None else (None,):
        made = _made("", base, new)
        candidates += [] if made is None else [len(made.data)]
    return min(candidates)


def _made(version: str, old: bytes | None, new: bytes) -> Made | None:
    try:
        data = make_delta(old, new)
    except DeltaError:
        return None
    base = None if old is None else hashlib.sha256(old).hexdigest()
    entry = {"from": base, "sha256": hashlib.sha256(data).hexdigest(), "length": len(data), "format": form.FORMAT}
    return Made(version, entry, data)
