"""What compression does to two models, measured by the product's own workshop: sizes, losses, times, updates.

This file knows which figures come out of two builds of a model: the first, and the next release, trained on a little.
Training takes minutes and tensorflow, so builds are kept in build/bench/ as long as plan and entry points stay as they
are; measuring is done anew each time, and needs the device's runtime alone. Ratios are against the float32 file of the
same build; an accuracy loss is a share on the validation samples.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.measure import Figure, Group, Measured, NotHereError, median
from benchmarks.stand import own_environment
from tuf.api.metadata import TargetFile

from modelagent import manifest
from modelagent.build import chains, data, evaluate, plans, scoring
from modelagent.publish.deltas import size as update_size
from modelagent.publish.ledger import model_role
from modelagent.publish.repository import Repository
from modelagent.steps import channel as form

_ROOT: Final = Path(__file__).resolve().parents[2]
_VARIANTS: Final = ("float32", "float16", "dynamic", "int8", "pruned-int8", "distilled-int8")
_KINDS: Final = ("size_ratio", "accuracy_loss", "latency_ratio", "delta_ratio")
_DIGITS: Final = _ROOT / "examples" / "digits"
_RELEASES: Final = 5
_MANY: Final = 10_000
# The product's own aims: int8 at least 70 % smaller and no slower on a network of at least 1 MB, half of the weights
# pruned at next to no loss.
_AIMS: Final = {
    ("mobilenet", "int8", "size_ratio"): "<= 0.30",
    ("mobilenet", "int8", "latency_ratio"): "<= 1.0",
    ("mobilenet", "int8", "accuracy_loss"): "<= 0.02",
    ("mobilenet", "pruned-int8", "accuracy_loss"): "<= 0.02",
    ("mobilenet", "distilled-int8", "accuracy_loss"): "<= 0.02",
    ("digits", "int8", "accuracy_loss"): "<= 0.02",
    ("digits", "pruned-int8", "accuracy_loss"): "<= 0.02",
}


def _figures(model: str) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            f"build.{model}.{variant}_{kind}",
            "share" if kind == "accuracy_loss" else "ratio",
            _AIMS.get((model, variant, kind), ""),
        )
        for variant in _VARIANTS
        for kind in _KINDS
    )


def _build(model: str) -> Callable[[Path], Mapping[str, Measured]]:
    def measure(folder: Path) -> dict[str, Measured]:
        first, second = made(model, folder)
        return _measured(model, first) | _deltas(model, first, second)

    return measure


def made(model: str, folder: Path) -> tuple[Path, Path]:
    """The folders of both builds; builds them where they are missing or of other sources.

    Raises:
        NotHereError: they are missing, and so is tensorflow.
    """
    first, second = folder / f"build-{model}", folder / f"build-{model}-tuned"
    plan = plans.read(_ROOT / "examples" / model / "build.toml")
    wanted = {name: chains.show(plan.all_variants()[name]) for name in _VARIANTS}
    entry = f"examples.{model}.build"
    steps = [word for name in _VARIANTS[1:] for word in ("--variant", f"{name}={wanted[name]}")]
    words = {
        first: (f"examples/{model}/build.toml",),
        second: (f"{entry}:tuned", "--data", f"{entry}:samples", "--seed", str(plan.seed), *steps),
    }
    for out, typed in words.items():
        if not _is_of(out, model, wanted):
            if importlib.util.find_spec("tensorflow") is None:
                raise NotHereError(
                    f"{out.name} is missing, and tensorflow, which makes it; pip install 'modelagent[build]'"
                )
            _run(*typed, "--out", str(out))
    return first, second


def _is_of(out: Path, model: str, wanted: Mapping[str, str]) -> bool:
    """Whether a kept build was made of the present entry points by the present chains."""
    source = hashlib.sha256((_ROOT / "examples" / model / "build.py").read_bytes()).hexdigest()
    try:
        report = json.loads((out / "report.json").read_bytes())
        found = {row["name"]: row["chain"] for row in report["variants"]}
        return report["inputs"]["source"] == source and all(found[name] == wanted[name] for name in wanted)
    except (OSError, ValueError, KeyError):
        return False


def _run(*words: str) -> None:
    """A build, as it would be typed."""
    environment = own_environment()
    environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{_ROOT}"
    command = [sys.executable, "-m", "modelagent", "build", *words, "--json"]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, check=False)
    if "variants" not in json.loads(done.stdout or b"{}"):
        raise RuntimeError(done.stderr.decode(errors="replace")[-500:] + done.stdout.decode(errors="replace")[:500])


def _measured(model: str, folder: Path) -> dict[str, Measured]:
    """Each variant on the device's runtime, float32 beside it by turns."""
    plan = plans.read(_ROOT / "examples" / model / "build.toml")
    samples = data.split(data.read(plan.data), seed=plan.seed).validation
    files = {name: folder / "variants" / f"{name}.tflite" for name in _VARIANTS}
    base = evaluate.measure(files["float32"], samples, reference=files["float32"])
    whole = files["float32"].stat().st_size
    found: dict[str, Measured] = {}
    for name, file in files.items():
        one = base if name == "float32" else evaluate.measure(file, samples, reference=files["float32"])
        size, packed = file.stat().st_size, evaluate.compressed(file.read_bytes())
        change, _ = scoring.change("accuracy", one.scored, base.scored)
        low, high = one.interval
        values = {
            "size_ratio": (size / whole, f"{size} of {whole} bytes; zlib {packed}"),
            "accuracy_loss": (
                0.0 - change,
                f"{one.value:.2%} ({low:.1%} to {high:.1%}), float32 {base.value:.2%}, {len(samples)} samples",
            ),
            "latency_ratio": (
                one.latency_ratio or 1.0,
                f"p50 {one.p50_us:.0f} us, float32 {base.p50_us:.0f} us; blocks by turns, one thread",
            ),
        }
        found |= {f"build.{model}.{name}_{kind}": Measured(*pair) for kind, pair in values.items()}
    return found


def _deltas(model: str, first: Path, second: Path) -> dict[str, Measured]:
    """What a device fetches when the network was tuned a little and put through the same chain again."""
    found = {}
    for name in _VARIANTS:
        old, new = ((place / "variants" / f"{name}.tflite").read_bytes() for place in (first, second))
        fetched = update_size(old, new)
        how = f"{fetched} of {len(new)} bytes; the network one epoch further at a rate of 1e-5, then the same chain"
        found[f"build.{model}.{name}_delta_ratio"] = Measured(fetched / len(new), how)
    return found


def publish(folder: Path) -> dict[str, Measured]:
    """`publish.s`, `publish.s_10000`: one release with a channel and its deltas, signed and durably written."""
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

    def seconds(major: int) -> float:
        taken = []
        for number in range(_RELEASES):
            start = time.perf_counter()
            version = {**document, "version": f"{major}.{number}"}
            repository.release(version, files, channel="stable", deltas_from=3)
            taken.append(time.perf_counter() - start)
        return median(taken)

    try:
        few = seconds(1)
        _fill(repository)
        many = seconds(3)
        listed = max(file.stat().st_size for file in (repository.directory / "metadata").iterdir())
    finally:
        shutil.rmtree(place)
    how = f"median of {_RELEASES} releases with a channel, deltas looked for, every file synced"
    return {
        "publish.s": Measured(few, how),
        "publish.s_10000": Measured(many, f"{how}; after {_MANY} others, whose metadata are {listed} bytes"),
    }


def _fill(repository: Repository) -> None:
    """List so many releases at once, as if each had been published."""
    ledger, role = repository.ledger, model_role("digits")
    found = json.loads(repository.manifest_bytes("digits", "1.0"))
    with ledger.locked():
        targets = ledger.load_targets(role)
        for number in range(_MANY):
            version = f"2.{number}"
            made = manifest.dump({**found, "version": version, "number": 100 + number})
            path = form.manifest_path("digits", version)
            entry = TargetFile.from_data(path, made, ["sha256"])
            entry.unrecognized_fields["custom"] = {"number": 100 + number, "floor": 0}
            place = ledger.target_file(path, entry.hashes["sha256"])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(made)
            targets.signed.targets[path] = entry
        ledger.publish({role: targets})


GROUPS: Final = (
    Group(_figures("digits"), _build("digits")),
    Group(_figures("mobilenet"), _build("mobilenet")),
    Group((Figure("publish.s", "s", "<= 2"), Figure("publish.s_10000", "s", "<= 2")), publish),
)
