"""`modelagent repo keys new | public | export | sign | import`: signing in steps, on several machines.

This file knows how the steps are typed. It does not know what makes a signature enough.

    modelagent repo keys new root-2 --keys stick                    # at the second holder's machine
    modelagent repo keys public root-2 --keys stick > root-2.pub
    modelagent repo keys export root next.json --add root-2.pub --threshold 2       # at the server
    modelagent repo keys sign next.json root --keys safe            # at each holder's machine: reads, asks, signs
    modelagent repo keys import next.json
"""

from pathlib import Path
from typing import Any

import click

from modelagent import durable
from modelagent.cli import EXIT_CODES, Frame
from modelagent.cli.repo import answer, asker, open_repository, places
from modelagent.errors import UsageError
from modelagent.publish import ceremony
from modelagent.publish.keys import KeyRing, passphrase_from

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog=EXIT_CODES)
@places
@click.argument("name")
@click.pass_obj
def new(frame: Frame, name: str, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Make one key, NAME, on this machine (root-2, for instance). It signs nothing until a root names it."""
    del directory
    KeyRing.generate(keys_dir, [name], passphrase_from(passphrase_file, asker(confirm=True)))
    answer(frame, {"key": str(keys_dir / f"{name}.pem")}, f"{keys_dir / f'{name}.pem'}: keep it, and keep it offline")


@click.command(epilog=EXIT_CODES)
@places
@click.argument("name")
@click.pass_obj
def public(frame: Frame, name: str, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Print the public half of the key NAME, for `export --add`."""
    del directory
    ring = KeyRing(keys_dir, passphrase_from(passphrase_file, asker()))
    signer = ring.signer(name)
    pem = ceremony.public_key(signer).decode()
    answer(frame, {"keyid": signer.public_key.keyid, "pem": pem}, pem.rstrip())


@click.command(epilog=EXIT_CODES)
@places
@click.option("--add", "added", multiple=True, type=_FILE, help="Public key that shall sign from now on; repeatable.")
@click.option("--remove", "removed", multiple=True, metavar="KEYID", help="Key that shall not; its first characters.")
@click.option("--threshold", type=int, help="How many keys must sign.")
@click.option("--of", default="root", show_default=True, help="Whose keys change: root or targets.")
@click.argument("role", type=click.Choice(ceremony.ROLES))
@click.argument("file", type=_FILE)
@click.pass_obj
def export(
    frame: Frame,
    role: str,
    file: Path,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    added: tuple[Path, ...],
    removed: tuple[str, ...],
    threshold: int | None,
    of: str,
) -> None:
    """Write the next version of ROLE to FILE, unsigned. Nothing in the repository changes.

    Without options it is the same as now with a new expiry.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    keys = [_read(path) for path in added]
    data = ceremony.propose(repository.ledger, role, add=keys, remove=removed, threshold=threshold, of=of)
    durable.write_atomic(file, data, mode=0o644)
    text = f"{_text(data)}\nnext: modelagent repo keys sign {file} KEY"
    answer(frame, {"file": str(file), **ceremony.describe(data)}, text)


@click.command(epilog=EXIT_CODES)
@places
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("file", type=_FILE)
@click.argument("name")
@click.pass_obj
def sign(
    frame: Frame, file: Path, name: str, *, directory: Path, keys_dir: Path, passphrase_file: Path | None, yes: bool
) -> None:
    """Show what FILE says, and add the signature of the key NAME to it. Needs no repository."""
    del directory
    data = _read(file)
    if not (yes or frame.json):
        click.echo(_text(data), err=True)
        click.confirm(f"sign this with {name}?", abort=True, err=True)
    signer = KeyRing(keys_dir, passphrase_from(passphrase_file, asker())).signer(name)
    signed = ceremony.sign(data, signer)
    durable.write_atomic(file, signed, mode=0o644)
    count = len(ceremony.describe(signed)["signatures"])
    answer(frame, {"file": str(file), **ceremony.describe(signed)}, f"{file}: {count} signatures")


@click.command("import", epilog=EXIT_CODES)
@places
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.pass_obj
def import_(
    frame: Frame, files: tuple[Path, ...], *, directory: Path, keys_dir: Path, passphrase_file: Path | None
) -> None:
    """Join the signatures in FILES, check that they are enough, and publish."""
    repository = open_repository(directory, keys_dir, passphrase_file)
    with repository.ledger.locked():
        done = ceremony.accept(repository.ledger, [_read(path) for path in files])
    answer(frame, {"published": done}, "\n".join(f"{text}: published" for text in done))


def _text(data: bytes) -> str:
    told: dict[str, Any] = ceremony.describe(data)
    lines = [f"{told['role']} version {told['version']}, until {told['expires']}"]
    lines += [
        f"  {role}: {entry['threshold']} of {', '.join(entry['keys'])}" for role, entry in told.get("keys", {}).items()
    ]
    lines += [f"  {role} may sign {', '.join(paths)}" for role, paths in told.get("delegations", {}).items()]
    return "\n".join([*lines, f"  signed by {', '.join(told['signatures']) or 'nobody yet'}"])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file", code="file") from error
