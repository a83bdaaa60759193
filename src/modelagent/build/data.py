"""Data sets: where samples come from, and who may see which.

This file knows files, folders and entry points that give samples, and the division into train, validation and canary.
It does not know models.

    samples = read("digits.npz")                    # or a directory of class folders, or "module:function"
    parts = split(samples, seed=7)                  # no sample is in two parts; classes in equal shares
    parts.canary.digest                             # sha256 of exactly these numbers

An .npz holds `input_0`, `input_1`, ... (or one array `x`) with a leading sample axis, and `labels` (or `y`): a class
a sample, or what the metric asks for (target numbers for mae and rmse, a class a pixel for mean-iou). An entry point
returns the same as a mapping. Class folders hold .npy files or pictures, one folder a class.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.build import scoring
from modelagent.errors import ModelError, SourceError, UsageError
from modelagent.manifest import Tensor

Array = npt.NDArray[Any]
SHARES: Final = {"train": 0.6, "validation": 0.15, "canary": 0.25}
PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_STRATA: Final = 10  # of targets that are numbers: low and high ones have equal shares in every part


@dataclass(frozen=True)
class Samples:
    """Samples in order: one array per model input, each [N, ...], the truth, and the classes' names.

    `labels`: int64 [N] where samples have a class, float32 [N, ...] where they have target numbers, int64 [N, ...]
    masks; the last two have no class names unless they came with the data.
    """

    inputs: tuple[Array, ...]
    labels: Array
    classes: tuple[str, ...]
    fixed: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # a division that came with the data

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "Samples":
        """Some of them, in the order of the indices."""
        return Samples(tuple(array[indices] for array in self.inputs), self.labels[indices], self.classes)

    @property
    def digest(self) -> str:
        """sha256 over shapes, types and numbers, in hex."""
        total = hashlib.sha256()
        for array in (*self.inputs, self.labels):
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    @property
    def strata(self) -> npt.NDArray[np.int64]:
        """What every part must have in equal shares: classes, or tenths of the first target number."""
        if self.labels.ndim == 1 and self.labels.dtype.kind in "iu":
            return self.labels.astype(np.int64)
        if self.labels.dtype.kind != "f":
            return np.zeros(len(self), np.int64)
        first = self.labels.reshape(len(self), -1)[:, 0]
        ranks = np.argsort(np.argsort(first, kind="stable"), kind="stable")
        groups = max(1, min(_STRATA, len(self) // _STRATA))  # so that a small set still has some of each in each part
        return (ranks * groups // len(self)).astype(np.int64)


@dataclass(frozen=True)
class Parts:
    """The division: weights are learnt on `train`, variants chosen on `validation`, releases judged on `canary`."""

    train: Samples
    validation: Samples
    canary: Samples


def entry_point(text: str) -> Any:
    """What `package.module:name` names.

    Raises:
        UsageError: `entry-point`.
    """
    module, _, name = text.partition(":")
    try:
        found = getattr(import_module(module), name)
        if not callable(found):
            raise ValueError(f"{name} is a {type(found).__name__} and no function")  # noqa: TRY004 - told below
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{text}: {error}; allowed is package.module:function, importable from here (see PYTHONPATH)",
            code="entry-point",
        ) from error


def is_entry_point(text: str) -> bool:
    """Whether a source is `module:function` rather than a path."""
    module, found, name = text.partition(":")
    return bool(found) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def read(source: str, metric: str = "accuracy") -> Samples:
    """Read a data set.

    Args:
        source: an .npz file, a directory of class folders, or `module:function`.
        metric: decides what labels may be.

    Raises:
        UsageError: `data`, naming the array or file, what was found and what is allowed.
    """
    if is_entry_point(source):
        given = entry_point(source)()
        if isinstance(given, Samples):
            given = _arrays(given)
        if not isinstance(given, Mapping):
            raise _bad(source, f"a {type(given).__name__}", "a mapping of arrays, as an .npz holds them")
        return _from_arrays(source, {name: np.asarray(array) for name, array in given.items()}, metric)
    path = Path(source)
    if path.is_dir():
        return _from_folders(path, metric)
    allowed = "an .npz file, a directory of class folders, or module:function"
    try:
        # numpy would leave a file open that it cannot read.
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise _bad(source, "a single array without labels", allowed)
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _bad(source, _said(error), allowed) from error
    return _from_arrays(source, arrays, metric)


def split(samples: Samples, *, seed: int, shares: Mapping[str, float] | None = None) -> Parts:
    """Divide: stratified by class (or by target), by a seeded permutation whose stream numpy has frozen (NEP 19).

    A division that came with the data (`fixed`) is taken as it is.

    Raises:
        UsageError: `data`: shares that are none, or a part that would be empty.
    """
    if samples.fixed:
        missing = set(SHARES) - set(samples.fixed)
        if missing:
            raise _bad("split", f"no {', '.join(sorted(missing))}", "indices for train, validation and canary")
        _check_division(samples)
        return Parts(**{name: samples.take(samples.fixed[name]) for name in SHARES})
    wanted = {**SHARES, **(shares or {})}
    if set(wanted) != set(SHARES) or min(wanted.values()) <= 0 or sum(wanted.values()) > 1.0 + 1e-9:
        raise _bad("shares", str(dict(wanted)), "train, validation and canary above 0, at most 1 in all")
    random = np.random.RandomState(seed)
    found: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in SHARES}
    strata = samples.strata
    for label in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == label)).astype(np.int64)
        start = 0.0
        for name in SHARES:
            stop = start + wanted[name] * len(members)
            found[name].append(members[round(start) : round(stop)])
            start = stop
    parts = {}
    for name, groups in found.items():
        indices = random.permutation(np.concatenate(groups)).astype(np.int64)
        if not len(indices):
            raise _bad(name, f"no sample of {len(samples)}", "a data set with at least a few samples of each class")
        parts[name] = samples.take(indices)
    return Parts(**parts)


def thin(parts: Parts) -> list[str]:
    """Each class that some part has no sample of, for a person: nothing there speaks for it."""
    found = []
    for label, name in enumerate(parts.train.classes) if parts.train.labels.ndim == 1 else ():
        counts = {part: int((getattr(parts, part).labels == label).sum()) for part in SHARES}
        missing = [part for part, count in counts.items() if not count]
        if missing and sum(counts.values()):
            found.append(
                f"the class {name} has {sum(counts.values())} samples, and none of them in {', '.join(missing)}"
            )
    return found


def prepared(samples: Samples, before: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> Samples:
    """Frames as the network gets them: by the device's own arithmetic, so that both mean the same pixels.

    Args:
        samples: frames.
        before: the manifest's `preprocess`.
        shapes: of the network's inputs, batch included; empty: those of the frames.

    Raises:
        UsageError: `preprocess`: nonsense, or frames that do not fit.
    """
    if before.get("kind", "none") == "none":
        return samples
    shapes = shapes or [(1, *array.shape[1:]) for array in samples.inputs]
    tensors = [Tensor(f"input_{index}", tuple(shape), "float32", None) for index, shape in enumerate(shapes)]
    try:
        # By name: the arithmetic is numpy's alone, but it belongs to inference, which nothing here builds on.
        steps = import_module("modelagent.inference.prepare").preparations(before, tensors)
        made = tuple(
            np.concatenate([step.prepare(frame) for frame in array])
            for step, array in zip(steps, samples.inputs, strict=True)
        )
    except (ModelError, SourceError, ValueError) as error:
        raise UsageError(f"manifest.preprocess: {error}; correct it, or the data", code="preprocess") from error
    return replace(samples, inputs=made, fixed={})


def stratified(samples: Samples, count: int, *, seed: int) -> Samples:
    """`count` of the samples, classes in the shares that they have in all of them; all where there are fewer."""
    if count >= len(samples):
        return samples
    random = np.random.RandomState(seed)
    ranks = np.empty(len(samples))
    strata = samples.strata
    for label in np.unique(strata):
        members = np.flatnonzero(strata == label)
        # Members spread evenly over [0, 1): the first `count` of all then hold every class in its share.
        ranks[random.permutation(members)] = (np.arange(len(members)) + random.rand()) / len(members)
    return samples.take(np.sort(np.argsort(ranks, kind="stable")[:count]).astype(np.int64))


def pack(samples: Samples, *, labels: bool = True) -> bytes:
    """The bytes of an .npz as manifests promise them; the same samples give the same bytes."""
    arrays: dict[str, Array] = {f"input_{index}": array for index, array in enumerate(samples.inputs)}
    if labels:
        arrays["labels"] = samples.labels
    buffer = io.BytesIO()
    # numpy.savez would stamp each member with the present time.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def _check_labels(source: str, labels: Array, metric: str) -> None:
    """Whether these can be the truth of a metric."""
    found = f"labels {labels.dtype} {list(labels.shape)}"
    if not labels.ndim or not len(labels):
        raise _bad(source, found, "one a sample, and at least one sample")
    if labels.dtype.kind in "US":
        raise _bad(source, found, "whole numbers; make them with names, labels = np.unique(words, return_inverse=True)")
    if metric in scoring.VALUES:
        if labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
            raise _bad(source, found, f"finite numbers, the targets of {metric}")
        return
    if metric in scoring.MASKS:
        if labels.dtype.kind not in "iu" or labels.ndim < 2:
            raise _bad(source, found, f"whole numbers, one a pixel, for {metric}")
        return
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _bad(source, found, f"one whole number a sample, as {metric} asks for")
    if scoring.by_class(metric) and len(np.unique(labels)) == 1:
        raise _bad(
            source, f"the class {int(labels[0])} alone in {len(labels)} samples", "samples of two classes or more"
        )
    if metric in scoring.TWO_CLASSES and not set(np.unique(labels).tolist()) <= {0, 1}:
        raise _bad(source, f"the labels {np.unique(labels)[:5].tolist()}", f"0 and 1, as {metric} asks for")


def _from_arrays(source: str, arrays: Mapping[str, Array], metric: str) -> Samples:
    names = {"x": "input_0", "y": "labels"}
    arrays = {names.get(name, name): array for name, array in arrays.items()}
    inputs: list[Array] = []
    while f"input_{len(inputs)}" in arrays:
        inputs.append(arrays[f"input_{len(inputs)}"])
    if not inputs or "labels" not in arrays:
        raise _bad(source, f"the arrays {', '.join(sorted(arrays)) or 'none'}", "input_0, ... and labels")
    labels = arrays["labels"]
    _check_labels(source, labels, metric)
    if any(array.ndim < 1 or len(array) != len(labels) for array in inputs):
        lengths = [len(array) if array.ndim else "a single number" for array in inputs]
        raise _bad(source, f"{lengths} inputs for {len(labels)} labels", "one each a sample")
    inputs = [_numbers(source, f"input_{index}", array) for index, array in enumerate(inputs)]
    classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else ()
    if metric in scoring.VALUES:
        labels = labels.astype(np.float32)
    else:
        labels = labels.astype(np.int64)
        if int(labels.min()) < 0:
            raise _bad(source, f"the label {int(labels.min())}", "classes counted from 0")
        classes = classes or tuple(str(number) for number in range(int(labels.max()) + 1))
        if len(classes) <= int(labels.max()):
            raise _bad(source, f"the label {int(labels.max())}", f"labels below {len(classes)}, the number of classes")
    fixed = {name: arrays[name].astype(np.int64) for name in SHARES if name in arrays}
    return Samples(tuple(inputs), labels, classes, fixed)


def _arrays(samples: Samples) -> dict[str, Array]:
    """Samples as an .npz holds them, so that an entry point is checked as a file is."""
    named = {f"input_{index}": np.asarray(array) for index, array in enumerate(samples.inputs)}
    classes = {"classes": np.array(samples.classes)} if samples.classes else {}
    return {**named, "labels": np.asarray(samples.labels), **classes, **samples.fixed}


def _numbers(source: str, name: str, array: Array) -> Array:
    """An input as numbers that a network can take: real ones as float32, and none that is no number."""
    found = f"{name} {array.dtype} {list(array.shape)}"
    if array.dtype.kind not in "fiub" or not array.size:
        raise _bad(source, found, "numbers, at least one a sample")
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        made = array.astype(np.float32)
    if not np.isfinite(made).all():
        wrong = np.flatnonzero(~np.isfinite(made.reshape(len(made), -1)).all(axis=1))
        raise _bad(
            source,
            f"{name} with NaN, infinite or too large numbers in {len(wrong)} of {len(made)} samples, the first at "
            f"{wrong[0]}",
            "finite numbers (float32); take these samples out, or fill them in",
        )
    return made


def _check_division(samples: Samples) -> None:
    """A division that came with the data: every index a sample's, and none in two parts."""
    together = np.concatenate([samples.fixed[name].reshape(-1) for name in SHARES])
    if len(together) and not 0 <= together.min() <= together.max() < len(samples):
        raise _bad("split", f"the indices {together.min()} to {together.max()}", f"0 to {len(samples) - 1}")
    if len(np.unique(together)) < len(together):
        raise _bad("split", "samples in two parts, or twice in one", "each index once in train, validation and canary")
    for name in SHARES:
        if not samples.fixed[name].size:
            raise _bad("split", f"no index for {name}", "at least one a part")


def _from_folders(path: Path, metric: str) -> Samples:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    rows: list[Array] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        before = len(rows)
        for file in sorted(folder.iterdir()):
            if file.suffix == ".npy":
                rows.append(_array(file))
            elif file.suffix.lower() in PICTURES:
                rows.append(_picture(file))
            else:
                continue
            labels.append(label)
            if rows[-1].shape != rows[0].shape:
                raise _bad(str(file), f"the shape {rows[-1].shape}", f"{rows[0].shape}, as the first one")
        if len(rows) == before:
            raise _bad(str(folder), "no sample", f".npy files or pictures ({', '.join(PICTURES)}); else take it away")
    if not rows:
        raise _bad(str(path), "no sample", f"one folder a class, with .npy files or pictures ({', '.join(PICTURES)})")
    arrays: dict[str, Array] = {"input_0": np.stack(rows), "labels": np.array(labels)}
    return _from_arrays(str(path), {**arrays, "classes": np.array([folder.name for folder in folders])}, metric)


def _array(file: Path) -> Array:
    try:
        found: Array = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise _bad(str(file), f"no readable array ({_said(error)})", "one that numpy.save wrote, of numbers") from error
    return found


def _picture(file: Path) -> Array:
    """Pixels as 0..1, as most networks want them ([height, width, 1 or 3]); others scale in an entry point."""
    try:
        with pillow().open(file) as picture:
            grey = picture.mode in ("1", "L")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a broken file
        raise _bad(str(file), f"no readable picture ({error})", f"one of {', '.join(PICTURES)}") from error
    scaled: Array = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32) / 255.0
    return scaled


def pillow() -> Any:
    """Pillow's Image, which is an extra.

    Raises:
        UsageError: `no-tool`.
    """
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise UsageError(
            "Pillow is missing: class folders of pictures are read with it; pip install 'modelagent[images]'",
            code="no-tool",
        ) from error


def _said(error: Exception) -> str:
    """What numpy says, where that can be understood; it takes every text file for a pickle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if "pickle" in text:
        return "Python objects or other bytes, not numbers"
    return text or type(error).__name__


def _bad(where: str, found: str, allowed: str) -> UsageError:
    return UsageError(f"data {where}: found {found}; allowed is {allowed}", code="data")
