"""`modelagent config check` and `config show`: is the settings file good, and what does it say with its defaults?

This file knows how to word the answer. It does not know any setting.

    modelagent config check           # exit 2 and one line for each fault: file, key, what was found, what is allowed
    modelagent config show | grep fps # models.digits.source.fps = 30.0
"""

import json
from collections.abc import Iterator, Mapping

import click

from modelagent.cli import EXIT_CODES, Frame, json_option
from modelagent.cli.grants import missing
from modelagent.inputs.config import load


@click.group(epilog=EXIT_CODES)
def config() -> None:
    """Check and show the settings."""


@config.command(epilog=EXIT_CODES)
@json_option
@click.pass_obj
def check(frame: Frame) -> None:
    """Check the settings file and its drop-ins; nothing is started or changed."""
    settings = load(frame.config)
    models = list(settings.models)
    lacking = missing(settings)
    drop_ins = sorted({grant.drop_in for grant in lacking})
    if frame.json:
        document = {"ok": True, "file": str(frame.config), "models": models, "missing_drop_ins": drop_ins}
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(f"{frame.config}: good; models: {', '.join(models) or 'none'}")
    for grant in lacking:
        click.echo(f"{grant.reason}: {grant.unit} does not grant it; use drop-in {grant.drop_in} (docs/systemd.md)")


@config.command(epilog=EXIT_CODES)
@json_option
@click.pass_obj
def show(frame: Frame) -> None:
    """Show every setting with its value, defaults included."""
    document = load(frame.config).model_dump(mode="json")
    if frame.json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo("\n".join(f"{key} = {json.dumps(value)}" for key, value in _flatten("", document)))


def _flatten(path: str, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield from _flatten(here, value)
        else:
            yield here, value
