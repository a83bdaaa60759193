"""`modelagent report VERSION --html FILE`: what was decided about a version, as one page with plots.

This file knows how to draw evidence: intervals and bars in inline SVG, without a script and without anything fetched
from elsewhere. It does not know any judge; what it draws are the numbers that history holds.

    modelagent report 1.2.0 --html 1.2.0.html      # mail it, open it offline, print it
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from modelagent.cli import EXIT_CODES, FAILED, Frame, json_option, one_model_option, say_error
from modelagent.cli.explain import decided, numbers
from modelagent.cli.show import moment
from modelagent.cli.talk import settings_of

_WIDTH: Final = 640  # of a plot, pixels
_ROW: Final = 26
_LEFT: Final = 190  # room for the names of bars
_RIGHT: Final = 130  # and for their values
_HEAD: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }}
body {{ max-width: 60em; margin: 2em auto; padding: 0 1em; }}
h2 {{ margin: 2em 0 .3em; font-size: 1.1em; }}
ul {{ margin: .3em 0; padding-left: 1.2em; }}
.warning {{ color: #b26b00; }} .alarm {{ color: #c62828; }}
svg {{ display: block; margin: .8em 0; max-width: 100%; font-size: 12px; }}
text {{ fill: currentColor; }} .bar {{ fill: #3b7dd8; }} .limit {{ stroke: #c62828; stroke-dasharray: 4 3; }}
.axis {{ stroke: currentColor; opacity: .5; }}
</style></head><body>
<h1>{title}</h1>
"""


class Bar(NamedTuple):
    """One bar: its name, its length, the words behind it, and the value at which a verdict falls, if there is one."""

    name: str
    value: float
    words: str
    limit: float | None = None


@click.command(epilog=EXIT_CODES)
@click.argument("version")
@click.option("--html", "file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The page.")
@one_model_option
@json_option
@click.pass_obj
def report(frame: Frame, version: str, file: Path, model: str) -> None:
    """Write what was decided about a version as one page with plots.

    From the history of this device; needs no updater. The page fetches nothing and runs nothing.
    """
    lines = decided(frame, settings_of(frame), version, model)
    try:
        file.write_text(page(version, lines), encoding="utf-8")
    except OSError as error:
        say_error(frame, f"{file}: {error.strerror}; name a file that can be written", "unwritable")
        raise SystemExit(FAILED) from error
    click.echo(
        json.dumps({"file": str(file), "lines": len(lines)}) if frame.json else f"{file}: {len(lines)} decisions"
    )


def page(version: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The page about these lines of history."""
    models = sorted({str(line.get("model", "")) for line in lines})
    parts = [_HEAD.format(title=escape(f"{', '.join(models)} {version}"))]
    for line in lines:
        level = str(line.get("level", ""))
        kind = f'<span class="{escape(level)}">{escape(str(line.get("kind", "")))}</span>'
        parts.append(f"<h2>{escape(moment(float(line.get('wall', 0.0))))} · {kind}</h2>\n")
        parts.append(f"<p>{escape(str(line.get('text', '')))}</p>\n")
        evidence = line.get("evidence") or {}
        told = [f"<li>{escape(click.unstyle(text))}</li>" for text in numbers(evidence)]
        if told:
            parts.append(f"<ul>{''.join(told)}</ul>\n")
        parts.extend(_plots(evidence))
    return "".join([*parts, "</body></html>\n"])


def _plots(evidence: Mapping[str, Any]) -> Iterator[str]:
    gates = evidence.get("gates")
    for gate in gates if isinstance(gates, list) else []:
        if not isinstance(gate, Mapping):
            continue
        low, high, margin = _number(gate, "lower"), _number(gate, "upper"), _number(gate, "margin")
        if low is not None and high is not None and margin is not None:
            yield interval("Difference to the running version, and the margin it was allowed", low, high, -margin)
        ours, theirs = _number(gate, "new_us"), _number(gate, "old_us")
        if ours is not None and theirs is not None:
            bars = [Bar("this version", ours, f"{ours / 1e3:.3g} ms"), Bar("running", theirs, f"{theirs / 1e3:.3g} ms")]
            yield chart(f"{gate.get('gate')}: time of one inference", bars)
    if "paired" not in evidence:
        return
    names = {"only_new": "only this one right", "only_old": "only the previous one", "both_wrong": "neither"}
    found = [(words, _number(evidence, key)) for key, words in names.items()]
    pairs = [Bar(words, number, f"{number:.0f}") for words, number in found if number is not None]
    if any(bar.value for bar in pairs):
        yield chart("The same labelled frames, both versions", pairs)
    tests = []
    for name, key in (("previous is better", "paired"), ("fails now and then", "fault"), ("errors too many", "error")):
        value, limit = _number(evidence, f"{key}_evidence"), _number(evidence, f"{key}_threshold")
        if value is not None and limit is not None:
            tests.append(Bar(name, max(0.0, value), f"{value:.2f} of {limit:.2f}", limit))
    if tests:
        yield chart("Evidence against it, and what proof takes (logarithm of the likelihood ratio)", tests)


def _number(table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def chart(title: str, bars: Sequence[Bar]) -> str:
    """Bars from zero on a common scale; a dashed line where a bar has a limit."""
    longest = max([1e-12, *(bar.value for bar in bars), *(bar.limit or 0.0 for bar in bars)])
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    drawn = []
    for place, bar in enumerate(bars):
        y = 24 + place * _ROW
        drawn.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>'
            f'<rect class="bar" x="{_LEFT}" y="{y}" width="{bar.value * scale:.1f}" height="18"/>'
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 14}">{escape(bar.words)}</text>'
        )
        if bar.limit is not None:
            x = _LEFT + bar.limit * scale
            drawn.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 21}"/>')
    return _svg(title, 30 + len(bars) * _ROW, "".join(drawn))


def interval(title: str, low: float, high: float, limit: float) -> str:
    """An interval on a line with zero, and a dashed line at the limit."""
    ends = (min(low, limit, 0.0), max(high, limit, 0.0))
    room = max(1e-12, ends[1] - ends[0]) * 0.08
    scale = (_WIDTH - 80) / (ends[1] - ends[0] + 2 * room)

    def x(value: float) -> float:
        return 40 + (value - ends[0] + room) * scale

    return _svg(
        title,
        86,
        f'<line class="axis" x1="40" x2="{_WIDTH - 40}" y1="50" y2="50"/>'
        f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="30" y2="62"/>'
        f'<text x="{x(0):.1f}" y="78" text-anchor="middle">equal</text>'
        f'<rect class="bar" x="{x(low):.1f}" y="42" width="{max(1.0, x(high) - x(low)):.1f}" height="16"/>'
        f'<text x="{(x(low) + x(high)) / 2:.1f}" y="36" text-anchor="middle">{low:+.3g} to {high:+.3g}</text>'
        f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="30" y2="62"/>'
        f'<text x="{x(limit):.1f}" y="78" text-anchor="middle">{limit:+.3g}</text>',
    )


def _svg(title: str, height: int, inside: str) -> str:
    return (
        f'<svg role="img" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
        f'<title>{escape(title)}</title><text x="0" y="14">{escape(title)}</text>{inside}</svg>\n'
    )
