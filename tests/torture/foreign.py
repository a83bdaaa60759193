"""The parsers of what inference, the metrics page and the trust of the repository read: more of `fuzz.PARSERS`.

    tried, problem = run(MORE["health"], 10_000, seed=1)

Where a record is read in several places (health, labels), each input goes through all of them, as in the processes
that read it.
"""

import contextlib
import functools
import io
import itertools
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from delta_models import build, network
from modelagent.core.events import Instant, Runs
from modelagent.core.state import State
from modelagent.delta import DeltaError
from modelagent.delta.flatbuffer import read_constants
from modelagent.errors import AgentError, SourceError, UsageError
from modelagent.inference.frames import SourceOptions
from modelagent.inference.frames.http import HttpSource
from modelagent.inference.frames.payload import read
from modelagent.inference.labels import Spool
from modelagent.inputs import config
from modelagent.inputs.health import Poller, queue_fill, running_of
from modelagent.inputs.labels import collect
from modelagent.inputs.latency import RecentLatency
from modelagent.metrics.collector import expose
from modelagent.metrics.reading import Reader
from modelagent.publish.repository import Repository
from modelagent.sources.directory import DirectorySource
from modelagent.steps.journal import Journal, read_history
from modelagent.steps.metadata import View
from modelagent.updater.steady import Steady
from modelagent.updater.traces import parse as parse_trace
from repository_simulator import make_canary, make_manifest
from torture.parser import SLOW_S, Parser, Take, taking

_BOOT: Final = "0b0b"
_DIGEST: Final = "a" * 64
_NEAR_NPY: Final = (
    b"\x93NUMPY\x01\0",
    b"'descr': '|O'",
    b"'<f8'",
    b"(99999999999,)",
    b"True",
    b"\xff\xff",
    b"PK\x03\x04",
)
_NEAR_HTTP: Final = (b"\r\n\r\n", b"Content-Length: 99999999999", b"Content-Length: -1", b"Expect: 100-continue",
                     b"Transfer-Encoding: chunked", b"GET / HTTP/1.1", b"\0", b":", b" ", b"\xff")  # fmt: skip


def _health() -> list[bytes]:
    document: dict[str, Any] = {
        "schema": 1,
        "model": "digits",
        "boot_id": _BOOT,
        "epoch": "e",
        "seq": 7,
        "mono": 12.5,
        "link": {"inode": 12, "mtime_ns": 10**18},
        "running": {"digest": _DIGEST, "version": "1.0.0"},
        "refused": None,
        "fell_back": {"from": _DIGEST, "reason": "crash", "link": {"inode": 12, "mtime_ns": 10**18}},
        "source": {"kind": "replay", "queue": 3, "capacity": 64, "counts": {"unreadable": 1}},
        "swaps": {"count": 1, "last": {"from": "b" * 64, "to": _DIGEST, "how": "direct", "gap_s": 0.1, "without_s": 0}},
        "counters": {
            _DIGEST: {
                "frames": 90,
                "done": 88,
                "dropped": 1,
                "busy_s": 8,
                "faults": {"crash": 1},
                "labels": {"right": 8, "wrong": 1},
                "latency_us": {"bounds": [1000, 5000], "counts": [80, 7, 1]},
                "confidence": {"bounds": [0.5, 0.9], "counts": [1, 7, 80]},
                "classes": {"3": 8},
            }
        },
        "shadow": {"digest": "b" * 64, "both_right": 3, "only_new": 1, "only_old": 0, "both_wrong": 0},
    }
    refused = {"digest": "b" * 64, "reason": "load", "link": document["link"]}
    return [json.dumps(found).encode() for found in (document, {**document, "refused": refused, "shadow": None})]


@contextlib.contextmanager
def _read_health() -> Iterator[Take]:
    """What the updater does with a record: events, latency, drift, facts and status; and the metrics page."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "inference" / "digits").mkdir(parents=True)
        text = f'[paths]\nstate_dir = "{place}"\ninference_run_dir = "{place}/inference"\n[models.digits]\n'
        (place / "modelagent.toml").write_text(text)
        settings = config.load(place / "modelagent.toml")
        file = settings.paths.health("digits")
        latency, steady = RecentLatency(), Steady(place / "steady.json")
        at = Instant(1.8e9, 100.0, _BOOT)

        def take(data: bytes) -> None:
            poller = Poller(lambda: data, _BOOT)
            for mono in (0.0, 1.0):
                reading = poller.poll(mono)
                for make in reading.events:
                    event = make(at, 0.5)
                    if isinstance(event, Runs):
                        steady.take(event, settings.models["digits"].drift)
                latency.p95_ms(reading.document, mono)
                queue_fill(reading.document)
                running_of(reading.document)
            file.write_bytes(data)
            answer = {"result": _json(data)}
            expose(Reader(settings, question=lambda *_: answer, clock=lambda: 20.0).read())

        yield take


def _json(data: bytes) -> object:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def _status() -> list[bytes]:
    state = {
        "model": "digits",
        "phase": "Probation",
        "running": {"version": "1.0.0", "digest": _DIGEST},
        "blocks": [{"digest": "b" * 64, "cause": "failed"}],
        "alarms": ["drift"],
        "waiting": "the window",
        "slots": [{"digest": _DIGEST, "version": "1.0.0", "confirmed": True}],
    }
    gate = {"answer": "wait", "reason": "night", "gate": "window", "until": 1.8e9}
    return [json.dumps({"version": "1", "models": {"digits": state}, "check": gate, "download": gate}).encode()]


def _labels() -> list[bytes]:
    labels = [{"id": "r-1", "label": 7}, {"id": "r-2", "right": True}]
    return [json.dumps(found).encode() for found in (labels, {"labels": labels}, {"schema": 1, "labels": labels})]


@contextlib.contextmanager
def _read_labels() -> Iterator[Take]:
    """Dropped by somebody, taken up by the updater; and in the spool, as inference reads it."""
    with tempfile.TemporaryDirectory() as directory:
        drop, spool = Path(directory) / "drop", Path(directory) / "spool"

        def take(data: bytes) -> None:
            for path in (drop, spool):
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
            (drop / "a.json").write_bytes(data)
            collect(drop, spool, wall_ns=2**62)
            reader = Spool(spool / "none")
            reader._directory = spool
            (spool / "b.json").write_bytes(data)
            list(reader.news())

        yield take


def _frames() -> list[bytes]:
    found = []
    for array in (np.ones((2, 3), np.float32), np.asfortranarray(np.ones((2, 3), np.int8))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(buffer.getvalue())
    packed, picture = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, input_0=np.ones((2, 3), np.float32))
    found += [packed.getvalue(), b"[[1, 2, 3], [4, 5, 6]]", b'{"id": "part-7", "inputs": [[1, 2, 3]]}', bytes(24)]
    with contextlib.suppress(ImportError):
        from PIL import Image  # noqa: PLC0415 - an extra

        Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(picture, "png")
        found.append(picture.getvalue())
    return found


def _read_frame(data: bytes) -> None:
    for options in (SourceOptions(max_bytes=4096), SourceOptions(shape=(2, 3), dtype="uint8", max_bytes=4096)):
        with contextlib.suppress(SourceError):
            found = read(data, options)
            assert sum(array.nbytes for array in found.arrays) <= 64 * 4096 or data[:2] != b"PK"


def _requests() -> list[bytes]:
    body = b'{"id": "part-7", "inputs": [[1, 2, 3]]}'
    head = b"POST /frame HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    return [head + body, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + head + body]


@contextlib.contextmanager
def _http() -> Iterator[Take]:
    """A real server; each input is one connection."""
    source = HttpSource(SourceOptions(kind="http", listen="127.0.0.1:0", max_bytes=4096, answer_s=0.2))
    stop = threading.Event()
    server = threading.Thread(target=source.run, args=(lambda _: None, stop), daemon=True)
    server.start()
    assert source.listening.wait(SLOW_S)

    def take(data: bytes) -> None:
        asker = socket.create_connection(("127.0.0.1", source.port), timeout=SLOW_S)
        with asker, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            asker.sendall(data)
            asker.shutdown(socket.SHUT_WR)
            while asker.recv(65536):
                pass
        assert server.is_alive(), "the server is gone"

    try:
        yield take
    finally:
        stop.set()
        server.join(SLOW_S)


@functools.cache
def _models() -> tuple[bytes, ...]:
    return (bytes(build(network(width=8))), bytes(build(network(seed=1, width=4, dtype=np.int8))))


def _flatbuffer(data: bytes) -> None:
    for constant in read_constants(data):
        assert constant.span.offset + constant.span.length <= len(data)


@contextlib.contextmanager
def _journal() -> Iterator[Take]:
    """What a spoiled disk may make of state and history."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)

        def take(data: bytes) -> None:
            shutil.rmtree(place / "models", ignore_errors=True)
            (place / "models" / "digits").mkdir(parents=True)
            (place / "models" / "digits" / "state").write_bytes(data)
            (place / "history.jsonl").write_bytes(data)
            with contextlib.suppress(AgentError):
                journal = Journal(place, "digits", State)
                journal.peek()
                state, notes = journal.load()
                journal.write(state or State("digits"), notes)
                read_history(place)

        yield take


@functools.cache
def _state_files() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory), "digits", State)
        journal.load()
        journal._block = 2048
        journal.write(State("digits"), ())
        line = {"schema": 1, "seq": 1, "model": "digits", "wall": 1.0, "kind": "unfinished", "evidence": {"seq": [1]}}
        return journal.path.read_bytes(), json.dumps(line).encode() + b"\n" + json.dumps({**line, "seq": 2}).encode()


@functools.cache
def _published() -> tuple[Path, bytes]:
    """A repository of our publisher; it lies there until the process ends."""
    home = Path(_keep.enter_context(tempfile.TemporaryDirectory()))
    publisher = Repository.init(home / "work", home / "keys", ("digits",))
    document = make_manifest(model="digits", version="1.0.0", issued="2026-11-01T12:00:00Z")
    del document["number"]
    publisher.add(document, {"model": b"x" * 500, "canary": make_canary()})
    publisher.channel("digits", "stable", "1.0.0")
    return home / "work", (home / "keys" / "root.json").read_bytes()


_keep: Final = contextlib.ExitStack()


def _metadata() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_published()[0] / "metadata").glob("*.json"))]


@contextlib.contextmanager
def _read_metadata() -> Iterator[Take]:
    """A mirror that puts the input in the place of one file after the other."""
    home, root = _published()
    with tempfile.TemporaryDirectory() as directory:
        mirror = Path(directory) / "mirror"
        shutil.copytree(home, mirror)
        names = itertools.cycle(sorted(path.name for path in (home / "metadata").glob("*.json")))

        def take(data: bytes) -> None:
            name = next(names)
            (mirror / "metadata" / name).write_bytes(data)
            cache = Path(directory) / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            try:
                view = View(cache, DirectorySource(mirror), root, time.time())
                view.refresh()
                view.target("channels/digits/stable.json")
            except AgentError:
                pass
            finally:
                shutil.copy(home / "metadata" / name, mirror / "metadata" / name)

        yield take


def _traces() -> list[bytes]:
    lines = [{"trace": 1, "start": "2026-11-01T00:00:00Z", "days": 2}, {"at": "1h", "metered": True, "cpu": 0.5}]
    return ["\n".join(map(json.dumps, lines)).encode()]


MORE: Final[dict[str, Parser]] = {
    "health": Parser(_health, _read_health),
    "status": Parser(_status, _read_health),
    "labels": Parser(_labels, _read_labels),
    "frame": Parser(_frames, taking(_read_frame), _NEAR_NPY),
    "http": Parser(_requests, _http, _NEAR_HTTP),
    "tflite": Parser(
        lambda: list(_models()), taking(_flatbuffer, DeltaError), (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"TFL3")
    ),
    "state": Parser(lambda: list(_state_files()), _journal),
    "metadata": Parser(_metadata, _read_metadata),
    "trace": Parser(_traces, taking(lambda data: parse_trace(data.decode("utf-8", "replace")), UsageError)),
}
