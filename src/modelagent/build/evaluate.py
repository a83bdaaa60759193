"""Measuring a variant: a child process on the device's runtime, and the numbers made of what it tells.

This file knows how a child is asked, Wilson's interval and what a model that crashes or hangs amounts to. It never
loads a model itself.

    found = measure(Path("int8.tflite"), samples, reference=Path("float32.tflite"), threads=1)
    found.accuracy, found.interval, found.p95_us, found.peak_mb, found.latency_ratio
"""

import json
import math
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelagent.build.data import Samples
from modelagent.errors import UsageError
from modelagent.judges.paired import normal_quantile, tango_lower

TIME_LIMIT: Final = 600.0  # seconds for one variant
ROUNDS: Final = 20


class FailedError(UsageError):
    """The device's runtime cannot run this variant."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one variant does on one set of samples. Times in microseconds, memory of the whole process in MB."""

    answers: tuple[int, ...]
    right: tuple[bool, ...]
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

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def measure(
    model: Path,
    samples: Samples,
    *,
    reference: Path | None = None,
    threads: int = 1,
    rounds: int = ROUNDS,
    confidence: float = 0.95,
    time_limit: float = TIME_LIMIT,
) -> Measured:
    """Run a variant over samples in a child.

    Args:
        model: the .tflite file.
        samples: inputs as the float model takes them, and labels.
        reference: what its time is compared with; None: no ratio.
        threads: as on the device.
        rounds: of alternating blocks in the comparison; the ratio is their median.
        confidence: of Wilson's two-sided interval.
        time_limit: seconds.

    Raises:
        FailedError: `unsupported`, `crash`, `hang` or `not-finite`: devices would fail the same way.
    """
    with tempfile.TemporaryDirectory(prefix="modelagent-trial-") as folder:
        for index, array in enumerate(samples.inputs):
            np.save(Path(folder) / f"input_{index}.npy", array)
        told = _ask(model, Path(folder), reference, threads=threads, rounds=rounds, time_limit=time_limit)
    answers = tuple(int(answer) for answer in told["answers"])
    right = tuple(bool(answer == label) for answer, label in zip(answers, samples.labels, strict=True))
    if not told["finite"]:
        raise FailedError(f"{model.name}: an output was NaN or infinite; a device refuses that", code="not-finite")
    ratios = sorted(told["ratios"])
    times = sorted(told["us"])
    return Measured(
        answers=answers,
        right=right,
        interval=wilson(sum(right), len(right), confidence),
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
    )


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share (Wilson, Journal of the American Statistical Association 22, 1927, 209-212)."""
    if count == 0:
        return 0.0, 1.0
    z = normal_quantile(0.5 + confidence / 2.0)
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding would leave 1e-17 where the bound is 0 or 1 exactly.
    low = 0.0 if right == 0 else max(0.0, middle - half)
    high = 1.0 if right == count else min(1.0, middle + half)
    return low, high


def loss_bound(new: Sequence[bool], old: Sequence[bool], confidence: float = 0.95) -> tuple[float, float]:
    """(accuracy of new - accuracy of old, its one-sided lower bound by Tango's paired score interval)."""
    only_new = sum(a and not b for a, b in zip(new, old, strict=True))
    only_old = sum(b and not a for a, b in zip(new, old, strict=True))
    return (only_new - only_old) / len(new), tango_lower(only_new, only_old, len(new), confidence)


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


def _ask(
    model: Path, folder: Path, reference: Path | None, *, threads: int, rounds: int, time_limit: float
) -> dict[str, Any]:
    argument = {
        "model": str(model.resolve()),
        "samples": str(folder),
        "threads": threads,
        "reference": None if reference is None else str(reference.resolve()),
        "rounds": rounds,
    }
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
