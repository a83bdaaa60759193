"""A whole device as a program: store, inference, repository, canary, judge, clocks, and the updater's driver.

    device = Device("digits")
    device.publish("digits", release("digits", 1))
    device.settle()                             # until nothing is left to do
    assert device.inference["digits"].running == release("digits", 1).digest

Nothing here is a stub that says yes: the store has slots and links whose identities never repeat, inference follows
`current` by its own rules with its own durable memory, the disk fills up, clocks jump, the power goes. The driver's
part is the real one's: Persist at once, every other effect in the queue of its hand, one event per answer; what
could not be written down is not done, but for going back. `kill_at` ends the updater at the n-th point before,
between or after effects; what survives is the journal and the disk.

After every step and every change on disk the invariants of the design are checked (`_check_step`, `_check_disk`).
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelagent.core import effects
from modelagent.core.events import (
    CheckFailed,
    ConfigWish,
    Counts,
    DiskFacts,
    Elapsed,
    Event,
    Failed,
    FellBack,
    Finished,
    Instant,
    Learned,
    Link,
    Refused,
    RevertWanted,
    Runs,
    SlotFacts,
    Started,
    Verb,
    Wanted,
    Wave,
    Withdrawal,
)
from modelagent.core.machine import delay, step
from modelagent.core.state import Answers, Phase, Rules, State, block_reason, gather, slot
from modelagent.core.verdicts import Allow, CanaryVerdict, Outcome, ProbationVerdict, Standing, Verdict, Wait
from modelagent.errors import Remedy
from modelagent.manifest import Release

FPS = 10
PEAK_KB = 70_000  # what every canary measures here
ENOUGH = 40  # frames after which the simulated judge decides
WORLD = (
    effects.Acquire,
    effects.Stage,
    effects.RunCanary,
    effects.KeepPeak,
    effects.Activate,
    effects.Revert,
    effects.Confirm,
    effects.SetFallback,
    effects.Stop,
    effects.Vacuum,
)
COSTLY = (effects.Acquire, effects.Stage, effects.RunCanary, effects.Activate)
QUICK = Rules(attempts=3, back_off_s=2.0, back_off_max_s=60.0, postpone_s=600.0, activation_s=20.0)


def release(model: str, number: int, *, floor: int = 0, file: str = "") -> Release:
    """A release whose digest and model file follow from its name, so that values can be written down anywhere."""
    name = f"{model}-1.{number}.0"
    digest = hashlib.sha256(name.encode()).hexdigest()
    model_file = hashlib.sha256((file or name + "-file").encode()).hexdigest()
    return Release(model, f"1.{number}.0", digest, number, floor, model_file, 1000, 1.7e9 + number)


class Killed(Exception):  # noqa: N818 - it is what happened, not what went wrong
    """The updater's process is gone."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a version behaves. `canary`: outcomes in turn, the last one for ever.

    `live`: good, bad (the judge says so), open (the judge never decides), crash (some seconds after it came up),
    refuse (cannot be loaded), hang (never comes up, says nothing).
    """

    canary: tuple[Outcome, ...] = (Outcome.PASS,)
    live: str = "good"


@dataclass(slots=True)
class Slot:
    """One slot directory."""

    release: Release
    confirmed: bool = False
    rotten: bool = False
    peak_kb: int = 0


@dataclass(slots=True)
class Store:
    """Slots and links of one model."""

    slots: dict[str, Slot] = field(default_factory=dict)
    current: str | None = None
    link: Link | None = None
    fallback: str | None = None
    shadow: str | None = None
    incoming: set[str] = field(default_factory=set)

    def facts(self) -> DiskFacts:
        found = tuple(SlotFacts(s.release, s.confirmed) for s in self.slots.values())
        ordered = tuple(sorted(found, key=lambda s: s.release.number))
        return DiskFacts(ordered, self.current, self.link if self.current else None, self.fallback)


@dataclass(slots=True)
class Inference:
    """Follows `current`; leaves an unconfirmed version by itself. `left` survives its death, the rest does not."""

    epoch: str
    alive: bool = True
    link: Link | None = None
    running: str | None = None
    since: float = 0.0
    refused: tuple[str, str, bool] | None = None
    fell_back: tuple[str, str, bool, bool] | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    left: tuple[Link, str, str, bool, bool] | None = None
    asleep: bool = False  # on: no frames come


@dataclass(slots=True)
class Work:
    """One effect in the queue of a hand."""

    model: str
    effect: effects.Effect
    abandoned: bool = False
    under_way: bool = False  # given up too late: it is done, and nobody is told


class Device:
    """The device, its updater and its repository."""

    def __init__(self, *models: str, rules: Rules = QUICK, vacuum: bool = True) -> None:
        self.models = models
        self.rules = rules
        self.vacuum = vacuum
        self.wall, self.mono, self.boot = 1.8e9, 100.0, 1
        self.runtime = "litert 2"
        self.draw = 0.5
        self._serial = itertools.count(1)
        self.stores = {m: Store() for m in models}
        self.inference = {m: Inference(self._epoch()) for m in models}
        self.journal = {m: State(m) for m in models}
        self.offers: dict[str, Release | None] = dict.fromkeys(models)
        self.library: dict[str, dict[str, Release]] = {m: {} for m in models}
        self.withdrawn: dict[str, list[Withdrawal]] = {m: [] for m in models}
        self.conduct: dict[str, Conduct] = {}
        self.canaries: Counter[str] = Counter()
        self.gates: dict[str, Verdict] = {}
        self.failing: dict[str, Remedy] = {}  # hand word (check, acquire, ...) -> remedy
        self.progress = 0  # bytes that a failing Acquire got
        self.broken_after: dict[type[effects.Effect], str] = {}  # Activate or Revert: fails, after which part of it
        self.full = False
        self.too_late = False  # what is given up now is under way already
        self.interval = 20.0  # seconds between checks
        self.changed = 0.0  # when the repository was last changed
        self.states: dict[str, State] = {}
        self.up = False
        self.queues: dict[str, deque[Work]] = {}
        self.inbox: deque[tuple[str, Event]] = deque()
        self.points = 0
        self.kill_at = -1
        self.power = False  # a kill takes the whole device down
        self.kills = 0
        self.chain: dict[str, list[Phase]] = {m: [Phase.IDLE] for m in models}
        self.edges: set[tuple[Phase, type[Event], Phase]] = set()
        self.answers: list[effects.Answer] = []
        self.checks: list[effects.Check] = []
        self.notes: list[tuple[str, effects.Note]] = []
        self.spent: list[tuple[float, str, str]] = []  # when, which model, which costly effect
        self.produced: Counter[tuple[str, Link]] = Counter()  # frames done under each link, by the activated version
        self.heard: list[tuple[str, Event]] = []  # every health event ever, for late and duplicate delivery
        self.landed: list[tuple[str, Event]] = []  # every answer ever
        self.fit_then: dict[str, set[str]] = {m: set() for m in models}  # what was fit when links were last ordered
        self.after_step: Callable[[str, State, Event, State, tuple[effects.Effect, ...]], None] | None = None

    # -- clocks ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> Instant:
        return Instant(self.wall, self.mono, f"boot-{self.boot}")

    def _epoch(self) -> str:
        return f"epoch-{next(self._serial)}"

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds

    def power_cycle(self, off: float = 30.0) -> None:
        """The mains go: everything in memory is lost, and the clocks begin anew."""
        self.kill()
        self.wall += off
        self.mono = 5.0
        self.boot += 1
        for model in self.models:
            self.end_inference(model)
            self.start_inference(model)

    # -- the repository ----------------------------------------------------------------------------------------

    def publish(self, model: str, wanted: Release | None, conduct: Conduct | None = None) -> None:
        """Name a release in the channel, or none."""
        self.offers[model], self.changed = wanted, self.wall
        if wanted is not None:
            self.library[model][wanted.version] = wanted
            if conduct is not None:
                self.conduct[wanted.digest] = conduct

    def withdraw(self, model: str, wanted: Release, reason: str = "smells") -> None:
        self.changed = self.wall
        self.withdrawn[model].append(Withdrawal(wanted.digest, wanted.version, reason))
        if self.offers[model] == wanted:
            self.offers[model] = None

    def install(self, model: str, *releases: Release, confirmed: bool = True) -> None:
        """Provision slots; the last one is `current`, the one before `fallback`."""
        store = self.stores[model]
        for one in releases:
            store.slots[one.digest] = Slot(one, confirmed)
            self.library[model][one.version] = one
        store.current, store.link = releases[-1].digest, self._link()
        store.fallback = releases[-2].digest if len(releases) > 1 and confirmed else None

    def _link(self) -> Link:
        number = next(self._serial)
        return Link(number, number * 1000)

    # -- inference ---------------------------------------------------------------------------------------------

    def end_inference(self, model: str) -> None:
        old = self.inference[model]
        self.inference[model] = Inference(self._epoch(), alive=False, left=old.left, asleep=old.asleep)

    def start_inference(self, model: str) -> None:
        self.inference[model].alive = True

    def live(self, model: str, seconds: float) -> None:
        """What inference does in this time: follow the link, run frames, leave what fails."""
        box, store = self.inference[model], self.stores[model]
        if not box.alive:
            return
        if box.link != store.link or store.current is None:
            self._follow(box, store)
        if box.running is None:
            return
        conduct = self._conduct(box.running)
        here = store.slots.get(box.running)
        if conduct.live == "crash" and self.mono - box.since >= 3.0 and box.running == store.current:
            self._crash(box, store, here)
        elif not box.asleep:
            self._serve(model, box, store, seconds)

    def _serve(self, model: str, box: Inference, store: Store, seconds: float) -> None:
        assert box.running is not None
        frames = int(seconds * FPS)
        known = box.counts.get(box.running, Counts())
        box.counts[box.running] = replace(
            known, frames=known.frames + frames, done=known.done + frames, busy_s=known.busy_s + int(seconds)
        )
        if box.link is not None and box.running == store.current and box.link == store.link:
            self.produced[box.running, box.link] += frames

    def _follow(self, box: Inference, store: Store) -> None:
        box.link = store.link if store.current is not None else None
        box.refused = box.fell_back = None
        if store.current is None:
            box.running = None
            return
        assert box.link is not None
        if box.left is not None and box.left[0] == box.link:
            box.fell_back = box.left[1:]
            box.running = self._loadable(store, store.fallback)
            return
        here = store.slots.get(store.current)
        conduct = self._conduct(store.current)
        if here is None or here.rotten or conduct.live == "refuse":
            box.refused = (store.current, "cannot be loaded", here is not None and here.confirmed)
            box.running = self._loadable(store, store.fallback)
        elif conduct.live != "hang":
            box.running, box.since = store.current, self.mono

    def _loadable(self, store: Store, digest: str | None) -> str | None:
        here = store.slots.get(digest or "")
        if here is None or here.rotten or digest is None or self._conduct(digest).live in ("refuse", "hang"):
            return None
        return digest

    def _crash(self, box: Inference, store: Store, here: Slot | None) -> None:
        assert box.running is not None
        assert box.link is not None
        known = box.counts.get(box.running, Counts())
        box.counts[box.running] = replace(known, faults=known.faults + 1)
        box.since = self.mono
        confirmed = here is not None and here.confirmed
        if not confirmed and self._loadable(store, store.fallback) not in (None, box.running):
            box.left = (box.link, box.running, "worker crashed", False, True)
            box.fell_back = box.left[1:]
            box.running = store.fallback

    def _conduct(self, digest: str) -> Conduct:
        return self.conduct.get(digest, Conduct())

    def health(self, model: str) -> list[Event]:
        """What the newest health record says, as the reader turns it into events."""
        box = self.inference[model]
        if not box.alive:
            return []
        said: list[Event] = []
        if box.fell_back is not None and box.link is not None:
            digest, reason, confirmed, hard = box.fell_back
            said.append(FellBack(self.now, self.draw, box.link, digest, reason, confirmed, hard))
        if box.refused is not None and box.link is not None:
            digest, reason, confirmed = box.refused
            said.append(Refused(self.now, self.draw, box.link, digest, reason, confirmed))
        counts = box.counts.get(box.running, Counts()) if box.running is not None else Counts()
        said.append(Runs(self.now, self.draw, box.link, box.running, box.epoch, counts))
        self.heard += [(model, event) for event in said]
        return said

    # -- the updater: its life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """The updater comes up with what the journal holds and what the disk says."""
        self.up = True
        self.states = dict(self.journal)
        try:
            for model in self.models:
                disk = self.stores[model].facts()
                self.turn(model, Started(self.now, self.draw, disk, self.runtime))
        except Killed:
            self._die()

    def _die(self) -> None:
        self.kills += 1
        if self.power:
            self.power_cycle()
        else:
            self.kill()

    def kill(self) -> None:
        self.up = False
        self.states = {}
        self.queues.clear()
        self.inbox.clear()

    def _point(self) -> None:
        """A place where the power may go."""
        self.points += 1
        if self.points == self.kill_at:
            raise Killed

    # -- the updater: its loop ---------------------------------------------------------------------------------

    def tick(self, seconds: float = 1.0, *, drain: bool = True) -> None:
        """Let time pass for everybody; start the updater where it is down. Without `drain` the hands lie still."""
        self.pass_time(seconds)
        for model in self.models:
            self.live(model, seconds)
        if not self.up:
            self.start()
        if not self.up:
            return
        try:
            for model in self.models:
                for event in self.health(model):
                    self.turn(model, event)
            for model in self.models:
                self.turn(model, Elapsed(self.now, self.draw))
            while drain and self.work():
                pass
        except Killed:
            self._die()

    def settle(self, limit: float = 4000.0, *, patience: int = 4) -> None:
        """Until every model is at rest, for `patience` seconds in a row."""
        start, quiet = self.wall, 0
        while quiet < patience:
            assert self.wall < start + limit, f"never at rest: {self.describe()}"
            self.tick(1.0 if self.wall < start + 100 else 4.0)
            quiet = quiet + 1 if self.at_rest() else 0

    def at_rest(self) -> bool:
        return self.up and all(
            s.phase is Phase.IDLE
            and not s.again
            and not s.owed
            and s.watch.last_ok > self.changed
            and s.current == self.stores[m].current
            for m, s in self.states.items()
        )

    def until(self, reached: Callable[["Device"], bool], limit: float = 600.0) -> None:
        end = self.wall + limit
        while not reached(self):
            assert self.wall < end, f"never came to it: {self.describe()}"
            self.tick()

    def phase(self, model: str) -> Phase | None:
        """Where the model's deployment stands; None while the updater is down."""
        return self.states[model].phase if self.up else None

    def reach(self, model: str, phase: Phase, limit: float = 300.0) -> None:
        """Go on step by step, and stop in that phase, its effect still under way."""
        end = self.wall + limit
        while self.phase(model) is not phase:
            assert self.wall < end, f"never came to {phase}: {self.describe()}"
            self.tick(1.0, drain=False)
            while self.up and self.phase(model) is not phase and self.work():
                pass

    def turn(self, model: str, event: Event) -> None:
        """One event, and as many looks as the machine asks for."""
        self._step(model, event)
        for _ in range(12):
            if not self.states[model].again:
                return
            self._step(model, Elapsed(self.now, self.draw))
        raise AssertionError(f"{model} never rests: {self.describe()}")

    def _step(self, model: str, event: Event) -> None:
        old = self.states[model]
        new, orders = step(old, event, self.ask(model, event))
        self.states[model] = new
        if new.phase is not old.phase:
            self.edges.add((old.phase, type(event), new.phase))
            self.chain[model].append(new.phase)
        self._check_step(model, old, event, new, orders)
        if self.after_step is not None:
            self.after_step(model, old, event, new, orders)
        self._carry_out(model, orders)

    def deliver(self, model: str, event: Event) -> None:
        """Bring an event by hand, for instance one that comes late."""
        try:
            self.turn(model, event)
        except Killed:
            self._die()

    def ask(self, model: str, event: Event, state: State | None = None) -> Answers:
        """What policies, judge and device say."""
        state = state or self.states[model]
        others = [s for m, s in self.states.items() if m != model]
        due = state.watch.last_try + self.interval
        set_back = self.wall < state.watch.last_try  # a clock set back must not put the next check off for years
        check: Verdict = Allow() if state.watch.asked or set_back or self.wall >= due else Wait(due, "not due yet")
        return Answers(
            may_check=self.gates.get("check", check),
            may_acquire=self.gates.get("acquire", Allow()),
            may_canary=self.gates.get("canary", Allow()),
            may_activate=self.gates.get("activate", Allow()),
            canary_free=all(o.phase is not Phase.CANARY for o in others),
            load_free=all(o.phase not in (Phase.ACTIVATING, Phase.REVERTING) for o in others),
            probation=self._judge(state, event),
            rules=self.rules,
        )

    def _judge(self, state: State, event: Event) -> ProbationVerdict:
        if not isinstance(event, Runs) or state.candidate is None:
            return ProbationVerdict(Standing.OPEN, "")
        if gather(state, event).total.done < ENOUGH:
            return ProbationVerdict(Standing.OPEN, "too few frames")
        live = self._conduct(state.candidate.release.digest).live
        standing = {"bad": Standing.BAD, "open": Standing.OPEN}.get(live, Standing.GOOD)
        return ProbationVerdict(standing, f"{live} after enough frames")

    # -- the updater: its hands --------------------------------------------------------------------------------

    def _carry_out(self, model: str, orders: tuple[effects.Effect, ...]) -> None:
        unkept = False
        for order in orders:
            match order:
                case effects.Persist():
                    self._point()
                    if self.full:
                        unkept = True
                    else:
                        self.journal[model] = replace(order.state, again=False, running=None)
                        self.notes += [(model, note) for note in order.notes]
                    self._point()
                case effects.Tell():
                    pass
                case effects.Answer():
                    self.answers.append(order)
                case effects.Abandon():
                    self._abandon(model, order.target)
                case _ if unkept and not isinstance(order, effects.Revert):
                    if order.id:
                        self._post(model, self._failure(order, Remedy.WAIT, "the disk is full"))
                case _:
                    if isinstance(order, COSTLY):
                        self.spent.append((self.wall, model, type(order).__name__))
                    state = self.states[model]
                    fit = (s.release for s in state.slots if s.confirmed and not block_reason(state, s.release))
                    self.fit_then[model] = {known.digest for known in fit}
                    self.queues.setdefault(_hand(model, order), deque()).append(Work(model, order))

    def _abandon(self, model: str, target: int) -> None:
        for queue in self.queues.values():
            for work in queue:
                if work.model == model and work.effect.id == target:
                    work.abandoned = True
                    work.under_way = self.too_late and work is queue[0]

    def _post(self, model: str, event: Event) -> None:
        self.landed.append((model, event))
        self.inbox.append((model, event))

    def some_work(self, draw: int) -> None:
        """One piece of work, of any hand; `draw` says which."""
        names = sorted(name for name, queue in self.queues.items() if queue) + ["inbox"] * bool(self.inbox)
        try:
            if names:
                self.work(names[draw % len(names)])
        except Killed:
            self._die()

    def work(self, hand: str = "inbox") -> bool:
        """Deliver one waiting event, or let one hand do one piece of work. False when there is nothing to do."""
        if self.inbox and hand == "inbox":
            model, event = self.inbox.popleft()
            self.turn(model, event)
            return True
        names = sorted((name for name, queue in self.queues.items() if queue), key=lambda name: (name != "check", name))
        if not names:
            return False
        work = self.queues[hand if hand in names else names[0]].popleft()
        if not work.abandoned or work.under_way:
            self._point()
            answer = self.perform(work)
            self._point()
            if answer is not None and work.effect.id and not work.abandoned:
                self._post(work.model, answer)
        return True

    def perform(self, work: Work) -> Event | None:
        """Carry one effect out, as a step would; the answer it would give."""
        model, order = work.model, work.effect
        if (remedy := self.failing.get(type(order).__name__)) is not None:
            return self._failure(order, remedy, "made to fail")
        store = self.stores[model]
        match order:
            case effects.Check():
                return self._check(order)
            case effects.Acquire():
                if self.full and order.release.digest not in store.incoming:
                    return self._failure(order, Remedy.WAIT, "no space")
                store.incoming.add(order.release.digest)
                return Finished(self.now, self.draw, order.id)
            case effects.Stage():
                return self._stage(store, order)
            case effects.RunCanary():
                return self._canary(store, order)
            case effects.KeepPeak():
                if self.full or order.release.digest not in store.slots:
                    return self._failure(order, Remedy.WAIT, "no space for a number")
                store.slots[order.release.digest].peak_kb = order.peak_kb
            case effects.Activate():
                return self._activate(model, store, order)
            case effects.Revert():
                return self._revert(model, store, order)
            case effects.Confirm():
                if self.full or order.release.digest not in store.slots:
                    return self._failure(order, Remedy.WAIT, "no space for the mark")
                store.slots[order.release.digest].confirmed = True
                self._check_disk(model)
                self._point()
                store.shadow = None
            case effects.SetFallback():
                if self.full and order.target is not None:
                    return self._failure(order, Remedy.WAIT, "no space for a link")
                assert order.target is None or order.target in store.slots
                store.fallback = order.target
            case effects.Stop():
                store.current = store.link = store.shadow = None
            case effects.Vacuum():
                self._vacuum(model, store, order)
            case _:
                raise AssertionError(f"no hand for {order}")
        self._check_disk(model)
        return Finished(self.now, self.draw, order.id)

    def _failure(self, order: effects.Effect, remedy: Remedy, message: str) -> Event:
        if isinstance(order, effects.Check):
            return CheckFailed(self.now, self.draw, order.id, remedy, "simulated", message)
        disk = self.stores[order.model].facts() if isinstance(order, effects.Activate | effects.Revert) else None
        done = self.progress if isinstance(order, effects.Acquire) else 0
        return Failed(self.now, self.draw, order.id, remedy, "simulated", message, done, disk=disk)

    def _check(self, order: effects.Check) -> Event:
        self.checks.append(order)
        pinned = self.library[order.model].get(order.pin) if order.pin else None
        offer = self.offers[order.model]
        gone = tuple(self.withdrawn[order.model])
        return Learned(self.now, self.draw, order.id, offer, pinned, gone, (Wave(0.0, 1.0),))

    def _stage(self, store: Store, order: effects.Stage) -> Event:
        if self.full:
            return self._failure(order, Remedy.WAIT, "no space to stage")
        digest = order.release.digest
        here = store.slots.get(digest)
        if here is None or here.rotten:
            if digest not in store.incoming:
                remedy = Remedy.STOP if here is not None else Remedy.RETRY
                return self._failure(order, remedy, "a file is missing or spoiled")
            store.slots[digest] = Slot(order.release, confirmed=here is not None and here.confirmed)
            store.incoming.discard(digest)
        assert order.fallback is None or order.fallback in store.slots
        self._point()
        return Finished(self.now, self.draw, order.id, link=Link(0, 0))

    def _canary(self, store: Store, order: effects.RunCanary) -> Event:
        assert order.release.digest in store.slots, "the candidate's slot is there"
        assert order.baseline is None or order.baseline in store.slots, "the baseline's slot is there"
        outcomes = self._conduct(order.release.digest).canary
        outcome = outcomes[min(self.canaries[order.release.digest], len(outcomes) - 1)]
        self.canaries[order.release.digest] += 1
        verdict = CanaryVerdict(
            outcome, f"scripted {outcome.value}", hard=False, retry_at=self.wall + 20, peak_kb=PEAK_KB
        )
        return Finished(self.now, self.draw, order.id, verdict=verdict)

    def _activate(self, model: str, store: Store, order: effects.Activate) -> Event:
        digest, broken = order.release.digest, self.broken_after.get(type(order), "")
        if digest not in store.slots:
            return self._failure(order, Remedy.WAIT, "no complete slot")
        if broken == "nothing" or (self.full and store.fallback != order.fallback and order.fallback is not None):
            return self._failure(order, Remedy.WAIT, "cannot switch")
        store.fallback = order.fallback
        self._check_disk(model)
        self._point()
        if broken == "fallback":
            return self._failure(order, Remedy.WAIT, "cannot switch")
        store.shadow = order.shadow
        if store.current != digest:
            store.current, store.link = digest, self._link()
        self._check_disk(model)
        if broken == "current":
            return self._failure(order, Remedy.WAIT, "switched, but not synced")
        return Finished(self.now, self.draw, order.id, link=store.link)

    def _revert(self, model: str, store: Store, order: effects.Revert) -> Event:
        broken = self.broken_after.get(type(order), "")
        if order.target not in store.slots or broken == "nothing":
            return self._failure(order, Remedy.WAIT, "cannot go back")
        if store.current != order.target:
            store.current, store.link = order.target, self._link()
        self._check_disk(model)
        self._point()
        if broken == "current":
            return self._failure(order, Remedy.WAIT, "went back, but not synced")
        store.fallback = order.fallback if not self.full else None
        store.shadow = None
        self._point()
        if order.unconfirm and order.leaving in store.slots:
            store.slots[order.leaving].confirmed = False
        self._check_disk(model)
        return Finished(self.now, self.draw, order.id, link=store.link)

    def _vacuum(self, model: str, store: Store, order: effects.Vacuum) -> None:
        if not self.vacuum:
            return
        spared = {*order.keep, store.current, store.fallback, store.shadow}
        gone = [d for d in store.slots if d not in spared]
        for digest in gone:
            del store.slots[digest]

    # -- commands ----------------------------------------------------------------------------------------------

    def command(self, model: str, verb: str, argument: str = "", *, name: str = "", **more: Any) -> str:
        """Give a command; what it was answered at once (status: reason)."""
        identity = name or f"command-{next(self._serial)}"
        before = len(self.answers)
        try:
            if verb == "rollback":
                self.turn(model, RevertWanted(self.now, self.draw, "cli", identity, argument))
            else:
                self.turn(model, Wanted(self.now, self.draw, verb, "cli", identity, argument, **more))
        except Killed:
            self._die()
            return "killed"
        said = [a for a in self.answers[before:] if a.command == identity]
        assert len(said) == 1, f"every command gets exactly one answer: {said}"
        return f"{said[0].status}: {said[0].reason}"

    def configure(self, model: str, wish: ConfigWish) -> str:
        return self.command(model, Verb.CONFIG, settings=wish)

    # -- what must hold ----------------------------------------------------------------------------------------

    def _check_step(self, model: str, old: State, event: Event, new: State, orders: tuple[effects.Effect, ...]) -> None:
        world = [o for o in orders if isinstance(o, WORLD)]
        kept = [o for o in orders if isinstance(o, effects.Persist)]
        if world:
            assert kept, f"{event} changes the world unrecorded: {world}"
        if kept:
            assert orders[0] is kept[0]
            assert len(kept) == 1
            assert kept[0].state == new, "what is written is what is known"
        for order in orders:
            if isinstance(order, effects.Activate):
                assert not block_reason(new, order.release), "a blocked version is activated"
                self._must_be_fit(new, order.fallback)
            if isinstance(order, effects.Revert):
                self._must_be_fit(new, order.target)
                self._must_be_fit(new, order.fallback)
            if isinstance(order, effects.SetFallback):
                self._must_be_fit(new, order.target)
        others = [s for m, s in self.states.items() if m != model]
        if new.phase is Phase.CANARY:
            assert all(o.phase is not Phase.CANARY for o in others), "the canary's token is held twice"
        if new.phase is Phase.ACTIVATING:
            assert all(o.phase is not Phase.ACTIVATING for o in others), "the load token is held twice"
        switching = new.doing is not None and new.doing.kind in ("activate", "revert")
        if isinstance(event, Learned | Started) and not switching:
            self._must_be_fit(new, new.fallback)
        if new.current is not None and new.link is not None and new.phase is Phase.PROBATION:
            done = new.evidence.total.done
            assert done <= self.produced[new.current, new.link], "evidence of another link was counted"
        if isinstance(event, Finished | Failed):
            expected = {o.id for o in old.owed} | ({old.doing.id} if old.doing is not None else set())
            if event.effect not in expected:
                assert new == old, "a stale answer changes nothing"
                assert not orders

    def _must_be_fit(self, state: State, digest: str | None) -> None:
        if digest is None:
            return
        here = slot(state, digest)
        assert here is not None, "a link to a slot that is not there"
        assert here.confirmed, "a link back to an unconfirmed slot"
        assert not block_reason(state, here.release), f"a blocked version is gone back to: {here.release.version}"

    def _check_disk(self, model: str) -> None:
        """The invariant, at every moment, of links and marks alone; with blocks where nothing is under way."""
        store, state = self.stores[model], self.states[model]
        for named in (store.current, store.fallback):
            assert named is None or named in store.slots, "a link to nowhere"
        moving = bool(state.owed) or (state.doing is not None and state.doing.kind in ("activate", "revert"))
        moving = moving or any(w.model == model for w in self.queues.get(f"store-{model}", ()))

        def fit(digest: str | None) -> bool:
            here = store.slots.get(digest or "")
            return here is not None and here.confirmed and (moving or not block_reason(state, here.release))

        current = store.slots.get(store.current or "")
        if current is None or current.confirmed or fit(store.fallback):
            return
        known = {s.release.digest for s in state.slots}
        if moving:  # what became fit only after the links were ordered is seen to when their answer comes
            known &= self.fit_then[model]
        others = [d for d in store.slots if d != store.current and d in known]
        assert not any(store.slots[d].confirmed and not block_reason(state, store.slots[d].release) for d in others), (
            f"unconfirmed {current.release.version} without a way back: {self.describe()}"
        )

    # -- for people --------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, str]:
        told = {}
        for model, state in self.states.items():
            box = self.inference[model]
            told[model] = (
                f"{state.phase.value} current={self.version(model, state.current)} doing={state.doing} "
                f"waiting={state.waiting!r} runs={self.version(model, box.running)} owed={state.owed} "
                f"chain={[p.value for p in self.chain[model][-12:]]}"
            )
        return told

    def version(self, model: str, digest: str | None) -> str | None:
        known = {r.digest: r.version for r in self.library[model].values()}
        return known.get(digest, digest) if digest is not None else None

    def end_state(self, model: str) -> dict[str, object]:
        """What counts at the end: what runs, what the links say, what is blocked, what is remembered."""
        state, store = self.states[model], self.stores[model]
        return {
            "phase": state.phase,
            "runs": self.version(model, self.inference[model].running),
            "current": self.version(model, store.current),
            "confirmed": store.current is not None and store.slots[store.current].confirmed,
            "fallback": self.version(model, store.fallback),
            "believed": (self.version(model, state.current), self.version(model, state.fallback)),
            "blocks": {b.version: (b.cause, b.reason) for b in state.blocks.values()},
            "withdrawn": sorted(state.withdrawn),
            "pin": state.desired.pin.version if state.desired.pin else None,
            "hold": state.desired.hold is not None,
            "floor": state.floor,
        }


def _hand(model: str, order: effects.Effect) -> str:
    match order:
        case effects.Check():
            return "check"
        case effects.Acquire():
            return "acquire"
        case effects.RunCanary():
            return "canary"
    return f"store-{model}"


def next_look(device: Device, model: str) -> float:
    """Seconds until the driver would look again."""
    state = device.states[model]
    return delay(state, device.ask(model, Elapsed(device.now, device.draw)), device.now)
