"""Data and networks for tests of the build package, as its entry points want them. Needs tensorflow when called.

plans.make({"model": {"source": "small_networks:network"}, "data": {"source": "small_networks:samples"}})
"""

from typing import Any

import numpy as np

from modelagent.build import toolbox
from modelagent.build.data import Samples


def samples() -> Samples:
    """The digits at twice their size, so that kernels are large enough for every tool."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - comes with what these tests need

    bundled = load_digits()
    scans = (np.asarray(bundled.images) / 16.0).astype(np.float32)[..., None]
    return Samples((scans,), np.asarray(bundled.target).astype(np.int64), tuple("0123456789"))


def network(given: Samples, seed: int, *, epochs: int = 12) -> Any:
    """About 30,000 weights, in kernels that every tool takes."""
    del seed
    keras = toolbox.keras3()
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="scan"),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(48, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="net",
    )
    made.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    made.fit(given.inputs[0], given.labels, batch_size=64, epochs=epochs, verbose=0)
    return made


def published(given: Samples, seed: int) -> Any:
    """What was released a while ago: trained on a third of the samples."""
    third = given.take(np.arange(len(given) // 3, dtype=np.int64))
    return network(third, seed, epochs=20)


def retrained(given: Samples, seed: int) -> Any:
    """The same network, trained on with all samples."""
    keras = toolbox.keras3()
    made = published(given, seed)
    for layer in made.layers:
        # Their averages would move every weight that they are folded into.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    made.compile(keras.optimizers.Adam(5e-4), "sparse_categorical_crossentropy")
    made.fit(given.inputs[0], given.labels, batch_size=32, epochs=5, verbose=0)
    return made


def student(given: Samples, seed: int) -> Any:
    """A twentieth of it, untrained."""
    del given, seed
    keras = toolbox.keras3()
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="scan"),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ],
        name="pupil",
    )


def tiny(given: Samples, seed: int) -> Any:
    """All kernels below 1,024 numbers: the converter's dynamic range silently leaves every one of them alone."""
    del given, seed
    keras = toolbox.keras3()
    layers = keras.layers
    made = [keras.Input((8, 8, 1)), layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*made, layers.Dense(10, activation="softmax")], name="tiny")
