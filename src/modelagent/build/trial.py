"""The child that runs one variant on the device's own runtime: answers, times, memory.

This file knows the runtime's adapter, which it finds by name: only a child process may load a model. Whatever a model
does to its process, the parent reads it from the exit status.

    python -m modelagent.build.trial '{"model": "int8.tflite", "samples": "folder", "threads": 1, "reference": null,
        "rounds": 20, "metric": "accuracy"}'

"outputs": "outputs.npy" makes it keep the numbers of output 0 as well, one row a sample.
It prints one JSON line: {"answers": [...], "values": [...], "finite": true, "us": [...], "peak_kb": ..., ...}. What the
metric needs of an answer (`values`) is computed by the device's own code.
With a reference both models run in short blocks by turns, so that what else the machine does falls on both alike.
"""

import json
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_BLOCK_S: Final = 0.02  # length of one block in the comparison
_WARM: Final = 3


def main(argument: Mapping[str, Any]) -> dict[str, Any]:
    """Measure and tell."""
    adapter = import_module("modelagent.inference.interpreter")
    look = import_module("modelagent.inference.values")
    folder = Path(argument["samples"])
    begun = time.perf_counter()
    model = adapter.load(Path(argument["model"]), threads=int(argument["threads"]))
    load_ms = (time.perf_counter() - begun) * 1e3
    inputs = inputs_of(folder)
    count = int(argument.get("count") or len(inputs[0]))
    frames = [_frame(model, inputs, index) for index in range(min(count, 8))]
    for _ in range(_WARM):
        model.invoke(frames[0])
    truth = np.load(folder / "truth.npy", mmap_mode="r")
    tensors = [[found.declared for found in edge] for edge in (model.outputs, model.inputs)]
    of = look.Values(str(argument["metric"]), tensors=tensors[0], inputs=tensors[1], tolerance=0.0, classes=False).of
    answers: list[int] = []
    values: list[list[float]] = []
    times: list[float] = []
    kept: list[npt.NDArray[Any]] = []
    finite = probabilities = True
    for index in range(count):
        frame = _frame(model, inputs, index)
        start = time.perf_counter_ns()
        made = model.invoke(frame)
        times.append((time.perf_counter_ns() - start) / 1e3)
        finite = finite and adapter.is_finite(made)
        probabilities = probabilities and _is_distribution(made[0], model.outputs[0].declared.quantisation)
        answers.append(int(np.argmax(made[0])))
        values.append(of(made, frame, truth[index]))
        if argument.get("outputs"):
            kept.append(made[0].astype(np.float32))
    if kept:
        np.save(Path(argument["outputs"]), np.stack([found.reshape(-1) for found in kept]))
    result: dict[str, Any] = {
        "answers": answers,
        "values": values,
        "finite": finite,
        "probabilities": probabilities,
        "us": times,
        "load_ms": load_ms,
        "peak_kb": _peak_kb(),  # before the reference comes in
        "runtime": adapter.runtime_version(),
        "inputs": [adapter.describe(found) for found in model.inputs],
        "outputs": [adapter.describe(found) for found in model.outputs],
        "ratios": [],
    }
    if argument.get("reference"):
        reference = adapter.load(Path(argument["reference"]), threads=int(argument["threads"]))
        others = [_frame(reference, inputs, index) for index in range(len(frames))]
        for _ in range(_WARM):
            reference.invoke(others[0])
        for _ in range(int(argument["rounds"])):
            base = _block(reference, others)
            result["ratios"].append(_block(model, frames) / base)
        reference.close()
    return result


def inputs_of(folder: Path) -> list[npt.NDArray[Any]]:
    """The arrays `input_0.npy`, `input_1.npy`, ... of a folder, by number: the letters would put 10 before 2."""
    files = [folder / f"input_{index}.npy" for index in range(len(list(folder.glob("input_*.npy"))))]
    return [np.load(file, mmap_mode="r") for file in files]


def _block(model: Any, frames: list[list[npt.NDArray[Any]]]) -> float:
    """Seconds of one inference, the median of a short block."""
    end = time.perf_counter() + _BLOCK_S
    times: list[float] = []
    while True:
        frame = frames[len(times) % len(frames)]
        start = time.perf_counter()
        model.invoke(frame)
        now = time.perf_counter()
        times.append(now - start)
        if now >= end:
            return sorted(times)[len(times) // 2]


def _frame(model: Any, inputs: list[npt.NDArray[Any]], index: int) -> list[npt.NDArray[Any]]:
    return [
        as_input(array[index : index + 1], found.declared.dtype, found.declared.quantisation)
        for array, found in zip(inputs, model.inputs, strict=True)
    ]


def as_input(values: npt.NDArray[Any], dtype: str, quantisation: tuple[float, int] | None) -> npt.NDArray[Any]:
    """Samples as a model's input takes them; real numbers are rounded to an integer input by its scale."""
    if values.dtype.name == dtype:
        return np.ascontiguousarray(values)
    if quantisation is not None and values.dtype.kind == "f":
        scale, zero = quantisation
        limits = np.iinfo(dtype)
        return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(dtype)
    return np.ascontiguousarray(values.astype(dtype))


def _is_distribution(values: npt.NDArray[Any], quantisation: tuple[float, int] | None) -> bool:
    """Whether numbers are shares of one whole, as a softmax gives them; 8 bits make each of them a little wrong."""
    shares = values.astype(np.float64).reshape(-1)
    if quantisation is not None:
        shares = (shares - quantisation[1]) * quantisation[0]
    return bool(shares.min() >= -0.01 and abs(shares.sum() - 1.0) < 0.02 + 0.002 * shares.size)


def _peak_kb() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    try:
        told = main(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - a child tells its parent, whatever it was
        told = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), flush=True)
