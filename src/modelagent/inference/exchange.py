"""The mailbox between the loop and one worker: a sealed memory file with a ring of slots, and two event counters.

This file knows the layout (header, slots of inputs and outputs) and who writes what when. It does not know what a
frame means, how the worker is started or what happens when it dies. No pickle and no queue: a frame is one copy and
one counter.

    layout = plan(manifest.inputs, manifest.outputs)
    parent = ParentSide(layout)                     # spawn the worker with parent.fds passed on
    parent.watch(child.pidfd)
    np.copyto(parent.filling.inputs[0], frame); parent.post()       # again while `parent.room`
    if parent.wait(2.0) is Reply.ANSWERED: parent.answered.outputs[0], parent.status, parent.invoke_ns

    worker = WorkerSide(layout, memory_fd=3, request_fd=4, reply_fd=5)
    while worker.take(): ...worker.slot.inputs...; worker.answer(OK, invoke_ns)     # or slots[worker.number]

Answers come in the order of the questions. While the loop decides on one frame the worker runs the next, so neither
sleeps as long as frames wait.

Layout: 64 bytes of header, little-endian {u64 posted, u64 answered}, then the slots. A slot is 64 bytes {i64 status,
u64 invoke_ns}, then inputs, then outputs, each at a multiple of 64 bytes and each of batch 1. A tensor of open size is
{u64 rank, 8 x u64 size} in 128 bytes, then room for `OPEN_BYTES`. The file is sealed against resizing: neither side
can make the other's mapping fault (memfd_create(2), F_ADD_SEALS).
"""

import contextlib
import enum
import fcntl
import math
import mmap
import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelagent.errors import DeviceError, ModelError
from modelagent.manifest import Tensor

HEADER: Final = 64  # bytes, of the file and of each slot
ALIGN: Final = 64  # bytes; a cache line, and the widest vector register
MAX_SIZE: Final = 1 << 30  # bytes; a contract that wants more than this is refused, not swapped out
OPEN_BYTES: Final = 256 * 1024  # of a tensor whose size is known only when it comes
OK: Final = 0
NOT_FINITE: Final = 1
FAILED: Final = 2
_MOST: Final = 8  # slots of a small model; two let the two sides overlap, more save switches between them
_SMALL: Final = 512 * 1024  # bytes that the ring may take for having more than two
_RANK: Final = 8
_OPEN_HEADER: Final = 128  # bytes
_POSTED, _ANSWERED = range(2)
_STATUS, _INVOKE_NS = range(2)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Array = npt.NDArray[Any]


class Reply(enum.Enum):
    """How a question to the worker ended."""

    ANSWERED = "answered"
    DIED = "died"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Area:
    """Where one tensor lies in a slot: offset in bytes, shape of batch 1, numpy's name of the dtype.

    `open`: its size is known only when it comes; `shape` then has 1 for every open size.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    open: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the memory file of `size` bytes; both sides compute it from the manifest.

    `depth` slots of `stride` bytes each.
    """

    inputs: tuple[Area, ...]
    outputs: tuple[Area, ...]
    stride: int
    depth: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return HEADER + self.depth * self.stride


def fixed_shape(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape with 1 for every size that is left open."""
    return tuple(1 if size is None else size for size in tensor.shape)


def plan(inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, stateful: bool = False) -> Layout:
    """Lay out the tensors of a manifest.

    The first size of an input is the batch, which is 1 where it is left open. Any other open size is served from a
    bounded room. A stateful model gets one slot: a frame that must be run again would find the next one's traces.

    Raises:
        ModelError: `contract` when the whole is larger than `MAX_SIZE`.
    """
    offset = HEADER
    areas: list[Area] = []
    for number, tensor in enumerate((*inputs, *outputs)):
        sizes = tensor.shape[1:] if number < len(inputs) else tensor.shape
        unknown = None in sizes
        shape = fixed_shape(tensor)
        areas.append(Area(offset, shape, tensor.dtype, unknown))
        length = math.prod(shape) * np.dtype(tensor.dtype).itemsize
        offset += -(-(_OPEN_HEADER + max(OPEN_BYTES, length) if unknown else length) // ALIGN) * ALIGN
    depth = 1 if stateful else min(_MOST, max(2, _SMALL // offset))
    layout = Layout(tuple(areas[: len(inputs)]), tuple(areas[len(inputs) :]), offset, depth)
    if layout.size > MAX_SIZE:
        raise ModelError(
            f"the tensors need {layout.size} bytes of shared memory, at most {MAX_SIZE} are served; "
            "the manifest's shapes are too large for a device",
            code="contract",
        )
    return layout


class Open:
    """A tensor of open size in the mailbox. What it says of itself is checked: the other side may be hostile."""

    __slots__ = ("_bytes", "_dtype", "_sizes")

    def __init__(self, sizes: Array, data: Array, dtype: str) -> None:
        self._sizes = sizes
        self._bytes = data
        self._dtype = np.dtype(dtype)

    def write(self, array: Array) -> None:
        """Copy an array in.

        Raises:
            ValueError: it is larger than the room for it, or of another dtype.
        """
        if array.nbytes > self._bytes.size or array.ndim > _RANK or array.dtype != self._dtype:
            raise ValueError(
                f"a tensor of {array.dtype}{list(array.shape)} where {self._bytes.size} bytes of {self._dtype} fit"
            )
        self._sizes[0] = array.ndim
        self._sizes[1 : 1 + array.ndim] = array.shape
        np.copyto(self._bytes[: array.nbytes].view(self._dtype).reshape(array.shape), array)

    def read(self) -> Array:
        """The array that was written last; a view.

        Raises:
            ValueError: the sizes are impossible.
        """
        rank = int(self._sizes[0])
        shape = tuple(int(size) for size in self._sizes[1 : 1 + min(rank, _RANK)])
        length = math.prod(shape) * self._dtype.itemsize
        if rank > _RANK or length > self._bytes.size:
            raise ValueError(f"a tensor of {rank} sizes {list(shape)} where {self._bytes.size} bytes fit")
        return self._bytes[:length].view(self._dtype).reshape(shape)


class Slot:
    """One place of the ring: numpy's views of its inputs and outputs, `Open` where the size is not fixed."""

    __slots__ = ("inputs", "outputs", "signed", "unsigned")

    def __init__(self, buffer: mmap.mmap, layout: Layout, number: int) -> None:
        start = HEADER + number * layout.stride
        head = memoryview(buffer)[start : start + HEADER]
        self.signed = head.cast("q")
        self.unsigned = head.cast("Q")
        self.inputs: tuple[Array | Open, ...] = tuple(_view(buffer, start, area) for area in layout.inputs)
        self.outputs: tuple[Array | Open, ...] = tuple(_view(buffer, start, area) for area in layout.outputs)

    @property
    def fixed(self) -> tuple[list[Array], list[Array]] | None:
        """Inputs and outputs, where no size is open."""
        inputs = [item for item in self.inputs if not isinstance(item, Open)]
        outputs = [item for item in self.outputs if not isinstance(item, Open)]
        whole = len(inputs) == len(self.inputs) and len(outputs) == len(self.outputs)
        return (inputs, outputs) if whole else None

    def read_inputs(self) -> list[Array]:
        """The inputs as arrays; ValueError when an open one is impossible."""
        return [item.read() if isinstance(item, Open) else item for item in self.inputs]

    def read_outputs(self) -> list[Array]:
        """The outputs as arrays; ValueError when an open one is impossible."""
        return [item.read() if isinstance(item, Open) else item for item in self.outputs]

    def write_outputs(self, arrays: Sequence[Array]) -> None:
        """Copy the model's outputs in; ValueError when an open one does not fit."""
        for target, array in zip(self.outputs, arrays, strict=True):
            if isinstance(target, Open):
                target.write(array)
            else:
                np.copyto(target, array)

    def release(self) -> None:
        """Let go of the memory."""
        self.inputs = self.outputs = ()
        self.signed.release()
        self.unsigned.release()


def _view(buffer: mmap.mmap, start: int, area: Area) -> Array | Open:
    begin = start + area.offset
    if area.open:
        length = math.prod(area.shape) * np.dtype(area.dtype).itemsize
        sizes = np.frombuffer(buffer, dtype=np.uint64, count=1 + _RANK, offset=begin)
        data = np.frombuffer(buffer, dtype=np.uint8, count=max(OPEN_BYTES, length), offset=begin + _OPEN_HEADER)
        return Open(sizes, data, area.dtype)
    flat = np.frombuffer(buffer, dtype=area.dtype, count=math.prod(area.shape), offset=begin)
    return flat.reshape(area.shape)


class _Mapping:
    """The mapped file and the views of it; the same for both sides."""

    def __init__(self, layout: Layout, memory_fd: int) -> None:
        self.layout = layout
        self._map = mmap.mmap(memory_fd, layout.size)
        self._head = memoryview(self._map)[:HEADER].cast("Q")
        self.slots = tuple(Slot(self._map, layout, number) for number in range(layout.depth))

    def unmap(self) -> None:
        for slot in self.slots:
            slot.release()
        self._head.release()
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
            self.request_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.append(self.request_fd)
            self.reply_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.append(self.reply_fd)
            super().__init__(layout, self.memory_fd)
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise DeviceError(
                f"no shared memory of {layout.size} bytes for a worker: {error}; free memory or descriptors",
                code="memory",
            ) from error
        self.depth = layout.depth
        self.room = layout.depth  # questions that may be asked before an answer must be awaited
        self.filled = 0  # the slot to fill next
        self.last = 0  # the slot of the last answer
        self._count = 0  # questions posted
        self._done = 0  # answers taken
        self._ready = 0  # answers announced and not taken
        self._spent = False
        self._poll = select.poll()
        self._poll.register(self.reply_fd, select.POLLIN)
        self._closed = False

    @property
    def fds(self) -> tuple[int, int, int]:
        """Memory, request and reply: what the worker must inherit."""
        return self.memory_fd, self.request_fd, self.reply_fd

    @property
    def filling(self) -> Slot:
        """The slot that the next `post` sends."""
        return self.slots[self.filled]

    @property
    def answered(self) -> Slot:
        """The slot of the last answer; it holds until `depth` further questions have been posted."""
        return self.slots[self.last]

    def watch(self, pidfd: int) -> None:
        """Name the worker whose end `wait` shall notice."""
        self._poll.register(pidfd, select.POLLIN)

    def post(self) -> None:
        """Send what lies in `filling`; at most `room` times without `wait`."""
        assert self.room > 0, "more questions than slots"  # noqa: S101 - a programmer's error
        self.room -= 1
        self._count += 1
        self._head[_POSTED] = self._count
        self.filled = self._count % self.depth
        try:
            os.eventfd_write(self.request_fd, 1)
        except BlockingIOError:  # the worker has filled the counter up: it is not to be believed
            self._spent = True

    def wait(self, timeout: float) -> Reply:
        """Take the oldest answer, waiting at most `timeout` seconds for it.

        After ANSWERED `answered`, `status` and `invoke_ns` hold the answer. After anything else the mailbox is spent:
        end the worker and make a new one.
        """
        if not self._ready:
            reply = self._await(timeout)
            if reply is not Reply.ANSWERED:
                self._spent = True
                return reply
        self._ready -= 1
        self.last = self._done % self.depth
        self._done += 1
        self.room += 1
        return Reply.ANSWERED

    def _await(self, timeout: float) -> Reply:
        if self._spent:
            return Reply.HUNG
        try:
            self._ready = os.eventfd_read(self.reply_fd)
        except BlockingIOError:
            ready = self._poll.poll(timeout * 1000.0)
            if not ready:
                return Reply.HUNG
            if all(fd != self.reply_fd for fd, _event in ready):  # an answer given just before dying is an answer
                return Reply.DIED
            try:
                self._ready = os.eventfd_read(self.reply_fd)
            except BlockingIOError:
                return Reply.HUNG  # the worker took its own answer back
        # More answers than questions: the worker is not to be believed.
        if self._ready > self._count - self._done or self._head[_ANSWERED] < self._done + self._ready:
            return Reply.HUNG
        return Reply.ANSWERED

    def ask(self, timeout: float) -> Reply:
        """`post` and `wait`, when nothing else is on its way."""
        self.post()
        return self.wait(timeout)

    @property
    def status(self) -> int:
        """OK, NOT_FINITE or FAILED, of the last answer."""
        return self.slots[self.last].signed[_STATUS]

    @property
    def invoke_ns(self) -> int:
        """Nanoseconds that the last inference took inside the worker."""
        return self.slots[self.last].unsigned[_INVOKE_NS]

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
        spin_s: seconds to look again before `take` says that nothing waits: a sleep costs more than a small model.

    Raises:
        ModelError: `contract` when the memory file has another size or can still be resized.
    """

    def __init__(self, layout: Layout, *, memory_fd: int, request_fd: int, reply_fd: int, spin_s: float = 0.0) -> None:
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
        self.slot = self.slots[0]
        self.number = 0  # of `slot`
        self._depth = layout.depth
        self._spin_s = spin_s
        self._waiting = 0
        self._answered = 0

    def take(self) -> bool:
        """Take the next question into `slot`; False when none waits."""
        if not self._waiting:
            until = 0.0
            while True:
                try:
                    self._waiting = os.eventfd_read(self.request_fd)
                    break
                except BlockingIOError:
                    if not self._spin_s:
                        return False
                    now = time.perf_counter()
                    until = until or now + self._spin_s
                    if now >= until:
                        return False
        self._waiting -= 1
        self.number = self._answered % self._depth
        self.slot = self.slots[self.number]
        return True

    def leave(self) -> None:
        """Give back what was announced and not taken, so that polling the counter says so again."""
        if self._waiting:
            os.eventfd_write(self.request_fd, self._waiting)
            self._waiting = 0

    def answer(self, status: int, invoke_ns: int) -> None:
        """Say that the slot's outputs hold the answer to the question taken last."""
        self.slot.signed[_STATUS] = status
        self.slot.unsigned[_INVOKE_NS] = invoke_ns
        self._answered += 1
        self._head[_ANSWERED] = self._answered
        os.eventfd_write(self.reply_fd, 1)
