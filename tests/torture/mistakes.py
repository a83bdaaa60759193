"""Mistakes that are planted in the device, one at a time, to see that the campaign finds them. Only for its own tests.

matrix = Matrix(directory, disk, prepare=MISTAKES["fsync"])     # called in each new process of the device
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.durable import LinkId
from modelagent.steps.journal import Journal


def forget_fsync() -> None:
    """What is written is never synced, names are. Only a power cut shows it."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            real(fd)

    os.fsync = fsync  # type: ignore[assignment]


def swap_in_two_steps() -> None:
    """A link is taken away before the new one is put there: for a moment there is none."""
    real = durable.swap_link

    def swap(prepared: Path, link: Path) -> LinkId:
        durable.unlink(link)
        return real(prepared, link)

    durable.swap_link = swap


def write_past() -> None:
    """A note is kept beside the state by somebody who does not know `durable`. Only strace shows it."""
    real = Journal.write

    def write(self: Journal[Any], *words: Any) -> None:
        real(self, *words)
        (self.directory / "note").write_text("kept")

    Journal.write = write  # type: ignore[method-assign,assignment]


MISTAKES: Final[dict[str, Callable[[], None]]] = {
    "fsync": forget_fsync,
    "swap": swap_in_two_steps,
    "write": write_past,
}
