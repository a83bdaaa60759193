"""The device's side: the caged program, and stand-ins for one that was taken over."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from delta_models import build, network, retrained
from modelagent.delta.make import make
from modelagent.errors import AgentError, DeviceError, SourceError
from modelagent.manifest import FileRef
from modelagent.steps.delta import PROGRAM, Listed, Rebuilder, listed

WEIGHTS = network()
OLD = build(WEIGHTS)
NEW = build(retrained(WEIGHTS, step=0.01))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Bench:
    """A device with one slot, and a delta to fetch."""

    state: Path
    delta: bytes
    program: tuple[str, ...] = PROGRAM
    patience: float = 60.0
    abandoned: Callable[[], bool] = lambda: False
    fetched: int = 0
    fetch_fails: list[AgentError] = field(default_factory=list)

    def __post_init__(self) -> None:
        slot = self.state / "models/digits/slots" / ("5" * 64)
        slot.mkdir(parents=True)
        (self.state / "incoming").mkdir()
        (slot / "model.tflite").write_bytes(OLD)
        (slot / "manifest.json").write_text(json.dumps({"files": {"model": {"sha256": sha(OLD)}}}))
        self.model = slot / "model.tflite"
        self.place = self.state / "incoming" / f"{sha(NEW)}.made"
        self.rebuilder = Rebuilder(self.state, program=self.program, patience=self.patience)

    @property
    def ref(self) -> FileRef:
        return FileRef("model", sha(NEW), len(NEW))

    def offer(self, base: bytes | None = OLD) -> dict[str, object]:
        start = None if base is None else sha(base)
        return {"deltas": [{"from": start, "sha256": sha(self.delta), "length": len(self.delta), "format": 1}]}

    def fetch(self, sha256: str, length: int) -> Path:
        assert (sha256, length) == (sha(self.delta), len(self.delta))
        if self.fetch_fails:
            raise self.fetch_fails.pop(0)
        self.fetched += 1
        path = self.state / "incoming" / sha256
        path.write_bytes(self.delta)
        return path

    def ask(self, custom: dict[str, object] | None = None) -> bool:
        self.place.unlink(missing_ok=True)
        return self.rebuilder(self.ref, custom or self.offer(), self.fetch, self.place, self.abandoned)

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.state / "incoming").iterdir() if path != self.place)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, make(OLD, NEW))


def code_of(bench: Bench, **kwargs: dict[str, object]) -> tuple[str, str]:
    with pytest.raises(AgentError) as caught:
        bench.ask(**kwargs)
    return caught.value.code, caught.value.message


@pytest.mark.process
def test_the_new_file_is_made_and_the_delta_is_gone(bench: Bench) -> None:
    assert bench.ask()
    assert bench.place.read_bytes() == NEW
    assert bench.left() == []


@pytest.mark.process
def test_a_delta_without_base(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(None, NEW))
    bench.model.unlink()
    assert bench.ask(bench.offer(None))
    assert bench.place.read_bytes() == NEW


@pytest.mark.process
def test_a_delta_that_lay_here_already_is_not_fetched_again(bench: Bench) -> None:
    (bench.state / "incoming" / sha(bench.delta)).write_bytes(bench.delta)
    assert bench.ask()
    assert bench.fetched == 0


def test_without_the_base_nothing_is_fetched(bench: Bench) -> None:
    bench.model.write_bytes(OLD[:-1] + b"?")  # the manifest still says what was there
    assert not bench.ask()
    bench.model.unlink()
    assert not bench.ask()
    assert bench.fetched == 0


def test_only_model_files_are_made(bench: Bench) -> None:
    ref = FileRef("canary", sha(NEW), len(NEW))
    assert not bench.rebuilder(ref, bench.offer(), bench.fetch, bench.place, bench.abandoned)


def test_a_delta_no_shorter_than_the_file_is_not_fetched(bench: Bench) -> None:
    ref = FileRef("model", sha(NEW), len(bench.delta))
    assert not bench.rebuilder(ref, bench.offer(), bench.fetch, bench.place, bench.abandoned)


@pytest.mark.process
def test_a_damaged_delta_is_named_removed_and_not_tried_again(tmp_path: Path) -> None:
    good = make(OLD, NEW)
    bench = Bench(tmp_path, good[:-5])
    code, message = code_of(bench)
    assert code == "delta"
    assert "too early" in message
    assert bench.left() == []
    assert not bench.ask()
    assert bench.fetched == 1


@pytest.mark.process
def test_a_delta_to_other_bytes_is_refused(tmp_path: Path) -> None:
    other = build(retrained(WEIGHTS, step=0.02))
    assert len(other) == len(NEW)
    bench = Bench(tmp_path, make(OLD, other))
    code, message = code_of(bench)
    assert (code, "other bytes than the signed ones" in message) == ("delta", True)


def test_a_cut_while_fetching_is_the_links_fault_a_few_times(bench: Bench) -> None:
    bench.fetch_fails = [SourceError("cut", code="cut") for _ in range(9)]
    assert [code_of(bench)[0] for _ in range(3)] == ["cut"] * 3
    assert not bench.ask()


HOSTILE = {
    "crashes": ("import os; os.abort()", "killed by SIGABRT"),
    "fails": ("import sys; print('no', file=sys.stderr); sys.exit(3)", "ended with status 3: no"),
    "prints": ("while True: print('x' * 1000)", "delta"),
    "eats memory": ("x = bytearray(16 << 30)", "MemoryError"),
    "fills the disk": (
        "import json, os, sys\nfd = json.loads(sys.argv[1])['new']\nwhile True: os.write(fd, bytes(1 << 20))",
        "delta",
    ),
    "does nothing": ("pass", "other bytes"),
    "writes too little": ("import json, os, sys; os.write(json.loads(sys.argv[1])['new'], b'short')", "other bytes"),
}


@pytest.mark.process
@pytest.mark.parametrize("what", HOSTILE)
def test_a_program_that_was_taken_over(tmp_path: Path, what: str) -> None:
    code, expected = HOSTILE[what]
    bench = Bench(tmp_path, make(OLD, NEW), program=(sys.executable, "-c", code))
    found, message = code_of(bench)
    assert found == "delta"
    assert expected in message + found
    assert not bench.place.exists() or bench.place.stat().st_size <= len(NEW) + (1 << 20)


@pytest.mark.process
def test_a_program_that_never_ends_is_ended(tmp_path: Path) -> None:
    hang = (sys.executable, "-c", "import time; time.sleep(600)")
    bench = Bench(tmp_path, make(OLD, NEW), program=hang, patience=0.3)
    began = time.monotonic()
    assert "took more than" in code_of(bench)[1]
    assert time.monotonic() - began < 20


@pytest.mark.process
def test_it_can_be_abandoned(tmp_path: Path) -> None:
    hang = (sys.executable, "-c", "import time; time.sleep(600)")
    bench = Bench(tmp_path, make(OLD, NEW), program=hang, abandoned=lambda: True)
    with pytest.raises(DeviceError, match="on request"):
        bench.ask()
    assert bench.left() == [sha(bench.delta)]  # it was paid for


@pytest.mark.process
def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(OLD, NEW), program=("/nonexistent",))
    assert code_of(bench)[0] == "delta"


@pytest.mark.process
def test_no_descriptor_is_left_open(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not walked
    assert bench.ask()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_a_list_may_say() -> None:
    good = {"from": "a" * 64, "sha256": "b" * 64, "length": 10, "format": 1}
    alone = {**good, "from": None, "length": 5}
    bad = [
        {**good, "format": 2},
        {**good, "from": "../../etc"},
        {**good, "sha256": "B" * 64},
        {**good, "length": 0},
        {**good, "length": True},
        {**good, "length": "10"},
        {"sha256": "b" * 64},
        "text",
        None,
    ]
    assert listed({"deltas": [*bad, good, alone]}) == [Listed(None, "b" * 64, 5), Listed("a" * 64, "b" * 64, 10)]
    assert listed({"deltas": "none"}) == []
    assert listed({}) == []
    assert len(listed({"deltas": [good] * 1000})) == 64
