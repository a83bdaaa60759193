"""Days in a second: the real policies and the real machine over a trace, with a made-up device around them.

This file knows how long things take on the made-up device. It decides nothing: every decision is the machine's, on
the answers that the updater's own `Answerer` gives. No clock is read, nothing is written, nothing is fetched.

    outcome = simulate(settings, traces.parse(text))
    outcome.checks, outcome.bytes, outcome.entries[0].text

The driver of a real device looks every minute at the latest, since facts change by themselves. Here they change at
the trace's lines and nowhere else, so between two lines only what was waited for by the clock is woken for.
"""

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from modelagent.core import effects
from modelagent.core.events import (
    CheckFailed,
    Counts,
    DiskFacts,
    Elapsed,
    Event,
    FellBack,
    Finished,
    Instant,
    Learned,
    Link,
    RevertWanted,
    Runs,
    SlotFacts,
    Started,
    Verb,
    Wanted,
    Withdrawal,
)
from modelagent.core.machine import delay, step
from modelagent.core.state import Phase, State
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.errors import Remedy
from modelagent.inputs.config import Model, Settings
from modelagent.inputs.edits import wishes
from modelagent.manifest import Release
from modelagent.policies import Facts
from modelagent.updater.answers import Answerer
from modelagent.updater.traces import Change, Offered, Trace

_DAY: Final = 86400.0
_RATE_BPS: Final = 8e6  # where the trace tells none
_LITTLE_S: Final = 1.0  # a check, staging, a switch
_LOOK_S: Final = 4.0  # between two health records while a switch is under way
_DRAW: Final = 0.5  # no chance: the same trace gives the same days
_RUNTIME: Final = "simulated 1.0"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that would have happened at `wall` (the device's own clock); `bytes` came over the link for it.

    `after` is the true time, in seconds since the trace's start.
    """

    wall: float
    after: float
    kind: str
    text: str
    bytes: int = 0
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Days:
    """What the days came to. `checks` are wall times."""

    entries: tuple[Entry, ...]
    checks: tuple[float, ...]
    downloads: int
    activations: int
    bytes: int
    steps: int
    state: State


def simulate(settings: Settings, trace: Trace) -> Days:
    """Replay the trace under these settings."""
    return _World(settings, trace).run()


@dataclass
class _Fetch:
    """A download under way: since when, and of what."""

    effect: int
    digest: str
    since: float
    rate: float  # bytes a second
    brought: float = 0.0


@dataclass(order=True)
class _Due:
    at: float
    place: int
    effect: int = field(compare=False)
    make: Callable[[Instant], Event] = field(compare=False)


class _World:
    """The made-up device: its clocks, disk, link and inference."""

    def __init__(self, settings: Settings, trace: Trace) -> None:
        model = settings.models.get(trace.model, Model())
        self._settings = settings.model_copy(update={"models": {trace.model: model}})
        self._trace = trace
        self._now = 0.0  # true seconds since the start
        self._clock = 0.0  # by which the device's wall clock is wrong
        self._boot, self._boots = 0.0, 1
        self._on = self._server = True
        self._facts: dict[str, Any] = {}
        self._offered: Offered | None = None
        self._known: dict[str, Offered] = {}  # by digest
        self._withdrawn: tuple[str, ...] = ()
        self._slots: dict[str, SlotFacts] = {}
        self._current: str | None = None
        self._fallback: str | None = None
        self._link: Link | None = None
        self._links = 0
        self._active_since = 0.0
        self._have: dict[str, float] = {}  # bytes of unfinished downloads
        self._fetch: _Fetch | None = None
        self._spent, self._day_began = 0.0, 0.0
        self._due: list[_Due] = []
        self._place = self._steps = 0
        self._entries: list[Entry] = []
        self._checks: list[float] = []
        self._bytes = self._downloads = self._activations = 0
        self._state = State(trace.model)
        self._ask = Answerer(self._settings, self._read, remember=False, recheck_s=_DAY)
        if trace.running:
            release = self._release(Offered(trace.running, 0, 1000))
            self._slots[release.digest] = SlotFacts(release, confirmed=True)
            self._current, self._link = release.digest, self._new_link()

    def run(self) -> Days:
        """Turn until the days are over."""
        end, changes, place = self._trace.days * _DAY, self._trace.changes, 0
        while place < len(changes) and changes[place].at <= 0:
            self._change(changes[place], quiet=True)
            place += 1
        if self._on:
            self._start()
        while True:
            coming = changes[place].at if place < len(changes) else end
            happening = self._due[0].at if self._due else end
            wake = self._wake()
            self._now = min(coming, happening, wake, end)
            if self._now >= end:
                break
            if happening <= self._now:
                self._step(heapq.heappop(self._due).make(self._at()))
            elif place < len(changes) and coming <= self._now:
                self._change(changes[place])
                place += 1
            else:
                self._step(Elapsed(self._at(), _DRAW))
        self._settle_fetch()
        return Days(
            tuple(self._entries),
            tuple(self._checks),
            self._downloads,
            self._activations,
            self._bytes,
            self._steps,
            self._state,
        )

    # -- time ----------------------------------------------------------------------------------------------------

    def _at(self) -> Instant:
        return Instant(
            self._trace.start + self._now + self._clock, 30.0 + self._now - self._boot, f"boot-{self._boots}"
        )

    def _wake(self) -> float:
        if not self._on:
            return self._trace.days * _DAY
        return self._now + delay(self._state, self._answers, self._at(), longest=_DAY)

    def _later(self, seconds: float, effect: int, make: Callable[[Instant], Event]) -> None:
        self._place += 1
        heapq.heappush(self._due, _Due(self._now + seconds, self._place, effect, make))

    def _forget(self, effect: int) -> None:
        self._due = [due for due in self._due if due.effect != effect]
        heapq.heapify(self._due)

    # -- the trace -----------------------------------------------------------------------------------------------

    def _change(self, change: Change, *, quiet: bool = False) -> None:
        self._facts.update(change.facts)
        if change.facts.get("alarm"):
            self._facts["alarm"] = self._at().wall
        elif "alarm" in change.facts:
            self._facts["alarm"] = None
        world = change.world
        self._clock += world.get("clock", 0.0)
        self._server = bool(world.get("server", self._server))
        self._withdrawn = world.get("withdrawn", self._withdrawn)
        if "release" in world:
            self._offered = world["release"]
        if "rate_bps" in change.facts and self._fetch is not None:  # what is under way goes on at the new rate
            self._go_on_fetching()
        if quiet:
            self._on = bool(world.get("power", self._on))
            return
        if "power" in world and world["power"] != self._on:
            self._switch(bool(world["power"]))
        if not self._on:
            return
        if "want" in world:
            verb, argument = world["want"]
            self._note("command", f"{verb} {argument}".strip())
            name = f"trace-{self._now:g}"
            if verb == Verb.ROLLBACK:
                self._step(RevertWanted(self._at(), _DRAW, "trace", name, argument))
            else:
                self._step(Wanted(self._at(), _DRAW, verb=verb, origin="trace", id=name, argument=argument))
        self._step(Elapsed(self._at(), _DRAW))

    def _switch(self, on: bool) -> None:
        self._on = on
        self._note("power", "on" if on else "off")
        if not on:
            self._settle_fetch()
            self._due.clear()
            return
        self._boot, self._boots = self._now, self._boots + 1
        self._start()

    def _start(self) -> None:
        disk = DiskFacts(tuple(self._slots.values()), self._current, self._link, self._fallback)
        self._step(Started(self._at(), _DRAW, disk, _RUNTIME))
        for _, make in wishes(self._settings):
            self._step(make(self._at(), _DRAW))

    # -- facts ---------------------------------------------------------------------------------------------------

    def _read(self, at: Instant, _model: str) -> Facts:
        trace = self._trace
        began = trace.start + self._clock + self._boot
        facts = Facts(at, seed=trace.seed, groups=trace.groups, hardware=trace.hardware, started=began, **self._facts)
        budget = self._settings.repository.daily_mb * 1e6
        if budget and facts.budget_left is None:
            self._settle_fetch(go_on=True)
            if self._now - self._day_began >= _DAY:
                self._spent, self._day_began = 0.0, self._now
            facts = replace(facts, budget_left=max(0.0, budget - self._spent))
        return facts

    # -- the machine ---------------------------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        for _ in range(64):
            self._steps += 1
            self._answers = self._ask(self._state, event, ())
            before = self._state.phase
            self._state, orders = step(self._state, event, self._answers)
            for order in orders:
                self._carry_out(order)
            if self._state.phase is not before and self._state.phase in _WATCHED:
                self._later(_LITTLE_S, -1, self._health)
            if not self._state.again:
                return
            event = Elapsed(self._at(), _DRAW)
        raise AssertionError("the machine asked to look again 64 times in a row")

    def _carry_out(self, order: effects.Effect) -> None:
        match order:
            case effects.Tell():
                for note in order.notes:
                    self._note(note.kind, note.text, level=note.level)
            case effects.Check():
                self._later(_LITTLE_S, order.id, lambda at: self._check(order, at))
            case effects.Acquire():
                self._begin_fetching(order)
            case effects.Abandon():
                if self._fetch is not None and self._fetch.effect == order.target:
                    self._settle_fetch()
                self._forget(order.target)
            case effects.RunCanary():
                outcome = Outcome(self._known[order.release.digest].canary)
                verdict = CanaryVerdict(outcome, "as the trace says")
                self._finish(order, self._trace.canary_s, verdict=verdict)
            case effects.Stage():
                self._slots[order.release.digest] = SlotFacts(order.release, confirmed=False)
                self._finish(order, link=self._new_link())
            case effects.Activate():
                self._activations += 1
                self._point(order.release.digest)
                self._finish(order, link=self._link)
            case effects.Revert():
                if order.unconfirm and order.leaving in self._slots:
                    self._slots[order.leaving] = replace(self._slots[order.leaving], confirmed=False)
                self._point(order.target)
                self._finish(order, link=self._link)
            case effects.Confirm():
                digest = order.release.digest
                self._slots[digest] = replace(self._slots[digest], confirmed=True)
                self._finish(order)
            case effects.SetFallback():
                self._fallback = order.target
                self._finish(order)
            case effects.Stop():
                self._current = self._link = None
                self._finish(order)
            case effects.Vacuum():
                self._slots = {digest: slot for digest, slot in self._slots.items() if digest in order.keep}
            case effects.SetShadow():
                self._finish(order)

    def _finish(self, order: effects.Effect, seconds: float = _LITTLE_S, **result: Any) -> None:
        number = order.id
        self._later(seconds, number, lambda at: Finished(at, _DRAW, number, **result))

    def _check(self, order: effects.Check, at: Instant) -> Event:
        if not self._server or self._facts.get("link_up") is False:
            return CheckFailed(at, _DRAW, order.id, Remedy.RETRY, "unreachable", "the server does not answer")
        self._take(self._trace.check_bytes)
        self._checks.append(at.wall)
        named = self._offered
        self._note("check", f"{named.version} is offered" if named else "nothing is offered", self._trace.check_bytes)
        pinned = next((self._release(one) for one in self._known.values() if one.version == order.pin), None)
        versions = {version: _digest(self._trace.model, version) for version in self._withdrawn}
        return Learned(
            at,
            _DRAW,
            order.id,
            self._release(named) if named else None,
            pinned,
            tuple(Withdrawal(digest, version, "as the trace says") for version, digest in versions.items()),
            named.waves if named else (),
        )

    def _health(self, at: Instant) -> Event:
        """What inference would say; it goes on saying it while somebody listens."""
        pause = self._settings.models[self._trace.model].probation.seconds / 10
        if self._state.phase in _WATCHED:
            self._later(
                max(_LITTLE_S, min(60.0, pause)) if self._state.phase is Phase.PROBATION else _LOOK_S, -1, self._health
            )
        ran = max(0.0, self._now - self._active_since)
        known = self._known.get(self._current or "")
        if (
            self._state.phase is Phase.PROBATION
            and known is not None
            and known.live == "crash"
            and self._link is not None
        ):
            return FellBack(
                at, _DRAW, link=self._link, digest=self._current or "", reason="it crashes", confirmed=False
            )
        frames = int(ran * self._trace.fps)
        counts = Counts(frames=frames, done=frames, busy_s=int(ran))
        return Runs(at, _DRAW, self._link, self._current, f"epoch-{self._boots}-{self._links}", counts)

    # -- downloads -----------------------------------------------------------------------------------------------

    def _begin_fetching(self, order: effects.Acquire) -> None:
        rate = (self._facts.get("rate_bps") or _RATE_BPS) / 8
        self._fetch = _Fetch(order.id, order.release.digest, self._now, rate)
        left = max(0.0, order.release.size - self._have.get(order.release.digest, 0.0))

        def done(at: Instant) -> Event:
            self._settle_fetch()
            self._have.pop(order.release.digest, None)
            self._downloads += 1
            return Finished(at, _DRAW, order.id)

        self._later(left / rate, order.id, done)

    def _go_on_fetching(self) -> None:
        fetch = self._fetch
        assert fetch is not None  # noqa: S101 - the caller looked
        self._settle_fetch()
        self._forget(fetch.effect)
        release = self._release(self._known[fetch.digest])
        self._begin_fetching(effects.Acquire(self._trace.model, fetch.effect, release))

    def _settle_fetch(self, *, go_on: bool = False) -> None:
        """Count what a download has brought so far."""
        fetch = self._fetch
        if fetch is None:
            return
        size = self._known[fetch.digest].size
        had = self._have.get(fetch.digest, 0.0)
        has = min(float(size), had + (self._now - fetch.since) * fetch.rate)
        self._have[fetch.digest] = has
        self._take(has - had)
        fetch.brought += has - had
        if go_on:
            fetch.since = self._now
            return
        self._fetch = None
        version = self._known[fetch.digest].version
        self._note("download", f"{version}: {has / 1e6:.1f} of {size / 1e6:.1f} MB are here", round(fetch.brought))

    def _take(self, count: float) -> None:
        self._bytes += round(count)
        self._spent += count

    # -- the rest ------------------------------------------------------------------------------------------------

    def _release(self, offered: Offered) -> Release:
        digest = _digest(self._trace.model, offered.version)
        self._known.setdefault(digest, offered)
        file = hashlib.sha256(digest.encode()).hexdigest()
        return Release(self._trace.model, offered.version, digest, offered.number, 0, file, offered.size, 0.0)

    def _point(self, digest: str) -> None:
        self._current, self._link, self._active_since = digest, self._new_link(), self._now

    def _new_link(self) -> Link:
        self._links += 1
        return Link(self._links, self._links)

    def _note(self, kind: str, text: str, count: int = 0, level: str = "info") -> None:
        self._entries.append(Entry(self._at().wall, self._now, kind, text, count, level))


_WATCHED: Final = frozenset({Phase.ACTIVATING, Phase.PROBATION, Phase.REVERTING})


def _digest(model: str, version: str) -> str:
    return hashlib.sha256(f"{model} {version}".encode()).hexdigest()


def gaps(checks: Sequence[float]) -> tuple[float, float] | None:
    """The shortest and longest time between two checks, in seconds."""
    between = [after - before for before, after in pairwise(checks)]
    return (min(between), max(between)) if between else None
