"""What the repository says, as far as the root of trust vouches for it: TUF metadata through one source.

This file knows TUF's client workflow (python-tuf does the checks), the device's metadata cache, and what each failed
check means. It does not know releases or channels. Refusals name the attack:

    view = View(Path("tuf"), source, root_bytes, clock())
    view.refresh()                                  # TrustError rollback-attack, freeze-attack, arbitrary-software ...
    view.target("channels/digits/stable.json")      # verified bytes, or None where no trusted role lists the name

Ours, because python-tuf's own would not survive a power cut: every file is synced before it is named, the root that
came with the configuration is always the anchor (a lost cache locks nobody out), and nothing passes through $TMPDIR.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Signed, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater

from modelagent import durable
from modelagent.errors import AgentError, SourceError, TrustError, UsageError
from modelagent.sources import Source, bounded

log = logging.getLogger(__name__)

MAX_TARGET: Final = 256 * 1024  # bytes; the targets are manifests and channel documents, a few kB each
_CACHED_TARGETS: Final = 64
Find = Callable[[str], bytes | None]  # sha256 -> verified bytes that the device has already


class View:
    """The repository as one source shows it, now. One refresh each.

    Args:
        directory: the metadata cache; `targets/` below it holds verified targets by content name.
        source: asked for everything.
        root_bytes: the trusted root metadata.
        now: Unix seconds, against which expiry is judged, the same for the whole view.

    Raises:
        UsageError: `bad-root`; nothing was asked for.
    """

    def __init__(self, directory: Path, source: Source, root_bytes: bytes, now: float) -> None:
        self.source = source
        self.now = datetime.fromtimestamp(now, UTC)
        self._directory = directory
        self._door = _Door(source)
        with durable.device_errors("the metadata cache"):
            durable.make_directory(directory)
            durable.make_directory(directory / "targets")
        try:
            self._tuf = _Workflow(directory, self._door, root_bytes, self.now)
        except RepositoryError as error:
            raise UsageError(
                f"the root file is no valid TUF root ({error}); bring the publisher's root.json by hand",
                code="bad-root",
            ) from error

    def refresh(self) -> None:
        """Fetch and check root, timestamp, snapshot and targets.

        Raises:
            TrustError: the check that failed, by attack.
            SourceError: the way failed.
            DeviceError: the cache could not be written.
        """
        with self._named():
            self._tuf.refresh()

    def target(self, path: str, find: Find | None = None) -> bytes | None:
        """The verified bytes of a target, from the device if it has them; None where no trusted role lists the path.

        Raises:
            TrustError: `tampered-file`, `wrong-length`, `endless-data`, or what a delegated role's check says.
            SourceError: the way failed.
        """
        with self._named():
            info = self._tuf.get_targetinfo(path)
        if info is None:
            return None
        sha256 = info.hashes.get("sha256")
        if sha256 is None or info.length > MAX_TARGET:
            raise TrustError(
                f"{path}: found {info.length} bytes and hashes {', '.join(info.hashes)}, allowed are at most "
                f"{MAX_TARGET} bytes with a sha256; the release must be published again",
                code="malformed",
            )
        cache = self._directory / "targets" / sha256
        data = (find(sha256) if find else None) or read_verified(cache, sha256)
        if data is None:
            data = self._fetch_target(path, info, sha256)
            with durable.device_errors(f"the cache of {path}"):
                durable.write_atomic(cache, data)
                self._prune()
        return data

    def _fetch_target(self, path: str, info: TargetFile, sha256: str) -> bytes:
        head, _, tail = path.rpartition("/")
        name = "/".join(quote(part, safe="") for part in ("targets", *head.split("/"), f"{sha256}.{tail}"))
        data = read_all(self.source, name, info.length, total=info.length)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise TrustError(
                f"{self.source.name}: {path}: found sha256 {found}, signed is {sha256}; nothing of it is used",
                code="tampered-file",
            )
        return data

    @property
    def signed_time(self) -> float:
        """The newest signed time of issue seen (Unix seconds); 0.0 where the repository signs none."""
        return max((_issued(signed) for signed in self._tuf.trusted()), default=0.0)

    def expiring(self) -> list[str]:
        """A warning for each signature with less than a quarter of its life left."""
        notes = []
        for signed in self._tuf.trusted():
            issued = _issued(signed)
            end = signed.expires.timestamp()
            if issued and end - self.now.timestamp() < (end - issued) / 4:
                notes.append(
                    f"the repository's {signed.type} signature ends {signed.expires.isoformat()}; after that no new "
                    "release can be taken: the publisher must sign again (`modelagent repo refresh`)"
                )
        return notes

    def _prune(self) -> None:
        cached = sorted((self._directory / "targets").iterdir(), key=lambda path: path.lstat().st_mtime_ns)
        for path in cached[:-_CACHED_TARGETS]:
            durable.unlink(path)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Give what python-tuf raises its name."""
        try:
            yield
        except AgentError:
            raise
        except DownloadHTTPError as error:
            raise SourceError(f"{self.source.name}: {error}", code="not-found") from error
        except DownloadError as error:
            raise SourceError(f"{self.source.name}: {error}", code="unreachable") from error
        except RepositoryError as error:
            raise self._explain(error) from error
        except OSError as error:
            with durable.device_errors("the metadata cache"):
                raise error from None

    def _explain(self, error: RepositoryError) -> AgentError:
        name, data = self._door.last
        where = f"{self.source.name}: {name}"
        served = _version(data)
        number = name.rpartition("/")[2].partition(".")[0]
        expected = int(number) if number.isdigit() else None
        if isinstance(error, ExpiredMetadataError):
            return TrustError(self._expiry(where), code="freeze-attack")
        if isinstance(error, UnsignedMetadataError):
            return TrustError(
                f"{where}: not signed by enough of the keys that may sign it ({error}); nothing of it is used",
                code="arbitrary-software",
            )
        if isinstance(error, DeserializationError):
            page = data.lstrip()[:1] == b"<"
            return SourceError(
                f"{where}: " + ("a web page came instead of metadata; log in to the network" if page else f"{error}"),
                code="captive-portal" if page else "malformed",
            )
        code = "rollback-attack"
        if isinstance(error, LengthOrHashMismatchError) and (served is None or served == expected):
            code = "wrong-length" if "length" in str(error) else "tampered-file"
        elif served is not None and expected is not None and served > expected:
            code = "mix-and-match"
        elif not isinstance(error, BadVersionNumberError | LengthOrHashMismatchError):
            code = "rollback-attack" if "missing info" in str(error) else "mix-and-match"
        return TrustError(
            f"{where}: {error} (version found {served}, expected {expected or 'not older than the last one'}); "
            "nothing of it is used",
            code=code,
        )

    def _expiry(self, where: str) -> str:
        ended = [signed for signed in self._tuf.trusted() if signed.is_expired(self.now)]
        what = f"the {ended[0].type} signature ended {ended[0].expires.isoformat()}" if ended else "a signature ended"
        return (
            f"{where}: {what} and this device's clock says {self.now.isoformat()}: either old metadata is served, "
            "or nobody signs any more (`modelagent repo refresh`), or this clock is wrong. What runs goes on"
        )


class _Workflow(Updater):
    """python-tuf's client with our clock, our transfer and our disk.

    It reaches into names that python-tuf calls private (tests hold each of them): the library offers no other seam
    for a clock or for durable writes.
    """

    def __init__(self, directory: Path, door: "_Door", root_bytes: bytes, now: datetime) -> None:
        super().__init__(str(directory), "metadata/", fetcher=door, bootstrap=root_bytes)
        self._trusted_set.reference_time = now

    def trusted(self) -> list[Signed]:
        """Everything that was verified so far."""
        return list(self._trusted_set)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not _holds(path, data):  # the root is persisted at every start: spare the flash
            durable.write_atomic(path, data)

    def _update_root_symlink(self) -> None:
        # Not a link: python-tuf removes and then makes it, and a power cut in between would leave none.
        version = self._trusted_set.root.version
        history = Path(self._dir) / "root_history" / f"{version}.root.json"
        self._persist_file(str(Path(self._dir) / "root.json"), history.read_bytes())


class _Door(FetcherInterface):
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
            if error.code == "not-found" and url.endswith(".root.json"):
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


def read_verified(path: Path, sha256: str, limit: int = MAX_TARGET) -> bytes | None:
    """The bytes of a small file if it is a plain file with this hash."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def sweep(directory: Path) -> list[str]:
    """Drop cached metadata that cannot be read (a power cut, failing flash); it is fetched again. Says what it did.

    Readable metadata is kept whatever it says: it is the memory that protects against old metadata.
    """
    notes = []
    for path in (*directory.glob("*"), *directory.glob("root_history/*")):
        known = path.name in {"targets", "root_history"} and durable.is_directory(path)
        if known or (path.suffix == ".json" and _readable(path)):
            continue
        with durable.device_errors("the metadata cache"):
            durable.remove_tree(path)
        if not path.name.endswith(".tmp"):  # what a cut write leaves is nobody's news
            notes.append(f"the cached metadata {path.name} was damaged: dropped, and fetched again")
    for note in notes:
        log.warning("%s", note)
    return notes


def _readable(path: Path) -> bool:
    try:
        if path.is_symlink() or not path.is_file():
            return False
        Metadata.from_bytes(path.read_bytes())
    except (OSError, RepositoryError, ValueError):
        return False
    return True


def _holds(path: Path, data: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == data
    except OSError:
        return False


def _version(data: bytes) -> int | None:
    try:
        version: Any = json.loads(data)["signed"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def _issued(signed: Signed) -> float:
    text = signed.unrecognized_fields.get("issued")
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return 0.0
    return 0.0 if moment is None or moment.tzinfo is None else moment.timestamp()
