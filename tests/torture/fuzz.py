"""Every parser that reads foreign bytes, given bytes that are nearly right: only its own error may come of it.

    tried, problem = run(PARSERS["manifest"], 10_000, seed=1)         # problem "" or the smallest input that broke it

Inputs are true documents with bytes changed, cut, doubled and spliced, JSON with values replaced, and plain noise;
Hypothesis draws them and makes what fails small. A parser that takes longer than SLOW_S for one input fails as well.
"""

import contextlib
import copy
import functools
import io
import json
import math
import socket
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from modelagent import manifest
from modelagent.delta.make import make
from modelagent.delta.rebuild import rebuild
from modelagent.errors import AgentError, ModelError, TrustError, UsageError
from modelagent.inference.samples import Samples
from modelagent.inputs import Reply, config
from modelagent.inputs.commands import Desk, Request, RequestError, answer, parse_request
from modelagent.inputs.control import ControlServer
from modelagent.sources.archive import ArchiveSource
from modelagent.steps import channel
from repository_simulator import make_canary, make_manifest
from torture.foreign import MORE
from torture.parser import SLOW_S, Parser, Take, reading, taking

BATCH: Final = 50


def run(parser: Parser, inputs: int, seed: int) -> tuple[int, str]:
    """Give it so many inputs; how many were tried, and what broke it, made small."""
    seeds = parser.seeds()
    tried = 0
    with parser.open() as take:
        for data in seeds:
            take(data)

        def one(batch: list[bytes]) -> None:
            nonlocal tried
            for data in batch:
                tried += 1
                begun = time.monotonic()
                try:
                    take(data)
                except Exception as error:
                    error.add_note(f"the input was {data[:300]!r}")
                    raise
                assert time.monotonic() - begun < SLOW_S, f"it took too long: {data[:300]!r}"

        test = hypothesis.given(_inputs(seeds, parser.words))(one)
        test = settings(
            max_examples=-(-inputs // BATCH),
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(test)
        try:
            while tried < inputs:  # repeated inputs do not count for Hypothesis, which then stops early
                before = tried
                hypothesis.seed(seed + tried)(test)()
                if tried == before:
                    break
        except Exception as error:  # noqa: BLE001 - whatever comes out is the finding
            notes = "; ".join(getattr(error, "__notes__", []))
            return tried, f"{type(error).__name__}: {error} {notes}"[:1500]
    return tried, ""


def _changed(chance: Random, data: bytes, words: tuple[bytes, ...]) -> bytes:
    """Bytes overwritten, replaced by a word that matters, taken out, doubled, cut off, or with one bit turned."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(found))
        end = min(len(found), at + chance.randint(0, 40))
        match chance.randrange(6):
            case 0:
                found[at:end] = chance.randbytes(chance.randint(0, 12))
            case 1:
                found[at:end] = chance.choice(words)
            case 2:
                del found[at:end]
            case 3:
                found[at:at] = found[at:end]
            case 4:
                del found[at:]
            case _:
                if at < len(found):
                    found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


_SCALARS: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 0.0, -0.5, 1e308, math.inf, math.nan),
    *("", "x", "../x", "a" * 70, "0" * 64, "1.0.0", "\0", "\ud800", "2026-11-01T12:00:00Z", "\u202e", "9" * 5000),
    *([], {}, [[]], {"": 0}, [1, "x"]),
)


def _replaced(chance: Random, document: Any) -> bytes:
    """A JSON document with some of its values, at any depth, replaced, taken away, or given another name."""
    document = json.loads(json.dumps(document))
    for _ in range(chance.randint(1, 3)):
        here = document
        while isinstance(here, dict | list) and here:
            key: Any = chance.choice(list(here) if isinstance(here, dict) else range(len(here)))
            if isinstance(here[key], dict | list) and here[key] and chance.randrange(4):
                here = here[key]
                continue
            match chance.randrange(4):
                case 0:
                    del here[key]
                case 1 if isinstance(here, dict):
                    here[chance.choice(("", "x", "schema", "\u00e9"))] = here.pop(key)
                case _:
                    here[key] = copy.deepcopy(chance.choice(_SCALARS))  # or they would grow into each other
            break
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _inputs(seeds: list[bytes], words: tuple[bytes, ...]) -> st.SearchStrategy[list[bytes]]:
    """Hypothesis draws one number for a batch of inputs (a draw for each byte would take days), and noise."""
    documents = []
    for data in seeds:
        with contextlib.suppress(ValueError):
            documents.append(json.loads(data))

    def made(chance: Random) -> bytes:
        if documents and chance.randrange(2):
            return _replaced(chance, chance.choice(documents))
        return _changed(chance, chance.choice(seeds), words)

    def batch(number: int) -> list[bytes]:
        chance = Random(number)
        return [made(chance) for _ in range(BATCH)]

    return st.integers(0, 2**64).map(batch) | st.lists(st.binary(max_size=300), min_size=BATCH // 5, max_size=BATCH)


# -- the parsers ----------------------------------------------------------------------------------------------------


_DEVICE: Final = b"""
[device]
id = "box"
groups = ["lab"]
[repository]
url = "https://x/y"
[models.digits]
channel = "stable"
forbid = ["1.0.0"]
[models.digits.source]
kind = "replay"
path = "/x"
fps = 30
[policy]
check_interval = "1h30m"
activate_windows = ["Mon-Fri 01:00-05:00"]
[control]
mode = "0660"
"""
_BROKER: Final = b"""
[mqtt]
host = "broker"
port = 8883
[mqtt.tls]
enabled = true
[models.a.rules.r]
hits = 2
of = 5
"""


def _manifests() -> list[bytes]:
    return [manifest.dump(make_manifest()), manifest.dump(make_manifest(labels=[], parent="c" * 64))]


def _channels() -> list[bytes]:
    document: dict[str, Any] = {
        "schema": 1,
        "model": "digits",
        "channel": "stable",
        "issued": "2026-11-01T12:00:00Z",
        "release": {"version": "1.0.0", "digest": "a" * 64},
        "waves": [{"start": "2026-11-01T12:00:00Z", "share": 0.1}, {"start": "2026-11-02T12:00:00Z", "share": 1.0}],
        "withdrawn": [{"digest": "b" * 64, "version": "0.9.0", "reason": "smells"}],
    }
    return [channel.dump(document), channel.dump({**document, "release": None, "waves": [], "withdrawn": []})]


@functools.cache
def _delta_files() -> tuple[bytes, bytes]:
    random = np.random.default_rng(1)
    old = random.integers(0, 60, 6000, dtype=np.uint8)
    new = old.copy()
    new[::50] += 1
    return old.tobytes(), new.tobytes()


def _deltas() -> list[bytes]:
    old, new = _delta_files()
    return [make(old, new), make(None, new)]


def _rebuild(data: bytes) -> None:
    old, new = _delta_files()
    rebuild(io.BytesIO(old), io.BytesIO(data), io.BytesIO(), len(new))


def _bundles() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name, size in (("metadata/timestamp.json", 40), ("files/" + "a" * 64, 700), ("a/" * 40 + "b", 3)):
                member = tarfile.TarInfo(name)
                member.size = size
                archive.addfile(member, io.BytesIO(b"x" * size))
        found.append(buffer.getvalue())
    return found


def _read_bundle(path: Path) -> None:
    source = ArchiveSource(path)
    try:
        with source.fetch("metadata/timestamp.json", limit=1000) as body:
            assert sum(len(chunk) for chunk in body) <= 1000
    finally:
        source.close()


def _commands() -> list[bytes]:
    return [
        b'{"id":"7f3a","verb":"pin","model":"digits","argument":"1.2.0","expires":"2026-11-01T12:00:00Z"}',
        b'{"id":"7f3b","verb":"label","labels":[{"id":"r-1","label":7},{"id":"r-2","right":true}]}',
        b'{"id":"7f3c","verb":"status"}',
    ]


def _settings_files() -> list[bytes]:
    return [_DEVICE, _BROKER]


def _sample_sets() -> list[bytes]:
    packed = io.BytesIO()
    np.savez_compressed(packed, input_0=np.ones((4, 4), np.float32), labels=np.arange(4))
    return [make_canary(4), packed.getvalue()]


def _read_samples(path: Path) -> None:
    with Samples(path, 1) as samples:
        for index in range(min(samples.count, 5)):
            samples.read(index)
            samples.label(index)
            samples.truth(index)


@contextlib.contextmanager
def _control() -> Iterator[Take]:
    """A real server; each input is one connection, and every answer is a line of JSON."""

    def submit(request: Request, reply: Reply) -> None:
        reply(answer(request.id, "done"))

    desk = Desk(submit=submit, view=lambda request: {"verb": request.verb}, now=time.time)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        with ControlServer(path, desk, patience=1.0, idle=1.0):

            def take(data: bytes) -> None:
                if b"watch" in data:
                    return  # it would be answered for ever
                with socket.socket(socket.AF_UNIX) as asker:
                    asker.settimeout(SLOW_S)
                    asker.connect(str(path))
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        asker.sendall(data)
                        asker.shutdown(socket.SHUT_WR)
                        said = b""
                        while chunk := asker.recv(65536):
                            said += chunk
                        for line in said.splitlines():
                            assert json.loads(line)["status"]
                assert any(thread.name == "control" for thread in threading.enumerate()), "the server is gone"

            yield take


_NEAR_ZIP: Final = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"\x93NUMPY",
    b"'descr': '|O'",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"(-1,",
)
PARSERS: Final[dict[str, Parser]] = {
    "manifest": Parser(_manifests, taking(manifest.parse, ModelError)),
    "channel": Parser(_channels, taking(channel.parse, TrustError)),
    "delta": Parser(_deltas, taking(_rebuild, AgentError), (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\x80\x80\x80")),
    "bundle": Parser(
        _bundles, lambda: reading(_read_bundle, "b", AgentError), (b"77777777777", b"\x80\xff", b"x", b"L")
    ),
    "command": Parser(_commands, taking(lambda data: parse_request(data, origin="mqtt", limit=65536), RequestError)),
    "config": Parser(
        _settings_files,
        lambda: reading(config.load, "modelagent.toml", UsageError),
        (b"[", b"=", b'"""', b"1e99", b"\n"),
    ),
    "canary": Parser(_sample_sets, lambda: reading(_read_samples, "canary.npz", ModelError), _NEAR_ZIP),
    "control": Parser(_commands, _control),
    **MORE,
}
assert zipfile.is_zipfile(io.BytesIO(_sample_sets()[0]))
