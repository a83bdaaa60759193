"""The model checker: every world that few enough faults can lead to, breadth first, and what must hold in each.

    plan = PLANS["quick"]
    found = search(plan.play(), plan.worlds(), plan.faults)
    found.worlds, found.moves           # how many there were
    python tests/model_search.py        # the deep plans, with their counts

Worlds are searched by the number of faults that led to them, and among those by the number of moves; so the story of
a counter-example has as few faults as can be, and is the shortest of these. In every world the invariants hold (they
are checked by `model_moves`), and from every world an undisturbed device comes to rest in Idle where it should be: its
first moves, one after the other, are followed to their end, and a circle that does not pass a resting world is an
error. A world is known again by the 64 bits of its hash; with a million worlds the chance that two are taken for one
is one in forty million.
"""

import os
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from device_parts import release
from model_moves import Move, Play, Step, check_world
from model_state import Box, World, describe
from modelagent.core import machine
from modelagent.core.events import Verb
from modelagent.core.state import Phase, State, block_reason, revert_target, slot
from modelagent.manifest import Release

NOBODY = -1


class Refuted(AssertionError):  # noqa: N818 - it is what happened to the claim
    """A counter-example: what does not hold, and the moves that lead there."""

    def __init__(self, what: str, story: Sequence[str], faults: int, world: str) -> None:
        lines = "\n".join(f"  {number}. {move}" for number, move in enumerate(story, 1))
        super().__init__(f"{what}\nafter {len(story)} moves, {faults} faults among them:\n{lines}\n{world}")
        self.what, self.story, self.faults = what, tuple(story), faults


@dataclass
class Found:
    """What a search has met."""

    worlds: int = 0
    moves: int = 0
    steps: int = 0
    resting: int = 0
    by_faults: list[int] = field(default_factory=list)


@dataclass
class _Atlas:
    """Every world met: how it was reached, and where an undisturbed device goes from it."""

    known: dict[int, int] = field(default_factory=dict)
    parent: "array[int]" = field(default_factory=lambda: array("l"))
    label: list[str] = field(default_factory=list)
    faults: "array[int]" = field(default_factory=lambda: array("b"))
    calm: "array[int]" = field(default_factory=lambda: array("l"))
    rests: bytearray = field(default_factory=bytearray)

    def add(self, key: int, parent: int, label: str, faults: int) -> int:
        number = self.known[key] = len(self.label)
        self.parent.append(parent)
        self.label.append(sys.intern(label))
        self.faults.append(faults)
        self.calm.append(NOBODY)
        self.rests.append(0)
        return number

    def story(self, number: int) -> list[str]:
        told = []
        while number != NOBODY:
            told.append(self.label[number])
            number = self.parent[number]
        return told[-2::-1]  # without the world it began with


def search(play: Play, starts: Sequence[World], faults: int, *, most: int = 10**9) -> Found:
    """Visit every world that `faults` faults can lead to, or `most` of them.

    Raises Refuted with the shortest story when something does not hold.
    """
    atlas, found = _Atlas(), Found()
    layer: deque[tuple[int, World]] = deque()
    for start in starts:
        known = play.atelier.settled(start)
        key = play.atelier.key(known)
        if key not in atlas.known:
            layer.append((atlas.add(key, NOBODY, "begin", 0), known))
    for count in range(faults + 1):
        following: dict[int, tuple[int, str, World]] = {}
        while layer and len(atlas.label) < most:
            number, world = layer.popleft()
            for move in _moves(atlas, play, number, world, faults=count < faults):
                found.moves += 1
                key = play.atelier.key(move.world)
                if move.fault:
                    if key not in atlas.known and key not in following:
                        following[key] = (number, move.label, move.world)
                    continue
                after = atlas.known.get(key)
                if after is None:
                    after = atlas.add(key, number, move.label, count)
                    layer.append((after, move.world))
                if atlas.calm[number] == NOBODY:
                    atlas.calm[number] = after
            if atlas.calm[number] == NOBODY:
                atlas.calm[number] = number
            atlas.rests[number] = _rests(world)
            if atlas.rests[number] and atlas.calm[number] == number:
                _check(atlas, number, world, lambda w: check_rest(play, w))
                found.resting += 1
        for key, (number, label, world) in following.items():
            if key not in atlas.known:
                layer.append((atlas.add(key, number, label, count + 1), world))
    found.worlds, found.steps = len(atlas.label), play.steps
    found.by_faults = [atlas.faults.count(count) for count in range(faults + 1)]
    if found.worlds < most:
        _check_calm(atlas)
    return found


def _moves(atlas: _Atlas, play: Play, number: int, world: World, *, faults: bool) -> list[Move]:
    _check(atlas, number, world, check_world)
    _check(atlas, number, world, play.check_repeats)
    try:
        return list(play.moves(world, faults=faults))
    except AssertionError as error:
        raise _refuted(atlas, number, f"{error} (at the next move)", world) from error


def _check(atlas: _Atlas, number: int, world: World, claim: Callable[[World], None]) -> None:
    try:
        claim(world)
    except AssertionError as error:
        raise _refuted(atlas, number, str(error), world) from error


def _refuted(atlas: _Atlas, number: int, what: str, world: World | None) -> Refuted:
    names = {"": "nothing"}
    for box in world.boxes if world is not None else ():
        names |= {release(box.journal.model, n).digest: f"1.{n}.0" for n in range(9)}
    told = describe(world, names) if world is not None else ""
    return Refuted(what, atlas.story(number), atlas.faults[number], told)


def _rests(world: World) -> bool:
    return (
        not world.full
        and not world.shut
        and all(
            b.memory is not None and b.memory.phase is Phase.IDLE and not b.memory.owed and not b.work
            for b in world.boxes
        )
    )


def _check_calm(atlas: _Atlas) -> None:
    """No world from which an undisturbed device goes round in circles, or stands still where it should not."""
    good = bytearray(atlas.rests)
    for begin in range(len(atlas.label)):
        way, at, on_it = list[int](), begin, set[int]()
        while not good[at]:
            if at in on_it:
                circle = way[way.index(at) :]
                what = "it goes round in circles: " + " -> ".join(atlas.label[n] for n in circle)
                if len(circle) == 1:
                    what = "nothing moves any more, and it is not at rest"
                raise _refuted(atlas, min(circle, key=lambda n: (atlas.faults[n], n)), what, None)
            on_it.add(at)
            way.append(at)
            at = atlas.calm[at]
        for number in way:
            good[number] = 1


# -- where an undisturbed device should be -----------------------------------------------------------------------------


def check_rest(play: Play, world: World) -> None:
    """At rest: State and disk agree, what is wanted runs, and what is blocked does not."""
    for box in world.boxes:
        state, disk = box.memory, box.disk
        assert state is not None
        assert (state.current, state.link) == (disk.current, disk.link), "State and disk disagree on `current`"
        assert state.fallback == disk.fallback, "State and disk disagree on `fallback`"
        marks = {s.release.digest: s.confirmed for s in disk.slots}
        # A full disk may put off the sweeping; what rots while its mark is written is seen to at the next start.
        known = {s.release.digest: s.confirmed for s in state.slots if s.release.digest not in disk.rotten}
        assert known.items() <= marks.items(), "State and disk disagree on what is confirmed"
        assert state.fallback == revert_target(state, state.current), "`fallback` is not the revert target"
        here = slot(state, state.current)
        if here is not None and block_reason(state, here.release):
            assert state.fallback is None, "a blocked version stays, though there is one to go back to"
        if disk.current not in disk.rotten:
            left = box.inference.said is not None  # by itself, and there is nothing to go back to
            assert left or box.inference.running == disk.current, "what runs is not what `current` names"
            _check_wanted(play, box, state)


def _check_wanted(play: Play, box: Box, state: State) -> None:
    """The precedence of the design, written down a second time."""
    desired = state.desired
    wanted: Release | None = box.offer
    if desired.pin is not None:
        named = desired.pin.version
        wanted = next((r for r in play.releases[state.model] if r.version == named), None)
    elif desired.hold is not None:
        return
    if wanted is None or wanted.digest in box.withdrawn or wanted.digest in state.blocks:
        return
    if any((d.digest, d.running) == (wanted.digest, state.current) for d in state.declined):
        return
    assert state.current == wanted.digest, f"{wanted.version} should run, nothing is against it, and it does not"
    here = slot(state, wanted.digest)
    assert here is not None
    assert here.confirmed, f"{wanted.version} runs, and nobody decides whether it may stay"


# -- plans -------------------------------------------------------------------------------------------------------------


PEOPLE = (
    (Verb.PIN, "1.1.0"),
    (Verb.PIN, "1.2.0"),
    (Verb.PIN, "1.3.0"),
    (Verb.UNPIN, ""),
    (Verb.HOLD, ""),
    (Verb.RESUME, ""),
    (Verb.ROLLBACK, ""),
    (Verb.CONFIRM, ""),
    (Verb.LIFT, "1.2.0"),
    (Verb.LIFT, "1.3.0"),
    (Verb.BLOCK, "1.1.0"),
)
NATURES = {1: "good", 2: "good", 3: "bad", 4: "crash", 5: "flaw"}


class Plan(NamedTuple):
    """A bounded world: models, what is installed, what the channels name at first, people, gates, and how deep."""

    models: tuple[str, ...]
    numbers: tuple[int, ...]
    starts: tuple[tuple[tuple[int, ...], int], ...]
    faults: int
    verbs: tuple[tuple[str, str], ...] = PEOPLE
    gates: tuple[str, ...] = ("activate",)

    def play(self, step: Step = machine.step) -> Play:
        natures = {release(m, n).digest: NATURES[n] for m in self.models for n in self.numbers}
        releases = {m: [release(m, n) for n in self.numbers] for m in self.models}
        return Play(natures, releases, verbs=self.verbs, gates=self.gates, step=step)

    def worlds(self) -> list[World]:
        made = []
        for slots, offer in self.starts:
            boxes = tuple(
                Box.installed(m, [release(m, n) for n in slots], release(m, offer) if offer else None)
                for m in self.models
            )
            made.append(World(boxes))
        return made


NEWCOMERS = (((), 2), ((), 3), ((1,), 2), ((1,), 3), ((1,), 4), ((1, 2), 2), ((1, 2), 1), ((1, 2), 3))
PLANS = {
    "quick": Plan(("m",), (1, 2, 3), (((), 3), ((1,), 3)), 1),
    "wide": Plan(("m",), (1, 2, 3, 4, 5), NEWCOMERS, 1, gates=("acquire", "canary", "activate")),
    "first": Plan(("m",), (1, 2, 3), (((), 3),), 2),
    "next": Plan(("m",), (1, 2, 3), (((1,), 3),), 2),
    "crash": Plan(("m",), (1, 2, 4), (((1,), 4),), 2),
    "two": Plan(("m", "n"), (1, 3), (((1,), 3),), 1, verbs=((Verb.ROLLBACK, ""), (Verb.HOLD, "")), gates=()),
}
DEEP = ("wide", "first", "next", "crash", "two")


def main() -> None:
    """Run the deep plans, or those named in MODELAGENT_MODEL_CHECK, and say what they met."""
    for name in (os.environ.get("MODELAGENT_MODEL_CHECK") or ",".join(DEEP)).split(","):
        plan, began = PLANS[name], time.monotonic()
        found = search(plan.play(), plan.worlds(), plan.faults)
        layers = ", ".join(f"{many:,} at {number} faults" for number, many in enumerate(found.by_faults))
        sys.stdout.write(
            f"{name}: {found.worlds:,} worlds ({layers}), {found.moves:,} moves, {found.resting:,} at rest, "
            f"{time.monotonic() - began:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
