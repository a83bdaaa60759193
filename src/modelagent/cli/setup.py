"""`modelagent setup`: from nothing to a checked configuration, in one command.

This file knows how a first settings file looks, and in which order things are put in place: nothing at all before
everything has been checked. It does not know what a setting means.

    sudo modelagent setup --repo https://models.example.org/fleet --root root.json --model digits
    modelagent setup --prefix ./box --repo http://127.0.0.1:8000 --root root.json --model digits --frames day.npz

With --prefix everything lies below one directory: etc/, state/, inference/, run/, inference-run/ (development, demo,
tests). A second run with the same answers changes nothing; a different file is never overwritten without --force.
"""

import json
import os
import pwd
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from modelagent.cli import EXIT_CODES, REFUSED, Frame, json_option, say_error
from modelagent.cli.doctor import examine, inspect_root, report
from modelagent.cli.kinship import relation
from modelagent.cli.values import number
from modelagent.durable import write_atomic
from modelagent.errors import UsageError
from modelagent.inputs.config import Settings, parse

_DIRECTORIES: Final = ("state_dir", "inference_dir", "run_dir", "inference_run_dir")
_USERS: Final = {"state_dir": "modelagent", "inference_dir": "modelagent-inference"}


@click.command(epilog=EXIT_CODES)
@click.option("--repo", required=True, metavar="URL", help="The repository: http(s)://..., file:///... or a directory.")
@click.option(
    "--root",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The publisher's root.json, brought by a way that you trust.",
)
@click.option("--model", "-m", required=True, metavar="NAME", help="The model to run.")
@click.option("--device", default="", metavar="ID", help="This device's name; derived from the machine if not given.")
@click.option("--channel", default="stable", show_default=True, metavar="NAME", help="The channel to follow.")
@click.option(
    "--frames",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Replay the frames of this .npz; without it set [models.NAME.source] yourself.",
)
@click.option("--fps", type=number, default=30.0, show_default=True, help="Frames a second, with --frames.")
@click.option("--prefix", type=click.Path(path_type=Path, file_okay=False), help="Put everything below this directory.")
@click.option("--force", is_flag=True, help="Replace different files; the old ones are kept beside as .old.")
@json_option
@click.pass_obj
def setup(
    frame: Frame,
    *,
    repo: str,
    root: Path,
    model: str,
    device: str,
    channel: str,
    frames: Path | None,
    fps: float,
    prefix: Path | None,
    force: bool,
) -> None:
    """Write a checked configuration, make the directories, run doctor.

    The settings go to --config (or PREFIX/etc/modelagent.toml), the root file beside them.
    """
    base = prefix.absolute() if prefix is not None else None
    config = frame.config if base is None else base / "etc" / "modelagent.toml"
    trusted = config.parent / "root.json"
    text = compose(
        repo=repo if "://" in repo else str(Path(repo).absolute()),
        root=trusted,
        model=model,
        device=device,
        channel=channel,
        frames=(frames.absolute(), fps) if frames is not None else None,
        prefix=base,
    )
    settings = parse(tomllib.loads(text), config)
    status, detail, _ = inspect_root(root)
    if status == "fail":
        raise UsageError(f"--root {detail}; nothing was changed", code="bad-root")
    status, detail, remedy = relation(root, settings.repository)
    if status == "fail":  # a repository that cannot be reached is no obstacle: doctor says so below
        raise UsageError(f"--root {detail}; {remedy}; nothing was changed", code="bad-root")
    wanted = {config: text.encode(), trusted: root.read_bytes()}
    differing = [str(path) for path, data in wanted.items() if _differs(path, data) and not _sets_nothing(path)]
    if differing and not force:
        say_error(
            frame,
            f"{' and '.join(differing)}: there already, and different; nothing was changed. "
            "Use --force to replace it (the old one is kept as .old)",
            "exists",
        )
        raise SystemExit(REFUSED)
    try:
        _put_in_place(settings, wanted, private=base is not None)
    except OSError as error:
        raise UsageError(
            f"{error.filename or config.parent}: {error.strerror}; use sudo, or --prefix DIR", code="not-writable"
        ) from error
    if not frame.json:
        click.echo(f"settings in {config}, trust in {trusted}")
    code = report(frame, examine(settings))
    if not frame.json:
        named = "" if prefix is None and config == Path("/etc/modelagent/modelagent.toml") else f" --config {config}"
        click.echo(f"start it: modelagent{named} run")
    raise SystemExit(code)


def compose(
    *,
    repo: str,
    root: Path,
    model: str,
    device: str = "",
    channel: str = "stable",
    frames: tuple[Path, float] | None = None,
    prefix: Path | None = None,
) -> str:
    """The text of a settings file; `frames`: an .npz and frames a second. Nothing is checked here."""
    lines = ["# Written by modelagent setup. All settings with their defaults: modelagent config show", ""]
    if device:
        lines += ["[device]", f"id = {_text(device)}", ""]
    if prefix is not None:
        names = {key: key.removesuffix("_dir").replace("_", "-") for key in _DIRECTORIES}
        lines += ["[paths]", *(f"{key} = {_text(str(prefix / name))}" for key, name in names.items()), ""]
    lines += ["[repository]", f"url = {_text(repo)}", f"root = {_text(str(root))}", ""]
    lines += [f"[models.{_key(model)}]", f"channel = {_text(channel)}"]
    if frames is not None:
        path, fps = frames
        lines += [
            "",
            f"[models.{_key(model)}.source]",
            'kind = "replay"',
            f"path = {_text(str(path))}",
            f"fps = {fps}",
        ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    # A JSON text is a TOML basic string, but for DEL, which TOML wants escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(value: str) -> str:
    return value if re.fullmatch("[A-Za-z0-9_-]+", value) else _text(value)


def _differs(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() != data
    except FileNotFoundError:
        return False


def _sets_nothing(path: Path) -> bool:
    """Whether all in it is default, as in the file that a package ships: nothing is lost with it."""
    try:
        return path.suffix == ".toml" and parse(tomllib.loads(path.read_text(encoding="utf-8")), path) == parse(
            {}, path
        )
    except (ValueError, UsageError):
        return False


def _put_in_place(settings: Settings, files: Mapping[Path, bytes], *, private: bool) -> None:
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if _differs(path, data):
            shutil.copy2(path, path.with_name(path.name + ".old"))
        write_atomic(path, data, mode=0o644)
    for key in _DIRECTORIES:
        path = getattr(settings.paths, key)
        # What lies below /run is gone at the next boot; systemd or the processes themselves make it then.
        path.mkdir(parents=True, exist_ok=True, mode=0o750)
        if not private:
            _give(path, _USERS.get(key, ""))


def _give(path: Path, user: str) -> None:
    """As root, give a directory to the service's user, where the installation made one."""
    if not user or os.geteuid() != 0:
        return
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return
    os.chown(path, found.pw_uid, found.pw_gid)
