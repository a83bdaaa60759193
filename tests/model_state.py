"""Worlds as values: one device with its updater, store, inference and repository, reduced to what decides its future.

    world = World((Box.installed("m", [OLD]),), full=False, shut=frozenset())
    Atelier().settled(world)        # two worlds with the same future become the same value

Only what steers the machine is kept. Texts, counters that only lengthen a wait and the numbers on clocks go; a timer
is due or it is not; ids of effects and identities of links are numbered anew in the order in which they are met.
With this the stories of a device are many, its worlds are few, and a search comes to an end.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from device_parts import release
from modelagent.core import effects
from modelagent.core.events import DiskFacts, Event, Failed, FellBack, Finished, Instant, Link, Refused, Runs, SlotFacts
from modelagent.core.state import Block, Evidence, Owed, Postponed, Rules, State, Timer, Watch, slot
from modelagent.manifest import Release

NOW = Instant(1.8e9, 1e6, "boot")
RULES = Rules(attempts=2, setback_s=60.0)
DUE, PENDING = Timer.after(NOW, 0.0), Timer.after(NOW, 60.0)
_CALM = Evidence()
_HEARD = Evidence(epoch="e")


class Fixed(dict[str, Any]):
    """A mapping that can be a part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class Disk(NamedTuple):
    """The store of one model."""

    slots: tuple[SlotFacts, ...] = ()
    rotten: frozenset[str] = frozenset()
    incoming: frozenset[str] = frozenset()
    current: str | None = None
    link: Link | None = None
    fallback: str | None = None
    shadow: str | None = None

    def facts(self) -> DiskFacts:
        return DiskFacts(self.slots, self.current, self.link if self.current else None, self.fallback)

    def slot(self, digest: str | None) -> SlotFacts | None:
        return next((s for s in self.slots if s.release.digest == digest), None)

    def with_slot(self, wanted: Release, *, confirmed: bool) -> "Disk":
        rest = [s for s in self.slots if s.release.digest != wanted.digest]
        slots = sorted([*rest, SlotFacts(wanted, confirmed)], key=lambda s: s.release.number)
        return self._replace(slots=tuple(slots))


class Inference(NamedTuple):
    """What inference acts on and says; `left` alone survives its death. `said`: (fell-back or refused, confirmed)."""

    link: Link | None = None
    running: str | None = None
    said: tuple[str, str, bool] | None = None
    left: Link | None = None


class Work(NamedTuple):
    """An effect in a hand's queue; one that was given up may be done all the same."""

    order: effects.Effect
    abandoned: bool = False


class Box(NamedTuple):
    """One model: its updater's memory (None: down), the journal, disk, inference, hands, answers; its repository."""

    memory: State | None
    journal: State
    disk: Disk
    inference: Inference
    work: tuple[Work, ...] = ()
    inbox: tuple[Event, ...] = ()
    late: Event | None = None  # a health record that is still on its way
    offer: Release | None = None
    withdrawn: frozenset[str] = frozenset()

    @classmethod
    def installed(cls, model: str, slots: list[Release], offer: Release | None = None) -> "Box":
        """Confirmed slots, the last one `current`, the one before `fallback`, and inference on it."""
        disk = Disk()
        for one in slots:
            disk = disk.with_slot(one, confirmed=True)
        if slots:
            behind = slots[-2].digest if len(slots) > 1 else None
            disk = disk._replace(current=slots[-1].digest, link=_link(1), fallback=behind)
        return cls(None, State(model), disk, Inference(disk.link, disk.current), offer=offer)


class World(NamedTuple):
    """All models of the device, and what they share: a full disk, and gates that are shut."""

    boxes: tuple[Box, ...]
    full: bool = False
    shut: frozenset[str] = frozenset()


def _link(number: int) -> Link:
    return Link(number, number)


def fresh_link(box: Box) -> Link:
    """An identity that no link of this box has had; an Atelier numbers it anew."""
    return _link(1000)


class _Names:
    """Ids and links, numbered in the order in which they are met."""

    def __init__(self, ids: dict[int, int] | None = None, links: dict[Link, Link] | None = None) -> None:
        self.ids = ids or {}
        self.links = links or {}

    def id(self, number: int) -> int:
        return self.ids.setdefault(number, len(self.ids) + 1) if number else 0

    def link(self, link: Link | None) -> Link | None:
        if link is None or not link.inode:
            return link
        return self.links.setdefault(link, _link(len(self.links) + 1))


class Atelier:
    """Makes the one value of all worlds that have the same future; each State in it is one object.

    Most moves leave most states as they are, so what was made of one is remembered by the object it was made of, which
    is kept alive for that; `key` can then take the object for its value.
    """

    def __init__(self) -> None:
        self._one: dict[State, State] = {}
        self._memories: dict[tuple[int, Link | None], tuple[State, State, dict[int, int], dict[Link, Link]]] = {}
        self._journals: dict[tuple[object, ...], tuple[State, State]] = {}

    def settled(self, world: World) -> World:
        return world._replace(boxes=tuple(self._box(box) for box in world.boxes))

    @staticmethod
    def key(world: World) -> int:
        """Equal for equal worlds of this atelier; for others with a chance of one in 2**64."""
        boxes = (box._replace(memory=id(box.memory), journal=id(box.journal)) for box in world.boxes)  # type: ignore[arg-type]
        return hash((*boxes, world.full, world.shut))

    def _box(self, box: Box) -> Box:
        names = _Names()
        disk = box.disk._replace(link=names.link(box.disk.link))
        memory = None
        if box.memory is not None:
            memory, names = self._memory(box.memory, box.disk.link)
        work = tuple(w._replace(order=_order(w.order, names)) for w in box.work)
        inbox = tuple(_event(event, names) for event in box.inbox)
        inference = box.inference._replace(link=names.link(box.inference.link), left=names.link(box.inference.left))
        late = None if box.late is None else _event(box.late, names)
        journal = self._journal(box.journal, names)
        return box._replace(
            memory=memory, journal=journal, disk=disk, inference=inference, work=work, inbox=inbox, late=late
        )

    def _memory(self, state: State, link: Link | None) -> tuple[State, _Names]:
        known = self._memories.get((id(state), link))
        if known is None:
            names = _Names()
            names.link(link)
            made = _state(state, names)
            made = replace(made, next_id=1000)  # above every number in use
            made = self._one.setdefault(made, made)
            known = self._memories[id(state), link] = (state, made, names.ids, names.links)
        return known[1], _Names(dict(known[2]), dict(known[3]))

    def _journal(self, state: State, names: _Names) -> State:
        """Ids in it mean nothing any more: whoever reads it has lost all work that could answer."""
        candidate, going = state.candidate, state.going
        links = [state.link, candidate.link if candidate else None, going.link if going else None]
        key = (id(state), *(names.link(link) for link in links))
        known = self._journals.get(key)
        if known is None:
            made = replace(_state(state, names), next_id=1, running=None, again=False)
            doing = made.doing and replace(made.doing, id=0)
            owed = tuple(replace(o, id=0) for o in made.owed)
            made = replace(made, doing=doing, owed=owed, watch=replace(made.watch, effect=0))
            known = self._journals[key] = (state, self._one.setdefault(made, made))
        return known[1]


def _timer(timer: Timer | None) -> Timer | None:
    if timer is None:
        return None
    return PENDING if timer.left(NOW) > 0 else DUE


def _certain(timer: Timer) -> Timer:
    return PENDING if timer.left(NOW) > 0 else DUE


def _state(state: State, names: _Names) -> State:
    watch, doing, going, candidate = state.watch, state.doing, state.going, state.candidate
    attempts, evidence = state.attempts, state.evidence
    return replace(
        state,
        link=names.link(state.link),
        watch=Watch(
            watch.kind, names.id(watch.effect), 0, _timer(watch.timer), asked=watch.asked, prompted=watch.prompted
        ),
        doing=None if doing is None else replace(doing, id=names.id(doing.id)),
        going=None if going is None else replace(going, link=names.link(going.link), reason=""),
        owed=tuple(Owed(o.kind, names.id(o.id), 0, _timer(o.timer)) for o in state.owed),
        candidate=None if candidate is None else replace(candidate, link=names.link(candidate.link)),
        timer=_timer(state.timer),
        attempts=replace(attempts, failures=min(attempts.failures, RULES.attempts)),
        blocks=Fixed({d: Block(b.cause, "", b.version, 0.0, b.model_file) for d, b in state.blocks.items()}),
        withdrawn=Fixed(dict.fromkeys(state.withdrawn, "")),
        postponed=Fixed({d: Postponed(_certain(p.timer), 1, "") for d, p in state.postponed.items()}),
        declined=tuple(
            sorted({replace(d, reason="") for d in state.declined}, key=lambda d: (d.digest, d.running or ""))
        ),
        setbacks=state.setbacks
        and replace(state.setbacks, times=min(state.setbacks.times, 2), timer=_certain(state.setbacks.timer)),
        aftercare=state.aftercare and replace(state.aftercare, until=_certain(state.aftercare.until), evidence=_CALM),
        evidence=_HEARD if evidence.epoch else _CALM,
        heard=None,
        saved=None,
        live_s=0.0,
        alarms=(),
        seen=(),
        waiting="",
    )


def _order(order: effects.Effect, names: _Names) -> effects.Effect:
    known = names.id(order.id)
    return order if known == order.id else replace(order, id=known)


def _event(event: Event, names: _Names) -> Event:
    match event:
        case FellBack() | Refused():
            known = names.link(event.link)
            assert known is not None
            return replace(event, link=known)
        case Runs():
            return replace(event, link=names.link(event.link))
        case Failed(disk=DiskFacts() as disk):
            return replace(event, effect=names.id(event.effect), disk=replace(disk, link=names.link(disk.link)))
        case Finished():
            return replace(event, effect=names.id(event.effect), link=names.link(event.link), evidence=Fixed())
    number = getattr(event, "effect", 0)
    return replace(event, effect=names.id(number)) if number else event  # type: ignore[call-arg]


def elapse(state: State, *, long: bool) -> State:
    """Time passes: back-offs end; if `long`, postponements and open tests too."""
    short = [state.timer, state.watch.timer, *(o.timer for o in state.owed)]
    late: list[Timer | None] = [p.timer for p in state.postponed.values()]
    late += [part.timer for part in (state.setbacks,) if part is not None]
    late += [part.until for part in (state.aftercare,) if part is not None]
    if PENDING not in (short + late if long else short):
        return state

    def over(timer: Timer | None) -> Timer | None:
        return None if timer is None else DUE

    ended = replace(
        state,
        timer=over(state.timer),
        owed=tuple(replace(o, timer=over(o.timer)) for o in state.owed),
        watch=replace(state.watch, timer=over(state.watch.timer)),
    )
    if not long:
        return ended
    return replace(
        ended,
        postponed={d: replace(p, timer=DUE) for d, p in state.postponed.items()},
        setbacks=state.setbacks and replace(state.setbacks, timer=DUE),
        aftercare=state.aftercare and replace(state.aftercare, until=DUE),
    )


def describe(world: World, names: Mapping[str, str]) -> str:
    """One line a model, for whoever reads a counter-example."""
    told = []
    for box in world.boxes:
        state = box.memory or box.journal
        marks = [names[s.release.digest] + ("" if s.confirmed else "?") for s in box.disk.slots]
        here = slot(state, state.current)
        told.append(
            f"{state.model}: {state.phase.value}{'' if box.memory else ' (updater down)'}"
            f" believes {names.get(state.current or '')}{'' if here and here.confirmed else '?'}"
            f" disk current={names.get(box.disk.current or '')} fallback={names.get(box.disk.fallback or '')}"
            f" slots={marks} runs={names.get(box.inference.running or '')}"
            f" doing={state.doing and state.doing.kind} owed={[o.kind for o in state.owed]}"
            f" blocks={[b.version for b in state.blocks.values()]} withdrawn={[names[d] for d in state.withdrawn]}"
        )
    return "\n".join(told)


OLD, GOOD, BAD, CRASH = (release("m", number) for number in (1, 2, 3, 4))
