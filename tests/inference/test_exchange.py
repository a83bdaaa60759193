"""The mailbox: layout, seals, answers, and a worker that dies or says nothing."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference import exchange
from modelagent.inference.exchange import ParentSide, Reply, WorkerSide, plan
from modelagent.manifest import Tensor

X = Tensor("x", (1, 3), "float32", None)
Y = Tensor("y", (1, 5), "int8", (0.1, 0))
LAYOUT = plan([X, X], [Y])


@pytest.fixture
def parent() -> Iterator[ParentSide]:
    side = ParentSide(LAYOUT)
    yield side
    side.close()
    side.close()


def worker_of(parent: ParentSide) -> WorkerSide:
    memory, request, reply = parent.fds
    return WorkerSide(LAYOUT, memory_fd=memory, request_fd=request, reply_fd=reply)


def fill(parent: ParentSide, number: float) -> None:
    first, second = parent.filling.read_inputs()
    first[:] = number
    second[:] = 1


def answer_of(parent: ParentSide) -> list[list[int]]:
    found: list[list[int]] = parent.answered.read_outputs()[0].tolist()
    return found


def test_a_worker_that_fills_up_the_counter_of_questions_is_not_waited_for(parent: ParentSide) -> None:
    os.eventfd_write(parent.request_fd, 2**64 - 2)
    assert parent.ask(5.0) is Reply.HUNG
    assert parent.wait(5.0) is Reply.HUNG


def test_everything_is_aligned_and_nothing_overlaps() -> None:
    areas = (*LAYOUT.inputs, *LAYOUT.outputs)
    assert [area.offset for area in areas] == [64, 128, 192]
    assert (LAYOUT.stride, LAYOUT.depth, LAYOUT.size) == (256, 8, 64 + 8 * 256)
    large = plan([Tensor("x", (1, 512, 512, 3), "uint8", None)], [Y])
    assert large.depth == 2, "enough for the two sides to overlap"
    assert plan([X], [Y], stateful=True).depth == 1


def test_a_contract_too_large_for_a_device_is_refused() -> None:
    with pytest.raises(ModelError, match="shared memory"):
        plan([Tensor("x", (1, 2**29), "float32", None)], [])


def test_a_question_reaches_the_worker_and_its_answer_comes_back(parent: ParentSide) -> None:
    worker = worker_of(parent)

    def answer() -> None:
        for _ in range(3):
            while not worker.take():
                select.select([worker.request_fd], [], [])
            first, second = worker.slot.read_inputs()
            worker.slot.write_outputs([np.full((1, 5), first.sum() + second.sum(), np.int8)])
            worker.answer(exchange.NOT_FINITE, 1234)

    thread = threading.Thread(target=answer)
    thread.start()
    for number in (1, 2, 3):
        fill(parent, number)
        assert parent.ask(10.0) is Reply.ANSWERED
        assert answer_of(parent) == [[3 * number + 3] * 5]
        assert (parent.status, parent.invoke_ns) == (exchange.NOT_FINITE, 1234)
    thread.join()
    worker.unmap()


def test_answers_come_in_the_order_of_the_questions_and_the_ring_goes_round(parent: ParentSide) -> None:
    worker = worker_of(parent)
    asked, answered = 0, 0
    for _ in range(5):
        while parent.room:
            asked += 1
            fill(parent, asked)
            parent.post()
        assert not worker.slot.signed[0]
        for _ in range(6):
            assert worker.take()
            first, _second = worker.slot.read_inputs()
            worker.slot.write_outputs([np.full((1, 5), first[0, 0], np.int8)])
            worker.answer(exchange.OK, 1)
        for _ in range(6):
            answered += 1
            assert parent.wait(0.0) is Reply.ANSWERED
            assert answer_of(parent)[0][0] == answered
    assert asked == 8 + 4 * 6
    worker.leave()
    assert worker.take(), "what was given back is announced again"
    worker.unmap()


def test_a_tensor_of_open_size_says_its_size_and_an_impossible_one_is_refused() -> None:
    layout = plan([Tensor("x", (1, None), "int32", None)], [Tensor("y", (None, 2), "int64", None)])
    parent = ParentSide(layout)
    memory, request, reply = parent.fds
    worker = WorkerSide(layout, memory_fd=memory, request_fd=request, reply_fd=reply)
    for size in (0, 3, 700):
        target = parent.filling.inputs[0]
        assert isinstance(target, exchange.Open)
        target.write(np.arange(size, dtype=np.int32).reshape(1, size))
        parent.post()
        assert worker.take()
        [found] = worker.slot.read_inputs()
        worker.slot.write_outputs([np.full((found.shape[1], 2), size, np.int64)])
        worker.answer(exchange.OK, 1)
        assert parent.wait(1.0) is Reply.ANSWERED
        assert parent.answered.read_outputs()[0].shape == (size, 2)
    with pytest.raises(ValueError, match="bytes"):
        worker.slot.write_outputs([np.zeros((1 << 20, 2), np.int64)])
    hostile = worker.slot.outputs[0]
    assert isinstance(hostile, exchange.Open)
    hostile._sizes[:3] = (2, 1 << 40, 1 << 40)
    with pytest.raises(ValueError, match="fit"):
        parent.answered.read_outputs()
    hostile._sizes[0] = 9
    with pytest.raises(ValueError, match="9 sizes"):
        parent.answered.read_outputs()
    del target, found, hostile
    worker.unmap()
    parent.close()


def test_no_answer_in_time_is_a_hang(parent: ParentSide) -> None:
    assert parent.ask(0.01) is Reply.HUNG


def test_an_answer_to_an_older_question_is_none(parent: ParentSide) -> None:
    worker = worker_of(parent)
    os.eventfd_write(parent.reply_fd, 1)
    assert parent.ask(1.0) is Reply.HUNG
    worker.unmap()


@pytest.mark.process
def test_the_end_of_the_worker_is_noticed_at_once(parent: ParentSide) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        pidfd = os.pidfd_open(process.pid)
        parent.watch(pidfd)
        timer = threading.Timer(0.05, process.send_signal, [signal.SIGKILL])
        timer.start()
        assert parent.ask(30.0) is Reply.DIED
        timer.join()
        os.close(pidfd)


def test_neither_side_can_resize_the_memory(parent: ParentSide) -> None:
    for size in (0, LAYOUT.size * 2):
        with pytest.raises(PermissionError):
            os.truncate(parent.memory_fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(parent.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_memory_of_another_size_or_without_seals_is_refused(parent: ParentSide) -> None:
    _, request, reply = parent.fds
    fd = os.memfd_create("unsealed")
    os.truncate(fd, LAYOUT.size)
    with pytest.raises(ModelError, match="seals"):
        WorkerSide(LAYOUT, memory_fd=fd, request_fd=request, reply_fd=reply)
    with pytest.raises(ModelError, match="bytes"):
        WorkerSide(plan([X], [Y]), memory_fd=parent.memory_fd, request_fd=request, reply_fd=reply)
    os.close(fd)
