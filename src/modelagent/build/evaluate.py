"""Measuring a variant: a child process on the device's runtime, and the numbers made of what it tells.

This file knows how a child is asked and what a model that crashes or hangs amounts to. It never loads a model itself,
nor does it know what a metric is (`scoring.py` does).

    found = measure(Path("int8.tflite"), samples, reference=Path("float32.tflite"), threads=1, metric="accuracy")
    found.value, found.interval, found.p95_us, found.peak_mb, found.latency_ratio
"""

import json
import math
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.build import scoring
from modelagent.build.data import Samples
from modelagent.errors import UsageError
from modelagent.judges.metrics import Scored

TIME_LIMIT: Final = 600.0  # seconds for one variant
ROUNDS: Final = 20


class FailedError(UsageError):
    """The device's runtime cannot run this variant."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one variant does on one set of samples. Times in microseconds, memory of the whole process in MB.

    `value` is the plan's metric, `interval` its two-sided 95 % interval; `answers` is where output 0 is largest;
    `numbers`, where they were asked for, are those of output 0, [N, ...] flat.
    """

    answers: tuple[int, ...]
    scored: tuple[Scored, ...]
    value: float
    interval: tuple[float, float]
    p50_us: float
    p95_us: float
    load_ms: float
    peak_mb: float
    latency_ratio: float | None
    latency_ratio_p95: float | None
    probabilities: bool  # whether the outputs are shares of one whole; else they are logits
    runtime: str
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    numbers: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


def measure(
    model: Path,
    samples: Samples,
    *,
    reference: Path | None = None,
    threads: int = 1,
    rounds: int = ROUNDS,
    metric: str = "accuracy",
    time_limit: float = TIME_LIMIT,
    numbers: bool = False,
) -> Measured:
    """Run a variant over samples in a child.

    Args:
        model: the .tflite file.
        samples: inputs as the float model takes them, and the truth.
        reference: what its time is compared with; None: no ratio.
        threads: as on the device.
        rounds: of alternating blocks in the comparison; the ratio is their median.
        metric: of `scoring.OFFERED`.
        time_limit: seconds.
        numbers: whether output 0 itself is wanted.

    Raises:
        FailedError: `unsupported`, `crash`, `hang` or `not-finite`: devices would fail the same way.
        UsageError: `metric`: it is not defined on these samples.
    """
    with tempfile.TemporaryDirectory(prefix="modelagent-trial-") as folder:
        for index, array in enumerate(samples.inputs):
            np.save(Path(folder) / f"input_{index}.npy", array)
        np.save(Path(folder) / "truth.npy", samples.labels)
        argument = {
            "model": str(model.resolve()),
            "samples": folder,
            "threads": threads,
            "reference": None if reference is None else str(reference.resolve()),
            "rounds": rounds,
            "metric": metric,
            "outputs": str(Path(folder) / "outputs.npy") if numbers else None,
        }
        told = _ask(model, argument, time_limit)
        kept = np.load(Path(folder) / "outputs.npy") if numbers and "refused" not in told else None
    answers = tuple(int(answer) for answer in told["answers"])
    if not told["finite"]:
        raise FailedError(f"{model.name}: an output was NaN or infinite; a device refuses that", code="not-finite")
    ratios = sorted(told["ratios"])
    times = sorted(told["us"])
    scored = scoring.scored(samples.labels, answers, told["values"])
    return Measured(
        answers=answers,
        scored=scored,
        value=scoring.value(metric, scored),
        interval=scoring.interval(metric, scored),
        p50_us=quantile(times, 0.5),
        p95_us=quantile(times, 0.95),
        load_ms=float(told["load_ms"]),
        peak_mb=told["peak_kb"] / 1024,
        latency_ratio=quantile(ratios, 0.5) if ratios else None,
        latency_ratio_p95=quantile(ratios, 0.95) if ratios else None,
        probabilities=bool(told["probabilities"]),
        runtime=str(told["runtime"]),
        inputs=tuple(told["inputs"]),
        outputs=tuple(told["outputs"]),
        numbers=kept,
    )


def compressed(data: bytes) -> int:
    """Bytes after zlib at its best: what a server with gzip would send."""
    return len(zlib.compress(data, 9))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the ordered values do not exceed."""
    return float(ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))])


def confusion(answers: Sequence[int], labels: Sequence[int], classes: int) -> list[list[int]]:
    """Rows are what it is, columns what the model says; answers beyond the classes are not shown."""
    table = [[0] * classes for _ in range(classes)]
    for answer, label in zip(answers, labels, strict=True):
        if answer < classes:
            table[int(label)][answer] += 1
    return table


def _ask(model: Path, argument: dict[str, Any], time_limit: float) -> dict[str, Any]:
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "modelagent.build.trial", json.dumps(argument)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{model.name}: not done within {time_limit:g} s on this runtime", code="hang") from error
    if ended.returncode < 0:
        raise FailedError(f"{model.name}: it ended the runtime's process by signal {-ended.returncode}", code="crash")
    try:
        told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise FailedError(
            f"{model.name}: the measuring child ended with {ended.returncode}: {said[-1] if said else 'no reason'}",
            code="crash",
        ) from error
    if "refused" in told:
        raise FailedError(f"{model.name}: the device's runtime refuses it: {told['refused']}", code="unsupported")
    return told
