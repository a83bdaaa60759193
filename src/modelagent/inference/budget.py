"""Whether two workers fit into memory at once.

This file knows what is available, to the device and to our control group, and what a worker of a slot will take. It
does not know what happens when they do not fit.

    available_kb()                        # 512_000; None where nobody says
    expected_kb(slot, present)            # of a worker for this slot, beside a present one or None

What a slot's canary measured (`measured.json`, which the updater writes) is believed first; else a worker is taken for
as large as the present one plus three times what its model file is larger, and never for more than the release
promises.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelagent.errors import UNREADABLE
from modelagent.inference.links import Slot
from modelagent.inference.workers import Worker

_RUNTIME_KB: Final = 45 * 1024  # a worker without a model: the interpreter and numpy
_FACTOR: Final = 3  # of the file's size: mapped, packed anew by the runtime, and its activations


def available_kb(read: Callable[[Path], str] = lambda path: path.read_text(encoding="ascii")) -> int | None:
    """Memory that can be had without hurting anybody, KiB: the device's and our control group's, whichever is less."""
    found: list[int] = []
    try:
        lines = [line.split() for line in read(Path("/proc/meminfo")).splitlines()]
        found += [int(line[1]) for line in lines if line[0] == "MemAvailable:"]
        group = Path("/sys/fs/cgroup") / read(Path("/proc/self/cgroup")).split("::")[1].splitlines()[0].lstrip("/")
    except (OSError, ValueError, IndexError):
        return min(found, default=None)
    while group != Path("/sys/fs"):  # a limit may stand on any level above
        try:
            limit = read(group / "memory.max").strip()
            if limit != "max":
                used = int(read(group / "memory.current"))
                lines = [line.split() for line in read(group / "memory.stat").splitlines()]
                reclaimable = sum(int(number) for name, number in lines if name == "inactive_file")
                found.append(max(0, int(limit) - used + reclaimable) // 1024)
        except (OSError, ValueError, IndexError):
            pass
        group = group.parent
    return min(found, default=None)


def expected_kb(slot: Slot, present: Worker | None) -> int:
    """What a worker of this slot will take, KiB."""
    promised = int(slot.manifest.limits.memory_mb * 1024)
    try:
        document = json.loads((slot.path / "measured.json").read_bytes())
        measured = document["peak_kb"] if document["schema"] == 1 else None
        if isinstance(measured, int) and not isinstance(measured, bool) and measured > 0:
            return measured
    except UNREADABLE:
        pass  # missing or broken: estimated
    length = slot.manifest.model_file.length
    if present is None:
        return min(promised, _RUNTIME_KB + _FACTOR * length // 1024)
    larger = max(0, length - present.slot.manifest.model_file.length)
    return min(promised, (present.child.resident_kb() or _RUNTIME_KB) + _FACTOR * larger // 1024)


def shortage(slot: Slot, present: Worker | None, *, reserve_kb: int) -> tuple[int, int] | None:
    """None when a worker of this slot fits beside the present one, with `reserve_kb` to spare.

    Otherwise what is available and what is needed, the reserve included, KiB.
    """
    available, needed = available_kb(), expected_kb(slot, present) + reserve_kb
    return None if available is None or available > needed else (available, needed)
