"""The only file that knows the runtime: one model, loaded from a path and invoked.

This file knows `ai_edge_litert.interpreter.Interpreter` and, where LiteRT has no wheel, the same class inside
tensorflow. It does not know slots, frames, samples or who asks. It belongs in a worker process: constructor and
`allocate_tensors` hold the GIL, and a hostile model may end the process.

    model = load(path, threads=1)               # ModelError `load` when the runtime refuses the file
    mismatch(manifest.inputs, model.inputs, "input")    # "" or which tensor, what was expected, what was found
    outputs = model.invoke([frame])             # arrays in the order of `model.outputs`
    model.close()
"""

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import DeviceError, ModelError
from modelagent.manifest import Tensor

Array = npt.NDArray[Any]

DELEGATE: Final = "cpu"
# (distribution, module that holds the class, name of the class): the first that is installed is used.
_BACKENDS: Final = (
    ("ai-edge-litert", "ai_edge_litert.interpreter", "Interpreter"),
    ("tensorflow", "tensorflow.lite.python.interpreter", "Interpreter"),
    ("tensorflow-cpu", "tensorflow.lite.python.interpreter", "Interpreter"),
)
_SCALE_TOLERANCE: Final = 1e-5  # relative: a float32 scale printed as JSON and read back


@dataclass(frozen=True, slots=True)
class Found:
    """One tensor of a loaded model: as the file declares it, and the shape that is allocated now."""

    declared: Tensor  # None in its shape where the file leaves a size open
    shape: tuple[int, ...]


def runtime_version() -> str:
    """Name and version of the runtime that `load` will use, without importing it.

    Raises:
        DeviceError: `no-runtime` when none is installed.
    """
    distribution, _, _ = _backend(None)
    return f"{distribution} {metadata.version(distribution)}"


def _backend(wanted: str | None) -> tuple[str, str, str]:
    for backend in _BACKENDS:
        if wanted in (None, backend[0]):
            with contextlib.suppress(metadata.PackageNotFoundError):
                metadata.version(backend[0])
                return backend
    raise DeviceError(
        f"no runtime for .tflite models ({wanted or 'ai-edge-litert or tensorflow'}) is installed; "
        "install the package ai-edge-litert, or tensorflow where it has no wheel",
        code="no-runtime",
    )


class Model:
    """A loaded model with its tensors allocated; for one thread at a time.

    `inputs` and `outputs` are in the order of the file, which is the order of the manifest.
    """

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._read()

    def _read(self) -> None:
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.inputs = tuple(_found(details) for details in inputs)
        self.outputs = tuple(_found(details) for details in outputs)
        self._input_indices = [int(details["index"]) for details in inputs]
        self._output_indices = [int(details["index"]) for details in outputs]

    def fit(self, arrays: Sequence[Array]) -> None:
        """Allocate anew for inputs of these shapes; does nothing when they are the present ones.

        Raises:
            ModelError: `load` when the model cannot take these shapes.
        """
        if all(array.shape == found.shape for array, found in zip(arrays, self.inputs, strict=True)):
            return
        try:
            for index, array in zip(self._input_indices, arrays, strict=True):
                self._interpreter.resize_tensor_input(index, array.shape, strict=True)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            shapes = [list(array.shape) for array in arrays]
            raise ModelError(
                f"the model cannot take inputs of the shapes {shapes}: {error}; "
                "the manifest's shapes must be the model's",
                code="load",
            ) from error
        self._read()

    def invoke(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once.

        Args:
            arrays: one per input, of its exact shape and dtype.

        Returns:
            One array per output, owned by the caller.

        Raises:
            RuntimeError, ValueError: as the runtime gives them.
        """
        interpreter = self._interpreter
        for index, array in zip(self._input_indices, arrays, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        try:
            return [interpreter.get_tensor(index) for index in self._output_indices]
        except ValueError:
            return self._get_with_empty()

    def bind(self, given: Sequence[Array], wanted: Sequence[Array], *, reset: bool) -> Callable[[], bool]:
        """One inference from these arrays into those, with all that is the same every time looked up beforehand.

        After an inference the caches hold the model and not our code, so each line here costs ten times what it costs
        in a tight loop.

        Args:
            given: one array per input, of its shape and dtype, read anew at each call.
            wanted: one per output, of its shape and dtype, written at each call.
            reset: whether a stateful graph forgets what it kept, first.

        Returns:
            A function that runs once, and says whether all outputs are finite. It raises what `invoke` raises, and
            ValueError when an output has another shape.
        """
        interpreter = self._interpreter
        set_tensor, run, get_tensor = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
        forget = interpreter.reset_all_variables
        sources = tuple(zip(self._input_indices, given, strict=True))
        targets = tuple(
            (index, array, array.dtype.kind == "f")
            for index, array in zip(self._output_indices, wanted, strict=True)
            if array.size  # the runtime refuses to give one that has no elements, and nothing is to be copied
        )

        def once() -> bool:
            if reset:
                forget()
            for index, array in sources:
                set_tensor(index, array)
            run()
            finite = True
            for index, target, real in targets:
                target[...] = found = get_tensor(index)
                if real and not np.isfinite(found).all():
                    finite = False
            return finite

        return once

    def _get_with_empty(self) -> list[Array]:
        """The outputs, where the runtime refuses to give one that has no elements."""
        found = []
        for details in self._interpreter.get_output_details():
            shape = tuple(int(size) for size in details["shape"])
            empty = 0 in shape
            found.append(np.zeros(shape, details["dtype"]) if empty else self._interpreter.get_tensor(details["index"]))
        return found

    def reset(self) -> None:
        """Forget what a stateful graph kept from earlier frames."""
        self._interpreter.reset_all_variables()

    def close(self) -> None:
        """Unload. Some models end the process only here."""
        self._interpreter = None


def load(path: Path, *, threads: int = 1, backend: str | None = None, delegate: str = "") -> Model:
    """Load a model by path (mapped, not read) and allocate its tensors.

    Args:
        path: a file that nobody truncates in place: it stays mapped, and truncating it is SIGBUS.
        threads: processor threads of one inference.
        backend: `ai-edge-litert` or `tensorflow`; None: the first that is installed.
        delegate: path of an external delegate's library; empty: the processor (XNNPACK).

    Raises:
        ModelError: `load`, with the runtime's own words, or `memory` when it could not allocate.
        DeviceError: `no-runtime`, or `delegate` when the library cannot be used.
    """
    _, module, name = _backend(backend)
    runtime = import_module(module)
    interpreter_class = getattr(runtime, name)
    delegates = None
    if delegate:
        try:
            ctypes.CDLL(delegate)  # first: the runtime's own object trips over itself when it cannot be opened
            delegates = [runtime.load_delegate(delegate)]
        except (OSError, ValueError, RuntimeError) as error:
            raise DeviceError(
                f"delegate {delegate}: {error}; install it or correct runtime.delegate", code="delegate"
            ) from error
    try:
        interpreter = interpreter_class(model_path=str(path), num_threads=threads, experimental_delegates=delegates)
        interpreter.allocate_tensors()
        return Model(interpreter)
    except (RuntimeError, ValueError, TypeError) as error:
        # A failed allocation comes as an exception without words.
        text = str(error).strip() or "without a reason; it needs more memory than this process may have"
        code = "load" if str(error).strip() else "memory"
        raise ModelError(f"{path}: the runtime refused the model: {text}", code=code) from error


def import_runtime(backend: str | None = None) -> None:
    """Import the runtime now, so that limits on memory can be set above what it takes."""
    import_module(_backend(backend)[1])


def mismatch(expected: Sequence[Tensor], found: Sequence[Found], kind: str) -> str:
    """Compare a manifest's tensors with a model's.

    Args:
        expected: the manifest's tensors; None in a shape is met by any size.
        found: `inputs` or `outputs` of a loaded model.
        kind: "input" or "output", for the message.

    Returns:
        "" when they agree, else the tensor, what was expected and what was found.
    """
    if len(expected) != len(found):
        names = ", ".join(item.declared.name for item in found)
        return f"the manifest promises {len(expected)} {kind} tensors, the model has {len(found)} ({names})"
    for index, (want, have) in enumerate(zip(expected, found, strict=True)):
        place = f"{kind} {index} ({want.name!r})"
        if want.name != have.declared.name:
            return f"{place}: expected the name {want.name!r}, found {have.declared.name!r}"
        if want.dtype != have.declared.dtype:
            return f"{place}: expected dtype {want.dtype}, found {have.declared.dtype}"
        if not _shapes_agree(want.shape, have):
            return f"{place}: expected shape {_print(want.shape)}, found {_print(have.declared.shape)}"
        if not _quantisations_agree(want.quantisation, have.declared.quantisation):
            return (
                f"{place}: expected quantisation {want.quantisation or 'none'}, "
                f"found {have.declared.quantisation or 'none'}"
            )
    return ""


def _shapes_agree(want: tuple[int | None, ...], have: Found) -> bool:
    if len(want) != len(have.declared.shape):
        return False
    # A size that the file leaves open is as good as the manifest's where it is allocated as such.
    return all(
        size is None or size == declared or (declared is None and size == allocated)
        for size, declared, allocated in zip(want, have.declared.shape, have.shape, strict=True)
    )


def _quantisations_agree(want: tuple[float, int] | None, have: tuple[float, int] | None) -> bool:
    if want is None or have is None:
        return want is have
    return want[1] == have[1] and abs(want[0] - have[0]) <= _SCALE_TOLERANCE * abs(want[0])


def _print(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _found(details: dict[str, Any]) -> Found:
    scale, zero_point = details["quantization"]
    signature = details.get("shape_signature", details["shape"])
    declared = Tensor(
        name=str(details["name"]),
        shape=tuple(None if size < 0 else int(size) for size in signature),
        dtype=np.dtype(details["dtype"]).name,
        quantisation=None if scale == 0.0 else (float(scale), int(zero_point)),
    )
    return Found(declared, tuple(int(size) for size in details["shape"]))


def describe(found: Found) -> dict[str, Any]:
    """The tensor as a manifest writes it."""
    tensor = found.declared
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "quantisation": None
        if tensor.quantisation is None
        else {"scale": tensor.quantisation[0], "zero_point": tensor.quantisation[1]},
    }


def is_finite(arrays: Sequence[Array]) -> bool:
    """Whether no number of a float tensor is NaN or infinite; integers always are finite."""
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in arrays)
