"""The report: report.json for machines, report.html for people, self-contained.

This file knows what a build found and how it is shown. It decides nothing.

    write(outcome, Path("out"))     # out/report.json, out/report.html: no script, no font, no picture from elsewhere
"""

import html
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelagent import durable
from modelagent.build import chains, choose, evaluate, scoring
from modelagent.judges.metrics import lower_is_better

if TYPE_CHECKING:
    from modelagent.build.pipeline import Outcome, Variant

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 56
_LEGEND: Final = (
    "<h2>Size, {metric}, latency</h2>"
    "<p class=quiet>Left is smaller, up is {up}; a small circle is fast; filled ones are on the Pareto "
    "front of all three. Bars are the 95 % interval.</p>"
)
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .7rem}
th,td{border-bottom:1px solid #d9dee5;text-align:right}
th:first-child,td:first-child,td.text{text-align:left}tr.chosen{background:#e8f5e9;font-weight:600}
.refused{color:#8a1c1c}.quiet{color:#667}svg{max-width:100%;height:auto}
"""


def document(outcome: "Outcome") -> dict[str, Any]:
    """report.json. Sizes in bytes, times in microseconds, memory in MB, values and losses in the metric's unit."""
    plan, classes = outcome.plan, outcome.parts.train.classes
    figures = [item.figures for item in outcome.variants.values() if item.figures is not None]
    front = choose.pareto(figures)
    return {
        "schema": 1,
        "model": plan.name,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": outcome.card["built_by"],
        "inputs": {key: outcome.card[key] for key in ("source", "data", "seed", "versions")},
        "metric": plan.metric,
        "classes": list(classes),
        "constraints": {name: getattr(plan.choose, name) for name in plan.choose.__slots__},
        "rule": choose.RULE.format(prefer=plan.choose.prefer),
        "chosen": None if outcome.chosen is None else outcome.chosen.name,
        "parent": None
        if outcome.parent is None
        else {
            "sha256": outcome.parent["digest"],
            "size": len(outcome.parent["data"]),
            "beside": None
            if outcome.beside_parent is None
            else {name: getattr(outcome.beside_parent, name) for name in outcome.beside_parent.__slots__},
        },
        "variants": [_row(outcome, item, item.name in front) for item in outcome.variants.values()],
        "card": outcome.card,
    }


def _row(outcome: "Outcome", item: "Variant", on_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": item.name,
        "chain": chains.show(item.steps),
        "file": None if item.file is None else f"variants/{item.file.name}",
        "sha256": item.digest,
        "size": item.size,
        "compressed": item.compressed,
        "delta": item.delta,
        "plain_delta": item.plain_delta,
        "near_parent": None if item.near is None else item.near.told(),
        "failure": item.failure,
        "refusals": item.refusals,
        "remarks": [{"step": remark.step, "idle": remark.idle, "text": remark.text} for remark in item.remarks],
        "reproduced": item.reproduced,
        "pareto": on_front,
    }
    if item.inside is not None:
        row["operators"] = dict(item.inside.operators)
        row["unsupported"] = list(item.inside.custom)
        row["weights"] = item.inside.numbers
        row["zeros"] = item.inside.zeros
    if item.measured is not None and item.figures is not None:
        found = item.measured
        row |= {
            "value": found.value,
            "interval": list(found.interval),
            "loss": item.figures.loss,
            "loss_bound": item.figures.loss_bound,
            "size_ratio": item.figures.size_ratio,
            "p50_us": found.p50_us,
            "p95_us": found.p95_us,
            "latency_ratio": found.latency_ratio,
            "latency_ratio_p95": found.latency_ratio_p95,
            "load_ms": found.load_ms,
            "peak_mb": found.peak_mb,
            "runtime": found.runtime,
        }
        if scoring.by_class(outcome.plan.metric):
            labels = outcome.parts.validation.labels.tolist()
            table = evaluate.confusion(found.answers, labels, len(outcome.parts.train.classes))
            row["confusion"] = table
            row["by_class"] = [line[index] / max(1, sum(line)) for index, line in enumerate(table)]
    return row


def write(outcome: "Outcome", out: Path) -> None:
    """Write both files."""
    told = document(outcome)
    durable.write_atomic(out / "report.json", (json.dumps(told, indent=1) + "\n").encode(), mode=0o644, durable=False)
    durable.write_atomic(out / "report.html", page(told).encode(), mode=0o644, durable=False)


def page(told: dict[str, Any]) -> str:
    """report.html from report.json."""
    rows = told["variants"]
    measured = [row for row in rows if "value" in row]
    metric = told["metric"]
    up = "a smaller error" if lower_is_better(metric) else "better"
    chosen = next((row for row in rows if row["name"] == told["chosen"]), None)
    verdict = (
        f"<p><strong>{_text(chosen['name'])}</strong> is chosen: {_text(told['rule'])}.</p>"
        if chosen
        else "<p class=refused><strong>No variant fits.</strong> Each one's reasons stand in the table.</p>"
    )
    parts = [
        f"<h1>{_text(told['model'])}</h1>{verdict}",
        _variants(rows, told["chosen"], metric),
        _LEGEND.format(metric=_text(scoring.name(metric)), up=up),
        _plot(measured, metric),
    ]
    if scoring.by_class(metric):
        parts.append("<h2>Right answers by class, and their change from the baseline</h2>")
        parts.append(_classes(told["classes"], measured))
    if chosen is not None and "confusion" in chosen:
        parts.append(f"<h2>Confusion of {_text(chosen['name'])}</h2><p class=quiet>Rows: what it is.</p>")
        parts.append(_confusion(told["classes"], chosen["confusion"]))
    parts.append("<h2>Operators</h2>" + _operators(rows))
    parts.append(f"<h2>Model card</h2><pre>{_text(json.dumps(told['card'], indent=1))}</pre>")
    head = f'<meta charset="utf-8"><title>{_text(told["model"])}: build report</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _variants(rows: Sequence[dict[str, Any]], chosen: str | None, metric: str) -> str:
    said = _text(scoring.name(metric))
    titles = ("variant", "bytes", "compressed", "delta", said, "95 %", "loss", "p50 us", "p95 us", "time", "MB")
    lines = [f"<tr>{''.join(f'<th>{title}</th>' for title in titles)}<th></th></tr>"]
    for row in rows:
        cells = [row["name"], row["size"] or "-", row["compressed"] or "-", delta(row["plain_delta"], row["delta"])]
        if "value" in row:
            low, high = row["interval"]
            cells += [
                scoring.shown(metric, row["value"]),
                f"{scoring.shown(metric, low)} to {scoring.shown(metric, high)}",
                scoring.shown(metric, row["loss"] + 0.0),
                f"{row['p50_us']:.0f}",
                f"{row['p95_us']:.0f}",
                f"{row['latency_ratio']:.2f}",
                f"{row['peak_mb']:.0f}",
            ]
        else:
            cells += ["-"] * 7
        notes = [row["failure"], *row["refusals"], *(remark["text"] for remark in row["remarks"]), row["reproduced"]]
        words = "<br>".join(_text(text) for text in dict.fromkeys(filter(None, notes)))
        kind = ' class="chosen"' if row["name"] == chosen else ""
        lines.append(
            f"<tr{kind}>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}"
            f'<td class="text{" refused" if row["failure"] or row["refusals"] else " quiet"}">{words}</td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def delta(plain: int | None, found: int | None) -> str:
    """The size of an update for a table; beside that of the same chain without `near-parent` where there is one."""
    if found is None:
        return "-"
    return str(found) if plain is None else f"{plain} -> {found}"


def _plot(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Size (logarithmic) against the metric, errors downwards; the area of a circle grows with time."""
    if not rows:
        return "<p>Nothing was measured.</p>"
    sizes = [math.log(row["compressed"]) for row in rows]
    left, right = min(sizes) - 0.15, max(sizes) + 0.15
    low = min(float(row["interval"][0]) for row in rows)
    high = max(float(row["interval"][1]) for row in rows)
    edge = 0.005 if not lower_is_better(metric) else max(0.02 * (high - low), 1e-9)
    low, high = low - edge, high + edge
    slowest = max(row["latency_ratio"] for row in rows)

    def across(value: float) -> float:
        return _MARGIN + (value - left) / (right - left) * (_WIDTH - 2 * _MARGIN)

    def up(value: float) -> float:
        share = (value - low) / (high - low)
        return _HEIGHT - _MARGIN - (1.0 - share if lower_is_better(metric) else share) * (_HEIGHT - 2 * _MARGIN)

    axes = f"{_MARGIN},{_MARGIN} {_MARGIN},{_HEIGHT - _MARGIN} {_WIDTH - _MARGIN},{_HEIGHT - _MARGIN}"
    marks = [f'<polyline points="{axes}" fill="none" stroke="#889"/>']
    marks.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">compressed size</text>')
    marks += [
        f'<text x="{_MARGIN - 6}" y="{up(share) + 4:.0f}" text-anchor="end">{scoring.shown(metric, share)}</text>'
        for share in (low, (low + high) / 2, high)
    ]
    for size in (left, (left + right) / 2, right):
        label = f"{math.exp(size) / 1000:.0f} kB"
        marks.append(f'<text x="{across(size):.0f}" y="{_HEIGHT - 34}" text-anchor="middle">{label}</text>')
    for index, row in enumerate(rows):
        x, y = across(math.log(row["compressed"])), up(row["value"])
        radius = 4 + 10 * math.sqrt(row["latency_ratio"] / slowest)
        bars = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(row["interval"][0]):.1f}" y2="{up(row["interval"][1]):.1f}"'
        marks.append(f'{bars} stroke="#9ab"/>')
        fill = "#2e7d32" if row["pareto"] else "none"
        title = (
            f"{row['name']}: {row['compressed']} bytes, {scoring.shown(metric, row['value'])}, "
            f"{row['latency_ratio']:.2f} of the time"
        )
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="0.6" stroke="#2e7d32">'
            f"<title>{_text(title)}</title></circle>"
        )
        # Variants of equal size would write their names on top of each other.
        side = -1 if index % 2 else 1
        marks.append(
            f'<text x="{x:.0f}" y="{y + side * (radius + 12):.0f}" text-anchor="middle">{_text(row["name"])}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" '
        f'font-family="system-ui,sans-serif"><title>Pareto plot</title>{"".join(marks)}</svg>'
    )


def _classes(classes: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    base = rows[0]["by_class"]
    lines = ["<tr><th>class</th>" + "".join(f"<th>{_text(row['name'])}</th>" for row in rows) + "</tr>"]
    for index, name in enumerate(classes):
        cells = [f"<td>{base[index]:.1%}</td>"]
        for row in rows[1:]:
            change = row["by_class"][index] - base[index]
            kind = ' class="refused"' if change < 0 else ""
            cells.append(f"<td{kind}>{change:+.1%}</td>")
        lines.append(f"<tr><td>{_text(name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _confusion(classes: Sequence[str], table: Sequence[Sequence[int]]) -> str:
    lines = ["<tr><th></th>" + "".join(f"<th>{_text(name)}</th>" for name in classes) + "</tr>"]
    for index, (name, counts) in enumerate(zip(classes, table, strict=True)):
        total = max(1, sum(counts))
        cells = []
        for column, count in enumerate(counts):
            colour = "46,125,50" if column == index else "183,28,28"
            cells.append(f'<td style="background:rgba({colour},{count / total:.2f})">{count or ""}</td>')
        lines.append(f"<tr><td>{_text(name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _operators(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["<tr><th>variant</th><th>operators</th><th>not supported</th></tr>"]
    for row in rows:
        if "operators" in row:
            found = ", ".join(f"{name} x{count}" for name, count in row["operators"].items())
            bad = ", ".join(row["unsupported"]) or "none"
            lines.append(
                f'<tr><td>{_text(row["name"])}</td><td class="text">{_text(found)}</td><td>{_text(bad)}</td></tr>'
            )
    return f"<table>{''.join(lines)}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
