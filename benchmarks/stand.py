"""A device to measure: its four directories, slots made by hand, and the real processes.

This file knows the files that the updater would have written and how `modelagent run` is started. It does not know
what is measured.

    with Stand(folder) as stand:
        old = stand.add_slot("digits", model, contract, version="1.0.0", number=1)
        stand.point("digits", "current", old)
        stand.configure({"digits": {"source": {"kind": "replay", "path": str(frames), "fps": 200.0}}})
        process = stand.start("inference")
        stand.wait("digits", lambda health: health["running"])
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from modelagent.durable import prepare_link, swap_link
from modelagent.manifest import dump

_ROOT: Final = Path(__file__).resolve().parents[1]


class Stand:
    """One device below `folder`, which is emptied first; leaving the block ends every process started."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder.resolve()
        self.paths = {
            "state_dir": self.folder / "updater",
            "inference_dir": self.folder / "inference",
            "run_dir": self.folder / "run",
            "inference_run_dir": self.folder / "run-inference",
        }
        for path in self.paths.values():
            path.mkdir(parents=True)
        self.config = self.folder / "modelagent.toml"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    # ---- files ---------------------------------------------------------------------------------------------------

    def add_slot(self, model: str, file: Path, contract: Mapping[str, Any], *, version: str, number: int) -> str:
        """A confirmed slot; returns its digest. `contract` holds the manifest's `inputs` and `outputs`."""
        document = {
            "schema": 1,
            "model": model,
            "version": version,
            "number": number,
            "floor": 0,
            "issued": "2026-11-01T12:00:00Z",
            "files": {"model": {"sha256": sha256(file.read_bytes()).hexdigest(), "length": file.stat().st_size}},
            "runtime": {},
            "delegate": "cpu",
            "hardware": [],
            "stateful": False,
            "inputs": contract["inputs"],
            "outputs": contract["outputs"],
            "labels": [],
            "preprocess": {"kind": "none"},
            "postprocess": {"kind": "classification", "softmax": False},
            "canary": {"metric": "accuracy", "margin": 0.05, "confidence": 0.95, "floor": 0.5, "samples": 0},
            "limits": {"latency_ms": 200.0, "latency_ratio": 3.0, "memory_mb": 400.0, "load_s": 30.0},
            "card": {},
        }
        data = dump(document)
        digest = sha256(data).hexdigest()
        slot = self._model_dir(model) / "slots" / digest
        slot.mkdir(parents=True)
        (slot / "manifest.json").write_bytes(data)
        shutil.copyfile(file, slot / "model.tflite")
        (slot / "confirmed").touch()
        return digest

    def point(self, model: str, link: str, digest: str) -> None:
        """Move a link as the updater does: prepared beforehand, one rename."""
        folder = self._model_dir(model)
        prepare_link(folder / f".{link}.next", f"slots/{digest}")
        swap_link(folder / f".{link}.next", folder / link)

    def configure(self, models: Mapping[str, Mapping[str, Any]], **sections: Mapping[str, Any]) -> None:
        """Write the settings: per model its tables, and other sections by name."""
        document: dict[str, Any] = {
            "device": {"id": "bench"},
            "paths": {key: str(path) for key, path in self.paths.items()},
            "log": {"level": "warning"},
            "models": models,
            **sections,
        }
        self.config.write_text("\n".join(_toml(document, ())) + "\n", encoding="utf-8")

    def health(self, model: str) -> dict[str, Any] | None:
        """The newest health record, if there is one."""
        try:
            found: dict[str, Any] = json.loads((self.paths["inference_run_dir"] / model / "health.json").read_bytes())
        except OSError:
            return None
        return found

    def rows(self, model: str) -> list[dict[str, Any]]:
        """The results written so far (settings: results.jsonl), oldest first; a line being written is left out."""
        path = self.paths["inference_dir"] / model / "results.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def forget(self, model: str) -> None:
        """Remove results and health of an earlier start."""
        shutil.rmtree(self.paths["inference_dir"] / model, ignore_errors=True)
        shutil.rmtree(self.paths["inference_run_dir"] / model, ignore_errors=True)

    def _model_dir(self, model: str) -> Path:
        return self.paths["state_dir"] / "models" / model

    # ---- processes -----------------------------------------------------------------------------------------------

    def start(self, *role: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`modelagent run [role]`, with its log in <folder>/<role>.log."""
        with (self.folder / f"{'-'.join(role) or 'all'}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "modelagent", "--config", str(self.config), "run", *role],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=own_environment() | dict(environment or {}),
            )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL after six seconds; returns when it has ended."""
        self._processes.remove(process)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(6.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """Stop every process started."""
        while self._processes:
            self.stop(self._processes[-1])

    def wait(
        self, model: str, ready: Callable[[dict[str, Any]], object], *, seconds: float = 20.0, pause: float = 0.005
    ) -> dict[str, Any]:
        """Wait until a health record satisfies `ready`, and return it.

        Raises:
            TimeoutError: it did not come; the logs' ends are in the message.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            health = self.health(model)
            if health is not None and ready(health):
                return health
            time.sleep(pause)
        logs = "\n".join(path.read_text(errors="replace")[-600:] for path in self.folder.glob("*.log"))
        raise TimeoutError(f"{model}: not ready within {seconds:g} s; health {self.health(model)}; log: {logs}")


def own_environment() -> dict[str, str]:
    """Our environment for the product's processes: this source tree, and byte code written, as an install has it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(_ROOT / "src")
    return environment


def family(pid: int) -> Iterator[int]:
    """`pid` and all its descendants that live now."""
    yield pid
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from family(int(child))


def _toml(table: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[str]:
    # JSON's numbers, texts and lists are TOML's too; only tables differ.
    if at:
        yield f"[{'.'.join(at)}]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml(value, (*at, key))
