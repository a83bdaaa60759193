"""Chains of steps: how a variant is made from the source, and which orders make sense.

This file knows the steps' names, options and order. It is pure: it runs none of them.

    parse("prune:sparsity=0.5,epochs=4+int8")       # (Step("prune", {...}), Step("int8", {"io": "float32"}))
    parse("")                                       # (Step("float32"),): nothing but conversion

Every chain has a format of the file: float32, float16, dynamic (8-bit weights, float arithmetic) or int8. `qat` trains
for int8 and implies it. Behind the format only `near-parent` may stand, which works on the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelagent.errors import UsageError

FORMATS: Final = ("float32", "float16", "dynamic", "int8")
NEAR: Final = "near-parent"
# step -> option -> (default, lowest, highest) or (default, allowed words) or (default,) for free text
_TRAINING: Final[dict[str, tuple[Any, ...]]] = {
    "epochs": (3, 0, 10_000),
    "rate": (1e-3, 0.0, 10.0),
    "batch": (32, 1, 65_536),
}
OPTIONS: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "prune": {
        "sparsity": (0.5, 0.01, 0.99),
        "start": (0.0, 0.0, 0.99),
        "every": (1, 1, 100_000),
        **_TRAINING,
        "epochs": (12, 0, 10_000),
    },
    "distil": {"student": ("",), "temperature": (4.0, 0.1, 100.0), "alpha": (0.1, 0.0, 1.0), **_TRAINING},
    "qat": {**_TRAINING, "rate": (1e-4, 0.0, 10.0), "io": ("float32", "float32", "int8", "uint8")},
    "float32": {},
    "float16": {},
    "dynamic": {},
    "int8": {"io": ("float32", "float32", "int8", "uint8"), "samples": (200, 1, 100_000)},
    # A margin of 0 is the plan's: `[choose] max_loss`.
    NEAR: {"margin": (0.0, 0.0, 1e9), "keep": (0.5, 0.0, 0.99), "evaluations": (24, 4, 1000)},
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step and its options, defaults filled in."""

    kind: str
    options: Mapping[str, Any]

    @property
    def trains(self) -> bool:
        """Whether it changes weights and so needs a network that can be trained."""
        return self.kind not in (*FORMATS, NEAR)


def parse(text: str) -> tuple[Step, ...]:
    """Parse `step:option=value,option=value+step`.

    Raises:
        UsageError: `bad-chain`; names the step or option and what is allowed.
    """
    steps = [_step(part.strip(), text) for part in text.split("+") if part.strip()]
    near = [steps.pop()] if steps and steps[-1].kind == NEAR else []
    kinds = [step.kind for step in steps]
    if NEAR in kinds:
        raise _bad(text, f"found {NEAR} before another step", f"{NEAR} once, as the last step: it works on the file")
    formats = [kind for kind in kinds if kind in FORMATS]
    if len(formats) > 1 or (formats and kinds[-1] not in FORMATS):
        raise _bad(text, f"found the formats {', '.join(formats)}", "one format, as the last step")
    if "qat" in kinds:
        if kinds.count("qat") > 1 or kinds.index("qat") != len([kind for kind in kinds if kind not in FORMATS]) - 1:
            raise _bad(text, "found qat before another step", "qat once, as the last step that trains")
        if formats and formats != ["int8"]:
            raise _bad(text, f"found qat with the format {formats[0]}", "qat with int8: it trains for nothing else")
        if not formats:
            steps.append(_step(f"int8:io={steps[-1].options['io']}", text))
    elif not formats:
        steps.append(Step("float32", {}))
    if "distil" in kinds[1:]:
        raise _bad(text, "found distil after another step", "distil first: the student starts anew")
    return (*steps, *near)


def show(steps: tuple[Step, ...]) -> str:
    """The chain as it could be typed, without defaults."""
    parts = []
    for step in steps:
        told = [f"{name}={value}" for name, value in step.options.items() if value != OPTIONS[step.kind][name][0]]
        parts.append(step.kind + (":" + ",".join(told) if told else ""))
    return "+".join(parts)


def _step(text: str, chain: str) -> Step:
    kind, _, rest = text.partition(":")
    if kind not in OPTIONS:
        raise _bad(chain, f"found the step {kind!r}", f"the steps {', '.join(OPTIONS)}")
    known = OPTIONS[kind]
    options = {name: rule[0] for name, rule in known.items()}
    # `distil:student=package.module:function` holds a colon, which is why only the first one parts step and options.
    for item in filter(None, (part.strip() for part in rest.split(","))):
        name, found, value = item.partition("=")
        if name not in known or not found:
            raise _bad(chain, f"found {kind}:{item}", f"{kind} with {', '.join(known) or 'no option'} (name=value)")
        options[name] = _value(kind, name, value, known[name], chain)
    if kind == "distil" and not options["student"]:
        raise _bad(chain, "found distil without a student", "distil:student=module:function or a Keras file")
    return Step(kind, options)


def _value(kind: str, name: str, text: str, rule: tuple[Any, ...], chain: str) -> Any:
    default = rule[0]
    if len(rule) == 1:
        return text
    if isinstance(default, str):
        if text not in rule[1:]:
            raise _bad(chain, f"found {kind}:{name}={text}", f"{name} as one of {', '.join(rule[1:])}")
        return text
    try:
        value = type(default)(text)
    except ValueError:
        value = None
    if value is None or not rule[1] <= value <= rule[2]:
        raise _bad(chain, f"found {kind}:{name}={text}", f"{name} from {rule[1]} to {rule[2]}")
    return value


def _bad(chain: str, found: str, allowed: str) -> UsageError:
    return UsageError(f"chain {chain!r}: {found}; allowed is {allowed}", code="bad-chain")
