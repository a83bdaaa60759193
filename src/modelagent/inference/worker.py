"""The worker: a child process that alone holds one model.

This file knows what the process gives up before it imports anything heavy. It does not know how commands are carried
out (`answers.py`), nor links, policies or the network. A model that crashes or hangs takes this process down and
nothing else, so the loop and the canary both run models only through it.

    python -m modelagent.inference.worker '{"ctl": 5, "memory": null, "request": null, "reply": null,
        "parent": 4711, "version": "0.1.0", "nice": 19, "sandbox": true, "readable": ["/.../slots/5f..."],
        "limits": {"memory_mb": 400, "cpu_s": 60}}'

Commands are single JSON packets on the inherited `ctl` socket (AF_UNIX, SOCK_SEQPACKET), each answered by one packet
with "ok"; a refusal has "code" and "reason":

    load {slot, threads, delegate?}    check hash, load, check the contract, warm up -> tensors, times, memory, runtime
    serve {}                answer frames in the mailbox; every thread at normal priority where that is allowed
    samples {slot?}         open the signed samples (of another slot, to compare on the same ones) -> count, has_labels
    run {index} | {start, stop}    infer one sample, or at most 200 -> latency, finite, prediction, label, confidence
    memory {}               peak and present resident memory
    unload {}               close the model, answer, end with status 0

End of file on `ctl` ends the process; no signal has a handler, because none would run during a hung `invoke`.
In the sandbox (`sandbox.py`) only `readable` can be read, nothing written, no process or channel made.
`limits.memory_mb` is address space on top of what the runtime itself maps once imported, so that one number means
the same on every device.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelagent import __version__
from modelagent.children import OTHER_VERSION, Limits, bind_to_parent, limit_self
from modelagent.sandbox import confine

_MIB: Final = 1024 * 1024


def _limits(argument: Mapping[str, Any]) -> tuple[Limits, int | None]:
    """The limits that hold from the start, and the address space on top of the runtime, MiB."""
    values = argument.get("limits") or {}
    early = Limits(
        cpu_s=values.get("cpu_s"),
        files=values.get("files"),
        fsize_mb=values.get("fsize_mb"),
        processes=values.get("processes"),
    )
    return early, values.get("memory_mb")


def main(argument: Mapping[str, Any]) -> None:
    """Bind to the parent, give up what is not needed, import the runtime, answer commands."""
    bind_to_parent(int(argument["parent"]))
    expected = argument.get("version", __version__)
    if expected != __version__:
        # The program was replaced under a running parent: half of one version and half of another is neither.
        print(f"this worker is modelagent {__version__}, its parent is {expected}", file=sys.stderr)
        raise SystemExit(OTHER_VERSION)
    sandbox = bool(argument["sandbox"])
    early, memory_mb = _limits(argument)
    limit_self(
        early,
        nice=int(argument["nice"]),
        oom_score_adj=1000 if sandbox else None,
        no_new_privileges=True,
    )
    # numpy's linear algebra would start one thread per processor, and only ever multiply nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Only now the heavy part: it takes its half a second at the priority and below the limits just set.
    from modelagent.inference import answers, interpreter  # noqa: PLC0415 - the order is the point

    interpreter.import_runtime()
    if memory_mb is not None:
        mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGESIZE")
        limit_self(Limits(memory_mb=mapped // _MIB + int(memory_mb)))
    control = socket.socket(fileno=int(argument["ctl"]))  # before the cage: later this very call is refused
    if sandbox:
        confine(argument.get("readable", ()))
    mailbox = None
    if all(argument.get(name) is not None for name in ("memory", "request", "reply")):
        mailbox = (int(argument["memory"]), int(argument["request"]), int(argument["reply"]))
    answers.Worker(control, mailbox).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
