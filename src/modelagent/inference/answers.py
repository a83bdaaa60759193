"""What a worker answers to its parent's commands: load, serve, samples, run, memory, unload.

This file knows the commands (they are listed in `worker.py`), the slot's files and the mailbox for frames. It does not
know how the process was limited, nor links, policies or the network; it decides nothing.

    Worker(control, mailbox=None).run()             # until the parent hangs up or says `unload`

A refusal is an answer with "code" and "reason"; a crash of the model is the end of the process, and nothing else's.
"""

import hashlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelagent.children import raise_priority
from modelagent.errors import AgentError, ModelError
from modelagent.inference import exchange, interpreter
from modelagent.inference.decisions import Decider
from modelagent.inference.interpreter import Model
from modelagent.inference.readout import dequantise
from modelagent.inference.samples import Samples
from modelagent.inference.values import Values
from modelagent.manifest import FileRef, Manifest, parse

PACKET: Final = 64 * 1024  # bytes; a larger packet is cut by the kernel and then refused as no JSON
MAX_BATCH: Final = 200  # samples in one answer, which keeps it far below a packet
_STINT: Final = 64  # frames between two looks at the control socket
_SPIN_S: Final = 50e-6  # waking from a sleep costs about as much; on a single processor there is nothing to wait for


class Worker:
    """The state of one worker: a model, and either samples or a mailbox.

    Args:
        control: the connected socket to the parent.
        mailbox: descriptors of memory, request and reply, or None where no frames will come.
    """

    def __init__(self, control: socket.socket, mailbox: tuple[int, int, int] | None) -> None:
        self._control = control
        self._mailbox = mailbox
        self._slot = Path()
        self._manifest: Manifest | None = None
        self._model: Model | None = None
        self._decider: Decider | None = None
        self._samples: Samples | None = None
        self._values: Values | None = None
        self._side: exchange.WorkerSide | None = None
        self._steps: list[Callable[[], bool]] = []  # by number of the mailbox's slot
        self._done = False

    def run(self) -> None:
        """Answer until the parent hangs up or says `unload`."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        control = self._control.fileno()
        while not self._done:
            for fd, _ in poll.poll():
                if fd != control:
                    self._answer_frames()
                    continue
                try:
                    packet = self._control.recv(PACKET)
                except ConnectionError:  # the parent left with an answer unread
                    return
                if not packet:
                    return
                answer = self._answer(packet)
                self._control.send(json.dumps(answer, allow_nan=False).encode())
                if self._side is not None:
                    poll.register(self._side.request_fd, select.POLLIN)

    def _answer(self, packet: bytes) -> dict[str, Any]:
        try:
            command = json.loads(packet)
            verb = {
                "load": self._load,
                "serve": self._serve,
                "samples": self._open_samples,
                "run": self._run_samples,
                "memory": self._measure,
                "unload": self._unload,
            }[command["do"]]
        except (ValueError, KeyError, TypeError):
            return _refusal("command", "no such command; the parent is of another version")
        try:
            return {"ok": True, **verb(command)}
        except AgentError as error:
            return _refusal(error.code, error.message)
        except MemoryError as error:
            return _refusal("memory", f"{command['do']}: no memory within the limit{_after(error)}")

    # -- load ----------------------------------------------------------------------------------------------------

    def _load(self, command: Mapping[str, Any]) -> dict[str, Any]:
        if self._model is not None:
            raise ModelError("this worker has a model already; start another worker", code="command")
        slot = Path(command["slot"])
        manifest = _read_manifest(slot)
        _check_runtime(manifest, interpreter.runtime_version())
        verify(slot, manifest.model_file)
        begun = time.perf_counter()
        # A library is used only by a release that asks for another delegate than the processor.
        library = str(command.get("delegate", "")) if manifest.delegate != interpreter.DELEGATE else ""
        model = interpreter.load(
            slot / manifest.model_file.name, threads=int(command.get("threads", 1)), delegate=library
        )
        load_ms = (time.perf_counter() - begun) * 1e3
        found = interpreter.mismatch(manifest.inputs, model.inputs, "input")
        found = found or interpreter.mismatch(manifest.outputs, model.outputs, "output")
        if found:
            raise ModelError(f"the model does not keep its manifest's contract: {found}", code="contract")
        decider = Decider(manifest)
        begun = time.perf_counter()
        _warm_up(slot, model, manifest, decider)
        self._slot, self._manifest, self._model, self._decider = slot, manifest, model, decider
        return {
            "inputs": [interpreter.describe(item) for item in model.inputs],
            "outputs": [interpreter.describe(item) for item in model.outputs],
            "load_ms": load_ms,
            "warmup_ms": (time.perf_counter() - begun) * 1e3,
            "rss_kb": _resident()[0],
            "runtime": interpreter.runtime_version(),
            "delegate": manifest.delegate if library else interpreter.DELEGATE,
        }

    # -- frames --------------------------------------------------------------------------------------------------

    def _serve(self, command: Mapping[str, Any]) -> dict[str, Any]:
        _, manifest, _ = self._loaded()
        if self._mailbox is None:
            raise ModelError("this worker was started without a mailbox", code="command")
        if self._side is None:
            memory, request, reply = self._mailbox
            self._side = exchange.WorkerSide(
                exchange.plan(manifest.inputs, manifest.outputs, stateful=manifest.stateful),
                memory_fd=memory,
                request_fd=request,
                reply_fd=reply,
                spin_s=_SPIN_S if len(os.sched_getaffinity(0)) > 1 else 0.0,
            )
            self._steps = [self._step(slot) for slot in self._side.slots]
        return {"nice": raise_priority(int(command.get("nice", 0)))}

    def _answer_frames(self) -> None:
        """Answer what waits in the mailbox; the poll comes back for what is left."""
        side, steps, clock = self._side, self._steps, time.perf_counter_ns
        assert side is not None  # noqa: S101 - the mailbox is polled only once it is served
        for _ in range(_STINT):
            if not side.take():
                return
            begun = clock()
            try:
                status = exchange.OK if steps[side.number]() else exchange.NOT_FINITE
            except (RuntimeError, ValueError, MemoryError, ModelError):
                status = exchange.FAILED
            side.answer(status, clock() - begun)
        side.leave()

    def _step(self, slot: exchange.Slot) -> Callable[[], bool]:
        """What answers a question in this slot of the mailbox; it says whether the outputs are finite."""
        model, manifest, _ = self._loaded()
        if slot.fixed is not None:
            inputs, outputs = slot.fixed
            model.fit(inputs)
            return model.bind(inputs, outputs, reset=not manifest.stateful)

        def once() -> bool:
            given = slot.read_inputs()
            if not manifest.stateful:
                model.reset()
            model.fit(given)
            found = model.invoke(given)
            slot.write_outputs(found)
            return interpreter.is_finite(found)

        return once

    # -- samples -------------------------------------------------------------------------------------------------

    def _open_samples(self, command: Mapping[str, Any]) -> dict[str, Any]:
        _, manifest, _ = self._loaded()
        slot = Path(command.get("slot", self._slot))
        # The set belongs to the slot it lies in; the hash that counts is in that slot's manifest.
        signed = _read_manifest(slot) if slot != self._slot else manifest
        reference = signed.file("canary")
        if reference is None:
            raise ModelError(f"{slot}: the manifest lists no canary set", code="canary")
        verify(slot, reference)
        if self._samples is not None:
            self._samples.close()
        self._samples = Samples(slot / reference.name, len(manifest.inputs))
        self._values = Values(
            signed.canary.metric,
            tensors=manifest.outputs,
            inputs=manifest.inputs,
            tolerance=signed.canary.tolerance,
            classes=manifest.postprocess.get("kind") == "classification",
        )
        return {"count": self._samples.count, "has_labels": self._samples.labels is not None}

    def _run_samples(self, command: Mapping[str, Any]) -> dict[str, Any]:
        if "index" in command:
            names = ("index", "us", "finite", "prediction", "label", "score", "confidence", "values")
            return dict(zip(names, self._run_one(int(command["index"])), strict=True))
        start, stop = int(command["start"]), int(command["stop"])
        if stop - start > MAX_BATCH:
            raise ModelError(f"{stop - start} samples asked for, at most {MAX_BATCH} at once", code="command")
        return {"rows": [self._run_one(index) for index in range(start, stop)]}

    def _run_one(self, index: int) -> list[Any]:
        model, manifest, decider = self._loaded()
        if self._samples is None or self._values is None:
            raise ModelError("no samples are open; say `samples` first", code="command")
        try:
            arrays = [decider.prepare(i, array) for i, array in enumerate(self._samples.read(index))]
            label, truth = self._samples.label(index), self._samples.truth(index)
        except AgentError as error:
            raise ModelError(f"sample {index}: {error.message}", code="canary") from error
        begun = time.perf_counter_ns()
        try:
            if not manifest.stateful:
                model.reset()
            model.fit(arrays)
            outputs = model.invoke(arrays)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"sample {index}: the model failed: {error}", code="invoke") from error
        took_us = (time.perf_counter_ns() - begun) / 1e3
        if not interpreter.is_finite(outputs):
            return [index, took_us, False, None, label, 0.0, 0.0, []]
        decision = decider.decide(outputs, arrays)
        score = float(dequantise(outputs[0].reshape(-1), manifest.outputs[0]).max()) if outputs[0].size else 0.0
        values = self._values.of(outputs, arrays, truth)
        return [index, took_us, True, decision.prediction, label, score, decision.confidence or 0.0, values]

    # -- the rest ------------------------------------------------------------------------------------------------

    def _measure(self, _command: Mapping[str, Any]) -> dict[str, Any]:
        present, peak = _resident()
        return {"peak_kb": peak, "rss_kb": present}

    def _unload(self, _command: Mapping[str, Any]) -> dict[str, Any]:
        if self._samples is not None:
            self._samples.close()
        self._steps.clear()
        if self._model is not None:
            self._model.close()
            self._model = None
        self._done = True
        return {}

    def _loaded(self) -> tuple[Model, Manifest, Decider]:
        if self._model is None or self._manifest is None or self._decider is None:
            raise ModelError("no model is loaded; say `load` first", code="command")
        return self._model, self._manifest, self._decider


def verify(slot: Path, reference: FileRef) -> None:
    """Check one file of a slot against its signed hash: a flipped bit loads silently in a third of cases.

    Raises:
        ModelError: `hash`.
    """
    path = slot / reference.name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; stage the release again", code="hash") from error
    if found != reference.sha256:
        raise ModelError(
            f"{path}: sha256 is {found[:12]}…, signed is {reference.sha256[:12]}…; stage the release again",
            code="hash",
        )


def _read_manifest(slot: Path) -> Manifest:
    path = slot / "manifest.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; stage the release again", code="hash") from error
    return parse(data)


def _check_runtime(manifest: Manifest, runtime: str) -> None:
    have = runtime.rpartition(" ")[2]
    low, high = manifest.runtime_min, manifest.runtime_max
    if (low is not None and _order(have) < _order(low)) or (high is not None and _order(have) > _order(high)):
        raise ModelError(
            f"the release needs a runtime from {low or 'any'} to {high or 'any'}, this device has {runtime}; "
            "publish it for this runtime or update the agent",
            code="contract",
        )


def _order(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    while numbers and numbers[-1] == 0:  # 2.1 and 2.1.0 are the same version
        numbers.pop()
    return tuple(numbers)


def _resident() -> tuple[int, int]:
    """Present and peak resident memory of this process, KiB (VmRSS and VmHWM of proc(5))."""
    found = {"VmRSS:": 0, "VmHWM:": 0}
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, rest = line.partition("\t")
            if name in found:
                found[name] = int(rest.split()[0])
    return found["VmRSS:"], found["VmHWM:"]


def _warm_up(slot: Path, model: Model, manifest: Manifest, decider: Decider) -> None:
    reference = manifest.file("warmup")
    if reference is None:
        frames = [[np.zeros(exchange.fixed_shape(item), item.dtype) for item in manifest.inputs]]
    else:
        verify(slot, reference)
        try:
            frames = _read_frames(slot / reference.name, decider)
        except AgentError as error:
            raise ModelError(error.message, code="warmup") from error
    for index, frame in enumerate(frames):
        try:
            model.fit(frame)
            outputs = model.invoke(frame)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"warm-up frame {index}: the model failed: {error}", code="warmup") from error
        if not interpreter.is_finite(outputs):
            raise ModelError(f"warm-up frame {index}: the model's output is NaN or infinite", code="not-finite")
    model.reset()


def _read_frames(path: Path, decider: Decider) -> list[list[exchange.Array]]:
    """The first samples of a set, as the model takes them."""
    with Samples(path, len(decider.inputs)) as samples:
        return [
            [decider.prepare(number, array) for number, array in enumerate(samples.read(index))]
            for index in range(min(samples.count, MAX_BATCH))
        ]


def _refusal(code: str, reason: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "reason": reason[:4000]}


def _after(error: BaseException) -> str:
    return f": {error}" if str(error) else ""
