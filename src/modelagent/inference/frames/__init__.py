"""Frame sources: one file each. This page is what they all share.

It knows what a frame is and what a source must do. It does not know models, workers or results.

    source = open_source(SourceOptions(kind="replay", path=Path("camera.npz"), fps=30.0))
    source.run(buffer.put, stop)          # in a thread of its own, until `stop` is set or the frames end
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from modelagent.errors import UsageError


class Frame(NamedTuple):
    """One input of the model, or several that belong together.

    `id` is the source's own name for it and never repeats within a run; `arrays` holds one array per model input,
    not changed afterwards; `wall` is Unix seconds and `mono` seconds since boot, both of the moment it was taken.
    """

    id: str
    arrays: tuple[npt.NDArray[Any], ...]
    wall: float
    mono: float


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source is told: see the settings' [models.<name>.source]."""

    kind: str = "none"
    path: Path | None = None
    fps: float = 30.0
    loop: bool = True


class FrameSource(Protocol):
    """Gives frames until told to stop.

    `kind` is its name in health, `rate_fps` the rate it states (0: as fast as frames are taken).
    """

    kind: str
    rate_fps: float

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """Call `put` for each frame until `stop` is set or there are no more.

        `put` may wait (queue full, policy block) and then delays the source.

        Raises:
            SourceError: the source is broken for now; it may be run again.
        """


def open_source(options: SourceOptions) -> FrameSource | None:
    """The source that the options name, None for `none`.

    Raises:
        UsageError: `config` for an unknown kind.
    """
    if options.kind == "none":
        return None
    if options.kind == "replay":
        from modelagent.inference.frames.replay import ReplaySource  # noqa: PLC0415 - only what is used is loaded

        return ReplaySource(options)
    raise UsageError(
        f"source.kind: found {options.kind!r}, allowed is none or replay; correct the settings", code="config"
    )
