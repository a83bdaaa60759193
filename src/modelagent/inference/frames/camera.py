"""Frames of a camera or a video: RTSP, HTTP, V4L2 devices, files; decoded in a child.

This file knows when the decoder must be given up. It does not know codecs: `decoder.py`, the child, does.

    source = CameraSource(SourceOptions(kind="camera", url="rtsp://10.0.0.7/main", fps=5.0, stall_s=10.0))

Decoders hang in calls that no time limit reaches, and crash on what cameras send. So the decoder is a process: it can
be killed, its memory is its own, and PyAV is never loaded here. A decoder that ends, or gives no frame for `stall_s`,
is killed and started anew. `fps` is the most frames a second that are taken, 0 is all; the newest wins, so keep
`queue` small. A video file ends the source at its end, unless `loop`. A password in the address is neither logged nor
shown to other users of the machine, as an argument would be.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from modelagent.children import Child, describe_exit, spawn
from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.frames.decoder import ENDED, HEAD, MISSING, PIXELS, PLACE, TALL

DECODER: Final = (sys.executable, "-m", "modelagent.inference.frames.decoder")
_START: Final = 20.0  # seconds to the first frame, at least: a camera may be slow to answer


class CameraSource(FrameSource):
    """See the head of the file.

    Raises:
        UsageError: `config` without url or path.
    """

    kind = "camera"

    def __init__(self, options: SourceOptions, argv: tuple[str, ...] = DECODER) -> None:
        super().__init__(options)
        place = options.url or (str(options.path) if options.path is not None else "")
        if not place:
            raise UsageError('source: kind = "camera" needs url or path; add it to the settings', code="config")
        self._place = place
        self._shown = _shown(place)
        self._argv = argv
        self._number = 0
        self._started = False

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource; returns at the end of a file without `loop`."""
        if self._started:
            self.count("restarts")
        self._started = True
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        wish: dict[str, Any] = {
            "fps": self.options.fps,
            "loop": self.options.loop,
            "out": theirs,
            "parent": os.getpid(),
            "timeout_s": self.options.stall_s,
        }
        with open(ours, "rb", buffering=0):  # closes it
            try:
                child = spawn(
                    [*self._argv, json.dumps(wish)],
                    pass_fds=(theirs,),
                    env={**os.environ, PLACE: self._place},
                    capture=16 * 1024,
                )
            except OSError as error:
                raise self._broken(f"no process for the decoder: {error}") from error
            finally:
                os.close(theirs)
            try:
                self._read(child, ours, put, stop)
            finally:
                child.kill()
                child.wait(5.0)
                child.close()

    def _read(self, child: Child, fd: int, put: Callable[[Frame], None], stop: threading.Event) -> None:
        os.set_blocking(fd, False)
        pipe = _Pipe(fd, stop)
        patience = max(self.options.stall_s, _START)
        head = bytearray(HEAD.size)
        while pipe.fill(memoryview(head), patience):
            height, width, channels, _ = HEAD.unpack(head)
            if not (0 < height <= TALL and 0 < width <= TALL and height * width <= PIXELS and channels in {1, 3}):
                raise self._broken(f"it sent no picture that is taken: {height} x {width} x {channels}")
            picture: npt.NDArray[np.uint8] = np.empty((height, width, channels), np.uint8)
            wall, mono = time.time(), time.monotonic()
            if not pipe.fill(picture.reshape(-1).data, self.options.stall_s):
                break
            self._number += 1
            put(Frame(f"camera:{self._number}", (picture,), wall, mono))
            patience = self.options.stall_s
        if stop.is_set():
            return
        if not pipe.ended:
            self.count("stalls")
            raise self._broken(f"no frame for {patience:g} s")
        status = child.wait(2.0)
        if status == ENDED:
            return
        said = child.said(4000).replace(self._place, self._shown).strip()[-400:]
        if status == MISSING:
            raise self._broken("PyAV is not installed: pip install 'modelagent[camera]'")
        ending = "it still runs" if status is None else describe_exit(status)
        raise self._broken(f"the decoder ended ({ending}){': ' + said.splitlines()[-1] if said else ''}")

    def _broken(self, why: str) -> SourceError:
        return SourceError(f"{self._shown}: {why}; look at the camera and at source.url", code="source")


def _shown(place: str) -> str:
    """An address without user and password."""
    try:
        netloc = urlsplit(place).netloc
    except ValueError:
        return "the camera"
    return place.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else place


class _Pipe:
    """Reads whole things from the decoder, or nothing within their time."""

    def __init__(self, fd: int, stop: threading.Event) -> None:
        self.ended = False
        self._fd = fd
        self._stop = stop
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def fill(self, target: memoryview, patience: float) -> bool:
        """Fill `target`; False at the end of the pipe, after `patience` seconds without a byte, or when stopped."""
        filled, last = 0, time.monotonic()
        while filled < len(target):
            if self._stop.is_set() or time.monotonic() - last > patience:
                return False
            if not self._poll.poll(250):
                continue
            count = os.readv(self._fd, [target[filled:]])
            if not count:
                self.ended = True
                return False
            filled += count
            last = time.monotonic()
        return True
