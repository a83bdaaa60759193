"""Signing in steps, on several machines: export what to sign, sign it there, import the signatures.

This file knows how root and targets metadata of the next version come about when their keys are not here. It does not
know releases: the keys that sign those are online enough to be asked.

    data = propose(ledger, "root", threshold=2, add=[pem])      # on the server: the next root, unsigned
    data = sign(data, ring.signer("root-2"))                    # on each key holder's machine; adds a signature
    accept(ledger, [data, ...])                                 # on the server: merges, checks thresholds, publishes

A new root needs the threshold of the old root and of the new one (TUF specification 1.0, section 5.3.4). Files that say
the same and carry different signatures are merged, so the holders need not wait for each other.
"""

from collections.abc import Sequence
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Targets
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from modelagent import durable
from modelagent.errors import UsageError
from modelagent.publish.ledger import Base, Ledger

ROLES: Final = ("root", "targets")
_READABLE: Final = JSONSerializer(compact=False)
_COMPACT: Final = JSONSerializer(compact=True)


def public_key(signer: CryptoSigner) -> bytes:
    """The public half of a key, as PEM: what its holder sends to whoever proposes a root."""
    # Ed25519 keys stand in metadata as bare hex.
    raw = bytes.fromhex(str(signer.public_key.to_dict()["keyval"]["public"]))
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def propose(
    ledger: Ledger,
    role: str,
    *,
    add: Sequence[bytes] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    of: str = "root",
) -> bytes:
    """The next version of root or targets, unsigned.

    Args:
        ledger: the repository as it is.
        role: `root` or `targets`.
        add: public keys (PEM) that shall sign `of` from now on; root alone says so.
        remove: key ids (or their first characters) that shall not any more.
        threshold: how many of the keys of `of` must sign.
        of: the role whose keys change: `root` or `targets`.

    Raises:
        UsageError: `role`, `bad-key`, `threshold`.
    """
    if role not in ROLES or of not in ROLES:
        raise UsageError(f"role {role!r} of {of!r}: allowed are {', '.join(ROLES)}", code="role")
    if role == "targets":
        if add or remove or threshold is not None:
            raise UsageError("keys change in root: export root, with --of targets", code="role")
        targets = ledger.load_targets("targets")
        targets.signatures.clear()
        ledger.stamp(targets, "targets", targets.signed.version + 1)
        return targets.to_bytes(_READABLE)
    root = ledger.load_root()
    root.signatures.clear()
    for pem in add:
        root.signed.add_key(_read_public(pem), of)
    for start in remove:
        fitting = [keyid for keyid in root.signed.roles[of].keyids if keyid.startswith(start)]
        if len(fitting) != 1:
            held = ", ".join(keyid[:12] for keyid in root.signed.roles[of].keyids)
            raise UsageError(f"key {start!r}: {len(fitting)} keys of {of} begin so; there are {held}", code="bad-key")
        root.signed.revoke_key(fitting[0], of)
    if threshold is not None:
        root.signed.roles[of].threshold = threshold
    if not 1 <= root.signed.roles[of].threshold <= len(root.signed.roles[of].keyids):
        raise UsageError(
            f"threshold {root.signed.roles[of].threshold} of {len(root.signed.roles[of].keyids)} {of} keys: allowed is "
            "1 to the number of keys",
            code="threshold",
        )
    ledger.stamp(root, "root", root.signed.version + 1)
    return root.to_bytes(_READABLE)


def describe(data: bytes) -> dict[str, Any]:
    """What would be signed, for the eyes of a key holder: never sign what was not read."""
    metadata = _read(data)
    told: dict[str, Any] = {
        "role": metadata.signed.type,
        "version": metadata.signed.version,
        "expires": metadata.signed.expires.isoformat(),
        "signatures": sorted(keyid[:12] for keyid in metadata.signatures),
    }
    if isinstance(metadata.signed, Root):
        told["keys"] = {
            name: {"threshold": role.threshold, "keys": sorted(keyid[:12] for keyid in role.keyids)}
            for name, role in sorted(metadata.signed.roles.items())
        }
    if isinstance(metadata.signed, Targets) and metadata.signed.delegations is not None:
        told["delegations"] = {
            name: list(role.paths or []) for name, role in sorted((metadata.signed.delegations.roles or {}).items())
        }
    return told


def sign(data: bytes, signer: CryptoSigner) -> bytes:
    """Add a signature; needs neither the repository nor the other signatures.

    Raises:
        UsageError: `bad-proposal`.
    """
    metadata = _read(data)
    metadata.sign(signer, append=True)
    return metadata.to_bytes(_READABLE)


def accept(ledger: Ledger, proposals: Sequence[bytes]) -> list[str]:
    """Merge signatures, check them as a device would, and publish.

    Args:
        ledger: the repository; its lock is held by the caller.
        proposals: signed copies of one root, of one targets, or of both. A root that changes the keys of targets
            needs the targets signed by both in the same step: readers must be able to use either root meanwhile.

    Returns:
        The roles that were published, with their versions.

    Raises:
        UsageError: `bad-proposal`, `version`, or `signatures`, which says how many are missing. Nothing was changed.
    """
    merged = _merge(proposals)
    old = ledger.load_root()
    root = merged.get("root")
    targets = merged.get("targets")
    if root is not None:
        _check_version("root", root, old.signed.version)
        _verify("root", old, root, "the present root keys")
        _verify("root", root, root, "the new root keys")
        for role in ("snapshot", "timestamp"):
            if root.signed.roles[role].keyids != old.signed.roles[role].keyids:
                raise UsageError(f"root: it changes the keys of {role}; use `keys rotate online`", code="bad-proposal")
    present = targets if targets is not None else ledger.load_targets("targets")
    if targets is not None:
        _check_version("targets", targets, ledger.load_targets("targets").signed.version)
        _verify("targets", old, targets, "the present targets keys")
    if root is not None:
        _verify("targets", root, present, "the new targets keys (export and sign targets too, and import both)")
    told = []
    if targets is not None:
        _publish_targets(ledger, targets)
        told.append(f"targets {targets.signed.version}")
    if root is not None:
        _publish_root(ledger, root)
        told.append(f"root {root.signed.version}")
    return told


def _publish_targets(ledger: Ledger, targets: Metadata[Any]) -> None:
    ledger.keys.signer("online")  # refuses before anything is written
    base = ledger.base()
    data = targets.to_bytes(_COMPACT)
    version = targets.signed.version
    durable.write_atomic(ledger.directory / "metadata" / f"{version}.targets.json", data, mode=0o644)
    meta = {**base.meta, "targets.json": MetaFile.from_data(version, data, ["sha256"])}
    ledger.publish({}, base=Base(meta, base.snapshot, base.timestamp))


def _publish_root(ledger: Ledger, root: Metadata[Any]) -> None:
    data = root.to_bytes(_COMPACT)
    for place in (f"{root.signed.version}.root.json", "root.json"):
        durable.write_atomic(ledger.directory / "metadata" / place, data, mode=0o644)
    durable.write_atomic(ledger.keys.root_file, data, mode=0o644)


def _merge(proposals: Sequence[bytes]) -> dict[str, Metadata[Any]]:
    merged: dict[str, Metadata[Any]] = {}
    for data in proposals:
        found = _read(data)
        kind = found.signed.type
        if kind not in merged:
            merged[kind] = found
        elif merged[kind].signed != found.signed:
            raise UsageError(
                f"{kind}: two files do not say the same, so their signatures cannot be joined; export once and sign "
                "copies of that",
                code="bad-proposal",
            )
        else:
            merged[kind].signatures.update(found.signatures)
    if not merged:
        raise UsageError("nothing to import; name signed files", code="bad-proposal")
    return merged


def _verify(role: str, delegator: Metadata[Any], metadata: Metadata[Any], whose: str) -> None:
    result = delegator.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result.verified:
        raise UsageError(
            f"{role} {metadata.signed.version}: {len(result.signed)} of {result.threshold} signatures by {whose}; "
            f"{result.missing} missing, have it signed by another holder",
            code="signatures",
        )


def _check_version(role: str, metadata: Metadata[Any], present: int) -> None:
    if metadata.signed.version != present + 1:
        raise UsageError(
            f"{role}: the file is version {metadata.signed.version} and {present} is published; export it again",
            code="version",
        )


def _read(data: bytes) -> Metadata[Any]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise UsageError(
            f"no file to sign ({error}); export one with `repo keys export`", code="bad-proposal"
        ) from error
    if metadata.signed.type not in ROLES:
        raise UsageError(f"{metadata.signed.type}: signed in steps are {', '.join(ROLES)}", code="bad-proposal")
    return metadata


def _read_public(pem: bytes) -> SSlibKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"no public key in PEM form ({error}); its holder prints one with `repo keys public`", code="bad-key"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"found {type(key).__name__}, allowed are Ed25519 keys", code="bad-key")
    return SSlibKey.from_crypto(key)
