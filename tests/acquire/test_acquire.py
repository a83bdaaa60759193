"""Check and acquire against an honest repository, and everything the device itself can do wrong."""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelagent import durable
from modelagent.errors import DeviceError, ModelError, SourceError, TrustError, UsageError
from modelagent.manifest import Manifest, Release, dump, parse
from modelagent.sources import Body, Source
from modelagent.steps.acquire import Acquirer, Wish, check_suitable
from modelagent.steps.metadata import View
from repository_simulator import Clock, RepositorySimulator, make_manifest


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def simulator(tmp_path: Path, clock: Clock) -> RepositorySimulator:
    return RepositorySimulator(tmp_path / "publisher", clock, models=("digits", "gears"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def acquirer(state: Path, simulator: RepositorySimulator, clock: Clock) -> Acquirer:
    return Acquirer(state, simulator, simulator.root_bytes, clock)


class NoNetwork:
    """A source that nobody may ask."""

    name = "no network"
    remote = True

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        raise SourceError(f"{name}: no network", code="unreachable")

    def close(self) -> None:
        pass


def offered(acquirer: Acquirer, model: str = "digits") -> Release:
    offer = acquirer.check(model, "stable").offer
    assert offer is not None
    return offer


def make_slot(state: Path, manifest: Manifest, incoming: Path) -> Path:
    """What the slots step makes of a release in incoming/."""
    slot = state / "models" / manifest.model / "slots" / manifest.digest
    slot.mkdir(parents=True)
    (incoming / manifest.digest).rename(slot / "manifest.json")
    for ref in manifest.files:
        (incoming / ref.sha256).rename(slot / ref.name)
    return slot


# --- check ------------------------------------------------------------------------------------------------------


def test_check_tells_what_the_channel_says(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    old = simulator.release("1.0.0")
    new = simulator.release("1.1.0", channel=None)
    start = datetime(2026, 11, 2, tzinfo=UTC)
    simulator.repository.channel("digits", "stable", "1.1.0", waves=[(start, 0.1)], withdrawn=[("1.0.0", "bad")])
    checked = acquirer.check("digits", "stable", "1.0.0")
    assert checked.offer == new.release
    assert checked.pinned == old.release
    assert [(wave.start, wave.share) for wave in checked.waves] == [(start.timestamp(), 0.1)]
    assert [(back.digest, back.version, back.reason) for back in checked.withdrawn] == [(old.digest, "1.0.0", "bad")]
    assert checked.signed_time == simulator.clock()
    assert checked.notes == ()


def test_a_channel_may_name_nothing(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0")
    simulator.repository.withdraw("digits", "1.0.0", "bad labels")
    checked = acquirer.check("digits", "stable")
    assert checked.offer is None
    assert checked.withdrawn[0].reason == "bad labels"


def test_an_unknown_channel_and_an_unknown_model_are_not_found(
    simulator: RepositorySimulator, acquirer: Acquirer
) -> None:
    simulator.release("1.0.0")
    for model, channel in (("digits", "beta"), ("wheels", "stable")):
        with pytest.raises(SourceError, match="no such channel") as caught:
            acquirer.check(model, channel)
        assert caught.value.code == "not-found"


def test_an_unknown_pin_is_a_note_not_an_error(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0")
    checked = acquirer.check("digits", "stable", "7.7.7")
    assert checked.pinned is None
    assert checked.notes == ("the repository has no digits 7.7.7, which is pinned",)


@pytest.mark.parametrize("wish", [Wish("../x", "stable"), Wish("digits", "a/b"), Wish("digits", "stable", "../..")])
def test_a_name_from_the_settings_that_is_a_path_is_refused(acquirer: Acquirer, wish: Wish) -> None:
    with pytest.raises(UsageError) as caught:
        acquirer.check(wish.model, wish.channel, wish.pin)
    assert caught.value.code == "path-trick"


def test_several_models_share_one_refresh_and_no_trouble(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0")
    gears = simulator.release("2.0.0", model="gears")
    answers = acquirer.check_many([Wish("digits", "stable"), Wish("gears", "stable"), Wish("wheels", "stable")])
    assert simulator.names.count("metadata/timestamp.json") == 1
    assert getattr(answers[1], "offer", None) == gears.release
    assert isinstance(answers[2], SourceError)
    assert getattr(answers[0], "notes", None) == ()


def test_a_check_without_news_costs_two_requests(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0")
    acquirer.check("digits", "stable")
    simulator.forget_requests()
    acquirer.check("digits", "stable")
    assert simulator.names == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert simulator.sent < 1100


def test_signatures_near_their_end_are_noted(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0")
    simulator.clock.advance(days=6)
    notes = acquirer.check("digits", "stable").notes
    assert len(notes) == 1
    assert "timestamp" in notes[0]
    assert "repo refresh" in notes[0]


def test_two_missed_root_rotations_are_followed(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    simulator.release("1.0.0")
    offered(acquirer)
    for name in ("root", "online", "targets", "release", "operations", "root"):
        simulator.repository.rotate(name)
    assert offered(acquirer).version == "1.0.0"
    newest = max((state / "tuf" / "root_history").iterdir(), key=lambda path: int(path.name.split(".")[0]))
    assert (state / "tuf" / "root.json").read_bytes() == newest.read_bytes()
    assert not (state / "tuf" / "root.json").is_symlink()


def test_a_bad_root_file_asks_nobody(simulator: RepositorySimulator, state: Path, clock: Clock) -> None:
    simulator.release("1.0.0")
    document = json.loads(simulator.root_bytes)
    document["signed"]["version"] = 5
    for root in (b"", b"{}", json.dumps(document).encode()):
        with pytest.raises(UsageError) as caught:
            Acquirer(state, simulator, root, clock).check("digits", "stable")
        assert caught.value.code == "bad-root"
    assert simulator.names == []


def test_an_unsuitable_manifest_schema_blocks_nothing_else(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    simulator.release("1.0.0", model="gears")
    document = make_manifest(version="1.0.0", schema=99)
    data = json.dumps(document).encode()
    simulator.publish_document("models/digits/1.0.0/manifest.json", data, role="models-digits")
    simulator.repository.channel("digits", "stable", "1.0.0")
    answers = acquirer.check_many([Wish("digits", "stable"), Wish("gears", "stable")])
    assert isinstance(answers[0], ModelError)
    assert not isinstance(answers[1], Exception)


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["timestamp.json", "snapshot.json", "targets.json", "channels.json", "root.json", "root_history/1.root.json"],
)
@pytest.mark.parametrize("damage", [b"", b"\0" * 600, b'{"signed": 1}', b"[" * 5000])
def test_damaged_cached_metadata_locks_nobody_out(
    simulator: RepositorySimulator, state: Path, clock: Clock, name: str, damage: bytes
) -> None:
    simulator.release("1.0.0")
    Acquirer(state, simulator, simulator.root_bytes, clock).check("digits", "stable")
    (state / "tuf" / name).write_bytes(damage)
    checked = Acquirer(state, simulator, simulator.root_bytes, clock).check("digits", "stable")
    assert checked.offer is not None
    assert any(Path(name).name in note and "damaged" in note for note in checked.notes)


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets", "root_history", "channels.json"])
@pytest.mark.parametrize("kind", ["directory", "link", "file"])
def test_something_else_under_a_cached_name_is_removed(
    *, simulator: RepositorySimulator, state: Path, clock: Clock, tmp_path: Path, name: str, kind: str
) -> None:
    simulator.release("1.0.0")
    Acquirer(state, simulator, simulator.root_bytes, clock).check("digits", "stable")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = state / "tuf" / name
    durable.remove_tree(path)
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(victim)
    else:
        path.write_bytes(b"x")
    assert Acquirer(state, simulator, simulator.root_bytes, clock).check("digits", "stable").offer is not None
    assert victim.read_bytes() == b"precious"


def test_damage_during_the_run_is_swept_at_the_next_check(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    simulator.release("1.0.0")
    acquirer.check("digits", "stable")
    (state / "tuf" / "timestamp.json").unlink()
    (state / "tuf" / "timestamp.json").mkdir()
    simulator.release("1.1.0")
    with pytest.raises(DeviceError):
        acquirer.check("digits", "stable")
    assert offered(acquirer).version == "1.1.0"


def test_what_a_cut_write_left_is_swept_silently(
    simulator: RepositorySimulator, acquirer: Acquirer, state: Path
) -> None:
    simulator.release("1.0.0")
    (state / "tuf").mkdir()
    (state / "tuf" / ".timestamp.json.123.tmp").write_bytes(b"half")
    assert acquirer.check("digits", "stable").notes == ()
    assert not list((state / "tuf").glob(".*.tmp"))


def test_what_may_not_be_forgotten_is_synced_before_it_is_named(
    simulator: RepositorySimulator, acquirer: Acquirer
) -> None:
    """Not synced: what is held against a hash or the snapshot each time it is read."""
    simulator.release("1.0.0")
    seen: list[tuple[str, str]] = []
    durable.set_hook(lambda operation, path: seen.append((operation, path)))
    try:
        release = offered(acquirer)
        acquirer.acquire(release)
    finally:
        durable.set_hook(None)
    synced = set()
    for index, (operation, path) in enumerate(seen):
        name = Path(path).name
        if operation == "rename" and any(op == "fsync" and name in other for op, other in seen[:index]):
            assert ("fsync-dir", str(Path(path).parent)) in seen[index:], path
            synced.add(name)
    assert {"1.root.json", "root.json", "timestamp.json", "snapshot.json", release.digest} <= synced
    assert any(op == "fsync" and release.model_file in path for op, path in seen)


def test_the_cache_of_targets_is_bounded(simulator: RepositorySimulator, acquirer: Acquirer, state: Path) -> None:
    simulator.release("1.0.0")
    for _ in range(70):
        simulator.clock.advance(seconds=1)
        simulator.repository.channel("digits", "stable", "1.0.0")
        acquirer.check("digits", "stable")
    assert len(list((state / "tuf" / "targets").iterdir())) == 64


def test_the_view_judges_expiry_by_the_given_clock(simulator: RepositorySimulator, state: Path, clock: Clock) -> None:
    """Holds the private name of python-tuf that carries our clock."""
    simulator.release("1.0.0")
    View(state / "tuf", simulator, simulator.root_bytes, clock()).refresh()
    with pytest.raises(TrustError) as caught:
        View(state / "tuf", simulator, simulator.root_bytes, datetime(2040, 1, 1, tzinfo=UTC).timestamp()).refresh()
    assert caught.value.code == "freeze-attack"
    View(state / "tuf", simulator, simulator.root_bytes, clock()).refresh()
    # A clock in the past believes that nothing has expired; what is signed tells the time.
    view = View(state / "tuf", simulator, simulator.root_bytes, 0.0)
    view.refresh()
    assert view.signed_time == clock()


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


# --- mirrors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(simulator: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    """A second way to the same repository, with lies of its own."""
    other = RepositorySimulator(tmp_path / "mirror", simulator.clock, models=("digits", "gears"))
    other.directory, other.source, other.repository = simulator.directory, simulator.source, simulator.repository
    other.label = "mirror"
    return other


def test_a_mirror_that_lies_about_a_file_blocks_nothing(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.swap_bytes(f"files/{release.model_file.sha256}")
    assert acquirer.acquire(offered(acquirer)).digest == release.digest
    mirror.forget_requests()
    acquirer.check("digits", "stable")
    assert mirror.names == []  # set aside: asked last from now on


def test_a_mirror_that_replays_is_named_and_passed_over(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.remember()
    acquirer.check("digits", "stable")
    simulator.release("1.1.0")
    acquirer.check("digits", "stable")
    mirror.replay("timestamp")
    checked = acquirer.check("digits", "stable")
    assert checked.offer is not None
    assert checked.offer.version == "1.1.0"
    assert any("rollback-attack" in note and "mirror" in note for note in checked.notes)


def test_a_mirror_that_is_down_is_passed_over(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.fail(100)
    assert acquirer.acquire(offered(acquirer)).digest == release.digest


def test_a_transfer_goes_on_at_another_mirror(
    simulator: RepositorySimulator, mirror: RepositorySimulator, state: Path
) -> None:
    release = simulator.release("1.0.0")
    both: list[Source] = [mirror, simulator]
    acquirer = Acquirer(state, both, simulator.root_bytes, simulator.clock)
    mirror.truncate(f"files/{release.model_file.sha256}", 5_000)
    acquirer.acquire(offered(acquirer))
    assert (f"files/{release.model_file.sha256}", 5_000) in simulator.requests


def test_without_any_source_it_says_so(state: Path, simulator: RepositorySimulator, clock: Clock) -> None:
    with pytest.raises(SourceError) as caught:
        Acquirer(state, [], simulator.root_bytes, clock).check("digits", "stable")
    assert caught.value.code == "no-source"


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


def test_a_check_without_news_writes_nothing_and_reads_no_release(
    simulator: RepositorySimulator, acquirer: Acquirer
) -> None:
    """Its work is the same for 1 and for 10,000 releases: below the timestamp nothing is looked at."""
    simulator.release("1.0.0")
    acquirer.check("digits", "stable")
    touched: list[str] = []
    durable.set_hook(lambda operation, path: touched.append(f"{operation} {path}"))
    try:
        simulator.forget_requests()
        assert offered(acquirer).version == "1.0.0"
    finally:
        durable.set_hook(None)
    assert touched == []
    assert simulator.names == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_what_is_remembered_ends_with_the_signatures_that_vouch_for_it(
    simulator: RepositorySimulator, acquirer: Acquirer, clock: Clock
) -> None:
    simulator.release("1.0.0")
    acquirer.check("digits", "stable")
    ledger = simulator.repository.ledger
    clock.advance(days=6)
    ledger.publish_timestamp(ledger.load_timestamp().signed.snapshot_meta, ledger.base().timestamp + 1)
    acquirer.check("digits", "stable")
    clock.advance(days=25)
    ledger.publish_timestamp(ledger.load_timestamp().signed.snapshot_meta, ledger.base().timestamp + 1)
    with pytest.raises(TrustError) as caught:
        acquirer.check("digits", "stable")
    assert caught.value.code == "freeze-attack"
    assert "snapshot" in caught.value.message


def test_two_models_are_remembered_side_by_side(simulator: RepositorySimulator, acquirer: Acquirer) -> None:
    for model in ("digits", "gears"):
        simulator.repository.add_model(model)
        simulator.release("1.0.0", model=model)
    for _ in range(2):
        simulator.forget_requests()
        for model in ("digits", "gears"):
            acquirer.check(model, "stable")
    assert len(simulator.requests) == 4
