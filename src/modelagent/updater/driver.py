"""The driver: one queue in, one step, effects out.

This file knows the order of things: it stamps every event with both clocks and a draw, asks policies and judges,
turns the crank, and carries the effects out in the order in which they come. It decides nothing itself: a decision
found here belongs into `core`, `policies` or `judges`.

    driver = Driver(models, ports, clock=Clock(), ask=answers)
    driver.run(stop)                       # until stop() is True

A programmer error is not caught: the process ends, is started again, and Started makes it go on from what is true.
"""

import contextlib
import logging
import queue
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from modelagent import durable
from modelagent.core import effects
from modelagent.core.events import (
    CheckFailed,
    DiskFacts,
    Elapsed,
    Event,
    Failed,
    Instant,
    Learned,
    Link,
    Started,
)
from modelagent.core.machine import delay, step
from modelagent.core.state import Answers, Phase, State
from modelagent.errors import AgentError
from modelagent.inputs import EventFactory, Reply
from modelagent.inputs.commands import Request, answer
from modelagent.inputs.health import Poller, Reading
from modelagent.sinks import Sinks
from modelagent.steps.acquire import Acquirer, Checked
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.journal import Journal
from modelagent.steps.slots import SlotStore
from modelagent.updater.hands import Hands, Work, finished

_log = logging.getLogger("modelagent.updater")
# In Idle nobody waits for an answer, and inference has protected itself already.
_LOOK_S: Final = {Phase.IDLE: 4.0, Phase.ACTIVATING: 0.2, Phase.PROBATION: 1.0, Phase.REVERTING: 0.2}
_LOOK_OTHERWISE_S: Final = 2.0
_AGAIN_MAX: Final = 32  # steps in a row that ask to look again; more would be a machine that never rests


class Clock(Protocol):
    """Where the moment comes from."""

    def now(self) -> Instant:
        """Both clocks and the boot's id."""


class Ports(NamedTuple):
    """What one model's effects are carried out with."""

    store: SlotStore
    journal: Journal[State]
    poller: Poller
    canary: CanaryRunner


class Ask(Protocol):
    """Who answers for policies, judges and the device."""

    def __call__(self, state: State, event: Event, others: Sequence[State]) -> Answers:
        """The answers for this state at this event; `others` hold the device's tokens."""


class _Item(NamedTuple):
    """One entry of the queue; `asker` is the command's id and whom to tell."""

    model: str
    make: EventFactory
    asker: tuple[str, Reply] | None = None


class Driver:
    """Runs the machines of all models of one device on one thread."""

    def __init__(
        self,
        ports: Mapping[str, Ports],
        *,
        clock: Clock,
        ask: Ask,
        acquirer: Acquirer,
        sinks: Sinks,
        runtime: str,
        incoming: Path,
        vacuum: tuple[float, int],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Nothing happens before `start`. `vacuum`: age in seconds and total bytes for what nobody names."""
        self._ports = ports
        self._clock = clock
        self._ask = ask
        self._acquirer = acquirer
        self._sinks = sinks
        self._runtime = runtime
        self._incoming = incoming
        self._vacuum = vacuum
        self._draw = draw
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self.hands = Hands(self.post)
        self.states: dict[str, State] = {}
        self.answers: dict[str, Answers] = {}
        self.readings: dict[str, Reading] = {}
        self._replies: dict[str, list[Reply]] = {}
        self.unkept: dict[str, str] = {}  # models whose newest state the disk has refused, and why
        self._next_look = 0.0
        self._due: dict[str, float] = {}  # monotonic seconds of each model's next Elapsed

    # -- what comes in -----------------------------------------------------------------------------------------

    def post(self, model: str, make: EventFactory) -> None:
        """Queue an event for one model; callable from any thread, never blocks."""
        self._queue.put(_Item(model, make))

    def submit(self, request: Request, reply: Reply) -> None:
        """Queue a command; answers go to `reply`. Called by the inputs' threads; raises AgentError as a refusal."""
        models = [request.model] if request.model else list(self._ports)
        unknown = [name for name in models if name not in self._ports]
        if unknown or not models:
            known = ", ".join(self._ports) or "none"
            reply(
                answer(request.id, "refused", f"no model {request.model!r} here; configured: {known}", code="no-model")
            )
            return
        if len(models) > 1 and request.verb in ("pin", "rollback", "lift", "block", "confirm", "set-channel"):
            reply(answer(request.id, "refused", f"name one model: {', '.join(models)}", code="which-model"))
            return
        for place, name in enumerate(models):
            if place == 0:
                self.command(name, request.id, request.event, reply)
            else:
                self.post(name, request.event)

    def command(self, model: str, command: str, make: EventFactory, reply: Reply) -> None:
        """Queue one command for one model."""
        self._queue.put(_Item(model, make, (command, reply)))

    def wake(self) -> None:
        """Make `run` look at its stop condition, and at everything else."""
        self._queue.put(None)

    # -- the loop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load every model's state, look at its disk, and begin with Started."""
        for name, port in self._ports.items():
            kept, remarks = port.journal.load()
            for remark in remarks:
                _log.warning("%s: %s", name, remark)
            self.states[name] = kept if kept is not None else State(name)
            self.answers[name] = Answers()
        for name, port in self._ports.items():
            disk = port.store.facts()
            self._turn(name, lambda at, draw, disk=disk: Started(at, draw, disk, self._runtime))  # type: ignore[misc]

    def run(self, stopping: Callable[[], bool], beat: Callable[[], None]) -> None:
        """Turn until `stopping()`; `beat` is called at every turn (watchdog, status)."""
        self.hands.prepare("check", "acquire", "canary", *(f"store-{name}" for name in self._ports))
        while not stopping():
            pause = min([self._next_look, *self._due.values()]) - self._clock.now().mono
            try:
                item = self._queue.get(timeout=pause) if pause > 0 else self._queue.get_nowait()
            except queue.Empty:
                pass
            else:
                if item is not None:
                    self._take(item)
                else:
                    self._due = dict.fromkeys(self.states, 0.0)
            if not stopping():
                self.hands.check()
                self._look()
                self._turn_due()
            beat()

    def _turn_due(self) -> None:
        """Bring an Elapsed to the models whose time it is; looking at health alone asks no policy anything."""
        now = self._clock.now().mono
        for name in self.states:
            if now >= self._due.get(name, 0.0):
                self._turn(name, Elapsed)

    def settle(self, limit: float) -> None:
        """For offline commands: take in what comes until no effect is under way, at most `limit` seconds."""
        end = self._clock.now().mono + limit
        while True:
            busy = any(state.doing is not None for state in self.states.values())
            left = end - self._clock.now().mono
            try:
                item = self._queue.get(timeout=left) if busy and left > 0 else self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                self._take(item)

    def _take(self, item: "_Item") -> None:
        if item.asker is not None:
            self._replies.setdefault(item.asker[0], []).append(item.asker[1])
        self._turn(item.model, item.make)

    def _look(self) -> None:
        """Read the health files when it is time."""
        now = self._clock.now()
        if now.mono < self._next_look:
            return
        gap = _LOOK_S[Phase.IDLE]
        for name, port in self._ports.items():
            reading = port.poller.poll(now.mono)
            self.readings[name] = reading
            for make in reading.events:
                self._turn(name, make)
            gap = min(gap, _LOOK_S.get(self.states[name].phase, _LOOK_OTHERWISE_S))
        self._next_look = now.mono + gap
        durable.tidy()
        for name in tuple(self.unkept):  # nothing may happen for hours that would write it
            with contextlib.suppress(AgentError):
                self._ports[name].journal.write(self.states[name], ())
                self.unkept.pop(name, None)

    def _turn(self, name: str, make: EventFactory) -> None:
        """One event, and as many looks as the machine asks for."""
        self._step(name, make(self._clock.now(), self._draw()))
        for _ in range(_AGAIN_MAX):
            if not self.states[name].again:
                return
            self._step(name, Elapsed(self._clock.now(), self._draw()))
        raise AssertionError(f"{name}: the machine asked to look again {_AGAIN_MAX} times in a row")

    def _step(self, name: str, event: Event) -> None:
        state = self.states[name]
        others = [other for key, other in self.states.items() if key != name]
        answers = self._ask(state, event, others)
        self.answers[name] = answers
        self.states[name], orders = step(state, event, answers)
        due = event.at.mono + delay(self.states[name], answers, event.at)
        # Only an Elapsed puts it off: other events, which may come all the time, can but bring it nearer.
        self._due[name] = due if isinstance(event, Elapsed) else min(due, self._due.get(name, due))
        phase = self.states[name].phase
        if phase is not state.phase and phase in _LOOK_S:  # somebody waits for what health says next
            self._next_look = min(self._next_look, event.at.mono + _LOOK_S[phase])
        self._carry_out(name, orders)

    # -- what goes out -----------------------------------------------------------------------------------------

    def _carry_out(self, name: str, orders: Sequence[effects.Effect]) -> None:
        unkept: AgentError | None = None
        for order in orders:
            match order:
                case effects.Persist():
                    try:
                        self._ports[name].journal.write(order.state, order.notes)
                        self.unkept.pop(name, None)
                    except AgentError as error:
                        unkept = error
                        self.unkept[name] = error.message
                        _log.error("%s: state cannot be kept: %s", name, error.message)
                case effects.Tell():
                    self._sinks.send(name, self._clock.now(), order.notes)
                case effects.Answer():
                    # Going back is done although it cannot be written down, and must not be called undone.
                    done = any(isinstance(other, effects.Revert) for other in orders)
                    self._answer(order, unkept, done=done)
                case _ if unkept is not None and not isinstance(order, effects.Revert | effects.Abandon):
                    # What could not be written down must not be done; going back alone must be, whatever the disk says.
                    self._refuse(name, order, unkept)
                case _:
                    self._order(name, order)

    def _answer(self, order: effects.Answer, unkept: AgentError | None, *, done: bool) -> None:
        waiting = self._replies.get(order.command)
        if not waiting:
            return
        reply = waiting.pop(0)
        if not waiting:
            del self._replies[order.command]
        if unkept is not None and done:
            reason = f"{order.reason}; it is not written down yet: {unkept.message}"
            reply(answer(order.command, order.status, reason))
        elif unkept is not None:
            reply(answer(order.command, "failed", unkept.message, code=unkept.code))
        else:
            more = {"duplicate": True} if order.duplicate else {}
            reply(answer(order.command, order.status, order.reason, **more))

    def _refuse(self, name: str, order: effects.Effect, why: AgentError) -> None:
        if not order.id:
            return
        if isinstance(order, effects.Check):
            self.post(name, lambda at, draw: CheckFailed(at, draw, order.id, why.remedy, why.code, why.message))
        else:
            self.post(name, lambda at, draw: Failed(at, draw, order.id, why.remedy, why.code, why.message))

    def _order(self, name: str, order: effects.Effect) -> None:
        store, hands = self._ports[name].store, self.hands
        match order:
            case effects.Check():
                hands.do("check", name, order.id, lambda _: {"checked": self._check(order)}, _learned)
            case effects.Acquire():
                hands.do("acquire", name, order.id, lambda work: self._acquire(order, work))
            case effects.RunCanary():
                hands.do("canary", name, order.id, lambda work: self._run_canary(order, self._ports[name], work))
            case effects.Abandon():
                hands.abandon(name, order.target)
            case effects.Stage():
                shared = self._wanted_by_others(name)
                self._store(
                    name, order, lambda: store.stage(order.release.digest, self._incoming, order.fallback, shared)
                )
            case effects.KeepPeak():
                self._store(name, order, lambda: store.keep_peak(order.release.digest, order.peak_kb))
            case effects.Activate():
                self._store(name, order, lambda: store.activate(order.release.digest, order.fallback, order.shadow))
            case effects.Revert():
                self._store(
                    name,
                    order,
                    lambda: store.revert(order.leaving, order.target, order.fallback, unconfirm=order.unconfirm),
                )
            case effects.Confirm():
                self._store(name, order, lambda: store.confirm(order.release.digest))
            case effects.SetFallback():
                self._store(name, order, lambda: store.set_fallback(order.target))
            case effects.SetShadow():
                self._store(name, order, lambda: store.set_shadow(order.target))
            case effects.Stop():
                self._store(name, order, store.stop)
            case effects.Vacuum():
                partials = {*order.partials, *self._wanted_by_others(name)}
                age, size = self._vacuum
                now = self._clock.now().wall
                self._store(name, order, lambda: store.vacuum(order.keep, partials, age, size, now))
            case _:
                raise AssertionError(f"no hand for {order}")

    def _store(self, name: str, order: effects.Effect, call: Callable[[], object]) -> None:
        """Queue one operation of the model's store; they are done one after another, on one thread."""
        store = self._ports[name].store

        def operate(_: Work) -> Mapping[str, Any]:
            result = call()
            for warning in store.warnings:
                _log.warning("%s", warning)
            return {"link": result} if isinstance(result, Link) else {}

        def answered(work: Work, outcome: Mapping[str, Any] | AgentError) -> EventFactory:
            make = finished(work, outcome)
            if not isinstance(outcome, AgentError) or not isinstance(order, effects.Activate | effects.Revert):
                return make
            disk: DiskFacts | None = None
            with contextlib.suppress(AgentError):  # a switch that failed may have been made all the same
                disk = store.facts()

            def with_disk(at: Instant, draw: float) -> Event:
                event = make(at, draw)
                return replace(event, disk=disk) if isinstance(event, Failed) else event

            return with_disk

        self.hands.do(f"store-{name}", name, order.id, operate, answered)

    def _check(self, order: effects.Check) -> Checked:
        return self._acquirer.check(order.model, order.channel, order.pin)

    def _acquire(self, order: effects.Acquire, work: Work) -> Mapping[str, Any]:
        def progress(done: int, total: int) -> None:
            del total
            work.progress = done

        self._acquirer.acquire(order.release, progress, work.abandoned)
        return {}

    def _run_canary(self, order: effects.RunCanary, port: Ports, work: Work) -> Mapping[str, Any]:
        store, digest = port.store, order.release.digest
        baseline = store.path(order.baseline) if order.baseline else None
        criteria = store.manifest(digest)
        return {"verdict": port.canary.run(store.path(digest), baseline, order.run, criteria, work.abandoned)}

    def _wanted_by_others(self, name: str) -> tuple[str, ...]:
        """Files in incoming/ that other models' releases may still need."""
        wanted = []
        for other, state in self.states.items():
            for known in (state.candidate.release if state.candidate else None, state.desired.offer):
                if other != name and known is not None:
                    wanted += [known.digest, known.model_file]
        return tuple(wanted)


def _learned(work: Work, outcome: Mapping[str, Any] | AgentError) -> EventFactory:
    def make(at: Instant, draw: float) -> Event:
        if isinstance(outcome, AgentError):
            after = float(getattr(outcome, "retry_after", 0.0))
            return CheckFailed(at, draw, work.effect, outcome.remedy, outcome.code, outcome.message, after)
        found: Checked = outcome["checked"]
        return Learned(
            at,
            draw,
            work.effect,
            found.offer,
            found.pinned,
            found.withdrawn,
            found.waves,
            found.notes,
        )

    return make
