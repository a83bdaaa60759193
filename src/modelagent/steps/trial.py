"""One worker on trial: a caged child that loads one model, runs samples, and is believed nothing.

This file knows how to start, ask, watch and end one worker of a canary, and what its silence, its end or its nonsense
says. It does not know that there are two of them, nor what they are compared by (`canary.py`), nor statistics.

    trial = Trial(manifest.digest, manifest.version, terms)
    trial.spawn(slot)
    trial.greet()
    trial.load(slot)
    trial.infer(0, 16)
    trial.unload()
    trial.result()                         # ModelRun
    trial.close()

Everything here holds against a worker that was taken over: limits are set from outside as well, its output goes to a
file of fixed size, its answers are parsed as hostile input, its group is killed at the end.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeGuard

from modelagent import __version__
from modelagent.children import Child, Limits, bare_environment, describe_exit, spawn
from modelagent.errors import DeviceError
from modelagent.judges.canary import ModelRun, Problem, Sample
from modelagent.manifest import Manifest
from modelagent.steps import witness

_PACKET: Final = 64 * 1024  # bytes, the protocol's largest answer
_TICK_S: Final = 0.05  # how often memory and `abandoned` are looked at while a worker is busy
_OUTPUT: Final = 16 * 1024  # bytes of a worker's output that are kept for the reason
_VALUES: Final = 3 * 64  # numbers that a metric may need of one sample: three a class
_START_S: Final = 60.0  # imports on a slow card without compiled files
_SHORT_S: Final = 60.0  # a command that only hashes or counts
_LIFT_S: Final = 10.0  # after which a worker that has not answered is lifted from the very lowest priority
_STARVED: Final = 0.5  # share of the time limit spent waiting for a processor, above which the device is to blame


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for both workers of one canary.

    Args:
        worker: program and first arguments; the JSON argument is appended.
        threads: processor threads.
        budget_s: wall-clock seconds that each worker may take altogether.
        memory_mb: what this device gives one worker at most.
        delegate: library of an external delegate, or None.
        criteria: the candidate's manifest.
        abandoned: asked every few hundredths of a second; true ends the trial.
    """

    worker: tuple[str, ...]
    threads: int
    budget_s: float
    memory_mb: float
    delegate: Path | None
    criteria: Manifest
    abandoned: Callable[[], bool]


class Ended(Exception):  # noqa: N818 - not an error here but evidence
    """A worker showed a problem; nothing more will come of it."""

    def __init__(self, problem: Problem, *, outside: bool = False) -> None:
        super().__init__(problem.reason)
        self.problem = problem
        self.outside = outside  # the device did it, neither model nor runtime


class Trial:
    """One worker and what it has shown so far."""

    def __init__(self, digest: str, version: str, terms: Terms) -> None:
        self.version = version
        self.problem: Problem | None = None
        self._digest = digest
        self._terms = terms
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self._left_s = terms.budget_s
        self._samples: list[Sample] = []
        self._facts: dict[str, Any] = {}
        self._has_labels = False
        self._peak_kb = 0

    def spawn(self, *readable: Path) -> None:
        """Start the worker's process.

        Args:
            readable: the slots that it may read; of everything else only the interpreter's own files.

        Raises:
            Ended: `outside`, for whatever goes wrong here cannot be a model's fault.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket = ours
            ours.setblocking(False)
            with theirs:
                self._child = _start(self._terms, theirs, readable)
        except OSError as error:
            raise Ended(Problem("canary", f"no worker could be started: {error}"), outside=True) from error

    def greet(self) -> None:
        """Hear a first answer, before it has seen any model.

        Raises:
            Ended: `outside`, as above.
        """
        try:
            self._ask({"do": "memory"}, _START_S, "starting")
            self._facts["cage"] = witness.cage(self._running().pid)
        except Ended as ended:
            raise Ended(ended.problem, outside=True) from ended

    def load(self, slot: Path) -> None:
        """Load and warm up the slot's model.

        Raises:
            Ended: it could not, or not in time. So do all that follow.
        """
        limits = self._terms.criteria.limits
        patience = _START_S + 5.0 * limits.load_s
        command = {
            "do": "load",
            "slot": str(slot),
            "threads": self._terms.threads,
            "delegate": str(self._terms.delegate or ""),
        }
        answer = self._ask(command, patience, "loading")
        for name in ("load_ms", "warmup_ms"):
            self._facts[name] = self._number(answer, name, "loading")
        for name in ("runtime", "delegate"):
            self._facts[name] = str(answer.get(name, ""))[:100]

    def open_samples(self, slot: Path) -> int:
        """Open the slot's samples, whose bytes the worker holds against its manifest; how many there are."""
        answer = self._ask({"do": "samples", "slot": str(slot)}, _SHORT_S, "opening the samples")
        self._has_labels = answer.get("has_labels") is True
        return int(self._number(answer, "count", "opening the samples"))

    def infer(self, start: int, stop: int) -> None:
        """Run samples start..stop-1 and keep what it said of them."""
        doing = f"running samples {start} to {stop - 1}"
        patience = 10.0 + (stop - start) * self._terms.criteria.limits.latency_ms / 1e3 * 20.0
        answer = self._ask({"do": "run", "start": start, "stop": stop}, patience, doing)
        rows = answer.get("rows")
        if not isinstance(rows, list) or len(rows) != stop - start:
            self._nonsense(f"not {stop - start} rows", doing)
        for index, row in zip(range(start, stop), rows, strict=True):
            self._samples.append(self._sample(index, row, doing))

    def unload(self) -> None:
        """Measure the peak, unload, and wait for a clean end: some models crash only here."""
        answer = self._ask({"do": "memory"}, _SHORT_S, "measuring memory")
        self._peak_kb = max(
            self._peak_kb,
            int(self._number(answer, "peak_kb", "measuring memory")),
            witness.peak_kb(self._running().pid),
        )
        self._ask({"do": "unload"}, _SHORT_S, "unloading")
        child = self._running()
        status = child.wait(min(_SHORT_S, self._left_s))
        if status is None:
            self._stop(Problem("hang", "did not end after unloading", "unloading"))
        if status != 0:
            self._explain_end("unloading")

    def result(self) -> ModelRun:
        """What it has shown, whole or up to its end."""
        return ModelRun(
            digest=self._digest,
            version=self.version,
            samples=tuple(self._samples),
            has_labels=self._has_labels,
            load_ms=self._facts.get("load_ms", 0.0),
            warmup_ms=self._facts.get("warmup_ms", 0.0),
            peak_kb=self._peak_kb,
            runtime=self._facts.get("runtime", ""),
            delegate=self._facts.get("delegate", ""),
            cage=self._facts.get("cage", ""),
            problem=self.problem,
        )

    def close(self) -> None:
        """End the worker if it runs; harmless twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            self._child.close()
            self._child = None

    # -- asking ----------------------------------------------------------------------------------------------------

    def _running(self) -> Child:
        assert self._child is not None, "spawn() was called"  # noqa: S101
        return self._child

    def _ask(self, command: Mapping[str, Any], patience: float, doing: str) -> Mapping[str, Any]:
        """Send one command and wait for its answer, watching memory, time and whether the run is still wanted."""
        child, control = self._running(), self._socket
        assert control is not None, "spawn() was called"  # noqa: S101
        began, limit = time.monotonic(), min(patience, self._left_s)
        waited_before = witness.waited_s(child.pid)
        with contextlib.suppress(OSError):  # a worker that is gone or does not read shows in what follows
            control.send(json.dumps(command).encode())
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(child.pidfd, select.POLLIN)
        try:
            while True:
                self._check_abandoned()
                left = limit - (time.monotonic() - began)
                if left <= 0.0:
                    self._give_up(doing, limit, witness.waited_s(child.pid) - waited_before)
                ready = {fd for fd, _ in poll.poll(min(_TICK_S, left) * 1000.0)}
                self._watch_memory(doing)
                if time.monotonic() - began >= _LIFT_S:
                    child.lift()
                if control.fileno() in ready:
                    packet = self._receive(control)
                    if packet:
                        return self._parse(packet, doing)
                    poll.unregister(control)  # hung up: its end follows, or the time limit
                elif child.pidfd in ready:
                    self._explain_end(doing)
        finally:
            self._left_s -= time.monotonic() - began

    def _check_abandoned(self) -> None:
        if self._terms.abandoned():
            raise DeviceError("the canary was abandoned", code="abandoned")

    @staticmethod
    def _receive(control: socket.socket) -> bytes:
        try:
            return control.recv(_PACKET)
        except OSError:
            return b""

    def _parse(self, packet: bytes, doing: str) -> Mapping[str, Any]:
        try:
            answer = json.loads(packet)
        except (ValueError, RecursionError):
            self._nonsense("no JSON", doing)
        if not isinstance(answer, dict):
            self._nonsense("no object", doing)
        if answer.get("ok") is True:
            return answer
        code, reason = answer.get("code"), answer.get("reason")
        if not isinstance(code, str) or not isinstance(reason, str):
            self._nonsense("neither ok nor a reason", doing)
        raise Ended(Problem(code[:40], reason[:2000], doing))

    def _sample(self, index: int, row: object, doing: str) -> Sample:
        if not isinstance(row, list) or len(row) != 8:
            self._nonsense("a row that is none", doing)
        found, us, finite, prediction, label, score, confidence, values = row
        good = (
            _whole(found)
            and found == index
            and _real(us)
            and us >= 0.0
            and isinstance(finite, bool)
            and (prediction is None or _whole(prediction))
            and (label is None or _whole(label))
            and _real(score)
            and _real(confidence)
            and isinstance(values, list)
            and len(values) <= _VALUES
            and all(_real(value) for value in values)
        )
        if not good:
            self._nonsense(f"a row that is none for sample {index}", doing)
        known = tuple(float(value) for value in values)
        return Sample(index, float(us), finite, prediction, label, float(score), float(confidence), known)

    def _number(self, answer: Mapping[str, Any], name: str, doing: str) -> float:
        value = answer.get(name)
        if not _real(value) or value < 0:
            self._nonsense(f"no number for {name}", doing)
        return float(value)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _nonsense(self, what: str, doing: str) -> NoReturn:
        self._stop(Problem("inconsistent", f"the worker's answer while {doing} was {what}", doing))

    def _stop(self, problem: Problem, *, outside: bool = False) -> NoReturn:
        self._running().kill()
        raise Ended(problem, outside=outside)

    def _give_up(self, doing: str, limit: float, waited: float) -> NoReturn:
        if waited > _STARVED * limit:
            text = f"{limit:.0f} s were not enough while {doing}: for {waited:.0f} s of them it had no processor"
            self._stop(Problem("hang", text, doing), outside=True)
        self._stop(Problem("hang", f"no answer within {limit:.0f} s while {doing}", doing))

    def _watch_memory(self, doing: str) -> None:
        allowed_kb = _resident_limit_kb(self._terms.criteria)
        present = self._running().resident_kb()
        self._peak_kb = max(self._peak_kb, present)
        if present > min(allowed_kb, self._terms.memory_mb * 1024):
            promised = self._terms.criteria.limits.memory_mb
            if present <= promised * 1024:
                given = f"limits.canary.memory_mb gives {self._terms.memory_mb:g} MB"
                text = f"needs {present // 1024} MB while {doing}, as it may, and {given}; raise that"
                self._stop(Problem("memory", text, doing), outside=True)
            text = f"ate {present // 1024} MB while {doing}, promised are at most {promised:.0f} MB"
            self._stop(Problem("memory", text, doing))

    def _explain_end(self, doing: str) -> NoReturn:
        """The worker is gone: name the signal, and tell what it did from what was done to it."""
        child = self._running()
        status = child.wait(5.0)
        ended = describe_exit(status) if status is not None else "gone"
        said = child.said(300)
        reason = f"the worker was {ended} while {doing}" if (status or 0) < 0 else f"the worker {ended} while {doing}"
        reason += f" ({said!r})" if said else ""
        limits = self._terms.criteria.limits
        if status == -signal.SIGKILL:
            peak_mb = max(self._peak_kb, child.peak_kb) // 1024
            if peak_mb > limits.memory_mb:
                text = f"{reason}, at {peak_mb} MB; promised are at most {limits.memory_mb:.0f} MB"
                raise Ended(Problem("memory", text, doing))
            # Nobody but the kernel's memory killer, a person or a supervisor sends this.
            raise Ended(Problem("crash", f"{reason}, from outside", doing), outside=True)
        if status == -signal.SIGXCPU:
            raise Ended(Problem("hang", f"{reason}: its processor seconds were used up", doing))
        raise Ended(Problem("crash", reason, doing))


def _start(terms: Terms, control: socket.socket, readable: Sequence[Path]) -> Child:
    limits = _limits(terms.criteria)
    argument = {
        "ctl": control.fileno(),
        "memory": None,
        "request": None,
        "reply": None,
        "parent": os.getpid(),
        "version": __version__,
        "nice": 19,
        "sandbox": True,
        "readable": [str(path.absolute()) for path in (*readable, *((terms.delegate,) if terms.delegate else ()))],
        "limits": limits,
    }
    child = spawn(
        [*terms.worker, json.dumps(argument)],
        pass_fds=(control.fileno(),),
        env=bare_environment(),
        capture=_OUTPUT,
    )
    child.confine(
        Limits(
            # From outside the size of the runtime is not known, so the cage is looser than the worker's own.
            memory_mb=limits["memory_mb"] + 4096,
            cpu_s=limits["cpu_s"],
            files=limits["files"],
            fsize_mb=limits["fsize_mb"],
            processes=limits["processes"],
        )
    )
    return child


def _limits(criteria: Manifest) -> dict[str, int]:
    """The cage: wide enough to measure a promise being broken, narrow enough to survive it."""
    limits = criteria.limits
    work_s = limits.load_s + criteria.canary.samples * limits.latency_ms / 1e3
    return {
        "memory_mb": int(2 * limits.memory_mb + 256),
        "cpu_s": int(60 + 10 * work_s),
        "files": 64,
        "fsize_mb": 1,
        "processes": 512,
    }


def _resident_limit_kb(criteria: Manifest) -> int:
    return int(2 * criteria.limits.memory_mb + 128) * 1024


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
