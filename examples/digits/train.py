"""Train the demo's releases from fixed seeds and write every file beside this one. The only part that needs tensorflow.

    pip install 'modelagent[build]'
    python -m examples.digits.train                # models/, canary.npz, warmup.npz, releases.json; prints tables

All releases share one small network (12,226 weights), so that they differ in what they learnt and not in speed. This
file knows what each release is for; what a graph looks like inside is in graphs.py, the data in data.py.
Same machine and same tensorflow give the same bytes; another CPU may change the last digits of the weights, so the
accuracies in releases.json are measured on the files that were written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from examples.digits import graphs
from examples.digits.data import Labels, Scans, digits, shift, split
from examples.digits.frames import SETS, frames

HERE: Final = Path(__file__).resolve().parent
MODELS: Final = HERE / "models"
NEIGHBOURS: Final = tuple((right, down) for right in (-1, 0, 1) for down in (-1, 0, 1))
MARGIN: Final = 0.05
WARMUP: Final = 4  # samples


def _network() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1)),
            layers.Conv2D(12, 3, padding="same", activation="relu"),
            layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _train(scans: Scans, labels: Labels, *, epochs: int, seed: int, rate: float, start: Any = None) -> Any:
    # Adam with a cosine decay from `rate` to 0 over the whole training; `start` is a network to go on from.
    tf.keras.utils.set_random_seed(seed)
    network = _network()
    if start is not None:
        network.set_weights(start.get_weights())
    steps = epochs * -(-len(scans) // 64)
    decay = tf.keras.optimizers.schedules.CosineDecay(rate, steps)
    network.compile(tf.keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    network.fit(scans, labels, batch_size=64, epochs=epochs, verbose=0)
    return network


def _moved(scans: Scans, labels: Labels) -> tuple[Scans, Labels]:
    # Every scan at its place and moved by one pixel in all eight directions.
    return np.concatenate([shift(scans, *move) for move in NEIGHBOURS]), np.tile(labels, len(NEIGHBOURS))


def _nudged(scans: Scans, labels: Labels) -> tuple[Scans, Labels]:
    # Moved by 0.3 of a pixel only: good for accuracy, no help when the camera slips by a whole one.
    nudged = [0.7 * scans + 0.3 * shift(scans, *move) for move in NEIGHBOURS]
    return np.concatenate(nudged).astype(np.float32), np.tile(labels, len(NEIGHBOURS))


def _mislabelled(labels: Labels, share: float, seed: int) -> Labels:
    random = np.random.RandomState(seed)
    wrong = random.rand(len(labels)) < share
    return np.where(wrong, random.randint(0, 10, len(labels)), labels).astype(np.int64)


def networks() -> dict[str, Any]:
    """Train the networks that differ, by release."""
    scans, labels = digits()
    part = split()
    scans, labels = scans[part.train], labels[part.train]
    moved = _moved(scans, labels)
    best = _train(*moved, epochs=18, seed=4, rate=2e-3)
    return {
        "1.0.0": _train(scans[:240], labels[:240], epochs=30, seed=1, rate=2e-3),
        "1.1.0": best,
        "1.2.0": _train(scans[:400], _mislabelled(labels, 0.4, 3)[:400], epochs=18, seed=2, rate=2e-3),
        "1.3.0": _train(*_nudged(scans, labels), epochs=14, seed=4, rate=2e-3),
        "1.3.1": _train(*moved, epochs=1, seed=5, rate=1e-4, start=best),
        "1.6.0": _train(*moved, epochs=4, seed=6, rate=6e-4, start=best),
    }


def files(nets: Mapping[str, Any]) -> dict[str, bytes]:
    """Every model file, by its path under models/."""
    scans, _ = digits()
    best = nets["1.1.0"]
    built = {f"digits-{version}.tflite": graphs.convert(graphs.healthy(net)) for version, net in nets.items()}
    built["digits-1.1.0-int8.tflite"] = graphs.convert(graphs.healthy(best), scans[split().train])
    built["digits-1.4.0.tflite"] = graphs.loop_back(graphs.convert(graphs.bottomless(best)))
    built["digits-1.5.0.tflite"] = graphs.convert(graphs.crashing(nets["1.3.1"]))
    for name, make in {
        "crash_on_input": graphs.crashing,
        "hang_on_input": graphs.hanging,
        "nan_on_input": graphs.not_a_number,
        "slow": graphs.slow,
        "memory_hog": graphs.hog,
    }.items():
        built[f"hostile/{name}.tflite"] = graphs.convert(make(best))
    built["hostile/crash_on_load.tflite"] = built["digits-1.4.0.tflite"]
    return built


def answers(path: Path, scans: Scans) -> Labels:
    """What a model file reads on each scan, by the runtime of the device; int8 files get the scans quantised."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    read = np.empty(len(scans), np.int64)
    for index, scan in enumerate(scans):
        frame = scan[None]
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            frame = np.clip(np.round(frame / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], frame)
        interpreter.invoke()
        read[index] = interpreter.get_tensor(found["index"])[0].argmax()
    return read


def contract(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The tensors of a model file as the manifest states them."""
    interpreter = Interpreter(model_path=str(path))
    stated: dict[str, list[dict[str, Any]]] = {}
    for key, details in (
        ("inputs", interpreter.get_input_details()),
        ("outputs", interpreter.get_output_details()),
    ):
        stated[key] = []
        for tensor in details:
            scale, zero = tensor["quantization"]
            stated[key].append(
                {
                    "name": tensor["name"],
                    "shape": [int(size) for size in tensor["shape"]],
                    "dtype": np.dtype(tensor["dtype"]).name,
                    "quantisation": {"scale": float(scale), "zero_point": int(zero)} if scale else None,
                }
            )
    return stated


RELEASES: Final = (
    ("1.0.0", 100, "The first release, trained on 240 scans."),
    ("1.1.0", 110, "More accurate, and trained for a camera that sits one pixel off."),
    ("1.2.0", 120, "Worse: two training labels in five were wrong. Its canary fails."),
    ("1.3.0", 130, "As good on the canary set, lost when the camera slips by a pixel. Its probation fails."),
    ("1.3.1", 131, "As good as 1.1.0 everywhere; a dirty window hurts both alike. Drift, not a bad release."),
    ("1.4.0", 140, "Kills the process that loads it: SIGSEGV in AllocateTensors."),
    ("1.5.0", 150, "As good as 1.1.0, dead on a frame of glare: SIGFPE on x86, hangs on ARM."),
    ("1.6.0", 160, "As good as 1.1.0 or better; the release during which the updater is killed."),
)
HOSTILE: Final = (
    ("crash_on_load", "load", "the file of 1.4.0: SIGSEGV in AllocateTensors"),
    ("crash_on_input", "glare", "SIGFPE on x86, hangs on ARM"),
    ("hang_on_input", "glare", "never returns from invoke"),
    ("nan_on_input", "glare", "all ten outputs are NaN"),
    ("slow", "always", "some hundred times slower, answers as 1.1.0"),
    ("memory_hog", "always", "512 MB more memory, answers as 1.1.0"),
)
_FATAL_ON_LOAD: Final = {"1.4.0"}
_FATAL_ON_GLARE: Final = {"1.5.0"}


def _accuracies(version: str) -> dict[str, float]:
    # The share of right readings by set; sets that would kill this process are left out.
    if version in _FATAL_ON_LOAD:
        return {}
    scans, labels = digits()
    part = split()
    sets = {"canary": (scans[part.canary], labels[part.canary])}
    sets |= {name: frames(name) for name in SETS if not (name == "trigger" and version in _FATAL_ON_GLARE)}
    path = MODELS / f"digits-{version}.tflite"
    return {name: round(float((answers(path, seen) == truth).mean()), 4) for name, (seen, truth) in sets.items()}


def _entry(name: str) -> dict[str, Any]:
    data = (MODELS / name).read_bytes()
    return {"file": f"models/{name}", "length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def catalogue() -> dict[str, Any]:
    """releases.json: what each file is, what to expect of it, and the pieces of its manifest."""
    stated = contract(MODELS / "digits-1.1.0.tflite")
    return {
        "schema": 1,
        "model": "digits",
        "labels": [str(digit) for digit in range(10)],
        **stated,
        "preprocess": {"kind": "none"},
        "postprocess": {"kind": "classification", "softmax": False},
        "canary": {
            "file": "canary.npz",
            "metric": "accuracy",
            "margin": MARGIN,
            "confidence": 0.95,
            "floor": 0.7,
            "samples": len(split().canary),
        },
        "warmup": {"file": "warmup.npz", "samples": WARMUP},
        "limits": {"latency_ms": 50.0, "latency_ratio": 3.0, "memory_mb": 400.0, "load_s": 10.0},
        "releases": [
            {
                "version": version,
                "number": number,
                "description": text,
                **_entry(f"digits-{version}.tflite"),
                "expected": _accuracies(version),
            }
            for version, number, text in RELEASES
        ],
        "int8": {
            **_entry("digits-1.1.0-int8.tflite"),
            "description": "1.1.0, fully quantised to int8, with its own contract.",
            **contract(MODELS / "digits-1.1.0-int8.tflite"),
            "expected": _accuracies("1.1.0-int8"),
        },
        "hostile": [
            {"name": name, "trigger": trigger, "effect": effect, **_entry(f"hostile/{name}.tflite")}
            for name, trigger, effect in HOSTILE
        ],
    }


def main() -> None:
    """Train, write, measure and print."""
    tf.config.experimental.enable_op_determinism()
    (MODELS / "hostile").mkdir(parents=True, exist_ok=True)
    for name, data in files(networks()).items():
        (MODELS / name).write_bytes(data)
    scans, labels = digits()
    part = split()
    np.savez_compressed(HERE / "canary.npz", input_0=scans[part.canary], labels=labels[part.canary])
    np.savez_compressed(HERE / "warmup.npz", input_0=scans[part.train[:WARMUP]])
    document = catalogue()
    (HERE / "releases.json").write_text(json.dumps(document, indent=1) + "\n")
    columns = ("canary", *SETS)
    print(f"{'release':12} {'bytes':>7} " + " ".join(f"{name:>8}" for name in columns))
    for row in [*document["releases"], {"version": "1.1.0-int8", **document["int8"]}]:
        shares = (row["expected"].get(name) for name in columns)
        cells = " ".join(f"{share:8.1%}" if share is not None else f"{'dies':>8}" for share in shares)
        print(f"{row['version']:12} {row['length']:7} {cells}")
    for row in document["hostile"]:
        print(f"{row['name']:16} {row['length']:7}  on {row['trigger']}: {row['effect']}")


if __name__ == "__main__":
    main()
