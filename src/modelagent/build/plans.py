"""The build plan: what to build from what, and which variant to choose, as a TOML file or typed.

This file knows the plan's keys and their checks. It does not know what a step does.

    [model]
    name = "digits"
    source = "examples.digits.build:network"        # .keras, .h5, SavedModel directory, .tflite, module:function
    seed = 7
    inputs = ["scan"]                               # tensor names; optional, as are outputs and shapes

    [data]
    source = "examples.digits.build:samples"        # .npz, directory of class folders, module:function

    [variants]                                      # name = chain of steps; see chains.py
    int8 = "int8"
    pruned-int8 = "prune:sparsity=0.5,epochs=4+int8"

    [evaluate]
    metric = "accuracy"                             # or top-3, balanced-accuracy, f1, auc, mae, rmse, ...

    [choose]
    max_loss = 0.02                                 # of the metric, against float32
    prefer = "size"

    [parent]                                        # optional: what is published now
    file = "digits-1.0.0.tflite"

    [manifest]                                      # optional: what devices do before and after the model, and more
    preprocess = { kind = "scale", mean = 0, scale = 0.00392 }

    [card]                                          # free text for people: intended_use, limits, ...
    intended_use = "reads one digit of a utility meter"
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from modelagent.build import chains, scoring
from modelagent.build.chains import Step
from modelagent.errors import UsageError
from modelagent.judges.metrics import lower_is_better

BASELINE: Final = "float32"  # always built: what every loss and ratio is measured against
PREFERENCES: Final = ("size", "update", "latency", "metric")
MARGIN: Final = 0.05  # of a share, against the parent
MAX_LOSS: Final = 0.02  # two points; an error has a unit, so nothing can be assumed of it
DEFAULT_VARIANTS: Final = {"float32": "", "float16": "float16", "dynamic": "dynamic", "int8": "int8"}
# What the manifest says and neither files nor measuring can tell. Samples are then frames, as devices get them.
PROMISES: Final = ("preprocess", "postprocess", "stateful", "delegate", "runtime", "hardware", "class_floors")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a variant must hold to be chosen; None: not asked.

    Ratios and losses are against the float32 baseline of the same build. Losses are in the metric's unit: shares (0.02
    is two points), or what an error may rise by. `floor` is the least value, or the largest error.
    """

    max_bytes: int | None = None
    max_size_ratio: float | None = None
    max_loss: float | None = None
    margin: float | None = None  # the paired lower bound of the change must be above minus this
    confidence: float = 0.95
    floor: float | None = None
    max_latency_ratio: float | None = None
    max_memory_mb: float | None = None
    prefer: str = "size"


@dataclass(frozen=True, slots=True)
class Parent:
    """What is published now, and how much a release may be worse than it."""

    file: Path | None = None
    max_size_ratio: float = 1.0
    max_latency_ratio: float = 1.1
    margin: float | None = None  # MARGIN for a share; of an error nothing can be assumed
    judged: bool = True  # False: measured beside it, refused by nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked plan."""

    name: str
    source: str
    data: str
    seed: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    variants: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    choose: Constraints = Constraints()
    parent: Parent = Parent()
    threads: int = 1
    rounds: int = 20
    metric: str = "accuracy"
    card: Mapping[str, Any] = field(default_factory=dict)
    promises: Mapping[str, Any] = field(default_factory=dict)

    def all_variants(self) -> dict[str, tuple[Step, ...]]:
        """Name -> chain, the baseline first."""
        return {BASELINE: chains.parse(""), **self.variants}


def read(path: Path, **changes: Any) -> Plan:
    """Read a plan; `changes` are the command line's, and win.

    Raises:
        UsageError: `plan`; names the key, what was found and what is allowed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file", code="plan") from error
    except ValueError as error:
        raise UsageError(f"{path}: no TOML ({error}); correct the file", code="plan") from error
    return make(document, **changes)


def make(document: Mapping[str, Any], **changes: Any) -> Plan:
    """Check a plan's document."""
    tables = {"model", "data", "variants", "choose", "parent", "evaluate", "manifest", "card"}
    _known("", document, tables)
    for name in tables & set(document):
        if not isinstance(document[name], dict):
            raise _bad(name, document[name], "a table")
    model, given = document.get("model", {}), document.get("data", {})
    _known("model", model, {"name", "source", "seed", "inputs", "outputs", "shapes"})
    _known("data", given, {"source", "shares"})
    _known("manifest", document.get("manifest", {}), set(PROMISES))
    measuring = document.get("evaluate", {})
    _known("evaluate", measuring, {"threads", "rounds", "metric"})
    metric = _text("evaluate.metric", measuring.get("metric", "accuracy"))
    if metric not in scoring.OFFERED:
        raise _bad("evaluate.metric", metric, f"one of {', '.join(scoring.OFFERED)}")
    plan = Plan(
        name=_text("model.name", model.get("name", "model")),
        source=_text("model.source", model.get("source", "")),
        data=_text("data.source", given.get("source", "")),
        seed=_whole("model.seed", model.get("seed", 0), 0),
        inputs=_texts("model.inputs", model.get("inputs", [])),
        outputs=_texts("model.outputs", model.get("outputs", [])),
        shapes=_shapes(model.get("shapes", [])),
        shares=_shares(given.get("shares", {})),
        variants=variants(document.get("variants", DEFAULT_VARIANTS)),
        choose=_table(Constraints, "choose", _with_loss(metric, document.get("choose", {}))),
        parent=_table(Parent, "parent", _with_margin(metric, document.get("parent", {}))),
        metric=metric,
        threads=_whole("evaluate.threads", measuring.get("threads", 1), 1),
        rounds=_whole("evaluate.rounds", measuring.get("rounds", 20), 1),
        card=dict(document.get("card", {})),
        promises=dict(document.get("manifest", {})),
    )
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})
    for key, value in (("model.source", plan.source), ("data.source", plan.data)):
        if not value:
            raise _bad(key, "nothing", "a path or module:function")
    if plan.choose.prefer not in PREFERENCES:
        raise _bad("choose.prefer", plan.choose.prefer, f"one of {', '.join(PREFERENCES)}")
    return plan


def variants(table: Mapping[str, Any]) -> dict[str, tuple[Step, ...]]:
    """Name -> chain of steps, checked; the name float32 is the baseline's."""
    found = {}
    for name, text in table.items():
        if not _NAME.fullmatch(name):
            raise _bad(f"variants.{name}", "this name", f"a name like /{_NAME.pattern}/")
        steps = chains.parse(_text(f"variants.{name}", text))
        if name != BASELINE:
            found[name] = steps
        elif steps != chains.parse(""):
            raise _bad("variants.float32", repr(text), 'the empty chain "": it is what all others are held against')
    return found


def _with_loss(metric: str, table: dict[str, Any]) -> dict[str, Any]:
    """The constraints with the loss that is allowed where the plan does not say."""
    if "max_loss" in table:
        return table
    if lower_is_better(metric):
        raise _bad("choose.max_loss", "nothing", f"a number: by how much {metric} may rise, in its own unit")
    return {**table, "max_loss": MAX_LOSS}


def _with_margin(metric: str, table: dict[str, Any]) -> dict[str, Any]:
    """The parent's table; an error's margin has a unit, so that it must be stated where there is a parent."""
    if "margin" in table:
        return table
    if not lower_is_better(metric):
        return {**table, "margin": MARGIN}
    if "file" in table:
        raise _bad("parent.margin", "nothing", f"a number: by how much {metric} may rise, in its own unit")
    return table


def _table(kind: type[Any], path: str, values: Mapping[str, Any]) -> Any:
    known = {item.name: item for item in fields(kind) if item.name != "judged"}
    _known(path, values, set(known))
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name == "file":
            checked[name] = Path(_text(f"{path}.{name}", value))
        elif name == "prefer":
            checked[name] = _text(f"{path}.{name}", value)
        elif not _is_number(value) or value < 0:
            raise _bad(f"{path}.{name}", value, "a number of at least 0")
        elif name == "confidence" and not 0.5 <= value < 1:
            raise _bad(f"{path}.{name}", value, "a number from 0.5 to below 1, such as 0.95")
        else:
            checked[name] = value
    return kind(**checked)


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    whole = isinstance(value, list) and all(
        isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape) for shape in value
    )
    if not whole:
        raise _bad("model.shapes", repr(value)[:80], "a list of shapes, one an input, such as [[1, 8, 8, 1]]")
    return tuple(tuple(shape) for shape in value)


def _shares(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_number(share) for share in value.values()):
        raise _bad(
            "data.shares", repr(value)[:80], "numbers, such as { train = 0.6, validation = 0.15, canary = 0.25 }"
        )
    return dict(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _known(path: str, values: Mapping[str, Any], allowed: set[str]) -> None:
    for name in values:
        if name not in allowed:
            raise _bad(f"{path}.{name}".strip("."), "an unknown key", ", ".join(sorted(allowed)))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _bad(key, repr(value)[:80], "a text")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _bad(key, repr(value)[:80], "a list of texts")
    return tuple(value)


def _whole(key: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise _bad(key, repr(value)[:80], f"a whole number of at least {low}")
    return value


def _bad(key: str, found: Any, allowed: str) -> UsageError:
    return UsageError(f"build plan: {key}: found {found}; allowed is {allowed}", code="plan")
