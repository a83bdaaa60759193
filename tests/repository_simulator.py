"""A repository that can be edited and can attack: our own publisher in a directory, served as a `Source`.

It holds real keys and real metadata; every lie it tells is one a real mirror, server or thief could tell. The names
of its methods are the attacks. `honest()` takes every lie back, so that tests can show that the next try succeeds.

    simulator = RepositorySimulator(tmp_path, clock)
    release = simulator.release("1.0.0")            # signed, published, named by the channel `stable`
    simulator.swap_bytes(f"files/{release.model_file.sha256}")
    ...
    simulator.requests                              # every name that was asked for, in order

Other tests use `make_manifest` for a valid manifest document and `make_canary` for the canary set that goes with it.
"""

import copy
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tuf.api.metadata import Metadata, Targets

from modelagent.errors import SourceError
from modelagent.manifest import Manifest
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Lifetimes, Repository
from modelagent.sources import Body, BusyError, not_found
from modelagent.sources.directory import DirectorySource

START = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
SAMPLES = 300


class Clock:
    """A wall clock that stands still until told otherwise; callable as Unix seconds."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now.timestamp()

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)

    def read(self) -> datetime:
        return self.now


def make_manifest(**overrides: Any) -> dict[str, Any]:
    """A valid manifest document for a tiny classifier; keyword arguments replace whole keys, None removes one."""
    document: dict[str, Any] = {
        "schema": 1,
        "model": "digits",
        "version": "1.0.0",
        "number": 1,
        "floor": 0,
        "issued": "2026-11-01T12:00:00Z",
        "parent": None,
        "files": {"model": {"sha256": "a" * 64, "length": 1000}, "canary": {"sha256": "b" * 64, "length": 500}},
        "runtime": {"min": None, "max": None},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "inputs": [{"name": "image", "shape": [1, 4], "dtype": "float32", "quantisation": None}],
        "outputs": [{"name": "probabilities", "shape": [1, 10], "dtype": "float32", "quantisation": None}],
        "labels": [str(digit) for digit in range(10)],
        "preprocess": {},
        "postprocess": {},
        "canary": {
            "metric": "accuracy",
            "margin": 0.05,
            "confidence": 0.95,
            "floor": 0.5,
            "samples": SAMPLES,
        },
        "limits": {"latency_ms": 1000.0, "latency_ratio": 3.0, "memory_mb": 500.0, "load_s": 10.0},
        "card": {},
    }
    document.update(overrides)
    return {key: value for key, value in document.items() if value is not None or key == "parent"}


def make_canary(samples: int = SAMPLES, *, seed: int = 0) -> bytes:
    """A canary set that fits `make_manifest`: random inputs and labels."""
    random = np.random.default_rng(seed)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        input_0=random.random((samples, 4), dtype=np.float32),
        labels=random.integers(0, 10, samples, dtype=np.int64),
    )
    return buffer.getvalue()


def fake_model(version: str, *, size: int = 20_000) -> bytes:
    """Bytes that stand for a model where no test loads it."""
    return np.random.default_rng(list(version.encode())).bytes(size)


Rewrite = Callable[[bytes], Iterable[bytes]]


class RepositorySimulator:
    """A publisher, its keys, and a source that lies on demand. Implements `Source`.

    Args:
        directory: an empty directory of the test's own.
        clock: shared with the device under test.
        models: what the repository knows at first.
    """

    def __init__(
        self, directory: Path, clock: Clock | None = None, *, models: tuple[str, ...] = ("digits",), **init: Any
    ) -> None:
        self.clock = clock or Clock()
        self.directory = directory / "repository"
        self.repository = Repository.init(self.directory, directory / "keys", models, now=self.clock.read, **init)
        self.root_bytes = (directory / "keys" / "root.json").read_bytes()
        self.source = DirectorySource(self.directory)
        self.label = "simulator"
        self.requests: list[tuple[str, int]] = []
        self.sent = 0  # bytes
        self.server_time: float | None = None  # what a web server's Date would say
        self._rewrites: dict[str, tuple[Rewrite, bool]] = {}
        self._missing: set[str] = set()
        self._failures: list[SourceError] = []
        self._ranges = True
        self._snapshot: dict[str, bytes] = {}
        self._before_theft: dict[str, Metadata[Targets]] = {}

    # --- the source --------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.label

    @property
    def remote(self) -> bool:
        return True

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        del validator
        self.requests.append((name, offset))
        if self._failures:
            raise self._failures.pop(0)
        if name in self._missing:
            raise not_found(self.name, name)
        start = offset if self._ranges else 0
        total: int | None
        if name in self._rewrites:
            # A liar keeps to no limit: whoever asks has to bound what arrives.
            rewrite, states_length = self._rewrites[name]
            path = self.directory / name
            data = path.read_bytes() if path.is_file() else b""
            chunks = _skip(rewrite(data), start)
            total = sum(map(len, rewrite(data))) if states_length else None
        else:
            with self.source.fetch(name, limit=limit) as body:
                data = b"".join(body)
            start = start if start <= len(data) else 0
            chunks, total = _skip([data], start), len(data)
        return Body(self._count(chunks), offset=start, total=total)

    def close(self) -> None:
        pass

    def _count(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.sent += len(chunk)
            yield chunk

    @property
    def names(self) -> list[str]:
        """What was asked for since the last `forget_requests`."""
        return [name for name, _ in self.requests]

    def forget_requests(self) -> None:
        self.requests.clear()
        self.sent = 0

    # --- an honest publisher -----------------------------------------------------------------------------------

    def release(
        self,
        version: str,
        *,
        model: str = "digits",
        channel: str | None = "stable",
        model_bytes: bytes | None = None,
        canary_bytes: bytes | None = None,
        extra: dict[str, bytes] | None = None,
        **overrides: Any,
    ) -> Manifest:
        """Publish a release and let the channel name it (`channel=None`: no channel names it)."""
        document = make_manifest(model=model, version=version, issued=self._issued(), **overrides)
        if "number" not in overrides:
            del document["number"]
        files: dict[str, Path | bytes] = {
            "model": fake_model(f"{model} {version}") if model_bytes is None else model_bytes,
            "canary": make_canary() if canary_bytes is None else canary_bytes,
            **(extra or {}),
        }
        manifest = self.repository.add(document, files)
        if channel is not None:
            self.repository.channel(model, channel, version)
        return manifest

    def _issued(self) -> str:
        return self.clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- lies --------------------------------------------------------------------------------------------------

    def honest(self) -> None:
        """Take every lie back."""
        self._rewrites.clear()
        self._missing.clear()
        self._failures.clear()
        self._ranges = True

    def rewrite(self, name: str, rewrite: Rewrite, *, states_length: bool = True) -> None:
        """Serve `rewrite(true bytes)` under this name; `states_length` False leaves the length open."""
        self._rewrites[name] = (rewrite, states_length)

    def swap_bytes(self, name: str) -> None:
        """Flip one bit in the middle; the length stays."""

        def flip(data: bytes) -> list[bytes]:
            middle = len(data) // 2
            return [data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]]

        self.rewrite(name, flip)

    def serve_instead(self, name: str, data: bytes, *, states_length: bool = True) -> None:
        """Serve other bytes."""
        self.rewrite(name, lambda _: [data], states_length=states_length)

    def wrong_length(self, name: str, *, by: int = 1) -> None:
        """Serve more bytes than are signed (by > 0), or fewer, and state that length."""
        self.rewrite(name, lambda data: [data + b"\0" * by if by > 0 else data[:by]])

    def endless_data(self, name: str) -> None:
        """Never stop sending."""

        def forever(data: bytes) -> Iterator[bytes]:
            yield data
            while True:
                yield b"\0" * 1000

        self.rewrite(name, forever, states_length=False)

    def truncate(self, name: str, length: int) -> None:
        """Cut the connection after `length` bytes."""

        def cut(data: bytes) -> Iterator[bytes]:
            yield data[:length]
            raise SourceError(f"{self.name}: {name}: the connection was cut", code="cut")

        self.rewrite(name, cut, states_length=False)

    def lose(self, name: str) -> None:
        """Answer 404 for a name that is signed."""
        self._missing.add(name)

    def fail(self, times: int, *, code: str = "server-error") -> None:
        """Answer 503 to the next requests."""
        self._failures += [BusyError(f"{self.name}: 503", code=code, retry_after=0.0) for _ in range(times)]

    def refuse_ranges(self) -> None:
        """Answer 200 from the start to every range request."""
        self._ranges = False

    def remember(self) -> None:
        """Record everything as it is now, for a later replay."""
        self._snapshot = {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file()
        }

    def replay(self, role: str) -> None:
        """Serve the remembered metadata of a role under the name that devices ask for now."""
        old = next(name for name in sorted(self._snapshot, reverse=True) if self._role(name) == role)
        new = self.current(role)
        assert self._snapshot[old] != (self.directory / new).read_bytes(), "nothing changed since remember()"
        self.serve_instead(new, self._snapshot[old])

    def current(self, role: str) -> str:
        """The name under which devices ask for a role's metadata now."""
        if role == "timestamp":
            return "metadata/timestamp.json"
        ledger = self.repository.ledger
        if role == "snapshot":
            version = ledger.load_timestamp().signed.snapshot_meta.version
        else:
            version = ledger.load_snapshot().signed.meta[f"{role}.json"].version
        return f"metadata/{version}.{role}.json"

    @staticmethod
    def _role(name: str) -> str:
        parts = name.split("/")
        if parts[0] != "metadata":
            return ""
        stem = parts[1].removesuffix(".json")
        head, _, tail = stem.partition(".")
        return tail if head.isdigit() else stem

    # --- stolen keys -------------------------------------------------------------------------------------------

    def sign_with(self, role: str, key: str, edit: Callable[[Targets], None]) -> None:
        """Publish a change to `role` signed by another role's key; the online key plays along."""
        ledger = self.repository.ledger
        metadata = ledger.load_targets(role)
        self._before_theft[role] = copy.deepcopy(metadata)
        edit(metadata.signed)
        ledger.publish({role: metadata}, signers={role: ledger.keys.signer(key)})

    def restore(self, role: str) -> None:
        """The owner publishes again what was there before `sign_with`, signed by the right key."""
        self.repository.ledger.publish({role: self._before_theft.pop(role)})

    def publish_document(self, path: str, data: bytes, *, role: str, key: str | None = None) -> None:
        """Publish any bytes as a target of `role`, signed by its own key or by `key`."""
        entry = self.repository.ledger.store_target(path, data)

        def edit(targets: Targets) -> None:
            targets.targets[path] = entry

        self.sign_with(role, key or {"channels": "operations"}.get(role, "release"), edit)


def _skip(chunks: Iterable[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if count >= len(chunk):
            count -= len(chunk)
            continue
        yield chunk[count:]
        count = 0


__all__ = [
    "SAMPLES",
    "START",
    "Clock",
    "KeyRing",
    "Lifetimes",
    "RepositorySimulator",
    "fake_model",
    "make_canary",
    "make_manifest",
]
