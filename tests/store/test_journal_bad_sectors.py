"""A storage that cannot read a part of what is remembered: the other part is used, and nothing stands still."""

import errno
import os
from pathlib import Path

import pytest

from modelagent.core.effects import Note
from modelagent.core.state import State
from modelagent.errors import DeviceError
from modelagent.steps import journal as module
from modelagent.steps.journal import Journal, read_history

READ, PREAD = module._bytes, os.pread


def spoil(monkeypatch: pytest.MonkeyPatch, *, name: str, blocks: tuple[bool, bool] = (True, True)) -> None:
    """This file cannot be read as a whole, nor these two halves of it."""

    def whole(path: Path, limit: int) -> bytes | None:
        if path.name == name and path.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return READ(path, limit)

    def half(fd: int, count: int, offset: int) -> bytes:
        if blocks[offset > 0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return PREAD(fd, count, offset)

    monkeypatch.setattr(module, "_bytes", whole)
    monkeypatch.setattr(os, "pread", half)


def written(directory: Path) -> None:
    journal = Journal(directory, "digits", State)
    journal.load()
    for floor in (1, 2):  # block 0, block 1
        journal.write(State("digits", floor=floor), (Note("step", f"number {floor}"),))


@pytest.mark.parametrize(("blocks", "floor"), [((True, False), 2), ((False, True), 1)])
def test_of_two_blocks_the_readable_one_is_used_and_the_other_written_next(
    blocks: tuple[bool, bool], floor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    with monkeypatch.context() as patch:
        spoil(patch, name="state", blocks=blocks)
        journal = Journal(tmp_path, "digits", State)
        state, notes = journal.load()
        assert journal.peek() == state
    assert state is not None
    assert state.floor == floor
    assert any("one of its two blocks was unreadable" in note.text for note in notes)
    journal.write(State("digits", floor=7), notes)
    again, remarks = Journal(tmp_path, "digits", State).load()
    assert again is not None
    assert (again.floor, remarks) == (7, ())


def test_with_none_readable_the_disk_is_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    spoil(monkeypatch, name="state")
    state, notes = Journal(tmp_path, "digits", State).load()
    assert state is None
    assert any("the state was unreadable and is kept as" in note.text for note in notes)


@pytest.mark.parametrize("name", ["history.jsonl", "history.1.jsonl"])
def test_a_history_that_cannot_be_read_is_put_away_and_the_state_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    (tmp_path / "history.1.jsonl").write_bytes((tmp_path / "history.jsonl").read_bytes())
    spoil(monkeypatch, name=name)
    journal = Journal(tmp_path, "digits", State)
    state, notes = journal.load()
    assert state is not None
    assert state.floor == 2
    assert (tmp_path / f"{name}.bad").exists()
    journal.write(state, notes)
    monkeypatch.undo()
    assert "the storage cannot read the history" in read_history(tmp_path, 1)[0]["text"]


def test_another_fault_is_still_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, limit: int) -> bytes | None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    written(tmp_path)
    monkeypatch.setattr(module, "_bytes", closed)
    with pytest.raises(DeviceError) as caught:
        Journal(tmp_path, "digits", State).load()
    assert caught.value.code == "permission"
