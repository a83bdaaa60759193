"""The bounded queue and the replay source: nothing is lost unseen, the pace is kept, the file may change."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.errors import SourceError, UsageError
from modelagent.inference.buffer import FrameBuffer
from modelagent.inference.frames import Frame, SourceOptions, open_source
from modelagent.inference.frames.replay import ReplaySource


def frame(name: str) -> Frame:
    return Frame(name, (), 0.0, 0.0)


def test_the_newest_win_and_the_oldest_are_handed_over() -> None:
    lost: list[str] = []
    buffer = FrameBuffer(2, "drop-oldest", lambda one: lost.append(one.id))
    for name in "abcd":
        buffer.put(frame(name))
    assert lost == ["a", "b"]
    assert (buffer.received, buffer.dropped, len(buffer)) == (4, 2, 2)
    assert [taken.id for taken in (buffer.take(want=True), buffer.take(want=True)) if taken] == ["c", "d"]


def test_a_blocked_source_waits_for_room_and_for_the_end() -> None:
    lost: list[str] = []
    buffer = FrameBuffer(1, "block", lambda one: lost.append(one.id))
    buffer.put(frame("a"))
    done = threading.Event()

    def fill() -> None:
        buffer.put(frame("b"))
        buffer.put(frame("c"))
        done.set()

    thread = threading.Thread(target=fill)
    thread.start()
    first = buffer.take(want=True)
    assert first is not None
    assert first.id == "a"
    assert not done.wait(0.05)
    assert [one.id for one in buffer.close()] == ["b"]
    assert done.wait(5.0)
    thread.join()
    assert lost == ["c"], "what comes after the end is handed over as well"
    assert (buffer.received, buffer.dropped) == (3, 2)


def test_the_bell_wakes_and_goes_before_frames() -> None:
    buffer = FrameBuffer(4, "drop-oldest", lambda _: None)
    buffer.put(frame("a"))
    buffer.ring()
    assert buffer.take(want=True) is None
    assert buffer.take(want=False, timeout=0.01) is None, "frames wait while nobody can run them"
    taken = buffer.take(want=True)
    assert taken is not None
    assert taken.id == "a"
    threading.Timer(0.02, buffer.ring).start()
    assert buffer.take(want=True, timeout=10.0) is None


def save(path: Path, **arrays: Any) -> None:
    temporary = path.with_name("tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.rename(path)


def collect(source: ReplaySource, count: int) -> list[Frame]:
    frames: list[Frame] = []
    stop = threading.Event()

    def put(one: Frame) -> None:
        frames.append(one)
        if len(frames) == count:
            stop.set()

    source.run(put, stop)
    return frames


def replay(path: Path, **more: Any) -> ReplaySource:
    return ReplaySource(SourceOptions(kind="replay", path=path, **more))


def test_frames_come_in_order_with_ids_that_never_repeat(tmp_path: Path) -> None:
    path = tmp_path / "camera.npz"
    save(path, input_0=np.arange(3, dtype=np.float32).reshape(3, 1), input_1=np.arange(3), labels=np.arange(3))
    frames = collect(replay(path, fps=0.0), 7)
    assert [one.id for one in frames[:4]] == [f"camera.1:{i % 3}:{i}" for i in range(4)]
    assert len({one.id for one in frames}) == 7
    assert [float(one.arrays[0][0]) for one in frames] == [0, 1, 2, 0, 1, 2, 0]
    assert len(frames[0].arrays) == 2
    assert len(collect(replay(path, fps=0.0, loop=False), 100)) == 3


def test_the_pace_is_kept_on_absolute_deadlines(tmp_path: Path) -> None:
    path = tmp_path / "camera.npz"
    save(path, x=np.zeros((1, 2)))
    begun = time.monotonic()
    frames = collect(replay(path, fps=100.0), 31)
    took = time.monotonic() - begun
    assert 0.29 < took < 2.0
    assert frames[-1].mono - frames[0].mono > 0.28


def test_a_replaced_file_is_taken_up_and_a_bad_one_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "camera.npz"
    save(path, x=np.zeros((2, 1)))
    source = replay(path, fps=0.0)
    assert [one.id for one in collect(source, 2)] == ["camera.1:0:0", "camera.1:1:1"]
    seen: list[str] = []
    stop = threading.Event()

    def put(one: Frame) -> None:
        seen.append(one.id)
        if len(seen) == 1:
            path.write_bytes(b"torn")
        if len(seen) == 3:
            save(path, x=np.ones((2, 1)))
        if len(seen) == 6:
            stop.set()

    source.run(put, stop)
    assert [name.partition(":")[0] for name in seen] == ["camera.2"] * 4 + ["camera.3"] * 2


@pytest.mark.parametrize(
    "arrays", [{}, {"labels": np.zeros(2)}, {"x": np.zeros((0, 2))}, {"input_0": np.zeros(2), "input_1": np.zeros(3)}]
)
def test_a_file_without_frames_is_a_broken_source(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "camera.npz"
    save(path, **arrays)
    with pytest.raises(SourceError, match="needs input_0"):
        collect(replay(path), 1)


def test_pickled_arrays_are_never_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "camera.npz"
    save(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SourceError, match="not a readable"):
        collect(replay(path), 1)


def test_a_missing_file_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "camera.npz"
    source = replay(path, fps=0.0)
    with pytest.raises(SourceError, match="No such file"):
        collect(source, 1)
    save(path, x=np.zeros((1, 1)))
    assert len(collect(source, 1)) == 1


def test_sources_are_opened_by_name() -> None:
    assert open_source(SourceOptions()) is None
    with pytest.raises(UsageError, match="allowed is"):
        open_source(SourceOptions(kind="tape"))
    with pytest.raises(UsageError, match="needs path"):
        open_source(SourceOptions(kind="replay"))
