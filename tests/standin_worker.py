"""A stand-in for the real worker: speaks its protocol without a model, and misbehaves as the slot's version asks.

    ModelOptions(..., worker_argv=(sys.executable, "tests/standin_worker.py"))

The manifest's version is a list of words joined by `+`: `load-3.0` takes so many seconds to load, `load-hang` never
loads, `load-die` dies; `die-50` dies with every 50th frame it is given, `bomb-50` hangs from its 50th frame on,
`trip-50` fails on every 50th and does it when asked again, `nan-50` gives NaN from its 50th on, `slow-150` takes 80 ms
for each from its 150th on, `leak-500` keeps 500 kB more with every frame. Otherwise it answers class 1. No real model
does these on demand.

With STANDIN_DIARY in the environment, the name of a file, each load leaves a line there: slot, when it began, when it
was over (seconds since boot).
"""

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

import numpy as np

from modelagent.children import bind_to_parent
from modelagent.inference.exchange import FAILED, NOT_FINITE, OK, WorkerSide, plan
from modelagent.manifest import parse

ANSWER = np.zeros((1, 10), np.float32)
ANSWER[0, 1] = 1.0


def main(argument: dict[str, int]) -> None:
    """Answer until the parent hangs up."""
    begun_at = time.monotonic()
    bind_to_parent(argument["parent"])
    control = socket.socket(fileno=argument["ctl"])
    slot = Path(json.loads(control.recv(65536))["slot"])
    manifest = parse((slot / "manifest.json").read_bytes())
    wishes = dict(word.split("-", 1) for word in manifest.version.split("+") if "-" in word)
    match wishes.get("load", "0"):
        case "hang":
            time.sleep(3600)
        case "die":
            os.abort()
        case seconds:
            time.sleep(float(seconds))
    if diary := os.environ.get("STANDIN_DIARY"):
        with Path(diary).open("a") as file:
            file.write(f"{slot.name} {begun_at} {time.monotonic()}\n")
    control.send(json.dumps({"ok": True, "load_ms": 1.0}).encode())
    control.recv(65536)
    side = WorkerSide(
        plan(manifest.inputs, manifest.outputs, stateful=manifest.stateful),
        memory_fd=argument["memory"],
        request_fd=argument["request"],
        reply_fd=argument["reply"],
    )
    control.send(json.dumps({"ok": True, "nice": 0}).encode())
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(side.request_fd, select.POLLIN)
    number = 0
    hoard: list[bytearray] = []
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                return
            while side.take():
                number += 1
                if number % int(wishes.get("die", "1000000000")) == 0:
                    os.abort()
                if number >= int(wishes.get("bomb", "1000000000")):
                    time.sleep(3600)
                begun = time.perf_counter_ns()
                if number >= int(wishes.get("slow", "1000000000")):
                    time.sleep(0.08)
                if "leak" in wishes:
                    hoard.append(bytearray(b"x" * 1000 * int(wishes["leak"])))
                side.slot.write_outputs([ANSWER])
                trip = number % int(wishes.get("trip", "1000000000")) == 0
                status = FAILED if trip else NOT_FINITE if number >= int(wishes.get("nan", "1000000000")) else OK
                side.answer(status, time.perf_counter_ns() - begun)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
