"""`modelagent build`: from a trained network to measured variants, and the one that fits.

This file knows how a build is typed and shown. It does not know how anything is compressed or measured.

    modelagent build build.toml --out build/digits
    modelagent build digits.keras --data digits.npz --variant int8=int8 --variant small=prune:sparsity=0.5+int8
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modelagent.build import chains, pipeline, plans, report, scoring
from modelagent.build.pipeline import Outcome, Variant
from modelagent.cli import EXIT_CODES, REFUSED, Frame, json_option
from modelagent.errors import UsageError
from modelagent.judges.metrics import lower_is_better
from modelagent.publish.deltas import size as delta_size

_LOG_WIDTH: Final = 110
_NOTES: Final = "\b\nSteps, joined by +:\n" + "\n".join(
    f"  {kind}" + (":" + ",".join(f"{name}={rule[0]}" for name, rule in options.items()) if options else "")
    for kind, options in chains.OPTIONS.items()
)


@click.command(epilog=f"{_NOTES}\n\n{EXIT_CODES}")
@json_option
@click.option("--data", "dataset", help="Samples: .npz, a directory of class folders, or module:function.")
@click.option("--variant", "variants", multiple=True, metavar="NAME=STEPS", help="A variant to build; repeatable.")
@click.option("--seed", type=int, help="Of every draw.")
@click.option("--name", help="The model's name.")
@click.option("--parent", type=click.Path(path_type=Path, dir_okay=False), help="The .tflite that is published now.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/model"),
    show_default=True,
    help="Gets variants/, report.json and report.html.",
)
@click.argument("source", metavar="PLAN.toml|MODEL")
@click.pass_obj
def build(frame: Frame, /, source: str, out: Path, **typed: Any) -> None:
    """Build variants of a network, measure each, and choose.

    Measured is what the device would run, on its own runtime; constraints decide.

    Given is a plan (.toml), or a model: .keras, .h5, a SavedModel directory, a .tflite file, or
    module:function. Exit code 3 when no variant fits.
    """
    outcome = run(plan_of(source, **typed), out, frame)
    if frame.json:
        click.echo(json.dumps(report.document(outcome), indent=1))
    else:
        show(outcome, out)
    if outcome.chosen is None:
        raise SystemExit(REFUSED)


def plan_of(
    source: str,
    *,
    dataset: str | None = None,
    variants: tuple[str, ...] = (),
    seed: int | None = None,
    name: str | None = None,
    parent: Path | None = None,
) -> plans.Plan:
    """The plan of what was typed; options win over the file."""
    chosen: dict[str, str] = {}
    for text in variants:
        label, found, steps = text.partition("=")
        if not found:
            raise UsageError(f"--variant {text}: allowed is NAME=STEPS, for instance int8=int8", code="bad-chain")
        chosen[label] = steps
    changes: dict[str, Any] = {"data": dataset, "seed": seed, "name": name}
    if chosen:
        changes["variants"] = plans.variants(chosen)
    if source.endswith(".toml"):
        plan = plans.read(Path(source), **changes)
    elif not dataset:
        raise UsageError(f"{source}: no plan, whose name ends in .toml; for a model --data is needed", code="plan")
    else:
        plan = plans.make({"model": {"source": source}, "data": {"source": dataset or ""}}, **changes)
    if parent is None:
        return plan
    if plan.parent.margin is None:
        raise UsageError(
            f"--parent: with the metric {plan.metric} the plan must say [parent] margin: by how much it may rise",
            code="bad-option",
        )
    return replace(plan, parent=replace(plan.parent, file=parent))


def run(plan: plans.Plan, out: Path, frame: Frame) -> Outcome:
    """Build with a progress bar on standard error."""
    sys.path.insert(0, str(Path.cwd()))  # entry points are looked for where the command is typed
    command = shlex.join(["modelagent", *sys.argv[1:]])
    if frame.json or not sys.stderr.isatty():
        told = None if frame.json else _plain()
        return pipeline.build(plan, out, command=command, told=told, delta_size=delta_size)
    columns = (TextColumn("{task.fields[variant]:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1, variant="")

        def show_step(variant: str, done: int, total: int, text: str) -> None:
            progress.update(task, completed=done, total=total, description=text, variant=variant)

        return pipeline.build(plan, out, command=command, told=show_step, delta_size=delta_size)


def _plain() -> Callable[[str, int, int, str], None]:
    """For logs of CI jobs: a line a step, none an epoch."""
    last = -1

    def told(variant: str, done: int, total: int, text: str) -> None:
        nonlocal last
        if done != last:
            last = done
            click.echo(f"[{done + 1}/{total}] {variant}: {text}", err=True)

    return told


def show(outcome: Outcome, out: Path) -> None:
    """Print the table and the choice."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    metric = outcome.plan.metric
    table.title = (
        f"{outcome.plan.name}, {len(outcome.parts.validation)} validation samples, {scoring.name(metric)} with 95 % "
        "interval"
    )
    for title in ("variant", "bytes", "zlib", "delta", metric, "loss", "p50/p95 us", "time", "MB", ""):
        table.add_column(title, justify="left" if title in {"variant", ""} else "right", no_wrap=True)
    for item in outcome.variants.values():
        table.add_row(*_cells(item, metric, outcome.chosen is item))
    screen = Console()
    # A log has no width of its own; a terminal too narrow for a column shortens it, and the report has it whole.
    Console(width=max(screen.width, _LOG_WIDTH) if not screen.is_terminal else None).print(table)
    for text in outcome.card.get("data_remarks", []):
        click.echo(f"data: {text}")
    for item in outcome.variants.values():
        for text in dict.fromkeys(filter(None, [item.failure, *item.refusals, *(note.text for note in item.remarks)])):
            click.echo(f"{item.name}: {text}")
        if item.reproduced:
            click.echo(f"{item.name}: {item.reproduced}")
    if outcome.chosen is not None:
        click.echo(f"chosen: {outcome.chosen.name}, {outcome.chosen.file}")
    else:
        click.echo("chosen: none; every variant's reasons are above", err=True)
    click.echo(f"report: {out / 'report.html'}")


def _cells(item: Variant, metric: str, chosen: bool) -> list[str]:
    found, figures = item.measured, item.figures
    if found is None or figures is None:
        return [item.name, *["-"] * 8, "failed"]
    verdict = "chosen" if chosen else ("refused" if item.refusals else "")
    low, high = found.interval
    if lower_is_better(metric):
        values = [f"{found.value:.4g} {low:.4g}-{high:.4g}", f"{figures.loss + 0.0:.3g}"]
    else:
        values = [f"{100 * found.value:.1f} {100 * low:.1f}-{100 * high:.1f}", f"{100 * figures.loss + 0.0:.2f}"]
    return [
        item.name,
        str(item.size),
        str(item.compressed),
        report.delta(item.plain_delta, item.delta),
        *values,
        f"{found.p50_us:.0f}/{found.p95_us:.0f}",
        f"{figures.latency_ratio:.2f}",
        f"{found.peak_mb:.0f}",
        verdict,
    ]
