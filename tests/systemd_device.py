"""The product on a machine that boots, with a repository on the other end of its link.

device = Device(machine, folder)
device.publish("1.0.0")
device.provision()                           # settings, frames, trusted root; before or after the package
device.install(package)
device.wait_for("1.0.0")                     # it runs, it is confirmed, frames are answered
"""

import functools
import http.server
import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from systemd_machine import ROOT, Machine

EXAMPLE: Final = ROOT / "examples" / "digits"
INFERENCE: Final = "modelagent"
UPDATER: Final = "modelagent-updater"
FPS: Final = 50
_PORT: Final = 8000


class Device:
    """What a publisher and an operator do, and what they can see."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.repository = folder / "repository"
        self.newest = ""  # published last
        self._server: socketserver.BaseServer | None = None
        self._cli("repo", "init", *self._where, "--model", "digits")

    # -- the publisher -----------------------------------------------------------------------------------------

    @property
    def _where(self) -> tuple[str, ...]:
        return "--repo", str(self.repository), "--keys", str(self.folder / "keys")

    def _cli(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "modelagent", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"modelagent {' '.join(words)}: {done.stdout}{done.stderr}"

    def publish(self, version: str, *, of: str = "1.6.0", padding: int = 0) -> None:
        """Sign a release of one of the example's models, made larger and different by `padding` random bytes."""
        model = self.folder / f"{version}.tflite"
        model.write_bytes((EXAMPLE / "models" / f"digits-{of}.tflite").read_bytes() + os.urandom(padding))
        contract = self.folder / "contract.json"
        known = json.loads((EXAMPLE / "releases.json").read_text(encoding="utf-8"))
        keys = ("inputs", "outputs", "preprocess", "postprocess", "limits", "labels")
        contract.write_text(json.dumps({key: known[key] for key in keys}), encoding="utf-8")
        self._cli(
            *("repo", "add", *self._where, "--model", "digits", "--version", version),
            *("--canary", str(EXAMPLE / "canary.npz"), "--warmup", str(EXAMPLE / "warmup.npz")),
            *("--floor-accuracy", "0.7", "--manifest", str(contract), str(model)),
        )
        self._cli("repo", "channel", *self._where, "digits", "stable", version)
        self.newest = version

    def serve(self) -> None:
        """Serve the repository on this side of the link."""
        handler = functools.partial(_Quiet, directory=str(self.repository))
        self._server = http.server.ThreadingHTTPServer((self.machine.host_ip, _PORT), handler)
        threading.Thread(target=self._server.serve_forever, name="repository", daemon=True).start()

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    # -- the operator ------------------------------------------------------------------------------------------

    def provision(self) -> None:
        """Put settings, frames and the trusted root on its disk."""
        disk = self.machine.disk
        settings = disk / "etc/modelagent"
        (settings / "conf.d").mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / "keys" / "root.json", settings / "root.json")
        (settings / "conf.d" / "site.toml").write_text(
            f"""[repository]
url = "http://{self.machine.host_ip}:{_PORT}/"
connect_timeout = "2s"
read_timeout = "4s"
[models.digits.source]
kind = "replay"
path = "/srv/frames.npz"
fps = {FPS}
[models.digits.probation]
frames = 100
seconds = "2s"
[policy]
check_interval = "2s"
jitter = 0
[limits]
back_off = "1s"
postpone = "3s"
attempts = 50
""",
            encoding="utf-8",
        )
        with np.load(EXAMPLE / "canary.npz", allow_pickle=False) as canary:
            np.savez(disk / "srv" / "frames.npz", input_0=canary["input_0"])

    def install(self, package: Path) -> str:
        """Install or upgrade the package; returns what dpkg and the package said.

        As unattended upgrades do it: where dpkg would ask about an edited conffile, the edit stays.
        """
        shutil.copy(package, self.machine.path("/root/package.deb"))
        return self.machine.run("dpkg", "--force-confdef", "--force-confold", "-i", "/root/package.deb")

    def cli(self, *words: str, check: bool = True) -> str:
        """The product's own command line, in the machine."""
        return self.machine.run("modelagent", *words, check=check)

    def ctl(self, *words: str) -> None:
        """`systemctl ...`, which must work."""
        self.machine.run("systemctl", *words)

    # -- what can be seen --------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """The present health record; empty while there is none."""
        try:
            return dict(json.loads(self.machine.path("/run/modelagent-inference/digits/health.json").read_text()))
        except (OSError, ValueError):
            return {}

    def history(self) -> list[dict[str, Any]]:
        """All whole lines of the updater's history."""
        try:
            text = self.machine.path("/var/lib/modelagent/history.jsonl").read_text()
        except OSError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def happened(self, kind: str, version: str) -> bool:
        """Whether the history has such a line."""
        return any(line.get("kind") == kind and line.get("version") == version for line in self.history())

    def running(self) -> str:
        """The version that runs, empty for none."""
        return str((self.health().get("running") or {}).get("version", ""))

    def count(self, what: str) -> int:
        """Of `frames`, `done`, `dropped`, `faulted`: since inference started, all versions together."""
        return sum(int(counters.get(what, 0)) for counters in (self.health().get("counters") or {}).values())

    def active(self, *units: str) -> bool:
        """Whether the units (both, if none is named) are up."""
        return all(self.machine.property(unit, "ActiveState") == "active" for unit in units or (INFERENCE, UPDATER))

    def answers(self, seconds: float = 1.0) -> bool:
        """Whether frames get results during the next moments."""
        epoch, before = self.health().get("epoch"), self.count("done")
        time.sleep(seconds)
        return bool(epoch) and self.health().get("epoch") == epoch and self.count("done") > before

    def wait_for(self, version: str, limit: float = 60.0) -> None:
        """Until that version runs, is confirmed, and both units are up and at work."""
        self.machine.wait(f"{version} runs", lambda: self.running() == version, limit)
        self.machine.wait(f"{version} is confirmed", lambda: self.happened("confirmed", version), limit)
        self.machine.wait("both units are active", self.active, limit)
        self.machine.wait("frames are answered", self.answers, limit)

    def downloading(self, version: str) -> Callable[[], bool]:
        """Whether bytes of that version are arriving now: the repository has been asked, and a partial file grows."""

        def look() -> bool:
            return self.happened("acquiring", version) and any(size > 20_000 for size in self.partials())

        return look

    def partials(self) -> Iterator[int]:
        """Sizes of what lies in incoming/."""
        for path in self.machine.path("/var/lib/modelagent/incoming").rglob("*"):
            try:
                if path.is_file():
                    yield path.stat().st_size
            except OSError:
                continue


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """The plainest static server there is: it knows no ranges, so that resuming is not what saves us."""

    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""
