"""`modelagent repo ...`: the publisher's commands.

This file knows how the publisher's verbs are typed and answered. It does not know how anything is signed.

    modelagent repo init --model digits
    modelagent repo add model.tflite --model digits --version 1.0.0 --canary canary.npz
    modelagent repo channel digits stable 1.0.0
"""

import importlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from modelagent import manifest
from modelagent.cli import EXIT_CODES, Frame, json_option
from modelagent.errors import UsageError
from modelagent.publish import channels
from modelagent.publish.channels import Plan
from modelagent.publish.keys import KeyRing, passphrase_from
from modelagent.publish.repository import Lifetimes, Repository

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY: Final = click.Path(path_type=Path, file_okay=False)
_DAYS: Final = click.IntRange(0, 36_500)
_WHOLE: Final = 200  # characters of a first sentence: none is cut
Options = Callable[[Callable[..., Any]], Callable[..., Any]]


def places(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command here has."""
    for option in (
        json_option,
        click.option(
            "--passphrase-file",
            type=_FILE,
            help="Passphrase of the encrypted keys; else MODELAGENT_PASSPHRASE, else you are asked.",
        ),
        click.option(
            "--keys",
            "keys_dir",
            type=_DIRECTORY,
            default=Path("keys"),
            show_default=True,
            envvar="MODELAGENT_KEYS",
            help="Directory of the keys.",
        ),
        click.option(
            "--repo",
            "directory",
            type=_DIRECTORY,
            default=Path("repository"),
            show_default=True,
            envvar="MODELAGENT_REPO",
            help="Directory of the repository.",
        ),
    ):
        command = option(command)
    return command


deltas_option: Final = click.option(
    "--deltas",
    "deltas_from",
    type=click.IntRange(0, 20),
    default=3,
    show_default=True,
    metavar="N",
    help="Make deltas from the last N releases, so that devices fetch less; 0 makes none.",
)


def deltas_told(repository: Repository, model: str, version: str, length: int) -> tuple[list[dict[str, Any]], str]:
    """The deltas that a release lists: for --json, and as lines for a person."""
    versions = {
        manifest.parse(repository.manifest_bytes(model, known)).model_file.sha256: known
        for known, _, _ in repository.releases(model)
    }
    rows: list[dict[str, Any]] = []
    lines = []
    for item in repository.deltas(model, version):
        start = None if item.base is None else versions.get(item.base, item.base)
        rows.append({"from": start, "bytes": item.length})
        what = "compressed" if start is None else f"from {start}"
        lines.append(f"  {what}: {item.length} bytes, {100 * item.length / length:.1f} % of the model\n")
    return rows, "".join(lines)


def open_repository(directory: Path, keys_dir: Path, passphrase_file: Path | None) -> Repository:
    """The repository and the keys that the common options name."""
    return Repository(directory, KeyRing(keys_dir, passphrase_from(passphrase_file, asker())))


def asker(*, confirm: bool = False) -> Callable[[str], str] | None:
    """Ask a person at a terminal; nobody is there otherwise."""
    if not sys.stdin.isatty():
        return None

    def ask(name: str) -> str:
        said: str = click.prompt(
            f"passphrase of the {name} key", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return said

    return ask


def answer(frame: Frame, document: dict[str, Any], text: str) -> None:
    """Answer with the document where JSON is asked for, else with the text."""
    click.echo(json.dumps(document, indent=1) if frame.json else text)


def warn_of_ended(repository: Repository) -> None:
    """Say on standard error which signatures are over: until they are new, nothing published reaches a device."""
    now = repository.ledger.now()
    over = sorted(role for role, (end, _) in repository.expiries().items() if end <= now)
    if over:
        click.echo(
            f"warning: the signature of {', '.join(over)} is over; devices take nothing new until it is made again: "
            "`modelagent repo renew` where the keys are, or `modelagent repo refresh` for snapshot and timestamp",
            err=True,
        )


class _Group(click.Group):
    """A group some of whose commands live in files of their own, imported when they are called."""

    def __init__(self, *args: Any, elsewhere: dict[str, tuple[str, str]], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.elsewhere = elsewhere  # name -> (file below this package, attribute)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Both kinds, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *self.elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself; imports its file."""
        if cmd_name in self.elsewhere:
            module, attribute = self.elsewhere[cmd_name]
            found = getattr(importlib.import_module(f"modelagent.cli.{module}"), attribute)
            assert isinstance(found, click.Command), f"{cmd_name} is no command"  # noqa: S101 - a programmer's error
            return found
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command's first sentence whole: click cuts it to the terminal's width."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(_WHOLE)) for name, found in commands if found])


_SHELF: Final = {
    "add": ("add", "add"),
    "release": ("release", "release"),
    "bundle": ("stick", "bundle"),
    "promote": ("shelf", "promote"),
    "pause": ("shelf", "pause"),
    "verify": ("shelf", "verify"),
    "prune": ("shelf", "prune"),
    "renew": ("shelf", "renew"),
    "serve": ("shelf", "serve"),
    "status": ("shelf", "status"),
}
_CEREMONY: Final = {
    "new": ("ceremony", "new"),
    "public": ("ceremony", "public"),
    "export": ("ceremony", "export"),
    "sign": ("ceremony", "sign"),
    "import": ("ceremony", "import_"),
}


@click.group(
    cls=_Group,
    elsewhere=_SHELF,
    epilog="A first repository, in four commands:\n\n\b\n"
    "  modelagent repo init --model digits\n"
    "  modelagent repo add model.tflite --model digits --version 1.0.0 --canary canary.npz\n"
    "  modelagent repo channel digits stable 1.0.0\n"
    "  modelagent repo serve\n\n" + EXIT_CODES,
)
def repo() -> None:
    """Publish: keys, releases, channels, withdrawal.

    The repository is a directory that any static web server can serve. Devices need its address and `root.json` from
    the key directory.
    """


@repo.command(epilog=EXIT_CODES)
@places
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model to publish; may be given again.")
@click.option("--encrypt", is_flag=True, help="Encrypt every key but the online one.")
@click.option(
    "--root-keys", type=click.IntRange(1, 99), default=1, show_default=True, help="How many root keys to make."
)
@click.option("--root-threshold", default=1, show_default=True, help="How many of them must sign a new root.")
@click.option("--timestamp-days", type=_DAYS, default=7, show_default=True, help="Life of the timestamp's signature.")
@click.option("--snapshot-days", type=_DAYS, default=30, show_default=True, help="Life of the snapshot's signature.")
@click.option(
    "--targets-days", type=_DAYS, default=365, show_default=True, help="Life of a release's or channel's signature."
)
@click.option("--root-days", type=_DAYS, default=365, show_default=True, help="Life of the root's signature.")
@click.pass_obj
def init(
    frame: Frame,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    models: tuple[str, ...],
    encrypt: bool,
    root_keys: int,
    root_threshold: int,
    timestamp_days: int,
    snapshot_days: int,
    targets_days: int,
    root_days: int,
) -> None:
    """Make keys and an empty repository.

    Move root, targets, release and operations keys off the server afterwards: it needs online.pem and root.json
    alone. Keys are encrypted where a passphrase is given.
    """
    passphrase = passphrase_from(passphrase_file, asker(confirm=True) if encrypt else None)
    if encrypt and passphrase("root") is None:
        raise UsageError("--encrypt: no passphrase; give --passphrase-file or MODELAGENT_PASSPHRASE", code="passphrase")
    repository = Repository.init(
        directory,
        keys_dir,
        models,
        Lifetimes(
            timestamp=timedelta(days=timestamp_days),
            snapshot=timedelta(days=snapshot_days),
            targets=timedelta(days=targets_days),
            root=timedelta(days=root_days),
        ),
        passphrase=passphrase,
        root_keys=root_keys,
        root_threshold=root_threshold,
    )
    names = repository.keys.names()
    answer(
        frame,
        {"repository": str(directory), "keys": names, "root": str(repository.keys.root_file), "models": list(models)},
        f"repository {directory} for {', '.join(models) or 'no model yet'}\n"
        f"keys       {keys_dir}: {', '.join(names)}\n"
        f"devices    need {repository.keys.root_file}",
    )


@repo.group(cls=_Group, elsewhere=_CEREMONY, epilog=EXIT_CODES, invoke_without_command=True)
@click.pass_context
def keys(ctx: click.Context) -> None:
    """List, make and replace keys; sign in steps on several machines."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@keys.command("list", epilog=EXIT_CODES)
@places
@click.pass_obj
def list_(frame: Frame, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Show which keys are here, what they sign, and whether they are encrypted."""
    del directory, passphrase_file
    ring = KeyRing(keys_dir)
    signs = {
        "targets": "which keys may sign releases and channels",
        "release": "releases",
        "operations": "channels and withdrawals",
        "online": "snapshot and timestamp",
    }
    rows = [
        {
            "name": name,
            "encrypted": b"ENCRYPTED" in ring.path(name).read_bytes(),
            "signs": "nothing any more: destroy it" if ".old-" in name else signs.get(name, "root"),
        }
        for name in ring.names()
    ]
    text = "\n".join(
        f"{row['name']:<16} {'encrypted' if row['encrypted'] else 'in clear':<10} {row['signs']}" for row in rows
    )
    answer(frame, {"keys": rows}, text or f"no keys in {keys_dir}")


@keys.command(epilog=EXIT_CODES)
@places
@click.argument("name")
@click.pass_obj
def rotate(frame: Frame, name: str, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Replace the key NAME (root, targets, release, operations, online).

    What it signed is signed again by the new one; devices follow by themselves. The old key is kept as NAME.old-N
    until you destroy it. Should this stop on its way, the next command that publishes finishes it.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    repository.rotate(name)
    answer(frame, {"rotated": name, "root": str(repository.keys.root_file)}, f"{name}: replaced")


@repo.command(epilog=EXIT_CODES)
@places
@click.option(
    "--wave",
    "waves",
    multiple=True,
    metavar="TIME=SHARE[@GROUP,...][/HARDWARE,...]",
    help="From TIME (2026-11-01T12:00Z) on, this SHARE (0.1) of all devices, or of these groups and hardware classes.",
)
@click.argument("model")
@click.argument("channel")
@click.argument("version")
@click.pass_obj
def channel(
    frame: Frame,
    model: str,
    channel: str,
    version: str,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    waves: tuple[str, ...],
) -> None:
    """Let CHANNEL's devices run VERSION of MODEL (`none`: nothing).

    With waves, each device starts when the share that holds it may; without, all may start at once.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    wanted = None if version == channels.NOTHING else version
    said = repository.channel(model, channel, wanted, waves=[wave_of(text) for text in waves])
    warn_of_ended(repository)
    answer(
        frame,
        {"model": model, "channel": channel, "version": said.version, "digest": said.digest},
        f"{model} {channel}: {said.version or 'nothing'}"
        + (f", in {len(waves)} wave{'s' if len(waves) > 1 else ''}" if waves else ""),
    )


def wave_of(text: str) -> Plan:
    """TIME=SHARE[@GROUP,...][/HARDWARE,...] as it is typed."""
    start, _, rest = text.partition("=")
    rest, _, hardware = rest.partition("/")
    share, _, groups = rest.partition("@")
    try:
        moment = datetime.fromisoformat(start)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return Plan(zoned.astimezone(UTC), float(share), _names(groups), _names(hardware))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--wave {text!r}: allowed is TIME=SHARE[@GROUP,...][/HARDWARE,...], such as 2026-11-01T12:00Z=0.1 or "
            "2026-11-01T12:00Z=1@lab/aarch64",
            code="bad-wave",
        ) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


@repo.command(epilog=EXIT_CODES)
@places
@click.option("--reason", required=True, help="Why; devices show it.")
@click.option("--instead", metavar="VERSION", help="What channels that name it shall name now; by default nothing.")
@click.argument("model")
@click.argument("version")
@click.pass_obj
def withdraw(
    frame: Frame,
    model: str,
    version: str,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    reason: str,
    instead: str | None,
) -> None:
    """Take VERSION of MODEL back, in every channel and for good.

    Devices that run it leave it within one check.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    said = repository.withdraw(model, version, reason, instead=instead)
    warn_of_ended(repository)
    rows = [{"channel": document.channel, "version": document.version} for document in said]
    text = "\n".join(f"{model} {row['channel']}: {row['version'] or 'nothing'}; {version} is withdrawn" for row in rows)
    answer(frame, {"model": model, "withdrawn": version, "channels": rows}, text)


@repo.command(epilog=EXIT_CODES)
@places
@click.pass_obj
def refresh(frame: Frame, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Sign the timestamp (and in time the snapshot) again. Takes the online key alone.

    Run it daily: devices that see no new timestamp for its lifetime take no new release.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    repository.refresh()
    warn_of_ended(repository)
    end, _ = repository.expiries()["timestamp"]
    answer(frame, {"timestamp": end.isoformat()}, f"signed; good until {end.isoformat()}")
