"""Run the canary: the candidate and the running model, the same samples, each in a caged child.

This file knows how to start, feed, watch and end two workers, and how to turn whatever they do into evidence. It does
not know statistics (`judges/canary.py` judges), the runtime (the worker does) or what follows from a verdict.

    runner = CanaryRunner(threads=1)
    verdict = runner.run(slots / candidate, slots / current, 1, manifest, abandoned=lambda: False)

A candidate that dies, hangs, eats memory, talks nonsense or prints for ever is a verdict. A *running* model that does
is not the candidate's fault: the comparison falls away, the absolute gates stay, and the reason says so. What neither
did (no process to be had, killed from outside, starved of the processor, a worker that fails before it has seen any
model, bytes on disk that changed) is a DeviceError, and blames no release.

Everything here holds against a worker that was taken over: limits are set from outside as well, its output goes to a
file of fixed size, its answers are parsed as hostile input, its group is killed at the end. Call `run` from a
long-lived thread (see `children.py`). It keeps nothing between two runs.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeGuard

from modelagent import __version__
from modelagent.children import Child, Limits, describe_exit, spawn
from modelagent.core.verdicts import CanaryVerdict
from modelagent.errors import DeviceError, ModelError
from modelagent.judges.canary import CanaryEvidence, ModelRun, Problem, Sample, judge_canary
from modelagent.manifest import Manifest, parse
from modelagent.steps import witness

WORKER: Final = (sys.executable, "-m", "modelagent.inference.worker")
_PACKET: Final = 64 * 1024  # bytes, the protocol's largest answer
_TICK_S: Final = 0.05  # how often memory and `abandoned` are looked at while a worker is busy
_OUTPUT: Final = 16 * 1024  # bytes of a worker's output that are kept for the reason
_BATCH: Final = 16  # samples before it is the other model's turn
_VALUES: Final = 3 * 64  # numbers that a metric may need of one sample: three a class
_START_S: Final = 60.0  # imports on a slow card without compiled files
_SHORT_S: Final = 60.0  # a command that only hashes or counts
_LIFT_S: Final = 10.0  # after which a worker that has not answered is lifted from the very lowest priority
_STARVED: Final = 0.5  # share of the time limit spent waiting for a processor, above which the device is to blame
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "PYTHONDONTWRITEBYTECODE")


class _Ended(Exception):  # noqa: N818 - not an error here but evidence
    """A worker showed a problem; nothing more will come of it."""

    def __init__(self, problem: Problem, *, outside: bool = False) -> None:
        super().__init__(problem.reason)
        self.problem = problem
        self.outside = outside  # the device did it, neither model nor runtime


class CanaryRunner:
    """Runs canaries, one at a time.

    Args:
        worker: program and first arguments; the JSON argument is appended. Tests put stand-ins here.
        threads: processor threads, as inference uses them.
        budget_s: wall-clock seconds that each of the two models may take altogether.
        delegate: library of an external delegate, for releases that ask for one. None: the processor, on which every
            release must run as well, since an accelerator that serves can seldom be opened twice.
        memory_mb: what this device gives one worker at most. One that needs more and keeps its promise blames no
            release: the device cannot try it.
        clock: Unix seconds, for the verdict's time.
    """

    def __init__(
        self,
        *,
        worker: Sequence[str] = WORKER,
        threads: int = 1,
        budget_s: float = 600.0,
        delegate: Path | None = None,
        memory_mb: float = math.inf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._worker = tuple(worker)
        self._delegate = delegate
        self._threads = threads
        self._budget_s = budget_s
        self._memory_mb = memory_mb
        self._clock = clock

    def run(
        self,
        candidate_slot: Path,
        baseline_slot: Path | None,
        run: int,
        criteria: Manifest,
        abandoned: Callable[[], bool],
    ) -> CanaryVerdict:
        """Run both models once over the signed samples and judge.

        Args:
            candidate_slot: absolute path of the complete slot.
            baseline_slot: of what runs now; None: absolute gates alone.
            run: 1, 2 or 3; from the second on after an earlier verdict AGAIN.
            criteria: the candidate's manifest.
            abandoned: asked every few hundredths of a second; true ends the run.

        Raises:
            DeviceError: `abandoned`, `canary` (this device cannot now) or `hash` (the slot's bytes have changed).
        """
        bench = _Bench(
            self._worker,
            self._threads,
            self._budget_s,
            criteria,
            abandoned,
            delegate=self._delegate,
            memory_mb=self._memory_mb,
        )
        try:
            evidence = bench.gather(candidate_slot, baseline_slot, run, self._clock())
        finally:
            bench.close()
        verdict = judge_canary(evidence, criteria.canary, criteria.limits)
        if criteria.delegate == "cpu" or not evidence.candidate.delegate:
            return verdict
        return replace(verdict, reason=f"{verdict.reason}; {_where(criteria.delegate, evidence.candidate.delegate)}")


class _Bench:
    """One run: two workers side by side."""

    def __init__(
        self,
        worker: tuple[str, ...],
        threads: int,
        budget_s: float,
        criteria: Manifest,
        abandoned: Callable[[], bool],
        *,
        delegate: Path | None,
        memory_mb: float,
    ) -> None:
        self.memory_mb = memory_mb
        self._worker = worker
        self._delegate = delegate
        self._threads = threads
        self._budget_s = budget_s
        self._criteria = criteria
        self._abandoned = abandoned
        self._sessions: list[_Session] = []

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def gather(self, candidate_slot: Path, baseline_slot: Path | None, run: int, at: float) -> CanaryEvidence:
        candidate = _Session(self._criteria.digest, self._criteria.version, self)
        baseline, alone = self._prepare_baseline(baseline_slot, candidate_slot)
        self._sessions.append(candidate)
        try:
            candidate.spawn(candidate_slot)  # both import the runtime at the same time
            if baseline is not None and baseline_slot is not None:
                baseline, alone = self._open_baseline(baseline, baseline_slot, candidate_slot)
            candidate.greet()
            candidate.load(candidate_slot, self._threads)
            count = candidate.open_samples(candidate_slot) if self._criteria.canary.samples else 0
            if count != self._criteria.canary.samples:
                raise _Ended(Problem("canary", _unlike(count, self._criteria), "opening the samples"))
            for number, start in enumerate(range(0, count, _BATCH)):
                stop = min(count, start + _BATCH)
                if baseline is None:
                    candidate.infer(start, stop)
                    continue
                # Alternating who begins keeps a slow drift of the clock speed from favouring one.
                for session in (candidate, baseline) if number % 2 == 0 else (baseline, candidate):
                    if session is candidate:
                        candidate.infer(start, stop)
                    elif baseline is not None:
                        lost = self._try_baseline(baseline, start, stop)
                        if lost:
                            baseline, alone = None, lost
            candidate.unload()
        except _Ended as ended:
            self._blame_device(ended, candidate_slot)
            candidate.problem = ended.problem
        return CanaryEvidence(
            candidate=candidate.result(),
            baseline=None if baseline is None else baseline.result(),
            run=run,
            at=at,
            alone="" if baseline is not None else alone,
        )

    def _prepare_baseline(self, slot: Path | None, candidate_slot: Path) -> "tuple[_Session | None, str]":
        if slot is None:
            return None, "nothing is running to compare it with"
        try:
            manifest = parse((slot / "manifest.json").read_bytes())
        except (OSError, ModelError) as error:
            return None, f"the running release's manifest cannot be read: {error}"
        session = _Session(manifest.digest, manifest.version, self)
        self._sessions.append(session)
        try:
            session.spawn(slot, candidate_slot)
        except _Ended as ended:
            self._blame_device(ended, slot)
        return session, ""

    def _open_baseline(self, session: "_Session", slot: Path, candidate_slot: Path) -> "tuple[_Session | None, str]":
        try:
            session.greet()
            session.load(slot, self._threads)
            if self._criteria.canary.samples:
                session.open_samples(candidate_slot)
        except _Ended as ended:
            session.close()
            if ended.outside:
                self._blame_device(ended, slot)
            return None, f"the running {session.version} cannot take part: {ended.problem.reason}"
        return session, ""

    def _try_baseline(self, session: "_Session", start: int, stop: int) -> str:
        try:
            session.infer(start, stop)
        except _Ended as ended:
            session.close()
            if ended.outside:
                self._blame_device(ended, Path())
            return f"the running {session.version} dropped out: {ended.problem.reason}"
        return ""

    def _blame_device(self, ended: _Ended, slot: Path) -> None:
        if ended.outside:
            raise DeviceError(
                f"the canary could not be run: {ended.problem.reason}; it is tried again when the device is calmer",
                code="canary",
            )
        if ended.problem.code == "delegate":
            raise DeviceError(f"the canary could not be run: {ended.problem.reason}", code="delegate")
        if ended.problem.code == "hash":
            raise DeviceError(
                f"the canary could not be run: {ended.problem.reason}; slot {slot.name[:12]} changed on disk",
                code="hash",
            )

    # -- what a session needs of its bench -------------------------------------------------------------------------

    @property
    def budget_s(self) -> float:
        return self._budget_s

    @property
    def delegate(self) -> str:
        """Path of the delegate's library, or empty."""
        return str(self._delegate or "")

    @property
    def criteria(self) -> Manifest:
        return self._criteria

    def spawn(self, control: socket.socket, readable: Sequence[Path]) -> Child:
        limits = _limits(self._criteria)
        argument = {
            "ctl": control.fileno(),
            "memory": None,
            "request": None,
            "reply": None,
            "parent": os.getpid(),
            "version": __version__,
            "nice": 19,
            "sandbox": True,
            "readable": [str(path.absolute()) for path in (*readable, *((self._delegate,) if self._delegate else ()))],
            "limits": limits,
        }
        child = spawn(
            [*self._worker, json.dumps(argument)],
            pass_fds=(control.fileno(),),
            # A model gets no secret that this process was given through its environment.
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
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

    def check_abandoned(self) -> None:
        if self._abandoned():
            raise DeviceError("the canary was abandoned", code="abandoned")


class _Session:
    """One worker and what it has shown so far."""

    def __init__(self, digest: str, version: str, bench: _Bench) -> None:
        self.version = version
        self.problem: Problem | None = None
        self._digest = digest
        self._bench = bench
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self._left_s = bench.budget_s
        self._samples: list[Sample] = []
        self._facts: dict[str, Any] = {}
        self._has_labels = False
        self._peak_kb = 0

    def spawn(self, *readable: Path) -> None:
        """Start the worker's process.

        Args:
            readable: the slots that it may read; of everything else only the interpreter's own files.

        Raises:
            _Ended: `outside`, for whatever goes wrong here cannot be a model's fault.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket = ours
            ours.setblocking(False)
            with theirs:
                self._child = self._bench.spawn(theirs, readable)
        except OSError as error:
            raise _Ended(Problem("canary", f"no worker could be started: {error}"), outside=True) from error

    def greet(self) -> None:
        """Hear a first answer, before it has seen any model.

        Raises:
            _Ended: `outside`, as above.
        """
        try:
            self._ask({"do": "memory"}, _START_S, "starting")
            self._facts["cage"] = witness.cage(self._running().pid)
        except _Ended as ended:
            raise _Ended(ended.problem, outside=True) from ended

    def load(self, slot: Path, threads: int) -> None:
        limits = self._bench.criteria.limits
        patience = _START_S + 5.0 * limits.load_s
        command = {"do": "load", "slot": str(slot), "threads": threads, "delegate": self._bench.delegate}
        answer = self._ask(command, patience, "loading")
        for name in ("load_ms", "warmup_ms"):
            self._facts[name] = self._number(answer, name, "loading")
        for name in ("runtime", "delegate"):
            self._facts[name] = str(answer.get(name, ""))[:100]

    def open_samples(self, slot: Path) -> int:
        answer = self._ask({"do": "samples", "slot": str(slot)}, _SHORT_S, "opening the samples")
        self._has_labels = answer.get("has_labels") is True
        return int(self._number(answer, "count", "opening the samples"))

    def infer(self, start: int, stop: int) -> None:
        """Run samples start..stop-1 and keep what it said of them."""
        doing = f"running samples {start} to {stop - 1}"
        patience = 10.0 + (stop - start) * self._bench.criteria.limits.latency_ms / 1e3 * 20.0
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
                self._bench.check_abandoned()
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
        raise _Ended(Problem(code[:40], reason[:2000], doing))

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
        raise _Ended(problem, outside=outside)

    def _give_up(self, doing: str, limit: float, waited: float) -> NoReturn:
        if waited > _STARVED * limit:
            text = f"{limit:.0f} s were not enough while {doing}: for {waited:.0f} s of them it had no processor"
            self._stop(Problem("hang", text, doing), outside=True)
        self._stop(Problem("hang", f"no answer within {limit:.0f} s while {doing}", doing))

    def _watch_memory(self, doing: str) -> None:
        allowed_kb = _resident_limit_kb(self._bench.criteria)
        present = self._running().resident_kb()
        self._peak_kb = max(self._peak_kb, present)
        if present > min(allowed_kb, self._bench.memory_mb * 1024):
            promised = self._bench.criteria.limits.memory_mb
            if present <= promised * 1024:
                given = f"limits.canary.memory_mb gives {self._bench.memory_mb:g} MB"
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
        limits = self._bench.criteria.limits
        if status == -signal.SIGKILL:
            peak_mb = max(self._peak_kb, child.peak_kb) // 1024
            if peak_mb > limits.memory_mb:
                text = f"{reason}, at {peak_mb} MB; promised are at most {limits.memory_mb:.0f} MB"
                raise _Ended(Problem("memory", text, doing))
            # Nobody but the kernel's memory killer, a person or a supervisor sends this.
            raise _Ended(Problem("crash", f"{reason}, from outside", doing), outside=True)
        if status == -signal.SIGXCPU:
            raise _Ended(Problem("hang", f"{reason}: its processor seconds were used up", doing))
        raise _Ended(Problem("crash", reason, doing))


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


def _where(wanted: str, used: str) -> str:
    return f"on {used}" if used == wanted else f"on {used}, will serve on {wanted}"


def _unlike(count: int, criteria: Manifest) -> str:
    return f"the sample set holds {count} samples, its manifest promises {criteria.canary.samples}"


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
