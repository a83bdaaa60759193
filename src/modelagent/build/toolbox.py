"""The heavy tools, imported late and set up once: one thread, repeatable, quiet.

This file knows where the tools are and what must be set before their import. It does not know what they are used for.

    tf = tensorflow()           # UsageError with the remedy where it is not installed
    keras = keras3()            # the Keras of the user's models
    mot = tfmot()               # needs Keras 2 (`tf_keras`), which lives beside Keras 3 in the same process
"""

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib import metadata
from typing import Any, Final

from modelagent.errors import UsageError

EXTRA: Final = "pip install 'modelagent[build]'"
# What decides about bytes and figures, and is therefore written into every card.
TOOLS: Final = (
    "tensorflow",
    "keras",
    "tf-keras",
    "tensorflow-model-optimization",
    "litert-quantizer",
    "ai-edge-litert",
    "numpy",
)


@cache
def tensorflow() -> Any:
    """Tensorflow, repeatable: threads as MODELAGENT_BUILD_THREADS says (default 1), deterministic kernels.

    Raises:
        UsageError: `no-tool`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its kernels add in another order from run to run
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    tf = _import("tensorflow", "this step trains or converts a network")
    threads = int(os.environ.get("MODELAGENT_BUILD_THREADS", "1"))
    with suppress(RuntimeError):  # set by the program that embeds us: then it is its choice
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    return tf


@cache
def keras3() -> Any:
    """The Keras that reads .keras and .h5 files."""
    tensorflow()
    return _import("keras", "this step reads or trains a Keras network")


@cache
def tfmot() -> Any:
    """Quantisation-aware training; importing it makes `tf.keras` Keras 2, which is why nothing here says `tf.keras`."""
    tensorflow()
    _import("tf_keras", "quantisation-aware training works on Keras 2")
    return _import("tensorflow_model_optimization", "this is quantisation-aware training")


@cache
def tf_keras() -> Any:
    """Keras 2, for what `tfmot` takes."""
    tensorflow()
    return _import("tf_keras", "quantisation-aware training works on Keras 2")


@cache
def quantizer() -> Any:
    """Litert-quantizer, under its present name or the one it had before."""
    for name in ("litert_quantizer", "ai_edge_quantizer"):
        with suppress(ImportError):
            return importlib.import_module(name)
    raise UsageError(f"litert-quantizer is missing: a .tflite file is quantised with it; {EXTRA}", code="no-tool")


def set_seed(seed: int) -> None:
    """Seed everything that draws: Python, numpy, tensorflow, and both generations of Keras where imported."""
    keras3().utils.set_random_seed(seed)
    if "tf_keras" in sys.modules:
        tf_keras().utils.set_random_seed(seed)


def clear_names() -> None:
    """Start the counters behind automatic layer names anew, so that building twice gives the same names.

    Where Keras is not imported yet they have not begun.
    """
    if "keras" in sys.modules:
        keras3().utils.clear_session()
    if "tf_keras" in sys.modules:
        tf_keras().backend.clear_session()


def versions() -> dict[str, str]:
    """Name -> version of each tool that is installed."""
    found = {"python": sys.version.split()[0]}
    for name in TOOLS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _import(name: str, why: str) -> Any:
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is missing ({error}): {why}; {EXTRA}", code="no-tool") from error


@contextmanager
def quiet() -> Iterator[None]:
    """The tools print their progress, some from C++; ours is enough. What goes wrong comes as an exception."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
