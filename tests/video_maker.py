"""Video files made on the spot, and a server that sends one and may stop in the middle.

path = make_video(tmp_path / "line.mp4", count=30)     # frame i is grey value 8 * i
with VideoServer(path.read_bytes(), stall_after=5000) as server: server.url
"""

import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np


def make_video(path: Path, *, count: int, fps: int = 30, size: tuple[int, int] = (48, 64), step: int = 8) -> Path:
    """An MPEG-4 file of `count` pictures (height, width), each of one grey value."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            picture = np.full((*size, 3), min(255, step * number), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class VideoServer:
    """Answers every GET with the same bytes, and stands still after `stall_after` of them."""

    def __init__(self, data: bytes, *, stall_after: int | None = None) -> None:
        self._data = data
        self._stall_after = stall_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.asked = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/line.ts"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)
        for sock in self._open:
            sock.close()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            self.asked += 1
            try:
                sock.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._data)}\r\nContent-Type: video/mp2t\r\n\r\n"
                sock.sendall(head.encode() + self._data[: self._stall_after])
            except OSError:
                continue
            if self._stall_after is None:
                sock.close()
