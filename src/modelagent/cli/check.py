"""`modelagent check` and `modelagent update`: ask the repository now.

This file knows two verbs and how to word them. It does not know what a check does.

    modelagent check                  # look; windows and waves still hold
    modelagent update -m digits       # look, and lift windows and waves; safety gates always hold
"""

from typing import NoReturn

from modelagent.cli import Frame
from modelagent.cli.talk import Command, lasting, steer


@lasting
def check(frame: Frame, command: Command) -> NoReturn:
    """Ask the repository now.

    What is found is handled as always: gates, windows and waves hold.
    """
    steer(frame, command, "check")


@lasting
def update(frame: Frame, command: Command) -> NoReturn:
    """Check, and take the offered release without waiting for its window or wave.

    Canary and probation are never left out.
    """
    steer(frame, command, "update")
