"""A device's directories around a real inference process: slots, links and frames in, health and results out.

    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.link("current", old)
        rig.frames(rig.scans()[:100])
        rig.start(fps=200.0, loop=False)
        rig.wait(lambda: rig.done() == 100)
        rows = rig.rows()

Run as a program it is that process: `python tests/line_rig.py '<json of the options>'`.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import digit_slots
from modelagent.durable import LinkId, prepare_link, swap_link
from modelagent.inference.frames import SourceOptions
from modelagent.inference.loop import run
from modelagent.inference.options import LoopOptions, ModelOptions, SampleOptions
from modelagent.inference.rules import Rule
from modelagent.inputs.schema import Mqtt

Frames = npt.NDArray[np.float32]
GLARE = np.ones((8, 8, 1), np.float32)


def main(argument: str) -> int:
    """Be the inference process."""
    models = []
    lock = ""
    for given in json.loads(argument):
        lock = given.pop("lock")
        source = given.pop("source")
        for name in ("path", "done_dir"):
            if name in source:
                source[name] = Path(source[name])
        if "mqtt" in given:
            given["mqtt"] = Mqtt(**given["mqtt"])
        if "samples" in given:
            path = given["samples"].get("path")
            given["samples"] = SampleOptions(**given["samples"] | {"path": path and Path(path)})
        given["rules"] = tuple(_rule(rule) for rule in given.get("rules", []))
        for name in ("model_dir", "labels_dir", "keep_dir", "health"):
            given[name] = Path(given[name])
        if "cpus" in given:
            given["cpus"] = tuple(given["cpus"])
        if "worker_argv" in given:
            given["worker_argv"] = tuple(given["worker_argv"])
        models.append(ModelOptions(source=SourceOptions(**source), **given))
    return run(LoopOptions(Path(lock), tuple(models)))


def _rule(given: dict[str, Any]) -> Rule:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Rule(**values)


class Rig:
    """One device; `start` may be called again after `stop` or `kill`."""

    def __init__(self, root: Path, name: str = "digits") -> None:
        self.root = root
        self.name = name
        self.model_dir = root / "state" / "models" / name
        self.labels_dir = root / "state" / "labels" / name
        self.keep_dir = root / "keep" / name
        self.health_file = root / "run" / name / "health.json"
        self.source = root / "camera.npz"
        (self.model_dir / "slots").mkdir(parents=True)
        self.labels_dir.mkdir(parents=True)
        self.process: subprocess.Popen[str] | None = None
        self._batch = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print("health:", json.dumps(self.health(), indent=1)[:6000])
            print("log:", self.log()[-6000:])
        self.kill()

    # -- the updater's side --------------------------------------------------------------------------------------

    def slot(self, model: str, *, confirmed: bool, change: dict[str, Any] | None = None) -> str:
        """Stage a slot around one of the example's models; returns its digest."""
        made = self.root / "made" / f"{model.replace('/', '-')}-{time.monotonic_ns()}"
        made.parent.mkdir(exist_ok=True)
        change = {"version": re.sub(r"^digits-|\.tflite$", "", model.rpartition("/")[2])} | (change or {})
        digest = digit_slots.write_slot(made, model, change=change).digest
        path = self.model_dir / "slots" / digest
        made.rename(path)
        if confirmed:
            (path / "confirmed").touch()
        return digest

    def link(self, name: str, digest: str | None) -> LinkId | None:
        """Move a link, as the updater does; None removes it."""
        if digest is None:
            (self.model_dir / name).unlink()
            return None
        prepared = self.model_dir / f".{name}.next"
        prepare_link(prepared, f"slots/{digest}")
        return swap_link(prepared, self.model_dir / name)

    def label(self, labels: list[dict[str, Any]]) -> None:
        """Spool a batch."""
        self._batch += 1
        hidden = self.labels_dir / f".{self._batch}.tmp"
        hidden.write_text(json.dumps({"schema": 1, "labels": labels}))
        hidden.rename(self.labels_dir / f"{time.time_ns()}-{self._batch}.json")

    # -- the camera ----------------------------------------------------------------------------------------------

    @staticmethod
    def scans() -> Frames:
        """400 real scans."""
        with np.load(digit_slots.EXAMPLE / "canary.npz") as archive:
            return np.asarray(archive["input_0"], np.float32)

    @staticmethod
    def truth() -> list[int]:
        """What is on `scans`."""
        with np.load(digit_slots.EXAMPLE / "canary.npz") as archive:
            return [int(label) for label in archive["labels"]]

    def frames(self, frames: Frames) -> None:
        """What the camera sees from now on."""
        temporary = self.source.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, input_0=frames)
        temporary.rename(self.source)

    # -- the process ---------------------------------------------------------------------------------------------

    def options(self, *, fps: float = 100.0, loop: bool = True, **more: Any) -> dict[str, Any]:
        """Options as JSON can carry them."""
        return {
            "lock": str(self.root / "keep" / "inference.lock"),
            "name": self.name,
            "model_dir": str(self.model_dir),
            "labels_dir": str(self.labels_dir),
            "keep_dir": str(self.keep_dir),
            "health": str(self.health_file),
            "source": {"kind": "replay", "path": str(self.source), "fps": fps, "loop": loop},
            "queue": 64,
            "jsonl": True,
            **more,
        }

    def start(self, *others: dict[str, Any], wrapper: list[str] | None = None, **options: Any) -> None:
        """Start the inference process with this device's model and the models of other rigs, behind `wrapper`."""
        assert self.process is None
        arguments = [self.options(**options), *others]
        tests = Path(__file__).parent
        environment = os.environ | {"PYTHONPATH": f"{tests.parent / 'src'}:{tests}"}
        with (self.root / "log").open("a") as log:
            command = [*(wrapper or []), sys.executable, __file__, json.dumps(arguments)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, text=True)

    def stop(self, timeout: float = 6.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout)
        self.process = None
        return status

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """What it said."""
        path = self.root / "log"
        return path.read_text() if path.exists() else ""

    # -- what came of it -----------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """The newest record of this process, empty before the first."""
        try:
            record: dict[str, Any] = json.loads(self.health_file.read_bytes())
        except FileNotFoundError:
            return {}
        return record if self.process is None or record["pid"] == self.process.pid else {}

    def running(self) -> str | None:
        """Digest that serves."""
        return (self.health().get("running") or {}).get("digest")

    def worker(self) -> int:
        """Pid of the serving worker; 0 while none serves."""
        return int((self.health()["running"] or {"worker_pid": 0})["worker_pid"])

    def counts(self, digest: str) -> dict[str, Any]:
        """Counters of one version."""
        found: dict[str, Any] = self.health().get("counters", {}).get(digest, {})
        return found

    def total(self, key: str = "frames") -> int:
        """A counter, over all versions."""
        return sum(int(counts[key]) for counts in self.health().get("counters", {}).values())

    def starts(self) -> dict[str, Any]:
        """starts.json."""
        record: dict[str, Any] = json.loads((self.keep_dir / "starts.json").read_bytes())
        return record

    def lines(self) -> list[dict[str, Any]]:
        """Result rows written so far, from the JSON lines."""
        path = self.keep_dir / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> list[dict[str, Any]]:
        """Result rows, from the database."""
        with closing(sqlite3.connect(self.keep_dir / "results.db")) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM results ORDER BY rowid")]

    def wait(self, condition: Callable[[], Any], timeout: float = 15.0) -> float:
        """Wait until the condition holds; returns the seconds it took. What health does not tell yet does not hold."""

        def holds() -> bool:
            try:
                return bool(condition())
            except KeyError:
                return False

        begun = time.monotonic()
        while not holds():
            assert self.process is None or self.process.poll() is None, f"the process ended: {self.log()}"
            assert time.monotonic() - begun < timeout, f"still not so after {timeout} s"
            time.sleep(0.01)
        return time.monotonic() - begun

    def children(self) -> list[int]:
        """Pids of the process's children."""
        assert self.process is not None
        return list(_children(self.process.pid))


def _children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                yield int(entry.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
