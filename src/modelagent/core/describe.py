"""What one model's state says to a person or a fleet tool: plain data, ready for JSON.

This file knows how to word State for `status`, over the control socket, over MQTT or read from disk with the updater
down. It does not know what really runs: that is health's to say, and whoever shows this puts the two together.

    describe(state)["waiting"]      # "on hold by cli: audit week"; never empty while nothing happens and somebody waits

Times are Unix seconds. Keys stay stable; new ones may come.
"""

from collections.abc import Mapping
from typing import Any

from modelagent.core.state import Candidate, Phase, State, Timer, block_reason, slot, version
from modelagent.manifest import Release


def describe(state: State) -> dict[str, Any]:
    """The state of one model as JSON-like data."""
    evidence = state.evidence.total
    return {
        "model": state.model,
        "phase": state.phase.value,
        "waiting": state.waiting,
        "retry_at": _when(state.timer),
        "current": _named(state, state.current),
        "fallback": _named(state, state.fallback),
        "candidate": _candidate(state.candidate),
        "standby": _candidate(state.standby),
        "leaving": None
        if state.going is None
        else {
            "from": _named(state, state.going.leaving),
            "to": _named(state, state.going.target),
            "reason": state.going.reason,
        },
        "channel": state.desired.channel,
        "channel_by": "config" if state.desired.following is None else state.desired.following.origin,
        "offer": _offer(state, state.desired.offer),
        "pin": None
        if state.desired.pin is None
        else {"version": state.desired.pin.version, "by": state.desired.pin.origin},
        "hold": None
        if state.desired.hold is None
        else {"by": state.desired.hold.origin, "reason": state.desired.hold.reason},
        "updates": state.desired.wish.updates,
        "blocks": _blocks(state),
        "postponed": [
            {"digest": digest, "version": version(state, digest), "until": late.timer.wall, "reason": late.reason}
            for digest, late in state.postponed.items()
        ],
        "declined": [
            {"digest": d.digest, "version": version(state, d.digest), "reason": d.reason} for d in state.declined
        ],
        "evidence": {
            "frames": evidence.frames,
            "done": evidence.done,
            "faults": evidence.faults,
            "seconds": evidence.busy_s,
            "right": evidence.right,
            "wrong": evidence.wrong,
        }
        if state.phase is Phase.PROBATION
        else None,
        "open_test": None
        if state.aftercare is None
        else {
            "against": _named(state, state.aftercare.previous),
            "until": state.aftercare.until.wall,
            "drifted": state.aftercare.drifted,
            "only_new": state.aftercare.evidence.total.only_new,
            "only_old": state.aftercare.evidence.total.only_old,
        },
        "check": {
            "state": state.watch.kind.value,
            "last_ok": state.watch.last_ok or None,
            "last_try": state.watch.last_try or None,
            "next": _when(state.watch.timer),
            "error": state.watch.error,
            "asked": state.watch.asked,
            "notes": list(state.watch.notes),
        },
        "slots": [
            {"digest": s.release.digest, "version": s.release.version, "confirmed": s.confirmed} for s in state.slots
        ],
        "floor": state.floor,
        "alarms": list(state.alarms),
    }


def _when(timer: Timer | None) -> float | None:
    return None if timer is None else timer.wall


def _named(state: State, digest: str | None) -> dict[str, Any] | None:
    if digest is None:
        return None
    found = slot(state, digest)
    return {
        "version": version(state, digest),
        "digest": digest,
        "confirmed": found is not None and found.confirmed,
    }


def _candidate(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "version": candidate.release.version,
        "digest": candidate.release.digest,
        "number": candidate.release.number,
        "size": candidate.release.size,
        "way": candidate.way.value,
        "reached": candidate.reached.name.lower(),
    }


def _offer(state: State, release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {
        "version": release.version,
        "digest": release.digest,
        "number": release.number,
        "blocked": block_reason(state, release),
    }


def _blocks(state: State) -> list[Mapping[str, Any]]:
    own = [
        {"digest": digest, "version": b.version, "cause": b.cause.value, "reason": b.reason, "at": b.at}
        for digest, b in state.blocks.items()
    ]
    signed = [
        {"digest": digest, "version": version(state, digest), "cause": "withdrawn", "reason": reason, "at": None}
        for digest, reason in state.withdrawn.items()
    ]
    return [*own, *signed]
