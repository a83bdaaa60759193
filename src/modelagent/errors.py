"""Four families of errors, told apart by whose fault it is and therefore by the remedy.

This file knows the families and their remedies. It does not know who raises or who catches. A programmer
error (KeyError, TypeError, ...) belongs to no family and is never caught.

    try:
        acquire(...)
    except AgentError as error:
        match error.remedy: ...     # the machine reads the remedy, never a list of classes

Every message names the input, the place and what to do about it.
"""

from enum import Enum
from typing import ClassVar, Final

# What reading a small document of our own may raise once its bytes are no longer those that were written.
UNREADABLE: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class Remedy(Enum):
    """What the device does about an error."""

    RETRY = "retry"  # the way is at fault: try again later, or another mirror
    STOP = "stop"  # the sender is at fault: use nothing of it, and say so loudly
    WAIT = "wait"  # the device is at fault: wait until it can
    BLOCK = "block"  # the model is at fault: never try these bytes again


def sayable(text: str) -> str:
    """A text as UTF-8 can carry it: half characters, as JSON and odd file names bring them, are spelt out."""
    # What is said ends in State, and a state that cannot be written down ends the process, at every start anew.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class AgentError(Exception):
    """Base of the four families.

    Args:
        message: names the input, the place and the remedy, for a person; kept as UTF-8 can carry it.
        code: a short stable word for machines, for instance `no-space` or `rollback-attack`.
    """

    remedy: ClassVar[Remedy]

    def __init__(self, message: str, *, code: str = "") -> None:
        self.message = sayable(message)
        super().__init__(self.message)
        self.code = code or type(self).__name__


class SourceError(AgentError):
    """The way to the repository failed: retry, later or elsewhere."""

    remedy = Remedy.RETRY


class TrustError(AgentError):
    """The sender is not to be believed: stop, use nothing, shout. `code` names the attack class."""

    remedy = Remedy.STOP


class DeviceError(AgentError):
    """This device cannot, for now: wait (no space, no permission, no token)."""

    remedy = Remedy.WAIT


class ModelError(AgentError):
    """This model cannot, ever: block it."""

    remedy = Remedy.BLOCK


class UsageError(AgentError):
    """A person's input was refused: setting, command or argument. Nothing was changed."""

    remedy = Remedy.STOP
