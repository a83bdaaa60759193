"""`modelagent install BUNDLE` and a watched mount directory, with a real updater that has no network at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from modelagent.publish.bundle import write
from repository_simulator import Clock, RepositorySimulator

pytestmark = pytest.mark.process


class Box:
    """A device with an updater, fed by sticks alone."""

    def __init__(self, directory: Path) -> None:
        clock = Clock()
        clock.now = clock.now.fromtimestamp(time.time(), clock.now.tzinfo)
        self.simulator = RepositorySimulator(directory / "publisher", clock)
        self.directory = directory
        self.media = directory / "media"
        self.media.mkdir()
        root = directory / "root.json"
        root.write_bytes(self.simulator.root_bytes)
        places = {name: directory / name for name in ("state", "inference", "run", "inference-run")}
        for place in places.values():
            place.mkdir()
        self.config = directory / "modelagent.toml"
        self.config.write_text(
            f'[paths]\nstate_dir = "{places["state"]}"\ninference_dir = "{places["inference"]}"\n'
            f'run_dir = "{places["run"]}"\ninference_run_dir = "{places["inference-run"]}"\n'
            f'[repository]\nroot = "{root}"\nmedia = "{self.media}"\n[models.digits]\n',
            encoding="utf-8",
        )
        self.log = directory / "updater.log"
        with self.log.open("wb") as log:
            self.updater = subprocess.Popen(self.words("run", "updater"), stdout=log, stderr=log, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "MODELAGENT_CONFIG": str(self.config)}

    @staticmethod
    def words(*words: str | Path) -> list[str]:
        return [sys.executable, "-m", "modelagent", *map(str, words)]

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=60, check=False, env=self.environment
        )

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("status", "--json").stdout)
        return answer

    def wait(self, what: str, ready: object) -> None:
        end = time.monotonic() + 30
        while not ready():  # type: ignore[operator]
            assert time.monotonic() < end, f"{what} did not happen; {self.log.read_text()}"
            assert self.updater.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        self.updater.send_signal(signal.SIGTERM)
        assert self.updater.wait(20) == 0, self.log.read_text()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    try:
        made.wait("the updater", (tmp_path / "run" / "control.sock").exists)
        yield made
        made.stop()
    finally:
        made.updater.kill()
        made.updater.wait()


def test_a_bundle_by_hand_and_a_stick_by_itself(box: Box, tmp_path: Path) -> None:
    box.simulator.release("1.0.0")
    bundle = tmp_path / "first.modelagent"
    write(box.simulator.repository, bundle, valid_for=timedelta(days=30))
    done = box.call("install", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offers 1.0.0" in done.stdout
    assert str(bundle) in box.status()["repository"]["attached"]

    # Its files came from there, although no server is named anywhere.
    def acquired() -> bool:
        return "acquired" in box.call("history", "--json").stdout

    box.wait("the acquisition", acquired)

    box.simulator.release("1.1.0")
    write(box.simulator.repository, tmp_path / "second", valid_for=timedelta(days=30))
    shutil.copytree(tmp_path / "second", box.media / "STICK")
    box.wait("the stick", lambda: (box.status()["models"]["digits"]["offer"] or {}).get("version") == "1.1.0")

    # While 1.1.0 is on its way, the older bundle's files might help it.
    box.wait("rest", lambda: box.status()["models"]["digits"]["candidate"] is None)
    old = box.call("install", bundle)
    assert "1.1.0" in old.stdout + old.stderr, "the older bundle is not believed"
    assert "rollback-attack" in box.call("history", "--json").stdout

    assert old.returncode == 1, "nothing came of it"
    assert "rollback-attack" in box.call("status").stdout

    missing = box.call("install", tmp_path / "run")
    assert missing.returncode == 3
    assert "no bundle" in missing.stderr


def test_what_is_no_bundle_is_refused_by_name_and_not_remembered(box: Box, tmp_path: Path) -> None:
    half = tmp_path / "half.modelagent"
    half.write_bytes(b"PK\x03\x04 and no more")
    link = tmp_path / "link.modelagent"
    link.symlink_to("/etc/passwd")
    empty = tmp_path / "empty"
    (empty / "metadata").mkdir(parents=True)
    (empty / "metadata" / "timestamp.json").write_text("{}")
    for path, why in ((half, "no bundle"), (link, "a symbolic link"), (empty, "no signed document")):
        done = box.call("install", path)
        assert (done.returncode, done.stdout) == (3, "")
        assert str(path) in done.stderr
        assert why in done.stderr
    assert not box.status()["repository"]["attached"]


def test_a_strangers_bundle_is_told_and_is_no_success(box: Box, tmp_path: Path) -> None:
    box.simulator.release("1.0.0")
    bundle = tmp_path / "own.modelagent"
    write(box.simulator.repository, bundle, valid_for=timedelta(days=30))
    assert box.call("install", bundle).returncode == 0
    stranger = RepositorySimulator(tmp_path / "stranger", box.simulator.clock)
    stranger.release("9.0.0")
    alien = tmp_path / "alien.modelagent"
    write(stranger.repository, alien, valid_for=timedelta(days=30))
    done = box.call("install", alien)
    assert done.returncode == 1
    assert str(alien) in done.stdout + done.stderr
    assert "arbitrary-software" in done.stdout + done.stderr
