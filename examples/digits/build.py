"""The entry points of `modelagent build examples/digits/build.toml`: the meter reader's data, network and student.

This file knows what is trained on what. Compressing, converting and measuring are the product's, not its own.

    PYTHONPATH=. modelagent build examples/digits/build.toml --out build/digits
"""

from typing import Any

import numpy as np
from examples.digits.data import digits, shift, split

from modelagent.build.data import Samples

NEIGHBOURS = tuple((right, down) for right in (-1, 0, 1) for down in (-1, 0, 1))
EPOCHS = 10


def samples() -> Samples:
    """The scans, divided as everywhere in this example: the canary part is the one that is published."""
    scans, labels = digits()
    part = split()
    fixed = {"train": part.train, "canary": part.canary, "validation": part.live}
    return Samples((scans,), labels, tuple(str(digit) for digit in range(10)), fixed)


def network(train: Samples, seed: int) -> Any:
    """The network of the demo (12,226 weights), trained on scans and on scans moved by a pixel."""
    import keras  # noqa: PLC0415 - data alone must not need it

    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="scan"),
            layers.Conv2D(12, 3, padding="same", activation="relu"),
            layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="reader",
    )
    scans = np.concatenate([shift(train.inputs[0], *move) for move in NEIGHBOURS])
    made.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    made.fit(scans, np.tile(train.labels, len(NEIGHBOURS)), batch_size=64, epochs=EPOCHS, verbose=0, shuffle=True)
    del seed  # set by the caller for everything that draws
    return made


def tuned(train: Samples, seed: int) -> Any:
    """The network after a little more training: the next release, of which devices fetch the difference alone."""
    import keras  # noqa: PLC0415 - as above

    made = network(train, seed)
    made.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    made.fit(train.inputs[0], train.labels, batch_size=64, epochs=1, verbose=0)
    return made


def student(train: Samples, seed: int) -> Any:
    """A third of the weights, untrained: what the network teaches."""
    del train, seed
    import keras  # noqa: PLC0415 - as above

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="scan"),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ],
        name="pupil",
    )
