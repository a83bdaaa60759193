"""Makes the pairs of models that the delta figures are measured on: MobileNetV2, trained, then retrained five ways.

This file needs tensorflow; nothing else here does, so the files it writes may come from any environment:

    python -m benchmarks.pairs build/bench/delta            # 18 files, about 100 MB, some ten minutes

Every dtype (float32, float16, int8) has `<dtype>_base.tflite` and one file a kind beside it:

    metadata         the same weights by another way into the converter (int8: calibrated on other samples)
    head             the last layer trained on, 30 steps
    light_finetune   every layer, 30 steps of Adam at 1e-5, batch norm frozen
    full_finetune    every layer, 60 steps at 1e-4, batch norm too
    scratch          another training run from other random weights

The data are scikit-learn's 8x8 digits, enlarged to 96x96x3.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

DTYPES: Final = ("float32", "float16", "int8")
KINDS: Final = ("metadata", "head", "light_finetune", "full_finetune", "scratch")
_SIDE: Final = 96
_BATCH: Final = 16


def _data() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8).astype(np.float32) / 8.0 - 1.0, np.ones((12, 12), np.float32))
    return np.repeat(images[..., None], 3, axis=-1), labels


def _network(seed: int) -> Any:
    tf.keras.utils.set_random_seed(seed)
    return tf.keras.applications.MobileNetV2(input_shape=(_SIDE, _SIDE, 3), weights=None, classes=10)


def _train(network: Any, steps: int, rate: float, seed: int, *, trainable: Callable[[Any], bool]) -> None:
    for layer in network.layers:
        layer.trainable = trainable(layer)
    network.compile(tf.keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    images, labels = _data()
    random = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = random.integers(0, len(labels), _BATCH)
        network.train_on_batch(images[chosen], labels[chosen])


def _convert(network: Any, dtype: str, *, other: bool) -> bytes:
    """The network as a .tflite file; `other` takes another way into the converter and calibrates on other samples."""
    with tempfile.TemporaryDirectory() as folder:
        if other:
            network.export(folder, verbose=False)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        else:
            converter = tf.lite.TFLiteConverter.from_keras_model(network)
        if dtype != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if dtype == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if dtype == "int8":
            images, _ = _data()

            def samples() -> Iterator[list[Any]]:
                for index in range(64):
                    yield [images[index + 900 * other][None]]

            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())


def _write(network: Any, kind: str, folder: Path) -> None:
    for dtype in DTYPES:
        path = folder / f"{dtype}_{kind}.tflite"
        part = path.with_suffix(".part")
        part.write_bytes(_convert(network, dtype, other=kind == "metadata"))
        part.replace(path)
        print(path.name, path.stat().st_size, flush=True)


def main() -> None:
    """One argument: the directory to write to."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    base = _network(1)
    _train(base, 240, 1e-3, 1, trainable=lambda _: True)
    weights = base.get_weights()
    _write(base, "base", folder)
    _write(base, "metadata", folder)
    frozen = (tf.keras.layers.BatchNormalization,)
    for kind, steps, rate, trainable in (
        ("head", 30, 1e-3, lambda layer: layer is base.layers[-1]),
        ("light_finetune", 30, 1e-5, lambda layer: not isinstance(layer, frozen)),
        ("full_finetune", 60, 1e-4, lambda _: True),
    ):
        base.set_weights(weights)
        _train(base, steps, rate, 2, trainable=trainable)
        _write(base, kind, folder)
    other = _network(3)
    _train(other, 120, 1e-3, 3, trainable=lambda _: True)
    _write(other, "scratch", folder)


if __name__ == "__main__":
    main()
