"""Worker children: started, loaded, warmed, and one at a time.

This file knows how a worker is started and spoken to until it is ready, and that a device loads one model at a time.
It does not know which slot should run or what becomes of a worker that is ready.

    loader = Loader()
    load = loader.request(slot, options, purpose=SERVE, done=callback)     # callback(load), load.worker or load.code
    poll.register(...) for fd in loader.fds; loader.step(now)              # from the one long-lived main thread
    loader.cancel(load)

A worker loads at the lowest priority where it can be raised again afterwards (root, or RLIMIT_NICE as the unit sets
it): a load at normal priority doubles the latency of the model that is serving on a single CPU.
"""

import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from modelagent import __version__
from modelagent.children import OTHER_VERSION, Child, describe_exit, sink, spawn
from modelagent.errors import DeviceError, ModelError
from modelagent.inference.decisions import Decider, Decision
from modelagent.inference.exchange import ParentSide
from modelagent.inference.links import Slot
from modelagent.inference.options import ModelOptions
from modelagent.inference.starts import Ticket
from modelagent.inference.wear import Wear

_log = logging.getLogger(__name__)

LOWEST: Final = 19
_URGENT: Final = 10  # nice of a load while nothing serves this line: soon, but other lines have frames
_LIFT: Final = 5.0  # seconds after which a load that gets no turn is lifted from the very lowest priority
SERVE: Final = 0  # nothing serves: goes before everything
SWAP: Final = 1  # the present worker goes on meanwhile
SHADOW: Final = 2
_TRIES: Final = 2  # a load that died, hung or lacked memory is tried once more: the cause may have been outside
_AGAIN: Final = ("crash", "hang", "memory")
_PACKET: Final = 64 * 1024
_CAP_SYS_NICE: Final = 23  # linux/capability.h


def may_raise_priority() -> bool:
    """Whether a child of this process can come back from the lowest priority to the normal one (setpriority(2)).

    The capability is asked for, not the user: root in a container often lacks it.
    """
    if resource.getrlimit(resource.RLIMIT_NICE)[0] in {resource.RLIM_INFINITY, *range(20, 41)}:
        return True
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _CAP_SYS_NICE & 1)
    return False


class Worker:
    """One worker child with the slot it is for. Made in the main thread; `ask` belongs to whoever serves with it.

    `healthy` and `fed` count answers and frames, `since` is when it began to serve (seconds since boot).

    Raises:
        DeviceError: the child or its memory could not be had.
        ModelError: `contract`, the manifest asks for unknown processing.
    """

    def __init__(self, slot: Slot, options: ModelOptions, *, nice: int) -> None:
        self.slot = slot
        self.digest = slot.digest
        self.version = slot.manifest.version
        self.budget_us = slot.manifest.limits.latency_ms * 1e3  # promised for one inference
        self.decider = Decider(slot.manifest)
        self.hang_s = max(slot.manifest.limits.latency_ms * 20 / 1000.0, options.hang_s)
        self.exchange = ParentSide(slot.layout)
        self.healthy = 0
        self.fed = 0
        self.since = 0.0
        self.ticket: Ticket | None = None
        self.facts: dict[str, Any] = {}  # what it said when it had loaded
        self.invoke_us = 0.0  # what an inference takes lately
        self.wear = Wear(limit_mb=slot.manifest.limits.memory_mb, latency_ms=slot.manifest.limits.latency_ms)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self.exchange.close()
            raise DeviceError(f"no channel to a worker: {error}; free descriptors", code="process") from error
        ours.setblocking(False)
        self.control = ours
        memory, request, reply = self.exchange.fds
        argument = {
            "ctl": theirs.fileno(),
            "memory": memory,
            "request": request,
            "reply": reply,
            "parent": os.getpid(),
            "version": __version__,
            "nice": nice,
            "sandbox": False,
            "limits": None,
        }
        try:
            self.child: Child = spawn(
                [*options.worker_argv, json.dumps(argument)],
                pass_fds=(theirs.fileno(), memory, request, reply),
                capture=16 * 1024,
            )
        except OSError as error:
            ours.close()
            self.exchange.close()
            raise DeviceError(f"no worker process: {error}; free processes or memory", code="process") from error
        finally:
            theirs.close()
        self.exchange.watch(self.child.pidfd)
        if options.cpus:
            try:
                os.sched_setaffinity(self.child.pid, options.cpus)  # its threads, which come later, inherit it
            except OSError as error:
                _log.warning("%s: runtime.cpus %s: %s; it runs on any", options.name, options.cpus, error.strerror)
        self.bindings = tuple(self.decider.bind(slot) for slot in self.exchange.slots)

    def fill(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Write a frame where the next question is asked from; FrameError when it does not fit."""
        self.bindings[self.exchange.filled].fill(arrays)

    def decide(self) -> Decision:
        """The decision on the last answer; ValueError when the worker is not to be believed."""
        return self.bindings[self.exchange.last].decide()

    def say(self, command: dict[str, Any]) -> None:
        """Send a command; a worker that is gone is noticed by its end, not here."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(command).encode())

    def hear(self) -> dict[str, Any] | None:
        """An answer, or None when there is none (yet, or any more)."""
        try:
            packet = self.control.recv(_PACKET)
            answer = json.loads(packet) if packet else None
        except (OSError, ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    def sink(self) -> None:
        """Lower all its threads, which needs no right: a shadow must never cost the serving worker a turn."""
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self.child.pid}/task").iterdir():
                sink(int(task.name))

    def end(self) -> str:
        """Kill it, free everything, and say how it ended. Harmless twice."""
        self.child.kill()
        status = self.child.wait(5.0)
        text = "still running" if status is None else describe_exit(status)
        printed = self.child.said(200) if self.child.pidfd >= 0 else ""
        self.child.close()
        self.control.close()
        for binding in self.bindings:
            binding.release()
        self.exchange.close()
        return f"{text}: {printed.splitlines()[-1]}" if printed else text


class Load:
    """One wish for a ready worker. When `done` is called, either `worker` is set or `code` and `reason` are."""

    def __init__(
        self, slot: Slot, options: ModelOptions, purpose: int, not_before: float, done: Callable[["Load"], None]
    ) -> None:
        self.slot = slot
        self.options = options
        self.purpose = purpose
        self.not_before = not_before
        self.done = done
        self.worker: Worker | None = None
        self.code = ""
        self.reason = ""
        self.tries = 0
        self.ended = 0.0  # seconds since boot when `done` was called
        self.ticket: Ticket | None = None
        self.facts: dict[str, Any] = {}


class Loader:
    """All loads of the device, one in flight. Everything is called from the main thread."""

    def __init__(self) -> None:
        self._waiting: list[Load] = []
        self._load: Load | None = None
        self._worker: Worker | None = None
        self._limit = 0.0  # seconds that the load in flight may take
        self._deadline = 0.0
        self._lift_at: float | None = None
        self._nice = LOWEST if may_raise_priority() else 0

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors whose readability means: call `step`."""
        return () if self._worker is None else (self._worker.control.fileno(), self._worker.child.pidfd)

    @property
    def loading(self) -> Load | None:
        """The load in flight."""
        return self._load

    def due(self, now: float) -> float | None:
        """Seconds until `step` must be called without any descriptor, None: no need."""
        if self._load is None:
            moments = [load.not_before for load in self._waiting]
        else:
            urgent = [load.not_before for load in self._waiting if load.purpose == SERVE]
            moments = [self._deadline, *(moment for moment in urgent if moment > now)]
            moments += [] if self._lift_at is None else [self._lift_at]
        return max(0.0, min(moments) - now) if moments else None

    def request(
        self, slot: Slot, options: ModelOptions, *, purpose: int, done: Callable[[Load], None], not_before: float = 0.0
    ) -> Load:
        """Ask for a worker; `done` is called from a later `step`, unless cancelled."""
        load = Load(slot, options, purpose, not_before, done)
        self._waiting.append(load)
        return load

    def cancel(self, load: Load) -> None:
        """Forget a wish; a load in flight is killed."""
        if load in self._waiting:
            self._waiting.remove(load)
        elif load is self._load:
            self._stop()

    def step(self, now: float) -> None:
        """Take up answers, ends and time-outs, and start what is due."""
        if self._load is not None:
            self._advance(now)
        self._preempt(now)
        while self._load is None:
            ready = [load for load in self._waiting if load.not_before <= now]
            if not ready:
                return
            load = min(ready, key=lambda one: one.purpose)
            self._waiting.remove(load)
            self._start(load, now)

    def close(self) -> None:
        """Kill what is in flight."""
        self._waiting.clear()
        self._stop()

    def _start(self, load: Load, now: float) -> None:
        load.tries += 1
        nice = LOWEST if load.purpose == SHADOW else min(self._nice, _URGENT) if load.purpose == SERVE else self._nice
        try:
            worker = Worker(load.slot, load.options, nice=nice)
        except DeviceError as error:
            self._finish(load, now, code="memory", reason=error.message)
            return
        except ModelError as error:  # the manifest asks for processing that this version does not know
            self._finish(load, now, code=error.code, reason=error.message)
            return
        self._load, self._worker = load, worker
        self._limit = max(load.options.load_timeout, load.slot.manifest.limits.load_s)
        self._deadline = now + self._limit
        self._lift_at = now + _LIFT
        worker.say(
            {
                "do": "load",
                "slot": str(load.slot.path),
                "threads": load.options.threads,
                "delegate": load.options.delegate,
            }
        )

    def _advance(self, now: float) -> None:
        load, worker = self._load, self._worker
        assert load is not None  # noqa: S101 - both are set together
        assert worker is not None  # noqa: S101
        answer = worker.hear()
        if answer is None:
            if not worker.child.alive():
                self._load = self._worker = None
                if worker.child.returncode == OTHER_VERSION:
                    # No fault of the model, and no later load could end otherwise.
                    raise DeviceError(
                        f"modelagent was replaced while it ran ({worker.end()}); it ends, to be started again",
                        code="replaced",
                    )
                self._finish(load, now, code="crash", reason=f"the worker ended while loading ({worker.end()})")
            elif now >= self._deadline:
                self._stop()
                self._finish(load, now, code="hang", reason=f"not loaded within {self._limit:g} s")
            elif self._lift_at is not None and now >= self._lift_at:
                self._lift_at = None
                worker.child.lift()
            return
        if not answer.get("ok"):
            self._stop()
            self._finish(
                load, now, code=str(answer.get("code") or "load"), reason=str(answer.get("reason") or "refused")[:1000]
            )
        elif not load.facts:
            load.facts = answer
            worker.facts = answer
            worker.say({"do": "serve", "nice": load.options.nice})
        else:
            if load.purpose == SHADOW:
                worker.sink()
            self._load = self._worker = None
            load.worker = worker
            load.ended = now
            load.done(load)

    def _preempt(self, now: float) -> None:
        urgent = any(load.purpose == SERVE and load.not_before <= now for load in self._waiting)
        if self._load is not None and self._load.purpose != SERVE and urgent:
            load = self._load
            self._stop()
            load.tries -= 1
            self._waiting.append(load)

    def _finish(self, load: Load, now: float, *, code: str, reason: str) -> None:
        if code in _AGAIN and load.tries < _TRIES:
            _log.warning("loading %s: %s; trying once more", load.slot.digest[:12], reason)
            self._waiting.append(load)
            return
        load.code, load.reason, load.ended = code, reason, now
        load.done(load)

    def _stop(self) -> None:
        load, worker = self._load, self._worker
        self._load = self._worker = None
        if load is not None:
            load.facts = {}
        if worker is not None:
            worker.end()
