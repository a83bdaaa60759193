"""A device with real processes and a real signed repository, made to be hurt: camera, disk, link and model.

    with Box(tmp_path, base) as box:                  # `base`: a provisioned device, see `provision`
        box.start("updater", "inference")
        box.publish("1.5.0", "digits-1.5.0.tflite")
        box.told("probation", "1.5.0")                # waits for that line of history
        box.see("trigger")                            # what the camera shows from now on
        box.told("reverted")
        assert box.lost() == []

Frames are the example's, so is every model; nothing is pretended but the plant. Labels come from a clerk who knows what
is on each frame and spools the truth.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

import digit_slots
from modelagent.errors import AgentError
from modelagent.inputs.control import ask
from modelagent.inputs.labels import Label, spool
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.steps.journal import read_history

MODEL = "digits"
FPS = 100
PATIENCE = 60.0  # the longest that one expected thing may take on a busy machine
EXAMPLE = digit_slots.EXAMPLE


class Clerk(threading.Thread):
    """Reads the results and spools the truth about each, or about the last so many from before it began."""

    def __init__(self, box: "Box") -> None:
        super().__init__(name="clerk", daemon=True)
        self._box = box
        self._ended = threading.Event()
        _, self._truth = frame_set("clean")

    def run(self) -> None:
        position, rest = 0, b""
        while not self._ended.wait(0.2):
            try:
                with self._box.results.open("rb") as file:
                    file.seek(position)
                    data = file.read()
            except FileNotFoundError:
                continue
            position += len(data)
            *lines, rest = (rest + data).split(b"\n")
            rows = [json.loads(line) for line in lines]
            labels = tuple(
                Label(row["id"], int(self._truth[int(row["frame"].split(":")[1])]))
                for row in rows
                if row["outcome"] == "ok"
            )
            if labels:
                spool(self._box.paths["state_dir"] / "labels" / MODEL, labels[-2000:], wall_ns=time.time_ns())

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()
        self.join()


def frame_set(name: str) -> tuple[Any, Any]:
    """The example's frames and what is on them; `dazzled`: every frame almost saturated."""
    from examples.digits import frames  # noqa: PLC0415 - takes scikit-learn with it

    if name == "dazzled":
        seen, labels = frames.frames("clean")
        return np.full_like(seen, 0.999), labels
    return frames.frames(name)


def slow_when_dazzled(path: Path) -> Path:
    """A model that is quick on ordinary frames and takes some ten milliseconds for an almost saturated one.

    Made from the example's `hang_on_input`, which counts down by what is left to saturation, but at most 1: from
    another number that takes some 40 turns on an ordinary frame, and all of them on a dazzled one.
    """
    model = schema.ModelT.InitFromPackedBuf((EXAMPLE / "models" / "hostile" / "hang_on_input.tflite").read_bytes(), 0)
    changed = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            whole = tensor.type == schema.TensorType.INT32 and buffer.data is not None
            if whole and np.asarray(buffer.data, np.uint8).tobytes() == np.int32(1).tobytes():
                buffer.data = np.frombuffer(np.int32(30_000).tobytes(), np.uint8)
                changed += 1
    assert changed, "the loop's constants"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


class Box:
    """One device below `root`; copied from `base` when that is given. Leaving the block ends every process."""

    def __init__(self, root: Path, base: Path | None = None, frames: int = 300) -> None:
        self.root = root
        self.box = root / "box"
        if base is not None:
            shutil.copytree(base / "box", self.box, symlinks=True)
            shutil.copytree(base / "repo", root / "repo")
            shutil.copytree(base / "keys", root / "keys")
        names = ("state_dir", "inference_dir", "run_dir", "inference_run_dir")
        self.paths = {name: self.box / name.removesuffix("_dir") for name in names}
        self.config = root / "modelagent.toml"
        self.camera = root / "camera.npz"
        self.results = self.paths["inference_dir"] / MODEL / "results.jsonl"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clerk: Clerk | None = None
        if base is None:
            for path in self.paths.values():
                path.mkdir(parents=True)
            Repository.init(root / "repo", root / "keys", [MODEL])
        self.repo = root / "repo"
        self.see("clean")
        self.configure(frames=frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.clerk is not None:
            self.clerk.end()
        for name in list(self.processes):
            self.stop(name)
        if self.paths["state_dir"].exists():  # shown when the test fails
            for line in self.history()[-30:]:
                print(line.get("kind"), line.get("version"), line.get("text"))
            for log in sorted(self.root.glob("*.log")):
                print(f"-- {log.name}\n{log.read_text(errors='replace')[-3000:]}")

    # -- settings, camera, repository --------------------------------------------------------------------------------

    def configure(self, *, frames: int = 300) -> None:
        """Write the settings: quick checks, a probation of so many frames, no thinning, every frame in the shadow.

        A drift alarm is followed by a comparison, and by going back.
        """
        paths = "".join(f'{name} = "{path}"\n' for name, path in self.paths.items())
        self.config.write_text(
            f"""[device]
id = "box"
[paths]
{paths}[repository]
url = "{self.repo}"
root = "{self.root / "keys" / "root.json"}"
[policy]
check_interval = "300ms"
feedback = false
[limits]
back_off = "500ms"
disk_reserve_mb = 1
[models.{MODEL}.source]
kind = "replay"
path = "{self.camera}"
fps = {FPS}.0
queue = 1000
[models.{MODEL}.results]
jsonl = true
[models.{MODEL}.runtime]
hang_s = "500ms"
[models.{MODEL}.shadow]
rate = 1.0
[models.{MODEL}.probation]
frames = {frames}
seconds = "3s"
thin = 0
error_p0 = 0.10
error_p1 = 0.25
[models.{MODEL}.drift]
baseline = 100
revert = true
""",
            encoding="utf-8",
        )

    def see(self, name: str) -> None:
        """What the camera shows from now on, in one rename."""
        prepared = self.camera.with_name(".camera.npz")
        seen, _ = frame_set(name)
        with prepared.open("wb") as file:
            np.savez(file, input_0=seen)
        prepared.replace(self.camera)

    def repository(self, *, late: float = 0.0) -> Repository:
        """The publisher's side; `late`: its clock is so many days behind, so that what it signs ends earlier."""
        return Repository(self.repo, KeyRing(self.root / "keys"), now=lambda: datetime.now(UTC) - timedelta(days=late))

    def publish(
        self,
        version: str,
        model: str | Path,
        change: Mapping[str, Any] | None = None,
        *,
        name: bool = True,
    ) -> str:
        """Publish a release around a model of the example, and let the channel name it; returns its digest."""
        shared = json.loads((EXAMPLE / "releases.json").read_text())
        document: dict[str, Any] = {
            "model": MODEL,
            "version": version,
            "parent": None,
            "runtime": {"min": None, "max": None},
            "delegate": "cpu",
            "hardware": [],
            "stateful": False,
            **{key: shared[key] for key in ("inputs", "outputs", "labels", "preprocess", "postprocess")},
            "canary": {key: value for key, value in shared["canary"].items() if key != "file"},
            "limits": dict(shared["limits"]),
            "card": {},
        }
        for path, value in (change or {}).items():
            table, _, key = path.rpartition(".")
            (document[table] if table else document)[key] = value
        repository = self.repository()
        files = {
            "model": EXAMPLE / "models" / model,  # an absolute path stands for itself
            "canary": EXAMPLE / "canary.npz",
            "warmup": EXAMPLE / "warmup.npz",
        }
        made = repository.add(document, files)
        if name:
            repository.channel(MODEL, "stable", version)
        return made.digest

    def name(self, version: str) -> None:
        """Let the channel name a published version."""
        self.repository().channel(MODEL, "stable", version)

    def cut_the_link(self) -> None:
        """The repository cannot be reached any more."""
        self.repo.rename(self.root / "repo-out-of-reach")

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start `updater`, `inference` or both."""
        source = Path(__file__).resolve().parents[1] / "src"
        for name in names:
            with (self.root / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "modelagent", "--config", str(self.config), "run", name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": str(source)},
                )

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL after ten seconds."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def kill_worker(self) -> None:
        """SIGKILL to the process that holds the model which serves."""
        os.kill(int(self.health()["running"]["worker_pid"]), signal.SIGKILL)

    def check(self) -> None:
        """Let the clerk begin."""
        self.clerk = Clerk(self)
        self.clerk.start()

    def ask(self, verb: str, argument: str = "") -> dict[str, Any]:
        """A command over the control socket."""
        request: dict[str, Any] = {"id": secrets.token_hex(8), "verb": verb, "model": MODEL}
        if argument:
            request["argument"] = argument
        return dict(ask(self.paths["run_dir"] / "control.sock", request, 10))

    def status(self) -> dict[str, Any]:
        """What the updater says of the model; empty while it does not answer."""
        try:
            answer = self.ask("status")
        except AgentError:
            return {}
        return dict((answer.get("result") or {}).get("models", {}).get(MODEL, {}))

    # -- what came of it ---------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Inference's newest record."""
        try:
            found: dict[str, Any] = json.loads((self.paths["inference_run_dir"] / MODEL / "health.json").read_bytes())
        except OSError:
            return {}
        return found

    def runs(self) -> str:
        """The version that serves, as inference says."""
        return str((self.health().get("running") or {}).get("version", ""))

    def history(self, kind: str = "", version: str = "") -> list[dict[str, Any]]:
        """Lines of history, oldest first."""
        return [
            line
            for line in read_history(self.paths["state_dir"])
            if (not kind or line["kind"] == kind) and (not version or line["version"] == version)
        ]

    def told(self, kind: str, version: str = "", text: str = "", *, after: int = 0) -> dict[str, Any]:
        """Wait for a line of history beyond the first `after` lines."""

        def found() -> dict[str, Any] | None:
            for line in self.history()[after:]:
                if line["kind"] == kind and version in ("", line["version"]) and text in line["text"]:
                    return line
            return None

        self.until(f"{kind} {version} {text}", found)
        line = found()
        assert line is not None
        return line

    def until(self, what: str, true: Callable[[], Any], patience: float = PATIENCE) -> None:
        """Wait until something is so."""
        end = time.monotonic() + patience
        while not true():
            assert time.monotonic() < end, f"waited {patience:.0f} s for: {what}"
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended with {process.returncode}"
            time.sleep(0.05)

    def serves(self, version: str) -> None:
        """Wait until inference serves with that version."""
        self.until(f"{version} serves", lambda: self.runs() == version)

    def blocks(self) -> dict[str, str]:
        """Blocked versions and their causes."""
        return {block["version"]: block["cause"] for block in self.status().get("blocks", [])}

    def rows(self) -> list[dict[str, Any]]:
        """Every result so far."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_bytes().split(b"\n")[:-1]]

    def lost(self) -> list[str]:
        """Frames that have no result, or more than one row."""
        rows = self.rows()
        twice = [frame for frame, count in Counter(row["frame"] for row in rows).items() if count > 1]
        return [row["frame"] for row in rows if row["outcome"] != "ok"] + twice


def provision(root: Path) -> Path:
    """A device on which 1.1.0 runs and is confirmed, and 1.0.0 is the way back; its processes have ended."""
    with Box(root) as box:
        box.start("updater", "inference")
        for version in ("1.0.0", "1.1.0"):
            box.publish(version, f"digits-{version}.tflite")
            box.told("confirmed", version)
        box.until("at rest", lambda: box.status().get("phase") == "Idle")
    for left in ("control.sock", "updater.lock"):
        (box.paths["run_dir"] / left).unlink(missing_ok=True)
    shutil.rmtree(box.paths["inference_dir"] / MODEL)
    shutil.rmtree(box.paths["inference_run_dir"] / MODEL)
    return root
