"""The yardstick: the runtime alone in a process, with the same model on the same frames and nothing around it.

This file knows the runtime's Interpreter and a loop. As a program it is driven through its standard input:

    python -m benchmarks.bare model.tflite frames.npz        # prints {"inputs": [...], "outputs": [...]}
    2.0                                                      # run for 2 s; prints {"frames": 561, "seconds": 2.001}

A frame is set_tensor, invoke, get_tensor and argmax, one thread: what a script without any agent would do.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from benchmarks.stand import own_environment


class Bare:
    """The yardstick in a process of its own; `contract` is the manifest's inputs and outputs."""

    def __init__(self, model: Path, frames: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare", str(model), str(frames)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[1],
            env=own_environment(),
            text=True,
        )
        self.pid = self._process.pid
        self.contract = self._hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, seconds: float) -> float:
        """Seconds per frame, over `seconds`."""
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        found = self._hear()
        return float(found["seconds"]) / int(found["frames"])

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _describe(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    described = []
    for tensor in details:
        scale, zero = tensor["quantization"]
        described.append(
            {
                "name": tensor["name"],
                "shape": [int(size) for size in tensor["shape"]],
                "dtype": np.dtype(tensor["dtype"]).name,
                "quantisation": {"scale": float(scale), "zero_point": int(zero)} if scale else None,
            }
        )
    return described


def main() -> None:
    """See the head of the file."""
    model = Interpreter(model_path=sys.argv[1], num_threads=1)
    model.allocate_tensors()
    given, found = model.get_input_details(), model.get_output_details()
    print(json.dumps({"inputs": _describe(given), "outputs": _describe(found)}), flush=True)
    with np.load(sys.argv[2], allow_pickle=False) as archive:
        frames = archive["input_0"][:, np.newaxis]
    source, target = given[0]["index"], found[0]["index"]
    for line in sys.stdin:
        wanted = float(line)
        count, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < wanted:
            model.set_tensor(source, frames[count % len(frames)])
            model.invoke()
            model.get_tensor(target).argmax()
            count += 1
        print(json.dumps({"frames": count, "seconds": passed}), flush=True)


if __name__ == "__main__":
    main()
