"""What a simulated device is made of: releases, slots, links, inference's memory, clocks, and the repository.

    parts = Parts("digits")
    parts.publish("digits", release("digits", 1), Conduct(live="crash"))

Plain data and the outside world's moves; what inference, store and updater do with it is in the files built on this.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from modelagent.core import effects
from modelagent.core.events import Counts, DiskFacts, Event, Instant, Link, SlotFacts, Swap, Withdrawal
from modelagent.core.state import Phase, Rules, State
from modelagent.core.verdicts import Outcome, Verdict
from modelagent.errors import Remedy
from modelagent.manifest import Release

FPS = 10
PEAK_KB = 70_000  # what every canary measures here
ENOUGH = 40  # frames after which the simulated judge decides
PROOF = 20  # pairs that one of two versions has won, after which it does
WORLD = (
    effects.Acquire,
    effects.Stage,
    effects.RunCanary,
    effects.KeepPeak,
    effects.Activate,
    effects.Revert,
    effects.Confirm,
    effects.SetFallback,
    effects.SetShadow,
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
    refuse (cannot be loaded), hang (never comes up, says nothing). `truth`: what labels say of it and of the version
    before it, on the frames that both have read: worse, better or alike.
    """

    canary: tuple[Outcome, ...] = (Outcome.PASS,)
    live: str = "good"
    truth: str = "alike"


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
    """Follows `current`; leaves an unconfirmed version by itself. `left` and `kept` survive its death alone.

    `kept` counts the frames that an activated version and its shadow have both read, and whose labels have not come.
    """

    epoch: str
    alive: bool = True
    link: Link | None = None
    running: str | None = None
    since: float = 0.0
    refused: tuple[str, str, bool] | None = None
    fell_back: tuple[str, str, bool, bool] | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    left: tuple[Link, str, str, bool, bool] | None = None
    kept: Counter[tuple[str, Link]] = field(default_factory=Counter)
    asleep: bool = False  # on: no frames come
    served: str = ""  # whose the last result was
    swap: Swap | None = None


@dataclass(slots=True)
class Work:
    """One effect in the queue of a hand."""

    model: str
    effect: effects.Effect
    abandoned: bool = False
    under_way: bool = False  # given up too late: it is done, and nobody is told


class Parts:
    """Everything there is of a device, before anything happens to it."""

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
        self.drifting: set[str] = set()  # models whose input moves away from what runs
        self.compared: Counter[tuple[str, Link]] = Counter()  # frames that the shadow read as well, under each link
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

    def _point(self) -> None:
        """A place where the power may go."""
        self.points += 1
        if self.points == self.kill_at:
            raise Killed

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
