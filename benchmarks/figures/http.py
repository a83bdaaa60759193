"""The HTTP source against model servers: requests a second for the digits model, the same interpreter behind each.

This file knows the two comparisons. Both servers run at the same time, each is asked in turn, in windows that
alternate; the idle one costs nothing. What the others do more, and we do not: batching over requests, several workers,
GPU, gRPC, OpenAPI, a model repository protocol. What we do more: isolation of the model, a result row on disk for every
request, the judges' statistics. litserve and mlserver are installed into environments below build/bench, once.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.bare import Bare
from benchmarks.figures.loop import _digits_frames
from benchmarks.measure import Figure, Group, Measured, NotHereError, median
from benchmarks.stand import Stand, own_environment

_ROOT: Final = Path(__file__).resolve().parents[2]
_WINDOWS: Final = 5
_SECONDS: Final = 2.0
_CONNECTIONS: Final = 4
_MODEL: Final = _ROOT / "examples/digits/models/digits-1.1.0.tflite"
_START_S: Final = 60.0
_PROGRAMS: Final = {"litserve": "rival_litserve.py", "mlserver": "rival.py"}


def _environment(folder: Path, package: str) -> Path:
    """The Python of an environment with that package; NotHereError where it cannot be installed."""
    place = folder / f"venv-{package}"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(place)],
            [str(python), "-m", "pip", "install", "-q", package, "ai-edge-litert", "numpy"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise NotHereError(f"{package} cannot be installed here: {last[:200]}")
        (place / "ready").touch()
    return python


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _ask(url: str, body: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.asker", url, str(body), str(_CONNECTIONS), str(_SECONDS)],
        cwd=_ROOT,
        env=own_environment() | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _until_it_answers(url: str, body: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            _ask(url, body)
            return
        except subprocess.CalledProcessError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotHereError(f"the other server does not answer: {error.stderr.strip()[-200:]}") from error
            time.sleep(0.5)


def _compare(folder: Path, package: str, path: str, theirs: dict[str, Any]) -> dict[str, Measured]:
    python = _environment(folder, package)
    frames = _digits_frames(folder)
    with np.load(frames) as archive:
        frame = archive["input_0"][0]
    (folder / "ours.json").write_text(json.dumps({"inputs": [frame.tolist()]}))
    (folder / "theirs.json").write_text(json.dumps(theirs | {"inputs": _inputs(package, frame)}))
    port, other = _free_port(), _free_port()
    with Bare(_MODEL, frames) as bare, Stand(folder / "http") as stand:
        digest = stand.add_slot("bench", _MODEL, bare.contract, version="1", number=1)
        stand.point("bench", "current", digest)
        stand.configure({"bench": {"source": {"kind": "http", "listen": f"127.0.0.1:{port}"}}})
        ours = stand.start("inference")
        stand.wait("bench", lambda health: health["running"])
        with (folder / f"{package}.log").open("wb") as log:
            rival = subprocess.Popen(
                [str(python), str(_ROOT / "benchmarks" / _PROGRAMS[package]), str(_MODEL), str(other)],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                start_new_session=True,
            )
        try:
            our_url, their_url = f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{other}{path}"
            _until_it_answers(their_url, folder / "theirs.json", rival)
            _until_it_answers(our_url, folder / "ours.json", ours)
            pairs = [
                (_ask(our_url, folder / "ours.json"), _ask(their_url, folder / "theirs.json")) for _ in range(_WINDOWS)
            ]
        finally:
            os.killpg(rival.pid, signal.SIGKILL)
            rival.wait()
    rates = [(a["requests"] / a["seconds"], b["requests"] / b["seconds"]) for a, b in pairs]
    how = (
        f"{median([a for a, _ in rates]):.0f} against {median([b for _, b in rates]):.0f} requests/s, p99 "
        f"{median([a['p99_ms'] for a, _ in pairs]):.2f} against {median([b['p99_ms'] for _, b in pairs]):.2f} ms; "
        f"JSON, {_CONNECTIONS} connections, median of {_WINDOWS} alternating windows; ours also writes each result down"
    )
    return {f"http.vs_{package}": Measured(median([a / b for a, b in rates]), how)}


def _inputs(package: str, frame: Any) -> list[Any]:
    if package == "mlserver":
        data = frame.ravel().tolist()
        return [{"name": "x", "shape": [1, *frame.shape], "datatype": "FP32", "data": data}]
    return [frame.tolist()]


def litserve(folder: Path) -> dict[str, Measured]:
    """`http.vs_litserve`."""
    return _compare(folder, "litserve", "/predict", {})


def mlserver(folder: Path) -> dict[str, Measured]:
    """`http.vs_mlserver`."""
    return _compare(folder, "mlserver", "/v2/models/digits/infer", {"id": "1"})


GROUPS: Final = (
    Group((Figure("http.vs_litserve", "ratio", ">= 3"),), litserve),
    Group((Figure("http.vs_mlserver", "ratio", ">= 3"),), mlserver),
)
