"""The ledger of answered commands: an id is executed once, however late its repeat, over restarts and torn lines."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelagent import durable
from modelagent.errors import DeviceError
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.ledger import Ledger

DONE = {"status": "done", "reason": "resumed"}


def test_an_answer_survives_the_process_and_the_first_one_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep("a", DONE)
    ledger.keep("a", {"status": "refused", "reason": "later"})
    assert Ledger(tmp_path).recall("a") == DONE
    assert Ledger(tmp_path).recall("b") is None


def test_between_half_and_all_of_the_bound_is_remembered_in_two_files(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, most=100)
    for n in range(330):
        ledger.keep(str(n), DONE)
        if n % 50 == 17:
            ledger = Ledger(tmp_path, most=100)
    for reader in (ledger, Ledger(tmp_path, most=100)):
        known = [n for n in range(330) if reader.recall(str(n)) is not None]
        assert known == list(range(known[0], 330))
        assert 50 <= len(known) <= 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.log", "old.log"]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for name in "abc":
        ledger.keep(name, DONE)
    file = tmp_path / "new.log"
    file.write_bytes(file.read_bytes()[:-9])
    again = Ledger(tmp_path)
    again.keep("d", DONE)
    assert [Ledger(tmp_path).recall(name) for name in "abcd"] == [DONE, DONE, None, DONE]


def test_it_is_synced_far_more_often_than_the_state_forgets(tmp_path: Path) -> None:
    syncs: list[str] = []
    ledger = Ledger(tmp_path)
    durable.set_hook(lambda operation, _path: syncs.append(operation))
    try:
        for n in range(256):
            ledger.keep(str(n), DONE)
    finally:
        durable.set_hook(None)
    assert syncs.count("fsync") == 4
    assert syncs.count("append") == 256


def test_a_full_disk_leaves_the_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)

    def full(operation: str, path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    durable.set_hook(full)
    try:
        ledger.keep("a", DONE)
        ledger.keep("b", DONE)
    finally:
        durable.set_hook(None)
    assert ledger.recall("a") == DONE
    assert len(caplog.records) == 1


class Driver:
    def __init__(self) -> None:
        self.taken: list[str] = []
        self.says = "done"

    def submit(self, request: Request, reply: Reply) -> None:
        self.taken.append(request.id)
        if self.says == "raise":
            raise DeviceError("the spool is full", code="spool-full")
        reply(answer(request.id, self.says, "so it is"))

    def view(self, request: Request) -> Mapping[str, Any]:
        self.taken.append(request.id)
        return {}


def take(desk: Desk, line: bytes) -> list[Mapping[str, Any]]:
    said: list[Mapping[str, Any]] = []
    desk.take(line, origin="mqtt", limit=1000, reply=said.append)
    return said


def test_a_repeat_gets_the_recorded_answer_and_is_not_done_again(tmp_path: Path) -> None:
    driver = Driver()
    line = b'{"id":"1","verb":"label","labels":[{"id":"r","label":1}],"expires":50}'
    for now in (10.0, 100.0):  # the second time in a new process, and when it would have expired
        desk = Desk(submit=driver.submit, view=driver.view, now=lambda now=now: now, ledger=Ledger(tmp_path))  # type: ignore[misc]
        (said,) = take(desk, line)
        assert said == answer("1", "done", "so it is", **({"duplicate": True} if now == 100.0 else {}))
    assert driver.taken == ["1"]


@pytest.mark.parametrize("says", ["failed", "raise"])
def test_what_was_not_done_may_be_tried_again(says: str) -> None:
    driver = Driver()
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: 0.0)
    driver.says = says
    take(desk, b'{"id":"1","verb":"hold"}')
    driver.says = "done"
    (said,) = take(desk, b'{"id":"1","verb":"hold"}')
    assert said["status"] == "done"
    assert driver.taken == ["1", "1"]


def test_questions_are_asked_each_time() -> None:
    driver = Driver()
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: 0.0)
    for _ in range(2):
        assert "duplicate" not in take(desk, b'{"id":"1","verb":"status"}')[0]
    assert driver.taken == ["1", "1"]


class Slow:
    """Answers when told to, as a driver whose queue is long."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Request, Reply]] = []

    def submit(self, request: Request, reply: Reply) -> None:
        self.waiting.append((request, reply))

    def view(self, request: Request) -> Mapping[str, Any]:
        return {}


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_repeat_that_comes_before_the_answer_waits_for_it(status: str) -> None:
    """However long the queue: it must not grow past what the state remembers with the same command in it twice."""
    driver = Slow()
    desk = Desk(submit=driver.submit, view=driver.view, now=lambda: 0.0)
    first, second, third = (take(desk, b'{"id":"1","verb":"hold"}') for _ in range(3))
    ((request, reply),) = driver.waiting
    reply(answer(request.id, status, "so it is"))
    assert first == [answer("1", status, "so it is")]
    assert second == third == [answer("1", status, "so it is", duplicate=True)]
    take(desk, b'{"id":"1","verb":"hold"}')
    assert len(driver.waiting) == (2 if status == "failed" else 1), "what failed may be tried again"
