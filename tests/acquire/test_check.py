"""Check against an honest repository: what it tells, what it costs, what it keeps, and a cache that was damaged."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from acquire_rig import offered
from modelagent import durable
from modelagent.errors import DeviceError, ModelError, SourceError, TrustError, UsageError
from modelagent.steps.acquire import Acquirer, Wish
from modelagent.steps.metadata import View
from repository_simulator import Clock, RepositorySimulator, make_manifest

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
