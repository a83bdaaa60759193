"""Where a network comes from, and what can be done with it.

This file knows Keras files, SavedModels, .tflite files and entry points. It does not know steps or figures.

    source = load("digits.keras", train, seed=7)        # or a SavedModel directory, a .tflite, "module:function"
    source.network                                      # a Keras 3 model, or None where only a graph is left

An entry point is called as `function(train, seed)` with the training samples and returns a Keras model, trained or
not. A SavedModel or a .tflite file has no layers any more: it can be converted and quantised, not trained.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from modelagent.build import data, graph, toolbox
from modelagent.build.data import Samples
from modelagent.errors import UsageError

KERAS: Final = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class Source:
    """A loaded source: exactly one of `network` (Keras), `saved` (directory) and `tflite` (bytes) is there.

    `digest` is the sha256 of the file or files; for an entry point, of its module's source text.
    """

    name: str
    digest: str
    network: Any = None
    saved: Path | None = None
    tflite: bytes | None = None

    @property
    def kind(self) -> str:
        """For messages."""
        if self.network is not None:
            return "a Keras model"
        return "a SavedModel" if self.saved is not None else "a .tflite file"


def load(text: str, train: Samples, *, seed: int) -> Source:
    """Load a source.

    Raises:
        UsageError: `source`: nothing readable there; `entry-point`: it returned no Keras model.
    """
    if data.is_entry_point(text):
        return Source(text, _module_digest(text), network=call(text, train, seed=seed))
    path = Path(text)
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise _bad(text, "a directory without saved_model.pb")
        return Source(text, _tree_digest(path), saved=path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad(text, error.strerror or "nothing readable") from error
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix in KERAS:
        return Source(text, digest, network=read_keras(path))
    if content[4:8] == b"TFL3":
        try:
            graph.inspect(content)
        except UsageError as error:
            raise _bad(text, f"a damaged .tflite file of {len(content)} bytes") from error
        return Source(text, digest, tflite=content)
    raise _bad(text, f"a file of {len(content)} bytes that is none of these")


def read_keras(path: Path) -> Any:
    """Read a Keras file. Only layers that Keras knows: code inside a file is never run (`safe_mode`)."""
    keras = toolbox.keras3()
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = str(error).strip().splitlines()
        raise _bad(str(path), f"a Keras file that cannot be read: {said[0] if said else error!r}") from error


def call(text: str, train: Samples, *, seed: int) -> Any:
    """Call an entry point that makes a network."""
    keras = toolbox.keras3()
    function = data.entry_point(text)
    toolbox.set_seed(seed)
    network = function(train, seed)
    if not isinstance(network, keras.Model):
        raise UsageError(
            f"{text}: it returned {type(network).__name__}; allowed is a Keras 3 model (keras.Model)",
            code="entry-point",
        )
    return network


def network(text: str, train: Samples, *, seed: int) -> Any:
    """A Keras model from a file or an entry point, for instance the student of a distillation."""
    if data.is_entry_point(text):
        return call(text, train, seed=seed)
    if Path(text).suffix not in KERAS:
        raise _bad(text, "no Keras file; a student must be trained, and only Keras models can be")
    return read_keras(Path(text))


def feed(network: Any, arrays: Sequence[Any]) -> Any:
    """Inputs as the network is called with them: one, a list, or a mapping where it was built with one."""
    struct = getattr(network, "input", None)
    if not isinstance(struct, Mapping):
        return arrays[0] if len(arrays) == 1 else list(arrays)
    keys = {id(tensor): key for key, tensor in struct.items()}
    return {keys[id(tensor)]: array for tensor, array in zip(network.inputs, arrays, strict=True)}


def _module_digest(text: str) -> str:
    file = getattr(import_module(text.partition(":")[0]), "__file__", None)
    content = Path(file).read_bytes() if file else text.encode()
    return hashlib.sha256(content).hexdigest()


def _tree_digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        # Written anew at every save, and about the save alone.
        if file.name == "fingerprint.pb":
            continue
        total.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def _bad(source: str, found: str) -> UsageError:
    return UsageError(
        f"{source}: found {found}; allowed are a .keras or .h5 file, a SavedModel directory, a .tflite file, "
        "or module:function",
        code="source",
    )
