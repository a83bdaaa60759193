"""What every source keeps, whatever it takes frames from."""

import http.client
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.unix_client import ask

from modelagent.inference.frames import Frame, FrameSource, SourceOptions, open_source
from modelagent.inference.frames.http import HttpSource
from modelagent.inference.frames.stdin import StdinSource
from modelagent.inference.frames.unix import UnixSource
from modelagent.inference.results import Row
from modelagent.inputs.schema import Mqtt

PATIENCE = 15.0


def npy(number: int) -> bytes:
    """Frame `number` as it goes over a wire."""
    file = io.BytesIO()
    np.save(file, np.full((4, 5), number, np.float32))
    return file.getvalue()


def row(frame: Frame, outcome: str = "ok") -> Row:
    return Row(f"e-{frame.id}", frame.id, frame.wall, "m", "d", "1", 1, "one", 0.5, 10.0, outcome)


class Case:
    """One source and whoever feeds it. The taker answers every frame, as the loop does."""

    breaks = False  # bytes that nobody can read end it

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.frames: list[Frame] = []
        self.lost: list[Frame] = []
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self.source = self.make()
        self.source.lose = self.lost.append
        self.thread: threading.Thread | None = None

    def make(self) -> FrameSource:
        raise NotImplementedError

    def give(self, number: int) -> None:
        """Send frame `number`."""
        raise NotImplementedError

    def spoil(self) -> None:
        """Send what nobody can read."""

    def close(self) -> None:
        self.end()

    def put(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.answer is not None:
            frame.answer(row(frame))

    def start(self) -> None:
        self.stop.clear()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.source.run(self.put, self.stop)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def end(self) -> float:
        """Stop; returns the seconds that took."""
        begun = time.monotonic()
        self.stop.set()
        if self.thread is not None:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive()
            self.thread = None
        return time.monotonic() - begun

    def wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, (len(self.frames), len(self.lost), self.error)
            time.sleep(0.005)


class Replay(Case):
    def make(self) -> FrameSource:
        np.savez(self.directory / "camera.npz", input_0=np.zeros((3, 4, 5), np.float32))
        source = open_source(SourceOptions(kind="replay", path=self.directory / "camera.npz", fps=200.0))
        assert source is not None
        return source

    def give(self, number: int) -> None:
        """It plays by itself."""


class Directory(Case):
    def make(self) -> FrameSource:
        (self.directory / "in").mkdir()
        source = open_source(SourceOptions(kind="directory", path=self.directory / "in", overflow="block"))
        assert source is not None
        return source

    def give(self, number: int) -> None:
        part = self.directory / "in" / f".{number}.part"
        part.write_bytes(npy(number))
        os.utime(part, (time.time() - 10.0,) * 2)
        part.rename(self.directory / "in" / f"{number}.npy")

    def spoil(self) -> None:
        (self.directory / "in" / "bad.npy").write_bytes(b"\x93NUMPY nonsense")


class Stdin(Case):
    breaks = True

    def make(self) -> FrameSource:
        self.read_fd, self.write_fd = os.pipe()
        return StdinSource(SourceOptions(kind="stdin"), fd=self.read_fd)

    def give(self, number: int) -> None:
        if number % 2:
            os.write(self.write_fd, json.dumps(np.full((4, 5), number).tolist()).encode() + b"\n")
        else:
            os.write(self.write_fd, npy(number))

    def spoil(self) -> None:
        os.write(self.write_fd, b"[1, 2\n")

    def close(self) -> None:
        super().close()
        os.close(self.read_fd)
        os.close(self.write_fd)


class Http(Case):
    def make(self) -> FrameSource:
        return HttpSource(SourceOptions(kind="http", listen="127.0.0.1:0"))

    def _post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        source = self.source
        assert isinstance(source, HttpSource)
        assert source.listening.wait(PATIENCE)
        connection = http.client.HTTPConnection("127.0.0.1", source.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def give(self, number: int) -> None:
        status, answer = self._post(npy(number))
        assert (status, answer["outcome"], answer["label"]) == (200, "ok", "one")

    def spoil(self) -> None:
        status, answer = self._post(b"nonsense")
        assert status == 400
        assert "neither" in answer["error"]


class Unix(Case):
    def make(self) -> FrameSource:
        return UnixSource(SourceOptions(kind="unix", path=self.directory / "frames.sock"))

    def _ask(self, body: bytes) -> dict[str, Any]:
        source = self.source
        assert isinstance(source, UnixSource)
        assert source.listening.wait(PATIENCE)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.directory / "frames.sock"))
            return ask(sock, body)

    def give(self, number: int) -> None:
        answer = self._ask(npy(number))
        assert (answer["outcome"], answer["label"]) == ("ok", "one")

    def spoil(self) -> None:
        assert "neither" in self._ask(b"nonsense")["error"]


class Broker(Case):
    def make(self) -> FrameSource:
        from broker_rig import Broker as Mosquitto  # noqa: PLC0415 - only where there is one

        self.broker = Mosquitto(self.directory)
        self.broker.start()
        source = open_source(
            SourceOptions(
                kind="mqtt", topic="line/+/part", mqtt=Mqtt(host="127.0.0.1", port=self.broker.port), client="frames"
            )
        )
        assert source is not None
        return source

    def _publish(self, payload: bytes) -> None:
        from paho.mqtt import publish  # noqa: PLC0415 - as above

        self.wait(lambda: bool(getattr(self.source, "_ready", False)))
        publish.single("line/3/part", payload, qos=1, hostname="127.0.0.1", port=self.broker.port)

    def give(self, number: int) -> None:
        self._publish(npy(number))

    def spoil(self) -> None:
        self._publish(b"nonsense")

    def close(self) -> None:
        super().close()
        self.broker.kill()


class Camera(Case):
    def make(self) -> FrameSource:
        from video_maker import make_video  # noqa: PLC0415 - needs the extra

        path = make_video(self.directory / "line.mp4", count=20)
        source = open_source(SourceOptions(kind="camera", path=path, fps=0.0, loop=True))
        assert source is not None
        return source

    def give(self, number: int) -> None:
        """It plays by itself."""


# Those that are sent bytes by somebody, and those that read what lies or comes there anyway.
SENT = [Directory, Stdin, Http, Unix, pytest.param(Broker, marks=pytest.mark.broker)]
CASES = [Replay, *SENT, pytest.param(Camera, marks=pytest.mark.process)]


@pytest.fixture(params=CASES, ids=lambda kind: kind.__name__.lower())
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param is Camera:
        pytest.importorskip("av")
    made: Case = request.param(tmp_path)
    yield made
    made.close()


def test_frames_have_ids_that_never_repeat_whole_arrays_and_both_times(case: Case) -> None:
    before = (time.time(), time.monotonic())
    case.start()
    for number in range(5):
        case.give(number)
    case.wait(lambda: len(case.frames) >= 5)
    case.end()
    assert case.error is None
    assert len({frame.id for frame in case.frames}) == len(case.frames)
    for frame in case.frames:
        assert all(array.flags.c_contiguous for array in frame.arrays)
        assert before[0] - 1 <= frame.wall <= time.time()
        assert before[1] <= frame.mono <= time.monotonic()
    assert not case.lost


def test_it_states_its_kind_and_rate(case: Case) -> None:
    assert case.source.kind
    assert case.source.rate_fps >= 0.0
    assert case.source.patience >= 30.0


def test_it_stops_soon_also_when_nothing_comes_and_can_be_run_again(case: Case) -> None:
    for turn in range(2):
        case.start()
        case.give(turn)
        case.wait(lambda turn=turn: len(case.frames) > turn)  # type: ignore[misc]
        count = len(case.frames)
        assert case.end() < 2.0
        assert case.error is None
        assert len(case.frames) <= count + 50
    assert len({frame.id for frame in case.frames}) == len(case.frames)


def test_nothing_is_left_open(case: Case) -> None:
    def all_open() -> set[str]:
        return {fd.name for fd in Path("/proc/self/fd").iterdir()}

    case.start()
    case.give(0)
    case.wait(lambda: bool(case.frames))
    case.end()
    first = len(all_open())
    case.start()
    case.give(1)
    case.wait(lambda: len(case.frames) > 1)
    case.end()
    assert len(all_open()) <= first
    assert [thread for thread in threading.enumerate() if thread is not threading.main_thread()] == []


@pytest.mark.parametrize("case", SENT, indirect=True, ids=lambda kind: kind.__name__.lower())
def test_what_nobody_can_read_is_counted_and_named(case: Case) -> None:
    case.start()
    case.give(0)
    case.wait(lambda: len(case.frames) == 1)
    case.spoil()
    case.wait(lambda: case.source.counts.get("unreadable") == 1)
    if case.breaks:
        case.wait(lambda: case.error is not None)
        assert "frame 2" in str(case.error)
        return
    case.give(2)
    case.wait(lambda: len(case.frames) == 2)
    case.end()
    if not isinstance(case, Http | Unix):  # whose sender was told
        assert len(case.lost) == 1
        assert case.lost[0].id not in {frame.id for frame in case.frames}
