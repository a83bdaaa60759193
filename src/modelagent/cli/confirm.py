"""`modelagent confirm`: an operator vouches for the version on probation.

This file knows one verb and how to word it. It does not know when a version is good: that is the judge's to say, and
here a person's.

    modelagent confirm 1.2.0          # naming the version guards against confirming a newer one by mistake
"""

from typing import NoReturn

import click

from modelagent.cli import Frame
from modelagent.cli.talk import Command, lasting, steer


@lasting
@click.argument("version", default="")
def confirm(frame: Frame, command: Command, version: str) -> NoReturn:
    """Vouch for the version on probation, without waiting for its judge.

    With VERSION (or its digest) only that one is confirmed. A blocked or withdrawn version is refused.
    """
    steer(frame, command, "confirm", argument=version)
