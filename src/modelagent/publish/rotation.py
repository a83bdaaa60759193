"""Replacing keys and renewing signatures: what may touch root with every key at hand.

This file knows which signatures a new key needs. It does not know when a key should be replaced.

    rotate(ledger, "online")        # a new online key, a new root that names it, everything online signed again

A new root is signed by the threshold of the old root *and* of the new one, so that every device can follow from the
root it has to the newest (TUF specification 1.0, section 5.3). The old key is kept as `<name>.old-<version>.pem`
until its owner destroys it. The new one lies beside it as `<name>.next.pem` until it counts, so that a publisher may
die anywhere: the next one finishes (`Ledger.locked`), and readers never see what they cannot verify.
"""

from collections.abc import Sequence

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from modelagent.errors import UsageError
from modelagent.publish.keys import KeyRing
from modelagent.publish.ledger import Ledger, delegated, key_of


def rotate(ledger: Ledger, name: str) -> None:
    """Replace the key `name` (root, root-2, ..., targets, release, operations, online).

    Raises:
        UsageError: `no-key`, a key that must sign is not here; nothing was changed.
    """
    if name not in ledger.keys.names() or ".old-" in name:
        held = ", ".join(found for found in ledger.keys.names() if ".old-" not in found) or "none"
        raise UsageError(f"{ledger.keys.path(name)}: no such key; this directory holds {held}", code="no-key")
    if name in {"release", "operations"}:
        _rotate_delegated(ledger, name)
    else:
        _rotate_top(ledger, name)


def renew(ledger: Ledger, roles: Sequence[str] = ()) -> list[str]:
    """Sign roles again as they are, with a new expiry.

    Args:
        ledger: the repository; its lock is held by the caller.
        roles: root, targets, channels, models-<model>; empty: every role whose key is here.

    Returns:
        The roles that were signed.

    Raises:
        UsageError: `role`; or `no-key` for a role that was asked for. Nothing was changed.
    """
    keys = ledger.keys
    known = ["root", "targets", *delegated(ledger.load_targets("targets").signed)]
    if unknown := [role for role in roles if role not in known]:
        raise UsageError(f"role {unknown[0]!r}: there are {', '.join(known)}", code="role")
    root = ledger.load_root()
    held = set(keys.names())
    wanted = list(roles) or [role for role in known if role != "root" and key_of(role) in held]
    hands: list[CryptoSigner] = []
    if "root" in roles or (not roles and "root" in held):
        try:
            hands = _root_signers(keys, root)
        except UsageError:
            if "root" in roles:
                raise
    changed = {role: ledger.load_targets(role) for role in wanted if role != "root"}
    for role in changed:
        keys.signer(key_of(role))
    if changed:
        ledger.publish(changed)
    if hands:
        ledger.stamp(root, "root", root.signed.version + 1)
        ledger.write_root(root, hands)
    return [*changed, *(["root"] if hands else [])]


def _rotate_top(ledger: Ledger, name: str) -> None:
    keys = ledger.keys
    root = ledger.load_root()
    hands = _root_signers(keys, root)
    keys.signer("online")
    old = keys.signer(name).public_key
    roles = [role for role, entry in root.signed.roles.items() if entry and old.keyid in entry.keyids]
    changed = {"targets": ledger.load_targets("targets")} if "targets" in roles else {}
    before = root.signed.version
    new = keys.successor(name)
    if roles != ["root"]:
        # Signed by both before the new root is there: whichever of the two roots a reader has, it can go on.
        ledger.publish(changed, also={name: new})
    for role in roles:
        root.signed.revoke_key(old.keyid, role)
        root.signed.add_key(new.public_key, role)
    if "root" in roles:
        hands.append(new)
    ledger.stamp(root, "root", root.signed.version + 1)
    ledger.write_root(root, hands)
    keys.succeed(name, before)


def _rotate_delegated(ledger: Ledger, name: str) -> None:
    keys = ledger.keys
    targets = ledger.load_targets("targets")
    for needed in ("targets", "online"):
        keys.signer(needed)
    old = keys.signer(name).public_key
    roles = delegated(targets.signed)
    contents = {role: ledger.load_targets(role) for role, entry in roles.items() if old.keyid in entry.keyids}
    before = targets.signed.version
    new = keys.successor(name)
    for role in contents:
        targets.signed.revoke_key(old.keyid, role)
        targets.signed.add_key(new.public_key, role)
    ledger.publish({"targets": targets, **contents}, also={name: new})
    keys.succeed(name, before)


def _root_signers(keys: KeyRing, root: Metadata[Root]) -> list[CryptoSigner]:
    """The present root keys at hand, at least the threshold of them."""
    role = root.signed.roles["root"]
    names = [name for name in keys.names() if name.split("-")[0] == "root" and ".old-" not in name]
    found = [keys.signer(name) for name in names]
    found = [signer for signer in found if signer.public_key.keyid in role.keyids]
    if len(found) < role.threshold:
        raise UsageError(
            f"{keys.directory}: {len(found)} root keys are here and {role.threshold} must sign a new root; bring "
            "the media that hold the others",
            code="no-key",
        )
    return found
