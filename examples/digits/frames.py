"""Frame sets for the replay source, made from the scans that no model was trained or canaried on.

This file knows what the demo's camera sees; it knows no model and needs no tensorflow. The sets are made when they
are wanted (a second) instead of being stored.

    python -m examples.digits.frames build/frames      # frames_clean.npz, frames_a.npz, frames_b.npz, ...

Each file holds `input_0`, float32 [497, 8, 8, 1], and `labels`, int64 [497]; the sets show the same digits in the
same order, so a set can be changed while a device runs and only the camera's trouble changes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from examples.digits.data import Labels, Scans, digits, dirty, glare, slipped, split

TRIGGER_EVERY: Final = 50  # in `trigger`, the frames 49, 99, 149 ... are saturated by glare


def _with_glare(scans: Scans) -> Scans:
    seen = scans.copy()
    seen[TRIGGER_EVERY - 1 :: TRIGGER_EVERY] = glare(seen[TRIGGER_EVERY - 1 :: TRIGGER_EVERY])
    return seen


SETS: Final[dict[str, Callable[[Scans], Scans]]] = {
    "clean": lambda scans: scans,
    "a": slipped,
    "b": dirty,
    "trigger": _with_glare,
}


def frames(name: str) -> tuple[Scans, Labels]:
    """One frame set by name (`clean`, `a`, `b`, `trigger`): the frames and what is really on them.

    Raises:
        KeyError: no such set.
    """
    scans, labels = digits()
    live = split().live
    return SETS[name](scans[live]), labels[live]


def write(folder: Path) -> list[Path]:
    """Write every set to `folder` as frames_<name>.npz, compressed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in SETS:
        seen, labels = frames(name)
        path = folder / f"frames_{name}.npz"
        np.savez_compressed(path, input_0=seen, labels=labels)
        paths.append(path)
    return paths


def main() -> None:
    """Command line: one argument, the folder to write to."""
    parser = argparse.ArgumentParser(description="Write the digits frame sets for the replay source.")
    parser.add_argument("folder", type=Path, help="where to write frames_<name>.npz")
    for path in write(parser.parse_args().folder):
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
