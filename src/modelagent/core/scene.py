"""One step in the making: the state so far, the event, the answers, and the effects that have come together.

This file knows the moves that several phases share (take a release on, put it aside, block it, leave the running
version, back off). It does not know which phase makes which move: that is the table's matter. A Scene lives for
one step and is thrown away; what comes out is frozen.
"""

from dataclasses import replace
from typing import Any

from modelagent.core import desired, effects
from modelagent.core.events import DiskFacts, Event, Failed, Finished, Learned, SlotFacts
from modelagent.core.state import (
    Answers,
    Attempts,
    Block,
    Candidate,
    Cause,
    Declined,
    Doing,
    Evidence,
    Going,
    Owed,
    Phase,
    Postponed,
    Reached,
    Setbacks,
    State,
    Timer,
    block_reason,
    revert_target,
    slot,
    version,
)
from modelagent.errors import Remedy
from modelagent.manifest import Release

_OVERDUE = "overdue: "
_DOUBLINGS = 40  # a second is 30,000 years by then; a count that grows for years must not outgrow a float


class Scene:
    """The working copy of one step."""

    def __init__(self, state: State, event: Event, answers: Answers) -> None:
        self.state = state
        self.event = event
        self.answers = answers
        self.effects: list[effects.Effect] = []
        self.notes: list[effects.Note] = []
        self.replies: list[effects.Effect] = []

    # -- small change ------------------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)

    def note(self, kind: str, text: str, *, release: Release | None = None, digest: str = "", **more: Any) -> None:
        """Write one line of history."""
        self.notes.append(
            effects.Note(
                kind,
                text,
                version=release.version if release else (version(self.state, digest) if digest else ""),
                digest=release.digest if release else digest,
                phase=self.state.phase.value,
                **more,
            )
        )

    def alarm(self, text: str) -> None:
        """Raise an alarm that stays visible until a later success clears it; the same one only once."""
        if text not in self.state.alarms:
            self.set(alarms=(*self.state.alarms[-7:], text))
            self.note("alarm", text, digest=self.state.current or "", level="alarm")

    def say_overdue(self) -> None:
        """What has waited for too long is an alarm for as long as it waits."""
        texts = tuple(_OVERDUE + text for text in self.answers.overdue)
        over = tuple(text for text in self.state.alarms if text.startswith(_OVERDUE) and text not in texts)
        if over:
            self.set(alarms=tuple(text for text in self.state.alarms if text not in over))
            for text in over:
                self.note("overdue", f"no longer: {text.removeprefix(_OVERDUE)}")
        for text in texts:
            self.alarm(text)

    def new_id(self) -> int:
        """A fresh effect id."""
        number = self.state.next_id
        self.set(next_id=number + 1)
        return number

    def order(self, kind: str, effect: effects.Effect) -> None:
        """Order the deployment's one effect; its answer will be waited for."""
        self.abandon()
        if kind in ("activate", "revert"):  # these move every link, so nothing is owed any more
            self.set(owed=())
        self.set(doing=Doing(effect.id, kind), waiting="")
        self.effects.append(effect)

    def abandon(self) -> None:
        """Give up the effect in flight, if there is one."""
        if self.state.doing is not None:
            self.effects.append(effects.Abandon(self.state.model, 0, self.state.doing.id))
            self.set(doing=None)

    def wait(self, reason: str) -> None:
        """Say why nothing happens now."""
        self.set(waiting=reason)

    def look_again(self) -> None:
        """Ask for an Elapsed at once: the next decision belongs to the next step."""
        self.set(again=True)

    def reply(self, command: str, status: str, reason: str, *, duplicate: bool = False) -> None:
        """Answer a command."""
        self.replies.append(effects.Answer(self.state.model, 0, command, status, reason, duplicate))

    # -- candidates --------------------------------------------------------------------------------------------

    @property
    def candidate(self) -> Candidate:
        """The candidate; phases that ask have one."""
        assert self.state.candidate is not None, f"{self.state.phase} has a candidate"  # noqa: S101
        return self.state.candidate

    def take_on(self, want: desired.Want) -> Phase:
        """Make a release the candidate; it begins in Deferred, where the gates are asked."""
        self.abandon()
        self.set(candidate=Candidate(want.release, want.way), timer=None, evidence=Evidence())
        if self.state.attempts.digest != want.release.digest:
            self.set(attempts=Attempts(want.release.digest))
        self.note("offered", f"{want.release.version}: {want.reason} ({want.way.value})", release=want.release)
        self.look_again()
        return Phase.DEFERRED

    def put_aside(self, reason: str, *, told: bool = False) -> Phase:
        """Give the candidate up; what stands by, staged and passed, takes its place, otherwise Idle."""
        self.abandon()
        if self.state.candidate is not None and not told:
            gone = self.state.candidate.release
            self.note("abandoned", f"{gone.version}: {reason}", release=gone)
        spare = self.state.standby
        self.set(candidate=spare, standby=None, timer=None, waiting=reason)
        self.look_again()
        return Phase.STAGED if spare is not None else Phase.IDLE

    def reconsider(self) -> Phase | None:
        """Is the candidate still what should run? None when it is; otherwise the phase to go to."""
        if self.state.standby is not None and (why := block_reason(self.state, self.state.standby.release)):
            self.note("abandoned", f"{self.state.standby.release.version}: {why}", release=self.state.standby.release)
            self.set(standby=None)
        choice = desired.choose(self.state, self.event.at)
        if isinstance(choice, desired.Keep):
            return self.put_aside(choice.reason)
        if choice.release.digest == self.candidate.release.digest:
            if choice.way is not self.candidate.way:  # what runs has changed meanwhile, so the way must be judged anew
                self.set(candidate=replace(self.candidate, way=choice.way, reached=Reached.OFFERED, link=None))
                self.abandon()
                self.look_again()
                return Phase.DEFERRED
            return None
        gone = self.candidate.release
        self.note("superseded", f"{gone.version} by {choice.release.version}: {choice.reason}", release=gone)
        spare = self.state.standby
        if spare is not None and (choice.firm or spare.release.digest == choice.release.digest):
            self.set(standby=None)
            if spare.release.digest == choice.release.digest:
                self.abandon()
                self.set(candidate=spare, timer=None)
                self.look_again()
                return Phase.STAGED
        return self.take_on(choice)

    # -- ends --------------------------------------------------------------------------------------------------

    def block(self, digest: str, cause: Cause, reason: str, *, hard: bool = False) -> None:
        """Never activate this digest again; for a hard fault its model file neither, unless a confirmed one uses it."""
        if digest in self.state.blocks:
            return
        found = slot(self.state, digest)
        release = found.release if found else None
        for known in (self.state.candidate, self.state.standby):
            if release is None and known is not None and known.release.digest == digest:
                release = known.release
        file = None
        if hard and release is not None:
            confirmed = {s.release.model_file for s in self.state.slots if s.confirmed and s.release.digest != digest}
            file = None if release.model_file in confirmed else release.model_file
        name = version(self.state, digest)
        entry = Block(cause, reason, name, self.event.at.wall, file)
        self.set(blocks={**self.state.blocks, digest: entry})
        if cause is Cause.FAILED and self.answers.rules.setback_s > 0:
            self._count_setback()
        self.note("blocked", f"{name} ({cause.value}): {reason}", digest=digest, level="warning")

    def _count_setback(self) -> None:
        rules, known = self.answers.rules, self.state.setbacks
        times = known.times + 1 if known is not None else 1
        seconds = 0.0 if times < 2 else min(_doubled(rules.setback_s, times - 2), rules.postpone_max_s)
        self.set(setbacks=Setbacks(times, Timer.after(self.event.at, seconds)))

    def decline(self, release: Release, reason: str) -> None:
        """Do not try this release again while running version and runtime stay what they are."""
        memory = Declined(release.digest, self.state.current, self.state.runtime, reason)
        self.set(declined=(*self.state.declined[-31:], memory))

    def postpone(self, release: Release, reason: str) -> None:
        """A longer wait, doubling each time; not a block."""
        rules = self.answers.rules
        known = self.state.postponed.get(release.digest)
        times = known.times + 1 if known else 1
        seconds = min(_doubled(rules.postpone_s, times - 1), rules.postpone_max_s)
        entry = Postponed(Timer.after(self.event.at, seconds), times, reason)
        keep = dict(list(self.state.postponed.items())[-31:])
        self.set(postponed={**keep, release.digest: entry}, attempts=Attempts(release.digest))
        self.note("postponed", f"{release.version} for {seconds:.0f} s: {reason}", release=release, level="warning")

    def back_off(self, failures: int, retry_after: float = 0.0) -> Timer:
        """Exponential, jittered by the event's draw (full to half), never under what the server asked for."""
        rules = self.answers.rules
        seconds = min(_doubled(rules.back_off_s, failures - 1), rules.back_off_max_s)
        return Timer.after(self.event.at, max(seconds * (0.5 + 0.5 * self.event.draw), retry_after))

    def stumble(self, rank: int, *, progress: int = 0, reason: str, retry_after: float = 0.0) -> Phase:
        """An attempt ended. Count it unless it got further than any before; used up means Idle and postponed."""
        candidate, known = self.candidate, self.state.attempts
        reached = (rank, progress)
        further = known.digest != candidate.release.digest or reached > known.furthest
        failures = 1 if further else known.failures + 1
        furthest = reached if further else known.furthest
        self.set(attempts=Attempts(candidate.release.digest, furthest, failures), doing=None)
        if failures >= self.answers.rules.attempts:
            self.postpone(candidate.release, f"{failures} attempts without progress, the last: {reason}")
            return self.put_aside(f"postponed after {failures} attempts: {reason}", told=True)
        self.set(timer=self.back_off(failures, retry_after), waiting=f"attempt {failures} failed: {reason}")
        return Phase.DEFERRED

    def failed(self, rank: int) -> Phase:
        """The candidate's effect failed: what follows is read from the remedy."""
        event = self.event
        assert isinstance(event, Failed)  # noqa: S101 - the table calls this for Failed only
        self.set(doing=None)
        release = self.candidate.release
        level = "alarm" if event.remedy is Remedy.STOP else "warning"
        self.note(
            "failed",
            f"{release.version}: {event.message}",
            release=release,
            level=level,
            evidence={"code": event.code, "remedy": event.remedy.value},
        )
        if event.remedy is Remedy.BLOCK:
            self.decline(release, event.message)
            return self.put_aside(event.message, told=True)
        if event.remedy is Remedy.STOP:
            self.set(candidate=replace(self.candidate, reached=Reached.OFFERED, link=None))
        return self.stumble(rank, progress=event.progress, reason=event.message, retry_after=event.retry_after)

    # -- going back --------------------------------------------------------------------------------------------

    def leave(self, reason: str, *, unconfirm: bool, refused: tuple[str, ...] = ()) -> Phase:
        """Leave what is active for the revert target; with none left, the configured safe action."""
        leaving = self.state.current
        if self.state.going is not None:  # going elsewhere than first ordered: what was to be done is still to be done
            leaving = self.state.going.leaving
            unconfirm = unconfirm or self.state.going.unconfirm
        target = revert_target(self.state, leaving, refused)
        self.abandon()
        if target is None:
            return self._safe_action(reason)
        self.set(
            candidate=None,
            standby=None,
            timer=None,
            evidence=Evidence(),
            aftercare=None,
            waiting="",
            going=Going(leaving, target, reason, unconfirm, refused=refused),
        )
        if unconfirm:
            self.unconfirm(leaving)
        text = f"from {version(self.state, leaving)} to {version(self.state, target)}: {reason}"
        self.note("reverting", text, digest=leaving or "", level="warning")
        self.order_revert()
        return Phase.REVERTING

    def order_revert(self) -> None:
        """(Re)issue the revert: it is idempotent."""
        going = self.state.going
        assert going is not None, "Reverting knows where to"  # noqa: S101
        after = revert_target(self.state, going.target, (going.leaving or "", *going.refused))
        self.set(going=replace(going, link=None))
        self.order(
            "revert",
            effects.Revert(self.state.model, self.new_id(), going.leaving, going.target, after, going.unconfirm),
        )

    def unconfirm(self, digest: str | None) -> None:
        """The slot has lost its confirmed mark."""
        self.set(
            slots=tuple(replace(s, confirmed=False) if s.release.digest == digest else s for s in self.state.slots)
        )

    def _safe_action(self, reason: str) -> Phase:
        name = version(self.state, self.state.current)
        self.set(candidate=None, standby=None, going=None, timer=None, evidence=Evidence())
        if self.state.desired.wish.safe_action == "stop" and self.state.current is not None:
            self.set(current=None, link=None, waiting=reason)
            self.owe("stop")
            self.alarm(f"{name} was stopped, and there is no version to go back to: {reason}")
        else:
            self.alarm(f"{name} stays, since there is no version to go back to: {reason}")
        self.repair()
        self.wait(reason)
        return Phase.IDLE

    # -- the store ---------------------------------------------------------------------------------------------

    def adopt(self, disk: DiskFacts) -> None:
        """After any start the disk is the truth about slots and links."""
        self.set(slots=disk.slots, current=disk.current, link=disk.link, fallback=disk.fallback, owed=())

    def learn(self, event: Learned) -> None:
        """Take in fresh signed data. What the channel no longer withdraws is no longer withdrawn."""
        following = self.state.desired.following
        withdrawn = dict(following.withdrawn) if following is not None else {}
        withdrawn |= {w.digest: w.reason or "no reason given" for w in event.withdrawn}
        for w in event.withdrawn:
            if w.digest not in self.state.withdrawn:
                self.note("withdrawn", f"{w.version}: {w.reason}", digest=w.digest, level="warning")
        if (
            event.offer is None
            or self.state.desired.offer is None
            or (event.offer.digest != self.state.desired.offer.digest)
        ):
            asked = self.state.watch.asked or self.state.watch.prompted
            self.set(desired=replace(self.state.desired, now=self.state.desired.now and asked))
        wanted = replace(
            self.state.desired, offer=event.offer, pinned=event.pinned or self._pinned(), waves=event.waves
        )
        self.set(desired=wanted, withdrawn=withdrawn)

    def _pinned(self) -> Release | None:
        pin, known = self.state.desired.pin, self.state.desired.pinned
        return known if pin is not None and known is not None and known.version == pin.version else None

    def must_leave(self) -> str:
        """Why the active version must be left at once, or an empty string: withdrawn, or blocked.

        A withdrawal that leaves no version to go back to stops nothing: it is signed by the operations key alone, and
        a stolen one must not be able to switch a fleet off.
        """
        current, here = self.state.current, slot(self.state, self.state.current)
        block = self.state.blocks.get(current or "")
        if current is None or (block is None and current not in self.state.withdrawn):
            return ""
        withdrawn = current in self.state.withdrawn
        why = f"withdrawn: {self.state.withdrawn[current]}" if withdrawn else ""
        if block is not None and not why:  # it was blocked while it was being switched to, or a target is back
            why = f"blocked ({block.cause.value}): {block.reason}"
        if revert_target(self.state, current) is not None:
            return why
        condemned = block is not None and block.cause is Cause.FAILED and (here is None or not here.confirmed)
        if condemned and self.state.desired.wish.safe_action == "stop":
            return why  # the order to stop was lost in a crash
        self.alarm(f"{version(self.state, current)} is {why}, and there is no version to go back to")
        return ""

    def repair(self, *, anew: bool = False) -> None:
        """Keep the invariant that `fallback` names the revert target and never a blocked slot.

        While a switch is under way it moves `fallback` itself; its answer leads here again. `anew`: what the link
        names is not known for certain, so it is set in any case.
        """
        doing, going = self.state.doing, self.state.going
        if doing is not None and doing.kind in ("activate", "revert"):
            return
        spoiled: tuple[str, ...] = ()
        if going is not None:  # until it is done the way back is the target itself, afterwards what lies behind it
            spoiled = (*going.refused, going.leaving or "")
        wanted = revert_target(self.state, self.state.current, spoiled)
        if anew or wanted != self.state.fallback:
            self.set(fallback=wanted)
            self.owe("fallback")

    def owe(self, kind: str) -> None:
        """Order a change of the links beside the deployment; it is owed until it is answered."""
        number, rest = self.new_id(), tuple(o for o in self.state.owed if o.kind != kind)
        known = next((o for o in self.state.owed if o.kind == kind), None)
        self.set(owed=(*rest, Owed(kind, number, known.failures if known else 0)))
        if kind == "fallback":
            self.effects.append(effects.SetFallback(self.state.model, number, self.state.fallback))
        elif kind == "shadow":
            open_test = self.state.aftercare
            wanted = open_test.previous if open_test is not None and open_test.drifted else None
            self.effects.append(effects.SetShadow(self.state.model, number, wanted))
        else:
            self.effects.append(effects.Stop(self.state.model, number, self.state.waiting))

    def answered(self, event: Finished | Failed) -> bool:
        """Take in the answer to something owed; False when the event answers something else."""
        debt = next((o for o in self.state.owed if o.id == event.effect), None)
        if debt is None:
            return False
        rest = tuple(o for o in self.state.owed if o is not debt)
        if isinstance(event, Failed):
            failures = debt.failures + 1
            again = Owed(debt.kind, 0, failures, self.back_off(min(failures, 4), event.retry_after))
            self.set(owed=(*rest, again))
            self.alarm(f"the links could not be changed ({debt.kind}): {event.message}")
        else:
            self.set(owed=rest)
        return True

    def repay(self) -> None:
        """Order again what is owed, failed, and due."""
        doing = self.state.doing
        if doing is not None and doing.kind in ("activate", "revert"):
            return
        for debt in self.state.owed:
            if debt.timer is not None and debt.timer.left(self.event.at) <= 0:
                self.owe(debt.kind)

    def _by_operator(self, digest: str) -> bool:
        block = self.state.blocks.get(digest)
        return block is not None and block.cause is Cause.OPERATOR and digest not in self.state.withdrawn

    def settle(self) -> None:
        """Arrived in Idle: forget what is over, and sweep."""
        state, keep_slots = self.state, self.answers.rules.keep_slots
        needed = {state.current, state.fallback, state.running}
        if state.aftercare is not None:  # late labels may still decide for it
            needed.add(state.aftercare.previous)
        confirmed = sorted(
            (s for s in state.slots if s.confirmed and not block_reason(state, s.release)),
            key=lambda s: s.release.number,
            reverse=True,
        )
        needed |= {s.release.digest for s in confirmed[:keep_slots]}
        rolled_back = [s.release for s in state.slots if s.confirmed and self._by_operator(s.release.digest)]
        if rolled_back:  # an operator may want it again, by lift or pin, without a network
            needed.add(max(rolled_back, key=lambda release: release.number).digest)
        for offered in (state.desired.offer, state.desired.pinned):  # a hold that ends must not pay the bytes twice
            if offered is not None and not block_reason(state, offered):
                needed.add(offered.digest)
        kept: tuple[SlotFacts, ...] = tuple(s for s in state.slots if s.release.digest in needed)
        self.set(slots=kept, timer=None, attempts=Attempts())
        offers = (state.desired.offer, state.desired.pinned)
        partials = tuple(name for r in offers if r is not None for name in (r.digest, r.model_file))
        keep = tuple(sorted(s.release.digest for s in kept))
        self.effects.append(effects.Vacuum(state.model, 0, keep, partials))


def _doubled(seconds: float, times: int) -> float:
    return seconds * 2.0 ** max(0, min(times, _DOUBLINGS))
