"""Private keys: one Ed25519 key a role, as PEM files (PKCS #8), encrypted or not.

This file knows key files. It does not know what the keys sign. The directory also holds `root.json`, the root of
trust as the publisher knows it: it is what devices get, and what the publisher checks its own repository against,
so that a tampered repository is never signed again by mistake.

    ring = KeyRing.generate(Path("keys"))       # root, targets, release, operations, online
    ring.signer("release")                      # raises UsageError when the file is elsewhere, which is the idea

Keys of different roles belong on different machines: a server needs `online.pem` and `root.json` alone.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from modelagent import durable
from modelagent.errors import UsageError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LONGEST: Final = 1023  # bytes of a passphrase, as OpenSSL takes them
ROLES: Final = ("root", "targets", "release", "operations", "online")
_NEXT: Final = ".next"
Passphrase = Callable[[str], bytes | None]  # the key's name -> its passphrase, None where the file is in clear


def no_passphrase(name: str) -> bytes | None:
    """For keys in clear."""
    del name
    return None


class KeyRing:
    """The keys found in one directory, loaded when first needed.

    Args:
        directory: holds `<name>.pem` and `root.json`.
        passphrase: asked once for each encrypted key.
    """

    def __init__(self, directory: Path, passphrase: Passphrase = no_passphrase) -> None:
        self.directory = directory
        self._passphrase = passphrase
        self._signers: dict[str, CryptoSigner] = {}

    @classmethod
    def generate(
        cls, directory: Path, names: Iterable[str] = ROLES, passphrase: Passphrase = no_passphrase
    ) -> "KeyRing":
        """Make a key for each name. Existing keys are never overwritten.

        Raises:
            UsageError: `key-exists`, `bad-name`; nothing was written.
        """
        names = list(names)
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(f"key name {name!r}: allowed are names like /{_NAME.pattern}/", code="bad-name")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ring = cls(directory, passphrase)
        for name in names:
            if ring.path(name).exists():
                raise UsageError(
                    f"{ring.path(name)}: a key is here already and is never overwritten; name another directory, "
                    f"or rotate it with `modelagent repo keys rotate {name}`"
                    + ("" if ring.root_file.exists() else "; if `repo init` did not end here, remove it and try again"),
                    code="key-exists",
                )
        for name in names:
            ring.create(name)
        return ring

    def path(self, name: str) -> Path:
        """Where the key of that name is, or would be."""
        return self.directory / f"{name}.pem"

    @property
    def root_file(self) -> Path:
        """The root of trust as the publisher knows it."""
        return self.directory / "root.json"

    def names(self) -> list[str]:
        """The keys that are here, without successors that do not count yet."""
        return sorted(path.stem for path in self.directory.glob("*.pem") if not path.stem.endswith(_NEXT))

    def create(self, name: str) -> CryptoSigner:
        """Make and store one key, readable by its owner alone."""
        private = Ed25519PrivateKey.generate()
        # The online key stays in clear: a server must sign unattended, and can then do nothing but sign again.
        secret = None if name in ("online", f"online{_NEXT}") else self._passphrase(name)
        how: KeySerializationEncryption = BestAvailableEncryption(secret) if secret else NoEncryption()
        durable.write_atomic(self.path(name), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how), mode=0o600)
        self._signers[name] = CryptoSigner(private)
        return self._signers[name]

    def successors(self) -> list[str]:
        """The keys whose replacement was begun and not ended."""
        return sorted(path.stem.removesuffix(_NEXT) for path in self.directory.glob(f"*{_NEXT}.pem"))

    def successor(self, name: str) -> CryptoSigner:
        """The key that is to replace `name`, made where there is none: it lies beside it until it counts."""
        pending = f"{name}{_NEXT}"
        return self.signer(pending) if self.path(pending).exists() else self.create(pending)

    def succeed(self, name: str, version: int) -> None:
        """Put the successor in place; the old key is kept as `<name>.old-<version>`. May be repeated."""
        while self.path(f"{name}.old-{version}").exists():
            version += 1
        if self.path(name).exists():
            durable.rename(self.path(name), self.path(f"{name}.old-{version}"))
        durable.rename(self.path(f"{name}{_NEXT}"), self.path(name))
        self._signers.pop(name, None)
        self._signers.pop(f"{name}{_NEXT}", None)

    def signer(self, name: str) -> CryptoSigner:
        """The key, ready to sign.

        Raises:
            UsageError: `no-key`, `key-mode`, `passphrase` or `bad-key`.
        """
        if name not in self._signers:
            self._signers[name] = self._load(name)
        return self._signers[name]

    def _load(self, name: str) -> CryptoSigner:
        path = self.path(name)
        try:
            mode = path.stat().st_mode
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise UsageError(
                f"{path}: the {name} key is not here; this step needs it: bring the medium that holds it, "
                "or name its directory with --keys",
                code="no-key",
            ) from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; run as the owner of the key", code="no-key") from error
        if mode & 0o077:
            raise UsageError(
                f"{path}: others than its owner may read this key (mode {mode & 0o777:04o}); "
                f"run `chmod 600 {path}`, and rotate it if others could have",
                code="key-mode",
            )
        secret = self._passphrase(name) if b"ENCRYPTED" in data else None
        try:
            private = load_pem_private_key(data, secret)
        except TypeError as error:
            raise UsageError(
                f"{path}: this key is encrypted; give its passphrase (--passphrase-file, or the environment "
                "variable MODELAGENT_PASSPHRASE)",
                code="passphrase",
            ) from error
        except ValueError as error:
            if b"ENCRYPTED" in data:
                raise UsageError(f"{path}: wrong passphrase for the {name} key", code="passphrase") from error
            raise UsageError(
                f"{path}: no private key in PEM form; restore it from its backup", code="bad-key"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise UsageError(f"{path}: found {type(private).__name__}, allowed are Ed25519 keys", code="bad-key")
        return CryptoSigner(private)


def passphrase_from(file: Path | None, ask: Callable[[str], str] | None = None) -> Passphrase:
    """How the command line gets passphrases: from a file, else from MODELAGENT_PASSPHRASE, else by asking.

    Args:
        file: holds one passphrase for every encrypted key.
        ask: given the key's name, asks a person; None where nobody can be asked.

    Raises:
        UsageError: `passphrase`, the file cannot be read.
    """
    if file is not None:
        try:
            secret: bytes | None = file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}; name a readable file", code="passphrase") from error
        if len(secret or b"") > _LONGEST:
            raise UsageError(
                f"{file}: found {len(secret or b'')} bytes, a passphrase has at most {_LONGEST}; name the right file",
                code="passphrase",
            )
    else:
        secret = os.environ.get("MODELAGENT_PASSPHRASE", "").encode() or None

    def answer(name: str) -> bytes | None:
        return secret or (ask(name).encode() if ask is not None else None)

    return answer


def close_directory(directory: Path) -> None:
    """Keep a key directory to its owner."""
    with contextlib.suppress(OSError):
        directory.chmod(0o700)
