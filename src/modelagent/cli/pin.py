"""`modelagent pin`, `unpin`, `hold`, `resume`: what should run, said by a person.

This file knows four verbs and how to word them. It does not know their precedence (`core/desired.py` does).

    modelagent pin 1.1.0              # this version and no other; refused with the reason when it is blocked
    modelagent hold --reason audit    # nothing new; a revert still happens
"""

from typing import NoReturn

import click

from modelagent.cli import Frame
from modelagent.cli.talk import Command, lasting, steer, steering


@lasting
@click.argument("version")
def pin(frame: Frame, command: Command, version: str) -> NoReturn:
    """Run this version and no other.

    An older VERSION is a deliberate downgrade. A blocked VERSION is refused with the reason, except that a block set
    by an operator's rollback is lifted by the pin.
    """
    steer(frame, command, "pin", argument=version)


@steering
def unpin(frame: Frame, command: Command) -> NoReturn:
    """Follow the channel again."""
    steer(frame, command, "unpin")


@steering
@click.option("--reason", default="", help="Shown in status until resumed.")
def hold(frame: Frame, command: Command, reason: str) -> NoReturn:
    """Activate nothing new until resumed.

    A hold never stops a revert.
    """
    steer(frame, command, "hold", argument=reason)


@steering
def resume(frame: Frame, command: Command) -> NoReturn:
    """End a hold."""
    steer(frame, command, "resume")
