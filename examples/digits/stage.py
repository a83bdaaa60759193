"""The stage of the demo: the directory, the device's processes and commands, what the spectator sees, and the clerk.

This file knows how to start, ask, follow and end things. It does not know the acts (`demo.py`).

    demo = Demo(directory, Screen())
    demo.start("device", sys.executable, "-m", "modelagent", "run")
    demo.follow("an update", kind("confirmed", "1.1.0"))
    demo.end()
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from examples.digits import frames

from modelagent.errors import AgentError
from modelagent.inputs.control import ask

HERE: Final = Path(__file__).resolve().parent
MODEL: Final = "digits"
DEVICE: Final = "meter-17"
FPS: Final = 100
RELEASES = json.loads((HERE / "releases.json").read_text(encoding="utf-8"))
STEP_S = 45.0  # the longest that one expected thing may take on a slow, busy machine


class DemoError(Exception):
    """Something that should have happened did not."""


class Screen:
    """What the spectator sees: acts, what the device says, and how the line runs."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def act(self, number: str, title: str) -> None:
        """A heading."""
        self._out(f"\n== {number}: {title}", "1;36")

    def say(self, text: str) -> None:
        """What the demo does."""
        self._out(f"{self._time()}  {text}")

    def device(self, text: str) -> None:
        """What the device reports."""
        self._out(f"{self._time()}    device: {text}", "32")

    def command(self, text: str) -> None:
        """A command line, as a user types it."""
        self._out(f"{self._time()}  $ {text}", "33")

    def raw(self, text: str) -> None:
        """A command's output."""
        self._out("\n".join(f"        {line}" for line in text.splitlines()))

    def _time(self) -> str:
        return f"{time.monotonic() - self.began:5.1f}s"

    def _out(self, text: str, colour: str = "") -> None:
        print(f"\033[{colour}m{text}\033[0m" if colour and self.colour else text, flush=True)


class Clerk(threading.Thread):
    """Checks every second reading against the real dial, half a second late, and sends the truth to the device.

    Reads the results file as any program on the device could, and keeps the tally that the acts print.
    """

    def __init__(self, results: Path, control: Path) -> None:
        super().__init__(name="clerk", daemon=True)
        self._results = results
        self._control = control
        _, self._truth = frames.frames("clean")  # the same digits in the same order in every set
        self._ended = threading.Event()
        self.rows: list[tuple[float, str, bool | None]] = []  # arrival, version, right
        self.ids: dict[str, int] = {}  # frame -> how often it has a result
        self.outcomes: dict[str, int] = {}

    def run(self) -> None:
        """Follow the file until `end`."""
        position, rest = 0, b""
        while not self._ended.wait(0.25):
            try:
                with self._results.open("rb") as file:
                    file.seek(position)
                    data = file.read()
            except FileNotFoundError:
                continue
            position += len(data)
            *lines, rest = (rest + data).split(b"\n")
            self._check([json.loads(line) for line in lines])

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()
        self.join()

    def _check(self, rows: list[dict[str, Any]]) -> None:
        labels = []
        for row in rows:
            index = int(row["frame"].split(":")[1])
            right = row["prediction"] == int(self._truth[index]) if row["outcome"] == "ok" else None
            self.rows.append((time.monotonic(), row["version"] or "", right))
            self.ids[row["frame"]] = self.ids.get(row["frame"], 0) + 1
            self.outcomes[row["outcome"]] = self.outcomes.get(row["outcome"], 0) + 1
            if right is not None and len(self.rows) % 2 == 0:
                labels.append({"id": row["id"], "label": int(self._truth[index])})
        if labels:
            with contextlib.suppress(AgentError):  # the updater is down in one act: these truths are lost, nothing else
                request = {"id": f"clerk-{secrets.token_hex(8)}", "verb": "label", "model": MODEL, "labels": labels}
                ask(self._control, request, timeout=5)

    def line(self, seconds: float) -> str:
        """The last seconds in words."""
        since = time.monotonic() - seconds
        recent = [row for row in self.rows if row[0] >= since]
        judged = [row[2] for row in recent if row[2] is not None]
        right = f"{100 * sum(judged) / len(judged):.1f} % read right" if judged else "nothing read"
        versions = ", ".join(dict.fromkeys(row[1] for row in recent))
        return f"{len(recent) / seconds:.0f} readings/s by {versions or 'nobody'}, {right}"


class Demo:
    """One performance."""

    def __init__(self, directory: Path, screen: Screen) -> None:
        self.dir = directory
        self.screen = screen
        self.box = directory / "box"
        self.repo = directory / "repo"
        self.keys = directory / "keys"
        self.camera = directory / "camera.npz"
        self.config = self.box / "etc" / "modelagent.toml"
        self.control = self.box / "run" / "control.sock"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.broker_port = 0
        self.seen = 0
        self.clerk = Clerk(self.box / "inference" / MODEL / "results.jsonl", self.control)

    # -- the stage ---------------------------------------------------------------------------------------------

    def cli(self, *words: str, show: bool = True, ok: tuple[int, ...] = (0,)) -> str:
        """Run one command as a user would; returns what it printed."""
        if show:
            shown = [word.replace(str(self.dir), "DEMO") for word in words]
            self.screen.command(f"modelagent {' '.join(shown)}")
        done = subprocess.run(
            [sys.executable, "-m", "modelagent", *words],
            env={**os.environ, "MODELAGENT_CONFIG": str(self.config), "COLUMNS": "118"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in ok:
            raise DemoError(f"modelagent {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to DIR/<name>.log."""
        with (self.dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "MODELAGENT_PARENT": str(os.getpid())} if name == "device" else None,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End every process, whatever state it is in."""
        if self.clerk.is_alive():
            self.clerk.end()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=6)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def status(self) -> dict[str, Any]:
        """What the updater says of the model, with what inference's own record says runs."""
        request = {"id": secrets.token_hex(8), "verb": "status", "model": MODEL}
        answer = ask(self.control, request, timeout=5)
        told: dict[str, Any] = answer["result"]["models"][MODEL]
        told["broker"] = (answer["result"]["broker"] or {}).get("connected", False)
        try:
            health = json.loads((self.box / "inference-run" / MODEL / "health.json").read_bytes())
        except (OSError, ValueError):
            health = {}
        told["runs"] = (health.get("running") or {}).get("version", "nothing")
        told["health"] = health
        return told

    def news(self) -> Iterator[dict[str, Any]]:
        """History lines that have not been shown yet."""
        try:
            lines = (self.box / "state" / "history.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        for line in lines[self.seen :]:
            self.seen += 1
            yield json.loads(line)

    def follow(self, what: str, wanted: Callable[[dict[str, Any]], bool], limit: float = STEP_S) -> dict[str, Any]:
        """Show the device's history until a line is what was wanted."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            for line in self.news():
                if line["kind"] not in {
                    "offered",
                    "acquiring",
                    "acquired",
                    "staged",
                    "settings",
                    "activated",
                    "reverting",
                }:
                    text = (
                        line["text"] if line["text"].startswith("1.") else f"{line['version']} {line['text']}".strip()
                    )
                    self.screen.device(f"{line['kind']}: {text}")
                if wanted(line):
                    return line
            self.check_processes()
            time.sleep(0.05)
        raise DemoError(f"waited {limit:.0f} s for: {what}\n{self.tail('device')}")

    def until(self, what: str, wanted: Callable[[], bool], limit: float = STEP_S) -> None:
        """Wait for something that is not in the history."""
        end = time.monotonic() + limit
        while not wanted():
            if time.monotonic() > end:
                raise DemoError(f"waited {limit:.0f} s for: {what}\n{self.tail('device')}")
            self.check_processes()
            time.sleep(0.05)

    def check_processes(self) -> None:
        """A process of the stage that has ended ends the demo."""
        for process in self.processes:
            if process.poll() is not None:
                raise DemoError(f"{process.args!r} ended with {process.returncode}\n{self.tail('device')}")

    def tail(self, name: str) -> str:
        """The end of a log."""
        with contextlib.suppress(OSError):
            return "\n".join((self.dir / f"{name}.log").read_text(errors="replace").splitlines()[-25:])
        return ""

    # -- parts -------------------------------------------------------------------------------------------------

    def see(self, name: str) -> None:
        """Change what the camera sees: one of the frame sets, in one rename."""
        prepared = self.camera.with_name(".camera.npz")
        shutil.copyfile(self.dir / "frames" / f"frames_{name}.npz", prepared)
        prepared.replace(self.camera)

    def publish(self, version: str, meddle: Callable[[list[Path]], None] = lambda _: None) -> None:
        """Publish a release of releases.json on the stable channel.

        `meddle` gets the release's files in the repository (the model and the deltas to it) before any device hears.
        """
        release = next(r for r in RELEASES["releases"] if r["version"] == version)
        before = {*(self.repo / "files").iterdir()}
        contract = self.dir / "contract.json"
        keys = ("inputs", "outputs", "preprocess", "postprocess", "limits", "labels")
        contract.write_text(json.dumps({key: RELEASES[key] for key in keys}), encoding="utf-8")
        where = ("--repo", str(self.repo), "--keys", str(self.keys))
        self.cli(
            "repo", "add", *where, "--model", MODEL, "--version", version,
            "--canary", str(HERE / "canary.npz"), "--warmup", str(HERE / "warmup.npz"),
            "--margin", "0.05", "--floor-accuracy", "0.7", "--manifest", str(contract),
            str(HERE / release["file"]),
            show=False,
        )  # fmt: skip
        meddle(sorted({*(self.repo / "files").iterdir()} - before))
        self.cli("repo", "channel", *where, MODEL, "stable", version, show=False)
        self.screen.say(f"published {version}: {release['description']}")

    def refused(self, digest_or_code: str) -> Callable[[dict[str, Any]], bool]:
        """A line that names the attack."""
        return lambda line: (line.get("evidence") or {}).get("code") == digest_or_code

    def show_line(self, seconds: float = 2.0) -> None:
        """Let the line run, and say how."""
        time.sleep(seconds)
        self.screen.say(self.clerk.line(seconds))


def kind(word: str, version: str = "", text: str = "") -> Callable[[Mapping[str, Any]], bool]:
    """Matches a history line."""
    return lambda line: line["kind"] == word and (not version or line["version"] == version) and text in line["text"]


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, limit: float = 20.0) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + limit
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise DemoError(f"nobody listens on 127.0.0.1:{port}") from error
            time.sleep(0.05)


def start_broker(demo: Demo) -> None:
    """Mosquitto where there is one, else a broker from PyPI."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found:
        settings = demo.dir / "mosquitto.conf"
        settings.write_text(f"listener {demo.broker_port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n")
        demo.start("broker", found, "-c", str(settings))
        return
    settings = demo.dir / "amqtt.yaml"
    settings.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{demo.broker_port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    demo.start("broker", sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(settings))
