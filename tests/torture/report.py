"""The campaign's counts as a table: in docs/reliability.md between two marks, and as a few lines on the terminal.

    rewrite(Path("docs/reliability.md"), results)          # only what stands between the marks changes
    totals(results)["torture.cycles"]                      # the figures of `make bench`

`results` is what build/torture.json holds: counts by stage.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- counts: written by make torture -->"
END: Final = "<!-- end of counts -->"
WHAT: Final = {
    "kill": "SIGKILL at every point",
    "errors": "ENOSPC, EIO, EROFS, EMFILE, inodes out at every point",
    "memory": "no memory (MemoryError; a limit that leaves not a page) at every point",
    "cut-ext4": "power cut, ext4 (`noauto_da_alloc`)",
    "cut-xfs": "power cut, XFS",
    "planted": "power cut with a missing fsync planted (must be caught)",
    "hostile": "links planted, 10,000 leftovers, a second updater",
    "strace": "system calls under `strace`, each held against its point",
    "random": "random faults of all kinds, seeded",
    "loop": "real inference under chaos, its database full or rubbish (frames)",
    "fuzz": "fuzzed parsers (inputs)",
}
Results = Mapping[str, Mapping[str, Any]]


def totals(results: Results) -> dict[str, float]:
    """The figures that the results give; one whose stages were not run is absent."""
    ran = {name: counts for name, counts in results.items() if "not_run" not in counts}
    found: dict[str, float] = {}
    if "kill" in ran:
        found["torture.cycles"] = sum(counts.get("cycles", 0) for counts in ran.values())
        found["torture.failures"] = sum(counts["failures"] for counts in ran.values())
    cuts = [counts for name, counts in ran.items() if name.startswith("cut-")]
    if len(cuts) == 2:
        found["cuts.total"] = sum(counts["cycles"] for counts in cuts)
        found["cuts.failures"] = sum(counts["failures"] for counts in cuts)
    pointed = [counts for counts in ran.values() if counts.get("points_seen")]
    if pointed:
        found["points.covered_ratio"] = sum(c["points_injected"] for c in pointed) / sum(
            c["points_seen"] for c in pointed
        )
    return found


def table(results: Results) -> str:
    """The counts as Markdown."""
    lines = ["| what | points injected / seen | cycles | survived | failures | commit |", "|---|---|---|---|---|---|"]
    for name, what in WHAT.items():
        counts = results.get(name)
        if counts is None:
            continue
        if "not_run" in counts:
            lines.append(f"| {what} | not run: {counts['not_run']} | | | | |")
            continue
        points = f"{counts['points_injected']} / {counts['points_seen']}" if "points_seen" in counts else ""
        cycles: object = counts.get("cycles", "")
        survived: object = counts.get("survived", "")
        if "inputs" in counts:
            cycles, survived = f"{sum(counts['inputs'].values()):,}", f"{len(counts['inputs'])} parsers"
        elif "caught" in counts:
            survived = f"{counts['caught']} caught"
        elif "calls" in counts:
            survived = f"{counts['calls']:,} calls"
        elif "frames" in counts:
            survived = f"{counts['frames']:,} frames, {counts['frames_lost']} lost"
        if counts.get("left"):
            cycles = f"{cycles} (of {counts['cycles'] + counts['left']})"
        turns = ", the kinds in turn" if counts.get("turns") else ""
        row = (what + turns, points, cycles, survived, counts["failures"], counts.get("commit", ""))
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def summary(results: Results) -> str:
    """For the terminal."""
    found = totals(results)
    lines = [table(results), *(f"{name} {value:g}" for name, value in found.items())]
    return "\n".join(lines)


def rewrite(path: Path, results: Results) -> None:
    """Put the table between the marks."""
    text = path.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(results)}\n{END}"
    path.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL))
