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
from modelagent.publish import canaries, contract
from modelagent.publish.channels import Plan
from modelagent.publish.keys import KeyRing, passphrase_from
from modelagent.publish.repository import Lifetimes, Repository

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY: Final = click.Path(path_type=Path, file_okay=False)
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


_SHELF: Final = {
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
@click.option("--root-keys", default=1, show_default=True, help="How many root keys to make.")
@click.option("--root-threshold", default=1, show_default=True, help="How many of them must sign a new root.")
@click.option("--timestamp-days", default=7, show_default=True, help="Life of the timestamp's signature.")
@click.option("--snapshot-days", default=30, show_default=True, help="Life of the snapshot's signature.")
@click.option("--targets-days", default=365, show_default=True, help="Life of a release's or channel's signature.")
@click.option("--root-days", default=365, show_default=True, help="Life of the root's signature.")
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
    until you destroy it.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    repository.rotate(name)
    answer(frame, {"rotated": name, "root": str(repository.keys.root_file)}, f"{name}: replaced")


def _contract_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--canary", type=_FILE, help="An .npz: input_0, input_1, ... and labels (int64)."),
        click.option("--labels", type=_FILE, help="Class names: a JSON list, or one a line."),
        click.option("--warmup", type=_FILE, help="An .npz: input_0, ... to warm the model up with."),
        click.option("--softmax", is_flag=True, help="The outputs are logits: devices turn them into probabilities."),
        click.option("--margin", default=0.05, show_default=True, help="Loss of accuracy that is tolerated."),
        click.option("--confidence", default=0.95, show_default=True, help="One-sided, of the canary's verdict."),
        click.option("--floor-accuracy", default=0.0, show_default=True, help="Accuracy below which it never runs."),
        click.option("--latency-ms", default=1000.0, show_default=True, help="p95 of one inference at most."),
        click.option("--latency-ratio", default=3.0, show_default=True, help="p50 and p95 against the running one."),
        click.option("--memory-mb", default=1024.0, show_default=True, help="Peak memory at most."),
        click.option("--load-s", default=30.0, show_default=True, help="Time to load and warm up at most."),
        click.option("--number", type=int, help="Release number; by default one above the highest."),
        click.option("--floor", default=0, show_default=True, help="Once confirmed, nothing below this number runs."),
        click.option("--hardware", multiple=True, metavar="NAME", help="Devices it is for; by default all."),
        click.option("--runtime-min", help="Oldest runtime version it works with."),
        click.option("--runtime-max", help="Newest runtime version it works with."),
        click.option("--stateful", is_flag=True, help="The model keeps state from one frame to the next."),
        click.option("--parent", metavar="VERSION", help="The version it was trained from."),
        click.option("--manifest", type=_FILE, help="JSON whose keys win over everything above."),
    ):
        command = option(command)
    return command


@repo.command(epilog=EXIT_CODES)
@places
@_contract_options
@click.option("--model", required=True, metavar="NAME", help="The model's name.")
@click.option("--version", required=True, help="The version's name; never used twice.")
@click.option("--accept-small-canary", is_flag=True, help="Publish although the canary set is too small; it says so.")
@click.option("--new-model", is_flag=True, help="Let this repository publish this model from now on.")
@deltas_option
@click.argument("tflite", metavar="MODEL.tflite", type=_FILE)
@click.pass_obj
def add(
    frame: Frame,
    /,
    tflite: Path,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    accept_small_canary: bool,
    new_model: bool,
    deltas_from: int,
    **options: Any,
) -> None:
    """Sign and publish MODEL.tflite as a release. No channel names it yet.

    Its tensors are read from the file, by the runtime in a child process, unless --manifest states inputs and
    outputs. The canary set must be large enough for
    its margin: 248 samples speak for 0.05, 1,546 for 0.02.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    document, files = _document(repository, tflite, options)
    release = repository.add(
        document, files, accept_small_canary=accept_small_canary, new_model=new_model, deltas_from=deltas_from
    )
    deltas, lines = deltas_told(repository, release.model, release.version, release.model_file.length)
    answer(
        frame,
        {
            "model": release.model,
            "version": release.version,
            "number": release.number,
            "digest": release.digest,
            "bytes": release.release.size,
            "card": dict(release.card),
            "deltas": deltas,
        },
        f"{release.model} {release.version}: release {release.number}, {release.release.size} bytes, {release.digest}\n"
        f"{lines}"
        f"next: modelagent repo channel {release.model} stable {release.version}",
    )


def _document(
    repository: Repository, tflite: Path, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Path | bytes]]:
    """The manifest document and files of what was typed."""
    extra = {} if options["manifest"] is None else _json_object(options["manifest"])
    # Tensors that were written down are not read: that is how a file is published that the runtime here cannot load.
    stated = "inputs" in extra and "outputs" in extra
    tensors = {"inputs": [], "outputs": [], "runtime": None} if stated else contract.read(tflite)
    files: dict[str, Path | bytes] = {"model": tflite}
    for role in ("canary", "warmup"):
        if options[role] is not None:
            files[role] = options[role]
    labels = _labels(options["labels"]) if options["labels"] is not None else []
    if labels:
        files["labels"] = (json.dumps(labels, ensure_ascii=False) + "\n").encode()
    parent = None
    if options["parent"] is not None:
        known = {version: digest for version, digest, _ in repository.releases(options["model"])}
        if options["parent"] not in known:
            raise UsageError(
                f"--parent {options['parent']}: no such release; published are {', '.join(known) or 'none'}",
                code="unknown-version",
            )
        parent = known[options["parent"]]
    document: dict[str, Any] = {
        "model": options["model"],
        "version": options["version"],
        "floor": options["floor"],
        "parent": parent,
        "runtime": {"min": options["runtime_min"], "max": options["runtime_max"]},
        "delegate": "cpu",
        "hardware": list(options["hardware"]),
        "stateful": options["stateful"],
        "inputs": tensors["inputs"],
        "outputs": tensors["outputs"],
        "labels": labels,
        "preprocess": {"kind": "none"},
        "postprocess": _postprocess(options),
        "canary": {
            "metric": "accuracy",
            "margin": options["margin"],
            "confidence": options["confidence"],
            "floor": options["floor_accuracy"],
            "samples": 0 if options["canary"] is None else canaries.count_samples(options["canary"]),
        },
        "limits": {key: options[key] for key in ("latency_ms", "latency_ratio", "memory_mb", "load_s")},
        "card": {} if stated else {"runtime": tensors["runtime"]},
    }
    if options["number"] is not None:
        document["number"] = options["number"]
    return _merged(document, extra), files


def _postprocess(options: dict[str, Any]) -> dict[str, Any]:
    """A canary set with labels is a classifier's; without one nothing is assumed of the outputs."""
    if options["canary"] is None and options["labels"] is None:
        return {"kind": "raw"}
    return {"kind": "classification", "softmax": options["softmax"]}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _json_object(path: Path) -> dict[str, Any]:
    document = _json(path)
    if not isinstance(document, dict):
        raise UsageError(f"{path}: found no JSON object; correct the file", code="manifest")
    return document


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file", code="file") from error
    except ValueError as error:
        raise UsageError(f"{path}: no JSON ({error}); correct the file", code="file") from error


def _labels(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; name a readable file", code="file") from error
    if text.lstrip().startswith("["):
        names = _json(path)
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"{path}: allowed is a JSON list of strings", code="file")
        return list(names)
    return [line.strip() for line in text.splitlines() if line.strip()]


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
    wanted = None if version == "none" else version
    said = repository.channel(model, channel, wanted, waves=[wave_of(text) for text in waves])
    answer(
        frame,
        {"model": model, "channel": channel, "version": said.version, "digest": said.digest},
        f"{model} {channel}: {said.version or 'nothing'}" + (f", in {len(waves)} waves" if waves else ""),
    )


def wave_of(text: str) -> Plan:
    """TIME=SHARE[@GROUP,...][/HARDWARE,...] as it is typed."""
    start, _, rest = text.partition("=")
    rest, _, hardware = rest.partition("/")
    share, _, groups = rest.partition("@")
    try:
        moment = datetime.fromisoformat(start)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return Plan(zoned, float(share), _names(groups), _names(hardware))
    except ValueError as error:
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
    end, _ = repository.expiries()["timestamp"]
    answer(frame, {"timestamp": end.isoformat()}, f"signed; good until {end.isoformat()}")
