"""What can happen next in a world (`model_state`): every move of hands, inference, time, people and bad luck.

    for move in Play(natures, releases, verbs=()).moves(world):
        move.label, move.fault, move.world      # "store: Activate 1.2.0", False, World(...)

The step is the product's own (`machine.step`, or what is given in its place); nothing of its decisions is repeated
here. Moves come in the order in which an undisturbed device makes them: the first is what happens when faults stop.
A move is a *fault* when somebody or something interferes: a command, a release, a withdrawal, a crash, an error. What
must hold after every step is checked here (`_check_step`), what must hold of a disk in `check_world`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from device_parts import WORLD
from model_hands import SWITCHES, Matter, failure
from model_state import NOW, RULES, Atelier, Box, Fixed, Inference, Work, World, elapse
from modelagent.core import effects, machine
from modelagent.core.events import (
    CheckFailed,
    Counts,
    Elapsed,
    Event,
    Failed,
    Finished,
    Learned,
    RevertWanted,
    Runs,
    Started,
    Verb,
    Wanted,
)
from modelagent.core.state import Answers, Phase, Seen, State, block_reason, revert_target, slot
from modelagent.core.verdicts import Allow, CanaryVerdict, Outcome, ProbationVerdict, Standing, Wait
from modelagent.errors import Remedy
from modelagent.manifest import Release

Orders = tuple[effects.Effect, ...]
Step = Callable[[State, Event, Answers], tuple[State, Orders]]
SHUT = Wait(NOW.wall + 60, "closed", "window")
_RISKY = (effects.Acquire, effects.Stage, effects.RunCanary, effects.Activate, effects.Revert, effects.Confirm)


class Move(NamedTuple):
    """One thing that can happen, and the world after it (already in its one value)."""

    label: str
    fault: bool
    world: World


class Play(Matter):
    """The rules of the world.

    Args:
        natures: digest -> good, bad (the judge says so), crash (inference leaves it), flaw (its canary fails).
        releases: what the repository has, by model.
        verbs: the commands that people give, as (verb, version or "").
        gates: the gates that may be shut.
        step: turns the crank.
    """

    def __init__(
        self,
        natures: dict[str, str],
        releases: dict[str, list[Release]],
        *,
        verbs: tuple[tuple[str, str], ...],
        gates: tuple[str, ...] = (),
        step: Step = machine.step,
    ) -> None:
        super().__init__(natures, releases)
        self.verbs, self.gates, self.step = verbs, gates, step
        self.atelier = Atelier()
        self._tried: set[int] = set()
        self._stepped: dict[tuple[object, ...], tuple[State, State, Orders]] = {}
        self.steps = 0

    # -- what can happen ---------------------------------------------------------------------------------------

    def moves(self, world: World, *, faults: bool = True) -> Iterator[Move]:
        """Every move; those of an undisturbed device first, faults last. What changes nothing is no move."""
        for fault, maker in ((False, self._free), (True, self._faults))[: 1 + faults]:
            for label, after in maker(world):
                known = self.atelier.settled(after)
                if known != world:
                    yield Move(label, fault, known)

    def _free(self, world: World) -> Iterator[tuple[str, World]]:
        boxes = world.boxes
        if world.full:  # the driver writes what the disk refused as soon as it can
            yield "the disk has room again", self._kept(world._replace(full=False))
        for gate in sorted(world.shut):
            yield f"the {gate} gate opens", world._replace(shut=world.shut - {gate})
        if any(box.memory is None for box in boxes):
            yield "the updater starts", self._started(world)
            yield from self._inference(world)
            return
        for n, box in enumerate(boxes):
            if box.memory is not None and box.memory.again:
                yield f"{box.journal.model}: looks again", self._told(world, n, Elapsed(NOW, 0.5))
                return  # the driver does nothing else before it
        for n, box in enumerate(boxes):
            if box.inbox:
                text = f"{box.journal.model}: {_words(box.inbox[0])} is heard"
                yield text, self._told(_with(world, n, inbox=box.inbox[1:]), n, box.inbox[0])
        for n, box in enumerate(boxes):
            for place in _heads(box):
                yield _doing(box, place), self._done(world, n, place)
        yield from self._inference(world)
        for n, box in enumerate(boxes):
            yield from self._health(world, n, box)
        for n, box in enumerate(boxes):
            if box.late is not None:
                yield f"{box.journal.model}: late health", self._told(_with(world, n, late=None), n, box.late)
        for n, box in enumerate(boxes):
            yield f"{box.journal.model}: looks", self._told(world, n, Elapsed(NOW, 0.5))
        for long in (False, True):
            text = "postponements end" if long else "back-offs end"
            yield text, world._replace(boxes=tuple(_later(box, long=long) for box in boxes))
        for n, box in enumerate(boxes):
            for place in _heads(box):
                if box.work[place].abandoned:
                    yield f"{_doing(box, place)}, given up too late", self._done(world, n, place, late=True)

    def _inference(self, world: World) -> Iterator[tuple[str, World]]:
        for n, box in enumerate(world.boxes):
            name = box.journal.model
            if box.inference.link != (box.disk.link if box.disk.current else None):
                yield f"{name}: inference follows the link", _with(world, n, inference=self.follow(box))
            elif (fell := self.left(box)) is not None:
                yield f"{name}: inference leaves what crashes", _with(world, n, inference=fell)

    def _faults(self, world: World) -> Iterator[tuple[str, World]]:
        up = all(box.memory is not None for box in world.boxes)
        if up:
            yield "the updater is killed", _killed(world)
            cut = _killed(world)
            boxes = tuple(_later(b._replace(inference=Inference(left=b.inference.left)), long=True) for b in cut.boxes)
            yield "the power goes, and the clock with it", cut._replace(boxes=boxes)
        if not world.full:
            yield "the disk is full", world._replace(full=True)
        for gate in self.gates:
            yield f"the {gate} gate shuts", world._replace(shut=world.shut | {gate})
        for n, box in enumerate(world.boxes):
            name = box.journal.model
            yield from self._repository(world, n, box)
            yield f"{name}: inference dies", _with(world, n, inference=Inference(left=box.inference.left))
            for here in box.disk.slots:
                if here.confirmed:
                    spoiled = box.disk._replace(rotten=box.disk.rotten | {here.release.digest})
                    yield f"{name}: {here.release.version} rots", _with(world, n, disk=spoiled)
            if box.late is None and (said := self.said(box)):
                yield f"{name}: a health record is on its way", _with(world, n, late=said[0])
            if up and not (box.memory and box.memory.again):
                yield from self._people(world, n, box)
                yield from self._broken(world, n, box)

    def _repository(self, world: World, n: int, box: Box) -> Iterator[tuple[str, World]]:
        name = box.journal.model
        for one in (*self.releases[name], None):
            if one is None or one.digest not in box.withdrawn:
                yield f"{name}: the channel names {one and one.version}", _with(world, n, offer=one)
        for one in self.releases[name]:
            gone = _with(
                world, n, withdrawn=box.withdrawn | {one.digest}, offer=None if box.offer == one else box.offer
            )
            yield f"{name}: {one.version} is withdrawn", gone

    def _people(self, world: World, n: int, box: Box) -> Iterator[tuple[str, World]]:
        for verb, argument in self.verbs:
            event: Event = Wanted(NOW, 0.5, verb, "cli", "command", argument)
            if verb == Verb.ROLLBACK:
                event = RevertWanted(NOW, 0.5, "cli", "command")
            yield f"{box.journal.model}: {verb} {argument}".rstrip(), self._told(world, n, event)

    def _broken(self, world: World, n: int, box: Box) -> Iterator[tuple[str, World]]:
        """Errors of hands, deaths in the middle of what they do, and an inference that does not come up in time."""
        for place in _heads(box):
            work, text = box.work[place], _doing(box, place)
            rest = box.work[:place] + box.work[place + 1 :]
            for half, disk in self.halves(box, work.order):
                cut = _with(world, n, disk=disk)
                yield f"{text}, killed {half}", _killed(cut)
                if isinstance(work.order, SWITCHES) and not work.abandoned:
                    failed = Failed(NOW, 0.5, work.order.id, Remedy.WAIT, "io", "broke", disk=disk.facts())
                    yield f"{text}, fails {half}", _with(cut, n, work=rest, inbox=(*box.inbox, failed))
            if work.abandoned or not work.order.id or isinstance(work.order, SWITCHES):
                continue
            for remedy in Remedy if isinstance(work.order, _RISKY) else (Remedy.RETRY,):
                if remedy is Remedy.WAIT or (remedy is not Remedy.RETRY and isinstance(work.order, effects.Confirm)):
                    continue
                told = (*box.inbox, failure(work.order, remedy))
                yield f"{text}, fails ({remedy.value})", _with(world, n, work=rest, inbox=told)
            if isinstance(work.order, effects.RunCanary):
                for outcome in (Outcome.AGAIN, Outcome.INSUFFICIENT, Outcome.FAIL):
                    verdict = CanaryVerdict(outcome, "by chance", evidence=Fixed())
                    said = Finished(NOW, 0.5, work.order.id, verdict=verdict, evidence=Fixed())
                    yield f"{text}: {outcome.value}", _with(world, n, work=rest, inbox=(*box.inbox, said))
        state = box.memory
        loading = state is not None and state.phase is Phase.ACTIVATING and state.doing is None
        if state is not None and loading and box.inference.link != state.link:
            waited = replace(state, live_s=RULES.activation_s + 1)
            late = Runs(NOW, 0.5, state.link, None, "e", Counts())
            yield f"{state.model}: it takes too long", self._told(_with(world, n, memory=waited), n, late)

    # -- the updater -------------------------------------------------------------------------------------------

    def _started(self, world: World) -> World:
        for n, box in enumerate(world.boxes):
            if world.boxes[n].memory is None:
                event = Started(NOW, 0.5, box.disk.facts(), "litert")
                world = self._told(_with(world, n, memory=box.journal), n, event)
        return world

    def _told(self, world: World, n: int, event: Event) -> World:
        """One step, and its orders."""
        box = world.boxes[n]
        old = box.memory
        assert old is not None, "only an updater that is up hears anything"
        answers = self._answers(world, n, event)
        # The step is pure, so the same question has the same answer in every world; a state is kept with its answer.
        gates = (answers.may_check, answers.canary_free, answers.load_free, world.shut)
        known = self._stepped.get((id(old), event, *gates))
        if known is None:
            new, orders = self.step(old, event, answers)
            self.steps += 1
            self._check_step(old, event, new, orders)
            known = self._stepped[id(old), event, *gates] = (old, new, orders)
        _, new, orders = known
        box = box._replace(memory=new)
        unkept = False
        for order in orders:
            match order:
                case effects.Persist():
                    unkept = world.full
                    box = box if unkept else box._replace(journal=new)
                case effects.Tell() | effects.Answer() | effects.KeepPeak():
                    pass
                case effects.Abandon():
                    given_up = tuple(w._replace(abandoned=True) if w.order.id == order.target else w for w in box.work)
                    box = box._replace(work=given_up)
                case _ if unkept and not isinstance(order, effects.Revert):
                    if order.id:
                        box = box._replace(inbox=(*box.inbox, failure(order, Remedy.WAIT)))
                case _:
                    box = box._replace(work=(*box.work, Work(order)))
        return world._replace(boxes=(*world.boxes[:n], box, *world.boxes[n + 1 :]))

    def _kept(self, world: World) -> World:
        return world._replace(boxes=tuple(b if b.memory is None else b._replace(journal=b.memory) for b in world.boxes))

    def _answers(self, world: World, n: int, event: Event) -> Answers:
        box, others = world.boxes[n], [b.memory or b.journal for m, b in enumerate(world.boxes) if m != n]
        state = box.memory
        assert state is not None

        def gate(name: str) -> Allow | Wait:
            return SHUT if name in world.shut else Allow()

        return Answers(
            may_check=Allow() if state.watch.asked or not self._knows(box, state) else SHUT,
            may_acquire=gate("acquire"),
            may_canary=gate("canary"),
            may_activate=gate("activate"),
            canary_free=all(o.phase is not Phase.CANARY for o in others),
            load_free=all(o.phase not in (Phase.ACTIVATING, Phase.REVERTING) for o in others),
            probation=self._judge(state, event),
            rules=RULES,
        )

    def _knows(self, box: Box, state: State) -> bool:
        desired = state.desired
        pinned = self.pinned(box, desired.pin.version) if desired.pin is not None else None
        return (desired.offer, frozenset(state.withdrawn)) == (box.offer, box.withdrawn) and desired.pinned == pinned

    def _judge(self, state: State, event: Event) -> ProbationVerdict:
        if not isinstance(event, Runs) or state.phase is not Phase.PROBATION or event.digest is None:
            return ProbationVerdict(Standing.OPEN, "")
        nature = self.natures[event.digest]
        return ProbationVerdict(Standing.GOOD if nature == "good" else Standing.BAD, nature)

    # -- health ----------------------------------------------------------------------------------------------------

    def _health(self, world: World, n: int, box: Box) -> Iterator[tuple[str, World]]:
        for event in self.said(box):
            yield f"{box.journal.model}: health: {_words(event)}", self._told(world, n, event)

    # -- hands -------------------------------------------------------------------------------------------------

    def _done(self, world: World, n: int, place: int, *, late: bool = False) -> World:
        """A hand does its next piece of work, or drops what was given up; `late`: it was under way already."""
        box = world.boxes[n]
        work = box.work[place]
        box = box._replace(work=box.work[:place] + box.work[place + 1 :])
        if not work.abandoned or late:
            disk, answer = self.perform(world, box, work.order)
            box = box._replace(disk=disk)
            if work.order.id and answer is not None and not work.abandoned:
                box = box._replace(inbox=(*box.inbox, answer))
        return world._replace(boxes=(*world.boxes[:n], box, *world.boxes[n + 1 :]))

    # -- what must hold ----------------------------------------------------------------------------------------

    def _check_step(self, old: State, event: Event, new: State, orders: Orders) -> None:
        world = [o for o in orders if isinstance(o, WORLD)]
        kept = [o for o in orders if isinstance(o, effects.Persist)]
        assert not world or (kept and orders[0] is kept[0]), "the world is changed before it is written down"
        for order in orders:
            match order:
                case effects.Activate():
                    assert not block_reason(new, order.release), "a blocked version is activated"
                    held = new.desired.hold is not None and new.desired.pin is None
                    assert not held, "something new is activated although it is on hold"
                    assert order.fallback is not None or revert_target(new, order.release.digest) is None, (
                        "there is a way back, and it is not prepared"
                    )
                    _fit(new, order.fallback)
                case effects.Revert():
                    _fit(new, order.target)
                    _fit(new, order.fallback)
                case effects.SetFallback():
                    _fit(new, order.target)
        switching = new.doing is not None and new.doing.kind in ("activate", "revert")
        if isinstance(event, Learned | Started) and not switching and new != old:
            _fit(new, new.fallback)
            gone = new.current in new.withdrawn and revert_target(new, new.current) is not None
            assert not gone or new.phase is Phase.REVERTING, "a withdrawn version goes on running"
        if new.phase is Phase.DEFERRED and old.phase is not Phase.DEFERRED and not new.again:
            assert new.waiting, "it waits, and does not say for what"
        if isinstance(event, Wanted | RevertWanted):
            said = [o for o in orders if isinstance(o, effects.Answer)]
            assert len(said) == 1, "every command gets exactly one answer"
            assert kept, "an answer that is not written down is given again after a crash"

    def check_repeats(self, world: World) -> None:
        """In every state: a command that was seen changes nothing, and neither does an answer nobody waits for."""
        for n, box in enumerate(world.boxes):
            state = box.memory
            if state is None or hash(state) in self._tried:
                continue
            self._tried.add(hash(state))
            seen = replace(state, seen=(Seen("known", "done", "as said"),), again=False)
            for number, (verb, argument) in enumerate(((Verb.ROLLBACK, ""), *self.verbs)):
                if number and number != 1 + len(self._tried) % len(self.verbs):
                    continue  # every verb in its turn: they are turned away at the same door
                event: Event = Wanted(NOW, 0.5, verb, "cli", "known", argument)
                if verb == Verb.ROLLBACK:
                    event = RevertWanted(NOW, 0.5, "cli", "known")
                after, orders = self.step(seen, event, self._answers(world, n, event))
                assert after == seen, "a command that comes twice is done twice"
                assert orders == (effects.Answer(state.model, 0, "known", "done", "as said", duplicate=True),)
            for stale in (Finished(NOW, 0.5, 10**6), Failed(NOW, 0.5, 10**6, Remedy.STOP, "late", "late")):
                answers = self._answers(world, n, stale)
                assert self.step(seen, stale, answers) == (seen, ()), "an answer that nobody waits for counts"


def check_world(world: World) -> None:
    """What must hold of every disk at every moment, and of links and blocks where nothing is under way."""
    for box in world.boxes:
        disk, state = box.disk, box.memory or box.journal
        for named in (disk.current, disk.fallback, disk.shadow):
            assert named is None or disk.slot(named) is not None, "a link to nowhere"
        current, behind = disk.slot(disk.current), disk.slot(disk.fallback)
        doing = state.doing is not None and state.doing.kind in ("activate", "revert")
        store = any(not isinstance(w.order, effects.Check | effects.Acquire | effects.RunCanary) for w in box.work)
        if current is None or current.confirmed or doing or store or box.inbox or state.owed or box.memory is None:
            continue
        if behind is not None and behind.confirmed and not block_reason(state, behind.release):
            continue
        others = [s for s in disk.slots if s.confirmed and s != current and slot(state, s.release.digest) is not None]
        assert all(block_reason(state, s.release) for s in others), "unconfirmed, and no way back prepared"


def _fit(state: State, digest: str | None) -> None:
    if digest is None:
        return
    here = slot(state, digest)
    assert here is not None, "a link to a slot that is not there"
    assert here.confirmed, "a link back to an unconfirmed slot"
    assert not block_reason(state, here.release), "a blocked version is gone back to"


# -- small things ------------------------------------------------------------------------------------------------------


def _with(world: World, n: int, **changes: object) -> World:
    box = world.boxes[n]._replace(**changes)  # type: ignore[arg-type]
    return world._replace(boxes=(*world.boxes[:n], box, *world.boxes[n + 1 :]))


def _killed(world: World) -> World:
    return world._replace(boxes=tuple(b._replace(memory=None, work=(), inbox=(), late=None) for b in world.boxes))


def _later(box: Box, *, long: bool) -> Box:
    if box.memory is None:
        return box._replace(journal=elapse(box.journal, long=long))
    return box._replace(memory=elapse(box.memory, long=long), journal=elapse(box.journal, long=long))


def _heads(box: Box) -> list[int]:
    """The next piece of work of each hand; those of the store are done one after the other."""
    places: dict[str, int] = {}
    for place, work in enumerate(box.work):
        beside = isinstance(work.order, effects.Check | effects.Acquire | effects.RunCanary)
        places.setdefault(type(work.order).__name__ if beside else "store", place)
    return list(places.values())


def _doing(box: Box, place: int) -> str:
    work = box.work[place]
    order = work.order
    release = getattr(order, "release", None)
    what = f"{box.journal.model}: {type(order).__name__}" + (f" {release.version}" if release is not None else "")
    return f"{what} (given up)" if work.abandoned else what


def _words(event: Event) -> str:
    match event:
        case Finished():
            return "Finished"
        case Failed() | CheckFailed():
            return f"{type(event).__name__} ({event.remedy.value})"
        case Learned():
            return f"Learned({event.offer and event.offer.version})"
        case Runs():
            return f"runs {event.digest and event.digest[:6]}"
    return type(event).__name__
