"""`modelagent install-service` and `modelagent uninstall`: the units, for those without the Debian package.

This file knows which files go where and in which order. It does not know what is in the units: they are the same as
the package's, with this environment's own program in them. That of metrics is put in place and neither enabled nor
started: `systemctl enable --now modelagent-metrics` is the owner's to say.

    sudo modelagent install-service --dry-run      # the plan, nothing else
    sudo modelagent install-service                # a second time: nothing to do
    sudo modelagent uninstall                      # settings, models and results stay
    sudo modelagent uninstall --purge

With --root DIR a system image is prepared: files and users below DIR, nothing is started.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from modelagent.cli import EXIT_CODES, Frame, json_option
from modelagent.durable import write_atomic
from modelagent.errors import DeviceError, UsageError

UNITS: Final = ("modelagent.service", "modelagent-updater.service", "modelagent-metrics.service")
_UNIT_DIR: Final = "etc/systemd/system"
_PACKAGED: Final = ("usr/lib/systemd/system/modelagent.service", "lib/systemd/system/modelagent.service")
_DATA: Final = ("etc/modelagent", "var/lib/modelagent", "var/lib/modelagent-inference")
# ProtectHome and PrivateTmp hide these from the services.
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named to be refused
_PROGRAM: Final = "/usr/bin/modelagent"  # as the units say it


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do; `text` is for people, `act` does it."""

    text: str
    act: Callable[[], None]


@click.command("install-service", epilog=EXIT_CODES)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--no-start", is_flag=True, help="Do not enable and start the services.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Prepare this image.")
@json_option
@click.pass_obj
def install_service(frame: Frame, *, dry_run: bool, no_start: bool, root: Path | None) -> None:
    """Install the units of this environment, make users and settings, start.

    Calling it again does nothing. A changed unit is replaced: your own changes belong in drop-ins (systemctl edit).
    """
    base = root if root is not None else Path("/")
    _refuse_if_packaged(base)
    steps = plan_install(base, program(), start=not no_start)
    carry_out(frame, steps, dry_run=dry_run, nothing="everything is in place")


@click.command("uninstall", epilog=EXIT_CODES)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--purge", is_flag=True, help="Remove settings, models and results too. There is no way back.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Clean this image.")
@json_option
@click.pass_obj
def uninstall(frame: Frame, *, dry_run: bool, purge: bool, root: Path | None) -> None:
    """Stop the services and take their units away; data stays.

    --purge removes the data, the settings and the users as well.
    """
    base = root if root is not None else Path("/")
    _refuse_if_packaged(base)
    carry_out(frame, plan_removal(base, purge=purge), dry_run=dry_run, nothing="nothing is installed")


def program() -> Path:
    """This environment's own `modelagent`.

    Raises:
        UsageError: there is none, or the services could not reach it.
    """
    found = Path(sys.prefix) / "bin" / "modelagent"
    if not found.exists():
        raise UsageError(f"{found}: not there; install modelagent into a virtual environment with pip", code="program")
    # The interpreter too: an environment in /opt may stand on a Python in somebody's home.
    for place in (found, Path(sys.executable).resolve()):
        if any(str(place).startswith(f"{hidden}/") for hidden in _HIDDEN):
            raise UsageError(
                f"{place}: the services cannot see this place (ProtectHome, PrivateTmp); make the environment "
                "elsewhere, with the system's Python: sudo /usr/bin/python3 -m venv /opt/modelagent/venv",
                code="program",
            )
    return found


def plan_install(base: Path, binary: Path, *, start: bool) -> list[Step]:
    """What is left to do, in order; empty when all is in place. `base`: / or an image's directory."""
    steps: list[Step] = []
    units = {base / _UNIT_DIR / name: unit_text(name, binary) for name in UNITS}
    users = base / "etc/sysusers.d/modelagent.conf"
    files = {**units, users: shipped("systemd/modelagent.sysusers")}
    settings = base / "etc/modelagent/modelagent.toml"
    if not settings.exists():
        files[settings] = shipped("config/modelagent.toml")
    changed = [path for path, text in files.items() if _read(path) != text]
    steps += [Step(f"write {path}", _writer(path, files[path])) for path in changed]
    drop_ins = base / "etc/modelagent/conf.d"
    if not drop_ins.is_dir():
        steps.append(Step(f"make {drop_ins}", lambda: drop_ins.mkdir(parents=True, exist_ok=True)))
    link = base / "usr/local/bin/modelagent"
    if binary.parent != link.parent and not os.path.lexists(link):
        steps.append(Step(f"link {link} to {binary}", lambda: _link(link, binary)))
    live = base == Path("/")
    where = () if live else (f"--root={base}",)
    if users in changed:
        steps.append(_command("make users and group", "systemd-sysusers", *where, "modelagent.conf"))
    if live and any(path in changed for path in units):
        steps.append(_command("let systemd read the units", "systemctl", "daemon-reload"))
    if start and not (base / _UNIT_DIR / "multi-user.target.wants/modelagent.service").is_symlink():
        steps.append(_command("enable modelagent", "systemctl", *where, "--quiet", "enable", "modelagent.service"))
    if start and live and not _is_active():
        steps.append(_command("start modelagent and modelagent-updater", "systemctl", "start", "modelagent.service"))
    return steps


def plan_removal(base: Path, *, purge: bool) -> list[Step]:
    """What there is to take away, in order."""
    steps: list[Step] = []
    live = base == Path("/")
    where = () if live else (f"--root={base}",)
    if live and (base / _UNIT_DIR / UNITS[0]).exists():
        steps.append(_command("stop the services", "systemctl", "stop", *UNITS))
    wants = base / _UNIT_DIR / "multi-user.target.wants"
    if enabled := [name for name in UNITS if (wants / name).is_symlink()]:
        names = ", ".join(name.removesuffix(".service") for name in enabled)
        steps.append(_command(f"disable {names}", "systemctl", *where, "--quiet", "disable", *enabled))
    files = [base / _UNIT_DIR / name for name in UNITS] + [base / "etc/sysusers.d/modelagent.conf"]
    link = base / "usr/local/bin/modelagent"
    if link.is_symlink() and link.readlink() == Path(sys.prefix) / "bin" / "modelagent":
        files.append(link)
    found = [path for path in files if os.path.lexists(path)]
    steps += [Step(f"remove {path}", path.unlink) for path in found]
    if live and found:
        steps.append(_command("let systemd forget the units", "systemctl", "daemon-reload"))
    if purge:
        data = [base / name for name in _DATA if (base / name).exists()]
        steps += [Step(f"remove {path} and all in it", _remover(path)) for path in data]
    return steps


def carry_out(frame: Frame, steps: Sequence[Step], *, dry_run: bool, nothing: str) -> None:
    """Do the steps, or say them."""
    if not dry_run:
        for step in steps:
            try:
                step.act()
            except OSError as error:
                place = error.filename or "the system"
                raise DeviceError(
                    f"{step.text}: {place}: {error.strerror}; use sudo and call this again: it goes on there",
                    code="not-writable",
                ) from error
            if not frame.json:
                click.echo(step.text)
    elif not frame.json:
        for step in steps:
            click.echo(f"would {step.text}")
    if frame.json:
        click.echo(json.dumps({"dry_run": dry_run, "steps": [step.text for step in steps]}, indent=1))
    elif not steps:
        click.echo(nothing)


def shipped(name: str) -> str:
    """A file that comes with the program: in the environment's share/, or in the source tree it is run from.

    Raises:
        DeviceError: it is in neither.
    """
    places = (Path(sys.prefix) / "share" / "modelagent" / name, Path(__file__).resolve().parents[3] / name)
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise DeviceError(f"{places[0]}: not there; install modelagent again", code="incomplete")


def unit_text(name: str, binary: Path) -> str:
    """The text of a unit that starts `binary`."""
    return shipped(f"systemd/{name}").replace(f"={_PROGRAM} ", f"={binary} ")


def _refuse_if_packaged(base: Path) -> None:
    for name in _PACKAGED:
        if (base / name).exists():
            raise UsageError(
                f"{base / name}: a package has installed the services; use apt to install, upgrade or remove them",
                code="packaged",
            )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _writer(path: Path, text: str) -> Callable[[], None]:
    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode(), mode=0o644)

    return write


def _remover(path: Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(path)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def _command(text: str, *words: str) -> Step:
    def run() -> None:
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        except FileNotFoundError as error:
            raise DeviceError(
                f"{text}: {words[0]}: not there; is this a system with systemd?", code="systemd"
            ) from error
        if done.returncode != 0:
            raise DeviceError(
                f"{text}: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}; correct that, then "
                "call this again",
                code="systemd",
            )

    return Step(f"{text} ({' '.join(words)})", run)


def _is_active() -> bool:
    try:
        words = ["/usr/bin/systemctl", "is-active", "--quiet", "modelagent.service"]
        return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False
