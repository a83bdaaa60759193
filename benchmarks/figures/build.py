"""What compression does to two models, measured by the product's own workshop: sizes, losses, times.

This file knows which figures come out of a build report. It needs tensorflow (a build trains), and says so where it is
missing. Ratios are against the float32 file of the same build; an accuracy loss is a share on the validation samples.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Figure, Group, Measured, NotHereError, median
from benchmarks.stand import own_environment

_ROOT: Final = Path(__file__).resolve().parents[2]
_VARIANTS: Final = ("float16", "dynamic", "int8", "pruned-int8", "distilled-int8")
_DIGITS: Final = _ROOT / "examples" / "digits"
_FORMATS: Final = ("float16", "dynamic", "int8")
_RELEASES: Final = 5
# Named in the issue of the product: int8 at least 70 % smaller on a network of at least 1 MB.
_AIMS: Final = {
    ("mobilenet", "int8", "size_ratio"): "<= 0.30",
    ("mobilenet", "int8", "latency_ratio"): "<= 1.0",
    ("mobilenet", "int8", "accuracy_loss"): "<= 0.02",
    ("digits", "int8", "accuracy_loss"): "<= 0.02",
}


def _figures(model: str) -> tuple[Figure, ...]:
    found = []
    for variant in _VARIANTS:
        for kind in ("size_ratio", "accuracy_loss", "latency_ratio"):
            aim = _AIMS.get((model, variant, kind), "")
            found.append(
                Figure(f"build.{model}.{variant}_{kind}", "share" if kind == "accuracy_loss" else "ratio", aim)
            )
    found += [Figure(f"build.{model}.{kind}_delta_ratio", "ratio", "") for kind in _FORMATS]
    return tuple(found)


def _build(model: str) -> Callable[[Path], Mapping[str, Measured]]:
    def measure(folder: Path) -> dict[str, Measured]:
        if importlib.util.find_spec("tensorflow") is None:
            raise NotHereError("tensorflow is missing, and a build trains; pip install 'modelagent[build]'")
        first, second = folder / f"build-{model}", folder / f"build-{model}-tuned"
        report = _run(f"examples/{model}/build.toml", "--out", str(first))
        variants = [word for kind in _FORMATS for word in ("--variant", f"{kind}={kind}")]
        entry = f"examples.{model}.build"
        _run(f"{entry}:tuned", "--data", f"{entry}:samples", "--seed", str(report["inputs"]["seed"]), *variants,
             "--out", str(second))  # fmt: skip
        return _read(model, report) | _deltas(model, first, second)

    return measure


def _run(*words: str) -> dict[str, Any]:
    """A build, as it would be typed; its report."""
    environment = own_environment()
    environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{_ROOT}"
    command = [sys.executable, "-m", "modelagent", "build", *words, "--json"]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout or b"{}")
    if "variants" not in report:
        raise RuntimeError(done.stderr.decode(errors="replace")[-500:] + str(report)[:500])
    return report


def _deltas(model: str, first: Path, second: Path) -> dict[str, Measured]:
    """What a device fetches when the network was tuned a little and built again, by format."""
    from modelagent.delta.make import make  # noqa: PLC0415 - not needed to list figures

    found = {}
    for kind in _FORMATS:
        old, new = ((place / "variants" / f"{kind}.tflite").read_bytes() for place in (first, second))
        delta = make(old, new)
        how = f"{len(delta)} of {len(new)} bytes; one more epoch at a rate of 1e-5"
        found[f"build.{model}.{kind}_delta_ratio"] = Measured(len(delta) / len(new), how)
    return found


def _read(model: str, report: Mapping[str, Any]) -> dict[str, Measured]:
    found = {}
    rows = {row["name"]: row for row in report["variants"]}
    base = rows["float32"]
    for variant in _VARIANTS:
        row = rows[variant]
        if "accuracy" not in row:
            continue
        low, high = row["interval"]
        how = {
            "size_ratio": f"{row['size']} of {base['size']} bytes; zlib {row['compressed']}, {base['compressed']}",
            "accuracy_loss": f"{row['accuracy']:.2%} ({low:.1%} to {high:.1%}), float32 {base['accuracy']:.2%}",
            "latency_ratio": f"p50 {row['p50_us']:.0f} us, float32 {base['p50_us']:.0f} us; blocks by turns",
        }
        for kind, text in how.items():
            found[f"build.{model}.{variant}_{kind}"] = Measured(float(row[kind]), text)
    return found


def publish(folder: Path) -> dict[str, Measured]:
    """`publish.s`: one release with a channel, all files and signatures, durably written."""
    from modelagent.publish.repository import Repository  # noqa: PLC0415 - not needed to list figures

    place = folder / f"publish-{time.time_ns()}"
    repository = Repository.init(place / "repository", place / "keys", ["digits"])
    shared = json.loads((_DIGITS / "releases.json").read_bytes())
    document = {key: shared[key] for key in ("inputs", "outputs", "labels", "preprocess", "postprocess", "limits")}
    document |= {
        "model": "digits",
        "parent": None,
        "runtime": {},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "canary": {key: value for key, value in shared["canary"].items() if key != "file"},
        "card": {},
    }
    files: dict[str, Path | bytes] = {
        "model": _DIGITS / "models" / "digits-1.1.0.tflite",
        "canary": _DIGITS / "canary.npz",
        "warmup": _DIGITS / "warmup.npz",
    }
    seconds = []
    for number in range(_RELEASES):
        start = time.perf_counter()
        repository.release({**document, "version": f"1.{number}"}, files, channel="stable")
        seconds.append(time.perf_counter() - start)
    return {"publish.s": Measured(median(seconds), f"median of {_RELEASES} releases with a channel, every file synced")}


GROUPS: Final = (
    Group(_figures("digits"), _build("digits")),
    Group(_figures("mobilenet"), _build("mobilenet")),
    Group((Figure("publish.s", "s", "<= 2"),), publish),
)
