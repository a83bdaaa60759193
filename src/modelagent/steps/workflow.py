"""TUF's client workflow as this device runs it: python-tuf's checks, our clock, our transfer, our disk.

This file knows the order of TUF's steps (specification 1.0, section 5) and the metadata cache. It does not know what a
failed check means to a device (`metadata.py` does), nor what targets are.

    workflow = Workflow(Path("tuf"), Door(source), root_bytes, Fixed(now), "metadata/")
    workflow.refresh()                      # python-tuf's exceptions, or what the source raises
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, cast
from urllib.parse import quote

from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from modelagent import durable
from modelagent.core.clock import Judged
from modelagent.errors import SourceError, TrustError
from modelagent.sources import Source, bounded

_LONG_NAME: Final = 200  # characters of a file name, with room for what a writer adds
_ROOT_NAME: Final = re.compile(r"\d+\.root\.json")
LONGEST: Final = 16 * 1024 * 1024  # bytes of any metadata; whoever holds the online keys may state any length
_MEMORY: Final = (Timestamp.type, Snapshot.type)
_LAST_MOMENT: Final = 253402300799.0  # the year 9999; a clock can say anything


class Clock(Protocol):
    """Which time counts; see `FloorClock`."""

    def judge(self, root: Root | None) -> Judged:
        """What time counts now."""

    def learn(self, root: Root, *, online: float, offline: float) -> None:
        """Remember verified signed times of issue."""


class Fixed:
    """A clock that says one time and is believed."""

    def __init__(self, now: float) -> None:
        self._judged = Judged(now, True, "as given", synchronised=True)

    def judge(self, root: Root | None) -> Judged:
        """The time it was given."""
        del root
        return self._judged

    def learn(self, root: Root, *, online: float, offline: float) -> None:
        """Nothing to learn."""


class Workflow(Updater):
    """python-tuf's client with our clock, our transfer and our disk.

    It reaches into names that python-tuf calls private (tests hold each of them): the library offers no other seam
    for a clock or for durable writes.
    """

    def __init__(self, directory: Path, door: "Door", root_bytes: bytes, clock: Clock, prefix: str) -> None:
        self._clock = clock
        self._prefix = prefix
        self._offline = False
        self._loaded: dict[str, bytes] = {}  # role -> its bytes, as one delegator vouched for them
        self._fetched: set[str] = set()
        self._vouched: set[tuple[str, str]] = set()  # delegator, role
        super().__init__(str(directory), prefix, fetcher=door, bootstrap=root_bytes)
        self._judge()

    def trusted(self) -> list[Signed]:
        """Everything that was verified so far."""
        return list(self._trusted_set)

    @property
    def consistent(self) -> bool:
        """Whether file names carry versions and hashes."""
        return bool(self._trusted_set.root.consistent_snapshot)

    @property
    def state(self) -> str:
        """Names everything below the timestamp."""
        meta: MetaFile = self._trusted_set.timestamp.snapshot_meta
        hashes = ",".join(f"{kind}:{value}" for kind, value in sorted((meta.hashes or {}).items()))
        return f"{self._trusted_set.root.version} {meta.version} {hashes}" if hashes else ""

    def refresh_top(self) -> None:
        """Root and timestamp."""
        self._load_root()
        self._load_timestamp()

    def refresh_rest(self) -> None:
        """Snapshot and targets."""
        self._load_snapshot()
        self._load_targets(Targets.type, Root.type)

    def refresh_known(self) -> None:
        """Everything from the cache; nobody is asked for root or timestamp."""
        self._offline = True
        self.refresh_top()
        self.refresh_rest()

    def _judge(self) -> None:
        self.judged = self._clock.judge(self._trusted_set.root)
        self._trusted_set.reference_time = moment_of(self.judged.now)

    def _load_root(self) -> None:
        super()._load_root()
        self._judge()  # a new root may have replaced keys that signed a time
        root = self._trusted_set.root
        if root.is_expired(self._trusted_set.reference_time):  # before anybody is asked for more (5.3.10)
            raise ExpiredMetadataError("Final root.json is expired")

    def _load_timestamp(self) -> None:
        if self._offline:
            try:
                self._trusted_set.update_timestamp(self._load_local_metadata(Timestamp.type))
            except OSError as error:
                raise RepositoryError("this device has no timestamp yet") from error
        else:
            super()._load_timestamp()
        root, timestamp = self._trusted_set.root, self._trusted_set.timestamp
        self._clock.learn(root, online=issued(timestamp), offline=issued(root))
        self._judge()
        if timestamp.is_expired(self._trusted_set.reference_time):
            raise ExpiredMetadataError("timestamp.json is expired")

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        """The metadata of a role, held against *this* delegator, also when another vouched for it before."""
        if (parent_role, role) in self._vouched:
            return cast("Targets", self._trusted_set[role])
        data = self._loaded.get(role)
        if data is None:
            with contextlib.suppress(OSError):
                data = self._load_local_metadata(role)
        if data is not None:
            try:
                return self._vouch(role, parent_role, data)
            except RepositoryError:
                if role in self._fetched:  # these are the repository's own bytes of today: there are no better ones
                    raise
        meta = self._trusted_set.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise RepositoryError(f"Role {role} was delegated but is not part of snapshot")
        version = meta.version if self.consistent else None
        data = self._download_metadata(role, meta.length or self.config.targets_max_length, version)
        self._fetched.add(role)
        targets = self._vouch(role, parent_role, data)
        self._persist_metadata(role, data)
        return targets

    def _vouch(self, role: str, parent_role: str, data: bytes) -> Targets:
        targets = self._trusted_set.update_delegated_targets(data, role, parent_role)
        self._loaded[role] = data
        self._vouched.add((parent_role, role))
        return targets

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        if self._offline and rolename in {Root.type, Timestamp.type}:
            raise DownloadHTTPError("nobody is asked", 404)
        name = quote(rolename, safe="")
        stated = f"{name}.json" if version is None else f"{version}.{name}.json"
        return self._fetcher.download_bytes(f"{self._prefix}{stated}", min(length, LONGEST))

    def _local(self, rolename: str) -> Path:
        """Where a role is kept. Encoded, so that no name leads elsewhere; hashed where it is too long for a file."""
        name = quote(rolename, safe="").replace(".", "%2E") if rolename.startswith(".") else quote(rolename, safe="")
        if len(name) > _LONG_NAME:
            name = hashlib.sha256(rolename.encode()).hexdigest()
        return Path(self._dir) / f"{name}.json"

    def _load_local_metadata(self, rolename: str) -> bytes:
        return self._local(rolename).read_bytes()

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        # Root, timestamp and snapshot remember what may not come again, and must survive a power cut. Everything else
        # is held against the snapshot each time it is read: what a cut tears is fetched again.
        if rolename in _MEMORY:
            self._persist_file(str(self._local(rolename)), data)
        else:
            durable.write_atomic(self._local(rolename), data, durable=False)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not _holds(path, data):  # the root is persisted at every start: spare the flash
            durable.write_atomic(path, data)

    def _update_root_symlink(self) -> None:
        # Not a link: python-tuf removes and then makes it, and a power cut in between would leave none.
        version = self._trusted_set.root.version
        history = Path(self._dir) / "root_history" / f"{version}.root.json"
        self._persist_file(str(Path(self._dir) / "root.json"), history.read_bytes())


class Door(FetcherInterface):
    """The way python-tuf fetches: through a source, into memory, within the limit. Remembers the last answer."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.last: tuple[str, bytes] = ("", b"")

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(f"{url}: only metadata comes this way")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """One metadata file."""
        self.last = (url, b"")
        try:
            data = read_all(self._source, url, max_length)
        except SourceError as error:
            if error.code == "not-found" and _ROOT_NAME.fullmatch(url.rpartition("/")[2]):
                raise DownloadHTTPError(error.message, 404) from error  # the usual end of the search for a new root
            raise
        self.last = (url, data)
        return data


def read_all(source: Source, name: str, limit: int, *, total: int | None = None) -> bytes:
    """All bytes of a small file, never more than `limit`; `total`: exactly that many.

    Raises:
        TrustError: `endless-data`, or `wrong-length` when the source states or sends another total.
        SourceError: as the source says; `cut` when less came than it stated.
    """
    with source.fetch(name, limit=limit) as body:
        if total is not None and body.total is not None and body.total != total:
            raise wrong_length(source, name, body.total, total)
        data = b"".join(bounded(body, source=source.name, name=name, room=limit, limit=limit))
        if body.total is not None and len(data) != body.total:
            raise SourceError(f"{source.name}: {name}: cut after {len(data)} bytes of {body.total}", code="cut")
    if total is not None and len(data) != total:
        raise wrong_length(source, name, len(data), total)
    return data


def wrong_length(source: Source, name: str, found: int, signed: int) -> TrustError:
    """The source has another length than the signed one."""
    return TrustError(
        f"{source.name}: {name}: found {found} bytes, signed are {signed}; nothing of it is used", code="wrong-length"
    )


def issued(signed: Signed) -> float:
    """The signed time of issue, Unix seconds; 0.0 where there is none that can be."""
    text = signed.unrecognized_fields.get("issued")
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return 0.0
    if moment is None or moment.tzinfo is None or moment > signed.expires:
        return 0.0
    return moment.timestamp()


def _holds(path: Path, data: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == data
    except OSError:
        return False


def moment_of(seconds: float) -> datetime:
    """Unix seconds as a time, whatever a broken clock may say."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST_MOMENT), UTC)


def parsed(data: bytes) -> Signed | None:
    """What metadata says of itself, unverified; None where it is none."""
    try:
        return Metadata.from_bytes(data).signed
    except (RepositoryError, ValueError):
        return None
