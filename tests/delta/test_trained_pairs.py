"""Deltas between networks that were really trained on: tensorflow trains, converts, trains on."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zstandard

from modelagent.delta.make import make
from modelagent.delta.rebuild import rebuild

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]  # tensorflow warns of itself
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((256, 16, 16, 3), dtype=np.float32)
LABELS = (IMAGES.mean((1, 2)).argmax(1)).astype(np.int64)


def converted(network: Any, dtype: str) -> bytes:
    import tensorflow as tf  # noqa: PLC0415 - only where it is installed

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if dtype == "int8":

        def samples() -> Iterator[list[Any]]:
            for image in IMAGES[:32]:
                yield [image[None]]

        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, bytes]]:
    """Files by dtype, then: `base`, `on` (trained on by small steps), `wider` (one class more, another head)."""
    import tensorflow as tf  # noqa: PLC0415

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    body = [
        layers.Conv2D(64, 3, activation="relu", padding="same"),
        layers.SeparableConv2D(128, 3, activation="relu"),
        layers.Conv2D(128, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
    ]
    network = tf.keras.Sequential([layers.Input((16, 16, 3)), *body, layers.Dense(3, activation="softmax")])
    network.compile(tf.keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    network.fit(IMAGES, LABELS, epochs=2, batch_size=32, verbose=0)
    dtypes = ("float32", "float16", "int8")
    found = {dtype: {"base": converted(network, dtype)} for dtype in dtypes}
    network.compile(tf.keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    network.fit(IMAGES, LABELS, epochs=1, batch_size=32, verbose=0)
    wider = tf.keras.Sequential([layers.Input((16, 16, 3)), *body, layers.Dense(4, activation="softmax")])
    for dtype in dtypes:
        found[dtype] |= {"on": converted(network, dtype), "wider": converted(wider, dtype)}
    return found


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.5), ("float16", 0.35), ("int8", 0.35)])
@pytest.mark.parametrize("kind", ["on", "wider"])
def test_small_steps_cost_a_fraction(trained: dict[str, dict[str, bytes]], dtype: str, most: float, kind: str) -> None:
    old, new = trained[dtype]["base"], trained[dtype][kind]
    delta = make(old, new)
    made = io.BytesIO()
    rebuild(io.BytesIO(old), io.BytesIO(delta), made, len(new))
    assert made.getvalue() == new
    assert len(delta) < most * len(zstandard.ZstdCompressor(level=19).compress(new))
