"""Cells of the phases around the switch: Activating, Probation, Reverting.

Here something that runs has been, or may have been, touched: so each cell either confirms it or goes back, and going
back is never stopped by anything but the lack of a target. Health counts only for the link of this activation.
"""

from dataclasses import replace

from modelagent.core import effects
from modelagent.core.before import RANK, left_itself, operator_rollback, rolled_back
from modelagent.core.events import Failed, FellBack, Finished, Learned, Refused, RevertWanted, Runs, Started
from modelagent.core.scene import Scene
from modelagent.core.state import (
    Aftercare,
    Attempts,
    Candidate,
    Cause,
    Evidence,
    Phase,
    Reached,
    Timer,
    Way,
    block_reason,
    gather,
    revert_target,
    slot,
    version,
)
from modelagent.core.verdicts import Standing
from modelagent.manifest import Release

_LIVE_GAP_S = 5.0  # health comes about once a second; a longer silence is inference being down, which does not count

_DRIFT = "the input has drifted: "
_RETRAIN = "retraining wanted: "

# -- Activating ------------------------------------------------------------------------------------------------


def activating_started(x: Scene) -> Phase:
    """`current` decides: either the switch has happened, or it has not."""
    event = x.event
    assert isinstance(event, Started)  # noqa: S101
    untold = x.state.doing is not None and x.state.doing.kind == "activate"
    x.adopt(event.disk)
    x.set(doing=None, heard=None)
    if x.state.current == x.candidate.release.digest:
        if untold:  # the power went between the switch and its line of history
            release = x.candidate.release
            x.note("activated", f"{release.version}: `current` names it", release=release)
        if why := x.must_leave():
            return x.leave(why, unconfirm=False)
        x.repair()
        x.wait("waiting for inference to come up with it")
        return Phase.ACTIVATING
    if why := x.must_leave():
        return x.leave(why, unconfirm=False)
    x.repair()
    x.set(candidate=replace(x.candidate, reached=Reached.PASSED))
    x.look_again()
    if slot(x.state, x.candidate.release.digest) is None:
        x.set(candidate=replace(x.candidate, reached=Reached.OFFERED, link=None))
        return Phase.DEFERRED
    return Phase.STAGED


def activating_finished(x: Scene) -> Phase:
    """The link has moved; inference will follow it."""
    event = x.event
    assert isinstance(event, Finished)  # noqa: S101
    x.set(doing=None, current=x.candidate.release.digest, link=event.link)
    return _switched(x)


def _switched(x: Scene) -> Phase:
    release = x.candidate.release
    x.set(doing=None, heard=None, live_s=0.0)
    x.note("activated", f"{release.version}: `current` names it", release=release)
    if why := x.must_leave():
        return x.leave(why, unconfirm=False)
    x.repair()
    x.wait("waiting for inference to come up with it")
    return Phase.ACTIVATING


def activating_failed(x: Scene) -> Phase:
    """The switch could not be made: what ran goes on running, unless the disk says that it was made after all."""
    event = x.event
    assert isinstance(event, Failed)  # noqa: S101
    if event.disk is not None:
        x.adopt(event.disk)
        if x.state.current == x.candidate.release.digest:
            return _switched(x)
    phase = x.failed(RANK[Phase.ACTIVATING])
    x.repair(anew=event.disk is None)
    again = phase is Phase.DEFERRED and x.candidate.reached is Reached.PASSED
    return Phase.STAGED if again else phase


def activating_runs(x: Scene) -> Phase:
    """Has inference come up with the candidate? Only seconds in which inference is alive count towards the limit."""
    event = x.event
    assert isinstance(event, Runs)  # noqa: S101
    if x.state.doing is not None or event.link is None or event.link != x.state.link:
        return Phase.ACTIVATING
    release = x.candidate.release
    if event.digest == release.digest:
        x.set(heard=event.at, live_s=0.0, evidence=gather(x.state, event))
        if x.candidate.way is Way.LOCAL:
            x.note("running", f"{release.version} runs, confirmed here before", release=release)
            return arrived(x)
        x.note("probation", f"{release.version} runs and is on probation", release=release)
        x.wait("on probation")
        return Phase.PROBATION
    heard = x.state.heard
    gap = event.at.mono - heard.mono if heard is not None and heard.boot_id == event.at.boot_id else 0.0
    x.set(heard=event.at, live_s=x.state.live_s + (gap if 0 <= gap <= _LIVE_GAP_S else 0.0))
    if x.state.live_s <= x.answers.rules.activation_s:
        return Phase.ACTIVATING
    reason = f"{release.version} did not come up within {x.answers.rules.activation_s:.0f} s of inference being alive"
    if revert_target(x.state, release.digest) is None:
        x.alarm(f"{reason}; there is no version to go back to")
    x.postpone(release, reason)
    return x.leave(reason, unconfirm=False)


def switched_left_itself(x: Scene) -> Phase:
    """Inference refused or left the candidate of this link."""
    if x.state.doing is not None and x.state.doing.kind == "activate":
        return x.state.phase  # it speaks of the link before; the answer to the switch comes first
    event, phase = x.event, left_itself(x)
    assert isinstance(event, FellBack | Refused)  # noqa: S101
    if phase is x.state.phase and event.link == x.state.link and event.digest == x.state.current:
        return x.leave(event.reason, unconfirm=False)  # confirmed, and nowhere to go: not to be waited for here
    return phase


def switched_learned(x: Scene) -> Phase:
    """Fresh signed data: a withdrawn candidate is left within this one check; anything newer is remembered."""
    event = x.event
    assert isinstance(event, Learned)  # noqa: S101
    x.learn(event)
    if x.state.doing is not None and x.state.doing.kind == "activate":
        return x.state.phase  # the switch is under way: its answer leads to the same question
    if why := x.must_leave():
        return x.leave(why, unconfirm=False)
    x.repair()
    return x.state.phase


def switched_wanted(x: Scene) -> Phase:
    """A hold or pin does not break off what is already switched; it is looked at again in Idle."""
    x.repair()
    return x.state.phase


def switched_revert_wanted(x: Scene) -> Phase:
    """An operator's rollback of the candidate."""
    event = x.event
    assert isinstance(event, RevertWanted)  # noqa: S101
    if x.state.doing is not None and x.state.doing.kind == "activate":
        # The switch cannot be broken off. Blocked now, the candidate is left as soon as the answer to it comes.
        candidate = x.candidate.release
        target = revert_target(x.state, candidate.digest)
        if target is None:
            x.reply(event.id, "refused", f"no other confirmed, unblocked version than {candidate.version} is on disk")
            return x.state.phase
        x.reply(event.id, "accepted", f"going back to {version(x.state, target)} once the switch is made")
        x.note("command", rolled_back(event), origin=event.origin, evidence={"id": event.id})
        x.block(candidate.digest, Cause.OPERATOR, rolled_back(event))
        return x.state.phase
    return operator_rollback(x, event)


def idle_runs(x: Scene) -> Phase:
    """What runs was never confirmed (a lost state file, a start that took too long): it has to prove itself too."""
    event = x.event
    assert isinstance(event, Runs)  # noqa: S101
    here = slot(x.state, x.state.current)
    if event.link is None or event.link != x.state.link or here is None or event.digest != here.release.digest:
        return Phase.IDLE
    if here.confirmed:
        return _steady(x, event)
    if block_reason(x.state, here.release):
        return Phase.IDLE
    way = Way.FIRST if revert_target(x.state, here.release.digest) is None else Way.FORWARD
    x.set(candidate=Candidate(here.release, way, Reached.PASSED, event.link), timer=None, evidence=Evidence())
    x.set(heard=event.at, evidence=gather(x.state, event))
    x.note("probation", f"{here.release.version} runs, was never confirmed, and is on probation", release=here.release)
    return Phase.PROBATION


def _steady(x: Scene, event: Runs) -> Phase:
    """What runs is confirmed: late labels may still decide against it, and drift is called when it comes."""
    alarm = x.answers.steady
    if (condemned := _late_labels(x, event)) is not None:
        return _reopen(x, condemned)
    if alarm.alarm and not any(known.startswith(_RETRAIN) for known in x.state.alarms):
        x.set(alarms=(*x.state.alarms[-7:], _RETRAIN + alarm.alarm))
        text = _RETRAIN + alarm.alarm
        x.note("drift", text, digest=x.state.current or "", level="alarm", evidence=alarm.evidence)
        previous = revert_target(x.state, x.state.current)
        horizon = x.answers.rules.label_horizon_s
        known = x.state.aftercare  # the frames of a probation prove less about this than those of now
        if alarm.compare and not (known and known.drifted) and previous is not None and horizon > 0:
            until = Timer.after(event.at, horizon)
            evidence = gather(replace(x.state, evidence=Evidence()), event)
            x.set(aftercare=Aftercare(x.state.current or "", previous, until, evidence, drifted=True))
            x.owe("shadow")
    return Phase.IDLE


def _late_labels(x: Scene, event: Runs) -> Aftercare | None:
    """One more record for the test that stayed open; the test, if it has just decided against what runs."""
    open_test, verdict = x.state.aftercare, x.answers.probation
    if open_test is not None and open_test.digest != x.state.current:
        open_test = None
        x.set(aftercare=None)
    if open_test is None:
        return None
    open_test = replace(open_test, evidence=gather(replace(x.state, evidence=open_test.evidence), event))
    x.set(aftercare=open_test)
    if verdict.standing is Standing.BAD:
        if revert_target(x.state, open_test.digest) is not None:
            return open_test
        name = version(x.state, open_test.digest)
        x.alarm(f"late labels speak against {name}, and there is no version to go back to")
    if verdict.evidence.get("paired") == "low" or open_test.until.left(event.at) <= 0:
        why = verdict.reason if verdict.evidence.get("paired") == "low" else "its time is over"
        x.set(aftercare=None)
        if open_test.drifted:
            x.owe("shadow")
        x.note("labels", f"{version(x.state, open_test.digest)} stays: {why}", digest=open_test.digest)
    return None


def preparing_runs(x: Scene) -> Phase:
    """A candidate is being prepared, which may wait for days: late labels decide about what runs all the same."""
    event = x.event
    assert isinstance(event, Runs)  # noqa: S101
    condemned = _late_labels(x, event)
    if condemned is None:
        return x.state.phase
    here = slot(x.state, condemned.digest)
    assert here is not None, "what runs has a slot"  # noqa: S101
    gone = x.candidate.release
    x.note("abandoned", f"{gone.version}: {here.release.version}, which runs, has to be left first", release=gone)
    return _condemn(x, here.release)


def _reopen(x: Scene, open_test: Aftercare) -> Phase:
    """Late labels have spoken against a confirmed version: it is on probation again, and the judge is heard there."""
    here = slot(x.state, open_test.digest)
    assert here is not None, "what runs has a slot"  # noqa: S101
    x.set(candidate=Candidate(here.release, Way.FORWARD, Reached.PASSED, x.state.link), timer=None)
    x.set(evidence=open_test.evidence)
    x.note("probation", f"{here.release.version} is on probation again: labels came late", release=here.release)
    return Phase.PROBATION


# -- Probation -------------------------------------------------------------------------------------------------


def probation_started(x: Scene) -> Phase:
    """Goes on where it was; nothing is counted against the candidate. Anything else on `current` means going back."""
    event = x.event
    assert isinstance(event, Started)  # noqa: S101
    same = event.disk.link == x.state.link
    x.adopt(event.disk)
    x.set(doing=None, heard=None)
    release = x.candidate.release
    if x.state.current == release.digest:
        if why := x.must_leave():
            return x.leave(why, unconfirm=False)
        here = slot(x.state, release.digest)
        if here is not None and here.confirmed:  # killed between the mark and the record
            return _confirmed(x)
        if not same:
            x.set(evidence=Evidence())
        x.repair()
        return Phase.PROBATION
    reason = f"`current` named {version(x.state, x.state.current)} after a restart, not {release.version}"
    return x.leave(reason, unconfirm=False) if x.state.current is None else _settle_on_current(x, reason)


def _settle_on_current(x: Scene, reason: str) -> Phase:
    here = slot(x.state, x.state.current)
    if here is None or not here.confirmed or block_reason(x.state, here.release):
        return x.leave(reason, unconfirm=False)
    # Only a revert of our own leads here, one that could not be recorded (a full disk): the reason is lost, so the
    # candidate is not blocked, but it must not come back at once either.
    x.postpone(x.candidate.release, reason)
    x.note("reverted", reason, digest=x.state.current or "", level="warning")
    return arrived(x)


def probation_runs(x: Scene) -> Phase:
    """One more health record of this activation: add it up and hear the judge."""
    event = x.event
    assert isinstance(event, Runs)  # noqa: S101
    if event.link is None or event.link != x.state.link or event.digest != x.state.current:
        return Phase.PROBATION
    release, verdict = x.candidate.release, x.answers.probation
    x.set(evidence=gather(x.state, event), heard=event.at, waiting=f"on probation: {verdict.reason}")
    # The numbers in the alarm grow with every record; one alarm a probation is enough.
    if verdict.drift and not any(alarm.startswith(_DRIFT) for alarm in x.state.alarms):
        x.set(alarms=(*x.state.alarms[-7:], _DRIFT + verdict.drift))
        x.note("drift", verdict.drift, release=release, level="alarm", evidence=verdict.evidence)
    if verdict.standing is Standing.BAD:
        if x.state.doing is not None and revert_target(x.state, release.digest) is None:
            return Phase.PROBATION  # the mark is being written, and without a way back nothing takes it away again
        return _condemn(x, release)
    if verdict.standing is Standing.GOOD and x.state.doing is None:
        timer = x.state.timer
        if timer is None or timer.left(event.at) <= 0:
            x.note(
                "probation", f"{release.version}: good: {verdict.reason}", release=release, evidence=verdict.evidence
            )
            x.order("confirm", effects.Confirm(x.state.model, x.new_id(), release))
    return Phase.PROBATION


def _condemn(x: Scene, release: Release) -> Phase:
    """The judge has spoken against what runs: leave it, and do not come back to it."""
    verdict, open_test = x.answers.probation, x.state.aftercare
    text = f"{release.version}: bad: {verdict.reason}"
    x.note("probation", text, release=release, level="warning", evidence=verdict.evidence)
    if open_test is not None and open_test.drifted and open_test.digest == release.digest:
        # It had proved itself; it is the input that moved away from it, and may come back.
        x.postpone(release, verdict.reason)
    else:
        x.block(release.digest, Cause.FAILED, verdict.reason)
    return x.leave(verdict.reason, unconfirm=True)


def probation_finished(x: Scene) -> Phase:
    """The confirmed mark is durable."""
    return _confirmed(x)


def _confirmed(x: Scene) -> Phase:
    release = x.candidate.release
    x.set(
        doing=None,
        slots=tuple(replace(s, confirmed=True) if s.release.digest == release.digest else s for s in x.state.slots),
        floor=max(x.state.floor, release.floor),
        postponed={d: p for d, p in x.state.postponed.items() if d != release.digest},
        alarms=(),
        setbacks=None,
    )
    x.note("confirmed", f"{release.version} is confirmed", release=release)
    x.set(aftercare=_open_test(x))
    return arrived(x)


def _open_test(x: Scene) -> Aftercare | None:
    """What is left to decide by labels that come late, if anything is."""
    known, release, rules = x.state.aftercare, x.candidate.release, x.answers.rules
    if known is not None and known.digest == release.digest and not known.drifted:
        return replace(known, evidence=x.state.evidence)
    previous = x.candidate.judged_against
    there = slot(x.state, previous)
    if rules.label_horizon_s <= 0 or x.candidate.way is not Way.FORWARD or there is None or not there.confirmed:
        return None
    until = Timer.after(x.event.at, rules.label_horizon_s)
    return Aftercare(release.digest, there.release.digest, until, x.state.evidence)


def probation_failed(x: Scene) -> Phase:
    """The mark could not be written (a full disk): it stays on probation and is marked later."""
    event = x.event
    assert isinstance(event, Failed)  # noqa: S101
    x.set(doing=None, timer=x.back_off(1, event.retry_after))
    x.alarm(f"{x.candidate.release.version} cannot be confirmed: {event.message}")
    return Phase.PROBATION


# -- Reverting -------------------------------------------------------------------------------------------------


def arrived(x: Scene) -> Phase:
    """The deployment is over, one way or the other; what is newer is looked at next."""
    x.set(candidate=None, standby=None, going=None, doing=None, timer=None, evidence=x.state.evidence, live_s=0.0)
    x.set(desired=replace(x.state.desired, now=False))
    x.repair()
    x.wait("")
    x.look_again()
    return Phase.IDLE


def reverting_started(x: Scene) -> Phase:
    """Go back again: it is idempotent. The target may have changed if its slot is gone."""
    event = x.event
    assert isinstance(event, Started)  # noqa: S101
    x.adopt(event.disk)
    x.set(doing=None, heard=None)
    if x.state.going is not None and x.state.going.unconfirm:
        x.unconfirm(x.state.going.leaving)
    return _aim(x)


def _aim(x: Scene) -> Phase:
    """Order the revert to the best target there is now; none left means the safe action."""
    going = x.state.going
    assert going is not None, "Reverting knows where to"  # noqa: S101
    found = slot(x.state, going.target)
    if (
        found is not None
        and found.confirmed
        and not block_reason(x.state, found.release)
        and (going.target not in going.refused)
    ):
        x.order_revert()
        return Phase.REVERTING
    return x.leave(going.reason, unconfirm=False, refused=going.refused)


def reverting_finished(x: Scene) -> Phase:
    """The link is back; inference will follow it."""
    event = x.event
    assert isinstance(event, Finished)  # noqa: S101
    going = x.state.going
    assert going is not None  # noqa: S101
    going = replace(going, link=event.link)
    x.set(doing=None, current=going.target, link=event.link, going=going)
    if _barred(x) and revert_target(x.state, going.leaving, (*going.refused, going.target)) is not None:
        return _aim(x)
    x.repair(anew=True)  # on a full disk the store goes back all the same, and leaves no `fallback`
    x.wait(f"waiting for inference to come back to {version(x.state, going.target)}")
    return Phase.REVERTING


def reverting_failed(x: Scene) -> Phase:
    """Going back must not give up: try again soon, loudly."""
    event = x.event
    assert isinstance(event, Failed)  # noqa: S101
    failures = x.state.attempts.failures + 1
    if event.disk is not None:  # the target's slot may be gone, or the rename made after all
        x.adopt(event.disk)
    if x.state.going is not None and x.state.going.unconfirm:
        x.unconfirm(x.state.going.leaving)
    x.set(doing=None, timer=x.back_off(min(failures, 4)), attempts=Attempts(failures=failures))
    x.alarm(f"going back is not possible yet: {event.message}")
    return Phase.REVERTING


def reverting_elapsed(x: Scene) -> Phase:
    """Try again when the time has come."""
    timer = x.state.timer
    if x.state.doing is None and timer is not None and timer.left(x.event.at) <= 0:
        x.set(timer=None)
        return _aim(x)
    return Phase.REVERTING


def reverting_runs(x: Scene) -> Phase:
    """Has inference come back?"""
    event, going = x.event, x.state.going
    assert isinstance(event, Runs)  # noqa: S101
    assert going is not None  # noqa: S101
    if going.link is None or event.link != going.link or event.digest != going.target:
        return Phase.REVERTING
    x.note("reverted", f"{version(x.state, going.target)} runs again: {going.reason}", digest=going.target)
    return arrived(x)


def reverting_left(x: Scene) -> Phase:
    """The target of this link refuses too: the next one."""
    event, going = x.event, x.state.going
    assert isinstance(event, FellBack | Refused)  # noqa: S101
    assert going is not None  # noqa: S101
    if going.link is None or event.link != going.link or event.digest != going.target:
        return Phase.REVERTING
    x.alarm(f"{version(x.state, going.target)} cannot be run any more: {event.reason}")
    return x.leave(going.reason, unconfirm=False, refused=(*going.refused, going.target))


def reverting_learned(x: Scene) -> Phase:
    """A target that is withdrawn meanwhile is not gone back to."""
    event, going = x.event, x.state.going
    assert isinstance(event, Learned)  # noqa: S101
    assert going is not None  # noqa: S101
    x.learn(event)
    return _aim_if_barred(x)


def reverting_wanted(x: Scene) -> Phase:
    """A target that an operator blocks meanwhile is not gone back to either."""
    return _aim_if_barred(x)


def _aim_if_barred(x: Scene) -> Phase:
    """Never in the middle of the switch: given up or not it may be made, and then State would not know."""
    if x.state.doing is None and _barred(x):
        return _aim(x)
    x.repair()
    return Phase.REVERTING


def _barred(x: Scene) -> bool:
    going = x.state.going
    assert going is not None  # noqa: S101
    found = slot(x.state, going.target)
    return found is not None and bool(block_reason(x.state, found.release))


def reverting_revert_wanted(x: Scene) -> Phase:
    """It is being done."""
    event, going = x.event, x.state.going
    assert isinstance(event, RevertWanted)  # noqa: S101
    assert going is not None  # noqa: S101
    x.reply(event.id, "accepted", f"already going back to {version(x.state, going.target)}")
    return Phase.REVERTING
