"""Builds the large models of the benchmarks: MobileNetV2 with random weights, int8 (4 MB) or float32 (14 MB).

Speed does not depend on what the weights are. This file needs tensorflow; nothing else here does, so the file it writes
may come from any environment:

    python -m benchmarks.mobilenet build/bench/mnv2_int8.tflite
    python -m benchmarks.mobilenet build/bench/mnv2_float32.tflite      # the name says which
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf


def build(dtype: str) -> bytes:
    """The model's bytes: [1, 224, 224, 3] to [1, 1000], in `dtype` (int8 or float32) throughout."""
    tf.keras.utils.set_random_seed(1)
    network = tf.keras.applications.MobileNetV2(weights=None)
    random = np.random.RandomState(1)

    def samples() -> Iterator[list[Any]]:
        for _ in range(8):
            yield [random.rand(1, 224, 224, 3).astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if dtype == "float32":
        return bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def main() -> None:
    """One argument: where to write."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    data = build("float32" if "float32" in path.stem else "int8")
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
    print(f"{path}  {len(data)} bytes")


if __name__ == "__main__":
    main()
