"""The directory source: which files are whole, which go, which stay."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames import directory as module
from modelagent.inference.frames.directory import DirectorySource
from modelagent.inference.results import Row
from modelagent.inference.watch import Watch


def answer(frame: Frame, outcome: str = "ok") -> None:
    assert frame.answer is not None
    frame.answer(Row("e", frame.id, 0.0, "m", "d", "1", None, "", None, None, outcome))


class Place:
    """A directory with a source that runs over it."""

    def __init__(self, path: Path, put: Callable[[Frame], None] = answer, **options: Any) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.frames: list[Frame] = []
        self.lost: list[str] = []
        self.stop = threading.Event()
        options = {"overflow": "block", **options}
        self.source = DirectorySource(SourceOptions(kind="directory", path=path, **options))
        self.source.lose = lambda frame: self.lost.append(frame.id)
        self._put = put
        self.thread = threading.Thread(target=self.source.run, args=(self._taken, self.stop))

    def _taken(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._put(frame)

    def write(self, name: str, value: float = 0.0, *, age: float = 0.0, inside: str = "") -> Path:
        part = self.path / f".{name}.part"
        with part.open("wb") as file:
            np.save(file, np.full((2, 2), value, np.float32))
        if age:
            os.utime(part, (time.time() - age,) * 2)
        return part.rename(self.path / inside / name)

    def wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10.0
        while not true():
            assert time.monotonic() < deadline, (len(self.frames), self.lost, self.names())
            time.sleep(0.005)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir())

    def taken(self) -> list[str]:
        return [frame.id.partition(":")[0] for frame in self.frames]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(put: Callable[[Frame], None] = answer, **options: Any) -> Place:
        made.append(Place(tmp_path / "in", put, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop.set()
        if one.thread.ident is not None:
            one.thread.join(10.0)


def test_files_go_in_order_of_their_time_and_vanish_when_their_frame_has_ended(place: Any) -> None:
    here: Place = place()
    for name, age in (("c.npy", 10), ("a.npy", 30), ("b.npy", 20)):
        here.write(name, age=age)
    here.thread.start()
    here.wait(lambda: len(here.frames) == 3 and not here.names())
    assert here.taken() == ["a.npy", "b.npy", "c.npy"]


def test_a_file_that_is_still_being_written_is_left_alone_and_taken_once_closed(place: Any) -> None:
    here: Place = place()
    here.write("first.npy", age=10)
    here.thread.start()
    here.wait(lambda: here.taken() == ["first.npy"])
    with (here.path / "slow.npy").open("wb") as file:
        np.save(file, np.zeros((2, 2), np.float32))
        file.flush()
        here.write("other.npy")
        here.wait(lambda: here.taken() == ["first.npy", "other.npy"])
        time.sleep(0.1)
        assert here.taken()[2:] == []
    here.wait(lambda: here.taken()[2:] == ["slow.npy"])


def test_hidden_foreign_and_linked_names_are_left_alone(place: Any, tmp_path: Path) -> None:
    here: Place = place()
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros(1))
    (here.path / "link.npy").symlink_to(secret)
    (here.path / "notes.txt").write_text("x")
    (here.path / "folder.npy").mkdir()
    here.write("good.npy", age=10)
    here.thread.start()
    here.wait(lambda: here.taken() == ["good.npy"])
    time.sleep(0.05)
    assert here.names() == ["folder.npy", "link.npy", "notes.txt"]
    assert secret.exists()


def test_used_files_can_be_moved(place: Any, tmp_path: Path) -> None:
    here: Place = place(after="move", done_dir=tmp_path / "done")
    here.write("a.npy", age=10)
    here.thread.start()
    here.wait((tmp_path / "done" / "a.npy").exists)
    assert not here.names()


def test_few_are_read_ahead_and_what_we_did_not_finish_stays(place: Any) -> None:
    held: list[Frame] = []
    here: Place = place(put=held.append)
    for number in range(10):
        here.write(f"{number}.npy", age=100 - number)
    here.thread.start()
    here.wait(lambda: len(held) == 4)
    time.sleep(0.05)
    assert len(held) == 4
    answer(held[0])
    here.wait(lambda: "0.npy" not in here.names())
    here.stop.set()
    for frame in held[1:]:
        answer(frame, "dropped")
    here.thread.join(10.0)
    assert here.names() == [f"{number}.npy" for number in range(1, 10)]


def test_too_many_files_end_as_dropped_the_oldest_first(place: Any) -> None:
    held: list[Frame] = []
    here: Place = place(put=held.append, overflow="drop-oldest", queue=3)
    for number in range(10):
        here.write(f"{number}.npy", age=100 - number)
    here.thread.start()
    here.wait(lambda: len(held) == 3)
    assert [name.partition(":")[0] for name in here.lost] == [f"{number}.npy" for number in range(7)]
    assert here.taken() == ["7.npy", "8.npy", "9.npy"]


def test_a_file_replaced_while_its_frame_runs_is_a_new_one(place: Any) -> None:
    held: list[Frame] = []
    here: Place = place(put=held.append)
    here.thread.start()
    here.write("a.npy", 1.0)
    here.wait(lambda: len(held) == 1)
    here.write("a.npy", 2.0, age=10)
    answer(held[0])
    here.wait(lambda: len(held) == 2)
    assert float(held[1].arrays[0][0, 0]) == 2.0
    answer(held[1])
    here.wait(lambda: not here.names())
    assert held[0].id != held[1].id


def test_a_file_that_cannot_be_removed_is_not_taken_twice(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    here: Place = place()
    here.write("a.npy", age=10)
    here.thread.start()
    here.wait(lambda: here.source.counts.get("stuck") == 1)
    time.sleep(0.1)
    assert here.taken() == ["a.npy"]
    monkeypatch.undo()


def test_a_file_from_the_future_is_whole_once_it_has_not_changed_for_a_while(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server's clock may be ahead, and its files are only found by looking."""
    monkeypatch.setattr(Watch, "add", lambda _self, _path: False)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    monkeypatch.setattr(module, "_SETTLED", 1.0)
    here: Place = place()
    here.thread.start()
    path = here.path / "a.npy"
    part = io.BytesIO()
    np.save(part, np.zeros((2, 2), np.float32))
    for end in range(10, len(part.getvalue()), 10):
        path.write_bytes(part.getvalue()[:end])
        os.utime(path, (time.time() + 3600.0,) * 2)
        time.sleep(0.03)
    path.write_bytes(part.getvalue())
    os.utime(path, (time.time() + 3600.0,) * 2)
    here.wait(lambda: here.taken() == ["a.npy"])
    assert here.source.counts == {}


def test_a_file_from_the_future_that_was_renamed_in_is_whole(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLED", 3600.0)
    here: Place = place()
    here.thread.start()

    def heard() -> bool:
        here.write("a.npy", age=-3600.0)
        time.sleep(0.05)
        return bool(here.frames)

    here.wait(heard)


def test_without_inotify_the_directory_is_looked_at(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "add", lambda _self, _path: False)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    here: Place = place()
    here.thread.start()
    here.write("a.npy", age=10)
    here.wait(lambda: here.taken() == ["a.npy"])


def test_a_missing_directory_is_a_broken_source(tmp_path: Path) -> None:
    source = DirectorySource(SourceOptions(kind="directory", path=tmp_path / "absent"))
    with pytest.raises(SourceError, match="no such directory"):
        source.run(lambda _: None, threading.Event())
    for options in (SourceOptions(kind="directory"), SourceOptions(kind="directory", path=tmp_path, after="move")):
        with pytest.raises(UsageError, match="needs path"):
            DirectorySource(options)


def test_what_became_a_pipe_or_a_link_since_it_was_seen_is_neither_waited_for_nor_followed(
    place: Any, tmp_path: Path
) -> None:
    held: list[Frame] = []
    here: Place = place(put=held.append, queue=1)
    np.save(tmp_path / "secret.npy", np.zeros((2, 2), np.float32))
    for name, age in (("a.npy", 30), ("pipe.npy", 20), ("link.npy", 15), ("last.npy", 10)):
        here.write(name, age=age)
    here.thread.start()
    here.wait(lambda: len(held) == 1)  # the others have been seen and wait for their turn
    for name in ("pipe.npy", "link.npy"):
        (here.path / name).unlink()
    os.mkfifo(here.path / "pipe.npy")
    (here.path / "link.npy").symlink_to(tmp_path / "secret.npy")
    answer(held[0])
    here.wait(lambda: len(held) == 2)
    assert here.taken() == ["a.npy", "last.npy"]
    assert here.source.counts["unreadable"] == 2
    answer(held[1])
    here.wait(lambda: here.names() == ["link.npy", "pipe.npy"])


def test_a_file_written_over_and_over_while_nothing_is_taken_costs_no_memory(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STALE", 10)
    held: list[Frame] = []
    here: Place = place(put=held.append, queue=1)
    here.write("first.npy", age=50)
    here.thread.start()
    here.wait(lambda: len(held) == 1)
    for number in range(100):
        path = here.write("latest.npy", float(number))
        identity = (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size)
        here.wait(lambda path=path, identity=identity: vars(here.source)["_ready"].get(path) == identity)  # type: ignore[misc]
    assert len(vars(here.source)["_order"]) <= 12
    answer(held[0])
    here.wait(lambda: len(held) == 2)
    assert float(held[1].arrays[0][0, 0]) == 99.0
    answer(held[1])


def test_any_name_that_a_file_may_have_can_be_written_into_results(place: Any) -> None:
    here: Place = place()
    here.thread.start()
    for name in (b"caf\xe9.npy", b"two\nlines.npy", "größe.npy".encode()):
        here.write(os.fsdecode(name), age=10)
    here.wait(lambda: len(here.frames) == 3 and not here.names())
    assert sorted(frame.id.rpartition(":")[0].encode() for frame in here.frames) == [
        b"caf\\udce9.npy",
        "größe.npy".encode(),
        b"two\nlines.npy",
    ]


def test_a_directory_that_was_replaced_is_watched_again(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 3600.0)  # so that only inotify can tell
    here: Place = place()
    here.thread.start()

    def heard(count: int) -> bool:
        here.write("a.npy")
        time.sleep(0.05)
        return len(here.frames) >= count

    here.wait(lambda: heard(1))
    new = here.path.with_name("new")
    new.mkdir()
    here.path.rename(here.path.with_name("old"))
    new.rename(here.path)
    seen = len(here.frames)
    here.wait(lambda: heard(seen + 2))


def test_used_files_are_not_moved_to_where_they_come_from(tmp_path: Path) -> None:
    for done in (tmp_path, tmp_path / "x" / ".."):
        options = SourceOptions(kind="directory", path=tmp_path, after="move", done_dir=done)
        with pytest.raises(UsageError, match="taken again"):
            DirectorySource(options)
