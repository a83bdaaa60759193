import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from modelagent.core.events import Link
from modelagent.durable import identify_link
from modelagent.errors import DeviceError, ModelError, SourceError, TrustError
from store_cases import Depot


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


def link_of(depot: Depot, name: str) -> Link:
    return Link(*identify_link(depot.store.root / name))


def test_an_empty_store_has_no_facts(depot: Depot) -> None:
    facts = depot.store.facts()
    assert facts.slots == ()
    assert (facts.current, facts.link, facts.fallback) == (None, None, None)


def test_first_install(depot: Depot) -> None:
    one = depot.offer("1.0.0")
    prepared = depot.store.stage(one, depot.incoming, None)
    assert depot.check().current is None
    assert list(depot.incoming.iterdir()) == [], "files are moved, not copied"
    active = depot.store.activate(one, None, None)
    assert active == prepared == link_of(depot, "current")
    facts = depot.check()
    assert (facts.current, facts.link, facts.fallback) == (one, active, None)
    assert not facts.slots[0].confirmed
    depot.store.confirm(one)
    assert depot.check().slots[0].confirmed


def test_update_and_revert(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.offer("1.1.0")
    prepared = depot.store.stage(two, depot.incoming, one)
    assert depot.check().current == one
    link = depot.store.activate(two, one, one)
    assert link == prepared
    facts = depot.check()
    assert (facts.current, facts.fallback) == (two, one)
    assert str((depot.store.root / "shadow").readlink()) == f"slots/{one}"
    assert str((depot.store.root / ".current.revert").readlink()) == f"slots/{one}"
    back = depot.store.revert(two, one, None, unconfirm=False)
    facts = depot.check()
    assert (facts.current, facts.link, facts.fallback) == (one, back, None)
    assert back != link
    assert not (depot.store.root / "shadow").is_symlink()


def test_link_identities_never_repeat(depot: Depot) -> None:
    one, two = depot.install("1.0.0"), depot.offer("1.1.0")
    seen = set()
    for _ in range(30):
        depot.acquire(two)
        depot.store.stage(two, depot.incoming, one)
        seen.add(depot.store.activate(two, one, None))
        seen.add(depot.store.revert(two, one, None, unconfirm=False))
    assert len(seen) == 60


def test_files_of_another_slot_are_linked_not_fetched(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.offer("1.1.0")
    canary = hashlib.sha256(b"canary" * 50).hexdigest()
    assert not (depot.incoming / canary).exists()
    depot.store.stage(two, depot.incoming, one)
    assert (depot.store.path(two) / "canary.npz").samefile(depot.store.path(one) / "canary.npz")
    depot.check()


def test_files_that_others_wait_for_stay_in_incoming(depot: Depot) -> None:
    one, two = depot.offer("1.0.0"), depot.offer("1.1.0")
    canary = hashlib.sha256(b"canary" * 50).hexdigest()
    depot.store.stage(one, depot.incoming, None, shared={canary})
    assert (depot.incoming / canary).samefile(depot.store.path(one) / "canary.npz")
    depot.store.stage(two, depot.incoming, None)
    depot.check()


def test_stage_again_only_rehashes(depot: Depot) -> None:
    one = depot.offer("1.0.0")
    link = depot.store.stage(one, depot.incoming, None)
    before = depot.tree()
    assert depot.store.stage(one, depot.incoming, None) == link
    assert depot.tree() == before


def test_what_was_fetched_again_after_a_cut_is_dropped(depot: Depot) -> None:
    one = depot.offer("1.0.0")
    depot.store.stage(one, depot.incoming, None)
    for sha, data in depot.bytes.items():
        (depot.incoming / sha).write_bytes(data)
    depot.store.stage(one, depot.incoming, None, shared={one})
    assert [path.name for path in depot.incoming.iterdir()] == [one]


@pytest.mark.parametrize("name", ["model.tflite", "canary.npz", "manifest.json"])
def test_a_tampered_file_is_refused_by_name_and_removed(depot: Depot, name: str) -> None:
    one = depot.offer("1.0.0")
    role = {"model.tflite": b"model 1.0.0 " * 40, "canary.npz": b"canary" * 50, "manifest.json": depot.bytes[one]}[name]
    victim = depot.incoming / hashlib.sha256(role).hexdigest()
    victim.write_bytes(role[:-1] + b"!")
    with pytest.raises(TrustError, match="tampered file") as caught:
        depot.store.stage(one, depot.incoming, None)
    assert caught.value.code == "tampered-file"
    assert not victim.exists()
    assert depot.check().slots == ()
    depot.acquire(one)
    depot.store.stage(one, depot.incoming, None)
    assert len(depot.check().slots) == 1


def test_a_spoiled_slot_is_repaired_from_incoming(depot: Depot) -> None:
    one = depot.offer("1.0.0")
    depot.store.stage(one, depot.incoming, None)
    model = depot.store.path(one) / "model.tflite"
    good = model.read_bytes()
    model.write_bytes(b"\0" * len(good))
    with pytest.raises(TrustError):
        depot.store.stage(one, depot.incoming, None)
    assert not model.exists()
    with pytest.raises(SourceError) as caught:
        depot.store.stage(one, depot.incoming, None)
    assert caught.value.code == "missing-file"
    (depot.incoming / hashlib.sha256(good).hexdigest()).write_bytes(good)
    depot.store.stage(one, depot.incoming, None)
    depot.check()


def test_what_runs_is_not_removed_under_the_worker(depot: Depot) -> None:
    one = depot.install("1.0.0")
    model = depot.store.path(one) / "model.tflite"
    model.write_bytes(b"\0" * model.stat().st_size)
    with pytest.raises(TrustError):
        depot.store.stage(one, depot.incoming, None)
    assert model.exists()


def test_a_manifest_of_another_model_is_refused(tmp_path: Path) -> None:
    other = Depot(tmp_path, "faces")
    digest = other.offer("1.0.0")
    with pytest.raises(TrustError) as caught:
        Depot(tmp_path, "digits").store.stage(digest, other.incoming, None)
    assert caught.value.code == "mix-and-match"


def test_an_unreadable_manifest_is_the_models_fault(depot: Depot) -> None:
    data = b'{"schema": 1}'
    digest = hashlib.sha256(data).hexdigest()
    (depot.incoming / digest).write_bytes(data)
    with pytest.raises(ModelError):
        depot.store.stage(digest, depot.incoming, None)
    assert depot.store.facts().slots == ()


def test_torn_and_foreign_entries_are_no_slots(depot: Depot) -> None:
    one = depot.install("1.0.0")
    slots = depot.store.slots
    (slots / ("a" * 64)).mkdir()
    (slots / ("b" * 64)).symlink_to(one)
    (slots / ("c" * 64)).write_text("x")
    (slots / "junk").mkdir()
    torn = depot.offer("1.1.0")
    depot.store.stage(torn, depot.incoming, one)
    (depot.store.path(torn) / "model.tflite").write_bytes(b"short")
    assert [s.release.digest for s in depot.store.facts().slots] == [one]
    gone = depot.store.vacuum((), (), 1e9, 10**9, 0.0)
    assert {Path(name).name for name in gone} == {"a" * 64, "b" * 64, "c" * 64, "junk", torn, ".current.next"}
    assert [p.name for p in slots.iterdir()] == [one]
    depot.check()


@pytest.mark.parametrize("place", ["models", "models/digits", "models/digits/slots", "incoming"])
def test_a_planted_link_to_a_directory_is_refused(tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    state = tmp_path / "state"
    depot = Depot(state)
    one = depot.offer("1.0.0")
    planted = state / place
    if place == "incoming":
        for entry in planted.iterdir():
            entry.rename(outside / entry.name)
        planted.rmdir()
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)
    before = sorted(outside.iterdir())
    looking = () if place == "incoming" else (depot.store.facts,)  # a way back does not depend on incoming/
    for operation in (
        *looking,
        lambda: depot.store.stage(one, depot.incoming, None),
        lambda: depot.store.vacuum((), (), 0.0, 0, 1e10),
    ):
        with pytest.raises(DeviceError) as caught:
            operation()
        assert caught.value.code == "foreign-entry"
    assert sorted(outside.iterdir()) == before


def test_planted_links_inside_a_slot_are_not_followed(depot: Depot, tmp_path: Path) -> None:
    one = depot.offer("1.0.0")
    model = hashlib.sha256(b"model 1.0.0 " * 40).hexdigest()
    outside = tmp_path / "outside"
    outside.write_bytes(b"model 1.0.0 " * 40)
    (depot.incoming / model).unlink()
    (depot.incoming / model).symlink_to(outside)
    with pytest.raises(TrustError):
        depot.store.stage(one, depot.incoming, None)
    assert outside.exists()
    planted = depot.store.slots / one
    planted.symlink_to(tmp_path)
    with pytest.raises(DeviceError) as caught:
        depot.store.stage(one, depot.incoming, None)
    assert caught.value.code == "foreign-entry"


def test_no_link_to_a_slot_that_is_not_there(depot: Depot) -> None:
    one, ghost = depot.install("1.0.0"), "d" * 64
    for operation in (
        lambda: depot.store.activate(ghost, one, None),
        lambda: depot.store.activate(one, ghost, None),
        lambda: depot.store.revert(one, ghost, None, unconfirm=False),
        lambda: depot.store.set_fallback(ghost),
        lambda: depot.store.set_shadow(ghost),
        lambda: depot.store.confirm(ghost),
    ):
        with pytest.raises(DeviceError) as caught:
            operation()
        assert caught.value.code == "missing-slot"
    assert depot.check().current == one


def test_a_missing_shadow_does_not_stop_an_activation(depot: Depot) -> None:
    one, two = depot.install("1.0.0"), depot.offer("1.1.0")
    depot.store.stage(two, depot.incoming, one)
    depot.store.activate(two, one, "d" * 64)
    assert depot.check().current == two


def test_what_the_canary_measured_stays_with_the_slot_and_decides_nothing(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.install("1.1.0", fallback=one)
    depot.store.keep_peak(two, 77_000)
    measured = depot.store.path(two) / "measured.json"
    assert json.loads(measured.read_bytes()) == {"schema": 1, "peak_kb": 77_000}
    assert stat.S_IMODE(measured.stat().st_mode) == 0o640, "the inference user reads it through the group"
    depot.acquire(two)
    depot.store.stage(two, depot.incoming, one)  # hashed again: what is the device's own is left alone
    assert measured.is_file()
    measured.write_bytes(b"no number at all")
    assert depot.check().current == two, "a slot is whole with it, without it and with a broken one"
    assert depot.store.vacuum({one, two}, (), 0.0, 0, 1e12) == []
    with pytest.raises(DeviceError) as caught:
        depot.store.keep_peak("e" * 64, 1)
    assert caught.value.code == "missing-slot"


def test_revert_unconfirms_and_moves_the_fallback_on(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.install("1.1.0", fallback=one)
    three = depot.install("1.2.0", fallback=two)
    depot.store.revert(three, two, one, unconfirm=True)
    facts = depot.check()
    assert (facts.current, facts.fallback) == (two, one)
    assert {s.release.digest: s.confirmed for s in facts.slots} == {one: True, two: True, three: False}
    assert str((depot.store.root / ".current.revert").readlink()) == f"slots/{one}"
    assert depot.store.warnings == []


def test_revert_to_another_slot_than_the_prepared_one(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.install("1.1.0", fallback=one)
    three = depot.install("1.2.0", fallback=two, confirmed=False)
    depot.store.revert(three, one, None, unconfirm=False)
    assert depot.check().current == one


def test_stop_keeps_the_way_back(depot: Depot) -> None:
    one = depot.install("1.0.0")
    two = depot.install("1.1.0", fallback=one)
    depot.store.set_shadow(one)
    depot.store.stop()
    facts = depot.check()
    assert (facts.current, facts.link, facts.fallback) == (None, None, one)
    assert not (depot.store.root / "shadow").is_symlink()
    depot.store.set_fallback(None)
    assert depot.check().fallback is None
    assert not (depot.store.root / ".current.revert").is_symlink()
    assert two in {s.release.digest for s in depot.store.facts().slots}


class TestVacuum:
    def test_spares_links_and_keep(self, depot: Depot) -> None:
        one = depot.install("1.0.0")
        two = depot.install("1.1.0", fallback=one)
        three = depot.offer("1.2.0")
        depot.store.stage(three, depot.incoming, two)
        four = depot.offer("1.3.0")
        depot.store.stage(four, depot.incoming, two)
        gone = depot.store.vacuum({three}, (), 0.0, 0, 1e12)
        assert f"models/digits/slots/{four}" in gone
        assert {s.release.digest for s in depot.check().slots} == {one, two, three}
        assert not (depot.store.root / ".current.next").is_symlink(), "it named the slot that went"

    def test_by_age_and_size_oldest_first(self, depot: Depot) -> None:
        one = depot.install("1.0.0")
        old = [depot.offer(f"1.{n}.0") for n in range(1, 5)]
        for index, digest in enumerate(old):
            depot.acquire(digest)
            depot.store.stage(digest, depot.incoming, one)
            os.utime(depot.store.path(digest), (1000.0 + index, 1000.0 + index))
        sizes = {d: sum(p.stat().st_size for p in depot.store.path(d).iterdir()) for d in old}
        assert depot.store.vacuum((), (), 2000.0, 10**9, 1000.0)[:-1] == []
        depot.store.vacuum((), (), 2000.0, sizes[old[2]] + sizes[old[3]], 1000.0)
        assert {s.release.digest for s in depot.check().slots} == {one, old[2], old[3]}
        depot.store.vacuum((), (), 10.0, 10**9, 1012.5)
        assert {s.release.digest for s in depot.check().slots} == {one, old[3]}

    def test_incoming(self, depot: Depot) -> None:
        wanted, other, fresh = "a" * 64, "b" * 64, "c" * 64
        for name in (f"{wanted}.part", f"{other}.part", other, fresh, "junk", ".x.tmp"):
            (depot.incoming / name).write_bytes(b"x" * 10)
            os.utime(depot.incoming / name, (500.0, 500.0))
        os.utime(depot.incoming / fresh, (990.0, 990.0))
        (depot.incoming / ("d" * 64)).symlink_to("/etc/passwd")
        gone = depot.store.vacuum((), {wanted}, 100.0, 10**9, 1000.0)
        assert sorted(p.name for p in depot.incoming.iterdir()) == sorted([f"{wanted}.part", fresh])
        assert len(gone) == 5
        assert Path("/etc/passwd").exists()

    def test_spares_what_this_process_is_writing(self, depot: Depot) -> None:
        depot.install("1.0.0")
        mine = [depot.incoming / f".{'a' * 64}.{os.getpid()}.tmp", depot.store.root / f".state.{os.getpid()}.tmp"]
        stale = [depot.incoming / f".{'a' * 64}.1.tmp", depot.store.root / ".state.1.tmp"]
        for path in (*mine, *stale):
            path.touch()
        depot.store.vacuum((), (), 0.0, 0, 1e12)
        assert all(path.exists() for path in mine)
        assert not any(path.exists() for path in stale)

    def test_ten_thousand_leftovers_go_quickly(self, depot: Depot) -> None:
        for n in range(10_000):
            (depot.incoming / f"{n:064x}.part").touch()
        assert len(depot.store.vacuum((), (), 0.0, 0, 1e12)) == 10_000
        assert list(depot.incoming.iterdir()) == []

    def test_an_unreadable_slot_is_not_torn(self, depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
        depot.install("1.0.0")
        loose = depot.offer("1.1.0")
        depot.store.stage(loose, depot.incoming, None)

        def fail(directory: Path, model: str) -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("modelagent.steps.slots.read_slot", fail)
        depot.store.vacuum((), (), 0.0, 0, 1e12)
        assert depot.store.path(loose).is_dir()
        with pytest.raises(DeviceError) as caught:
            depot.store.facts()
        assert caught.value.code == "too-many-files"


def test_locate_looks_into_other_models_too(tmp_path: Path) -> None:
    faces, digits = Depot(tmp_path, "faces"), Depot(tmp_path, "digits")
    digest = faces.install("1.0.0")
    sha = hashlib.sha256(b"canary" * 50).hexdigest()
    assert digits.store.locate(sha, 300) == faces.store.path(digest) / "canary.npz"
    assert digits.store.locate(sha, 301) is None
