"""`make bench`: measures, prints a table and writes build/bench.json.

This file knows how figures are found, chosen and shown; each file in figures/ knows its own. Names are stable: later
work adds figures or tightens an aim.

    python benchmarks/run.py --only loop,swap.gap_ratio        # a figure's name, or the first part of several
    python benchmarks/run.py --list

Exit status 0 when every chosen figure was measured or skipped by name, 1 when one failed to run; a missed aim is shown,
not an error, because it may be the machine's (the foreign load beside each figure says how much others used it).
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.measure import Figure, Foreign, Group, NotHereError  # noqa: E402 - the line above makes them importable

BUILD: Final = ROOT / "build"


def groups() -> Iterator[Group]:
    """Every group of every file in figures/, in order of the file's name."""
    for path in sorted((ROOT / "benchmarks" / "figures").glob("[a-z]*.py")):
        yield from importlib.import_module(f"benchmarks.figures.{path.stem}").GROUPS


def chosen(only: str) -> list[tuple[Group, list[Figure]]]:
    """The groups to run and which of their figures to show; ValueError for a name that fits none."""
    everything = list(groups())
    names = [figure.name for group in everything for figure in group.figures]
    wanted = set() if only else set(names)
    for part in filter(None, (text.strip() for text in only.split(","))):
        fitting = {name for name in names if name == part or name.startswith(part + ".")}
        if not fitting:
            raise ValueError(f"no figure is called {part}; there are: {', '.join(names)}")
        wanted |= fitting
    picked = [
        (group, [figure for figure in group.figures if not only or figure.name in wanted]) for group in everything
    ]
    return [(group, figures) for group, figures in picked if figures]


def measure(group: Group, figures: list[Figure], folder: Path) -> tuple[list[dict[str, Any]], float, bool]:
    """Rows for bench.json, the foreign load in processors, and whether the measurement ran."""
    rows = []
    with Foreign() as foreign:
        try:
            found, why, ran = group.measure(folder), "", True
        except NotHereError as skipped:
            found, why, ran = {}, f"not run: {skipped}", True
        except Exception as error:  # noqa: BLE001 - one broken figure must not cost the others
            traceback.print_exc()
            found, why, ran = {}, f"failed: {type(error).__name__}: {error}", False
    for figure in figures:
        measured = found.get(figure.name)
        value = None if measured is None else round(measured.value, 4)
        rows.append(
            {
                "name": figure.name,
                "value": value,
                "unit": figure.unit,
                "aim": figure.aim,
                "met": None if value is None else figure.met(value),
                "how": (why if measured is None else measured.how) + f"; foreign load {foreign.cores:.2f} processors",
            }
        )
    return rows, foreign.cores, ran


def show(row: dict[str, Any]) -> str:
    """One line of the table, and how it was measured below it."""
    value = "-" if row["value"] is None else f"{row['value']:g}"
    verdict = {True: "met", False: "MISSED", None: "not run" if row["value"] is None else ""}[row["met"]]
    return f"{row['name']:26} {value:>10} {row['unit']:8} {row['aim']:>9}  {verdict:8}\n{'':4}{row['how']}"


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description="Measure modelagent; see benchmarks/README.md.")
    parser.add_argument("--only", default="", metavar="NAME,...", help="figures, or the first part of their names")
    parser.add_argument("--list", action="store_true", help="print the names and aims, measure nothing")
    arguments = parser.parse_args()
    try:
        work = chosen(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        for _, figures in work:
            for figure in figures:
                print(f"{figure.name:26} {figure.unit:8} {figure.aim}")
        return 0
    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    begun, rows, good = time.monotonic(), [], True
    print(f"{'figure':26} {'value':>10} {'unit':8} {'aim':>9}", flush=True)
    for group, figures in work:
        more, _, ran = measure(group, figures, folder)
        rows += more
        good &= ran
        for row in more:
            print(show(row), flush=True)
    (BUILD / "bench.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    skipped = ", ".join(row["name"] for row in rows if row["value"] is None) or "none"
    print(f"{len(rows)} figures in {time.monotonic() - begun:.0f} s; not run: {skipped}; written: build/bench.json")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
