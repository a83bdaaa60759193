"""Replays the frames of an .npz file at a steady rate: demonstration, tests, benchmarks.

This file knows the file's format and how to pace. It does not know what looks at the frames.

    source = ReplaySource(SourceOptions(kind="replay", path=Path("camera.npz"), fps=30.0, loop=True))

The file holds `input_0` (or `x`) and, for models of several inputs, `input_1` and so on, each [N, ...] with one
frame per entry of the first axis; anything else in it is ignored. Replacing the file by a rename changes what the
camera sees: it is looked at once a second and at each end, and a new one is taken up at the next frame.
Ids are `<file stem>.<generation>:<index in the file>:<running number>`.
"""

import os
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions

_LOOK: Final = 1.0  # seconds between two looks at the file
_BEHIND: Final = 1.0  # seconds; later than that the schedule starts anew instead of catching up in one burst

_Arrays = tuple[npt.NDArray[Any], ...]


class ReplaySource(FrameSource):
    """Frames of an .npz file.

    Raises:
        UsageError: `config` without a path.
    """

    kind = "replay"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        if options.path is None:
            raise UsageError('source: kind = "replay" needs path; add the .npz file to the settings', code="config")
        self.path = options.path
        self.rate_fps = options.fps
        self._loop = options.loop
        self._generation = 0
        self._number = 0
        self._seen: tuple[int, int, int] | None = None
        self._arrays: _Arrays = ()

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource. Without `loop` it returns after the last frame."""
        self._take_up()
        period = 1.0 / self.rate_fps if self.rate_fps else 0.0
        deadline = time.monotonic()
        look = deadline + _LOOK
        index = 0
        while not stop.is_set():
            now = time.monotonic()
            at_end = index >= len(self._arrays[0])
            if now >= look or at_end:
                look = now + _LOOK
                if self._changed():
                    self._take_up()
                    index, at_end = 0, False
            if at_end:
                if not self._loop:
                    return
                index = 0
            if period:
                if deadline > now and stop.wait(deadline - now):
                    return
                if now - deadline > _BEHIND:
                    deadline = now
                deadline += period
            name = f"{self.path.stem}.{self._generation}:{index}:{self._number}"
            arrays = tuple(array[index] for array in self._arrays)
            put(Frame(name, arrays, time.time(), time.monotonic()))
            self._number += 1
            index += 1

    def _changed(self) -> bool:
        """Whether the path names another file than the one being played; a missing one is no change."""
        try:
            return _identity(self.path.stat()) != self._seen
        except OSError:
            return False

    def _take_up(self) -> None:
        """Read the file; while one is being played, an unreadable successor is passed over."""
        try:
            with self.path.open("rb") as file:
                self._seen = _identity(os.fstat(file.fileno()))
                self._arrays = _read(file, self.path)
            self._generation += 1
        except (OSError, SourceError) as error:
            if self._arrays:
                return
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{self.path}: {error.strerror or error}; put the .npz there or correct source.path", code="source"
            ) from error


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _read(file: Any, path: Path) -> _Arrays:
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = [name for name in ("input_0", "x") if name in archive.files][:1]
            while names and f"input_{len(names)}" in archive.files:
                names.append(f"input_{len(names)}")
            arrays = tuple(np.ascontiguousarray(archive[name]) for name in names)
    except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a readable .npz ({error}); write it with numpy.savez", code="source") from error
    if not arrays or any(a.ndim < 1 or len(a) != len(arrays[0]) for a in arrays) or not len(arrays[0]):
        raise SourceError(
            f"{path}: needs input_0 (or x), and as many entries in each input_<i>; at least one frame",
            code="source",
        )
    return arrays
