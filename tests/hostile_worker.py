"""A worker that was taken over: a program that stands in for the real one and misbehaves on command.

    python tests/hostile_worker.py <mode> '<json argument>'

It answers the first command (so that it passes for a worker that came up) and then does what `mode` says. It sets no
limit on itself, and does not bind itself to its parent: what holds it must hold from outside. Only `break-out` enters
the cage first, as the worker does before it has seen a model, and then tries to leave it.
"""

import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelagent.sandbox import confine


def main(mode: str, argument: dict[str, Any]) -> None:
    """Come up like a worker, then misbehave."""
    control = socket.socket(fileno=argument["ctl"])
    if mode == "silent":
        time.sleep(3600)
    control.recv(65536)
    if mode == "break-out":
        confine(argument["readable"])
    control.send(json.dumps({"ok": True, "peak_kb": 1, "rss_kb": 1}).encode())
    control.recv(65536)
    if mode == "break-out":
        control.send(json.dumps({"ok": False, "code": "load", "reason": f"broke out by {break_out()}"}).encode())
        time.sleep(3600)
    if mode == "eat":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1)) * (1 << 24))
    if mode == "reserve":
        hoard = [bytearray(8 << 30)]
    if mode == "fork":
        os.fork()
        os.fork()
        time.sleep(3600)
    if mode == "print":
        while True:
            try:
                os.write(1, b"x" * 65536)
            except OSError:
                time.sleep(0.001)
    if mode == "fill":
        with tempfile.TemporaryFile(dir=os.environ.get("HOSTILE_DIRECTORY")) as file:
            while True:
                file.write(b"x" * (1 << 20))
                file.flush()
    if mode == "spin":
        while True:
            pass
    if mode == "garbage":
        control.send(b"\xff" * 65536)
        time.sleep(3600)
    if mode == "nested":
        control.send(b"[" * 60000)
        time.sleep(3600)
    if mode == "hang-up":
        control.close()
        time.sleep(3600)
    if mode == "exit":
        sys.exit(7)
    lie(control, mode)


def break_out() -> list[str]:
    """What a runtime that was taken over can still do in the cage that the worker put itself into."""
    place = Path(os.environ["HOSTILE_DIRECTORY"])
    attempts: dict[str, Callable[[], object]] = {
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606 - the point
        "socket": lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
        "signal": lambda: os.kill(os.getppid(), 0),
        "write": lambda: (place / "loot").write_text("x"),
        "read": (place / "secret").read_text,
        "remove": (place / "secret").unlink,
    }
    done = []
    for name, attempt in attempts.items():
        with contextlib.suppress(PermissionError):
            attempt()
            done.append(name)
    return done


def lie(control: socket.socket, mode: str) -> None:
    """Answer everything, falsely."""
    control.send(json.dumps({"ok": True, "load_ms": 1.0, "warmup_ms": 1.0, "runtime": "x", "delegate": "cpu"}).encode())
    while True:
        command = json.loads(control.recv(65536))
        if command["do"] == "samples":
            answer: dict[str, object] = {"ok": True, "count": 400, "has_labels": True}
        elif command["do"] == "run":
            label = "3" if mode == "wrong-type" else 3
            rows: list[list[object]] = [
                [i, 1.0, True, 3, label, 1.0, 1.0, []] for i in range(command["start"], command["stop"])
            ]
            answer = {"ok": True, "rows": rows[:-1] if mode == "short" else rows}
        else:
            answer = {"ok": True, "peak_kb": 1, "rss_kb": 1}
        control.send(json.dumps(answer).encode())
        if command["do"] == "unload":
            return


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
