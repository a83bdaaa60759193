"""The decoder: a child process that turns a camera or a video into raw pictures on a pipe.

This file knows PyAV, and how a stream is opened, paced and thinned. It does not know models, queues or who restarts it.

    export MODELAGENT_PLACE=rtsp://...
    python -m modelagent.inference.frames.decoder '{"fps": 5, "loop": false, "out": 4, "parent": 47, "timeout_s": 9}'

On the pipe: for each picture 16 bytes, little-endian {u32 height, u32 width, u32 channels, u32 0}, then its bytes, red
first. The reader takes them as fast as they come; what is older than the newest is its business. A file is played at
`fps`, or as fast as it is read with 0; a live stream is thinned to `fps`. Exit status 3 is the end of a file, 4 means
that PyAV is not installed; anything else is a failure, whose reason is the last line printed.
"""

import contextlib
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from modelagent.children import bind_to_parent

HEAD: Final = struct.Struct("<IIII")
PLACE: Final = "MODELAGENT_PLACE"  # environment variable: arguments can be read by every user of the machine
TALL: Final = 1 << 14  # pixels of an edge; more is no picture
PIXELS: Final = 64_000_000  # of one picture: a small stream may unfold into a great one
ENDED: Final = 3
MISSING: Final = 4


def main(wish: dict[str, Any]) -> int:
    """Play until the end, the reader's end, or ours."""
    bind_to_parent(int(wish["parent"]))
    os.nice(5)  # the model comes first
    try:
        import av  # noqa: PLC0415 - an extra; its absence has an exit status of its own
    except ImportError:
        return MISSING
    av.logging.set_level(av.logging.ERROR)
    place, fps = os.environ[PLACE], float(wish["fps"])
    device = place.startswith("/dev/")
    is_file = not device and Path(place).is_file()
    period = 1.0 / fps if fps else 0.0
    due = time.monotonic()
    while True:
        count = 0
        for picture in _pictures(place, device=device, timeout_s=float(wish["timeout_s"])):
            count += 1
            now = time.monotonic()
            if period and is_file:
                if due > now:
                    time.sleep(due - now)
                due = max(due + period, now - 1.0)
            elif period and now < due:
                continue
            else:
                due = max(due + period, now - period)
            if picture.width * picture.height > PIXELS:
                print(f"a picture of {picture.width}x{picture.height}, at most {PIXELS} pixels are taken")
                return 1
            _send(int(wish["out"]), picture.to_ndarray(format="rgb24"))
        if not is_file:
            print(f"{place}: the stream ended")
            return 1
        if not count:
            print(f"{place}: no picture in it")
            return 1
        if not wish["loop"]:
            return ENDED


def _pictures(place: str, *, device: bool, timeout_s: float) -> Iterator[Any]:
    import av  # noqa: PLC0415 - see above

    options = {"rtsp_transport": "tcp"} if place.startswith("rtsp") else {}
    with av.open(
        place, format="v4l2" if device else None, options=options, timeout=(max(timeout_s, 5.0), timeout_s)
    ) as container:
        stream = container.streams.video[0]
        # Threads by slices: by frames would hold back as many frames as there are threads.
        stream.thread_type = "SLICE"
        yield from container.decode(stream)


def _send(fd: int, array: Any) -> None:
    height, width, channels = array.shape
    waiting = [memoryview(HEAD.pack(height, width, channels, 0)), memoryview(array.tobytes())]
    while waiting:
        count = os.writev(fd, waiting)
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.pop(0))
        if waiting:
            waiting[0] = waiting[0][count:]


if __name__ == "__main__":
    status = 1
    try:
        status = main(json.loads(sys.argv[1]))
    except BrokenPipeError:
        status = 0
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent is told in one line and starts anew
        print(f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # libav's threads may hang at exit
