"""A TUF repository in memory behind a plain HTTP/1.0 server, for driving `modelagent-tuf-client` from outside.

It signs whatever it is told to, right or wrong: roles, keys, thresholds, delegations of any shape, versions, expiry. It
serves consistent snapshots as a static server would (`N.role.json`, role names percent-encoded with no safe
character, artifacts behind their hash), answers GET alone, knows no ranges, and writes down every request.

    repository = TufRepository()
    repository.add_target("file", b"content")
    repository.publish("targets", "snapshot", "timestamp")      # next version of each, signed, visible
    with serving(repository, "a test[1]") as site:
        client(site, "refresh")                                  # site.metadata_url, site.targets_url
    repository.requests                                          # [("root", 2), ("timestamp", None), ...]
"""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

TOP = ("root", "timestamp", "snapshot", "targets")
Key = tuple[str, int | None]


def in_days(days: float) -> datetime:
    """A moment from now, as metadata writes it."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class TufRepository:
    """The repository; `roles` holds what will be published next, `published` what clients see."""

    def __init__(self) -> None:
        self.roles: dict[str, Any] = {
            "root": Root(expires=in_days(30), consistent_snapshot=True),
            "timestamp": Timestamp(expires=in_days(30)),
            "snapshot": Snapshot(expires=in_days(30)),
            "targets": Targets(expires=in_days(30)),
        }
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.published: dict[Key, bytes] = {}
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[Key] = []
        self.artifact_requests: list[str] = []
        self.hashes = False  # whether metadata names lower metadata by hash and length
        self._born: set[str] = set()
        for role in TOP:
            self.add_key(role)
        self.publish("targets", "snapshot", "timestamp", "root")

    def add_key(self, role: str, delegator: str = "root", signer: CryptoSigner | None = None) -> CryptoSigner:
        """Let a key sign a role, and sign the role with it from now on."""
        signer = signer or CryptoSigner.generate_ed25519()
        self.roles[delegator].add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def replace_keys(self, role: str, delegator: str = "root", count: int = 1) -> None:
        """Take every key of a role away and give it new ones."""
        for signer in self.signers.pop(role):
            self.roles[delegator].revoke_key(signer.public_key.keyid, role)
        for _ in range(count):
            self.add_key(role, delegator)

    def delegate(
        self, delegator: str, role: str, paths: list[str], *, terminating: bool = False, shared: bool = False
    ) -> None:
        """Delegate; a new role comes into being. `shared`: another role has made it already, and its key signs."""
        targets = self.roles[delegator]
        if targets.delegations is None:
            targets.delegations = Delegations({}, {})
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, paths)
        if shared:
            targets.add_key(self.signers[role][0].public_key, role)
            return
        self.add_key(role, delegator)
        self.roles[role] = Targets(expires=in_days(30))

    def add_target(self, path: str, content: bytes, role: str = "targets", algorithms: tuple[str, ...] = ()) -> None:
        """Sign an artifact; visible once the role is published."""
        entry = TargetFile.from_data(path, content, list(algorithms) or ["sha256"])
        self.roles[role].targets[path] = entry
        head, slash, tail = path.rpartition("/")
        for digest in entry.hashes.values():
            self.artifacts[f"{head}{slash}{digest}.{tail}"] = content

    def publish(self, *roles: str) -> None:
        """Raise the version of each role (not at its first time), sign it, and let clients see it."""
        for role in roles:
            if role in self._born:
                self.roles[role].version += 1
            self._born.add(role)
            self.sign(role)

    def all(self) -> None:
        """Publish every delegated role, targets, snapshot and timestamp."""
        self.publish(*(role for role in self.roles if role not in TOP), "targets", "snapshot", "timestamp")

    def sign(self, role: str, signers: list[CryptoSigner] | None = None) -> bytes:
        """Sign a role as it is, and let clients see it under its version."""
        signed = self.roles[role]
        metadata: Metadata[Any] = Metadata(signed)
        for signer in self.signers[role] if signers is None else signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes(JSONSerializer())
        self.published[role, None if role == "timestamp" else signed.version] = data
        kinds = ["sha256"] if self.hashes else None
        meta = MetaFile.from_data(signed.version, data, kinds) if kinds else MetaFile(signed.version)
        if role == "snapshot":
            self.roles["timestamp"].snapshot_meta = meta
        elif role not in {"root", "timestamp"}:
            self.roles["snapshot"].meta[f"{role}.json"] = meta
        return data

    def fetch(self, path: str) -> bytes | None:
        """Answer one request, by the address below the test's own part."""
        kind, _, name = path.partition("/")
        if kind == "metadata":
            stem = name.removesuffix(".json")
            number, dot, rest = stem.partition(".")
            key: Key = (unquote(rest), int(number)) if dot and number.isdigit() else (unquote(stem), None)
            # A slash or any other character that could mean something else has to come encoded.
            self.requests.append(key if quote(key[0], safe="") in name else (f"unquoted {name}", None))
            return self.published.get(key)
        self.artifact_requests.append(name)
        return self.artifacts.get(unquote(name))


@dataclass
class Site:
    """Where a repository is served."""

    metadata_url: str
    targets_url: str
    methods: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(repository: TufRepository, test: str) -> Iterator[Site]:
    """Serve a repository under the encoded name of a test."""
    site = Site("", "")
    base = f"/{quote(test, safe='')}/"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.methods.append(self.command)
            data = repository.fetch(self.path.removeprefix(base)) if self.path.startswith(base) else None
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_HEAD(self) -> None:
            site.methods.append(self.command)
            self.send_error(501)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.metadata_url = f"http://127.0.0.1:{server.server_address[1]}{base}metadata/"
    site.targets_url = f"http://127.0.0.1:{server.server_address[1]}{base}targets/"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def digest_of(content: bytes, kind: str = "sha256") -> str:
    """The hash that an artifact is named by."""
    return hashlib.new(kind, content).hexdigest()
