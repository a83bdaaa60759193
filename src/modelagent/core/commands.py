"""What a command does to what should hold.

This file knows the verbs, what each changes, and when one is refused. It does not know who carries messages. A
command whose id was seen before changes nothing and gets its recorded answer.
"""

import re
from dataclasses import replace

from modelagent.core import effects
from modelagent.core.desired import forbidden
from modelagent.core.events import RevertWanted, Verb, Wanted
from modelagent.core.scene import Scene
from modelagent.core.state import Cause, Following, Hold, Phase, Pin, State, Watching, block_reason, slot, version
from modelagent.manifest import Release

_CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")


def accept(x: Scene) -> bool:
    """Take a command in. False when it was a repeat or was refused, so that nothing else may follow from it."""
    event = x.event
    assert isinstance(event, Wanted | RevertWanted)  # noqa: S101
    for seen in x.state.seen:
        if seen.id == event.id:
            x.reply(seen.id, seen.status, seen.reason, duplicate=True)
            return False
    if isinstance(event, RevertWanted):
        return True
    refusal = _VERBS[event.verb](x, event) if event.verb in _VERBS else f"unknown verb {event.verb!r}"
    if refusal:
        x.reply(event.id, "refused", refusal)
        return False
    return True


def told(x: Scene, event: Wanted | RevertWanted, kind: str, text: str, *, release: Release | None = None) -> None:
    """One line of history with who wanted it and the command's id."""
    x.note(kind, text, release=release, origin=event.origin, evidence={"id": event.id})


def known_release(state: State, name: str) -> Release | None:
    """The release of that version or digest, if this device has met it."""
    known = [s.release for s in state.slots]
    known += [c.release for c in (state.candidate, state.standby) if c is not None]
    known += [r for r in (state.desired.offer, state.desired.pinned) if r is not None]
    return next((r for r in known if name in (r.version, r.digest)), None)


def _ask(x: Scene, *, anew: bool = False) -> None:
    """A check is wanted now; `anew`: the one in flight asks the wrong question, so its answer is not heard."""
    watch = x.state.watch
    if anew and watch.kind is Watching.CHECKING:
        x.effects.append(effects.Abandon(x.state.model, 0, watch.effect))
        watch = replace(watch, kind=Watching.RESTING, effect=0)
    x.set(watch=replace(watch, asked=True))
    x.look_again()


def _check(x: Scene, event: Wanted) -> str:
    _ask(x)
    x.reply(event.id, "accepted", "a check is made as soon as the gates allow")
    return ""


def _update(x: Scene, event: Wanted) -> str:
    _ask(x)
    x.set(desired=replace(x.state.desired, now=True))
    told(x, event, "command", f"update now, by {event.origin}: windows and waves are lifted, gates are not")
    x.reply(event.id, "accepted", "a check is made now; windows and waves are lifted, gates are not")
    return ""


def _pin(x: Scene, event: Wanted) -> str:
    wanted = event.argument.strip()
    if not wanted:
        return "pin needs a version"
    if not _VERSION.fullmatch(wanted):  # accepted, it would fail every check from now on, and hide withdrawals
        return f"{wanted!r} is no name of a version: letters, digits, ., +, _ and -, at most 64"
    release = known_release(x.state, wanted)
    name = release.version if release is not None else wanted
    if x.state.desired.wish.pin and event.origin != "config" and x.state.desired.wish.pin != name:
        return f"the settings pin {x.state.desired.wish.pin}; change them there"
    lifted = {d: b for d, b in x.state.blocks.items() if not (b.cause is Cause.OPERATOR and b.version == name)}
    blocks, x.state = x.state.blocks, replace(x.state, blocks=lifted)
    refusal = next((f"blocked ({b.cause.value}): {b.reason}" for b in lifted.values() if b.version == name), "")
    if release is not None:
        refusal = refusal or block_reason(x.state, release) or forbidden(x.state, release)
        if not refusal and release.number < x.state.floor:
            refusal = f"below the floor: its number is {release.number}, the floor {x.state.floor}"
    elif name in x.state.desired.wish.forbid:
        refusal = f"forbidden by the settings: forbid names {name}"
    if refusal:
        x.set(blocks=blocks)
        return f"{name} is {refusal}"
    pinned = release if release is not None else None
    x.set(desired=replace(x.state.desired, pin=Pin(name, event.origin, event.id), pinned=pinned))
    _ask(x, anew=True)
    told(x, event, "pinned", f"to {name} by {event.origin}")
    x.reply(event.id, "accepted", f"pinned to {name}")
    return ""


def _unpin(x: Scene, event: Wanted) -> str:
    if x.state.desired.wish.pin and event.origin != "config":
        return f"the settings pin {x.state.desired.wish.pin}; remove `pin` there"
    x.set(desired=replace(x.state.desired, pin=None, pinned=None))
    told(x, event, "unpinned", f"by {event.origin}")
    x.reply(event.id, "done", "unpinned")
    return ""


def _hold(x: Scene, event: Wanted) -> str:
    x.set(desired=replace(x.state.desired, hold=Hold(event.origin, event.id, event.argument)))
    told(x, event, "held", f"by {event.origin}: {event.argument}")
    x.reply(event.id, "done", "on hold: nothing new is activated; going back stays possible")
    return ""


def _resume(x: Scene, event: Wanted) -> str:
    if x.state.desired.wish.hold and event.origin != "config":
        return "the settings say hold = true; change them there"
    x.set(desired=replace(x.state.desired, hold=None))
    told(x, event, "resumed", f"by {event.origin}")
    x.reply(event.id, "done", "resumed")
    return ""


def _lift(x: Scene, event: Wanted) -> str:
    name = event.argument.strip()
    if not name:
        return "lift needs a version or digest"
    mine = {d for d, b in x.state.blocks.items() if name in (d, b.version)}
    release = known_release(x.state, name)
    digest = release.digest if release is not None else name
    waits = digest in x.state.postponed or any(m.digest == digest for m in x.state.declined)
    if not mine and not waits:
        if digest in x.state.withdrawn:
            return f"{name} is withdrawn by the repository; only newly signed channel data lifts that"
        if release is not None and (why := block_reason(x.state, release)):
            return f"{name} is {why}; lift that version instead"
        return f"{name} is not blocked here"
    x.set(
        blocks={d: b for d, b in x.state.blocks.items() if d not in mine},
        postponed={d: p for d, p in x.state.postponed.items() if d != digest and d not in mine},
        declined=tuple(m for m in x.state.declined if m.digest != digest and m.digest not in mine),
        setbacks=None,
    )
    told(x, event, "lifted", f"{name} by {event.origin}")
    x.reply(event.id, "done", f"{name} is no longer blocked")
    return ""


def _block(x: Scene, event: Wanted) -> str:
    name = event.argument.strip()
    if not name:
        return "block needs a version or digest"
    release = known_release(x.state, name)
    digest = release.digest if release is not None else name
    if digest == x.state.current:
        return f"{version(x.state, digest)} is active; use rollback to leave and block it"
    if release is None and not (len(name) == 64 and set(name) <= set("0123456789abcdef")):
        return f"{name} is not known here; give its digest (64 hexadecimal characters)"
    if digest in x.state.blocks:
        return f"{name} is blocked already"
    if (here := slot(x.state, digest)) is not None and here.confirmed:
        x.note("blocked", f"{name} is confirmed here and is no longer gone back to", digest=digest)
    told(x, event, "command", f"block {name}, by {event.origin}")
    x.block(digest, Cause.OPERATOR, f"by {event.origin}")
    x.reply(event.id, "done", f"{name} is blocked until lifted or pinned")
    return ""


def _confirm(x: Scene, event: Wanted) -> str:
    """An operator vouches for the version on probation; nobody can vouch for one that is blocked."""
    if x.state.phase is not Phase.PROBATION:
        return "nothing is on probation"
    release, doing, name = x.candidate.release, x.state.doing, event.argument.strip()
    if name and name not in (release.version, release.digest):
        return f"{release.version} is on probation, not {name}"
    if why := block_reason(x.state, release):
        return f"{release.version} is {why}"
    if doing is None:
        x.set(timer=None)
        x.order("confirm", effects.Confirm(x.state.model, x.new_id(), release))
    told(x, event, "command", f"{release.version} is confirmed early, by {event.origin}", release=release)
    x.reply(event.id, "accepted", f"{release.version} is being confirmed")
    return ""


def _set_channel(x: Scene, event: Wanted) -> str:
    """Follow another channel of the same repository until the settings' one is edited; no argument: that one again."""
    name, desired = event.argument.strip(), x.state.desired
    if name and not _CHANNEL.fullmatch(name):
        return f"{name!r} is no name of a channel: lower-case letters, digits, - and _, at most 64"
    name = name or desired.wish.channel
    if name == desired.channel:
        x.reply(event.id, "done", f"the channel {name} is followed already")
        return ""
    kept = {**x.state.withdrawn, **(desired.following.withdrawn if desired.following is not None else {})}
    own = name == desired.wish.channel
    following = None if own else Following(name, event.origin, event.id, kept)
    x.set(desired=replace(desired, following=following, offer=None, waves=(), now=False))
    _ask(x, anew=True)
    told(x, event, "channel", f"{name}, by {event.origin}" + (", as the settings say" if own else ""))
    later = f"; the pin to {desired.pin.version} goes before it" if desired.pin is not None else ""
    x.reply(event.id, "accepted", f"the channel {name} is followed{later}")
    return ""


def _config(x: Scene, event: Wanted) -> str:
    """A settings edit. What it newly says replaces what a command said; what it does not mention stays."""
    assert event.settings is not None, "a config command carries the settings"  # noqa: S101
    old, new, desired = x.state.desired.wish, event.settings, x.state.desired
    x.set(desired=replace(desired, wish=new))
    if new.pin != old.pin:
        pin = Pin(new.pin, "config", event.id) if new.pin else None
        kept = {d: b for d, b in x.state.blocks.items() if not (b.cause is Cause.OPERATOR and b.version == new.pin)}
        x.set(blocks=kept)  # a pin lifts what an operator rolled back, wherever the pin is written
        pinned = known_release(x.state, new.pin) if new.pin else None
        x.set(desired=replace(x.state.desired, pin=pin, pinned=pinned))
    if new.hold != old.hold:
        x.set(desired=replace(x.state.desired, hold=Hold("config", event.id, "") if new.hold else None))
    if new.channel != old.channel:
        x.set(desired=replace(x.state.desired, offer=None, following=None))
    if new != old:
        _ask(x, anew=new.channel != old.channel or new.pin != old.pin)
        told(x, event, "settings", "a changed settings file is in force")
    x.reply(event.id, "done", "settings in force")
    return ""


_VERBS = {
    Verb.CHECK: _check,
    Verb.UPDATE: _update,
    Verb.PIN: _pin,
    Verb.UNPIN: _unpin,
    Verb.HOLD: _hold,
    Verb.RESUME: _resume,
    Verb.LIFT: _lift,
    Verb.BLOCK: _block,
    Verb.CONFIRM: _confirm,
    Verb.SET_CHANNEL: _set_channel,
    Verb.CONFIG: _config,
}
