import dataclasses
import errno
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash_points import failing_from, failing_once, hooked, killed_at, points_of
from modelagent.core.effects import Note
from modelagent.core.state import State
from modelagent.errors import DeviceError
from modelagent.steps.journal import BLOCK, LINE_LIMIT, Journal, read_history


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Small:
    step: int
    colour: Colour = Colour.RED
    parts: tuple[Part, ...] = ()
    table: Mapping[str, Part] = field(default_factory=dict)


def small(step: int) -> Small:
    return Small(step, Colour.BLUE, (Part("a"), Part("b", 0.1)), {"x": Part("c", 1e300)})


def opened(directory: Path, model: str = "digits", limit: int = 1 << 22) -> Journal[Small]:
    journal = Journal(directory, model, Small, limit=limit, clock=lambda: 1000.0)
    journal.load()
    return journal


def note(step: int) -> Note:
    return Note("step", f"step {step}", version="1.0.0", evidence={"step": step})


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert Journal(tmp_path, "digits", Small).load() == (None, ())
    assert read_history(tmp_path) == []


def test_what_was_written_is_read(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for step in range(5):
        journal.write(small(step), (note(step), note(step)))
        assert Journal(tmp_path, "digits", Small).load() == (small(step), ())
    lines = read_history(tmp_path)
    assert [line["seq"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert lines[-1] == {
        "schema": 1,
        "seq": 5,
        "model": "digits",
        "wall": 1000.0,
        "kind": "step",
        "text": "step 4",
        "version": "1.0.0",
        "digest": "",
        "phase": "",
        "origin": "",
        "level": "info",
        "evidence": {"step": 4},
    }
    assert [line["text"] for line in read_history(tmp_path, last=2)] == ["step 4", "step 4"]
    assert read_history(tmp_path, last=0) == []
    assert read_history(tmp_path, model="other") == []


def filled(kind: Any) -> Any:
    """A value of the type with something in every field, however deep: nothing that State grows is forgotten here."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: filled(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin in (Union, UnionType):
        return filled(next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        return tuple(filled(argument) for argument in arguments if argument is not Ellipsis) * (
            2 if Ellipsis in arguments else 1
        )
    if origin in (Mapping, dict):
        return {"key": filled(arguments[1]), "other": filled(arguments[1])}
    if issubclass(kind, Enum):
        return list(kind)[-1]
    return {bool: True, int: 2**62, float: 0.1, str: "text\u2028\U0001f600"}[kind]


@pytest.mark.parametrize("state", [State("digits"), filled(State)], ids=["empty", "full"])
def test_the_real_state_survives_whole(tmp_path: Path, state: State) -> None:
    journal = Journal(tmp_path, "digits", State)
    journal.load()
    journal.write(state, ())
    assert Journal(tmp_path, "digits", State).load() == (state, ())
    assert journal.peek() == state


@dataclass(frozen=True, slots=True)
class Weight:
    value: float


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, value: float) -> None:
    journal = Journal(tmp_path, "digits", Weight)
    journal.load()
    journal.write(Weight(1.0), ())
    with pytest.raises(ValueError, match="valid number"):
        journal.write(Weight(value), (note(1),))
    assert Journal(tmp_path, "digits", Weight).load() == (Weight(1.0), ())
    assert read_history(tmp_path) == []


def test_models_share_the_history_and_nothing_else(tmp_path: Path) -> None:
    one, two = opened(tmp_path, "one"), opened(tmp_path, "two")
    one.write(small(1), (note(1),))
    two.write(small(2), (note(2),))
    one.write(small(3), (note(3),))
    assert [(line["model"], line["seq"]) for line in read_history(tmp_path)] == [("one", 1), ("two", 1), ("one", 2)]
    assert Journal(tmp_path, "two", Small).load() == (small(2), ())
    assert [line["text"] for line in read_history(tmp_path, model="two")] == ["step 2"]


def test_a_state_that_outgrows_its_block(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), ())
    big = Small(2, parts=tuple(Part("n" * 100, float(n)) for n in range(3000)))
    journal.write(big, ())
    assert journal.path.stat().st_size == 2 * 8 * BLOCK
    assert Journal(tmp_path, "digits", Small).load() == (big, ())
    again = opened(tmp_path)
    again.write(small(3), ())
    assert Journal(tmp_path, "digits", Small).load() == (small(3), ())
    again.write(big, ())
    assert Journal(tmp_path, "digits", Small).load() == (big, ())


@pytest.mark.parametrize("part", [0, 1, 100, 255, 256, 300, 400])
def test_a_torn_block_leaves_the_state_before(tmp_path: Path, part: int) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), ())
    journal.write(small(2), ())
    before = journal.path.read_bytes()
    journal.write(small(3), (note(3),))
    after = journal.path.read_bytes()
    assert before[BLOCK:] == after[BLOCK:]
    journal.path.write_bytes(after[:part] + before[part:])
    state, notes = Journal(tmp_path, "digits", Small).load()
    torn = after[:part] + before[part:]
    kinds = [n.kind for n in notes]
    if torn == after:
        assert (state, kinds) == (small(3), [])
    else:
        assert (state, kinds) == (small(2), ["unfinished"] if torn == before else ["repaired", "unfinished"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_written_state_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = opened(directory)
    for step in range(3):
        journal.write(small(step), (note(step),))
    raw = bytearray(journal.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.integers(0, 800), st.integers(BLOCK, BLOCK + 800), st.integers(0, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(1, 50))] = data.draw(st.binary(min_size=1, max_size=50))
    journal.path.write_bytes(bytes(raw))
    again = Journal(directory, "digits", Small, clock=lambda: 0.0)
    state, notes = again.load()
    assert state in (None, small(1), small(2))
    assert state == small(2) or notes
    again.write(small(9), notes)
    assert Journal(directory, "digits", Small).load() == (small(9), ())
    seqs = [line["seq"] for line in read_history(directory)]
    assert seqs == sorted(seqs)


def test_two_bad_blocks_are_kept_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3, 3):
        journal = opened(tmp_path)
        journal.write(small(number), (note(number),))
        journal.path.write_bytes(b"garbage" * 20000)
        state, notes = Journal(tmp_path, "digits", Small).load()
        assert state is None
        assert notes[-1].level == "alarm"
        assert f"state.bad-{number}" in notes[-1].text
    assert sorted(p.name for p in journal.directory.iterdir()) == ["state.bad-1", "state.bad-2", "state.bad-3"]


def test_a_newer_schema_is_not_guessed_at(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), ())
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"schema": 1', b'"schema": 2'))
    state, notes = Journal(tmp_path, "digits", Small).load()
    assert state is None
    assert any("schema 2" in n.text for n in notes)


def test_a_lost_state_file_is_said(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), (note(1),))
    journal.write(small(2), (note(2),))
    journal.path.unlink()
    state, notes = Journal(tmp_path, "digits", Small).load()
    assert state is None
    assert [n.level for n in notes] == ["alarm"]


def test_a_failed_history_write_stops_the_state(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), (note(1),))
    with hooked(failing_from(0, errno.ENOSPC)), pytest.raises(DeviceError) as caught:
        journal.write(small(2), (note(2),))
    assert caught.value.code == "no-space"
    assert Journal(tmp_path, "digits", Small).load() == (small(1), ())
    journal.write(small(3), (note(3),))
    assert Journal(tmp_path, "digits", Small).load() == (small(3), ())
    assert [line["text"] for line in read_history(tmp_path)] == ["step 1", "step 2", "step 3"], "no hole"


def test_a_failed_state_write_is_told_by_the_next(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), (note(1),))
    with hooked(failing_once(3, errno.EIO)), pytest.raises(DeviceError):
        journal.write(small(2), (note(2),))
    journal.write(small(3), (note(3),))
    lines = read_history(tmp_path)
    assert [line["kind"] for line in lines] == ["step", "step", "late", "step"]
    assert not any("unfinished" in line for line in lines), "it was kept after all"


def test_torn_last_line(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(small(1), (note(1),))
    whole = journal.history.read_bytes()
    journal.history.write_bytes(whole + whole[:50])
    assert len(read_history(tmp_path)) == 1
    state, notes = Journal(tmp_path, "digits", Small).load()
    assert state == small(1)
    assert [n.kind for n in notes] == ["repaired"]
    assert journal.history.read_bytes() == whole
    journal.history.write_bytes(whole + b"\0" * 70000)
    journal.write(small(2), (note(2),))
    assert [line["text"] for line in read_history(tmp_path)] == ["step 1", "step 2"]


def test_history_is_bounded(tmp_path: Path) -> None:
    journal = opened(tmp_path, limit=2000)
    for step in range(100):
        journal.write(small(step), (note(step),))
        assert sum(p.stat().st_size for p in tmp_path.glob("history*")) <= 4000
    lines = read_history(tmp_path)
    assert [line["seq"] for line in lines] == list(range(101 - len(lines), 101))
    assert Journal(tmp_path, "digits", Small).load() == (small(99), ())


def test_evidence_of_any_kind_and_size(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    odd = {"nan": math.nan, "set": {1}, "part": Part("x"), "enum": Colour.RED, "path": tmp_path, "deep": [{"t": (1,)}]}
    journal.write(small(1), (Note("odd", "line\nbreak\u2028", evidence=odd),))
    journal.write(small(2), (Note("big", "t" * 100_000, evidence={"x": "y" * 100_000}),))
    lines = read_history(tmp_path)
    assert lines[0]["evidence"] == {
        "nan": "nan",
        "set": [1],
        "part": {"name": "x", "weight": None},
        "enum": "red",
        "path": str(tmp_path),
        "deep": [{"t": [1]}],
    }
    assert len(json.dumps(lines[1])) < LINE_LIMIT
    assert "left_out" in lines[1]["evidence"]


def test_writing_before_loading_is_a_programmer_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Journal(tmp_path, "digits", Small).write(small(1), ())


STARTS = {"first": 0, "second": 1, "third": 2, "rotating": 3, "growing": 4}


def prepared(directory: Path, start: str) -> tuple[Journal[Small], Small]:
    directory.mkdir()
    journal = opened(directory, limit=600 if start == "rotating" else 1 << 22)
    for step in range(STARTS[start]):
        journal.write(small(step), (note(step),))
    parts = tuple(Part("n" * 100, float(n)) for n in range(1000 if start == "growing" else 1))
    return journal, Small(99, parts=parts)


@pytest.mark.process
@pytest.mark.parametrize("start", STARTS)
def test_killed_before_every_point(tmp_path: Path, start: str) -> None:
    journal, new = prepared(tmp_path / "whole", start)
    old = Journal(tmp_path / "whole", "digits", Small).load()[0]
    points = points_of(lambda: journal.write(new, (note(98), note(99))))
    for count in range(len(points) + 1):
        directory = tmp_path / f"cut{count}"
        journal, _ = prepared(directory, start)
        killed_at(count, lambda journal=journal: journal.write(new, (note(98), note(99))))  # type: ignore[misc]
        again = Journal(directory, "digits", Small, clock=lambda: 0.0)
        state, notes = again.load()
        assert state in (old, new), points[count]
        told = [line["text"] for line in read_history(directory)]
        assert state != new or told[-2:] == ["step 98", "step 99"], "a state without its history"
        if state == old and told[-1:] == ["step 99"]:
            assert [n.kind for n in notes] == ["unfinished"], "history tells what was not done"
        again.write(new, (*notes, note(100)))
        assert Journal(directory, "digits", Small).load() == (new, ())
        lines = read_history(directory)
        assert lines[-1]["text"] == "step 100"
        assert sorted(line["seq"] for line in lines) == [line["seq"] for line in lines]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_failing_at_every_point(tmp_path: Path, start: str, error: int, lasting: bool) -> None:
    journal, new = prepared(tmp_path / "whole", start)
    old = Journal(tmp_path / "whole", "digits", Small).load()[0]
    count = len(points_of(lambda: journal.write(new, (note(99),))))
    for at in range(count):
        directory = tmp_path / f"cut{at}"
        journal, _ = prepared(directory, start)
        with hooked((failing_from if lasting else failing_once)(at, error)), pytest.raises(DeviceError):
            journal.write(new, (note(99),))
        assert Journal(directory, "digits", Small).load()[0] in (old, new)
        journal.write(new, (note(100),))
        assert Journal(directory, "digits", Small).load() == (new, ())
        assert read_history(directory)[-1]["text"] == "step 100"
