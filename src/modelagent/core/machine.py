"""The table: phase x event, and the one function that turns the crank.

This file knows which phase may follow which, and in what order a step is put together. What a cell decides is
written in `before.py` (nothing is switched yet) and `after.py` (something is). It knows no clock, no disk, no network:

    state, effects = step(State("digits"), Started(at, draw, disk, runtime), Answers())
    ...                       # the driver carries the effects out; each answer is the next event

Rules that hold for every step: a missing cell is a programmer error (KeyError); an answer to a forgotten effect is
ignored; Persist comes before every effect that changes the world; the drawing in docs/architecture.md is made from
this table by `diagram`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from modelagent.core import after, before, commands, desired, effects, swaps
from modelagent.core.events import (
    CheckFailed,
    Elapsed,
    Event,
    Failed,
    FellBack,
    Finished,
    Instant,
    Learned,
    Refused,
    RevertWanted,
    Runs,
    Started,
    Wanted,
)
from modelagent.core.scene import Scene
from modelagent.core.state import Answers, Phase, Seen, State, Timer, Watching
from modelagent.core.verdicts import Allow, Wait
from modelagent.errors import Remedy

IDLE, DEFERRED, ACQUIRING, STAGING = Phase.IDLE, Phase.DEFERRED, Phase.ACQUIRING, Phase.STAGING
CANARY, STAGED, ACTIVATING, PROBATION, REVERTING = (
    Phase.CANARY,
    Phase.STAGED,
    Phase.ACTIVATING,
    Phase.PROBATION,
    Phase.REVERTING,
)
LOOK_AT_LEAST_S = 60.0  # the driver looks this often, so that a jumping clock is noticed
_SAVE_EVIDENCE_S = 30.0  # a crash may cost this much of a probation, never more


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what decides, and every phase that may follow."""

    decide: Callable[[Scene], Phase]
    goes: frozenset[Phase]


def _row(phase: Phase, **cells: tuple[Callable[[Scene], Phase], str]) -> dict[tuple[Phase, type[Event]], Cell]:
    """One phase's cells; `goes` in words, the phase itself always included."""
    row = {}
    for column, (decide, goes) in cells.items():
        follow = frozenset({phase, *(Phase(word) for word in goes.split())})
        row[phase, _COLUMNS[column]] = Cell(decide, follow)
    return row


_COLUMNS: dict[str, type[Event]] = {
    "started": Started,
    "elapsed": Elapsed,
    "learned": Learned,
    "wanted": Wanted,
    "revert_wanted": RevertWanted,
    "finished": Finished,
    "failed": Failed,
    "runs": Runs,
    "fell_back": FellBack,
    "refused": Refused,
}
COLUMNS = tuple(_COLUMNS.values())

_LEAVE = "Reverting Idle"
_GIVE_WAY = "Idle Deferred Staged"  # the candidate gives way: to nothing, another, or what stood by
_ANEW = f"{_GIVE_WAY} Reverting"

TABLE: dict[tuple[Phase, type[Event]], Cell] = {
    **_row(
        IDLE,
        started=(before.started_before, _LEAVE),
        elapsed=(before.idle_elapsed, "Deferred"),
        learned=(before.learned_before, _LEAVE),
        wanted=(before.wanted_before, ""),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.unmoved, ""),
        failed=(before.unmoved, ""),
        runs=(after.idle_runs, "Probation"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        DEFERRED,
        started=(before.started_before, _LEAVE),
        elapsed=(before.deferred_elapsed, f"{_GIVE_WAY} Acquiring Staging Canary"),
        learned=(before.learned_before, _ANEW),
        wanted=(before.wanted_before, _GIVE_WAY),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.unmoved, ""),
        failed=(before.unmoved, ""),
        runs=(after.preparing_runs, "Reverting"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        ACQUIRING,
        started=(before.started_before, "Deferred Reverting Idle"),
        elapsed=(before.acquiring_elapsed, _GIVE_WAY),
        learned=(before.learned_before, _ANEW),
        wanted=(before.wanted_before, _GIVE_WAY),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.acquiring_finished, "Staging"),
        failed=(before.effect_failed, _GIVE_WAY),
        runs=(after.preparing_runs, "Reverting"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        STAGING,
        started=(before.started_before, _ANEW),
        elapsed=(before.unmoved, ""),
        learned=(before.learned_before, _ANEW),
        wanted=(before.wanted_before, _GIVE_WAY),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.staging_finished, "Canary Deferred Staged"),
        failed=(before.effect_failed, _GIVE_WAY),
        runs=(after.preparing_runs, "Reverting"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        CANARY,
        started=(before.started_before, _ANEW),
        elapsed=(before.canary_elapsed, "Deferred"),
        learned=(before.learned_before, _ANEW),
        wanted=(before.wanted_before, _GIVE_WAY),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.canary_finished, "Staged Deferred Idle"),
        failed=(before.effect_failed, _GIVE_WAY),
        runs=(after.preparing_runs, "Reverting"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        STAGED,
        started=(before.started_before, "Deferred Reverting Idle"),
        elapsed=(before.staged_elapsed, f"{_GIVE_WAY} Activating"),
        learned=(before.learned_before, _LEAVE),
        wanted=(before.wanted_before, ""),
        revert_wanted=(before.revert_wanted_before, "Reverting"),
        finished=(before.unmoved, ""),
        failed=(before.unmoved, ""),
        runs=(after.preparing_runs, "Reverting"),
        fell_back=(before.left_itself, _LEAVE),
        refused=(before.left_itself, _LEAVE),
    ),
    **_row(
        ACTIVATING,
        started=(after.activating_started, "Staged Deferred Reverting Idle"),
        elapsed=(before.unmoved, ""),
        learned=(after.switched_learned, "Reverting"),
        wanted=(after.switched_wanted, ""),
        revert_wanted=(after.switched_revert_wanted, "Reverting"),
        finished=(after.activating_finished, "Reverting"),
        failed=(after.activating_failed, _ANEW),
        runs=(after.activating_runs, "Probation Reverting Idle"),
        fell_back=(after.switched_left_itself, _LEAVE),
        refused=(after.switched_left_itself, _LEAVE),
    ),
    **_row(
        PROBATION,
        started=(after.probation_started, _LEAVE),
        elapsed=(before.unmoved, ""),
        learned=(after.switched_learned, "Reverting"),
        wanted=(after.switched_wanted, ""),
        revert_wanted=(after.switched_revert_wanted, "Reverting"),
        finished=(after.probation_finished, "Idle"),
        failed=(after.probation_failed, ""),
        runs=(after.probation_runs, _LEAVE),
        fell_back=(after.switched_left_itself, _LEAVE),
        refused=(after.switched_left_itself, _LEAVE),
    ),
    **_row(
        REVERTING,
        started=(after.reverting_started, "Idle"),
        elapsed=(after.reverting_elapsed, "Idle"),
        learned=(after.reverting_learned, "Idle"),
        wanted=(after.reverting_wanted, "Idle"),
        revert_wanted=(after.reverting_revert_wanted, ""),
        finished=(after.reverting_finished, ""),
        failed=(after.reverting_failed, ""),
        runs=(after.reverting_runs, "Idle"),
        fell_back=(after.reverting_left, "Idle"),
        refused=(after.reverting_left, "Idle"),
    ),
}


def step(state: State, event: Event, answers: Answers) -> tuple[State, tuple[effects.Effect, ...]]:
    """Turn the crank once.

    Args:
        state: what is known.
        event: what has happened.
        answers: what policies, judges and the device say at this moment.

    Returns:
        What is known now, and what to do, in this order.

    Raises:
        KeyError: the table has no cell for it: a programmer error, never caught.
    """
    x = Scene(replace(state, again=False), event, answers)
    if _is_stale(state, event):
        return state, ()
    if isinstance(event, Started):
        x.set(runtime=event.runtime)
    if isinstance(event, Runs):
        x.set(running=event.digest)
    _watch(x)
    if isinstance(event, CheckFailed) or (isinstance(event, Finished | Failed) and x.answered(event)):
        return _close(state, x)
    if isinstance(event, Wanted | RevertWanted) and not commands.accept(x):
        return _close(state, x)
    cell = TABLE[state.phase, type(event)]
    phase = cell.decide(x)
    if isinstance(event, Runs) and event.swap is not None:
        swaps.tell(x, event.epoch, event.swap)
    if phase not in cell.goes:
        raise AssertionError(f"{state.phase} x {type(event).__name__} may not go to {phase}")
    x.set(phase=phase)
    if phase is IDLE and (state.phase is not IDLE or isinstance(event, Started)):
        x.settle()
    if isinstance(event, Elapsed):
        x.repay()
        x.say_overdue()
        _begin_check(x)
    return _close(state, x)


def delay(state: State, answers: Answers, at: Instant, longest: float = LOOK_AT_LEAST_S) -> float:
    """Seconds until the driver should bring an Elapsed, at most `longest`."""
    if state.again:
        return 0.0
    waits = [longest]
    if state.timer is not None and state.phase is not PROBATION:
        waits.append(state.timer.left(at))
    waits += [debt.timer.left(at) for debt in state.owed if debt.timer is not None]
    watch, verdicts = state.watch, []
    if watch.kind is not Watching.CHECKING:
        if watch.kind is Watching.BACKED_OFF and watch.timer is not None and not watch.asked:
            waits.append(watch.timer.left(at))
        else:
            verdicts.append(answers.may_check)
            if isinstance(answers.may_check, Allow):  # only an Elapsed begins a check
                waits.append(0.0)
    match state.phase:
        case Phase.IDLE:
            choice = desired.choose(state, at)
            if isinstance(choice, desired.Keep) and choice.left:
                waits.append(choice.left)
        case Phase.DEFERRED:
            verdicts += [answers.may_acquire, answers.may_canary]
        case Phase.ACQUIRING | Phase.CANARY:
            waits.append(10.0)  # gates may close in the middle
        case Phase.STAGED:
            verdicts.append(answers.may_activate)
    waits += [verdict.until - at.wall for verdict in verdicts if isinstance(verdict, Wait)]
    if not answers.canary_free or not answers.load_free:
        waits.append(2.0)
    return max(0.2, min(waits))


def diagram() -> str:
    """The table as a Mermaid state diagram: one line a pair of phases, labelled with the events that lead there."""
    edges: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), cell in TABLE.items():
        for target in cell.goes - {phase}:
            edges.setdefault((phase, target), []).append(event.__name__)
    order = list(Phase)
    lines = ["stateDiagram-v2", f"    [*] --> {IDLE.value}"]
    for (phase, target), names in sorted(edges.items(), key=lambda e: (order.index(e[0][0]), order.index(e[0][1]))):
        lines.append(f"    {phase.value} --> {target.value}: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _is_stale(state: State, event: Event) -> bool:
    match event:
        case Finished() | Failed():
            waited = {o.id for o in state.owed} | ({state.doing.id} if state.doing is not None else set())
            return event.effect == 0 or event.effect not in waited
        case Learned() | CheckFailed():
            return state.watch.kind is not Watching.CHECKING or state.watch.effect != event.effect
    return False


def _watch(x: Scene) -> None:
    """The check's own region: it runs in every phase of the deployment."""
    event, watch = x.event, x.state.watch
    match event:
        case Started() if watch.kind is Watching.CHECKING:
            asked = watch.asked or watch.prompted
            x.set(watch=replace(watch, kind=Watching.RESTING, effect=0, asked=asked, prompted=False))
        case Learned():
            good = replace(watch, kind=Watching.RESTING, failures=0, timer=None, last_ok=event.at.wall, error="")
            x.set(watch=replace(good, notes=event.notes))
            for text in event.notes:
                if text not in watch.notes:
                    x.note("repository", text, level="warning")
        case CheckFailed():
            failures = watch.failures + 1
            x.set(
                watch=replace(
                    watch,
                    kind=Watching.BACKED_OFF,
                    failures=failures,
                    timer=x.back_off(failures, event.retry_after),
                    prompted=False,
                    error=event.message,
                )
            )
            if event.message != watch.error:
                level = "alarm" if event.remedy is Remedy.STOP else "warning"
                x.note("check-failed", event.message, level=level, evidence={"code": event.code})


def _begin_check(x: Scene) -> None:
    watch = x.state.watch
    if watch.kind is Watching.CHECKING:
        return
    backed_off = watch.kind is Watching.BACKED_OFF and not watch.asked
    if backed_off and watch.timer is not None and watch.timer.left(x.event.at) > 0:
        return
    if not isinstance(x.answers.may_check, Allow):
        return
    number, wanted = x.new_id(), x.state.desired
    began = replace(watch, kind=Watching.CHECKING, effect=number, last_try=x.event.at.wall)
    x.set(watch=replace(began, asked=False, prompted=watch.asked))
    pin = wanted.pin.version if wanted.pin is not None else ""
    x.effects.append(effects.Check(x.state.model, number, wanted.channel, pin))


def _close(old: State, x: Scene) -> tuple[State, tuple[effects.Effect, ...]]:
    """Put the step together: Persist first when there is anything to keep, then effects, notes, answers."""
    if isinstance(x.event, Learned):
        x.set(watch=replace(x.state.watch, prompted=False))
    for reply in x.replies:
        if isinstance(reply, effects.Answer) and not reply.duplicate:
            seen = Seen(reply.command, reply.status, reply.reason)
            x.set(seen=(*x.state.seen, seen)[-x.answers.rules.seen :])
    world = any(not isinstance(effect, effects.Check | effects.Abandon) for effect in x.effects)
    keep = x.notes or world or _lasting(old) != _lasting(x.state) or _evidence_due(old, x)
    if keep:
        x.set(saved=Timer.after(x.event.at, _SAVE_EVIDENCE_S))
    first: list[effects.Effect] = [effects.Persist(x.state.model, 0, x.state, tuple(x.notes))] if keep else []
    last: list[effects.Effect] = [effects.Tell(x.state.model, 0, tuple(x.notes))] if x.notes else []
    return x.state, (*first, *x.effects, *last, *x.replies)


def _lasting(state: State) -> State:
    """The part of the state whose every change is written at once."""
    calm = State("")
    after = state.aftercare
    return replace(
        state,
        aftercare=None if after is None else replace(after, evidence=calm.evidence),
        evidence=calm.evidence,
        running=None,
        again=False,
        waiting="",
        heard=None,
        saved=None,
        live_s=0.0,
    )


def _evidence_due(old: State, x: Scene) -> bool:
    gathered = x.state.evidence != old.evidence and x.state.phase is PROBATION
    if not gathered and x.state.aftercare == old.aftercare:
        return False
    return x.state.saved is None or x.state.saved.left(x.event.at) <= 0
