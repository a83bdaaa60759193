"""What a tortured device lives with: a repository in four states, settings, and the six chapters of its life.

    world = World(Path("/dev/shm/x"))           # real keys, real metadata, made once by our publisher
    world.turn_to(CHAPTERS[0])                  # the repository and the settings as this chapter has them

Every chapter says what must hold at its end; what it began with is the end of the one before. It knows nothing of
faults. The model files come in all three ways: "renewal" makes its own from a delta, "update" fetches it in full, and
"install" is offered a delta that gives other bytes than the signed ones, so that it falls back to the full file.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from unittest import mock

from modelagent.core.state import Phase, State
from modelagent.manifest import Manifest
from modelagent.publish import deltas
from modelagent.publish.repository import Repository
from repository_simulator import fake_model, make_canary, make_manifest

MODEL: Final = "digits"
SIZE: Final = 150_000  # bytes of a model file


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing that happens to a device.

    `verb` is the command that is given in it ("" none), `repository` the state of the repository, `pin` the pin in
    the settings. At its end `runs` is `current`, at rest; `told` are kinds of history lines that it must have left.
    """

    name: str
    repository: str
    verb: str
    runs: str
    told: tuple[tuple[str, str], ...]  # (kind, version)
    pin: str = ""
    blocked: str = ""


CHAPTERS: Final = (
    Chapter("install", "one", "check", "1.0.0", (("activated", "1.0.0"), ("confirmed", "1.0.0"))),
    Chapter("update", "two", "check", "1.1.0", (("staged", "1.1.0"), ("activated", "1.1.0"), ("confirmed", "1.1.0"))),
    Chapter(
        "withdrawal", "withdrawn", "check", "1.0.0", (("withdrawn", "1.1.0"), ("reverted", "1.0.0")), blocked="1.1.0"
    ),
    Chapter("renewal", "three", "check", "1.2.0", (("activated", "1.2.0"), ("confirmed", "1.2.0"))),
    Chapter("rollback", "three", "rollback", "1.0.0", (("command", ""), ("reverted", "1.0.0")), blocked="1.2.0"),
    Chapter("edit", "three", "", "1.2.0", (("activated", "1.2.0"),), pin="1.2.0"),
)


class World:
    """The repository in its states, and the settings file.

    Args:
        directory: an empty one of the test's own; the path must be short (a socket lies in it).
        state_dir: where the device's state is; another file system where power is cut.
    """

    def __init__(self, directory: Path, state_dir: Path | None = None) -> None:
        self.directory = directory
        self.state_dir = state_dir or directory / "state"
        self.run_dir = directory / "run"
        self.health = directory / "health"
        self.config = directory / "etc" / "modelagent.toml"
        self.repository = directory / "repository"
        for path in (self.run_dir, self.health / MODEL, self.config.parent):
            path.mkdir(parents=True, exist_ok=True)
        self.digests: dict[str, str] = {}
        self.manifests: dict[str, Manifest] = {}
        self.deltas: set[str] = set()  # their sha256
        self._publish()

    def _publish(self) -> None:
        keep = self.directory / "states"
        home, keys = keep / "work", keep / "keys"
        # Each state is signed an hour after the one before: where two fell into one second, a device would see no news.
        at = [datetime.now(UTC) - timedelta(hours=12)]
        publisher = Repository.init(home, keys, (MODEL,), now=lambda: at[0])
        shutil.copy(keys / "root.json", self.directory / "root.json")
        # A channel names no release yet in nobody's life here; each state of the repository is kept as a tree.
        for version, state in (("1.0.0", "one"), ("1.1.0", "two"), ("1.2.0", "three")):
            at[0] += timedelta(hours=1)
            if version == "1.2.0":
                publisher.withdraw(MODEL, "1.1.0", "reads sevens as ones")
                shutil.copytree(home, keep / "withdrawn")
                at[0] += timedelta(hours=1)
            document = make_manifest(model=MODEL, version=version, issued="2026-11-01T12:00:00Z")
            del document["number"]
            with _mistaken() if version == "1.0.0" else contextlib.nullcontext():
                manifest = publisher.add(
                    document,
                    {"model": model_file(version), "canary": make_canary(seed=len(self.digests))},
                    deltas_from=0 if version == "1.1.0" else 2,
                )
            publisher.channel(MODEL, "stable", version)
            self.deltas |= {offer.sha256 for offer in publisher.deltas(MODEL, version)}
            shutil.copytree(home, keep / state)
            self.digests[version] = manifest.digest
            self.manifests[manifest.digest] = manifest
        self.repository.symlink_to(keep / "one")

    def version(self, digest: str | None) -> str:
        """The version of a digest; "" for none."""
        return next((version for version, known in self.digests.items() if known == digest), "")

    def turn_to(self, chapter: Chapter) -> None:
        """Make repository and settings what this chapter has, each by one rename."""
        fresh = self.directory / ".repository"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.directory / "states" / chapter.repository)
        fresh.rename(self.repository)
        text = self.settings(chapter.pin)
        if not self.config.exists() or self.config.read_text() != text:
            fresh = self.config.with_suffix(".new")
            fresh.write_text(text)
            fresh.rename(self.config)

    def settings(self, pin: str) -> str:
        """The settings file: everything as shipped but for the pace and what a small disk needs."""
        return f"""
[device]
id = "tortured"
[paths]
state_dir = "{self.state_dir}"
inference_dir = "{self.directory}/inference"
run_dir = "{self.run_dir}"
inference_run_dir = "{self.health}"
[repository]
url = "{self.repository}"
root = "{self.directory}/root.json"
[clock]
trust = "rtc"
[models.{MODEL}]
pin = "{pin}"
[models.{MODEL}.probation]
frames = 20
seconds = 0
[models.{MODEL}.shadow]
rate = 0
[policy]
check_interval = "1d"
jitter = 0
[policy.canary]
min_free_memory_mb = 0
[limits]
disk_reserve_mb = 1
keep_slots = 2
back_off = 0.1
"""

    def reached(self, chapter: Chapter, state: State | None) -> bool:
        """Whether the machine, as it was last written down, is at rest where the chapter ends."""
        if state is None or state.phase is not Phase.IDLE or state.doing is not None or state.owed:
            return False
        if state.current != self.digests[chapter.runs] or state.candidate is not None:
            return False
        if chapter.blocked and self.digests[chapter.blocked] not in {*state.blocks, *state.withdrawn}:
            return False
        return any(s.release.digest == state.current and s.confirmed for s in state.slots)


def model_file(version: str) -> bytes:
    """Bytes that stand for a model; 1.2.0 differs from 1.0.0 by as little as a model that was trained a little more."""
    if version != "1.2.0":
        return fake_model(version, size=SIZE)
    changed = bytearray(fake_model("1.0.0", size=SIZE))
    changed[50_000:52_000] = fake_model(version, size=2_000)
    return bytes(changed)


@contextlib.contextmanager
def _mistaken() -> Iterator[None]:
    """The publisher lists, signed, a delta that makes another file of the same length."""
    real = deltas.make

    def make(bases: Sequence[tuple[str, Path]], new: bytes) -> list[deltas.Made]:
        return real(bases, bytes(len(new)))

    with mock.patch.object(deltas, "make", make):
        yield


class Player:
    """Plays inference, honestly: it runs what `current` names, says so with that link's identity, and counts frames.

    It never refuses, never falls back and loads nothing; real inference has its own tests. One `beat` is one look.
    """

    def __init__(self, world: World) -> None:
        self._links = world.state_dir / "models" / MODEL
        self._target = world.health / MODEL / "health.json"
        self._world = world
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.frames = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew, as inference does when its process starts."""
        self._epoch = os.urandom(8).hex()
        self._seq = 0
        self._done: dict[str, int] = {}

    def beat(self) -> None:
        """Follow `current`, do some frames, write health."""
        self._seq += 1
        link = digest = None
        try:
            status = (self._links / "current").lstat()
            digest = (self._links / "current").readlink().name
            link = {"inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
        except OSError:
            pass
        counters = {}
        if digest is not None:
            self.frames += 20
            done = self._done[digest] = self._done.get(digest, 0) + 20
            counters[digest] = {"frames": done, "done": done, "dropped": 0, "faults": {}, "busy_s": done // 10}
        document = {
            "schema": 1,
            "model": MODEL,
            "boot_id": self._boot,
            "epoch": self._epoch,
            "seq": self._seq,
            "link": link,
            "running": None if digest is None else {"digest": digest, "version": self._world.version(digest)},
            "refused": None,
            "fell_back": None,
            "counters": counters,
            "shadow": None,
        }
        fresh = self._target.with_name(".health.new")
        fresh.write_text(json.dumps(document))
        fresh.rename(self._target)


def content_is(path: Path, sha256: str) -> bool:
    """Whether a file holds exactly these bytes."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False
