"""What the kernel says of a process, which may itself say what it likes.

This file knows three files of /proc/<pid>. It does not know why one asks, or what follows from the answer. A process
that has ended has no answer: 0, or a question mark.

    peak_kb(child.pid)       # 48_000
    waited_s(child.pid)      # 0.021
    cage(child.pid)          # "no-new-privs 1, seccomp 2"
"""

import contextlib
from pathlib import Path


def peak_kb(pid: int) -> int:
    """The most resident memory it has had, KiB."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_status(pid).get("VmHWM", "").split()[0])
    return 0


def waited_s(pid: int) -> float:
    """Seconds that it was ready to run and had no processor (second number of /proc/<pid>/schedstat)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    return 0.0


def cage(pid: int) -> str:
    """What holds it."""
    found = _status(pid)
    return f"no-new-privs {found.get('NoNewPrivs', '?')}, seccomp {found.get('Seccomp', '?')}"


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}
