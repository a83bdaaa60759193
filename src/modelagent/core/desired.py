"""Which release should run: one pure function over everything that anybody wants.

This file knows the precedence: withdrawn > blocked > config forbids > pin > hold > channel. It does not know how a
release comes to run, nor when.

    choose(state, at)   ->  Want(release, way, "the channel names it")   or   Keep("on hold by cli: audit week")
"""

from dataclasses import dataclass

from modelagent.core.events import Instant
from modelagent.core.state import State, Way, block_reason, slot
from modelagent.manifest import Release


@dataclass(frozen=True, slots=True)
class Want:
    """This release should run; `firm` when a pin asks for it and it replaces whatever is on its way."""

    release: Release
    way: Way
    reason: str
    firm: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing should change, and why. `left`: seconds after which that may be different (0: when facts change)."""

    reason: str
    left: float = 0.0


def choose(state: State, at: Instant) -> Want | Keep:
    """Decide what should run, with the reason. What runs already is a Keep."""
    desired = state.desired
    if desired.pin is not None:
        release, why = desired.pinned, f"pinned to {desired.pin.version} by {desired.pin.origin}"
        if release is None or release.version != desired.pin.version:
            return Keep(f"{why}: the repository has not shown that version yet")
    else:
        release, why = desired.offer, f"the channel {desired.channel} names it"
        if release is None and (state.watch.error or not state.watch.last_ok):
            return Keep(f"what the channel {desired.channel} names is not known yet: no check of it has succeeded")
        if release is None:
            return Keep(f"the channel {desired.channel} names no release")
    refusal = block_reason(state, release) or forbidden(state, release)
    if refusal:
        return Keep(f"{release.version} is {refusal}")
    if desired.pin is None and desired.hold is not None:
        return Keep(f"on hold by {desired.hold.origin}" + (f": {desired.hold.reason}" if desired.hold.reason else ""))
    if release.digest == state.current and slot(state, state.current) is not None:
        return Keep(f"{release.version} is active already")
    if release.number < state.floor:
        return Keep(f"{release.version} (number {release.number}) is below the floor {state.floor}")
    for memory in state.declined:
        if (memory.digest, memory.running, memory.runtime) == (release.digest, state.current, state.runtime):
            return Keep(f"{release.version} was declined: {memory.reason}")
    late = state.postponed.get(release.digest)
    if late is not None and (left := late.timer.left(at)) > 0:
        return Keep(f"{release.version} is postponed: {late.reason}", left)
    row, way = state.setbacks, way_of(state, release)
    held_back = way in (Way.FORWARD, Way.FIRST) and desired.pin is None and not desired.now
    if row is not None and held_back and (left := row.timer.left(at)) > 0 and not _on_its_way(state, release):
        return Keep(f"{release.version} waits: {row.times} releases in a row have failed here", left)
    return Want(release, way, why, firm=desired.pin is not None)


def _on_its_way(state: State, release: Release) -> bool:
    return any(
        known is not None and known.release.digest == release.digest for known in (state.candidate, state.standby)
    )


def forbidden(state: State, release: Release) -> str:
    """Why the settings file forbids this release, or an empty string."""
    wish = state.desired.wish
    if not wish.updates:
        return "forbidden by the settings: updates = false"
    if release.version in wish.forbid:
        return f"forbidden by the settings: forbid names {release.version}"
    return ""


def way_of(state: State, release: Release) -> Way:
    """How this release would come to run here; a `current` whose slot is gone is no baseline."""
    here = slot(state, release.digest)
    if here is not None and here.confirmed:
        return Way.LOCAL
    running = slot(state, state.current)
    if running is None:
        return Way.FIRST
    if release.number < running.release.number:
        return Way.BACK
    return Way.FORWARD
