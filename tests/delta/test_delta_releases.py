"""From publisher to device: deltas are made, listed, signed, fetched, applied, and given up at any doubt."""

import errno
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from crash_points import hooked
from delta_models import build, network, retrained
from modelagent.errors import SourceError
from modelagent.manifest import Manifest
from modelagent.publish import deltas
from modelagent.publish.inspection import strangers, verify
from modelagent.publish.pruning import prune, sweep
from modelagent.steps.acquire import Acquirer
from modelagent.steps.delta import Rebuilder
from repository_simulator import Clock, RepositorySimulator, make_canary, make_manifest

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")


def models() -> dict[str, bytes]:
    weights, found = network(), {}
    for number, version in enumerate(VERSIONS):
        found[version] = build(weights, description=version)
        weights = retrained(weights, step=0.01, seed=number)
    return found


MODELS = models()


class Fleet:
    """A publisher of four releases and one device that has the third in a slot."""

    def __init__(self, folder: Path, *, runs: str = "1.2.0", deltas_from: int = 2) -> None:
        self.clock = Clock()
        self.simulator = RepositorySimulator(folder / "publisher", self.clock)
        self.releases: dict[str, Manifest] = {}
        for number, version in enumerate(VERSIONS, 1):
            document = make_manifest(version=version, number=number)
            self.releases[version] = self.simulator.repository.add(
                document, {"model": MODELS[version], "canary": make_canary()}, deltas_from=deltas_from
            )
        self.simulator.repository.channel("digits", "stable", VERSIONS[-1])
        self.state = folder / "state"
        self.state.mkdir()
        self.put(runs)
        self.acquirer = self.open()

    def open(self, **more: Any) -> Acquirer:
        return Acquirer(
            self.state,
            self.simulator,
            self.simulator.root_bytes,
            self.clock,
            **{"delta": Rebuilder(self.state), **more},
        )

    def put(self, version: str) -> None:
        release = self.releases[version]
        slot = self.state / "models/digits/slots" / release.digest
        slot.mkdir(parents=True)
        (slot / "manifest.json").write_bytes(self.simulator.repository.manifest_bytes("digits", version))
        for ref in release.files:
            shutil.copyfile(self.simulator.directory / "files" / ref.sha256, slot / ref.name)

    def update(self, acquirer: Acquirer | None = None) -> None:
        """Check and acquire; the result is what was signed, and nothing unfinished lies about."""
        acquirer = acquirer or self.acquirer
        offer = acquirer.check("digits", "stable").offer
        assert offer is not None
        self.simulator.forget_requests()
        acquirer.acquire(offer)
        found = (self.state / "incoming" / offer.model_file).read_bytes()
        assert found == MODELS[VERSIONS[-1]]
        names = {path.name for path in (self.state / "incoming").iterdir()}
        assert names == {ref.sha256 for ref in self.newest.files} | {offer.digest}

    @property
    def newest(self) -> Manifest:
        return self.releases[VERSIONS[-1]]

    def delta(self, base: str) -> str:
        """The name of the delta from a version."""
        sha256 = self.releases[base].model_file.sha256
        listed = self.simulator.repository.deltas("digits", VERSIONS[-1])
        return "files/" + next(item.sha256 for item in listed if item.base == sha256)

    @property
    def full(self) -> str:
        return f"files/{self.newest.model_file.sha256}"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_the_publisher_lists_the_last_releases_and_the_compressed_file(fleet: Fleet) -> None:
    listed = fleet.simulator.repository.deltas("digits", "1.3.0")
    bases = {None, *(fleet.releases[version].model_file.sha256 for version in ("1.1.0", "1.2.0"))}
    assert {item.base for item in listed} == bases
    alone = next(item.length for item in listed if item.base is None)
    assert all(item.length < alone for item in listed if item.base is not None)
    assert fleet.simulator.repository.deltas("digits", "1.0.0")[0].base is None  # nothing was there before it


def test_a_release_without_deltas_lists_none(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, deltas_from=0)
    assert fleet.simulator.repository.deltas("digits", "1.3.0") == []
    fleet.acquirer.check("digits", "stable")


def test_verify_prune_and_sweep_know_deltas(fleet: Fleet) -> None:
    repository = fleet.simulator.repository
    assert verify(repository, now=fleet.clock).errors == []
    assert not [name for name in strangers(repository) if name.startswith("files/")]
    before = repository.deltas("digits", "1.1.0")
    prune(repository, "digits", keep=1)
    gone = sweep(repository, grace=0.0, now=fleet.clock())
    assert {f"files/{item.sha256}" for item in before} <= set(gone)
    assert verify(repository, now=fleet.clock).errors == []
    (repository.directory / fleet.delta("1.2.0")).write_bytes(b"other")
    assert "delta" in verify(repository, now=fleet.clock).errors[0]


def test_old_releases_lose_their_deltas_unless_a_channel_names_them(tmp_path: Path) -> None:
    simulator = RepositorySimulator(tmp_path, Clock())
    repository = simulator.repository
    weights = network(width=8)
    versions = [f"1.{number}.0" for number in range(deltas.KEPT + 3)]
    for number, version in enumerate(versions):
        model = build(retrained(weights, step=0.01, seed=number))
        document = make_manifest(version=version, number=number + 1)
        repository.add(document, {"model": model, "canary": make_canary()}, deltas_from=1)
        if number == 1:
            repository.channel("digits", "old", version)
    having = [version for version in versions if repository.deltas("digits", version)]
    assert having == [versions[1], *versions[3:]]


def test_what_a_base_would_save_can_be_asked() -> None:
    old, new = MODELS["1.2.0"], MODELS["1.3.0"]
    assert deltas.size(old, new) < deltas.size(None, new) < len(new)
    assert deltas.make([("same", Path("/nonexistent"))], new)[0].base == ""


@pytest.mark.process
@pytest.mark.parametrize("runs", ["1.2.0", "1.1.0"])
def test_a_device_with_a_base_fetches_the_delta_alone(tmp_path: Path, runs: str) -> None:
    fleet = Fleet(tmp_path, runs=runs)
    fleet.update()
    assert fleet.delta(runs) in fleet.simulator.names
    assert fleet.full not in fleet.simulator.names


@pytest.mark.process
def test_a_device_without_a_base_fetches_the_compressed_file(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, runs="1.0.0")
    fleet.update()
    assert fleet.full not in fleet.simulator.names
    sent = fleet.simulator.sent
    assert sent < len(MODELS["1.3.0"]) + len(make_canary())


@pytest.mark.process
def test_a_tampered_delta_costs_nothing_but_itself(fleet: Fleet) -> None:
    fleet.simulator.swap_bytes(fleet.delta("1.2.0"))
    fleet.update()
    assert fleet.full in fleet.simulator.names
    assert any("tampered-file" in note for note in fleet.acquirer.check("digits", "stable").notes)


@pytest.mark.process
def test_a_delta_that_is_gone_gives_way_to_the_full_file(fleet: Fleet) -> None:
    (fleet.simulator.directory / fleet.delta("1.2.0")).unlink()
    fleet.update()
    assert fleet.full in fleet.simulator.names


@pytest.mark.process
def test_an_endless_delta_is_cut_at_its_signed_length(fleet: Fleet) -> None:
    fleet.simulator.rewrite(fleet.delta("1.2.0"), lambda data: [data, *[bytes(1000)] * 100], states_length=False)
    fleet.update()
    assert fleet.full in fleet.simulator.names


@pytest.mark.process
def test_a_signed_delta_that_gives_other_bytes_is_given_up(fleet: Fleet) -> None:
    wrong = deltas.make([("1.2.0", fleet.simulator.directory / "files" / fleet.releases["1.2.0"].model_file.sha256)],
                        MODELS["1.1.0"])[-1]  # fmt: skip
    role = "models-digits"
    repository = fleet.simulator.repository
    with repository.ledger.locked():
        targets = repository.ledger.load_targets(role)
        entry = targets.signed.targets["models/digits/1.3.0/manifest.json"]
        custom = entry.custom
        assert custom is not None
        custom["deltas"] = [dict(wrong.entry)]
        repository.ledger.publish({role: targets})
    (fleet.simulator.directory / "files" / str(wrong.entry["sha256"])).write_bytes(wrong.data)
    fleet.update()
    assert fleet.full in fleet.simulator.names


@pytest.mark.process
def test_a_cut_delta_is_resumed_and_the_full_file_is_not_begun(fleet: Fleet) -> None:
    name = fleet.delta("1.2.0")
    fleet.simulator.rewrite(name, lambda data: [data[: len(data) // 2]], states_length=False)
    offer = fleet.acquirer.check("digits", "stable").offer
    assert offer is not None
    with pytest.raises(SourceError, match="cut"):
        fleet.acquirer.acquire(offer)
    assert fleet.full not in fleet.simulator.names
    fleet.simulator.honest()
    again = fleet.open()
    fleet.update(again)
    size = (fleet.simulator.directory / name).stat().st_size
    assert (name, size // 2) in fleet.simulator.requests


@pytest.mark.process
def test_a_full_file_that_was_begun_is_gone_on_with(fleet: Fleet) -> None:
    offer = fleet.acquirer.check("digits", "stable").offer
    assert offer is not None
    (fleet.state / "incoming" / f"{offer.model_file}.part").write_bytes(MODELS["1.3.0"][:-10])
    fleet.update()
    assert fleet.delta("1.2.0") not in fleet.simulator.names


@pytest.mark.process
def test_a_full_file_of_which_nothing_came_leaves_nothing_beside_the_delta(fleet: Fleet) -> None:
    offer = fleet.acquirer.check("digits", "stable").offer
    assert offer is not None
    (fleet.state / "incoming" / f"{offer.model_file}.part").touch()
    fleet.update()
    assert fleet.delta("1.2.0") in fleet.simulator.names


def test_a_delta_that_the_disk_did_not_take_leaves_nothing_beside_the_full_file(fleet: Fleet) -> None:
    part = f"{fleet.delta('1.2.0').removeprefix('files/')}.part"
    broken = [True]

    def break_once(operation: str, path: str) -> None:
        if operation == "write" and path.endswith(part) and broken.pop():
            broken.append(False)
            raise OSError(errno.EIO, "Input/output error", path)

    with hooked(break_once):
        fleet.update()
    assert broken == [False], "the delta was begun"
    assert fleet.full in fleet.simulator.names


def test_a_base_that_rotted_on_disk_is_not_built_upon(fleet: Fleet) -> None:
    model = next(fleet.state.glob("models/digits/slots/*/model.tflite"))
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    assert hashlib.sha256(data).hexdigest() != fleet.releases["1.2.0"].model_file.sha256
    refs = [item for item in fleet.simulator.repository.deltas("digits", "1.3.0") if item.base is not None]
    asked: list[str] = []

    def fetch(sha256: str, length: int) -> Path:
        asked.append(sha256)
        return Path()

    custom = {
        "deltas": [{"from": item.base, "sha256": item.sha256, "length": item.length, "format": 1} for item in refs]
    }
    place = fleet.state / "place"
    assert not Rebuilder(fleet.state)(fleet.newest.model_file, custom, fetch, place, lambda: False)
    assert asked == []
