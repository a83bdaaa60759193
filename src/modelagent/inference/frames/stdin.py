"""Frames on standard input: .npy after .npy, lines of JSON, or raw numbers of a stated shape.

This file knows where one frame ends and the next begins. It does not know what sends them.

    ffmpeg ... -f rawvideo -pix_fmt rgb24 - | modelagent run inference      # source.shape = [480, 640, 3], uint8

The forms may be mixed; what is neither .npy nor a whole line of JSON is raw, also where its first numbers look like a
bracket or the end of a line. At the end of the input the source ends. Half a frame at the end, or bytes that nobody can
read, end it too: after them nothing says where the next frame begins.
"""

import codecs
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from numpy.lib import format as npy

from modelagent.errors import SourceError
from modelagent.inference.frames import Frame, FrameSource, SourceOptions
from modelagent.inference.frames.payload import Payload, bad, raw, raw_length, read, read_npy

_CHUNK: Final = 1 << 20
_JSON: Final = re.compile(rb'\{\s*(["}]|$)|(\[\s*){1,64}([^\[\s]|$)')  # how it may begin; no array has more axes
_CONTROL: Final = bytes(byte for byte in range(32) if byte not in b"\t\r")


class StdinSource(FrameSource):
    """See the head of the file. `fd`: read this descriptor instead of standard input."""

    kind = "stdin"

    def __init__(self, options: SourceOptions, fd: int | None = None) -> None:
        super().__init__(options)
        self._fd = fd
        self._number = 0
        self._data = bytearray()
        self._lines = not options.shape  # ends of lines before the next frame are none of its numbers

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource; returns at the end of the input."""
        fd = sys.stdin.fileno() if self._fd is None else self._fd
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not stop.is_set():
            if not poll.poll(500):
                continue
            chunk = os.read(fd, _CHUNK)
            self._data += chunk
            while not stop.is_set():
                payload = self._next(ended=not chunk)
                if payload is None:
                    break
                self._number += 1
                name = payload.id or "stdin"
                put(Frame(f"{name}:{self._number}", payload.arrays, time.time(), time.monotonic()))
            if not chunk:
                return

    def _next(self, *, ended: bool) -> Payload | None:
        """The next frame, None while there is not enough of it; SourceError when there never will be."""
        while self._lines and self._data.startswith((b"\n", b"\r")):
            del self._data[0]
        if not self._data:
            return None
        try:
            taken = self._cut(ended=ended)
        except (ValueError, SourceError) as error:
            self._data.clear()
            self.count("unreadable")
            raise SourceError(f"standard input, frame {self._number + 1}: {error}", code="source") from error
        if taken is None and (ended or len(self._data) > self.options.max_bytes + (1 << 16)):
            length = len(self._data)
            self._data.clear()
            self.count("unreadable")
            raise SourceError(
                f"standard input, frame {self._number + 1}: {length} bytes that are no whole frame of at most "
                f"{self.options.max_bytes} bytes; correct the sender or source.max_mb",
                code="source",
            )
        return taken

    def _cut(self, *, ended: bool) -> Payload | None:
        if npy.MAGIC_PREFIX.startswith(self._data[:6]) and len(self._data) < 8 and not ended:
            return None
        if self._data.startswith(npy.MAGIC_PREFIX):
            try:
                with memoryview(self._data) as view:
                    array, end = read_npy(view)
            except EOFError:
                return None
            del self._data[:end]
            return Payload((array,), "")
        end = self._data.find(b"\n")
        whole = ended or end >= 0
        end = len(self._data) if end < 0 else end
        if _JSON.match(self._data) and _is_text(self._data[:end]):
            if not whole:
                return None
            try:
                payload = read(bytes(self._data[:end]), self.options)
            except SourceError:
                if not self.options.shape:
                    raise
            else:
                del self._data[:end]
                self._lines = True
                return payload
        if not self.options.shape:
            raise bad("neither .npy nor JSON; for raw numbers set source.shape and source.dtype")
        end = raw_length(self.options)
        if len(self._data) < end:
            return None
        frame = bytes(self._data[:end])
        del self._data[:end]
        self._lines = False
        return Payload((raw(frame, self.options),), "")


def _is_text(line: bytearray) -> bool:
    """Whether this may be (the beginning of) a line of text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return not any(line.find(byte) >= 0 for byte in _CONTROL)
