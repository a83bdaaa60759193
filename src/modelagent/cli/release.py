"""`modelagent repo release`: build, canary set, warm-up inputs, manifest, signature and channel, in one command.

This file knows the order and joins the workshop (`build`) with the publisher (`publish`), which do not know each other.

    modelagent repo release build.toml --version 1.2.0 --channel stable --dry-run
    modelagent repo release build.toml --version 1.2.0 --channel stable --wave 2026-11-01T12:00Z=0.1

What the channel names now is the parent: a release that is bigger, slower or worse than it is refused here. Readers of
the repository see the release and the channel that names it at once, or neither.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from modelagent import manifest
from modelagent.build import data, scoring, trial
from modelagent.build.data import Samples
from modelagent.build.evaluate import Measured
from modelagent.build.pipeline import Outcome
from modelagent.build.plans import MARGIN, Plan
from modelagent.cli import EXIT_CODES, REFUSED, Frame
from modelagent.cli.build import plan_of, run, show
from modelagent.cli.repo import answer, deltas_option, deltas_told, open_repository, places, warn_of_ended, wave_of
from modelagent.cli.values import number
from modelagent.errors import UsageError
from modelagent.judges.metrics import LEAST_SAMPLES, is_share, lower_is_better
from modelagent.publish import canaries, contract
from modelagent.publish.repository import Repository
from modelagent.steps import channel as form

_WARM_UP: Final = 4  # samples
CONFIDENCE: Final = (0.5, 1.0)  # below a half a bound is none


@click.command(epilog=EXIT_CODES)
@places
@click.option("--version", required=True, help="The version's name; never used twice.")
@click.option("--channel", help="The channel that names it from now on; by default none does yet.")
@click.option("--wave", "waves", multiple=True, metavar="TIME=SHARE", help="From TIME on, this SHARE of devices.")
@click.option(
    "--margin", type=number, help="Loss that devices tolerate, in the metric's unit. [default: 0.05, if a share]"
)
@click.option("--confidence", type=number, default=0.95, show_default=True, help="One-sided, of the canary's verdict.")
@click.option(
    "--floor-accuracy", type=number, help="Value below (errors: above) which it never runs; by default as measured."
)
@click.option("--latency-ms", type=number, default=1000.0, show_default=True, help="p95 of one inference at most.")
@click.option(
    "--latency-ratio", type=number, default=3.0, show_default=True, help="p50 and p95 against the running one."
)
@click.option("--memory-mb", type=number, default=1024.0, show_default=True, help="Peak memory at most.")
@click.option("--load-s", type=number, default=30.0, show_default=True, help="Time to load and warm up at most.")
@click.option("--hardware", multiple=True, metavar="NAME", help="Hardware classes it is for; by default all.")
@click.option("--number", type=int, help="Release number; by default one above the highest.")
@click.option("--floor", default=0, show_default=True, help="Once confirmed, nothing below this number runs.")
@click.option("--accept-small-canary", is_flag=True, help="Publish although the canary set is too small; it says so.")
@click.option("--accept-worse", is_flag=True, help="Do not hold it against the parent; devices still do.")
@click.option("--new-model", is_flag=True, help="Let this repository publish this model from now on.")
@deltas_option
@click.option("--dry-run", is_flag=True, help="Build and check everything, keys included; publish nothing.")
@click.option("--data", "dataset", help="Samples, as for `build`; wins over the plan.")
@click.option("--variant", "variants", multiple=True, metavar="NAME=STEPS", help="As for `build`; wins over the plan.")
@click.option("--name", help="The model's name; wins over the plan.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("build/release"), show_default=True,
    help="Gets the build's files and reports.",
)  # fmt: skip
@click.argument("source", metavar="PLAN.toml|MODEL")
@click.pass_obj
def release(
    frame: Frame,
    /,
    source: str,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    version: str,
    channel: str | None,
    waves: tuple[str, ...],
    out: Path,
    **typed: Any,
) -> None:
    """Build, choose, sign and publish a release in one command. Exit code 3 when no variant fits.

    The canary set is drawn by class from the plan's canary part, as large as the margin asks for; a part that is too
    small is refused.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    plan = plan_of(source, **{key: typed[key] for key in ("dataset", "variants", "name")})
    typed["margin"] = _margin(plan, typed["margin"])
    begin = [wave_of(text) for text in waves]
    _check_first(repository, plan.name, version, channel=channel, new_model=typed["new_model"])
    if not CONFIDENCE[0] <= typed["confidence"] < CONFIDENCE[1]:
        raise UsageError(f"--confidence {typed['confidence']}: allowed is 0.5 to below 1", code="bad-option")
    parent = None if typed["new_model"] else _parent(repository, plan.name, channel)
    with tempfile.TemporaryDirectory(prefix="modelagent-release-") as folder:
        if parent is not None:
            file = Path(folder) / "parent.tflite"
            file.write_bytes(parent.model.read_bytes())
            margin = typed["margin"] if plan.parent.margin is None else plan.parent.margin
            judged = not typed["accept_worse"]
            plan = replace(plan, parent=replace(plan.parent, file=file, judged=judged, margin=margin))
        outcome = run(plan, out, frame)
    if outcome.chosen is None:
        if not frame.json:
            show(outcome, out)
        told = {"published": False, "reasons": _reasons(outcome)}
        answer(frame, told, f"nothing is published; see {out}/report.html")
        raise SystemExit(REFUSED)
    document, files = compose(outcome, version=version, parent=parent.digest if parent else None, **typed)
    made = repository.release(
        document,
        files,
        channel=channel,
        waves=begin,
        accept_small_canary=typed["accept_small_canary"],
        new_model=typed["new_model"],
        deltas_from=typed["deltas_from"],
        dry_run=typed["dry_run"],
        proof=contract.prove,
    )
    warn_of_ended(repository)
    deltas, saved = (
        ([], "") if typed["dry_run"] else deltas_told(repository, made.model, version, made.model_file.length)
    )
    if not frame.json:
        show(outcome, out)
    soon = sorted(role for role, (_, near) in repository.expiries().items() if near)
    where = f", named by {channel}" if channel else ", named by no channel yet"
    lines = [
        f"{made.model} {made.version}: release {made.number}, {made.release.size} bytes, {made.digest}{where}",
        *saved.splitlines(),
        *(["dry run: nothing was published"] if typed["dry_run"] else []),
        *([f"signatures that end soon: {', '.join(soon)}; see `modelagent repo status`"] if soon else []),
    ]
    answer(
        frame,
        {
            "published": not typed["dry_run"],
            "model": made.model,
            "version": made.version,
            "number": made.number,
            "digest": made.digest,
            "bytes": made.release.size,
            "variant": outcome.chosen.name,
            "channel": channel,
            "canary_samples": made.canary.samples,
            "deltas": deltas,
            "expiring": soon,
        },
        "\n".join(lines),
    )


@dataclass(frozen=True)
class _Parent:
    """The release that the channel names now."""

    digest: str
    model: Path


def _check_first(repository: Repository, model: str, version: str, *, channel: str | None, new_model: bool) -> None:
    """What can be refused at once is not refused after an hour of training: names, keys, passphrases."""
    for what, name, form_of in (
        ("model", model, form.NAME), ("version", version, form.VERSION), ("channel", channel, form.NAME)
    ):  # fmt: skip
        if name is not None and not form_of.fullmatch(name):
            raise UsageError(f"{what} {name!r}: allowed are names like /{form_of.pattern}/", code="bad-name")
    for key in ("release", "online", *(["operations"] if channel is not None else [])):
        repository.keys.signer(key)
    if new_model and model not in repository.models():
        return
    if version in {known for known, _, _ in repository.releases(model)}:
        raise UsageError(
            f"{model} {version} is published already and never changes; give a new version", code="duplicate-version"
        )


def _parent(repository: Repository, model: str, channel: str | None) -> _Parent | None:
    """What the channel names; without a channel, the newest release."""
    releases = {version: digest for version, digest, _ in repository.releases(model)}
    named = [
        str(document["release"]["version"])
        for document in repository.channels()
        if document["model"] == model and document["channel"] == channel and document["release"] is not None
    ]
    version = named[0] if named else next(reversed(releases), None)
    if version is None or version not in releases:
        return None
    found = manifest.parse(repository.manifest_bytes(model, version))
    return _Parent(found.digest, repository.directory / "files" / found.model_file.sha256)


def compose(
    outcome: Outcome, *, version: str, parent: str | None, **typed: Any
) -> tuple[dict[str, Any], dict[str, Path | bytes]]:
    """The manifest document and files of a build's choice.

    Raises:
        UsageError: `no-variant`.
    """
    if outcome.chosen is None or outcome.chosen.file is None or outcome.canary is None:
        raise UsageError("no variant fits the constraints; see the report", code="no-variant")
    measured = outcome.canary
    margin, confidence, metric = float(typed["margin"]), float(typed["confidence"]), outcome.plan.metric
    canary = _canary(outcome, measured, margin, confidence, accepted=bool(typed["accept_small_canary"]))
    train = outcome.frames.train
    warm_up = train.take(np.arange(min(_WARM_UP, len(train)), dtype=np.int64))
    floor = typed["floor_accuracy"]
    if floor is None:
        # What the device measures on these samples may be worse than what was measured here, by chance and by the
        # margin.
        low, high = measured.interval
        floor = round(high + margin if lower_is_better(metric) else max(0.0, low - margin), 4)
    promises = dict(outcome.plan.promises)
    class_floors = promises.pop("class_floors", None)
    document: dict[str, Any] = {
        "model": outcome.plan.name,
        "version": version,
        "floor": typed["floor"],
        "parent": parent,
        "runtime": {"min": None, "max": None},
        "delegate": "cpu",
        "hardware": list(typed["hardware"]),
        "stateful": False,
        "inputs": list(measured.inputs),
        "outputs": list(measured.outputs),
        "labels": list(outcome.parts.train.classes),
        "preprocess": {"kind": "none"},
        "postprocess": _postprocess(metric, measured),
        "canary": {
            "metric": metric,
            "margin": margin,
            "confidence": confidence,
            "floor": floor,
            "samples": len(canary),
            **({} if class_floors is None else {"class_floors": class_floors}),
        },
        "limits": {key: typed[key] for key in ("latency_ms", "latency_ratio", "memory_mb", "load_s")},
        "card": {**outcome.card, "runtime": measured.runtime},
        **promises,
    }
    if typed["hardware"]:
        document["hardware"] = list(typed["hardware"])
    if typed["number"] is not None:
        document["number"] = typed["number"]
    files: dict[str, Path | bytes] = {
        "model": outcome.chosen.file,
        "canary": data.pack(_as_inputs(canary, document, measured.inputs)),
        "warmup": data.pack(_as_inputs(warm_up, document, measured.inputs), labels=False),
    }
    if document["labels"]:
        files["labels"] = (json.dumps(document["labels"], ensure_ascii=False) + "\n").encode()
    return document, files


def _margin(plan: Plan, typed: float | None) -> float:
    """The canary's margin; an error has a unit, so nothing can be assumed of it."""
    if typed is None and lower_is_better(plan.metric):
        raise UsageError(
            f"--margin: found nothing; with the metric {plan.metric} allowed is by how much it may rise, in its unit",
            code="bad-option",
        )
    margin = MARGIN if typed is None else typed
    if margin <= 0:
        raise UsageError(f"--margin {margin}: allowed is a number above 0", code="bad-option")
    return margin


def _canary(outcome: Outcome, measured: Measured, margin: float, confidence: float, *, accepted: bool) -> Samples:
    """As many of the canary part as the margin asks for."""
    metric, part = outcome.plan.metric, outcome.frames.canary
    if lower_is_better(metric):
        needed = scoring.samples_for(metric, measured.scored, margin, confidence)
        if needed > len(part) and not accepted:
            raise UsageError(
                f"the canary part holds {len(part)} samples; with errors like these, {needed} can show that {metric} "
                f"rises by less than {margin:g}: widen --margin, add samples, or --accept-small-canary",
                code="small-canary",
            )
    else:
        needed = canaries.needed(margin, confidence=confidence)
        needed = needed if is_share(metric) else max(needed, LEAST_SAMPLES)
    return data.stratified(part, needed, seed=outcome.plan.seed)


def _postprocess(metric: str, measured: Measured) -> dict[str, Any]:
    """What devices make of the outputs, where the plan does not say: it follows from the metric."""
    if metric in scoring.VALUES:
        return {"kind": "regression"}
    if scoring.by_class(metric) and math.prod(measured.outputs[0]["shape"]) > 1:
        return {"kind": "classification", "softmax": not measured.probabilities}
    return {"kind": "raw"}


def _as_inputs(samples: Samples, document: Mapping[str, Any], tensors: tuple[dict[str, Any], ...]) -> Samples:
    """Samples as devices take them: frames where they are prepared there, else rounded by an int8 input's scale."""
    if document["preprocess"]["kind"] != "none":
        return samples
    made = []
    for array, tensor in zip(samples.inputs, tensors, strict=True):
        found = tensor["quantisation"]
        scale = None if found is None else (found["scale"], found["zero_point"])
        made.append(trial.as_input(array, tensor["dtype"], scale))
    return replace(samples, inputs=tuple(made))


def _reasons(outcome: Outcome) -> dict[str, list[str]]:
    return {item.name: [text for text in (item.failure, *item.refusals) if text] for item in outcome.variants.values()}
