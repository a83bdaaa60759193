"""`modelagent explain`: each gate's answer at this moment; with a version, every verdict about it in numbers.

This file knows how to word answers and verdicts. It does not know any gate or judge.

    modelagent explain -m digits      # download: wait (window), each gate: what it saw, says, and since when
    modelagent explain --facts >> days.jsonl      # once a minute: a trace for `modelagent simulate`
    modelagent explain 1.2.0          # canary: fail: 87.3 % against 93.1 % on the same 300 samples; between ...
    modelagent explain 1.2.0 --json   # with all evidence
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from modelagent.cli import EXIT_CODES, REFUSED, UNREACHABLE, Frame, json_option, one_model_option, say_error
from modelagent.cli.show import ago, coloured, moment
from modelagent.cli.talk import models_of, settings_of, view
from modelagent.errors import AgentError
from modelagent.inputs.config import Settings
from modelagent.steps.journal import read_history

_LEVELS = {"allow": "ok", "wait": "warning", "deny": "alarm"}
_OUTCOMES = {"pass": "ok", "fail": "alarm", "insufficient": "warning", "again": "warning"}


@click.command(epilog=EXIT_CODES)
@click.argument("version", required=False, default="")
@click.option("--facts", is_flag=True, help="The present facts as one line of a trace, for `modelagent simulate`.")
@one_model_option
@json_option
@click.pass_obj
def explain(frame: Frame, version: str, model: str, *, facts: bool) -> None:
    """Why is something happening, or not: each gate's present answer.

    Only the running updater can say that. With a VERSION (or the beginning of a digest): what was decided about it on
    this device, and the numbers behind it, from the history, which needs no updater.
    """
    settings = settings_of(frame)
    if version:
        _explain_version(frame, settings, version, model)
        return
    names = models_of(settings, model)
    try:
        answer = view(settings, "explain", names[0] if len(names) == 1 else None)
    except AgentError as error:
        say_error(frame, error.message, error.code)
        raise SystemExit(UNREACHABLE) from error
    if answer.get("status") != "done":
        say_error(frame, str(answer.get("reason", "")), str(answer.get("code", "refused")))
        raise SystemExit(REFUSED)
    result = answer.get("result") or {}
    if facts:
        for told in (result.get("models") or {}).values():
            click.echo(told.get("facts", ""))
    elif frame.json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo("\n".join(_lines(result.get("models", {}), time.time())))


def decided(frame: Frame, settings: Settings, version: str, model: str) -> list[dict[str, Any]]:
    """The lines of history about a version, or about a release by the beginning of its digest.

    Raises:
        SystemExit: REFUSED, after saying so, where nothing was ever decided about it.
    """
    names = models_of(settings, model)
    found = [
        line
        for line in read_history(settings.paths.state_dir)
        if line.get("model") in names and (line.get("version") == version or _is_digest(line, version))
    ]
    if not found:
        say_error(frame, f"{version}: nothing was ever decided about it on this device", "unknown-version")
        raise SystemExit(REFUSED)
    return found


def _explain_version(frame: Frame, settings: Settings, version: str, model: str) -> None:
    found = decided(frame, settings, version, model)
    if frame.json:
        click.echo(json.dumps(found, indent=1))
        return
    for line in found:
        several = f"{line['model']}: " if len(models_of(settings, model)) > 1 else ""
        head = coloured(str(line.get("kind", "")), str(line.get("level", "")))
        click.echo(f"{moment(float(line.get('wall', 0.0)))}  {several}{head}: {line.get('text', '')}")
        for text in numbers(line.get("evidence") or {}):
            click.echo(f"    {text}")


def _is_digest(line: Mapping[str, Any], text: str) -> bool:
    return len(text) >= 8 and str(line.get("digest", "")).startswith(text)


def numbers(evidence: Mapping[str, Any]) -> Iterator[str]:
    """The evidence of one verdict, a line each: a canary's gates, or the counts of a comparison on live frames."""
    gates = evidence.get("gates")
    if isinstance(gates, list):
        for gate in gates:
            if isinstance(gate, Mapping):
                outcome = str(gate.get("outcome", ""))
                yield f"{gate.get('gate')}: {coloured(outcome, _OUTCOMES.get(outcome, ''))}: {gate.get('text', '')}"
        for which in ("candidate", "baseline"):
            if isinstance(run := evidence.get(which), Mapping):
                yield (
                    f"{which} {run.get('version')}: {run.get('runtime')} on {run.get('delegate')}, p50 "
                    f"{_time(run.get('p50_us'))}, p95 {_time(run.get('p95_us'))}, at most {_mb(run.get('peak_kb'))}"
                )
        return
    if "paired" in evidence:
        yield (
            f"{evidence.get('done')} of {evidence.get('frames')} frames in {evidence.get('busy_s')} s, "
            f"{evidence.get('faults')} hard faults"
        )
        if evidence.get("unsteady_s") and isinstance(normal := evidence.get("fault_p0"), int | float):
            yield (
                f"a frame failed at first, and succeeded when run again, in {evidence['unsteady_s']} of "
                f"{evidence.get('busy_s')} s with frames; normal are {normal * 100:.1f} %"
            )
        if evidence.get("slower_new") or evidence.get("slower_old"):
            yield (
                f"over its promised time and twice as slow as the other on the same frame: this one on "
                f"{evidence.get('slower_new')}, the previous one on {evidence.get('slower_old')}"
            )
        yield f"labelled: {evidence.get('right')} right, {evidence.get('wrong')} wrong"
        yield (
            f"on the same labelled frames: {evidence.get('only_new')} only this one right, "
            f"{evidence.get('only_old')} only the previous one, {evidence.get('both_wrong')} neither"
        )
        lean, limit = evidence.get("paired_evidence"), evidence.get("paired_threshold")
        if isinstance(lean, int | float) and isinstance(limit, int | float):
            yield f"evidence that the previous one is better: {lean:.2f}, it takes {limit:.2f} to go back"


def _time(us: object) -> str:
    if not isinstance(us, int | float):
        return "?"
    return f"{us / 1e3:.2f} ms" if us >= 100.0 else f"{us:.1f} us"


def _mb(kb: object) -> str:
    return f"{kb / 1024:.0f} MB" if isinstance(kb, int | float) else "?"


def _lines(models: Mapping[str, Mapping[str, Any]], now: float) -> Iterator[str]:
    for name, told in models.items():
        yield click.style(f"{name}: {told.get('phase')}", bold=True)
        if told.get("waiting"):
            yield f"  waiting: {told['waiting']}"
        gates = told.get("gates") or {}
        for question, answer in told.items():
            if isinstance(answer, Mapping) and "answer" in answer:
                yield f"  {question:<10} {_verdict(answer, now)}"
                yield from _gates(gates.get(question), now)
        for token in ("canary_token", "load_token"):
            if told.get(token) not in (None, "free"):
                yield f"  {token.removesuffix('_token')} waits: {told[token]}"


def _gates(gates: object, now: float) -> Iterator[str]:
    """A line for each gate: its name, its answer since when, why, and what it saw."""
    for gate in gates if isinstance(gates, list) else []:
        if not isinstance(gate, Mapping) or "answer" not in gate:
            continue
        word = str(gate["answer"])
        head = f"{gate.get('gate', ''):<11} {coloured(f'{word:<5}', _LEVELS.get(word, ''))}"
        since = f" since {ago(gate['since'], now)}" if gate.get("since") else ""
        reason = f": {gate['reason']}" if gate.get("reason") else ""
        saw = f" [{gate['saw']}]" if gate.get("saw") and str(gate["saw"]) not in reason else ""
        yield f"    {head}{since}{reason}{saw}"
        if gate.get("loud"):
            yield "    " + coloured(f"{'':<11} {gate['loud']}", "alarm")


def _verdict(answer: Mapping[str, Any], now: float) -> str:
    word = str(answer["answer"])
    until = f" {ago(answer['until'], now)}" if answer.get("until") else ""
    gate = f" ({answer['gate']})" if answer.get("gate") else ""
    reason = f": {answer['reason']}" if answer.get("reason") else ""
    return coloured(word, _LEVELS.get(word, "")) + until + gate + reason
