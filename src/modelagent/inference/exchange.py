"""The mailbox between the loop and one worker: a sealed memory file and two event counters.

This file knows the layout (header, inputs, outputs) and who writes what when. It does not know what a frame
means, how the worker is started or what happens when it dies. No pickle and no queue: a frame is one copy and
one counter.

    layout = plan(manifest.inputs, manifest.outputs)
    parent = ParentSide(layout)                     # spawn the worker with parent.fds passed on
    parent.watch(child.pidfd)
    np.copyto(parent.inputs[0], frame)
    if parent.ask(2.0) is Reply.ANSWERED: parent.outputs[0], parent.status, parent.invoke_ns

    worker = WorkerSide(layout, memory_fd=3, request_fd=4, reply_fd=5)
    worker.take(); ...; worker.answer(OK, invoke_ns)

Layout: 64 bytes of header, little-endian {u64 sequence, i64 status, u64 invoke_ns, u64 answered sequence},
then inputs, then outputs, each at a multiple of 64 bytes and each of batch 1. The file is sealed against
resizing: neither side can make the other's mapping fault (memfd_create(2), F_ADD_SEALS).
"""

import contextlib
import enum
import fcntl
import math
import mmap
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import DeviceError, ModelError
from modelagent.manifest import Tensor

HEADER: Final = 64  # bytes
ALIGN: Final = 64  # bytes; a cache line, and the widest vector register
MAX_SIZE: Final = 1 << 30  # bytes; a contract that wants more than this is refused, not swapped out
OK: Final = 0
NOT_FINITE: Final = 1
FAILED: Final = 2
_SEQUENCE, _STATUS, _INVOKE_NS, _ANSWERED = range(4)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Array = npt.NDArray[Any]


class Reply(enum.Enum):
    """How a question to the worker ended."""

    ANSWERED = "answered"
    DIED = "died"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Area:
    """Where one tensor lies: offset in bytes, shape of batch 1, numpy's name of the dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the memory file of `size` bytes; both sides compute it from the manifest."""

    inputs: tuple[Area, ...]
    outputs: tuple[Area, ...]
    size: int


def fixed_shape(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape at batch 1: a dynamic first size is 1, any other dynamic size cannot be served.

    Raises:
        ModelError: `contract`.
    """
    rest = tensor.shape[1:]
    if any(size is None for size in rest):
        raise ModelError(
            f"tensor {tensor.name!r} has the shape {list(tensor.shape)}: only the first size may be dynamic; "
            "convert the model with fixed sizes",
            code="contract",
        )
    first = () if not tensor.shape else (1 if tensor.shape[0] is None else tensor.shape[0],)
    return first + tuple(size for size in rest if size is not None)


def plan(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Layout:
    """Lay out the tensors of a manifest.

    Raises:
        ModelError: `contract` when a size is dynamic or the whole is larger than `MAX_SIZE`.
    """
    offset = HEADER
    areas: list[Area] = []
    for tensor in (*inputs, *outputs):
        shape = fixed_shape(tensor)
        areas.append(Area(offset, shape, tensor.dtype))
        offset += -(-math.prod(shape) * np.dtype(tensor.dtype).itemsize // ALIGN) * ALIGN
    if offset > MAX_SIZE:
        raise ModelError(
            f"the tensors need {offset} bytes of shared memory, at most {MAX_SIZE} are served; "
            "the manifest's shapes are too large for a device",
            code="contract",
        )
    return Layout(tuple(areas[: len(inputs)]), tuple(areas[len(inputs) :]), offset)


class _Mapping:
    """The mapped file and numpy's views of it; the same for both sides."""

    def __init__(self, layout: Layout, memory_fd: int) -> None:
        self.layout = layout
        self._map = mmap.mmap(memory_fd, layout.size)
        whole = memoryview(self._map)
        self._unsigned = whole[:HEADER].cast("Q")
        self._signed = whole[:HEADER].cast("q")
        self.inputs: tuple[Array, ...] = tuple(self._view(area) for area in layout.inputs)
        self.outputs: tuple[Array, ...] = tuple(self._view(area) for area in layout.outputs)

    def _view(self, area: Area) -> Array:
        count = math.prod(area.shape)
        flat = np.frombuffer(self._map, dtype=area.dtype, count=count, offset=area.offset)
        return flat.reshape(area.shape)

    def unmap(self) -> None:
        self.inputs = self.outputs = ()
        self._unsigned.release()
        self._signed.release()
        with contextlib.suppress(BufferError):  # a caller still holds a view: the mapping goes with it
            self._map.close()


class ParentSide(_Mapping):
    """The loop's side: owns the memory file and both counters. One per worker, never reused for another.

    Args:
        layout: from `plan`.

    Raises:
        DeviceError: `memory` when the kernel has no memory or no descriptor left.
    """

    def __init__(self, layout: Layout) -> None:
        opened: list[int] = []
        try:
            self.memory_fd = os.memfd_create("modelagent-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            opened.append(self.memory_fd)
            os.truncate(self.memory_fd, layout.size)
            fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, _SEALS)
            self.request_fd = os.eventfd(0, os.EFD_CLOEXEC)
            opened.append(self.request_fd)
            self.reply_fd = os.eventfd(0, os.EFD_CLOEXEC)
            opened.append(self.reply_fd)
            super().__init__(layout, self.memory_fd)
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise DeviceError(
                f"no shared memory of {layout.size} bytes for a worker: {error}; free memory or descriptors",
                code="memory",
            ) from error
        self._sequence = 0
        self._poll = select.poll()
        self._poll.register(self.reply_fd, select.POLLIN)
        self._closed = False

    @property
    def fds(self) -> tuple[int, int, int]:
        """Memory, request and reply: what the worker must inherit."""
        return self.memory_fd, self.request_fd, self.reply_fd

    def watch(self, pidfd: int) -> None:
        """Name the worker whose end `ask` shall notice."""
        self._poll.register(pidfd, select.POLLIN)

    def ask(self, timeout: float) -> Reply:
        """Send what lies in `inputs` and wait for the answer, at most `timeout` seconds.

        After ANSWERED `outputs`, `status` and `invoke_ns` hold the answer until the next call. After anything
        else the mailbox is spent: end the worker and make a new one.
        """
        self._sequence += 1
        self._unsigned[_SEQUENCE] = self._sequence
        os.eventfd_write(self.request_fd, 1)
        ready = self._poll.poll(timeout * 1000.0)
        if not ready:
            return Reply.HUNG
        for fd, _event in ready:  # an answer given just before dying is an answer
            if fd == self.reply_fd:
                os.eventfd_read(fd)
                return Reply.ANSWERED if self._unsigned[_ANSWERED] == self._sequence else Reply.HUNG
        return Reply.DIED

    @property
    def status(self) -> int:
        """OK, NOT_FINITE or FAILED, of the last answer."""
        return self._signed[_STATUS]

    @property
    def invoke_ns(self) -> int:
        """Nanoseconds that the last inference took inside the worker."""
        return self._unsigned[_INVOKE_NS]

    def close(self) -> None:
        """Unmap and close; harmless twice."""
        if not self._closed:
            self._closed = True
            self.unmap()
            for fd in self.fds:
                os.close(fd)


class WorkerSide(_Mapping):
    """The worker's side: maps what it inherited.

    Args:
        layout: from `plan`, over the same manifest as the parent's.
        memory_fd: the memory file.
        request_fd: counts questions; poll it together with the control socket.
        reply_fd: counts answers.

    Raises:
        ModelError: `contract` when the memory file has another size or can still be resized.
    """

    def __init__(self, layout: Layout, *, memory_fd: int, request_fd: int, reply_fd: int) -> None:
        size = os.fstat(memory_fd).st_size
        seals = fcntl.fcntl(memory_fd, fcntl.F_GET_SEALS)
        if size != layout.size or seals & _SEALS != _SEALS:
            raise ModelError(
                f"the shared memory has {size} bytes and seals {seals:#x}, this manifest needs {layout.size} "
                f"and {_SEALS:#x}; parent and worker must be of the same version and slot",
                code="contract",
            )
        super().__init__(layout, memory_fd)
        self.request_fd = request_fd
        self.reply_fd = reply_fd

    def take(self) -> int:
        """Take one question (waits for it if there is none): its sequence number."""
        os.eventfd_read(self.request_fd)
        return self._unsigned[_SEQUENCE]

    def answer(self, status: int, invoke_ns: int) -> None:
        """Say that `outputs` hold the answer to the question taken last."""
        self._signed[_STATUS] = status
        self._unsigned[_INVOKE_NS] = invoke_ns
        self._unsigned[_ANSWERED] = self._unsigned[_SEQUENCE]
        os.eventfd_write(self.reply_fd, 1)
