"""The Unix socket: lengths, limits, who may connect, and what lies at its place already."""

import grp
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames.unix import UnixSource
from modelagent.inference.results import Row

CLIENT = Path(__file__).parents[2] / "examples" / "unix_client.py"


class Served:
    """A source that runs and answers at once."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.frames: list[Frame] = []
        self.stop = threading.Event()
        self.source = UnixSource(SourceOptions(kind="unix", path=path, max_bytes=1000, **options))
        self.thread = threading.Thread(target=self.source.run, args=(self._put, self.stop))
        self.thread.start()
        assert self.source.listening.wait(10.0)

    def _put(self, frame: Frame) -> None:
        self.frames.append(frame)
        assert frame.answer is not None
        frame.answer(Row("e-1", frame.id, 1.0, "m", "d", "1.2", 3, "three", 0.5, 9.0, "ok"))

    @staticmethod
    def run_once(source: UnixSource) -> None:
        source.run(lambda _frame: None, threading.Event())

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10.0)
        sock.connect(str(self.path))
        return sock

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10.0)
        assert not self.thread.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(**options: Any) -> Served:
        made.append(Served(tmp_path / "digits.sock", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def packed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(body)) + body for body in bodies)


def lines(sock: socket.socket, count: int) -> list[dict[str, Any]]:
    with sock.makefile("rb") as stream:
        return [json.loads(stream.readline()) for _ in range(count)]


def test_frames_of_every_form_are_answered_in_turn_and_a_bad_one_does_not_end_the_connection(
    served: Callable[..., Served],
) -> None:
    here = served(shape=(2, 2), dtype="uint8")
    data = packed(b"[[1, 2], [3, 4]]", b"\n[{\0", b"", b"nonsense", b'{"id": "part-7", "inputs": [[5, 6, 7, 8]]}')
    with here.connect() as sock:
        for byte in data[:30]:  # in the smallest of pieces
            sock.sendall(bytes([byte]))
        sock.sendall(data[30:])
        found = lines(sock, 5)
    assert [answer.get("label") for answer in found] == ["three", "three", None, None, "three"]
    assert "bytes" in found[3]["error"]
    assert [frame.arrays[0].reshape(-1).tolist() for frame in here.frames] == [
        [1, 2, 3, 4],
        [10, 91, 123, 0],
        [5, 6, 7, 8],
    ]
    assert [frame.id for frame in here.frames] == ["unix:1", "unix:2", "part-7:3"]
    assert here.source.counts == {"unreadable": 2}


def test_a_frame_that_is_too_large_is_refused_unread(served: Callable[..., Served]) -> None:
    with served().connect() as sock:
        sock.sendall(struct.pack("<I", 2**32 - 1))
        with sock.makefile("rb") as stream:
            assert "4294967295 bytes, at most 1000" in json.loads(stream.readline())["error"]
            assert stream.read() == b"", "then it ends"


def test_mode_and_group_say_who_may_connect(served: Callable[..., Served], tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    here = served(mode=0o660, group=group)
    found = here.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getgid()
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.sock"]
    here.close()
    assert not here.path.exists()
    with pytest.raises(SourceError, match="no group 'nobodys-own'"):
        Served.run_once(UnixSource(SourceOptions(kind="unix", path=here.path, group="nobodys-own")))
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_by_a_killed_one_is_replaced_and_nothing_else(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "digits.sock"))
    here = served()
    with here.connect() as sock:
        sock.sendall(packed(b"[1]"))
        assert lines(sock, 1)[0]["frame"] == "unix:1"
    with pytest.raises(SourceError, match="somebody serves it already"):
        Served.run_once(UnixSource(SourceOptions(kind="unix", path=here.path)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SourceError, match="something else of that name"):
        Served.run_once(UnixSource(SourceOptions(kind="unix", path=tmp_path / "notes.txt")))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with here.connect() as sock:
        sock.sendall(packed(b"[1]"))
        assert lines(sock, 1)[0]["frame"] == "unix:2"
    with pytest.raises(SourceError, match="cannot listen"):
        Served.run_once(UnixSource(SourceOptions(kind="unix", path=tmp_path / ("x" * 120))))
    with pytest.raises(UsageError, match="needs path"):
        UnixSource(SourceOptions(kind="unix"))


@pytest.mark.process
def test_the_example_asks_and_prints(served: Callable[..., Served], tmp_path: Path) -> None:
    here = served()
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.zeros((2, 2), np.float32))
    names = [str(tmp_path / f"{number}.npy") for number in range(2)]
    said = subprocess.run(
        [sys.executable, str(CLIENT), str(here.path), *names], capture_output=True, text=True, timeout=60.0, check=True
    )
    assert said.stdout.count("'label': 'three'") == 2
