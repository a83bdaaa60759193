"""A mosquitto to measure with: on a free loopback port, without delayed packets, and it can be restarted.

This file knows how the broker is started. It does not know what is measured.

    with Broker(folder) as broker:
        broker.port
        broker.restart()          # as an upgrade: it writes what it knows, ends, and begins anew
"""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.measure import NotHereError


class Broker:
    """One broker below `folder`; NotHereError where none is installed."""

    def __init__(self, folder: Path) -> None:
        self._program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if self._program is None:
            raise NotHereError("mosquitto is not installed (apt-get install mosquitto)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self._log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        lines = (
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "persistence true",
            f"persistence_location {folder.resolve()}/",
            "max_queued_messages 100000",
            "user root",
        )
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and return when it listens."""
        assert self._program is not None  # noqa: S101 - checked at the beginning
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise TimeoutError(f"the broker does not listen; see {self._log}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after ten seconds."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()
