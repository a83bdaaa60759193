"""`modelagent channel`: follow another channel of the same repository.

This file knows one verb and how to word it. It does not know what a channel names.

    modelagent channel beta           # until `channel` is edited in the settings
    modelagent channel --reset        # what the settings say
"""

from typing import NoReturn

import click

from modelagent.cli import Frame
from modelagent.cli.talk import Command, lasting, steer
from modelagent.errors import UsageError


@lasting
@click.argument("name", default="")
@click.option("--reset", is_flag=True, help="Follow the settings' channel again.")
def channel(frame: Frame, command: Command, *, name: str, reset: bool) -> NoReturn:
    """Follow another channel of the repository.

    NAME is followed until the settings' `channel` is edited.
    A pin goes before any channel. What the channel left behind takes back stays taken back.
    """
    if bool(name) == reset:
        raise UsageError("give either the NAME of a channel or --reset", code="bad-option")
    steer(frame, command, "set-channel", argument=name)
