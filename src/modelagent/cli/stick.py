"""`modelagent repo bundle`: a release on a stick.

This file knows how that is typed and answered. It does not know what a bundle holds.

    modelagent repo bundle digits.modelagent --valid-for 30d        # one file
    modelagent repo bundle stick/ --model digits --channel stable   # a directory
"""

from datetime import timedelta
from pathlib import Path

import click

from modelagent.cli import EXIT_CODES, Frame
from modelagent.cli.repo import answer, open_repository, places
from modelagent.errors import UsageError
from modelagent.inputs.config import parse_duration
from modelagent.publish.bundle import SUFFIX, write


@click.command(epilog=EXIT_CODES)
@places
@click.option(
    "--valid-for", default="30d", show_default=True, metavar="TIME", help="How long devices may take it: 30d."
)
@click.option("--model", "models", multiple=True, metavar="NAME", help="This model alone; may be given again.")
@click.option("--channel", "channels", multiple=True, metavar="NAME", help="This channel alone; may be given again.")
@click.argument("out", type=click.Path(path_type=Path))
@click.pass_obj
def bundle(
    frame: Frame,
    out: Path,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    valid_for: str,
    models: tuple[str, ...],
    channels: tuple[str, ...],
) -> None:
    """Write what channels name now to OUT: a file NAME.modelagent, or a directory.

    Devices take it by `modelagent install OUT`, or by themselves from where sticks are mounted. It takes the online
    key, and publishes a new timestamp of the repository.
    """
    try:
        life = timedelta(seconds=parse_duration(valid_for))
    except ValueError as error:
        raise UsageError(f"--valid-for {valid_for!r}: allowed is {error}", code="bundle") from error
    if not life:
        raise UsageError(f"--valid-for {valid_for!r}: allowed is a time above 0, for instance 30d", code="bundle")
    written = write(
        open_repository(directory, keys_dir, passphrase_file), out, valid_for=life, models=models, channels=channels
    )
    rows = [{"model": model, "channel": channel, "version": version} for model, channel, version in written.releases]
    lines = [f"{row['model']} {row['channel']}: {row['version']}" for row in rows]
    kind = "file" if out.suffix == SUFFIX else "directory"
    lines.append(f"{out}: one {kind}, {written.size} bytes, good until {written.until.isoformat()}")
    lines.append(f"next, on the device: modelagent install {out.name}")
    answer(
        frame,
        {"bundle": str(out), "releases": rows, "bytes": written.size, "until": written.until.isoformat()},
        "\n".join(lines),
    )
