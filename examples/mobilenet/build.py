"""The entry points for a model of real size: MobileNetV2 on scikit-learn's digits, enlarged to 64 x 64 in colour.

This file knows data and networks. The point is not the digits: it is sizes, speeds and losses of a real edge network,
trained from nothing (`weights=None`: nothing is downloaded) in some minutes.

    PYTHONPATH=. modelagent build examples/mobilenet/build.toml --out build/mobilenet
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from examples.digits.data import digits, split

from modelagent.build.data import Samples

SIZE: Final = 64  # pixels a side
EPOCHS: Final = 8
BATCH: Final = 32


def enlarge(scans: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scans [N, 8, 8, 1] in 0..1 as pictures [N, 64, 64, 3] in -1..1, which is what MobileNetV2 is made for."""
    pictures = scans.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2).repeat(3, axis=3)
    return (pictures * 2.0 - 1.0).astype(np.float32)


def samples() -> Samples:
    """The pictures, divided as in examples/digits."""
    scans, labels = digits()
    part = split()
    fixed = {"train": part.train, "canary": part.canary, "validation": part.live}
    return Samples((enlarge(scans),), labels, tuple(str(digit) for digit in range(10)), fixed)


def network(train: Samples, seed: int) -> Any:
    """MobileNetV2, alpha 1: 2.3 million weights, 9 MB as float32."""
    import keras  # noqa: PLC0415 - data alone must not need it

    made = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=1.0, weights=None, classes=10)
    for layer in made.layers:
        # Keras's own 0.999 wants thousands of batches before the averages mean anything.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    steps = EPOCHS * -(-len(train) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    made.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    made.fit(train.inputs[0], train.labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    del seed  # set by the caller for everything that draws
    return made


def tuned(train: Samples, seed: int) -> Any:
    """The network after a little more training: the next release, of which devices fetch the difference alone."""
    import keras  # noqa: PLC0415 - as above

    made = network(train, seed)
    for layer in made.layers:
        # Their averages would move every weight that they are folded into.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    made.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    made.fit(train.inputs[0], train.labels, batch_size=BATCH, epochs=1, verbose=0)
    return made


def student(train: Samples, seed: int) -> Any:
    """A plain network of 25,000 weights, untrained."""
    del train, seed
    import keras  # noqa: PLC0415 - as above

    layers = keras.layers
    made: list[Any] = [keras.Input((SIZE, SIZE, 3), name="picture"), layers.AveragePooling2D(4)]
    for filters in (16, 32, 64):
        made += [
            layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(6.0),
        ]
    return keras.Sequential(
        [*made, layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax")], name="pupil"
    )
