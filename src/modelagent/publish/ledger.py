"""The signed metadata of one repository directory: read and verified, changed, signed, written in order.

This file knows TUF's roles, their files and the order in which they must be written. It does not know releases or
channels.

    ledger = Ledger(Path("repo"), ring, now=clock)
    with ledger.locked():
        targets = ledger.load_targets("models-digits")      # verified against the root that the key ring holds
        ...
        ledger.publish({"models-digits": targets})          # that role, then the snapshot, then the timestamp

Every publication writes files first, then metadata, then the snapshot, and the timestamp last: a device that reads
in between sees the old state whole. (TUF specification 1.0, sections 3, 4 and 6.)
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from modelagent import durable
from modelagent.errors import UsageError
from modelagent.publish.channels import instant
from modelagent.publish.keys import KeyRing

SETTINGS: Final = "publisher.json"
CHANNELS: Final = "channels"
_COMPACT: Final = JSONSerializer(compact=True)
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each role's signature is good for. A device that gets none newer stops taking *new* releases."""

    timestamp: timedelta = timedelta(days=7)
    snapshot: timedelta = timedelta(days=30)
    targets: timedelta = timedelta(days=365)
    root: timedelta = timedelta(days=365)

    def of(self, role: str) -> timedelta:
        """The lifetime of a role; delegated roles live as long as targets."""
        known = {"timestamp": self.timestamp, "snapshot": self.snapshot, "root": self.root}
        return known.get(role, self.targets)

    def dump(self) -> bytes:
        """As the repository's settings file holds them, in seconds."""
        seconds = {role: self.of(role).total_seconds() for role in ("timestamp", "snapshot", "targets", "root")}
        return (json.dumps({"schema": 1, "lifetimes": seconds}, indent=1) + "\n").encode()

    @classmethod
    def load(cls, data: bytes) -> "Lifetimes":
        """The reverse of `dump`."""
        return cls(**{role: timedelta(seconds=value) for role, value in json.loads(data)["lifetimes"].items()})


@dataclass(frozen=True, slots=True)
class Base:
    """What a publication builds on: the versions of all target roles, of the snapshot and of the timestamp."""

    meta: Mapping[str, MetaFile]
    snapshot: int
    timestamp: int


EMPTY: Final = Base({}, 0, 0)


def model_role(model: str) -> str:
    """The delegated role that signs a model's releases."""
    return f"models-{model}"


def key_of(role: str) -> str:
    """The name of the key that signs a role."""
    if role.startswith("models-"):
        return "release"
    known = {CHANNELS: "operations", "targets": "targets", "snapshot": "online", "timestamp": "online"}
    return known.get(role, role)


class Ledger:
    """The metadata under `directory`, verified against the root that the key ring holds.

    Args:
        directory: the repository.
        keys: the key ring; a method that needs a key that is not there says which.
        now: the publisher's clock.

    Raises:
        UsageError: `no-repository`; methods also `no-root`, and `untrusted` when a file is not what the keys signed.
    """

    def __init__(self, directory: Path, keys: KeyRing, *, now: Callable[[], datetime]) -> None:
        self.directory = directory
        self.keys = keys
        self.now = now
        try:
            self.lifetimes = Lifetimes.load((directory / SETTINGS).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{directory}: no repository is here; make one with `modelagent repo init`, or name its place with "
                "--repo",
                code="no-repository",
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{directory / SETTINGS}: no readable settings of a repository ({error}); restore the file from its "
                "backup",
                code="no-repository",
            ) from error

    # --- reading -----------------------------------------------------------------------------------------------

    def load_root(self) -> Metadata[Root]:
        """The root of trust, from the key directory (the repository's own copy could have been changed)."""
        try:
            root = Metadata[Root].from_bytes(self.keys.root_file.read_bytes())
            root.verify_delegate("root", root)
        except OSError as error:
            raise UsageError(
                f"{self.keys.root_file}: {error.strerror}; the key directory must hold the root.json that "
                "`modelagent repo init` put there",
                code="no-root",
            ) from error
        except (RepositoryError, ValueError) as error:
            raise UsageError(
                f"{self.keys.root_file}: no valid root ({error}); restore it from its backup", code="no-root"
            ) from error
        return root

    def load_timestamp(self) -> Metadata[Timestamp]:
        """The present timestamp."""
        return self._read("timestamp.json", Timestamp, self.load_root(), "timestamp")

    def load_snapshot(self) -> Metadata[Snapshot]:
        """The present snapshot."""
        version = self.load_timestamp().signed.snapshot_meta.version
        return self._read(f"{version}.snapshot.json", Snapshot, self.load_root(), "snapshot")

    def load_targets(self, role: str) -> Metadata[Targets]:
        """The present metadata of `targets` or of a role that it delegates to.

        Raises:
            UsageError: `unknown-model` or `untrusted`.
        """
        meta = self.load_snapshot().signed.meta.get(f"{role}.json")
        if meta is None:
            known = ", ".join(self.models()) or "none"
            raise UsageError(
                f"{role.removeprefix('models-')}: this repository knows no such model; it knows {known}. "
                "Add it with --new-model",
                code="unknown-model",
            )
        delegator: Metadata[Any] = self.load_root() if role == "targets" else self.load_targets("targets")
        return self._read(f"{meta.version}.{role}.json", Targets, delegator, role)

    def models(self) -> list[str]:
        """The models that targets delegates to."""
        roles = delegated(self.load_targets("targets").signed)
        return sorted(role.removeprefix("models-") for role in roles if role.startswith("models-"))

    def base(self) -> Base:
        """What the next publication builds on."""
        snapshot = self.load_snapshot().signed
        return Base(dict(snapshot.meta), snapshot.version, self.load_timestamp().signed.version)

    def _read(self, name: str, kind: type[S], delegator: Metadata[Any], role: str) -> Metadata[S]:
        path = self.directory / "metadata" / name
        try:
            metadata: Metadata[S] = Metadata[S].from_bytes(path.read_bytes())
            if not isinstance(metadata.signed, kind):
                raise RepositoryError(f"found {metadata.signed.type}")
            delegator.verify_delegate(role, metadata)
        except (OSError, RepositoryError, ValueError) as error:
            raise UsageError(
                f"{path}: not what the keys in {self.keys.directory} signed ({error}); nothing is signed on top "
                "of it: restore the repository from its backup",
                code="untrusted",
            ) from error
        return metadata

    # --- writing -----------------------------------------------------------------------------------------------

    def delegate(self, targets: Targets, role: str, key: str, paths: list[str]) -> None:
        """Let a role sign `paths`, and nothing after it sign them too."""
        delegated(targets)[role] = DelegatedRole(role, [], 1, terminating=True, paths=paths)
        targets.add_key(self.keys.signer(key).public_key, role)

    def store_target(self, path: str, data: bytes) -> TargetFile:
        """Write a target's bytes under their hash; no metadata names them yet."""
        entry = TargetFile.from_data(path, data, ["sha256"])
        place = self.target_file(path, entry.hashes["sha256"])
        place.parent.mkdir(parents=True, exist_ok=True)
        durable.write_atomic(place, data, mode=0o644)
        return entry

    def target_file(self, path: str, sha256: str) -> Path:
        """Where a target's bytes are."""
        place = self.directory / "targets" / path
        return place.with_name(f"{sha256}.{place.name}")

    def publish(
        self,
        changed: Mapping[str, Metadata[Targets]],
        *,
        base: Base | None = None,
        signers: Mapping[str, CryptoSigner] | None = None,
        also: Mapping[str, CryptoSigner] | None = None,
    ) -> None:
        """Sign what changed, then the snapshot, then the timestamp, in the order that readers need.

        Args:
            changed: target roles with their new content.
            base: what to build on; by default what is published.
            signers: role -> another key than the role's own.
            also: name of a key -> its successor, which signs beside it while both roots are in use.

        Raises:
            UsageError: `no-key`, `wrong-key`; nothing was written.
        """
        base = base or self.base()
        signers, also = signers or {}, also or {}
        hands = {
            role: [signers[role]] if role in signers else self._hands(key_of(role), also)
            for role in (*changed, "snapshot")
        }
        delegators: dict[str, Metadata[Any]] = {"targets": self.load_root()}
        meta = dict(base.meta)
        for role, metadata in changed.items():
            before = meta.get(f"{role}.json")
            self.stamp(metadata, role, 1 if before is None else before.version + 1)
            if role not in signers:
                if role != "targets" and not delegators.get(role):
                    delegators[role] = changed.get("targets") or self.load_targets("targets")
                self.check_hands(role, hands[role], delegators[role])
        self.check_hands("snapshot", hands["snapshot"], delegators["targets"])
        for role, metadata in changed.items():
            data = self.write(f"{metadata.signed.version}.{role}.json", metadata, hands[role])
            meta[f"{role}.json"] = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
        snapshot = Metadata(Snapshot(meta=meta))
        self.stamp(snapshot, "snapshot", base.snapshot + 1)
        data = self.write(f"{base.snapshot + 1}.snapshot.json", snapshot, hands["snapshot"])
        self.publish_timestamp(
            MetaFile.from_data(base.snapshot + 1, data, ["sha256"]), base.timestamp + 1, hands["snapshot"]
        )

    def publish_timestamp(self, snapshot: MetaFile, version: int, hands: Sequence[CryptoSigner] | None = None) -> None:
        """Sign and write the timestamp: from here on readers see the snapshot."""
        timestamp = Metadata(Timestamp(snapshot_meta=snapshot))
        self.stamp(timestamp, "timestamp", version)
        if hands is None:
            hands = self._hands("online", {})
            self.check_hands("timestamp", hands, self.load_root())
        self.write("timestamp.json", timestamp, hands)

    def _hands(self, key: str, also: Mapping[str, CryptoSigner]) -> list[CryptoSigner]:
        return [self.keys.signer(key), *([also[key]] if key in also else [])]

    def check_hands(self, role: str, hands: Sequence[CryptoSigner], delegator: Metadata[Any]) -> None:
        """Refuse a key that no longer counts: what it signed no device would take, and nothing could follow on it."""
        wanted = delegator.signed.get_delegated_role(role)
        counting = {signer.public_key.keyid for signer in hands} & set(wanted.keyids)
        if len(counting) < wanted.threshold:
            key = key_of(role)
            raise UsageError(
                f"{self.keys.path(key)}: {len(counting)} of {wanted.threshold} keys that {role} is signed with; this "
                f"{key} key was replaced, or is another repository's: bring the present one (targets that several "
                "must sign: `modelagent repo keys export targets`)",
                code="wrong-key",
            )

    def stamp(self, metadata: Metadata[Any], role: str, version: int) -> None:
        """Set version, expiry and time of issue."""
        now = self.now().astimezone(UTC).replace(microsecond=0)
        metadata.signed.version = version
        metadata.signed.expires = now + self.lifetimes.of(role)
        # `issued` is ours (the specification lets unknown fields be): a signed time from which a device without a
        # clock of its own can tell that time has passed, and from which it knows how much of a life is left.
        metadata.signed.unrecognized_fields["issued"] = instant(now)

    def write(self, name: str, metadata: Metadata[Any], signers: Sequence[CryptoSigner]) -> bytes:
        """Sign and write one file; the bytes as written."""
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes(_COMPACT)
        durable.write_atomic(self.directory / "metadata" / name, data, mode=0o644)
        return data

    def write_root(self, root: Metadata[Root], signers: Sequence[CryptoSigner]) -> None:
        """Sign and write a root, for devices and for the publisher."""
        data = self.write(f"{root.signed.version}.root.json", root, signers)
        durable.write_atomic(self.directory / "metadata" / "root.json", data, mode=0o644)
        durable.write_atomic(self.keys.root_file, data, mode=0o644)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep two publishers apart; the kernel drops the lock with the process."""
        fd = os.open(self.directory / ".publisher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{self.directory}: another publisher is at work; wait for it and run the command again",
                    code="locked",
                ) from error
            with readable():
                if self.keys.root_file.exists():
                    self._catch_up()
                yield
        finally:
            os.close(fd)

    def _catch_up(self) -> None:
        """Finish what a publisher that died while it replaced a key left: a root that readers see, a key that counts.

        A root is taken as devices take it: signed by the threshold of the present one and of itself.
        """
        while True:
            present = self.load_root()
            place = self.directory / "metadata" / f"{present.signed.version + 1}.root.json"
            if not place.exists():
                break
            try:
                data = place.read_bytes()
                following = Metadata[Root].from_bytes(data)
                present.verify_delegate("root", following)
                following.verify_delegate("root", following)
            except (RepositoryError, ValueError) as error:
                raise UsageError(
                    f"{place}: not what the root keys signed ({error}); restore the repository from its backup",
                    code="untrusted",
                ) from error
            durable.write_atomic(self.directory / "metadata" / "root.json", data, mode=0o644)
            durable.write_atomic(self.keys.root_file, data, mode=0o644)
        for name in self.keys.successors():
            keyid = self.keys.successor(name).public_key.keyid
            targets = self.load_targets("targets").signed
            if any(keyid in role.keyids for role in (*present.signed.roles.values(), *delegated(targets).values())):
                self.keys.succeed(name, present.signed.version)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Let new files be everybody's to read, whatever the umask; keys have a mode of their own.

    A CI job that keeps its keys to itself (`umask 077`) would otherwise upload metadata that no web server may open.
    """
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def delegated(targets: Targets) -> dict[str, DelegatedRole]:
    """The delegated roles by name, open to change."""
    assert targets.delegations is not None, "init always delegates"  # noqa: S101
    assert targets.delegations.roles is not None, "init makes no succinct roles"  # noqa: S101
    return targets.delegations.roles
