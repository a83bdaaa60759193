"""Sends frames to a Unix socket and prints the results: unix_client.py SOCKET FRAME... (.npy, .npz, pictures, JSON)."""

import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any


def ask(sock: socket.socket, frame: bytes) -> dict[str, Any]:
    """The result for one frame; {"error": ...} when there is none."""
    sock.sendall(struct.pack("<I", len(frame)) + frame)
    with sock.makefile("rb") as answers:
        return dict(json.loads(answers.readline()))


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        for name in sys.argv[2:]:
            print(name, ask(sock, Path(name).read_bytes()))
