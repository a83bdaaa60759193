"""What a check and a download cost: bytes, requests, processor time, cuts, and time against the plain tools.

This file knows these figures. They are taken against the publisher's own server, over a proxy that counts where bytes
are counted, and over a slow veth pair where `tc` may make one.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.measure import Figure, Group, Measured, median
from benchmarks.wire import HOST, Link, slow_link
from tuf.api.metadata import TargetFile

from modelagent.errors import SourceError
from modelagent.publish.repository import Repository
from modelagent.publish.serve import Server
from modelagent.sources.http import HttpSource
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.acquire import Acquirer
from modelagent.steps.transfer import Transfer

_CHECKS: Final = 60
_CUTS: Final = 100
_SIZE: Final = 10_000_000
_ROUNDS: Final = 15
_SLOW_ROUNDS: Final = 3
_MEGABITS: Final = 20.0


def _document(version: str) -> dict[str, Any]:
    return {
        "model": "digits",
        "version": version,
        "parent": None,
        "runtime": {"min": None, "max": None},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32", "quantisation": None}],
        "outputs": [{"name": "y", "shape": [1, 10], "dtype": "float32", "quantisation": None}],
        "labels": [],
        "preprocess": {"kind": "none"},
        "postprocess": {"kind": "raw"},
        "canary": {"metric": "accuracy", "margin": 1.0, "confidence": 0.95, "floor": 0.0, "samples": 0},
        "limits": {"latency_ms": 1000.0, "latency_ratio": 3.0, "memory_mb": 500.0, "load_s": 10.0},
        "card": {},
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class Publisher:
    """A repository with one real release, and as many more as it is told to list."""

    def __init__(self, folder: Path, listed: int = 1, size: int = 1000) -> None:
        self.repository = Repository.init(folder / "repository", folder / "keys", ["digits"])
        self.root = (folder / "keys" / "root.json").read_bytes()
        self.folder = folder
        self.size = size
        self.count = 0
        if listed > 1:
            self._list(listed - 1)
        self.release()

    def release(self) -> None:
        """Publish one more, and let the channel name it."""
        self.count += 1
        content = np.random.default_rng(self.count).bytes(self.size)
        document = {**_document(f"{self.count}.0.0"), "number": 1_000_000 + self.count}
        self.repository.add(document, {"model": content}, accept_small_canary=True)
        self.repository.channel("digits", "stable", f"{self.count}.0.0")

    def _list(self, count: int) -> None:
        """List many releases at once, as years of publishing would; nobody asks for their bytes."""
        ledger = self.repository.ledger
        with ledger.locked():
            targets = ledger.load_targets("models-digits")
            for index in range(count):
                path = f"models/digits/0.{index}.0/manifest.json"
                entry = TargetFile(1200, {"sha256": hashlib.sha256(path.encode()).hexdigest()}, path)
                entry.unrecognized_fields["custom"] = {"number": index + 1, "floor": 0}
                targets.signed.targets[path] = entry
            ledger.publish({"models-digits": targets})


@contextmanager
def _device(publisher: Publisher, url: str, name: str = "device") -> Iterator[Acquirer]:
    state = publisher.folder / name
    state.mkdir()
    acquirer = Acquirer(state, HttpSource(url), publisher.root, time.time)
    try:
        yield acquirer
    finally:
        acquirer.close()


def check_cost(folder: Path) -> dict[str, Measured]:
    """`check.bytes`, `check.requests`: a check without news, on a connection that is kept."""
    publisher = Publisher(_fresh(folder / "check"))
    with (
        Server(publisher.repository.directory) as server,
        Link("127.0.0.1", _port(server)) as link,
        _device(publisher, f"http://127.0.0.1:{link.port}/") as acquirer,
    ):
        acquirer.check("digits", "stable")
        link.forget()
        for _ in range(_CHECKS):
            acquirer.check("digits", "stable")
        requests = link.requests / _CHECKS
        size = (link.up + link.down) / _CHECKS
        how = (
            f"mean of {_CHECKS} checks without news, {link.up / _CHECKS:.0f} bytes up and "
            f"{link.down / _CHECKS:.0f} down, TCP and TLS not counted; {link.connections} new connections"
        )
    return {"check.bytes": Measured(size, how), "check.requests": Measured(requests, how)}


def check_cpu(folder: Path) -> dict[str, Measured]:
    """`check.cpu_ratio_10000` and what a new release costs in repositories of 1, 100 and 10,000."""
    place = _fresh(folder / "check-cpu")
    seconds: dict[int, float] = {}
    cold: dict[int, float] = {}
    found: dict[str, Measured] = {}
    for listed in (1, 100, 10_000):
        here = place / str(listed)
        here.mkdir()
        publisher = Publisher(here, listed)
        with Server(publisher.repository.directory) as server, Link("127.0.0.1", _port(server)) as link:
            url = f"http://127.0.0.1:{link.port}/"
            with _device(publisher, url) as acquirer:
                acquirer.check("digits", "stable")
                seconds[listed] = median([_cpu(lambda a=acquirer: a.check("digits", "stable")) for _ in range(_CHECKS)])  # type: ignore[misc]
                publisher.release()
                link.forget()
                cold[listed] = _cpu(lambda a=acquirer: a.check("digits", "stable"))  # type: ignore[misc]
                how = f"one new release among {listed}: all metadata and its manifest; {cold[listed] * 1e3:.0f} ms CPU"
                found[f"check.release_kb_{listed}"] = Measured((link.up + link.down) / 1000, how)
        if listed == 10_000:
            found["check.release_kb_pruned"] = _pruned(publisher)
    ratio = seconds[10_000] / seconds[1]
    how = f"median of {_CHECKS} checks without news: {seconds[1] * 1e3:.2f} and {seconds[10_000] * 1e3:.2f} ms CPU"
    found["check.cpu_ratio_10000"] = Measured(ratio, how)
    return found


def _pruned(publisher: Publisher) -> Measured:
    from modelagent.publish.pruning import prune  # noqa: PLC0415 - this figure alone

    gone = prune(publisher.repository, "digits", keep=20)
    with (
        Server(publisher.repository.directory) as server,
        Link("127.0.0.1", _port(server)) as link,
        _device(publisher, f"http://127.0.0.1:{link.port}/", "pruned") as acquirer,
    ):
        acquirer.check("digits", "stable")
        publisher.release()
        link.forget()
        acquirer.check("digits", "stable")
        how = f"the same after `repo prune --keep 20` took {len(gone)} away"
        return Measured((link.up + link.down) / 1000, how)


def _cpu(call: Callable[[], object]) -> float:
    """Processor seconds of this thread; the server's are its own threads'."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def resume(folder: Path) -> dict[str, Measured]:
    """`resume.overhead`: what the server sends in all, where the link breaks a hundred times."""
    place = _fresh(folder / "resume")
    content = np.random.default_rng(5).bytes(_SIZE)
    digest = hashlib.sha256(content).hexdigest()
    (place / "files").mkdir()
    (place / "files" / digest).write_bytes(content)
    (place / "incoming").mkdir()
    chance = random.Random(11)
    cuts = sorted(chance.sample(range(1, _SIZE), _CUTS))
    lengths = [after - before for before, after in zip([0, *cuts], cuts, strict=False)]
    failed = 0
    with Server(place) as server, Link("127.0.0.1", _port(server)) as link:
        for length in lengths:
            link.cut_after = length + 300  # with the head of the answer
            failed += not _try(link.port, place / "incoming", digest)
        while not _try(link.port, place / "incoming", digest):
            failed += 1
        total = link.down
    right = hashlib.sha256((place / "incoming" / digest).read_bytes()).hexdigest() == digest
    assert right, "the file is not what was signed"  # noqa: S101 - a figure of a broken transfer is none
    how = f"{total} bytes from the server, heads counted, for {_SIZE} over {failed} cuts at random places"
    return {"resume.overhead": Measured(total / _SIZE, how)}


def _try(port: int, incoming: Path, digest: str) -> bool:
    """One attempt by a new process, as far as memory goes."""
    source = HttpSource(f"http://127.0.0.1:{port}/")
    try:
        Transfer(incoming, Mirrors([source]), lambda _: None).fetch(
            digest, _SIZE, progress=lambda _: None, abandoned=lambda: False
        )
    except SourceError:
        return False
    finally:
        source.close()
    return True


def install(folder: Path) -> dict[str, Measured]:
    """`install.vs_plain_ratio`: check, fetch, verify and stage / curl, sha256sum and fsync, on loopback."""
    before, after = _before_and_after(_fresh(folder / "install"))
    with Server(before) as known, Server(after.repository.directory) as server:
        ratio, how = _against_plain(after, (known.url, server.url), [], _ROUNDS)
    return {"install.vs_plain_ratio": Measured(ratio, how)}


def install_slow(folder: Path) -> dict[str, Measured]:
    """`install.vs_plain_20mbit_ratio`: the same at 20 Mbit/s."""
    before, after = _before_and_after(_fresh(folder / "install-slow"))
    with (
        slow_link(_MEGABITS) as inside,
        Server(before, HOST) as known,
        Server(after.repository.directory, HOST) as server,
    ):
        ratio, how = _against_plain(after, (known.url, server.url), inside, _SLOW_ROUNDS)
    return {"install.vs_plain_20mbit_ratio": Measured(ratio, how)}


def _before_and_after(place: Path) -> tuple[Path, Publisher]:
    """The repository as devices know it, and as it is once a release of 10 MB has been published."""
    publisher = Publisher(place)
    before = place / "before"
    shutil.copytree(publisher.repository.directory, before)
    publisher.size = _SIZE
    publisher.release()
    return before, publisher


def _against_plain(publisher: Publisher, urls: tuple[str, str], inside: list[str], rounds: int) -> tuple[float, str]:
    files = sorted((publisher.repository.directory / "files").iterdir(), key=lambda path: path.stat().st_size)
    digest = files[-1].name
    ours, plain = [], []
    for index in range(rounds + 1):  # the first of each is not counted: byte code, page cache
        state = publisher.folder / f"state-{index}"
        state.mkdir()
        ours.append(_timed([*inside, sys.executable, "-m", "benchmarks.one_install", *urls, str(state)]))
        target = publisher.folder / f"plain-{index}"
        script = (
            f"curl -sf -o {target} {urls[1]}files/{digest} && echo '{digest}  {target}' | sha256sum -c --quiet && "
            f"sync {target}"
        )
        plain.append(_timed([*inside, "sh", "-c", script]))
    # The quickest of each: both wait for a processor and a disk that others use too, we at eight requests, they at one.
    mine, theirs = min(ours[1:]), min(plain[1:])
    how = (
        f"quickest of {rounds} (medians {median(ours[1:]):.3f} and {median(plain[1:]):.3f} s), {_SIZE} bytes, by a "
        f"running process that knew the repository before: {mine:.3f} s from check to staged slot against "
        f"{theirs:.3f} s for curl, sha256sum and sync"
    )
    return mine / theirs, how


def _timed(command: list[str]) -> float:
    """Seconds; a child of ours says itself how long its work took."""
    begun = time.monotonic()
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[-4:])}: {ended.stderr[-2000:]}")
    took = time.monotonic() - begun
    return float(ended.stdout) if ended.stdout.strip() else took


def _port(server: Server) -> int:
    return int(server.url.rstrip("/").rpartition(":")[2])


GROUPS: Final = (
    Group((Figure("check.bytes", "bytes", "<= 1150"), Figure("check.requests", "", "<= 2")), check_cost),
    Group(
        (
            Figure("check.cpu_ratio_10000", "", "<= 2"),
            Figure("check.release_kb_1", "kB", ""),
            Figure("check.release_kb_100", "kB", ""),
            Figure("check.release_kb_10000", "kB", ""),
            Figure("check.release_kb_pruned", "kB", ""),
        ),
        check_cpu,
    ),
    Group((Figure("resume.overhead", "", "<= 1.02"),), resume),
    Group((Figure("install.vs_plain_ratio", "", "<= 1.5"),), install),
    Group((Figure("install.vs_plain_20mbit_ratio", "", "<= 1.05"),), install_slow),
)
