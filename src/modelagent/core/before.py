"""Cells of the phases before the switch: Idle, Deferred, Acquiring, Staging, Canary, Staged.

Nothing that runs is touched here; the worst that can happen to a candidate is that it is put aside. Each function
decides one cell of the table in `machine.py` and returns the phase that follows.
"""

from dataclasses import replace

from modelagent.core import desired, effects
from modelagent.core.events import FellBack, Finished, Learned, Refused, RevertWanted, SlotFacts, Started
from modelagent.core.scene import Scene
from modelagent.core.state import (
    Attempts,
    Candidate,
    Cause,
    Evidence,
    Phase,
    Reached,
    Way,
    block_reason,
    revert_target,
    slot,
    version,
)
from modelagent.core.verdicts import Allow, Outcome, Verdict
from modelagent.manifest import Release

RANK = {Phase.ACQUIRING: 1, Phase.STAGING: 2, Phase.CANARY: 3, Phase.STAGED: 4, Phase.ACTIVATING: 5}

_CANARY_RUNS = 3


def reason_of(verdict: Verdict, what: str) -> str:
    """A policy's answer as a line for `status`."""
    gate = f" [{verdict.gate}]" if verdict.gate else ""
    return f"{what} waits{gate}: {verdict.reason}"


# -- every phase before the switch -----------------------------------------------------------------------------


def started_before(x: Scene) -> Phase:
    """After any crash: the disk is the truth; what was in flight is begun anew from what is there."""
    event = x.event
    assert isinstance(event, Started)  # noqa: S101
    x.adopt(event.disk)
    x.set(doing=None, going=None)
    if why := x.must_leave():
        return x.leave(why, unconfirm=False)
    x.repair()
    x.look_again()
    phase, candidate = x.state.phase, x.state.candidate
    if phase is Phase.IDLE or candidate is None:
        return Phase.IDLE
    staged = slot(x.state, candidate.release.digest) is not None
    if not staged:
        x.set(candidate=replace(candidate, reached=Reached.OFFERED, link=None))
    if x.state.standby is not None and not _on_disk(x, x.state.standby):
        x.set(standby=None)
    match phase:
        case Phase.ACQUIRING:  # nothing is counted: a power cut in a long download is not the release's fault
            return _acquire(x)
        case Phase.STAGING:
            return x.stumble(RANK[Phase.STAGING], reason="interrupted while staging")
        case Phase.CANARY:
            return x.stumble(RANK[Phase.CANARY], reason="interrupted in the canary")
        case Phase.STAGED:
            return Phase.STAGED if staged else Phase.DEFERRED
    return Phase.DEFERRED


def learned_before(x: Scene) -> Phase:
    """Fresh signed data: a withdrawn running version is left at once; a withdrawn or outdated candidate gives way."""
    event = x.event
    assert isinstance(event, Learned)  # noqa: S101
    x.learn(event)
    if why := x.must_leave():
        return x.leave(why, unconfirm=False)
    x.repair()
    x.look_again()
    if x.state.phase in (Phase.IDLE, Phase.STAGED):
        return x.state.phase
    return x.reconsider() or x.state.phase


def wanted_before(x: Scene) -> Phase:
    """What should hold has changed: look at the candidate again."""
    x.repair()
    x.look_again()
    if x.state.phase in (Phase.IDLE, Phase.STAGED):
        return x.state.phase
    return x.reconsider() or x.state.phase


def revert_wanted_before(x: Scene) -> Phase:
    """An operator's rollback: leave the active version, or say why that cannot be."""
    event = x.event
    assert isinstance(event, RevertWanted)  # noqa: S101
    return operator_rollback(x, event)


def operator_rollback(x: Scene, event: RevertWanted) -> Phase:
    """Block the active version by the operator's word and go back; without a target, refuse with the reason."""
    current = x.state.current
    if current is None:
        x.reply(event.id, "refused", "nothing is active, so there is nothing to go back from")
        return x.state.phase
    target = revert_target(x.state, current)
    if target is None:
        name = version(x.state, current)
        x.reply(event.id, "refused", f"{name} is active and no other confirmed, unblocked version is on disk")
        return x.state.phase
    why = rolled_back(event)
    x.reply(event.id, "accepted", f"going back to {version(x.state, target)}")
    x.note("command", why, origin=event.origin, evidence={"id": event.id})
    x.block(current, Cause.OPERATOR, why)
    return x.leave(why, unconfirm=False)


def rolled_back(event: RevertWanted) -> str:
    """An operator's rollback as the cause of a block."""
    return f"rolled back by {event.origin}" + (f": {event.reason}" if event.reason else "")


def left_itself(x: Scene) -> Phase:
    """Inference left the active version by itself, or could not load it: make that durable.

    An unconfirmed version is blocked. A confirmed one is not (its bytes may have rotted, or the runtime changed): it
    loses its confirmed mark, so that it would have to prove itself again, and waits.
    """
    event = x.event
    assert isinstance(event, FellBack | Refused)  # noqa: S101
    if event.link != x.state.link or event.digest != x.state.current:
        return x.state.phase
    name = version(x.state, event.digest)
    if not event.confirmed:
        x.block(event.digest, Cause.FAILED, event.reason, hard=event.hard)
    elif revert_target(x.state, event.digest) is not None:
        x.alarm(f"{name} was confirmed and can no longer be run: {event.reason}")
        if (here := slot(x.state, event.digest)) is not None:
            x.postpone(here.release, event.reason)
    else:
        x.alarm(f"{name} cannot be run and there is no version to go back to: {event.reason}")
        return x.state.phase
    return x.leave(event.reason, unconfirm=True)


def unmoved(x: Scene) -> Phase:
    """Nothing to decide here: health as usual, an answer nobody waits for, a wish that is looked at again in Idle."""
    return x.state.phase


def _on_disk(x: Scene, candidate: Candidate) -> bool:
    return slot(x.state, candidate.release.digest) is not None


# -- Idle ------------------------------------------------------------------------------------------------------


def idle_elapsed(x: Scene) -> Phase:
    """Is there a release that should run and does not?"""
    choice = desired.choose(x.state, x.event.at)
    if isinstance(choice, desired.Want):
        return x.take_on(choice)
    x.wait(choice.reason)
    return Phase.IDLE


# -- Deferred --------------------------------------------------------------------------------------------------


def deferred_elapsed(x: Scene) -> Phase:
    """Go on with the candidate as far as the gates allow."""
    if (elsewhere := x.reconsider()) is not None:
        return elsewhere
    if (staged := _standby_first(x)) is not None:
        return staged
    timer = x.state.timer
    if timer is not None and timer.left(x.event.at) > 0:
        return Phase.DEFERRED
    x.set(timer=None)
    if x.candidate.way is Way.LOCAL and not x.state.attempts.failures:
        return _stage(x)  # after a failure its bytes are fetched again: they are the same signed ones
    match x.candidate.reached:
        case Reached.PASSED:
            x.look_again()
            return Phase.STAGED
        case Reached.STAGED:
            return _canary(x)
        case Reached.OFFERED:
            return _acquire(x)


def _standby_first(x: Scene) -> Phase | None:
    """What stands by, staged and passed, goes before a newer release that is still being prepared."""
    standby, answers = x.state.standby, x.answers
    if standby is None or not isinstance(answers.may_activate, Allow) or not answers.load_free:
        return None
    x.note("deferred", "what is staged goes first: its window is open", release=x.candidate.release)
    x.abandon()
    x.set(candidate=standby, standby=None, timer=None)
    x.look_again()
    return Phase.STAGED


def _acquire(x: Scene) -> Phase:
    verdict = x.answers.may_acquire
    if not isinstance(verdict, Allow):
        x.wait(reason_of(verdict, "download"))
        return Phase.DEFERRED
    text = f"{x.candidate.release.version}, {x.candidate.release.size} bytes"
    x.note("acquiring", _and_why(text, verdict), release=x.candidate.release)
    x.order("acquire", effects.Acquire(x.state.model, x.new_id(), x.candidate.release))
    return Phase.ACQUIRING


def _and_why(text: str, verdict: Verdict) -> str:
    """With what was lifted for it: an Allow has a reason only then."""
    return f"{text} ({verdict.reason})" if verdict.reason else text


def _stage(x: Scene) -> Phase:
    release = x.candidate.release
    fallback = revert_target(x.state, release.digest)
    x.order("stage", effects.Stage(x.state.model, x.new_id(), release, fallback))
    return Phase.STAGING


def _canary(x: Scene) -> Phase:
    verdict = x.answers.may_canary
    if not isinstance(verdict, Allow):
        x.wait(reason_of(verdict, "canary"))
        return Phase.DEFERRED
    if not x.answers.canary_free:
        x.wait("canary waits: another model's canary is running on this device")
        return Phase.DEFERRED
    candidate = x.candidate
    baseline = x.state.current if candidate.way is Way.FORWARD else None
    x.set(candidate=replace(candidate, judged_against=x.state.current, judged_on=x.state.runtime))
    x.order("canary", effects.RunCanary(x.state.model, x.new_id(), candidate.release, baseline, candidate.canary_run))
    return Phase.CANARY


# -- Acquiring, Staging, Canary --------------------------------------------------------------------------------


def acquiring_elapsed(x: Scene) -> Phase:
    """A gate that closes in the middle sends the download back to waiting; partials are kept."""
    if (elsewhere := x.reconsider()) is not None:
        return elsewhere
    if (staged := _standby_first(x)) is not None:
        return staged
    verdict = x.answers.may_acquire
    if isinstance(verdict, Allow):
        return Phase.ACQUIRING
    x.abandon()
    x.wait(reason_of(verdict, "download"))
    x.note("deferred", reason_of(verdict, "download"), release=x.candidate.release)
    return Phase.DEFERRED


def acquiring_finished(x: Scene) -> Phase:
    """Every file of the release is here and verified."""
    x.set(doing=None)
    x.note("acquired", f"{x.candidate.release.version} complete and verified", release=x.candidate.release)
    return _stage(x)


def effect_failed(x: Scene) -> Phase:
    """Acquiring, staging or the canary could not be done."""
    return x.failed(RANK[x.state.phase])


def staging_finished(x: Scene) -> Phase:
    """The slot is complete and durable, and the links are prepared."""
    event = x.event
    assert isinstance(event, Finished)  # noqa: S101
    release = x.candidate.release
    x.set(doing=None, candidate=replace(x.candidate, reached=Reached.STAGED, link=event.link))
    if slot(x.state, release.digest) is None:
        x.set(slots=(*x.state.slots, SlotFacts(release, confirmed=False)))
    x.note("staged", f"{release.version} in its slot", release=release)
    if x.candidate.way is Way.LOCAL:
        x.set(
            candidate=replace(
                x.candidate, reached=Reached.PASSED, judged_against=x.state.current, judged_on=x.state.runtime
            )
        )
        x.look_again()
        return Phase.STAGED
    return _canary(x)


def canary_elapsed(x: Scene) -> Phase:
    """When the gate closes the canary is broken off and begins anew later."""
    verdict = x.answers.may_canary
    if isinstance(verdict, Allow):
        return Phase.CANARY
    x.abandon()
    x.wait(reason_of(verdict, "canary"))
    x.note("deferred", reason_of(verdict, "canary"), release=x.candidate.release)
    return Phase.DEFERRED


def canary_finished(x: Scene) -> Phase:
    """The canary has spoken."""
    event = x.event
    assert isinstance(event, Finished)  # noqa: S101
    assert event.verdict is not None, "RunCanary answers with a verdict"  # noqa: S101
    verdict, release = event.verdict, x.candidate.release
    x.set(doing=None)
    level = "info" if verdict.outcome is Outcome.PASS else "warning"
    x.note(
        "canary",
        f"{release.version}: {verdict.outcome.value}: {verdict.reason}",
        release=release,
        level=level,
        evidence=verdict.evidence,
    )
    match verdict.outcome:
        case Outcome.PASS:
            x.set(candidate=replace(x.candidate, reached=Reached.PASSED), standby=None, attempts=_got_past(x))
            if verdict.peak_kb > 0:
                x.effects.append(effects.KeepPeak(x.state.model, 0, release, verdict.peak_kb))
            x.look_again()
            return Phase.STAGED
        case Outcome.FAIL:
            x.block(release.digest, Cause.FAILED, verdict.reason, hard=verdict.hard)
            return x.put_aside(verdict.reason, told=True)
        case Outcome.INSUFFICIENT:
            x.decline(release, verdict.reason)
            return x.put_aside(verdict.reason, told=True)
        case Outcome.AGAIN if x.candidate.canary_run >= _CANARY_RUNS:
            x.decline(release, verdict.reason)
            return x.put_aside(f"no verdict after {_CANARY_RUNS} canary runs: {verdict.reason}")
        case Outcome.AGAIN:
            x.set(
                candidate=replace(x.candidate, canary_run=x.candidate.canary_run + 1),
                timer=x.back_off(1, max(0.0, verdict.retry_at - event.at.wall)),
                waiting=f"canary again later: {verdict.reason}",
            )
            return Phase.DEFERRED


def _got_past(x: Scene) -> Attempts:
    """A canary passed is progress the first time only: what fails behind it must not come back here for ever."""
    past = (RANK[Phase.CANARY], 1)
    known = x.state.attempts
    return replace(known, furthest=past, failures=0) if past > known.furthest else known


# -- Staged ----------------------------------------------------------------------------------------------------


def staged_elapsed(x: Scene) -> Phase:
    """Activate when allowed; a newer release is prepared meanwhile and takes over once its own canary passed."""
    candidate, answers = x.candidate, x.answers
    choice = desired.choose(x.state, x.event.at)
    own = block_reason(x.state, candidate.release) or desired.forbidden(x.state, candidate.release)
    if own:
        return x.put_aside(own)
    allowed = isinstance(answers.may_activate, Allow) and answers.load_free
    if isinstance(choice, desired.Keep):
        # A newer offer that cannot be taken (blocked, postponed, ...) does not condemn the one that is ready, but a
        # hold, a pin elsewhere or a channel that came back to what runs does.
        offer = x.state.desired.offer
        if (
            x.state.desired.pin is not None
            or x.state.desired.hold is not None
            or offer is None
            or not _on_the_way(x, candidate, offer)
        ):
            return x.put_aside(choice.reason)
    elif choice.release.digest != candidate.release.digest:
        if choice.firm or not _on_the_way(x, candidate, choice.release):
            return x.reconsider() or Phase.STAGED
        if not allowed and isinstance(answers.may_acquire, Allow):
            x.set(candidate=None)
            phase = x.take_on(choice)
            x.set(standby=candidate)
            return phase
    elif choice.way is not candidate.way and (choice.way is Way.LOCAL) != (candidate.way is Way.LOCAL):
        return x.reconsider() or Phase.STAGED
    stale = (candidate.judged_against, candidate.judged_on) != (x.state.current, x.state.runtime)
    if stale and candidate.way is not Way.LOCAL:
        x.note("deferred", "what runs has changed since the canary: once more", release=candidate.release)
        way = desired.way_of(x.state, candidate.release)
        x.set(candidate=replace(candidate, reached=Reached.STAGED, way=way, canary_run=1))
        x.look_again()
        return Phase.DEFERRED
    if x.state.timer is not None and x.state.timer.left(x.event.at) > 0:
        return Phase.STAGED
    if not allowed:
        verdict = answers.may_activate
        x.wait(
            reason_of(verdict, "activation")
            if not isinstance(verdict, Allow)
            else "activation waits: another model is being loaded on this device"
        )
        return Phase.STAGED
    return _activate(x)


def _on_the_way(x: Scene, candidate: Candidate, newer: Release) -> bool:
    """Is the candidate a step from what runs towards the newer release? A step down is nobody's wish any more."""
    running = slot(x.state, x.state.current)
    return newer.number > candidate.release.number and (
        running is None or candidate.release.number > running.release.number
    )


def _activate(x: Scene) -> Phase:
    release, current = x.candidate.release, x.state.current
    fallback = revert_target(x.state, release.digest)
    shadow = current if x.candidate.way is Way.FORWARD and current is not None else None
    x.set(live_s=0.0, heard=None, evidence=Evidence(), timer=None, fallback=fallback)
    text = f"{release.version} in place of {version(x.state, current)}"
    x.note("activating", _and_why(text, x.answers.may_activate), release=release)
    x.order("activate", effects.Activate(x.state.model, x.new_id(), release, fallback, shadow))
    return Phase.ACTIVATING
