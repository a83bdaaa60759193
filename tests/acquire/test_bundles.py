"""Bundles: yesterday's stick works, a replayed one does not, and a stick is trusted no more than a mirror."""

import errno
import os
import shutil
import tarfile
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner

from crash_points import hooked
from modelagent.cli import main
from modelagent.core.clock import Trust
from modelagent.errors import AgentError, SourceError, UsageError
from modelagent.manifest import Manifest
from modelagent.publish.bundle import write
from modelagent.sources import Source
from modelagent.sources.archive import ArchiveSource
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from modelagent.updater.sticks import Sticks
from modelagent.updater.way import source_at
from repository_simulator import Clock, RepositorySimulator

MONTH = timedelta(days=30)


class Plant:
    """A publisher with a network, and a device that has one only when it is let."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.simulator = RepositorySimulator(directory / "publisher", self.clock)
        self.state = directory / "state"
        self.state.mkdir()
        self.count = 0
        self.restart()

    def restart(self, *, online: bool = False) -> None:
        sources: list[Source] = [self.simulator] if online else []
        self.acquirer = Acquirer(
            self.state, sources, self.simulator.root_bytes, self.clock, trust=Trust.RTC, delta=None
        )

    def bundle(self, valid_for: timedelta = MONTH, *, directory: bool = False) -> Path:
        self.count += 1
        out = self.directory / (f"bundle-{self.count}" + ("" if directory else ".modelagent"))
        write(self.simulator.repository, out, valid_for=valid_for)
        return out

    def plug(self, path: Path) -> None:
        for name in self.acquirer.attached():
            self.acquirer.detach(name)
        self.acquirer.attach(source_at(path))

    def takes(self, version: str) -> Manifest:
        checked = self.acquirer.check("digits", "stable")
        assert checked.offer is not None
        assert checked.offer.version == version
        return self.acquirer.acquire(checked.offer)

    def attempt(self) -> Manifest:
        checked = self.acquirer.check("digits", "stable")
        assert checked.offer is not None
        return self.acquirer.acquire(checked.offer)

    def refuses(self) -> str:
        with pytest.raises(AgentError) as caught:
            self.attempt()
        return caught.value.code


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    made = Plant(tmp_path)
    made.simulator.release("1.0.0")
    return made


@pytest.mark.parametrize("directory", [True, False])
def test_yesterdays_stick_works(plant: Plant, directory: bool) -> None:
    stick = plant.bundle(directory=directory)
    plant.clock.advance(days=1)
    plant.plug(stick)
    plant.takes("1.0.0")
    assert plant.simulator.requests == []


def test_a_stick_works_to_its_last_day_and_not_longer(plant: Plant) -> None:
    stick = plant.bundle(timedelta(days=60))
    plant.clock.advance(days=59)
    plant.plug(stick)
    plant.takes("1.0.0")
    plant.clock.advance(days=2)
    shutil.rmtree(plant.state)
    plant.state.mkdir()
    plant.restart()
    plant.plug(stick)
    assert plant.refuses() in {"freeze-attack", "wrong-clock"}


def test_a_replayed_stick_does_not(plant: Plant) -> None:
    old = plant.bundle()
    plant.clock.advance(days=1)
    plant.simulator.release("1.1.0")
    new = plant.bundle()
    plant.plug(new)
    plant.takes("1.1.0")
    plant.plug(old)
    checked = plant.acquirer.check("digits", "stable")
    assert checked.offer is not None
    assert checked.offer.version == "1.1.0", "what the device knows counts, not what the old stick says"
    assert any("rollback-attack" in note for note in checked.notes)
    assert "rollback-attack" in plant.acquirer.describe()["set_aside"].values()


def test_a_replayed_stick_after_a_restart_and_past_the_end_of_what_is_known(plant: Plant) -> None:
    old = plant.bundle(timedelta(days=90))
    plant.clock.advance(days=1)
    plant.simulator.release("1.1.0")
    plant.plug(plant.bundle(timedelta(days=10)))
    plant.takes("1.1.0")
    plant.clock.advance(days=20)
    plant.restart()
    plant.plug(old)
    assert plant.refuses() == "rollback-attack"


def test_a_stick_older_than_what_the_device_knows_brings_files_that_it_still_lists(plant: Plant) -> None:
    """Checks by a thin link, bytes by stick: the publisher has signed since the stick was made."""
    stick = plant.bundle()
    plant.clock.advance(days=2)
    plant.simulator.repository.refresh()
    plant.restart(online=True)
    assert plant.acquirer.check("digits", "stable").offer is not None
    plant.simulator.forget_requests()
    plant.restart()
    plant.plug(stick)
    plant.takes("1.0.0")
    assert plant.simulator.requests == []


def test_bytes_come_from_the_stick_and_news_from_the_network(plant: Plant) -> None:
    stick = plant.bundle()
    plant.restart(online=True)
    plant.plug(stick)
    plant.simulator.forget_requests()
    manifest = plant.takes("1.0.0")
    assert not [name for name in plant.simulator.names if name.startswith("files/")]
    assert plant.acquirer.is_at_hand(manifest.digest)
    plant.simulator.release("1.1.0")
    plant.takes("1.1.0")
    assert [name for name in plant.simulator.names if name.startswith("files/")]


def test_after_a_stick_the_network_goes_on(plant: Plant) -> None:
    stick = plant.bundle()
    plant.plug(stick)
    plant.takes("1.0.0")
    plant.restart(online=True)
    plant.takes("1.0.0")
    for _ in range(3):
        plant.simulator.repository.refresh()
        plant.takes("1.0.0")
    plant.simulator.release("1.1.0")
    plant.takes("1.1.0")


def test_a_network_that_is_down_does_not_stand_in_the_sticks_way(plant: Plant) -> None:
    stick = plant.bundle()
    plant.restart(online=True)
    plant.plug(stick)
    plant.simulator.fail(5)
    plant.takes("1.0.0")


def test_a_foreign_stick_is_refused(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = Plant(tmp_path / "stranger")
    stranger.simulator.release("6.6.6")
    plant.plug(stranger.bundle())
    assert plant.refuses() == "arbitrary-software"


@pytest.mark.parametrize("part", ["metadata", "targets", "files"])
def test_a_stick_with_flipped_bits_is_refused_and_a_good_one_helps(plant: Plant, part: str) -> None:
    good, bad = plant.bundle(directory=True), plant.bundle(directory=True)
    for path in (bad / part).rglob("*"):
        if path.is_file() and not path.name.endswith("root.json"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    plant.plug(bad)
    assert plant.refuses() in {"tampered-file", "arbitrary-software", "malformed"}
    assert not [path for path in (plant.state / "incoming").iterdir() if path.suffix == ".part"]
    plant.plug(plant.bundle(directory=True))
    plant.takes("1.0.0")
    assert good.exists()


def test_a_stick_that_is_pulled_out_is_gone_on_with(plant: Plant) -> None:
    stick = plant.bundle(directory=True)
    away = stick.with_name("away")
    plant.plug(stick)
    checked = plant.acquirer.check("digits", "stable")
    assert checked.offer is not None
    stick.rename(away)
    with pytest.raises(SourceError) as caught:
        plant.acquirer.acquire(checked.offer)
    assert caught.value.code == "unreachable"
    away.rename(stick)
    plant.acquirer.acquire(checked.offer)


def test_links_on_a_stick_lead_nowhere(plant: Plant, tmp_path: Path) -> None:
    stick = plant.bundle(directory=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for path in (stick / "files").iterdir():
        path.unlink()
        path.symlink_to(secret)
    plant.plug(stick)
    assert plant.refuses() == "unreachable"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_bundle_takes_new_versions_and_the_repository_goes_on_above_them(plant: Plant) -> None:
    ledger = plant.simulator.repository.ledger
    before = ledger.base()
    plant.bundle()
    after = ledger.base()
    assert (after.snapshot, after.timestamp) == (before.snapshot + 2, before.timestamp + 2)


def test_a_bundle_takes_the_online_key_alone(plant: Plant, tmp_path: Path) -> None:
    keys = tmp_path / "publisher" / "keys"
    for path in keys.glob("*.pem"):
        if path.name != "online.pem":
            path.unlink()
    plant.plug(plant.bundle())
    plant.takes("1.0.0")


def test_what_cannot_be_bundled_is_refused_and_nothing_is_written(plant: Plant, tmp_path: Path) -> None:
    repository = plant.simulator.repository
    before = repository.ledger.base()
    out = tmp_path / "x.modelagent"
    for how in ({"valid_for": timedelta(days=400)}, {"valid_for": MONTH, "models": ["nobody"]}):
        with pytest.raises(UsageError):
            write(repository, out, **how)
    out.write_bytes(b"")
    with pytest.raises(UsageError):
        write(repository, out, valid_for=MONTH)
    out.unlink()
    for path in (plant.simulator.directory / "files").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UsageError):
        write(repository, out, valid_for=MONTH)
    assert not out.exists()
    assert repository.ledger.base() == before


def test_the_command_writes_a_bundle_and_says_until_when(plant: Plant, tmp_path: Path) -> None:
    publisher = tmp_path / "publisher"
    words = ["repo", "bundle", "--repo", str(publisher / "repository"), "--keys", str(publisher / "keys")]
    out = tmp_path / "stick" / "digits.modelagent"
    done = CliRunner().invoke(main, [*words, "--valid-for", "30d", str(out)])
    assert done.exit_code == 0, done.output
    assert "digits stable: 1.0.0" in done.output
    assert out.is_file()
    for bad in ("0", "soon", "9999d"):
        assert CliRunner().invoke(main, [*words, "--valid-for", bad, str(tmp_path / "y")]).exit_code == 2


# --- archives --------------------------------------------------------------------------------------------------------


def archive(tmp_path: Path, *entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:  # noqa: A002
    path = tmp_path / "x.modelagent"
    with tarfile.open(path, "w", format=format) as made:
        for entry, data in entries:
            entry.size = len(data)
            made.addfile(entry, BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    return made


def read(path: Path, name: str = "files/x", limit: int = 10_000, offset: int = 0) -> bytes:
    with ArchiveSource(path).fetch(name, limit=limit, offset=offset) as body:
        return b"".join(body)


def test_an_archive_is_read_in_place(tmp_path: Path) -> None:
    content = bytes(range(256)) * 7
    path = archive(tmp_path, (entry("files"), b""), (entry("files/x"), content), (entry("a/b"), b"other"))
    assert read(path) == content
    assert read(path, offset=100) == content[100:]
    assert read(path, "a/b") == b"other"
    with pytest.raises(SourceError, match="not found"):
        read(path, "files/y")
    with pytest.raises(AgentError, match="more than"):
        read(path, limit=10)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../b", ".hidden", "a//b"])
def test_an_archive_with_a_name_that_climbs_is_no_bundle(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(archive(tmp_path, (entry(name), b"x"), (entry("files/x"), b"y")))
    assert caught.value.code == "bad-bundle"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_other_things_than_files_is_no_bundle(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        read(archive(tmp_path, (entry("files/y", kind), b""), (entry("files/x"), b"y")))
    assert caught.value.code == "bad-bundle"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_not_read(tmp_path: Path, format: int) -> None:  # noqa: A002
    with pytest.raises(SourceError) as caught:
        read(archive(tmp_path, (entry("ü" * 200), b"x"), format=format))
    assert caught.value.code == "bad-bundle"


def test_a_damaged_archive_is_refused_wherever_it_is_damaged(plant: Plant) -> None:
    whole = plant.bundle()
    data = whole.read_bytes()
    for at in (0, 100, 130, 150, 156, 257, 345, 512, len(data) // 2, len(data) - 2000):
        for cut in (True, False):
            bad = plant.directory / f"bad-{at}-{cut}.modelagent"
            bad.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            plant.restart()
            plant.plug(bad)
            try:
                plant.takes("1.0.0")
            except AgentError as error:
                assert error.code  # noqa: PT017 - a refusal or the right bytes, both are fine
            shutil.rmtree(plant.state)
            plant.state.mkdir()
    plant.restart()
    plant.plug(whole)
    plant.takes("1.0.0")


# --- sticks that come and go -----------------------------------------------------------------------------------------


@pytest.fixture
def media(tmp_path: Path) -> Path:
    place = tmp_path / "media"
    (place / "op" / "STICK").mkdir(parents=True)
    return place


def test_a_stick_is_found_used_and_forgotten(plant: Plant, media: Path, tmp_path: Path) -> None:
    seen: list[Path] = []
    sticks = Sticks(plant.acquirer, media, tmp_path / "sticks.json", seen.append)
    sticks.look()
    assert seen == []
    file, place = plant.bundle(), plant.bundle(directory=True)
    shutil.copy(file, media / "op" / "STICK" / "a.modelagent")
    shutil.copytree(place, media / "op" / "OTHER")
    sticks.look()
    sticks.look()
    assert sorted(seen) == [media / "op" / "OTHER", media / "op" / "STICK" / "a.modelagent"]
    plant.takes("1.0.0")
    shutil.rmtree(media / "op")
    sticks.look()
    assert plant.acquirer.attached() == []


def test_another_stick_in_the_same_place_is_another_stick(plant: Plant, media: Path, tmp_path: Path) -> None:
    seen: list[Path] = []
    sticks = Sticks(plant.acquirer, media, tmp_path / "sticks.json", seen.append)
    for _ in range(2):
        place = media / "op" / "STICK" / "a.modelagent"
        place.unlink(missing_ok=True)
        shutil.copy(plant.bundle(), place)
        sticks.look()
    assert len(seen) == 2


def test_what_was_installed_by_hand_is_there_after_a_restart(plant: Plant, tmp_path: Path) -> None:
    stick = plant.bundle()
    Sticks(plant.acquirer, None, tmp_path / "sticks.json", lambda _: None).install(stick)
    assert plant.acquirer.attached() == [str(stick)]
    plant.restart()
    seen: list[Path] = []
    again = Sticks(plant.acquirer, None, tmp_path / "sticks.json", seen.append)
    again.look()
    assert seen == [stick]
    plant.takes("1.0.0")
    stick.unlink()
    again.look()
    assert plant.acquirer.attached() == []
    with pytest.raises(UsageError):
        again.install(stick)


@pytest.mark.parametrize("place", ["/" + "a" * 300, "a/" * 500, "/proc/1/\ud800"])
def test_a_path_that_cannot_be_one_is_refused(plant: Plant, tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sticks(plant.acquirer, None, tmp_path / "sticks.json", lambda _: None).install(Path(place))
    assert caught.value.code == "bundle"


def test_a_place_that_one_may_not_look_at_is_refused(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    sticks = Sticks(plant.acquirer, None, tmp_path / "sticks.json", lambda _: None)
    monkeypatch.setattr(os, "stat", forbidden)
    with pytest.raises(UsageError):
        sticks.install(tmp_path / "hidden.modelagent")


def test_a_bundle_of_brackets_is_refused(plant: Plant, tmp_path: Path) -> None:
    first = tmp_path / "deep" / "metadata" / "timestamp.json"
    first.parent.mkdir(parents=True)
    first.write_bytes(b"[" * 16_000)
    with pytest.raises(UsageError, match=r"timestamp\.json"):
        Sticks(plant.acquirer, None, tmp_path / "sticks.json", lambda _: None).install(first.parents[1])


def test_a_stick_that_goes_while_the_disk_is_full_is_let_go_of(plant: Plant, tmp_path: Path) -> None:
    stick = plant.bundle()
    sticks = Sticks(plant.acquirer, None, tmp_path / "sticks.json", lambda _: None)
    sticks.install(stick)
    stick.unlink()

    def full(operation: str, path: str) -> None:
        if operation == "create":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with hooked(full):
        sticks.look()
    assert plant.acquirer.attached() == []


def test_a_directory_on_a_dying_medium_hides_no_other_stick(
    plant: Plant, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    sticks = Sticks(plant.acquirer, media, tmp_path / "sticks.json", seen.append)
    (media / "op" / "DYING").mkdir()
    place = media / "op" / "STICK" / "a.modelagent"
    shutil.copy(plant.bundle(), place)
    look = os.stat

    def dying(path: str | Path, **more: bool) -> os.stat_result:
        if str(path).endswith("DYING"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return look(path, **more)

    monkeypatch.setattr(os, "stat", dying)
    sticks.look()
    assert seen == [place]


def test_an_odd_mount_directory_hurts_nobody(plant: Plant, media: Path, tmp_path: Path) -> None:
    (media / "loop").symlink_to(media)
    (media / "x.modelagent").symlink_to("/etc/passwd")
    (media / "deep" / "a" / "b" / "c" / "d").mkdir(parents=True)
    sticks = Sticks(plant.acquirer, media, tmp_path / "sticks.json", lambda _: None)
    sticks.look()
    assert plant.acquirer.attached() in ([], [str(media / "x.modelagent")])
    Sticks(plant.acquirer, tmp_path / "nowhere", tmp_path / "sticks.json", lambda _: None).look()


@pytest.mark.parametrize("newest_last", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_of_two_sticks_the_newer_one_counts_whichever_is_asked_first(
    plant: Plant, newest_last: bool, online: bool
) -> None:
    sticks = [plant.bundle()]
    plant.clock.advance(days=1)
    plant.simulator.release("1.1.0")
    sticks.append(plant.bundle())
    plant.restart(online=online)
    for stick in reversed(sticks) if newest_last else sticks:  # what came last is asked first
        plant.acquirer.attach(source_at(stick))
    for _ in range(3):
        offer = plant.acquirer.check("digits", "stable").offer
        assert offer is not None
        assert offer.version == "1.1.0"


def test_a_plain_copy_of_the_repository_is_a_stick_too(plant: Plant, tmp_path: Path) -> None:
    shutil.copytree(plant.simulator.directory, tmp_path / "copy")
    assert isinstance(source_at(tmp_path / "copy"), DirectorySource)
    plant.plug(tmp_path / "copy")
    plant.takes("1.0.0")
