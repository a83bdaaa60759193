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
    return tuple(found)


def _build(model: str) -> Callable[[Path], Mapping[str, Measured]]:
    def measure(folder: Path) -> dict[str, Measured]:
        if importlib.util.find_spec("tensorflow") is None:
            raise NotHereError("tensorflow is missing, and a build trains; pip install 'modelagent[build]'")
        out = folder / f"build-{model}"
        command = [sys.executable, "-m", "modelagent", "build", f"examples/{model}/build.toml", "--out", str(out)]
        environment = own_environment()
        environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{_ROOT}"
        done = subprocess.run([*command, "--json"], cwd=_ROOT, env=environment, capture_output=True, check=False)
        report: dict[str, Any] = json.loads(done.stdout or b"{}")
        if "variants" not in report:
            raise RuntimeError(done.stderr.decode(errors="replace")[-500:] + str(report)[:500])
        return _read(model, report)

    return measure


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
