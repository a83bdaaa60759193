"""Signing in steps on several machines, as it is typed and as devices see it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelagent.cli import main
from modelagent.errors import UsageError
from modelagent.publish import ceremony, inspection, rotation
from modelagent.publish.keys import KeyRing
from modelagent.publish.repository import Repository
from modelagent.steps.acquire import Acquirer
from repository_simulator import RepositorySimulator, fake_model, make_canary, make_manifest


@pytest.fixture
def simulator(tmp_path: Path) -> RepositorySimulator:
    simulator = RepositorySimulator(tmp_path, root_keys=3, root_threshold=2)
    simulator.release("1.0.0")
    return simulator


@pytest.fixture
def holders(simulator: RepositorySimulator, tmp_path: Path) -> dict[str, KeyRing]:
    """Each offline key on a machine of its own; the server keeps online.pem and root.json."""
    found = {}
    for name in ("root", "root-2", "root-3", "targets"):
        place = tmp_path / f"machine-of-{name}"
        place.mkdir()
        (tmp_path / "keys" / f"{name}.pem").rename(place / f"{name}.pem")
        found[name] = KeyRing(place)
    return found


@pytest.fixture
def server(simulator: RepositorySimulator, holders: dict[str, KeyRing], tmp_path: Path) -> Repository:
    return Repository(simulator.directory, KeyRing(tmp_path / "keys"), now=simulator.clock.read)


def refuses(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.message


def offered(simulator: RepositorySimulator, place: Path) -> str:
    """What a device with the very first root is offered."""
    place.mkdir()
    offer = Acquirer(place, simulator, simulator.root_bytes, simulator.clock).check("digits", "stable").offer
    assert offer is not None
    return offer.version


def test_a_new_root_needs_the_threshold_of_holders(
    simulator: RepositorySimulator, server: Repository, holders: dict[str, KeyRing], tmp_path: Path
) -> None:
    before = server.ledger.load_root().signed
    simulator.clock.advance(days=1)
    proposal = ceremony.propose(server.ledger, "root")
    assert "0 of 2 signatures" in refuses("signatures", lambda: ceremony.accept(server.ledger, [proposal]))
    one = ceremony.sign(proposal, holders["root"].signer("root"))
    assert "1 missing" in refuses("signatures", lambda: ceremony.accept(server.ledger, [one]))
    twice = ceremony.sign(one, holders["root"].signer("root"))
    refuses("signatures", lambda: ceremony.accept(server.ledger, [twice]))
    stranger = ceremony.sign(proposal, holders["targets"].signer("targets"))
    refuses("signatures", lambda: ceremony.accept(server.ledger, [one, stranger]))
    # Two holders who signed copies of their own need not have met.
    other = ceremony.sign(proposal, holders["root-3"].signer("root-3"))
    assert ceremony.accept(server.ledger, [one, other]) == ["root 2"]
    after = server.ledger.load_root().signed
    assert (after.version, after.expires) > (before.version, before.expires)
    assert offered(simulator, tmp_path / "device") == "1.0.0"
    assert inspection.verify(server, now=simulator.clock).errors == []


def test_keys_of_root_are_added_and_removed(
    simulator: RepositorySimulator, server: Repository, holders: dict[str, KeyRing], tmp_path: Path
) -> None:
    new = KeyRing.generate(tmp_path / "new-machine", ["root-4"])
    lost = holders["root-2"].signer("root-2").public_key.keyid
    proposal = ceremony.propose(
        server.ledger, "root", add=[ceremony.public_key(new.signer("root-4"))], remove=[lost[:8]], threshold=3
    )
    told = ceremony.describe(proposal)
    assert told["keys"]["root"]["threshold"] == 3
    assert lost[:12] not in told["keys"]["root"]["keys"]
    for ring, name in ((holders["root"], "root"), (holders["root-3"], "root-3")):
        proposal = ceremony.sign(proposal, ring.signer(name))
    # Enough for the old root (2 of 3), one short for the new one (3 of 3).
    assert "the new root keys" in refuses("signatures", lambda: ceremony.accept(server.ledger, [proposal]))
    proposal = ceremony.sign(proposal, new.signer("root-4"))
    assert ceremony.accept(server.ledger, [proposal]) == ["root 2"]
    assert offered(simulator, tmp_path / "device") == "1.0.0"


def test_targets_are_signed_in_steps_and_their_key_is_replaced(
    simulator: RepositorySimulator, server: Repository, holders: dict[str, KeyRing], tmp_path: Path
) -> None:
    simulator.clock.advance(days=300)
    server.ledger.publish({})
    renewed = ceremony.sign(ceremony.propose(server.ledger, "targets"), holders["targets"].signer("targets"))
    assert ceremony.accept(server.ledger, [renewed]) == ["targets 2"]
    new = KeyRing.generate(tmp_path / "new-machine", ["targets"])
    old = holders["targets"].signer("targets")
    root = ceremony.propose(
        server.ledger,
        "root",
        add=[ceremony.public_key(new.signer("targets"))],
        remove=[old.public_key.keyid],
        of="targets",
    )
    for name in ("root", "root-2"):
        root = ceremony.sign(root, holders[name].signer(name))
    assert "import both" in refuses("signatures", lambda: ceremony.accept(server.ledger, [root]))
    targets = ceremony.propose(server.ledger, "targets")
    by_new = ceremony.sign(targets, new.signer("targets"))
    refuses("signatures", lambda: ceremony.accept(server.ledger, [root, by_new]))
    by_both = ceremony.sign(by_new, old)
    assert ceremony.accept(server.ledger, [root, by_both]) == ["targets 3", "root 2"]
    assert offered(simulator, tmp_path / "device") == "1.0.0"


def test_everything_that_expired_is_renewed_where_the_keys_are(
    simulator: RepositorySimulator, server: Repository, holders: dict[str, KeyRing], tmp_path: Path
) -> None:
    simulator.clock.advance(days=400)
    assert all(soon for _, soon in server.expiries().values())
    # The server has the keys of releases and channels; root and targets are signed by their holders.
    assert set(rotation.renew(server.ledger)) == {"models-digits", "channels"}
    root, targets = (ceremony.propose(server.ledger, role) for role in ("root", "targets"))
    for name in ("root", "root-3"):
        root = ceremony.sign(root, holders[name].signer(name))
    targets = ceremony.sign(targets, holders["targets"].signer("targets"))
    ceremony.accept(server.ledger, [root, targets])
    assert not any(soon for _, soon in server.expiries().values())
    assert offered(simulator, tmp_path / "device") == "1.0.0"  # a device that slept all the while
    refuses("role", lambda: rotation.renew(server.ledger, ["snapshot"]))
    refuses("no-key", lambda: rotation.renew(server.ledger, ["root"]))
    refuses("no-key", lambda: rotation.renew(server.ledger, ["targets"]))


def test_what_is_no_proposal_is_refused(server: Repository, holders: dict[str, KeyRing]) -> None:
    ledger = server.ledger
    refuses("bad-proposal", lambda: ceremony.describe(b"{}"))
    refuses("bad-proposal", lambda: ceremony.accept(ledger, []))
    timestamp = (server.directory / "metadata" / "timestamp.json").read_bytes()
    refuses("bad-proposal", lambda: ceremony.sign(timestamp, holders["root"].signer("root")))
    refuses("role", lambda: ceremony.propose(ledger, "snapshot"))
    refuses("role", lambda: ceremony.propose(ledger, "targets", threshold=2))
    refuses("threshold", lambda: ceremony.propose(ledger, "root", threshold=4))
    refuses("bad-key", lambda: ceremony.propose(ledger, "root", add=[b"no key"]))
    refuses("bad-key", lambda: ceremony.propose(ledger, "root", remove=["zz"]))
    old = ceremony.propose(ledger, "root")
    changed = ceremony.propose(ledger, "root", threshold=3)
    refuses("bad-proposal", lambda: ceremony.accept(ledger, [old, changed]))
    signed = old
    for name in ("root", "root-2"):
        signed = ceremony.sign(signed, holders[name].signer(name))
    ceremony.accept(ledger, [signed])
    assert "export it again" in refuses("version", lambda: ceremony.accept(ledger, [signed]))


# --- as it is typed ---------------------------------------------------------------------------------------------


def run(*words: str | Path, code: int = 0, typed: str = "") -> Result:
    result = CliRunner().invoke(main, ["repo", *map(str, words)], input=typed)
    assert result.exit_code == code, result.output
    return result


def test_the_ceremony_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("init", "--model", "digits")
    Path("safe").mkdir()
    (tmp_path / "keys" / "root.pem").rename(tmp_path / "safe" / "root.pem")
    run("keys", "new", "root-2", "--keys", "stick")
    Path("root-2.pub").write_text(run("keys", "public", "root-2", "--keys", "stick").stdout)
    exported = run("keys", "export", "root", "next.json", "--add", "root-2.pub", "--threshold", "2")
    assert "root version 2" in exported.stdout
    run("keys", "sign", "next.json", "root", "--keys", "safe", code=1, typed="n\n")
    assert "1 signatures" in run("keys", "sign", "next.json", "root", "--keys", "safe", typed="y\n").stdout
    assert "have it signed by another" in run("keys", "import", "next.json", code=2).stderr
    signed = json.loads(run("keys", "sign", "next.json", "root-2", "--keys", "stick", "--json").stdout)
    assert len(signed["signatures"]) == 2
    assert "root 2: published" in run("keys", "import", "next.json").stdout
    assert json.loads(run("verify", "--json").stdout)["good"]
    assert "no such file" in run("keys", "import", "nowhere.json", code=2).stderr.lower()


def test_the_shelf_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("init", "--model", "digits")
    repository = Repository(tmp_path / "repository", KeyRing(tmp_path / "keys"))
    assert "an empty repository" in run("verify").stdout
    for version in ("1.0", "1.1", "1.2"):
        document = make_manifest(version=version)
        for key in ("number", "files", "issued"):
            del document[key]
        repository.release(document, {"model": fake_model(version), "canary": make_canary()}, channel="beta")
    assert "digits stable: 1.2" in run("promote", "digits", "beta", "stable").stdout
    assert "1.2 is paused" in run("pause", "digits", "stable").stdout
    answer = json.loads(run("prune", "digits", "--keep", "1", "--grace-hours", "0", "--json").stdout)
    assert answer["releases"] == ["1.0", "1.1"]
    assert answer["files"]
    assert "0 unnamed files" in run("prune").stdout
    assert set(json.loads(run("renew", "--json").stdout)["renewed"]) == {"root", "targets", "channels", "models-digits"}
    assert "channels: until" in run("renew", "channels").stdout
    assert "good   digits stable: 1.2" in run("verify").stdout
    next((tmp_path / "repository" / "files").iterdir()).write_bytes(b"bad")
    assert "WRONG" in run("verify", code=1).stdout
