"""A client that asks as fast as it is answered, over a few kept connections: the same for every server.

This file knows one request, repeated. As a program it prints what came of it:

    python -m benchmarks.asker http://127.0.0.1:8970/ body.json 4 3.0      # {"requests": 9120, "p99_ms": 1.9, ...}

Raw sockets and one thread: a client that costs more than the server would measure itself.
"""

import json
import selectors
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.measure import quantile


def main(url: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Ask over so many connections for so long; every answer must be a 200."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    selector = selectors.DefaultSelector()
    begun: dict[socket.socket, float] = {}
    heard: dict[socket.socket, bytes] = {}
    for _ in range(connections):
        sock = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=10.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, sock)
        heard[sock], begun[sock] = b"", time.perf_counter()
        sock.sendall(request)
    took: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for key, _ in selector.select(5.0):
            sock = key.data
            data = heard[sock] = heard[sock] + sock.recv(65536)
            top, end, rest = data.partition(b"\r\n\r\n")
            if not end or len(rest) < _length(top):
                continue
            if not top.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(data[:200])
            now = time.perf_counter()
            took.append(now - begun[sock])
            heard[sock], begun[sock] = b"", now
            sock.sendall(request)
    passed = time.perf_counter() - start
    for sock in heard:
        sock.close()
    return {
        "requests": len(took),
        "seconds": passed,
        "p50_ms": quantile(took, 0.5) * 1e3,
        "p99_ms": quantile(took, 0.99) * 1e3,
    }


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    raise RuntimeError(f"an answer without a length: {head[:200]!r}")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]).read_bytes(), int(sys.argv[3]), float(sys.argv[4]))))
