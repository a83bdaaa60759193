"""Things that may happen to a simulated device, in any order, and what must be so after each of them.

    chaos = Chaos(Device("a", "b"))
    for _ in range(200):
        chaos.something(random)         # weighted: mostly time and hands, now and then the world, people, a crash
    chaos.calm_down()                   # everything works again, and comes to rest

The same happenings are given to Hypothesis (which shrinks what it finds) and to seeded runs (which go deeper).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any, Final

from device_simulator import QUICK, Conduct, Device, release
from modelagent.core import effects
from modelagent.core.events import (
    ConfigWish,
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
    Started,
    Verb,
    Wanted,
    Withdrawal,
)
from modelagent.core.machine import delay, step
from modelagent.core.state import Answers, Phase, State, Watching, block_reason, revert_target, slot
from modelagent.core.verdicts import Allow, CanaryVerdict, Outcome, ProbationVerdict, Standing, Wait
from modelagent.errors import Remedy

HIGHEST: Final = 8
# Labels may come so much later that a device has been restarted, or is busy with the next release.
PATIENT: Final = replace(QUICK, label_horizon_s=600.0)
TRUTHS: Final = ("alike", "alike", "worse", "better")
LIVES: Final = ("good", "good", "good", "good", "bad", "open", "crash", "refuse", "hang")
OUTCOMES: Final = (*Outcome, *[Outcome.PASS] * 6)
VERBS: Final = tuple(verb for verb in Verb.ALL if verb != Verb.CONFIG)
HANDS: Final = (
    "Check",
    "Acquire",
    "Stage",
    "RunCanary",
    "Activate",
    "Revert",
    "Confirm",
    "SetFallback",
    "SetShadow",
    "Stop",
)
GATES: Final = ("check", "acquire", "canary", "activate")


class Chaos:
    """What may happen, by name; `given` are the commands with the answers they got."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.given: list[tuple[str, str, str, str, str]] = []

    def provision(self, model: str, many: int, conducts: list[Conduct]) -> None:
        """Versions 1 to `many` are there and good; the later ones behave as told."""
        device = self.device
        for number, conduct in enumerate(conducts, 1):
            known = replace(conduct, live="good") if number <= many else conduct
            device.conduct[release(model, number).digest] = known
        if many:
            device.install(model, *(release(model, n) for n in range(1, many + 1)))

    # -- the world ---------------------------------------------------------------------------------------------

    def name_release(self, model: str, number: int, floor: int = 0) -> None:
        known = self.device.library[model].get(f"1.{number}.0")
        self.device.publish(model, known or release(model, number, floor=floor))

    def jump_clock(self, seconds: float) -> None:
        self.device.wall = max(0.0, self.device.wall + seconds)
        self.device.changed = 0.0

    def move_gate(self, gate: str, *, closed: bool) -> None:
        if closed:
            self.device.gates[gate] = Wait(self.device.wall + 60, "closed", gate)
        else:
            self.device.gates.pop(gate, None)

    def fail_hand(self, hand: str, remedy: Remedy | None) -> None:
        if remedy is None:
            self.device.failing.pop(hand, None)
        else:
            self.device.failing[hand] = remedy

    def move_input(self, model: str, *, away: bool) -> None:
        if away:
            self.device.drifting.add(model)
        else:
            self.device.drifting.discard(model)

    def rot(self, model: str, number: int) -> None:
        here = self.device.stores[model].slots.get(release(model, number).digest)
        if here is not None:
            here.rotten = True

    def power_cycle(self, off: float) -> None:
        self.device.power_cycle(off)
        self.device.changed = 0.0

    def kill_soon(self, points: int, *, power: bool) -> None:
        self.device.kill_at, self.device.power = self.device.points + points, power

    def change_runtime(self, runtime: str) -> None:
        self.device.kill()
        self.device.runtime = runtime

    # -- people ------------------------------------------------------------------------------------------------

    def command(self, model: str, verb: str, number: int) -> None:
        if not self.device.up:
            return
        argument = f"1.{number}.0" if verb in (Verb.PIN, Verb.LIFT, Verb.BLOCK) else "because"
        name = f"given-{len(self.given)}"
        said = self.device.command(model, verb, argument, name=name)
        if said != "killed":
            self.given.append((model, verb, argument, name, said))

    def repeat_command(self, which: int) -> None:
        if not self.device.up or not self.given:
            return
        model, verb, argument, name, said = self.given[which % len(self.given)]
        before = self.device.states[model]
        if not any(s.id == name for s in before.seen):
            return  # it was lost in a crash before it was written down, with its answer
        again = self.device.command(model, verb, argument, name=name)
        if again != "killed":
            assert again == said
            assert self.device.answers[-1].duplicate
            assert replace(self.device.states[model], again=False) == replace(before, again=False)

    def configure(self, model: str, **wish: Any) -> None:
        if self.device.up:
            self.device.configure(model, ConfigWish(**wish))

    # -- messages that come late or twice ----------------------------------------------------------------------

    def late_health(self, which: int) -> None:
        if self.device.up and self.device.heard:
            model, event = self.device.heard[-1 - which % len(self.device.heard)]
            self.device.deliver(model, replace(event, at=self.device.now))

    def answer_twice(self, which: int) -> None:
        if not self.device.up or not self.device.landed:
            return
        model, event = self.device.landed[-1 - which % len(self.device.landed)]
        state = self.device.states[model]
        number = getattr(event, "effect", 0)
        waited = {o.id for o in state.owed} | {state.watch.effect} | ({state.doing.id} if state.doing else set())
        if number not in waited:
            self.device.deliver(model, replace(event, at=self.device.now))
            assert self.device.states.get(model, state) == state, "a stale answer changed something"

    # -- all of it ---------------------------------------------------------------------------------------------

    def something(self, rng: Random) -> None:
        """One happening, weighted so that deployments get far between the disturbances."""
        device = self.device
        model, number = rng.choice(device.models), rng.randint(1, HIGHEST)
        device.draw, device.too_late = rng.random() * 0.99, rng.random() < 0.5
        match rng.choices(range(25), (40, 20, 30, 12, 1, 2, 2, 1, 6, 2, 2, 2, 2, 1, 2, 3, 2, 6, 3, 1, 3, 3, 1, 4, 1))[
            0
        ]:
            case 0:
                device.tick(rng.choice((1.0, 1.0, 2.0, 4.0)), drain=rng.random() < 0.3)
            case 1:
                for _ in range(rng.randint(2, 12)):
                    device.tick()
            case 2:
                device.some_work(rng.randrange(8))
            case 3:
                self.name_release(model, number, rng.choice((0, 0, 0, 2)))
            case 4:
                device.publish(model, None)
            case 5:
                store = device.stores[model]
                named = [s.release for s in store.slots.values()] or [release(model, number)]
                device.withdraw(model, rng.choice([release(model, number), *named]))
            case 6:
                device.withdrawn[model].clear()
            case 7:
                self.jump_clock(rng.choice((-1e9, -3600.0, 3600.0, 1e7)))
            case 8:
                self.move_gate(rng.choice(GATES), closed=rng.random() < 0.4)
            case 9:
                self.fail_hand(rng.choice(HANDS), rng.choice((None, None, *Remedy)))
            case 10:
                switch = rng.choice((effects.Activate, effects.Revert))
                device.broken_after[switch] = rng.choice(("", "", "nothing", "fallback", "current"))
            case 11:
                device.full = rng.random() < 0.4
            case 12:
                self.rot(model, number)
            case 13:
                device.end_inference(model)
            case 14 | 15:
                for name in device.models:
                    device.start_inference(name)
                    device.inference[name].asleep = rng.random() < 0.1
            case 16:
                self.kill_soon(rng.randint(1, 10), power=rng.random() < 0.3)
            case 17:
                self.command(model, rng.choice(VERBS), number)
            case 18:
                self.late_health(rng.randrange(40 if rng.random() < 0.5 else 10**6))
            case 19:
                self.change_runtime(rng.choice(("litert 2", "litert 3")))
            case 20:
                self.answer_twice(rng.randrange(10**6))
            case 21:
                self.repeat_command(rng.randrange(10**6))
            case 22:
                self.configure(
                    model,
                    hold=rng.random() < 0.2,
                    updates=rng.random() < 0.9,
                    pin=rng.choice(("", "", "", "1.2.0")),
                    forbid=rng.choice(((), ("1.3.0",))),
                    safe_action=rng.choice(("stop", "keep-and-alarm")),
                )
            case 23:
                device.label(model)
            case 24:
                self.move_input(model, away=rng.random() < 0.5)
        self.check_rest()

    def check_rest(self) -> None:
        """Looking again without new facts comes to rest, and whoever waits is told why."""
        device = self.device
        for model, kept in device.states.items():
            state: State = kept
            event = Elapsed(device.now, device.draw)
            for _ in range(8):
                state, orders = step(state, event, device.ask(model, event, state))
                if not orders and not state.again:
                    break
            else:
                raise AssertionError(f"{model} does not rest: {device.describe()}")
            assert delay(state, device.ask(model, event, state), device.now) > 0
            if state.phase is Phase.DEFERRED:
                assert state.waiting, "Deferred without a reason"

    def calm_down(self) -> None:
        """When everything works again, everything comes to rest, and State and disk agree."""
        device = self.device
        device.gates.clear()
        device.failing.clear()
        device.drifting.clear()
        device.broken_after.clear()
        device.full, device.kill_at, device.changed = False, -1, 0.0
        device.wall = max(device.wall, 1e6)
        for digest, conduct in device.conduct.items():
            if conduct.live == "open":
                device.conduct[digest] = replace(conduct, live="good")
        for model in device.models:
            device.inference[model].asleep = False
            device.start_inference(model)
        device.settle(2500.0)
        for model, state in device.states.items():
            here = device.stores[model]
            assert (state.current, state.link) == (here.current, here.link)
            assert state.fallback == here.fallback
            open_test = state.aftercare
            wanted = open_test.previous if open_test is not None and open_test.drifted else None
            assert here.shadow == wanted, "the shadow runs while a drift is compared, and no longer"
            assert {s.release.digest for s in state.slots} <= set(here.slots)
            marks = {s.release.digest: s.confirmed for s in state.slots}
            assert state.current is None or marks[state.current] == here.slots[state.current].confirmed


def probes(device: Device, model: str, state: State) -> Iterator[tuple[Event, Answers]]:
    """Events that could come in this state, each with answers that could be given; for `step` alone."""
    now, draw = device.now, 0.5
    link, digest = state.link, state.current
    asks = device.ask(model, Elapsed(now, draw), state)
    closed = Wait(now.wall + 60, "closed", "probe")
    shut = replace(asks, may_acquire=closed, may_canary=closed, may_activate=closed)
    later = Instant(now.wall + 1e5, now.mono + 1e5, now.boot_id)
    free = replace(asks, may_activate=Allow(), load_free=True)
    for answers in (asks, shut, free, replace(asks, may_activate=closed), replace(asks, canary_free=False)):
        yield Elapsed(now, draw), answers
        yield Elapsed(later, draw), answers
    known = [s.release for s in state.slots] + [c.release for c in (state.candidate, state.standby) if c is not None]
    for disk, answers in product(disks(device, model, state), (asks, shut)):
        yield Started(now, draw, disk, device.runtime), answers
    gone = [Withdrawal(r.digest, r.version, "probe") for r in known]
    subsets = [tuple(w for w, take in zip(gone, bits, strict=True) if take) for bits in _subsets(len(gone))]
    for offer, withdrawn in product([None, release(model, HIGHEST + 1), *known], subsets):
        yield Learned(now, draw, state.watch.effect, offer, None, withdrawn), asks
    for number, verb in enumerate((Verb.PIN, Verb.BLOCK, Verb.HOLD, Verb.UNPIN, Verb.LIFT, Verb.CONFIRM)):
        for wanted in known or [release(model, 1)]:
            yield Wanted(now, draw, verb, "cli", f"probe-{number}", wanted.version), asks
    for wish in (ConfigWish(updates=False), replace(state.desired.wish, safe_action="stop")):
        yield Wanted(now, draw, Verb.CONFIG, "config", "probe", settings=wish), asks
    yield RevertWanted(now, draw, "cli", "probe"), asks
    if link is not None and digest is not None:
        for confirmed in (False, True):
            yield FellBack(now, draw, link, digest, "probe", confirmed), asks
            yield Refused(now, draw, link, digest, "probe", confirmed), asks
        soon = replace(state.evidence.last, done=state.evidence.last.done + 1)
        for standing in Standing:
            judged = replace(asks, probation=ProbationVerdict(standing, "probe"))
            yield Runs(now, draw, link, digest, state.evidence.epoch or "probe", soon), judged
    if state.doing is not None:
        yield Finished(now, draw, state.doing.id, link, CanaryVerdict(Outcome.PASS, "probe")), shut
        for outcome in Outcome:
            yield Finished(now, draw, state.doing.id, Link(0, 1), CanaryVerdict(outcome, "probe")), asks
        for remedy, facts in product(Remedy, [None, *disks(device, model, state)]):
            yield Failed(now, draw, state.doing.id, remedy, "probe", "probe", disk=facts), asks


def disks(device: Device, model: str, state: State) -> list[DiskFacts]:
    """What the store may hold: as it is; only the running slot; and links that a foreign hand has moved."""
    here = device.stores[model].facts()
    alone = replace(here, slots=tuple(s for s in here.slots if s.release.digest == here.current), fallback=None)
    moved = [replace(here, current=s.release.digest, link=Link(0, 2)) for s in here.slots]
    return [here, alone, replace(here, current=None, link=None), *moved[:1], *moved[-1:]]


def _subsets(size: int) -> Iterator[tuple[bool, ...]]:
    """None, each alone, each one left out, all."""
    yield (False,) * size
    if size:
        yield (True,) * size
    for one in range(size):
        yield tuple(place == one for place in range(size))
        yield tuple(place != one for place in range(size))


Edge = tuple[Phase, type[Event], Phase]


class Surveyor:
    """Collects the edges that could be taken from the states a run comes through, each kind of state a few times."""

    def __init__(self, often: int = 2) -> None:
        self.edges: set[Edge] = set()
        self._often = often
        self._met: Counter[tuple[object, ...]] = Counter()

    def look(self, device: Device, model: str) -> None:
        """The edges from the present state, and after one more event that surprises."""
        self._look(device, model, device.states[model], 2)
        self.edges |= device.edges

    def _look(self, device: Device, model: str, state: State, depth: int) -> None:
        kind = (depth, *_kind(device, state))
        self._met[kind] += 1
        if self._met[kind] > self._often:
            return
        listening = replace(state, watch=replace(state.watch, kind=Watching.CHECKING))
        for event, answers in probes(device, model, state):
            try:
                after, _ = step(listening if isinstance(event, Learned) else state, event, answers)
            except KeyError as missing:
                raise AssertionError(f"no cell for {state.phase} x {type(event).__name__}") from missing
            if after.phase is not state.phase:
                self.edges.add((state.phase, type(event), after.phase))
            if depth > 1 and (isinstance(event, Started | Failed | Learned) or _stops(event)):
                self._look(device, model, after, depth - 1)


def _kind(device: Device, state: State) -> tuple[object, ...]:
    """What of a state decides which edges it has."""
    here, candidate = slot(state, state.current), state.candidate
    return (
        state.phase,
        state.doing.kind if state.doing else "",
        (candidate.way, candidate.reached, candidate.release.digest == state.current) if candidate else None,
        bool(candidate and block_reason(state, candidate.release)),
        state.standby is not None,
        here is None,
        here is not None and here.confirmed,
        state.current in state.blocks,
        state.current in state.withdrawn,
        revert_target(state, state.current) is not None,
        state.attempts.failures >= device.rules.attempts - 1,
        state.desired.wish.safe_action,
        state.timer is None,
        state.aftercare is not None and state.aftercare.digest == state.current,
    )


def _stops(event: Event) -> bool:
    return isinstance(event, Wanted) and event.settings is not None and event.settings.safe_action == "stop"


def seeded(seed: int, steps: int, watch: Callable[[Device, str], None] | None = None) -> Device:
    """One whole run: two models, some history, `steps` happenings, and the calm after.

    `watch` is told after every change of phase.
    """
    rng = Random(seed)
    chaos = Chaos(Device("a", "b", rules=PATIENT, vacuum=rng.random() < 0.7))
    for model in chaos.device.models:
        conducts = [
            Conduct(tuple(rng.choices(OUTCOMES, k=rng.randint(1, 3))), rng.choice(LIVES), rng.choice(TRUTHS))
            for _ in range(HIGHEST)
        ]
        chaos.provision(model, rng.randint(0, 3), conducts)

    def stepped(model: str, old: State, event: Event, new: State, orders: tuple[effects.Effect, ...]) -> None:
        if watch is not None and (new.phase is not old.phase or new.doing != old.doing or new.slots != old.slots):
            watch(chaos.device, model)

    chaos.device.after_step = stepped
    for _ in range(steps):
        chaos.something(rng)
    chaos.calm_down()
    return chaos.device
