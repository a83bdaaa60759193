"""`modelagent repo status | serve | promote | pause | renew | verify | prune`: a repository that is there already.

This file knows how these are typed and answered. It does not know how a repository is checked or signed.

    modelagent repo promote digits beta stable --wave 2026-11-01T12:00Z=0.1
    modelagent repo verify
    modelagent repo prune digits --keep 5
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from modelagent.cli import EXIT_CODES, FAILED, Frame
from modelagent.cli.repo import answer, open_repository, places, warn_of_ended, wave_of
from modelagent.errors import UsageError
from modelagent.publish import inspection, pruning, rotation
from modelagent.publish.repository import PAUSED


@click.command(epilog=EXIT_CODES)
@places
@click.option("--wave", "waves", multiple=True, metavar="TIME=SHARE", help="From TIME on, this SHARE of devices.")
@click.argument("model")
@click.argument("source")
@click.argument("target")
@click.pass_obj
def promote(
    frame: Frame,
    model: str,
    source: str,
    target: str,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    waves: tuple[str, ...],
) -> None:
    """Let channel TARGET of MODEL name what channel SOURCE names (beta to stable, or to a group's channel)."""
    repository = open_repository(directory, keys_dir, passphrase_file)
    said = repository.promote(model, source, target, [wave_of(text) for text in waves])
    warn_of_ended(repository)
    answer(
        frame,
        {"model": model, "channel": target, "version": said.version, "digest": said.digest},
        f"{model} {target}: {said.version}"
        + (f", in {len(waves)} wave{'s' if len(waves) > 1 else ''}" if waves else ""),
    )


@click.command(epilog=EXIT_CODES)
@places
@click.argument("model")
@click.argument("channel")
@click.pass_obj
def pause(
    frame: Frame, model: str, channel: str, *, directory: Path, keys_dir: Path, passphrase_file: Path | None
) -> None:
    """Let no further device begin with what CHANNEL of MODEL names; those that run it go on.

    `modelagent repo channel MODEL CHANNEL VERSION` goes on.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    said = repository.pause(model, channel)
    warn_of_ended(repository)
    answer(
        frame,
        {"model": model, "channel": channel, "version": said.version, "paused": True},
        f"{model} {channel}: {said.version} is paused\nto go on, for all at once or with --wave: "
        f"modelagent repo channel {model} {channel} {said.version}",
    )


@click.command(epilog=EXIT_CODES)
@places
@click.argument("roles", nargs=-1)
@click.pass_obj
def renew(
    frame: Frame, roles: tuple[str, ...], *, directory: Path, keys_dir: Path, passphrase_file: Path | None
) -> None:
    """Sign ROLES again as they are, with a new expiry; without ROLES every one whose key is here.

    What `status` says ends soon: root, targets, channels, models-NAME. Snapshot and timestamp are `refresh`'s.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    with repository.ledger.locked():
        done = rotation.renew(repository.ledger, roles)
    ends = {role: repository.expiries()[role][0].isoformat() for role in done}
    text = "\n".join(f"{role}: until {end}" for role, end in ends.items())
    answer(frame, {"renewed": ends}, text or "no key of any role is here; nothing was signed")


@click.command(epilog=EXIT_CODES)
@places
@click.pass_obj
def verify(frame: Frame, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Check the repository as a device would, from nothing: every channel, release and file. Takes no private key.

    Exit code 1 when something is wrong.
    """
    found = inspection.verify(open_repository(directory, keys_dir, passphrase_file), now=time.time)
    lines = [f"good   {text}" for text in found.checked] + [f"WRONG  {text}" for text in found.errors]
    if found.strangers:
        lines.append(f"{len(found.strangers)} files that nothing names; `modelagent repo prune` removes them in time")
    answer(
        frame,
        {"good": not found.errors, "checked": found.checked, "errors": found.errors, "unnamed": found.strangers},
        "\n".join(lines) or "an empty repository",
    )
    if found.errors:
        raise SystemExit(FAILED)


@click.command(epilog=EXIT_CODES)
@places
@click.option("--keep", default=10, show_default=True, help="How many of the newest releases to keep.")
@click.option("--grace-hours", default=24.0, show_default=True, help="How long unnamed files stay for slow readers.")
@click.option("--dry-run", is_flag=True, help="Say what would go.")
@click.argument("model", required=False)
@click.pass_obj
def prune(
    frame: Frame,
    model: str | None,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    keep: int,
    grace_hours: float,
    dry_run: bool,
) -> None:
    """Let old releases of MODEL go, and remove files that nothing has named for a day.

    What a channel names always stays. Without MODEL no release goes, and no key is needed. Files go in a later run,
    when the time of grace is over: a device may be fetching them now.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    gone = [] if model is None else pruning.prune(repository, model, keep=keep, dry_run=dry_run)
    removed = pruning.sweep(repository, grace=grace_hours * 3600, now=time.time(), dry_run=dry_run)
    would = "would be " if dry_run else ""
    text = [f"{model} {version}: {would}listed no longer" for version in gone]
    text.append(f"{len(removed)} unnamed files {would}removed")
    answer(frame, {"releases": gone, "files": removed, "dry_run": dry_run}, "\n".join(text))


@click.command(epilog=EXIT_CODES)
@places
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.pass_obj
def serve(frame: Frame, *, directory: Path, keys_dir: Path, passphrase_file: Path | None, host: str, port: int) -> None:
    """Serve the repository over HTTP, for development. Ends with Ctrl-C."""
    repository = open_repository(directory, keys_dir, passphrase_file)
    try:
        server = repository.serve(host, port)
    except OSError as error:
        raise UsageError(f"{host}:{port}: {error.strerror}; name another --host or --port", code="bind") from error
    answer(frame, {"url": server.url}, f"serving {directory} at {server.url}")
    sys.stdout.flush()
    try:
        server.run()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        server.close()


def _begun(waves: list[dict[str, Any]]) -> str:
    """How far a channel's waves reach, as they were typed."""
    if any(datetime.fromisoformat(wave["start"]) == PAUSED for wave in waves):
        return ", paused"
    told = [
        f"{wave['start']}={wave['share']:g}"
        + ("@" + ",".join(wave["groups"]) if wave.get("groups") else "")
        + ("/" + ",".join(wave["hardware"]) if wave.get("hardware") else "")
        for wave in waves
    ]
    return ", in waves " + " ".join(told) if told else ""


@click.command(epilog=EXIT_CODES)
@places
@click.pass_obj
def status(frame: Frame, *, directory: Path, keys_dir: Path, passphrase_file: Path | None) -> None:
    """Show models, releases, channels, and how long the signatures last.

    Exit code 1 when a signature has less than a quarter of its life left.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    releases = {model: repository.releases(model) for model in repository.models()}
    channels = repository.channels()
    expiries = repository.expiries()
    lines = []
    for model, found in releases.items():
        lines += [f"{model} {version:<12} release {number:<6} {digest}" for version, digest, number in found]
        for said in channels:
            if said["model"] == model:
                names = said["release"]["version"] if said["release"] else "nothing"
                back = ", ".join(str(entry["version"]) for entry in said["withdrawn"])
                begun = _begun(said["waves"])
                lines.append(f"{model} {said['channel']} -> {names}{begun}" + (f" (withdrawn: {back})" if back else ""))
    for role, (end, soon) in expiries.items():
        told = "  OVER: sign it again" if end <= datetime.now(UTC) else "  SOON: sign it again" if soon else ""
        lines.append(f"{role:<20} until {end.isoformat()}{told}")
    document = {
        "models": {
            model: [{"version": version, "digest": digest, "number": number} for version, digest, number in found]
            for model, found in releases.items()
        },
        "channels": channels,
        "signatures": {role: {"until": end.isoformat(), "soon": soon} for role, (end, soon) in expiries.items()},
    }
    answer(frame, document, "\n".join(lines))
    if any(soon for _, soon in expiries.values()):
        raise SystemExit(FAILED)
