"""Frame sources: one file each. This page is what they all share.

It knows what a frame is and what a source must do. It does not know models, workers or how a result is made.

    source = open_source(SourceOptions(kind="replay", path=Path("camera.npz"), fps=30.0))
    source.lose = buffer.lose             # for frames that the source itself must give up
    source.run(buffer.put, stop)          # in a thread of its own, until `stop` is set or the frames end

A source never loads more than it needs: numpy always, Pillow with the first JPEG or PNG, a camera's decoder in a child.
"""

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy.typing as npt

from modelagent.errors import UsageError
from modelagent.inference.results import Row
from modelagent.inputs.schema import Mqtt

_SILENCE: Final = 30.0  # seconds without a frame from a source that states a rate, at least
_MISSED: Final = 100  # frames that such a source may be late by


class Frame(NamedTuple):
    """One input of the model, or several that belong together.

    `id` is the source's own name for it and never repeats within a run; `arrays` holds one array per model input,
    not changed afterwards; `wall` is Unix seconds and `mono` seconds since boot, both of the moment it was taken.
    `answer`, if there is one, is called once with the row in which the frame ended; it must neither wait nor raise.
    """

    id: str
    arrays: tuple[npt.NDArray[Any], ...]
    wall: float
    mono: float
    answer: Callable[[Row], None] | None = None


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source is told: see the settings' [models.<name>.source].

    `shape` and `dtype` are of frames that come without: raw bytes and JSON. `max_bytes` is the largest single frame.
    """

    kind: str = "none"
    path: Path | None = None
    url: str = ""
    fps: float = 30.0
    loop: bool = True
    queue: int = 64
    overflow: str = "drop-oldest"
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    max_bytes: int = 16 << 20
    after: str = "delete"
    done_dir: Path | None = None
    listen: str = "127.0.0.1:8970"
    answer_s: float = 30.0
    mode: int = 0o660
    group: str = ""
    topic: str = ""
    stall_s: float = 10.0
    mqtt: Mqtt | None = None
    client: str = "modelagent-frames"  # the name that the broker knows us by


class FrameSource(ABC):
    """Gives frames until told to stop.

    `kind` is its name in health, `rate_fps` the rate it states (0: as they come). `counts` is what else went on, by
    name: payloads that nobody can read, decoders restarted.
    """

    kind = "none"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.rate_fps = 0.0
        self.counts: dict[str, int] = {}
        self.lose: Callable[[Frame], None] = lambda _frame: None

    @property
    def patience(self) -> float:
        """Seconds of silence after which something is wrong with us, not with what we look at."""
        return max(_SILENCE, _MISSED / self.rate_fps) if self.rate_fps else float("inf")

    @abstractmethod
    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """Call `put` for each frame until `stop` is set or there are no more.

        `put` may wait (queue full, policy block) and then delays the source.

        Raises:
            SourceError: the source is broken for now; it may be run again.
        """

    def count(self, name: str) -> None:
        """Count something that health should show."""
        self.counts[name] = self.counts.get(name, 0) + 1


_SOURCES: Final = {
    "replay": "ReplaySource",
    "directory": "DirectorySource",
    "stdin": "StdinSource",
    "http": "HttpSource",
    "unix": "UnixSource",
    "mqtt": "MqttSource",
    "camera": "CameraSource",
}


def open_source(options: SourceOptions) -> FrameSource | None:
    """The source that the options name, None for `none`.

    Raises:
        UsageError: `config` for an unknown kind, or settings that the kind cannot work with.
    """
    if options.kind == "none":
        return None
    if options.kind not in _SOURCES:
        raise UsageError(
            f"source.kind: found {options.kind!r}, allowed is none or {' or '.join(_SOURCES)}; correct the settings",
            code="config",
        )
    # Only what is used is loaded.
    module = importlib.import_module(f"modelagent.inference.frames.{options.kind}")
    source = getattr(module, _SOURCES[options.kind])(options)
    assert isinstance(source, FrameSource)  # noqa: S101 - a programmer's error
    return source
