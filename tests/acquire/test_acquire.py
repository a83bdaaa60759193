"""Acquire against an honest repository, and everything the device itself can do wrong."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquire_rig import NoNetwork, make_slot, offered
from modelagent import durable
from modelagent.errors import DeviceError, ModelError, SourceError
from modelagent.manifest import Manifest, dump, parse
from modelagent.steps.acquire import Acquirer, check_suitable
from repository_simulator import Clock, RepositorySimulator, make_manifest

# --- acquire ----------------------------------------------------------------------------------------------------


def test_acquire_brings_every_file_and_the_manifest_last(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    release = simulator.release("1.0.0", extra={"labels": b'["a"]'})
    order: list[str] = []

    def note(operation: str, path: str) -> None:
        if operation == "rename" and "/incoming/" in path:
            order.append(Path(path).name)

    told: list[tuple[int, int]] = []
    durable.set_hook(note)
    try:
        acquirer.acquire(offered(acquirer), progress=lambda *counts: told.append(counts))
    finally:
        durable.set_hook(None)
    assert order[-1] == release.digest
    assert set(order) == {release.digest, *(ref.sha256 for ref in release.files)}
    for name in order:
        assert hashlib.sha256((state / "incoming" / name).read_bytes()).hexdigest() == name
    assert told == sorted(told)
    assert told[-1] == (release.release.size, release.release.size)


def test_with_everything_there_no_network_is_needed(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path, clock: Clock
) -> None:
    simulator.release("1.0.0")
    offer = offered(acquirer)
    acquirer.acquire(offer)
    clock.advance(days=1000)
    offline = Acquirer(state, NoNetwork(), simulator.root_bytes, clock)
    assert offline.acquire(offer).digest == offer.digest


def test_the_manifest_is_kept_from_the_check(simulator: RepositorySimulator, acquirer: Acquirer, state: Path) -> None:
    simulator.release("1.0.0")
    offer = offered(acquirer)
    simulator.forget_requests()
    acquirer.acquire(offer)
    assert all(name.startswith("files/") for name in simulator.names)
    shutil.rmtree(state / "tuf")
    shutil.rmtree(state / "incoming")
    simulator.forget_requests()
    acquirer.acquire(offer)  # and fetched anew through signed metadata when it is gone
    assert "metadata/timestamp.json" in simulator.names


def test_a_release_that_is_gone_is_not_found(simulator: RepositorySimulator, acquirer: Acquirer, clock: Clock) -> None:
    simulator.release("1.0.0")
    offer = parse(dump(make_manifest(version="0.9.0"))).release
    with pytest.raises(SourceError) as caught:
        acquirer.acquire(offer)
    assert caught.value.code == "not-found"


def test_what_a_slot_holds_is_linked_not_fetched(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    first = simulator.release("1.0.0")
    slot = make_slot(state, acquirer.acquire(offered(acquirer)), state / "incoming")
    second = simulator.release("1.1.0", parent=first.digest)  # the same canary set, another model
    simulator.forget_requests()
    acquirer.acquire(offered(acquirer))
    canary = second.file("canary")
    assert canary is not None
    assert f"files/{canary.sha256}" not in simulator.names
    assert (state / "incoming" / canary.sha256).stat().st_ino == (slot / "canary.npz").stat().st_ino


def test_a_damaged_slot_is_not_a_source(simulator: RepositorySimulator, acquirer: Acquirer, state: Path) -> None:
    simulator.release("1.0.0")
    slot = make_slot(state, acquirer.acquire(offered(acquirer)), state / "incoming")
    data = bytearray((slot / "canary.npz").read_bytes())
    data[50] ^= 1
    (slot / "canary.npz").write_bytes(data)
    second = simulator.release("1.1.0")
    acquirer.acquire(offered(acquirer))
    canary = second.file("canary")
    assert canary is not None
    assert hashlib.sha256((state / "incoming" / canary.sha256).read_bytes()).hexdigest() == canary.sha256


def test_a_file_that_rotted_in_incoming_is_fetched_again(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    release = simulator.release("1.0.0")
    acquirer.acquire(offered(acquirer))
    path = state / "incoming" / release.model_file.sha256
    path.write_bytes(b"\0" * release.model_file.length)
    acquirer.acquire(offered(acquirer))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.model_file.sha256


@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_a_link_in_the_store_is_not_followed(
    *, simulator: RepositorySimulator, acquirer: Acquirer, state: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    release = simulator.release("1.0.0")
    offer = offered(acquirer)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    trap = state / "incoming" / f"{release.model_file.sha256}{suffix}"
    if kind == "link":
        trap.symlink_to(victim)
    elif kind == "directory":
        trap.mkdir()
    else:
        os.mkfifo(trap)
    acquirer.acquire(offer)
    assert victim.read_bytes() == b"precious"
    assert (state / "incoming" / release.model_file.sha256).is_file()


def test_no_space_is_found_before_anything_is_fetched(
    simulator: RepositorySimulator, state: Path, clock: Clock
) -> None:
    release = simulator.release("1.0.0")
    free = 300_000
    acquirer = Acquirer(state, simulator, simulator.root_bytes, clock, reserve=100_000, free=lambda _: free)
    offer = offered(acquirer)
    simulator.forget_requests()
    with pytest.raises(DeviceError, match="300000 free") as caught:
        acquirer.acquire(offer)
    assert caught.value.code == "no-space"
    assert simulator.names == []
    free = 500_000
    assert acquirer.acquire(offer).digest == release.digest


def test_a_disk_that_fills_up_keeps_what_came(simulator: RepositorySimulator, acquirer: Acquirer, state: Path) -> None:
    release = simulator.release("1.0.0", model_bytes=bytes(range(256)) * 1000)
    offer = offered(acquirer)

    def full(operation: str, path: str) -> None:
        if operation == "write" and path.endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    durable.set_hook(full)
    try:
        with pytest.raises(DeviceError) as caught:
            acquirer.acquire(offer)
    finally:
        durable.set_hook(None)
    assert caught.value.code == "no-space"
    assert not (state / "incoming" / release.digest).exists()
    assert acquirer.acquire(offer).digest == release.digest


def test_abandoning_keeps_what_came(simulator: RepositorySimulator, acquirer: Acquirer, state: Path) -> None:
    release = simulator.release("1.0.0", model_bytes=bytes(range(256)) * 1000)
    offer = offered(acquirer)
    simulator.rewrite(f"files/{release.model_file.sha256}", lambda data: [data[:100_000], data[100_000:]])
    here: list[tuple[int, int]] = []
    with pytest.raises(DeviceError) as caught:
        acquirer.acquire(offer, progress=lambda *told: here.append(told), abandoned=lambda: bool(here))
    assert caught.value.code == "abandoned"
    assert (state / "incoming" / f"{release.model_file.sha256}.part").stat().st_size == 100_000
    simulator.honest()
    simulator.forget_requests()
    acquirer.acquire(offer)
    assert (f"files/{release.model_file.sha256}", 100_000) in simulator.requests


def test_one_transfer_at_a_time_and_waiting_ones_can_be_abandoned(
    simulator: RepositorySimulator, acquirer: Acquirer
) -> None:
    release = simulator.release("1.0.0")
    offer = offered(acquirer)
    arrived, proceed = threading.Event(), threading.Event()

    def slow(data: bytes) -> Iterator[bytes]:
        arrived.set()
        proceed.wait(20)
        yield data

    simulator.rewrite(f"files/{release.model_file.sha256}", slow, states_length=False)
    first = threading.Thread(target=acquirer.acquire, args=(offer,))
    first.start()
    try:
        assert arrived.wait(20)
        with pytest.raises(DeviceError) as caught:
            acquirer.acquire(offer, abandoned=lambda: True)
        assert caught.value.code == "abandoned"
        assert acquirer.check("digits", "stable").offer == offer  # a check does not wait for a transfer
    finally:
        proceed.set()
        first.join(20)


def test_zeros_that_a_power_cut_left_accuse_nobody(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    release = simulator.release("1.0.0")
    offer = offered(acquirer)
    (state / "incoming" / f"{release.model_file.sha256}.part").write_bytes(b"\0" * 9_000)
    assert acquirer.acquire(offer).digest == release.digest
    for size in (release.model_file.length, release.model_file.length + 1):
        (state / "incoming" / release.model_file.sha256).unlink()
        (state / "incoming" / f"{release.model_file.sha256}.part").write_bytes(b"\0" * size)
        assert acquirer.acquire(offer).digest == release.digest


# --- suitability ------------------------------------------------------------------------------------------------


def suited(**overrides: object) -> Manifest:
    return parse(dump(make_manifest(**overrides)))


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"hardware": ["pi4", "pi5"]}, "wrong-hardware"),
        ({"runtime": {"min": "2.4", "max": None}}, "runtime-too-old"),
        ({"runtime": {"min": "2.3.1", "max": None}}, "runtime-too-old"),
        ({"runtime": {"min": None, "max": "2.2"}}, "runtime-too-new"),
        ({"runtime": {"min": None, "max": "1"}}, "runtime-too-new"),
    ],
)
def test_an_unsuitable_release_is_refused_from_its_manifest(overrides: dict[str, object], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_suitable(suited(**overrides), "x86-board", "ai-edge-litert 2.3.0")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"hardware": ["x86-board"]},
        {"runtime": {"min": "2.3", "max": "2.3"}},
        {"runtime": {"min": "2.3.0", "max": "3"}},
        {"runtime": {"min": "1.10", "max": "2.10"}},
    ],
)
def test_a_suitable_release_passes(overrides: dict[str, object]) -> None:
    check_suitable(suited(**overrides), "x86-board", "ai-edge-litert 2.3.0")


def test_an_unsuitable_release_is_refused_before_its_model_is_fetched(
    simulator: RepositorySimulator, state: Path, clock: Clock
) -> None:
    simulator.release("1.0.0", hardware=["other-board"])
    acquirer = Acquirer(
        state, simulator, simulator.root_bytes, clock, suits=lambda found: check_suitable(found, "mine", "2.3.0")
    )
    offer = offered(acquirer)
    with pytest.raises(ModelError):
        acquirer.acquire(offer)
    assert not [name for name in simulator.names if name.startswith("files/")]


# --- power ------------------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """The device goes dark here."""


def test_an_updater_that_dies_anywhere_starts_again(tmp_path: Path) -> None:
    """Before every call that changes the disk: nothing wrong is named, and the next start finishes."""
    simulator = RepositorySimulator(tmp_path)
    release = simulator.release("1.0.0")
    step, died = 0, True
    while died:
        state = tmp_path / f"state-{step}"
        state.mkdir()
        count = 0

        def cut(operation: str, path: str, at: int = step) -> None:
            nonlocal count
            if count == at:
                raise PowerCutError
            count += 1

        durable.set_hook(cut)
        try:
            acquirer = Acquirer(state, simulator, simulator.root_bytes, simulator.clock)
            acquirer.acquire(offered(acquirer))
            died = False
        except PowerCutError:
            pass
        finally:
            durable.set_hook(None)
        for path in (state / "incoming").glob("[0-9a-f]*"):
            if path.suffix != ".part":
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        again = Acquirer(state, simulator, simulator.root_bytes, simulator.clock)
        assert again.acquire(offered(again)).digest == release.digest
        step += 1
    assert step > 40
