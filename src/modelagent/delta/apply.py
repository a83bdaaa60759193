"""The program that applies a delta on a device, in a cage.

This file knows what the process gives up before it imports anything heavy. `rebuild.py` does the work; who started it
compares the result's sha256 with the signed one.

    python -m modelagent.delta.apply '{"old": 5, "delta": 6, "new": 7, "length": 8923792, "parent": 4711,
        "limits": {"memory_mb": 64, "cpu_s": 60, "files": 16, "fsize_mb": 9}}'

It takes three inherited descriptors and can open nothing else ("old": null where the delta needs no base): before the
first foreign byte it cages itself (`sandbox.py`). Exit status 0: all is written; 65: the delta cannot be used; 74: the
device failed. Standard error says why in one line. `limits.memory_mb` is address space on top of what the program
itself maps once numpy is imported.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelagent.children import Limits, bind_to_parent, limit_self
from modelagent.delta import DeltaError
from modelagent.errors import DeviceError
from modelagent.sandbox import confine

UNUSABLE: Final = 65  # EX_DATAERR of sysexits.h
FAILED: Final = 74  # EX_IOERR
_MIB: Final = 1024 * 1024
_LOWEST: Final = 19


def main(argument: Mapping[str, Any]) -> int:
    """Bind to the parent, give up what is not needed, import numpy, apply."""
    bind_to_parent(int(argument["parent"]))
    limits = argument["limits"]
    limit_self(
        Limits(cpu_s=limits["cpu_s"], files=limits["files"], fsize_mb=limits["fsize_mb"]),
        nice=_LOWEST,
        oom_score_adj=1000,
        no_new_privileges=True,
    )
    # numpy's linear algebra would start one thread per processor and never be asked.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from modelagent.delta.rebuild import rebuild  # noqa: PLC0415 - the order is the point

    mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGESIZE")
    limit_self(Limits(memory_mb=mapped // _MIB + int(limits["memory_mb"])))
    try:
        confine()
        with (
            os.fdopen(int(argument["delta"]), "rb") as delta,
            os.fdopen(int(argument["new"]), "wb") as new,
        ):
            if argument["old"] is None:
                rebuild(None, delta, new, int(argument["length"]))
            else:
                with os.fdopen(int(argument["old"]), "rb") as old:
                    rebuild(old, delta, new, int(argument["length"]))
    except DeltaError as error:
        print(error.message, file=sys.stderr)
        return UNUSABLE
    except (OSError, MemoryError, DeviceError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
