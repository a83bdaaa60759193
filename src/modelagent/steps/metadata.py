"""What the repository says, as far as the root of trust vouches for it: TUF metadata through one source.

This file knows TUF's client workflow (python-tuf does the checks), the device's metadata cache, and what each failed
check means. It does not know releases or channels. Refusals name the attack:

    view = View(Path("tuf"), source, root_bytes, clock())
    view.refresh()                                  # TrustError rollback-attack, freeze-attack, arbitrary-software ...
    view.target("channels/digits/stable.json")      # verified bytes, or None where no trusted role lists the name

Ours, because python-tuf's own would not survive a power cut: every file is synced before it is named, the root that
came with the configuration is always the anchor (a lost cache locks nobody out), and nothing passes through $TMPDIR.
Ours too: which clock counts (`clock.py`), and that a role known already is held against each role that delegates to
it, now. The bytes of targets come by `transfer.py`, or here where they are small.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
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
from tuf.api.metadata import Metadata, TargetFile
from tuf.api.serialization import DeserializationError

from modelagent import durable
from modelagent.core.clock import show, suspected
from modelagent.errors import AgentError, SourceError, TrustError, UsageError
from modelagent.sources import Source, captive, looks_like_page
from modelagent.steps.workflow import Clock, Door, Fixed, Workflow, issued, moment_of, parsed, read_all

log = logging.getLogger(__name__)

MAX_TARGET: Final = 256 * 1024  # bytes; the targets are manifests and channel documents, a few kB each
_CACHED_TARGETS: Final = 64
_PATH_CHARACTERS: Final = "/!$&'()*+,;=:@~"  # what a path of an address may hold as it is (RFC 3986, section 3.3)
Find = Callable[[str], bytes | None]  # sha256 -> verified bytes that the device has already


class View:
    """The repository as one source shows it, now. One refresh each.

    Args:
        directory: the metadata cache; `targets/` below it holds verified targets by content name.
        source: asked for everything.
        root_bytes: the trusted root metadata.
        clock: against which expiry is judged; a number of Unix seconds is believed as it is.
        prefix: what stands before a metadata file's name at the source.

    Raises:
        UsageError: `bad-root`; nothing was asked for.
    """

    def __init__(
        self, directory: Path, source: Source, root_bytes: bytes, clock: Clock | float, *, prefix: str = "metadata/"
    ) -> None:
        self.source = source
        self._clock = Fixed(clock) if isinstance(clock, int | float) else clock
        self._directory = directory
        self._door = Door(source)
        with durable.device_errors("the metadata cache"):
            for path in (directory, directory / "targets", directory / "root_history"):
                durable.have_directory(path)  # a check without news must not write, nor wait for the disk
        try:
            self._tuf = Workflow(directory, self._door, root_bytes, self._clock, prefix)
        except RepositoryError as error:
            raise UsageError(
                f"the root file is no valid TUF root ({error}); bring the publisher's root.json by hand",
                code="bad-root",
            ) from error

    @property
    def now(self) -> datetime:
        """The time that expiry is judged by."""
        return moment_of(self._tuf.judged.now)

    def refresh(self) -> None:
        """Fetch and check root, timestamp, snapshot and targets.

        Raises:
            TrustError: the check that failed, by attack.
            SourceError: the way failed.
            DeviceError: the cache could not be written.
        """
        with self._named():
            self._tuf.refresh()

    def refresh_top(self) -> str:
        """Fetch and check root and timestamp alone; see `refresh`.

        Returns:
            What names the state of the whole repository: while it stays the same, so does everything below.
        """
        with self._named():
            self._tuf.refresh_top()
        return self._tuf.state

    def refresh_rest(self) -> None:
        """Check the snapshot and targets, after `refresh_top`; see `refresh`."""
        with self._named():
            self._tuf.refresh_rest()

    def refresh_known(self) -> None:
        """Take the metadata that this device has verified already, as long as it has not expired; ask nobody.

        Raises:
            TrustError: it has expired, or there is none.
        """
        with self._named():
            self._tuf.refresh_known()

    def info(self, path: str) -> TargetFile | None:
        """What the trusted roles say of a target; None where none lists it."""
        with self._named():
            return self._tuf.get_targetinfo(path)

    def custom(self, path: str) -> Mapping[str, Any]:
        """The target's `custom` data: signed, and not part of its bytes."""
        info = self.info(path)
        return {} if info is None or not isinstance(info.custom, dict) else info.custom

    def target(self, path: str, find: Find | None = None) -> bytes | None:
        """The verified bytes of a target, from the device if it has them; None where no trusted role lists the path.

        Raises:
            TrustError: `tampered-file`, `wrong-length`, `endless-data`, or what a delegated role's check says.
            SourceError: the way failed.
        """
        info = self.info(path)
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
                durable.write_atomic(cache, data, durable=False)  # read by its hash: a torn one is fetched again
                self._prune()
        return data

    def _fetch_target(self, path: str, info: TargetFile, sha256: str) -> bytes:
        data = read_all(self.source, target_address(path, sha256, "targets/"), info.length, total=info.length)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise TrustError(
                f"{self.source.name}: {path}: found sha256 {found}, signed is {sha256}; nothing of it is used",
                code="tampered-file",
            )
        return data

    @property
    def consistent(self) -> bool:
        """Whether targets are named by their hash."""
        return self._tuf.consistent

    @property
    def signed_time(self) -> float:
        """The newest signed time of issue seen (Unix seconds); 0.0 where the repository signs none."""
        return max((issued(signed) for signed in self._tuf.trusted()), default=0.0)

    def lives(self) -> list[tuple[str, float, float]]:
        """Role, time of issue (0.0: unknown) and end of every signature that was checked, Unix seconds."""
        return [(signed.type, issued(signed), signed.expires.timestamp()) for signed in self._tuf.trusted()]

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
            return self._expired(where)
        if isinstance(error, UnsignedMetadataError):
            return TrustError(
                f"{where}: not signed by enough of the keys that may sign it ({error}); nothing of it is used",
                code="arbitrary-software",
            )
        if isinstance(error, DeserializationError):
            if looks_like_page(data):
                return captive(self.source.name, name)
            return SourceError(f"{where}: {error}", code="malformed")
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

    def _expired(self, where: str) -> TrustError:
        """A signature has ended, as it seems: the repository's fault, or this clock's."""
        judged = self._tuf.judged
        ended = [signed for signed in self._tuf.trusted() if signed.is_expired(self.now)]
        if not ended:
            # The role that failed was not taken on; what it says of itself is enough for a message.
            ended = [signed for signed in [parsed(self._door.last[1])] if signed is not None]
        if not ended:
            return TrustError(f"{where}: expired: a signature ended before {show(judged.now)}", code="freeze-attack")
        first = ended[0]
        what = f"the {first.type} signature ended {first.expires.isoformat()}"
        hint = getattr(self.source, "server_time", None)
        if why := suspected(judged, issued(first), first.expires.timestamp(), hint):
            return TrustError(
                f"{where}: {what}, expired by this device's clock ({show(judged.now)}), but {why}: the clock is "
                "suspected, not the repository; set it right (or set clock.trust). What runs goes on",
                code="wrong-clock",
            )
        return TrustError(
            f"{where}: expired: {what}, judged at {show(judged.now)} ({judged.reason}; the clock "
            "may still be wrong): either old metadata is served, or nobody signs any more (`modelagent repo refresh`). "
            "What runs goes on",
            code="freeze-attack",
        )


def target_address(path: str, digest: str, prefix: str) -> str:
    """Where a target's bytes are, in a repository with consistent snapshots; no digest: in one without."""
    head, slash, tail = path.rpartition("/")
    named = f"{digest}.{tail}" if digest else tail
    return prefix + quote(f"{head}{slash}{named}", safe=_PATH_CHARACTERS)


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


def _version(data: bytes) -> int | None:
    try:
        version: Any = json.loads(data)["signed"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def expiring(lives: list[tuple[str, float, float]], now: float) -> list[str]:
    """A warning for each signature with less than a quarter of its life left; `lives` as View.lives gives them."""
    return [
        f"the repository's {role} signature ends {datetime.fromtimestamp(end, UTC).isoformat()}; after that no new "
        "release can be taken: the publisher must sign again (`modelagent repo refresh`)"
        for role, begin, end in lives
        if begin and end - now < (end - begin) / 4
    ]
