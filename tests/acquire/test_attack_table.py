"""The attack table of docs/security.md, one test a row, under the row's name. `test_attacks.py` has the variants.

Each shows three things: the attack is refused and named, nothing of it can be used, and the next honest try succeeds.
"""

import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.errors import AgentError, DeviceError, ModelError, SourceError, TrustError
from modelagent.manifest import Manifest
from modelagent.sources.http import HttpSource
from modelagent.steps.acquire import Acquirer, check_suitable
from modelagent.steps.slots import SlotStore
from repository_simulator import Clock, RepositorySimulator, make_canary
from rogue_server import BEHAVIOURS, Request, Rogue
from tls_authority import Authority


class Device:
    """A device, its repository, and what the updater does: check, then acquire."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.simulator = RepositorySimulator(directory / "publisher", self.clock, models=("digits", "gears"))
        self.state = directory / "state"
        self.state.mkdir()
        self.restart()

    def restart(self, **more: object) -> None:
        self.acquirer = Acquirer(
            self.state,
            self.simulator,
            self.simulator.root_bytes,
            self.clock,
            **more,  # type: ignore[arg-type]
        )

    def attempt(self) -> Manifest:
        checked = self.acquirer.check("digits", "stable")
        assert checked.offer is not None
        return self.acquirer.acquire(checked.offer)

    def refuses(self, *codes: str) -> AgentError:
        """The attempt ends with one of these codes, and no further release is there.

        Single files may be: each is right by itself, and worth nothing without its manifest.
        """
        before = self.releases()
        with pytest.raises(AgentError) as caught:
            self.attempt()
        assert caught.value.code in codes, f"{caught.value.code}: {caught.value.message}"
        assert self.releases() == before
        return caught.value

    def whole(self) -> set[str]:
        """Everything in incoming/ that has its final name; each must have the content that it is named after."""
        found = set()
        for path in (self.state / "incoming").glob("*"):
            if len(path.name) == 64:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
                found.add(path.name)
        return found

    def releases(self) -> set[str]:
        """The complete releases in incoming/: those whose manifest is there."""
        return {name for name in self.whole() if (self.state / "incoming" / name).read_bytes().startswith(b"{")}

    def succeeds(self, version: str) -> None:
        self.simulator.honest()
        assert self.attempt().version == version


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.acquirer.close()


def file_of(release: Manifest) -> str:
    return f"files/{release.model_file.sha256}"


def test_arbitrary_software(device: Device, tmp_path: Path) -> None:
    device.simulator.release("1.0.0")
    stranger = RepositorySimulator(tmp_path / "stranger", device.clock)
    stranger.release("6.6.6")
    for role in ("timestamp", "snapshot"):
        foreign = (stranger.directory / stranger.current(role)).read_bytes()
        device.simulator.serve_instead(device.simulator.current(role), foreign)
    assert isinstance(device.refuses("arbitrary-software"), TrustError)
    device.succeeds("1.0.0")


def test_arbitrary_software_the_manifest_binds_the_model(device: Device) -> None:
    release = device.simulator.release("1.0.0")
    device.simulator.swap_bytes(file_of(release))
    device.refuses("tampered-file")
    device.succeeds("1.0.0")


def test_rollback(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.remember()
    device.simulator.release("1.1.0")
    device.attempt()
    device.simulator.replay("timestamp")
    device.restart()
    device.refuses("rollback-attack")
    device.succeeds("1.1.0")


def test_rollback_after_the_metadata_was_lost(device: Device) -> None:
    """Without its memory a device cannot tell: then the release floor, in State, and expiry are what is left."""
    device.simulator.release("1.0.0")
    device.simulator.remember()
    device.clock.advance(days=2)
    device.simulator.release("1.1.0", floor=2)
    device.attempt()
    for path in sorted((device.state / "tuf").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    device.restart()
    device.clock.advance(days=6)
    device.simulator.replay("timestamp")
    device.refuses("freeze-attack")
    device.simulator.honest()
    device.simulator.repository.refresh()
    device.succeeds("1.1.0")


def test_freeze(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.attempt()
    device.simulator.remember()
    device.clock.advance(days=8)
    device.simulator.release("1.1.0")
    device.simulator.replay("timestamp")
    assert "either old metadata is served, or nobody signs" in device.refuses("freeze-attack").message
    device.succeeds("1.1.0")


def test_fast_forward(device: Device) -> None:
    """A thief of the online key raises the versions to the sky; new keys bring the device back."""
    device.simulator.release("1.0.0")
    ledger = device.simulator.repository.ledger
    honest = ledger.base()
    ledger.publish({}, base=type(honest)(honest.meta, 90_000, 90_000))
    device.attempt()
    ledger.publish({}, base=honest)
    device.refuses("rollback-attack")
    device.simulator.repository.rotate("online")
    device.succeeds("1.0.0")


def test_mix_and_match(device: Device) -> None:
    first = device.simulator.release("1.0.0", canary_bytes=make_canary(seed=1))
    device.attempt()
    second = device.simulator.release("1.1.0", canary_bytes=make_canary(seed=2))
    old, new = first.file("canary"), second.file("canary")
    assert old is not None
    assert new is not None
    device.simulator.serve_instead(
        f"files/{new.sha256}", (device.simulator.directory / f"files/{old.sha256}").read_bytes()
    )
    assert "digits 1.0.0 (canary)" in device.refuses("mix-and-match").message
    device.succeeds("1.1.0")


@pytest.mark.parametrize("what", ["metadata/timestamp.json", "file", "manifest", "metadata/2.root.json"])
@pytest.mark.parametrize("length", ["stated", "not stated", "gzip bomb"])
def test_endless_data(device: Device, what: str, length: str) -> None:
    release = device.simulator.release("1.0.0")
    names = {
        "file": file_of(release),
        "manifest": f"targets/models/digits/1.0.0/{release.digest}.manifest.json",
    }
    name = f"/{names.get(what, what)}"
    with Rogue() as rogue:

        def play(request: Request) -> None:
            if request.path != name:
                path = device.simulator.directory / request.path.lstrip("/")
                rogue.content = path.read_bytes() if path.is_file() else b""
                if not path.is_file():
                    request.head(404, Content_Length="0")
                else:
                    BEHAVIOURS["honest"](request)
            elif length == "gzip bomb":
                bomb = gzip.compress(bytes(10_000_000))
                request.head(200, Content_Encoding="gzip", Content_Length=str(len(bomb)))
                request.send(bomb)
            elif length == "stated":
                request.head(200, Content_Length=str(10**12))
                while True:
                    request.send(bytes(65536))
            else:
                rogue.content = bytes(65536)
                BEHAVIOURS["endless"](request)

        rogue.play = play
        acquirer = Acquirer(
            device.state, HttpSource(rogue.url.removesuffix("repo")), device.simulator.root_bytes, device.clock
        )
        honest, device.acquirer = device.acquirer, acquirer
        device.refuses("endless-data", "wrong-length", "content-encoding")
        assert rogue.sent < 20_000_000
        acquirer.close()
        device.acquirer = honest
    device.succeeds("1.0.0")


@pytest.mark.parametrize("behaviour", ["trickle", "stall", "slow-head", "silent"])
def test_slow_retrieval(device: Device, behaviour: str) -> None:
    release = device.simulator.release("1.0.0")
    device.acquirer.check("digits", "stable")
    with Rogue(bytes(release.model_file.length), pause=0.001) as rogue:
        rogue.play = BEHAVIOURS[behaviour]
        source = HttpSource(rogue.url, read_timeout=0.2, min_rate=50_000, window=0.2)
        acquirer = Acquirer(device.state, source, device.simulator.root_bytes, device.clock)
        with pytest.raises(SourceError) as caught:
            acquirer._transfer.fetch(
                release.model_file.sha256,
                release.model_file.length,
                progress=lambda _: None,
                abandoned=lambda: False,
            )
        assert caught.value.code in {"too-slow", "timeout"}
        acquirer.close()
    device.succeeds("1.0.0")


@pytest.mark.parametrize("behaviour", ["reset", "storm", "portal", "garbage", "truncated", "redirect-loop"])
def test_dropped_requests(device: Device, behaviour: str) -> None:
    device.simulator.release("1.0.0")
    with Rogue(b"x" * 500) as rogue:
        rogue.play = BEHAVIOURS[behaviour]
        source = HttpSource(rogue.url, read_timeout=0.3)
        acquirer = Acquirer(device.state, source, device.simulator.root_bytes, device.clock)
        with pytest.raises(SourceError) as caught:
            acquirer.check("digits", "stable")
        assert len(rogue.asked) <= 6
        assert caught.value.remedy.value == "retry"
        acquirer.close()
    device.succeeds("1.0.0")


def test_partial_bundle_installation(device: Device) -> None:
    """Killed between two files: nothing is complete, and the next process goes on from there."""
    release = device.simulator.release("1.0.0")
    canary = release.file("canary")
    assert canary is not None
    device.simulator.lose(f"files/{canary.sha256}")
    assert "canary" in device.refuses("incomplete").message
    store = SlotStore(device.state, "digits")
    (device.state / "models").mkdir()
    with pytest.raises((SourceError, DeviceError, TrustError)):
        store.stage(release.digest, device.state / "incoming", None)
    assert store.facts().slots == ()
    device.restart()
    device.succeeds("1.0.0")


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"hardware": ["rpi5"]}, "wrong-hardware"),
        ({"runtime": {"min": "99.0", "max": None}}, "runtime-too-old"),
        ({"runtime": {"min": None, "max": "1.0"}}, "runtime-too-new"),
        ({"delegate": "edgetpu"}, "wrong-delegate"),
    ],
)
def test_wrong_software_for_the_device(device: Device, overrides: dict[str, object], code: str) -> None:
    release = device.simulator.release("1.0.0", **overrides)  # type: ignore[arg-type]
    device.restart(suits=lambda found: check_suitable(found, "rpi4", "2.3.0"))
    assert isinstance(device.refuses(code), ModelError)
    assert file_of(release) not in device.simulator.names, "refused before the model was fetched"
    device.simulator.release("1.1.0")
    device.succeeds("1.1.0")


def test_extraneous_dependencies(device: Device) -> None:
    """Whatever lies in the repository: asked for is what signed data names, and nothing else."""
    release = device.simulator.release("1.0.0")
    (device.simulator.directory / "files" / ("e" * 64)).write_bytes(b"extra")
    device.attempt()
    asked = {name for name in device.simulator.names if name.startswith("files/")}
    assert asked == {f"files/{ref.sha256}" for ref in release.files}


def test_malicious_mirror(device: Device, tmp_path: Path) -> None:
    release = device.simulator.release("1.0.0")
    bad = RepositorySimulator(tmp_path / "bad", device.clock)
    bad.directory, bad.source, bad.label = device.simulator.directory, device.simulator.source, "bad mirror"
    bad.swap_bytes(file_of(release))
    device.acquirer = Acquirer(device.state, [bad, device.simulator], device.simulator.root_bytes, device.clock)
    device.attempt()
    assert device.acquirer.describe()["set_aside"] == {"bad mirror": "tampered-file"}
    notes = device.acquirer.check("digits", "stable").notes
    assert any("tampered-file: bad mirror" in note for note in notes), "said, although another mirror had it"
    again = Acquirer(device.state, [bad, device.simulator], device.simulator.root_bytes, device.clock)
    bad.forget_requests()
    assert again.check("digits", "stable").offer is not None
    assert bad.requests == [], "remembered over a restart"
    device.clock.advance(days=8)
    assert again.describe()["set_aside"] == {}


def test_key_compromise_the_online_keys_install_nothing(device: Device) -> None:
    """Timestamp and snapshot keys stolen: nothing can be signed that a device would install."""
    device.simulator.release("1.0.0")
    device.attempt()
    device.simulator.sign_with("models-digits", "online", lambda _: None)
    device.refuses("arbitrary-software")
    device.simulator.restore("models-digits")
    device.simulator.sign_with("channels", "online", lambda _: None)
    device.refuses("arbitrary-software")
    device.simulator.restore("channels")
    device.succeeds("1.0.0")


def test_key_compromise_the_channel_key_chooses_among_releases(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.sign_with("models-digits", "operations", lambda _: None)
    device.refuses("arbitrary-software")
    device.simulator.restore("models-digits")
    device.succeeds("1.0.0")


def test_key_compromise_a_replaced_release_key_signs_nothing(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.attempt()
    keys = device.simulator.repository.keys
    device.simulator.repository.rotate("release")
    old = next(name for name in keys.names() if name.startswith("release.old"))
    device.simulator.sign_with("models-digits", old, lambda _: None)
    device.refuses("arbitrary-software")
    device.simulator.restore("models-digits")
    device.succeeds("1.0.0")


def test_eavesdropping(device: Device, tmp_path: Path) -> None:
    """Who listens on an encrypted way is refused; who only listens on a plain one learns, and changes nothing."""
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    with Rogue(b"x", tls=Authority(tmp_path / "other", "listener").server()) as listener:
        source = HttpSource(listener.url, ca=authority.ca)
        acquirer = Acquirer(device.state, source, device.simulator.root_bytes, device.clock)
        with pytest.raises(SourceError) as caught:
            acquirer.check("digits", "stable")
        assert caught.value.code == "tls"
        assert listener.asked == []
        acquirer.close()


def test_name_tricks(device: Device) -> None:
    simulator = device.simulator
    simulator.release("1.0.0")
    for path in ("models/digits/../../etc/x", "models/digits/%2e%2e/x", f"models/digits/{'x' * 200}/manifest.json"):
        simulator.publish_document(path, b"{}", role="models-digits")
    device.succeeds("1.0.0")
    tops = {"tuf", "incoming", "mirrors.json", "clock.json"}
    assert {path.name for path in device.state.iterdir()} <= tops


def test_name_tricks_a_link_in_the_store(device: Device, tmp_path: Path) -> None:
    release = device.simulator.release("1.0.0")
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    device.acquirer.check("digits", "stable")
    for name in (
        release.model_file.sha256,
        f"{release.model_file.sha256}.part",
        f"{release.model_file.sha256}.part.from",
    ):
        (device.state / "incoming" / name).symlink_to(outside)
    device.succeeds("1.0.0")
    assert outside.read_bytes() == b"outside"
    assert not (device.state / "incoming" / release.model_file.sha256).is_symlink()


def test_disk_full(device: Device) -> None:
    """Found out before anything is fetched, again and again, until there is room."""
    release = device.simulator.release("1.0.0")
    device.restart(free=lambda _: release.model_file.length)
    for _ in range(3):
        assert "make room" in device.refuses("no-space").message
    assert not [name for name in device.simulator.names if name.startswith("files/")]
    device.restart()
    device.succeeds("1.0.0")


@pytest.mark.parametrize("number", [28, 30, 122])  # ENOSPC, EROFS, EDQUOT
def test_disk_full_in_the_middle(device: Device, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device.simulator.release("1.0.0")
    device.acquirer.check("digits", "stable")
    real, count = os.write, 0

    def write(fd: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    assert isinstance(device.refuses("no-space", "read-only"), DeviceError)
    monkeypatch.undo()
    device.succeeds("1.0.0")


def test_concurrency(device: Device) -> None:
    """Two "update now" at once, and checks meanwhile: one release, whole."""
    device.simulator.release("1.0.0")
    offer = device.acquirer.check("digits", "stable").offer
    assert offer is not None
    failures: list[BaseException] = []

    def run(call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to see it
            failures.append(error)

    calls = [lambda: device.acquirer.acquire(offer), lambda: device.acquirer.check("digits", "stable")] * 4
    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert offer.digest in device.whole()
    files = [name for name in device.simulator.names if name.startswith("files/")]
    assert len(files) == len(set(files)), "no byte was paid for twice"


@pytest.mark.parametrize("after", range(0, 40, 8))
def test_power_cut(device: Device, after: int) -> None:
    """Cut after each write in turn (test_acquire.py cuts before each): what is there is right, the rest comes."""
    from modelagent import durable  # noqa: PLC0415 - the hook of this test alone

    device.simulator.release("1.0.0")
    seen = 0

    class Cut(BaseException):
        pass

    def hook(operation: str, path: str) -> None:
        nonlocal seen
        del operation, path
        seen += 1
        if seen > after:
            raise Cut

    durable.set_hook(hook)
    try:
        device.attempt()
    except Cut:
        pass
    finally:
        durable.set_hook(None)
    device.whole()
    device.restart()
    device.succeeds("1.0.0")
