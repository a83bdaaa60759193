"""The updater's process: repository, policies, canary, links; never a model in its own memory.

This file knows how the parts are put together from the settings, and the process's life: lock, start, signals, end.
What the parts do is theirs.

    run(settings)                          # until SIGTERM; 0
    rollback_offline(settings, "digits")   # the same step in the updater's stead, without a network
"""

import contextlib
import fcntl
import logging
import os
import random
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from modelagent import __version__, durable
from modelagent.core.describe import describe
from modelagent.core.events import Instant, RevertWanted, Verb, Wanted
from modelagent.core.state import State, version
from modelagent.errors import AgentError, DeviceError, UsageError
from modelagent.inputs import EventFactory, Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.config import Settings
from modelagent.inputs.control import ControlServer
from modelagent.inputs.device import Device, reaches_out
from modelagent.inputs.edits import Edits, changed_keys, wishes
from modelagent.inputs.health import Poller, queue_fill, reader, running_of
from modelagent.inputs.labels import collect, spool, sweep
from modelagent.inputs.latency import RecentLatency
from modelagent.inputs.ledger import Ledger
from modelagent.inputs.model_schema import Runtime
from modelagent.inputs.mqtt import Session
from modelagent.inputs.networkmanager import Metered
from modelagent.notify import notify
from modelagent.policies import Facts
from modelagent.sinks import Sink, Sinks
from modelagent.sinks.journal import JournalSink
from modelagent.sinks.log import LogSink
from modelagent.sinks.mqtt import BrokerSink
from modelagent.sinks.watch import WatchSink
from modelagent.steps.canary import CanaryRunner
from modelagent.steps.journal import Journal, read_history
from modelagent.steps.slots import SlotStore
from modelagent.updater.answers import Answerer
from modelagent.updater.driver import Driver, Ports
from modelagent.updater.sticks import Sticks
from modelagent.updater.traces import line_of
from modelagent.updater.view import explain, summary
from modelagent.updater.way import acquirer_of

_log = logging.getLogger("modelagent.updater")
_PARTIAL_AGE_S = 7 * 86400.0  # what nobody wants any more goes after a week
_STATUS_S = 5.0  # between two signs of life to systemd's watchdog; a new status is told at once
_SWEEP_S = 3600.0
_DROP_S = 60.0  # between two looks for dropped labels
_FACTS_S = 2.0  # how old the device's facts may be
_THREADS_S = 20  # for the threads to be there: milliseconds, unless one of them never comes
# Without a turn for so long the kernel ends the process (SIGALRM), as the unit's WatchdogSec does under systemd: that
# needs neither memory nor a thread of ours, and holds in a container too. A slow disk's longest sync has to fit.
_STILL_S = 60
_OFFLINE_S = 30.0  # for the store to make an offline revert durable
# What is read once at the start; an edit of these is remembered and takes effect at the next start.
_FIXED = (
    *("paths.", "repository.", "clock.", "mqtt.", "control.", "device.", "log."),
    *("limits.canary.", "limits.disk_reserve_mb", "limits.max_store_mb"),
)
# The same of each model: what its canary and the look at a release's delegate go by.
_FIXED_OF_MODELS = re.compile(r"models\.[^.]+\.runtime\.(threads|delegate(_\w+)?)")


class SystemClock:
    """The device's clocks. CLOCK_BOOTTIME counts suspended time too: a laptop lid must not stretch a back-off."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def now(self) -> Instant:
        """This moment."""
        return Instant(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), self.boot_id)


def runtime_version() -> str:
    """The runtime that this device's workers use, without importing it."""
    for name in ("ai-edge-litert", "tensorflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "none"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the updater's lock; raises DeviceError `locked` when another process does."""
    with durable.device_errors("take the updater's lock"):
        durable.make_directory(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeviceError(
                f"{path}: another updater is running here; stop it, or ask it through the control socket",
                code="locked",
            ) from error
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def run(settings: Settings, problem: str = "") -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code; raises DeviceError when the lock is taken.

    `problem`: what is wrong with the file, where these are the last good settings.
    """
    with lock(settings.paths.lock):
        return Updater(settings).run(problem)


def rollback_offline(settings: Settings, model: str) -> str:
    """Leave the active version without the updater: the same step, under its lock.

    Returns:
        What was done, in words.

    Raises:
        UsageError: refused, with the reason.
        DeviceError: the updater is running, or the device cannot: what ran is still active.
    """
    if model not in settings.models:
        raise UsageError(f"no model {model!r} in the settings; configured: {', '.join(settings.models)}")
    with lock(settings.paths.lock):
        answers: list[Mapping[str, Any]] = []
        updater = Updater(settings, models=(model,))
        driver = updater.driver
        driver.start()
        left = version(driver.states[model], driver.states[model].current)
        request = f"offline-{secrets.token_hex(8)}"
        driver.command(model, request, lambda at, draw: RevertWanted(at, draw, "cli", request), answers.append)
        driver.settle(_OFFLINE_S)
    status, reason, state = str(answers[0]["status"]), str(answers[0]["reason"]), driver.states[model]
    if status == "refused":
        raise UsageError(reason, code="refused")
    # The answer came before the switch was tried.
    if state.going is not None and state.going.link is None:
        why = state.alarms[-1] if state.alarms else f"the store did not answer within {_OFFLINE_S:.0f} s"
        raise DeviceError(f"{model}: {left} is still active: {why}; try again", code="still-active")
    if model in driver.unkept:
        return (
            f"gone back to {version(state, state.current)}, but that could not be written down "
            f"({driver.unkept[model]}); do not repeat it: make room, start the updater, and say "
            f"`modelagent block {left}`"
        )
    return reason


class Updater:
    """The parts, put together."""

    def __init__(self, settings: Settings, models: tuple[str, ...] | None = None) -> None:
        self.settings = settings
        self.started = settings  # what the parts below were built from
        self.problem = ""
        self._stopping = False
        paths = settings.paths
        clock = SystemClock()
        self._clock = clock
        runtime = runtime_version()
        for directory in (paths.state_dir, paths.state_dir / "models", paths.state_dir / "incoming"):
            with durable.device_errors("make the updater's directories"):
                durable.make_directory(directory)
        durable.sweep(paths.state_dir)
        names = models if models is not None else tuple(settings.models)
        ports = {
            name: Ports(
                SlotStore(paths.state_dir, name),
                Journal(paths.state_dir, name, State),
                Poller(reader(paths.health(name)), clock.boot_id),
                CanaryRunner(
                    threads=settings.models[name].runtime.threads,
                    budget_s=settings.limits.canary.seconds,
                    delegate=_shared_delegate(settings.models[name].runtime),
                    memory_mb=settings.limits.canary.memory_mb,
                ),
            )
            for name in names
        }
        self._stores = {name: port.store for name, port in ports.items()}
        self._latency = {name: RecentLatency() for name in names}
        self._promised: dict[str, tuple[str, float | None]] = {}
        self._seed = _seed(paths.state_dir)
        self._since = clock.now().wall
        self._condition: Facts | None = None
        self._metered = Metered()
        self._device = _device(settings, self._metered)
        self.answerer = Answerer(settings, self._facts, offline=models is not None)
        self.session: Session | None = None
        ledger = Ledger(paths.state_dir / "commands") if models is None else None
        self.desk = Desk(submit=self._submit, view=self._view, now=time.time, ledger=ledger)
        epoch = secrets.token_hex(4)
        self.control = ControlServer(
            paths.control_socket, self.desk, group=settings.control.group, mode=settings.control.mode
        )
        self._watch = WatchSink(self.control.broadcast, epoch)
        sinks: list[Sink] = [JournalSink() if JournalSink.here() else LogSink(), self._watch]
        self._broker: BrokerSink | None = None
        if settings.mqtt.host and models is None:
            self.session = Session(
                settings.mqtt,
                device=settings.device.id,
                groups=settings.device.groups,
                desk=self.desk,
                draw=random.random,
                keep=paths.state_dir / "outbox",
            )
            self._broker = BrokerSink(self.session, epoch)
            sinks.append(self._broker)
        self.acquirer = acquirer_of(settings, clock.now, runtime)
        self.driver = Driver(
            ports,
            clock=clock,
            ask=self.answerer,
            acquirer=self.acquirer,
            sinks=Sinks(sinks),
            runtime=runtime,
            incoming=paths.state_dir / "incoming",
            vacuum=(_PARTIAL_AGE_S, settings.limits.max_store_mb * 2**20),
        )
        self._sticks = Sticks(
            self.acquirer, settings.repository.media, paths.state_dir / "sticks.json", self._stick_appeared
        )
        self._status_due = 0.0
        self._status = ""
        self._sweep_due = 0.0
        self._drop_due = 0.0
        self._edits: Edits | None = None

    def run(self, problem: str = "") -> int:
        """Serve until a signal comes. `problem`: what is wrong with the file that these settings stand in for."""
        if problem:  # the log has it already
            self.problem = f"refused, the last good settings stay: {problem}"
        threading.excepthook = _end_process
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        config = Path(os.environ.get("MODELAGENT_CONFIG", "/etc/modelagent/modelagent.toml"))
        self.driver.start()
        for name, make in wishes(self.settings):
            self.driver.post(name, make)
        # A thread that finds no memory in its first steps leaves whoever starts it waiting for ever (CPython 3.11).
        signal.alarm(_THREADS_S)
        with contextlib.ExitStack() as stack:
            stack.callback(signal.alarm, 0)
            stack.enter_context(self.control)
            if self.session is not None:
                self.session.start()
                stack.callback(self.session.stop)
            if config.parent.is_dir():
                self._edits = Edits(
                    config,
                    self.settings,
                    emit=self._wish,
                    on_good=self._settings_changed,
                    on_bad=self._settings_refused,
                    problem=problem,
                )
                stack.enter_context(self._edits)
            stack.callback(self.driver.hands.stop)
            stack.enter_context(self._sticks)
            notify("READY=1")
            _log.info("updater %s is ready: %s", __version__, ", ".join(self.driver.states) or "no model configured")
            self.driver.run(lambda: self._stopping, self._beat)
            notify("STOPPING=1")
            self.answerer.keep(self._clock.now().mono)
        durable.tidy_to_end()
        return 0

    # -- signals and settings ----------------------------------------------------------------------------------

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping = True
        self.driver.wake()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._edits is not None:
            self._edits.reload()

    def _settings_changed(self, new: Settings) -> None:
        """A good edit: what can take effect does, what cannot says so."""
        changed = changed_keys(self.started, new)
        fixed = [key for key in changed if key.startswith(_FIXED) or _FIXED_OF_MODELS.fullmatch(key)]
        known = set(self.driver.states)
        fixed += [f"models.{name}" for name in known ^ set(new.models)]
        self.problem = f"takes effect at the next start: {', '.join(sorted(fixed))}" if fixed else ""
        if self.problem:
            _log.warning("settings: %s", self.problem)
        self.settings = new
        self._device = _device(new, self._metered)
        self._condition = None
        self.answerer.use(new)
        self.driver.wake()

    def _wish(self, model: str, make: EventFactory) -> None:
        """What an edit wants of a model; one that is new begins at the next start."""
        if model in self.driver.states:
            self.driver.post(model, make)

    def _settings_refused(self, message: str) -> None:
        self.problem = f"refused, the last good settings stay: {message}"
        _log.error("settings %s", self.problem)

    # -- facts -------------------------------------------------------------------------------------------------

    def _facts(self, at: Instant, model: str) -> Facts:
        """The device's facts; read at most once in two seconds, since every event asks."""
        known = self._condition
        if known is None or not 0 <= at.mono - known.at.mono < _FACTS_S:
            self._condition = known = self._device.gather(
                Facts(
                    at,
                    seed=self._seed,
                    groups=self.settings.device.groups,
                    hardware=self.settings.device.hardware,
                    started=self._since,
                )
            )
        reading = self.driver.readings.get(model)
        facts = replace(
            known,
            at=at,
            queue_fill=queue_fill(reading.document if reading else None),
            budget_left=self.acquirer.left(),
            rate_bps=self.acquirer.rate(),
            p95_ms=self._latency[model].p95_ms(reading.document if reading else None, at.mono),
            p95_budget_ms=self._promised_ms(model),
        )
        if self.acquirer.attached():
            facts = replace(facts, link_up=True)  # to look at a stick needs none
        state = self.driver.states.get(model)
        wanted = None if state is None else state.candidate.release if state.candidate else state.desired.offer
        if wanted is not None and self.acquirer.is_at_hand(wanted.digest):
            facts = replace(facts, metered=False, budget_left=None, rate_bps=None)
        return facts

    def _promised_ms(self, model: str) -> float | None:
        """The p95 that the running version's manifest promises."""
        state = self.driver.states.get(model)
        digest = state.current if state is not None else None
        if digest is None:
            return None
        if self._promised.get(model, ("", None))[0] != digest:
            promised: float | None = None
            with contextlib.suppress(AgentError):  # a slot that cannot be read is the store's to tell about
                promised = self._stores[model].manifest(digest).limits.latency_ms
            self._promised[model] = (digest, promised)
        return self._promised[model][1]

    # -- commands ----------------------------------------------------------------------------------------------

    def _submit(self, request: Request, reply: Reply) -> None:
        if request.verb == "label":
            self._take_labels(request, reply)
        elif request.verb == "install":
            self._install(request, reply)
        elif request.verb == "reload":
            if self._edits is not None:
                self._edits.reload()
            reply(answer(request.id, "accepted", "the settings are read again; status shows what came of it"))
        else:
            self.driver.submit(request, reply)

    def _install(self, request: Request, reply: Reply) -> None:
        """Attach a bundle and let the machine look: from there on it is a check like any other."""
        if request.origin != "cli":
            why = "a bundle is named on the device itself: modelagent install PATH"
            reply(answer(request.id, "refused", why, code="not-here"))
            return
        self._sticks.install(Path(request.argument))  # UsageError is the refusal
        self.driver.submit(replace(request, verb=Verb.UPDATE, argument=""), reply)

    def _stick_appeared(self, path: Path) -> None:
        """Look at once; windows and waves still hold."""
        token = f"stick-{secrets.token_hex(8)}"
        for name in self.driver.states:
            self.driver.post(
                name, lambda at, draw: Wanted(at, draw, verb=Verb.CHECK, origin="stick", id=token, argument=str(path))
            )

    def _take_labels(self, request: Request, reply: Reply) -> None:
        names = [request.model] if request.model else list(self.driver.states)
        if len(names) != 1 or names[0] not in self.driver.states:
            known = ", ".join(self.driver.states) or "none"
            reply(answer(request.id, "refused", f"labels: name one model; configured: {known}", code="which-model"))
            return
        spool(self.settings.paths.labels(names[0]), request.labels, wall_ns=time.time_ns())
        reply(answer(request.id, "done", f"{len(request.labels)} labels kept for inference to join"))

    def _view(self, request: Request) -> Mapping[str, Any]:
        if request.model is not None and request.model not in self.driver.states:
            known = ", ".join(self.driver.states) or "none"
            raise UsageError(f"no model {request.model!r} here; configured: {known}", code="no-model")
        names = [request.model] if request.model else list(self.driver.states)
        if request.verb == "history":
            last = int(request.argument) if request.argument.isdecimal() else 50
            return {"lines": read_history(self.settings.paths.state_dir, last, request.model)}
        if request.verb == "explain":
            states, answers = self.driver.states, self.driver.answers
            return {
                "models": {
                    name: {
                        **explain(states[name], answers[name]),
                        "gates": self.answerer.gates(name),
                        "facts": self._trace_line(name),
                    }
                    for name in names
                }
            }
        return self.status(names)

    def _trace_line(self, model: str) -> str:
        """The present facts as a line of a trace, for `simulate`."""
        facts = self.answerer.facts(model)
        return "" if facts is None else line_of(facts)

    def status(self, names: list[str]) -> dict[str, Any]:
        """What `status` shows beside health, which the asker reads for himself."""
        broker = self.session.state if self.session is not None else None
        return {
            "device": self.settings.device.id,
            "version": __version__,
            "settings_problem": self.problem,
            "broker": None if broker is None else asdict(broker),
            "repository": self.acquirer.describe(),
            "models": {name: self._described(name) for name in names},
        }

    def _described(self, name: str) -> dict[str, Any]:
        told = describe(self.driver.states[name])
        if name in self.driver.unkept:
            told["alarms"] = [*told["alarms"], f"state cannot be kept: {self.driver.unkept[name]}"]
        return told

    # -- every turn --------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        signal.alarm(_STILL_S)
        now = time.monotonic()
        status = "; ".join(summary(state) for state in self.driver.states.values()) or "no model configured"
        if now >= self._status_due or status != self._status:
            self._status_due, self._status = now + _STATUS_S, status
            notify("WATCHDOG=1", f"STATUS={status}")
        if self._broker is not None:
            self._broker.set_status(self._retained())
        if self.control.watchers:
            self._watch.set_status(self.status(list(self.driver.states)))
        if now >= self._sweep_due:
            self._sweep_due = now + _SWEEP_S
            for name in self.driver.states:
                sweep(self.settings.paths.labels(name), wall_ns=time.time_ns())
        if now >= self._drop_due:
            self._drop_due = now + _DROP_S
            self._collect_labels()

    def _collect_labels(self) -> None:
        """Take up what people dropped in the models' `labels_dir`."""
        for name in self.driver.states:
            model = self.settings.models.get(name)
            if model is None or model.labels_dir is None:
                continue
            try:
                taken, refusals = collect(model.labels_dir, self.settings.paths.labels(name), wall_ns=time.time_ns())
            except AgentError as error:  # the spool is full or the disk is: what was dropped stays and is tried again
                _log.warning("%s", error.message)
                continue
            for refusal in refusals:
                _log.warning("labels of %s: %s", name, refusal)
            if taken:
                _log.info("labels of %s: %d taken from %s", name, taken, model.labels_dir)

    def _retained(self) -> dict[str, Any]:
        """The retained status: small, and the same until something happens."""
        models = {}
        for name in self.driver.states:
            told = self._described(name)
            reading = self.driver.readings.get(name)
            running = running_of(reading.document if reading else None)
            models[name] = {
                "running": {"version": running.get("version"), "digest": running.get("digest")} if running else None,
                "phase": told["phase"],
                "reason": told["waiting"],
                "candidate": (told["candidate"] or {}).get("version"),
                "blocks": told["blocks"],
                "alarms": told["alarms"],
                "health": reading.reason if reading else "not looked at yet",
            }
        return {"version": __version__, "settings_problem": self.problem, "models": models}


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """A programmer error in a thread ends the process: started again it goes on, half alive it would not."""
    try:
        _log.critical("thread %s failed", failure.thread.name if failure.thread else "?", exc_info=failure.exc_value)
    finally:  # without memory even a line in the log is too much
        os._exit(70)


def _shared_delegate(runtime: Runtime) -> Path | None:
    """The delegate's library for the canary: only one that can be opened twice, since the running model holds it."""
    return runtime.delegate if runtime.delegate_shared else None


def _seed(state_dir: Path) -> str:
    """This device's own secret number, by which it takes its place in waves and spreads its checks."""
    path = state_dir / "seed"
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        seed = secrets.token_hex(16)
        durable.write_atomic(path, seed.encode())
        return seed


def _device(settings: Settings, metered: Metered) -> Device:
    policy = settings.policy
    return Device(
        state_dir=settings.paths.state_dir,
        inhibit_dir=policy.inhibit_dir,
        metered=policy.metered,
        ask_metered=metered.ask,
        link_matters=reaches_out(settings.repository.url),
    )
