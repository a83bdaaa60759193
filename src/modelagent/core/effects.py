"""What the updater is to do: orders as frozen data, carried out by the driver through `steps` and `sinks`.

This file knows the orders. It does not know how they are carried out. Effects are imperatives. Each has an id;
the event that answers it carries the same id, and an answer to a forgotten id is ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelagent.manifest import Release

if TYPE_CHECKING:
    from modelagent.core.state import State


@dataclass(frozen=True, slots=True)
class Effect:
    """Base: the model it is for, and its id (0 where nobody waits for an answer)."""

    model: str
    id: int


@dataclass(frozen=True, slots=True)
class Check(Effect):
    """Refresh the metadata; answer Learned or CheckFailed. `pin`: also resolve this version."""

    channel: str
    pin: str


@dataclass(frozen=True, slots=True)
class Acquire(Effect):
    """Bring every file of the release into incoming/, verified. Answer Finished or Failed(progress=bytes)."""

    release: Release


@dataclass(frozen=True, slots=True)
class Stage(Effect):
    """Make the slot complete and durable, and prepare the links. Answer Finished(link=the prepared `current`).

    For a slot that is on disk already this re-hashes it. `fallback` is what the `fallback` link shall name once
    the release is active.
    """

    release: Release
    fallback: str | None


@dataclass(frozen=True, slots=True)
class RunCanary(Effect):
    """Run candidate and baseline in children, interleaved, and judge. Answer Finished(verdict).

    `baseline` None: absolute gates only. `run` counts from 1; AGAIN may be answered at most at runs 1 and 2.
    """

    release: Release
    baseline: str | None
    run: int


@dataclass(frozen=True, slots=True)
class KeepPeak(Effect):
    """Write into the slot how much memory its canary took, KiB. Nobody waits: without it inference estimates."""

    release: Release
    peak_kb: int


@dataclass(frozen=True, slots=True)
class Activate(Effect):
    """Switch: `fallback` first, then `shadow`, then `current`. Answer Finished(link)."""

    release: Release
    fallback: str | None
    shadow: str | None


@dataclass(frozen=True, slots=True)
class Revert(Effect):
    """Go back: `current` first (to `target`), then `fallback`. Answer Finished(link).

    `leaving` loses its confirmed mark when `unconfirm`.
    """

    leaving: str | None
    target: str
    fallback: str | None
    unconfirm: bool


@dataclass(frozen=True, slots=True)
class Confirm(Effect):
    """Mark the slot confirmed, durably; drop the `shadow` link. Answer Finished."""

    release: Release


@dataclass(frozen=True, slots=True)
class SetFallback(Effect):
    """Make the `fallback` link name `target`, or remove it. Answer Finished."""

    target: str | None


@dataclass(frozen=True, slots=True)
class SetShadow(Effect):
    """Make the `shadow` link name `target`, so that inference compares the two, or remove it. Answer Finished."""

    target: str | None


@dataclass(frozen=True, slots=True)
class Stop(Effect):
    """The safe action `stop`: remove `current`; inference idles and says why. Answer Finished."""

    reason: str


@dataclass(frozen=True, slots=True)
class Vacuum(Effect):
    """Remove what neither `keep` (slot digests) nor `partials` (file digests) nor a link names, by age and size."""

    keep: tuple[str, ...]
    partials: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Abandon(Effect):
    """Give up the effect `target`; it answers Failed(code="abandoned") or not at all, within a time limit."""

    target: int


@dataclass(frozen=True, slots=True)
class Note:
    """One line of history: what happened to which version, and why, with the numbers."""

    kind: str  # stable word: offered, deferred, acquired, staged, canary, activated, confirmed, reverted, blocked, ...
    text: str
    version: str = ""
    digest: str = ""
    phase: str = ""
    origin: str = ""
    level: str = "info"  # info, warning, alarm
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Persist(Effect):
    """Write history, then state, durably. Precedes every effect that changes the world."""

    state: "State"
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Tell(Effect):
    """Send notes to the sinks (log, broker); a sink that fails is counted and steers nothing."""

    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Answer(Effect):
    """Answer the command `command`: accepted, refused, done or failed, with the reason."""

    command: str
    status: str
    reason: str
    duplicate: bool = False
