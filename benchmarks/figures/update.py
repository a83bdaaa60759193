"""What an update costs the line while it goes on: check, download, verification, canary, load, swap, probation.

This file knows the figures of the update. A real device, with its updater, serves int8 MobileNetV2; the channel is
moved from release to release over HTTP, so that every update fetches a whole new model. Windows with an update
alternate with quiet ones. What another machine would do stays out of it: releases are published beforehand, and the
web server has idle time only.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.bare import Bare
from benchmarks.figures.loop import model_file, pictures
from benchmarks.measure import Figure, Group, Measured, median, quantile
from benchmarks.stand import Stand

from modelagent.children import sink
from modelagent.publish.repository import Repository
from modelagent.publish.serve import Server

_UPDATES: Final = int(os.environ.get("BENCH_UPDATES", "4"))
_SAMPLES: Final = 60
_PATIENCE: Final = 120.0
_PATIENCE_ONE: Final = 900.0  # an update beside a loop that wants the only processor for itself gets what is left over
_FPS: Final = 30.0


class _Publisher:
    """Releases of one network: the same weights, other trailing bytes, which no reader looks at."""

    def __init__(self, folder: Path, model: Path, contract: Mapping[str, Any], labels: Any, frames: Any) -> None:
        self._folder, self._model, self._contract = folder, model, contract
        self._repository = Repository.init(folder / "repo", folder / "keys", ["bench"])
        self.canary = folder / "canary.npz"
        np.savez(self.canary, input_0=frames, labels=labels)
        self.root = folder / "keys" / "root.json"
        self.directory = folder / "repo"

    def add(self, number: int) -> None:
        """Publish release `number`."""
        file = self._folder / f"{number}.tflite"
        file.write_bytes(self._model.read_bytes() + sha256(str(number).encode()).digest())
        document = {
            "model": "bench",
            "version": f"1.{number}.0",
            "number": number,
            "runtime": {},
            "delegate": "cpu",
            "hardware": [],
            "stateful": False,
            "inputs": self._contract["inputs"],
            "outputs": self._contract["outputs"],
            "labels": [],
            "preprocess": {"kind": "none"},
            "postprocess": {"kind": "classification", "softmax": False},
            "canary": {"metric": "accuracy", "margin": 0.2, "confidence": 0.95, "floor": 0.5, "samples": _SAMPLES},
            "limits": {"latency_ms": 200.0, "latency_ratio": 10.0, "memory_mb": 400.0, "load_s": 60.0},
            "card": {},
        }
        self._repository.add(document, {"model": file, "canary": self.canary})

    def offer(self, number: int) -> str:
        """Move the channel to release `number`; returns its version."""
        self._repository.channel("bench", "stable", f"1.{number}.0")
        return f"1.{number}.0"


def _labels(model: Path, frames: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - only here

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    found = []
    for frame in frames:
        interpreter.set_tensor(source, frame[np.newaxis])
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(target).argmax()))
    return np.array(found, np.int64)


_Spans = list[tuple[float, float]]


def _serve(server: Server) -> None:
    """Start the web server in a thread of its own; its requests are handled at idle priority, which threads inherit."""

    def start() -> None:
        sink(0)
        server.start()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()


def _run(
    folder: Path, *, fps: float, dtype: str = "int8", updates_wanted: int = _UPDATES, patience: float = _PATIENCE
) -> tuple[list[dict[str, Any]], _Spans, _Spans]:
    """All results, and the spans (wall) of updates and of quiet."""
    model = model_file(folder, dtype)
    frames = pictures(_SAMPLES, dtype)
    played = folder / "mnv2_frames.npz"
    np.savez(played, input_0=frames[:16])
    updates, quiet = [], []
    with Bare(model, played) as bare, Stand(folder / "update") as stand:
        publisher = _Publisher(stand.folder, model, bare.contract, _labels(model, frames), frames)
        for number in range(1, 2 + updates_wanted):
            publisher.add(number)
        wanted = publisher.offer(1)
        server = Server(publisher.directory)
        _serve(server)
        try:
            source = {"kind": "replay", "path": str(played), "fps": fps, "overflow": "drop-oldest" if fps else "block"}
            stand.configure(
                {
                    "bench": {
                        "source": source,
                        "probation": {"frames": 30, "seconds": 1.0},
                        "results": {"sqlite": False, "jsonl": True, "max_mb": 1000},
                    }
                },
                repository={"url": server.url, "root": str(publisher.root)},
                policy={"check_interval": "1s", "jitter": 0.0},
            )
            stand.start()
            _until(stand, wanted, patience)
            for number in range(2, 2 + updates_wanted):
                time.sleep(3.0)
                span = time.time()
                time.sleep(4.0)
                quiet.append((span, time.time()))
                span = time.time()
                _until(stand, publisher.offer(number), patience)
                updates.append((span, time.time()))
            time.sleep(0.5)
        finally:
            stand.stop_all()
            server.close()
        rows = stand.rows("bench")
    return rows, updates, quiet


def _until(stand: Stand, version: str, patience: float) -> None:
    """Wait until the version runs and is confirmed."""
    found = stand.wait(
        "bench",
        lambda health: health["running"] and health["running"]["version"] == version,
        seconds=patience,
        pause=0.05,
    )
    digest = found["running"]["digest"]
    confirmed = stand.paths["state_dir"] / "models/bench/slots" / digest / "confirmed"
    deadline = time.monotonic() + patience
    while not confirmed.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{version} was not confirmed; health {json.dumps(found)[:300]}")
        time.sleep(0.05)


def _latencies(rows: list[dict[str, Any]], spans: list[tuple[float, float]]) -> list[list[float]]:
    return [
        [row["latency_us"] for row in rows if row["outcome"] == "ok" and begun <= row["wall"] < ended]
        for begun, ended in spans
    ]


def _compared(
    name: str, rows: list[dict[str, Any]], updates: _Spans, quiet: _Spans, processors: int
) -> dict[str, Measured]:
    during, beside = _latencies(rows, updates), _latencies(rows, quiet)
    ratio = median([quantile(a, 0.99) / quantile(b, 0.99) for a, b in zip(during, beside, strict=True)])
    p50 = median([quantile(a, 0.5) / quantile(b, 0.5) for a, b in zip(during, beside, strict=True)])
    how = (
        f"{len(updates)} updates over HTTP, {median([b - a for a, b in updates]):.1f} s each (median), on "
        f"{processors} processors; p99 {median([quantile(a, 0.99) for a in during]) / 1e3:.2f} ms during, "
        f"{median([quantile(b, 0.99) for b in beside]) / 1e3:.2f} ms beside; p50 ratio {p50:.2f}"
    )
    return {name: Measured(ratio, how)}


def back_to_back(folder: Path, dtype: str, name: str) -> dict[str, Measured]:
    """`update.p99_ratio`, and the same in float32."""
    rows, updates, quiet = _run(folder, fps=0.0, dtype=dtype)
    return _compared(name, rows, updates, quiet, len(os.sched_getaffinity(0)))


def on_one(folder: Path) -> dict[str, Measured]:
    """`update.p99_ratio_1cpu`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # every process started from here on inherits it
    try:
        rows, updates, quiet = _run(folder, fps=0.0, updates_wanted=1, patience=_PATIENCE_ONE)
    finally:
        os.sched_setaffinity(0, before)
    return _compared("update.p99_ratio_1cpu", rows, updates, quiet, 1)


def paced(folder: Path) -> dict[str, Measured]:
    """`update.missed_deadlines`."""
    rows, updates, quiet = _run(folder, fps=_FPS)
    limit = 1e6 / _FPS

    def missed(spans: list[tuple[float, float]]) -> int:
        return sum(
            row["outcome"] != "ok" or row["latency_us"] > limit
            for row in rows
            for begun, ended in spans
            if begun <= row["wall"] < ended
        )

    frames = sum(begun <= row["wall"] < ended for row in rows for begun, ended in updates)
    how = (
        f"of {frames} frames at {_FPS:g} fps during {len(updates)} updates: later than {limit / 1e3:.0f} ms, dropped "
        f"or faulted; {missed(quiet)} in the quiet spans between"
    )
    return {"update.missed_deadlines": Measured(missed(updates), how)}


GROUPS: Final = (
    Group(
        (Figure("update.p99_ratio", "ratio", "<= 1.5"),), partial(back_to_back, dtype="int8", name="update.p99_ratio")
    ),
    Group(
        (Figure("update.p99_ratio_float32", "ratio", ""),),
        partial(back_to_back, dtype="float32", name="update.p99_ratio_float32"),
    ),
    Group((Figure("update.p99_ratio_1cpu", "ratio", "<= 1.1"),), on_one),
    Group((Figure("update.missed_deadlines", "frames", "<= 0"),), paced),
)
