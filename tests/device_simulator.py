"""A whole device as a program: store, inference, repository, canary, judge, clocks, and the updater's driver.

    device = Device("digits")
    device.publish("digits", release("digits", 1))
    device.settle()                             # until nothing is left to do
    assert device.inference["digits"].running == release("digits", 1).digest

Nothing here is a stub that says yes: the store has slots and links whose identities never repeat, inference follows
`current` by its own rules with its own durable memory, the disk fills up, clocks jump, the power goes. The driver's
part is the real one's: Persist at once, every other effect in the queue of its hand, one event per answer; what
could not be written down is not done, but for going back. `kill_at` ends the updater at the n-th point before,
between or after effects; what survives is the journal and the disk. Both versions read the frames of a comparison;
their labels come when `label` is called, before the confirmation, long after it, or after a restart.

After every step and every change on disk the invariants of the design are checked (`_check_step`, `_check_disk`).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from device_hands import Hands
from device_parts import COSTLY, ENOUGH, FPS, PEAK_KB, PROOF, QUICK, Conduct, Killed, Work, release
from modelagent.core import effects
from modelagent.core.events import ConfigWish, Elapsed, Event, RevertWanted, Runs, Started, Verb, Wanted
from modelagent.core.machine import delay, step
from modelagent.core.state import Answers, Phase, State, block_reason, gather, slot
from modelagent.core.verdicts import Allow, ProbationVerdict, Standing, SteadyVerdict, Verdict, Wait
from modelagent.errors import Remedy

__all__ = ["ENOUGH", "FPS", "PEAK_KB", "QUICK", "Conduct", "Device", "next_look", "release"]

SWITCHED = (Phase.ACTIVATING, Phase.PROBATION, Phase.REVERTING)


class Device(Hands):
    """The device, its updater and its repository."""

    def power_cycle(self, off: float = 30.0) -> None:
        """The mains go: everything in memory is lost, and the clocks begin anew."""
        self.kill()
        self.wall += off
        self.mono = 5.0
        self.boot += 1
        for model in self.models:
            self.end_inference(model)
            self.start_inference(model)

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
            steady=self._steady(state, event),
            rules=self.rules,
        )

    def _judge(self, state: State, event: Event) -> ProbationVerdict:
        if not isinstance(event, Runs):
            return ProbationVerdict(Standing.OPEN, "")
        here, open_test = slot(state, state.current), state.aftercare
        if state.phase not in SWITCHED and open_test is not None and open_test.digest == state.current:
            state = replace(state, evidence=open_test.evidence)
        elif state.candidate is None or here is None or here.release != state.candidate.release:
            return ProbationVerdict(Standing.OPEN, "")
        counts = gather(state, event).total
        if counts.only_old >= PROOF:
            return ProbationVerdict(Standing.BAD, "the previous model is better", evidence={"paired": "high"})
        paired = {"paired": "low" if counts.only_new >= PROOF else "open"}
        if counts.done < ENOUGH or state.candidate is None:
            return ProbationVerdict(Standing.OPEN, "too few frames", evidence=paired)
        live = self._conduct(state.candidate.release.digest).live
        standing = {"bad": Standing.BAD, "open": Standing.OPEN}.get(live, Standing.GOOD)
        return ProbationVerdict(standing, f"{live} after enough frames", evidence=paired)

    def _steady(self, state: State, event: Event) -> SteadyVerdict:
        here = slot(state, state.current)
        if not isinstance(event, Runs) or state.phase in SWITCHED or here is None or not here.confirmed:
            return SteadyVerdict()
        return (
            SteadyVerdict("its input moves away from it", compare=True)
            if state.model in self.drifting
            else SteadyVerdict()
        )

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
