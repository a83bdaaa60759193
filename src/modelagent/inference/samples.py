"""The signed samples of a release, read one at a time.

This file knows the layout of canary.npz and warmup.npz: `input_<i>` with the sample axis first, and either `labels`
(a class, a mask or target values of each sample) or `reference` (output 0 of a model that is believed). It does not
know the runtime, what a model says of a sample, or who asks.

    with Samples(slot / "canary.npz", inputs=1) as samples:
        arrays = samples.read(7)                    # one array per input, without the sample axis
        samples.label(7)                            # 4, or None when the set has no class labels
        samples.truth(7)                            # array(4), the mask, the target or the reference of sample 7

Samples are streamed out of the archive: a set of some hundred megabytes in memory would be taken for the memory of
the model, whose peak the canary measures.
"""

import contextlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from modelagent.errors import ModelError

Array = npt.NDArray[Any]
_MAX_SAMPLES: Final = 10**7
# What a damaged archive brings up: zipfile, zlib, lzma and numpy each have their own words for it, and RuntimeError
# stands for an encrypted member and for a compression that nobody knows.
_DAMAGE: Final = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


class _Stream:
    """One `.npy` member of an archive, read sample by sample; going back reopens it."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._name = name
        self._file: IO[bytes] | None = None
        self._next = 0
        try:
            self.shape, self.dtype = self._open()
        except BaseException:
            self.close()
            raise
        self.size = math.prod(self.shape[1:]) * self.dtype.itemsize

    def _open(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        self.close()
        self._file = self._archive.open(f"{self._name}.npy")
        version = npy.read_magic(self._file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(self._file)
        if fortran and len(shape) > 1:
            raise ValueError(f"{self._name} is stored column by column")
        if dtype.hasobject:
            raise ValueError(f"{self._name} holds Python objects")
        self._next = 0
        return shape, dtype

    def read(self, index: int) -> Array:
        if index < self._next:
            self._open()
        assert self._file is not None  # noqa: S101 - opened by the constructor
        while self._next < index:
            self._take()
        return np.frombuffer(self._take(), dtype=self.dtype).reshape(self.shape[1:])

    def _take(self) -> bytes:
        assert self._file is not None  # noqa: S101 - as above
        data = self._file.read(self.size)
        if len(data) != self.size:
            raise ValueError(f"{self._name} ends within sample {self._next}")
        self._next += 1
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Samples:
    """An open sample set.

    Args:
        path: a canary.npz or warmup.npz.
        inputs: how many input tensors the model has.

    Raises:
        ModelError: `canary`, naming file, array, what was expected and what was found.
    """

    def __init__(self, path: Path, inputs: int) -> None:
        self._path = path
        self.labels: npt.NDArray[np.int64] | None = None  # one class a sample
        self._truth: _Stream | None = None
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise self._bad("the file", str(error), "an .npz archive") from error
        self._streams: list[_Stream] = []
        self._inputs = inputs
        try:
            self._open(inputs)
        except _DAMAGE as error:
            self.close()
            raise self._bad("the arrays", str(error), f"{inputs} arrays `input_<i>`") from error
        except ModelError:
            self.close()
            raise
        self.count = self._streams[0].shape[0]

    def _open(self, inputs: int) -> None:
        streams = self._streams
        for index in range(inputs):
            streams.append(_Stream(self._archive, f"input_{index}"))
            if not streams[index].shape:
                raise self._bad(f"input_{index}", "a single number", "an array with the sample axis first")
        if len({stream.shape[0] for stream in streams}) != 1 or streams[0].shape[0] > _MAX_SAMPLES:
            raise self._bad("the arrays", "unequal or too many samples", "as many samples in each `input_<i>`")
        names = self._archive.namelist()
        given = [name for name in ("labels", "reference") if f"{name}.npy" in names]
        if len(given) == 2:
            raise self._bad("the arrays", "labels and a reference", "one of them")
        if not given:
            return
        truth = _Stream(self._archive, given[0])
        self._streams.append(truth)
        if truth.shape[:1] != streams[0].shape[:1] or truth.dtype.kind not in "iuf":
            raise self._bad(given[0], f"{truth.dtype.name}{list(truth.shape)}", "one number or array per sample")
        self._truth = truth
        if given == ["labels"] and len(truth.shape) == 1 and truth.dtype.kind in "iu":
            with np.load(self._path, allow_pickle=False) as archive:
                self.labels = archive["labels"].astype(np.int64)

    def _bad(self, place: str, found: str, allowed: str) -> ModelError:
        return ModelError(f"{self._path}: {place}: found {found}, allowed is {allowed}", code="canary")

    def read(self, index: int) -> list[Array]:
        """Sample `index`: one read-only array per input, without the sample axis.

        Raises:
            ModelError: `canary` when there is no such sample or the archive is damaged.
        """
        if not 0 <= index < self.count:
            raise self._bad(f"sample {index}", "nothing", f"0 to {self.count - 1}")
        try:
            return [stream.read(index) for stream in self._streams[: self._inputs]]
        except _DAMAGE as error:
            raise self._bad(f"sample {index}", str(error), "a whole sample") from error

    def label(self, index: int) -> int | None:
        """The class of sample `index`, if the set has one for each."""
        return None if self.labels is None else int(self.labels[index])

    def truth(self, index: int) -> Array | None:
        """The label, mask, target or reference of sample `index`, if the set has any.

        Raises:
            ModelError: `canary` when the archive is damaged.
        """
        if self._truth is None:
            return None
        try:
            return self._truth.read(index)
        except _DAMAGE as error:
            raise self._bad(f"sample {index}", str(error), "a whole sample") from error

    def close(self) -> None:
        """Close the archive; harmless twice."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
