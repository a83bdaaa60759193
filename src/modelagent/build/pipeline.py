"""From a plan to measured files and a choice: the one entry to this package.

This file knows the order: data, source, each chain, measuring, choosing, report. It does not know how a step works.

    outcome = build(plan, Path("out"), command="modelagent build build.toml", told=print)
    outcome.chosen, outcome.variants["int8"].refusals
    (out / "report.json"), (out / "report.html"), (out / "variants" / "int8.tflite")

Each step starts from the plan's seed, and chains that begin alike share what they have in common, so a variant is the
same whichever others are built beside it. A folder that holds an earlier build of the same inputs is compared with:
equal bytes are said, and differences are named.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelagent import durable
from modelagent.build import (
    chains,
    choose,
    convert,
    data,
    evaluate,
    evidence,
    graph,
    near_parent,
    report,
    scoring,
    source,
    toolbox,
    train,
)
from modelagent.build.chains import Step
from modelagent.build.choose import AgainstParent, Figures
from modelagent.build.data import Parts
from modelagent.build.evidence import Remark
from modelagent.build.graph import Inside
from modelagent.build.plans import BASELINE, Plan
from modelagent.errors import UsageError

Told = Callable[[str, int, int, str], None]  # variant, steps done, steps in all, what is going on
DeltaSize = Callable[[bytes, bytes], int]  # (parent, new) -> bytes of the update


@dataclass
class Variant:
    """One chain and what became of it; `failure` says why there is nothing to measure."""

    name: str
    steps: tuple[Step, ...]
    file: Path | None = None
    digest: str = ""
    size: int = 0
    compressed: int = 0
    delta: int | None = None
    plain_delta: int | None = None  # of the same chain without `near-parent`
    near: near_parent.Near | None = None
    inside: Inside | None = None
    remarks: list[Remark] = field(default_factory=list)
    measured: evaluate.Measured | None = None
    figures: Figures | None = None
    refusals: list[str] = field(default_factory=list)
    failure: str = ""
    reproduced: str = ""  # against an earlier build in the same folder


@dataclass
class Outcome:
    """A whole build."""

    plan: Plan
    parts: Parts  # as the network takes them
    frames: Parts  # as devices get them: the same, unless the plan declares what is done before the model
    source: source.Source
    variants: dict[str, Variant]
    parent: Mapping[str, Any] | None
    chosen: Variant | None
    beside_parent: AgainstParent | None
    canary: evaluate.Measured | None
    card: dict[str, Any]
    report: Path


def build(
    plan: Plan,
    out: Path,
    *,
    command: str = "",
    told: Told | None = None,
    delta_size: DeltaSize | None = None,
) -> Outcome:
    """Build every variant of a plan, measure, choose, and write files and reports to `out`.

    Args:
        plan: what to do.
        out: gets `variants/<name>.tflite`, `report.json` and `report.html`.
        command: what was typed, for the model card.
        told: hears of progress.
        delta_size: how large the update from the parent is; None: not measured.

    Returns:
        The outcome; `chosen` is None when no variant fits, and every variant says why.

    Raises:
        UsageError: the plan, the data or the source cannot be used, or the baseline itself cannot be built.
    """
    told = told or (lambda *_: None)
    chained = plan.all_variants()
    total = sum(len(steps) + 1 for steps in chained.values()) + 2
    progress = _Progress(told, total)
    progress.step("data", "reading and dividing")
    frames = data.split(data.read(plan.data, plan.metric), seed=plan.seed, shares=plan.shares or None)
    before = plan.promises.get("preprocess", {})
    named = {name: data.prepared(getattr(frames, name), before, plan.shapes) for name in data.SHARES}
    parts = Parts(**named)
    toolbox.clear_names()
    progress.step("source", f"loading {plan.source}")
    loaded = source.load(plan.source, parts.train, seed=plan.seed)
    folder = out / "variants"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(out)
    parent = _parent(plan)
    workshop = _Workshop(plan, parts, loaded, progress, parent=parent, delta_size=delta_size)
    variants: dict[str, Variant] = {}
    for name, steps in chained.items():
        variants[name] = _make(workshop, name, steps, folder, baseline=variants.get(BASELINE), earlier=earlier)
        if name == BASELINE and variants[name].failure:
            raise UsageError(f"the float32 baseline: {variants[name].failure}", code="baseline")
    for variant in variants.values():
        progress.step(variant.name, "measuring")
        if parent is not None and delta_size is not None and variant.file is not None and variant.delta is None:
            variant.delta = delta_size(parent["data"], variant.file.read_bytes())
        _measure(plan, parts, variant, variants[BASELINE])
    chosen, beside, canary = _choose(plan, parts, variants, parent)
    card = _card(plan, parts, loaded, chosen=chosen, canary=canary, beside=beside, parent=parent, command=command)
    outcome = Outcome(plan, parts, frames, loaded, variants, parent, chosen, beside, canary, card, out / "report.json")
    report.write(outcome, out)
    return outcome


class _Progress:
    def __init__(self, told: Told, total: int) -> None:
        self._told, self._total, self._done, self._name = told, total, 0, ""

    def step(self, name: str, text: str) -> None:
        self._name = name
        self._told(name, self._done, self._total, text)
        self._done = min(self._total, self._done + 1)

    def say(self, text: str) -> None:
        self._told(self._name, max(0, self._done - 1), self._total, text)


class _Workshop:
    """Runs the training steps of chains, each beginning once, and the one that works on files."""

    def __init__(
        self,
        plan: Plan,
        parts: Parts,
        loaded: source.Source,
        progress: _Progress,
        *,
        parent: Mapping[str, Any] | None,
        delta_size: DeltaSize | None,
    ) -> None:
        self.plan, self.parts, self.source, self.progress = plan, parts, loaded, progress
        self.parent, self.delta_size = parent, delta_size
        self._made: dict[str, Any] = {"": loaded.network}

    def network(self, name: str, steps: Sequence[Step]) -> Any:
        """The network after the training steps of a chain."""
        done: list[Step] = []
        for step in steps:
            if not step.trains:
                continue
            before = self._made[chains.show(tuple(done))]
            done.append(step)
            key = chains.show(tuple(done))
            if key not in self._made:
                self.progress.step(name, step.kind)
                self._made[key] = self._run(step, before)
        return self._made[chains.show(tuple(done))]

    def near(self, variant: Variant, plain: bytes) -> bytes:
        """The file near the parent; what it saves becomes the variant's remark.

        Raises:
            UsageError: the parent is missing or does not pair, or the rules cannot be held.
        """
        if self.parent is None or self.delta_size is None:
            raise UsageError(
                f"{chains.NEAR}: there is no published parent to be near to; name it with [parent] file or --parent",
                code="no-parent",
            )
        parent, options = self.parent["data"], variant.steps[-1].options
        margin = options["margin"] or self.plan.choose.max_loss
        rules = near_parent.Rules(
            metric=self.plan.metric,
            margin=float(margin or 0.0),
            confidence=self.plan.choose.confidence,
            keep=float(options["keep"]),
            evaluations=int(options["evaluations"]),
            zeros=any(step.kind == "prune" for step in variant.steps),
        )
        found = near_parent.make(parent, plain, rules, measure=self._measure, told=self.progress.say)
        variant.near, variant.delta = found, self.delta_size(parent, found.data)
        variant.plain_delta = self.delta_size(parent, plain)
        variant.remarks.append(near_parent.remark(found, variant.plain_delta, variant.delta, len(plain)))
        return found.data

    def _measure(self, data: bytes) -> evaluate.Measured:
        with tempfile.TemporaryDirectory(prefix="modelagent-near-") as folder:
            file = Path(folder) / "near.tflite"
            file.write_bytes(data)
            samples, metric = self.parts.validation, self.plan.metric
            return evaluate.measure(file, samples, threads=self.plan.threads, metric=metric, numbers=True)

    def _run(self, step: Step, network: Any) -> Any:
        if network is None:
            raise UsageError(
                f"{step.kind} trains, and {self.plan.source} is {self.source.kind}, which cannot be trained any more; "
                "start from the Keras model, or leave the step out",
                code="cannot-train",
            )
        options = {**step.options, "seed": self.plan.seed, "told": self.progress.say}
        if step.kind == "prune":
            return train.prune(network, self.parts.train, **options)
        if step.kind == "qat":
            return train.qat(network, self.parts.train, **options)
        student = source.network(options.pop("student"), self.parts.train, seed=self.plan.seed)
        return train.distil(network, student, self.parts.train, **options)


def _make(
    workshop: _Workshop,
    name: str,
    steps: tuple[Step, ...],
    folder: Path,
    *,
    baseline: Variant | None,
    earlier: Mapping[str, Any],
) -> Variant:
    """Run a chain to a file. What a tool cannot do is the variant's failure, never another variant's."""
    variant = Variant(name, steps)
    plan = workshop.plan
    last = next(step for step in reversed(steps) if step.kind in chains.FORMATS)
    try:
        network = workshop.network(name, steps)
        workshop.progress.step(name, f"writing {last.kind}")
        made = convert.convert(
            workshop.source,
            network,
            last.kind,
            convert.representative(workshop.parts.train, int(last.options.get("samples", 0))),
            io=str(last.options.get("io", "float32")),
            names=convert.Names(plan.inputs, plan.outputs),
            shapes=plan.shapes,
        )
        if steps[-1].kind == chains.NEAR:
            workshop.progress.step(name, chains.NEAR)
            made = workshop.near(variant, made)
    except UsageError as error:
        variant.failure = error.message
        return variant
    if baseline is None:
        _fits(plan, workshop.parts, made)
    file = folder / f"{name}.tflite"
    variant.reproduced = _compare(file, made, earlier, workshop)
    durable.write_atomic(file, made, mode=0o644, durable=False)
    variant.file, variant.size, variant.compressed = file, len(made), evaluate.compressed(made)
    variant.digest = hashlib.sha256(made).hexdigest()
    variant.inside = graph.inspect(made)
    if baseline is not None and baseline.inside is not None:
        variant.remarks = [*evidence.judge(steps, baseline.inside, variant.inside), *variant.remarks]
        if variant.digest == baseline.digest:
            variant.remarks.append(Remark(chains.show(steps), True, "the file is the baseline's, byte for byte"))
    return variant


def _fits(plan: Plan, parts: Parts, made: bytes) -> None:
    """Refuse samples of other shapes than the network takes, before anything is measured."""
    wanted = graph.shapes(made)
    given = [(1, *array.shape[1:]) for array in parts.validation.inputs]
    fits = len(wanted) == len(given) and all(
        len(shape) == len(have) and all(size in (-1, got) for size, got in zip(shape[1:], have[1:], strict=True))
        for (_, shape), have in zip(wanted, given, strict=True)
    )
    if not fits:
        takes = ", ".join(f"{name} {list(shape)}" for name, shape in wanted)
        has = ", ".join(f"input_{index} {list(shape)}" for index, shape in enumerate(given))
        raise UsageError(
            f"data {plan.data}: {plan.source} takes {takes}, the data set holds {has}, in this order; correct one of "
            "them, say the order with [model] inputs, or prepare frames with [manifest] preprocess",
            code="data",
        )


def _measure(plan: Plan, parts: Parts, variant: Variant, baseline: Variant) -> None:
    if variant.file is None or variant.inside is None:
        return
    try:
        variant.measured = evaluate.measure(
            variant.file,
            parts.validation,
            # The baseline against itself says how much of a ratio is noise.
            reference=baseline.file,
            threads=plan.threads,
            rounds=plan.rounds,
            metric=plan.metric,
        )
    except evaluate.FailedError as error:
        variant.failure = error.message
        if variant is baseline:
            raise UsageError(f"the float32 baseline: {error.message}", code="baseline") from error
        return
    base = baseline.measured
    assert base is not None, "the baseline is measured first"  # noqa: S101
    change, bound = scoring.change(plan.metric, variant.measured.scored, base.scored, plan.choose.confidence)
    variant.figures = Figures(
        name=variant.name,
        size=variant.size,
        compressed=variant.compressed,
        size_ratio=variant.size / baseline.size,
        value=variant.measured.value,
        loss=0.0 - change,
        loss_bound=bound,
        latency_ratio=variant.measured.latency_ratio or 1.0,
        memory_mb=variant.measured.peak_mb,
        unsupported=variant.inside.custom,
        idle=tuple(remark.text for remark in variant.remarks if remark.idle),
        metric=plan.metric,
        update=variant.delta,
    )
    variant.refusals = choose.refusals(variant.figures, plan.choose)


def _choose(
    plan: Plan, parts: Parts, variants: Mapping[str, Variant], parent: Mapping[str, Any] | None
) -> tuple[Variant | None, AgainstParent | None, evaluate.Measured | None]:
    """The first by the rule that also stands beside the parent; the canary samples are touched by candidates alone."""
    left = [item for item in variants.values() if item.figures is not None and not item.refusals]
    while left:
        first = choose.best([item.figures for item in left if item.figures], prefer=plan.choose.prefer)
        assert first is not None, "there are candidates"  # noqa: S101
        candidate = variants[first.name]
        assert candidate.file is not None, "a measured variant has a file"  # noqa: S101
        try:
            canary = evaluate.measure(
                candidate.file,
                parts.canary,
                reference=parent["path"] if parent is not None and plan.parent.judged else None,
                threads=plan.threads,
                rounds=plan.rounds,
                metric=plan.metric,
            )
            if parent is None or not plan.parent.judged:
                return candidate, None, canary
            beside = _beside(plan, parts, candidate, canary, parent)
            candidate.refusals = choose.parent_refusals(beside, plan.parent, plan.choose.confidence)
        except evaluate.FailedError as error:
            candidate.refusals = [error.message]
        else:
            if not candidate.refusals:
                return candidate, beside, canary
        left.remove(candidate)
    return None, None, None


def _beside(
    plan: Plan, parts: Parts, candidate: Variant, canary: evaluate.Measured, parent: Mapping[str, Any]
) -> AgainstParent:
    if not parent["scored"]:
        found = evaluate.measure(parent["path"], parts.canary, threads=plan.threads, metric=plan.metric)
        parent["scored"].extend(found.scored)
    change, bound = scoring.change(plan.metric, canary.scored, parent["scored"], plan.choose.confidence)
    return AgainstParent(
        size_ratio=candidate.size / len(parent["data"]),
        latency_ratio=canary.latency_ratio or 1.0,
        change=change,
        change_bound=bound,
        samples=len(canary.scored),
        metric=plan.metric,
    )


def _parent(plan: Plan) -> dict[str, Any] | None:
    if plan.parent.file is None:
        return None
    try:
        content = plan.parent.file.read_bytes()
    except OSError as error:
        raise UsageError(f"parent {plan.parent.file}: {error.strerror}; name a readable file", code="plan") from error
    digest = hashlib.sha256(content).hexdigest()
    return {"path": plan.parent.file, "data": content, "digest": digest, "scored": []}


def _following(plan: Plan, parts: Parts, loaded: source.Source) -> dict[str, Any]:
    """What a file follows from: the same gives the same bytes."""
    return {
        "source": loaded.digest,
        "data": {name: getattr(parts, name).digest for name in ("train", "validation", "canary")},
        "seed": plan.seed,
        "versions": toolbox.versions(),
    }


def _earlier(out: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((out / "report.json").read_bytes())
        return {
            "inputs": found["inputs"],
            "chains": {item["name"]: item["chain"] for item in found["variants"]},
            "near": ((found["parent"] or {}).get("sha256"), found["constraints"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _compare(file: Path, made: bytes, earlier: Mapping[str, Any], workshop: _Workshop) -> str:
    """The same inputs and seed gave the same bytes, or what differs; empty when nothing can be said."""
    steps = workshop.plan.all_variants()[file.stem]
    chained = chains.show(steps)
    if steps[-1].kind == chains.NEAR and workshop.parent is not None:
        held = {name: getattr(workshop.plan.choose, name) for name in workshop.plan.choose.__slots__}
        if earlier.get("near") != (workshop.parent["digest"], held):
            return ""
    if (
        earlier.get("inputs") != _following(workshop.plan, workshop.parts, workshop.source)
        or earlier["chains"].get(file.stem) != chained
    ):
        return ""
    try:
        before = file.read_bytes()
    except OSError:
        return ""
    try:
        found = graph.differences(before, made)
    except UsageError:
        return ""  # whatever lay there, no build wrote it
    return (
        "the same bytes as the build before" if not found else "differs from the build before: " + "; ".join(found[:5])
    )


def _card(
    plan: Plan,
    parts: Parts,
    loaded: source.Source,
    *,
    chosen: Variant | None,
    canary: evaluate.Measured | None,
    beside: AgainstParent | None,
    parent: Mapping[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    """The model card: what people ask of a model a year later."""
    card: dict[str, Any] = {
        "intended_use": "not stated by the publisher",
        "limits": "not stated by the publisher",
        **plan.card,
        "built_by": command,
        **_following(plan, parts, loaded),
        "source_name": loaded.name,
        "samples": {name: len(getattr(parts, name)) for name in ("train", "validation", "canary")},
        "classes": list(parts.train.classes),
        "parent_file": None if parent is None else parent["digest"],
    }
    if remarks := data.thin(parts):
        card["data_remarks"] = remarks
    if chosen is not None and chosen.measured is not None and chosen.figures is not None:
        card["variant"] = {"name": chosen.name, "chain": chains.show(chosen.steps)}
        card["metrics"] = {
            "metric": plan.metric,
            "validation": round(chosen.measured.value, 4),
            "validation_interval": [round(bound, 4) for bound in chosen.measured.interval],
            "loss": round(chosen.figures.loss, 4),
            "size_ratio": round(chosen.figures.size_ratio, 4),
            "latency_ratio": round(chosen.figures.latency_ratio, 3),
        }
        card["remarks"] = [remark.text for remark in chosen.remarks]
        if chosen.near is not None and parent is not None:
            card["near_parent"] = {
                "parent": parent["digest"],
                "plain_delta": chosen.plain_delta,
                "delta": chosen.delta,
                **chosen.near.told(),
            }
    if canary is not None:
        card["metrics"]["canary"] = round(canary.value, 4)
        card["metrics"]["canary_interval"] = [round(bound, 4) for bound in canary.interval]
    if beside is not None:
        card["metrics"]["change_from_parent"] = round(beside.change, 4)
        card["metrics"]["change_bound"] = round(beside.change_bound, 4)
    return card
