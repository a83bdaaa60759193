"""The HTTP source: limits, several requests, and clients that misbehave."""

import dataclasses
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames import http as module
from modelagent.inference.frames.http import HttpSource
from modelagent.inference.results import Row

FRAME = b"[[1, 2], [3, 4]]"


class Served:
    """A source that runs; `frames` are held until answered."""

    def __init__(self, **options: Any) -> None:
        self.frames: list[Frame] = []
        self.hold = False
        self.stop = threading.Event()
        self.source = HttpSource(SourceOptions(kind="http", listen="127.0.0.1:0", max_bytes=1000, **options))
        self.thread = threading.Thread(target=self.source.run, args=(self._put, self.stop))
        self.thread.start()
        assert self.source.listening.wait(10.0)

    def _put(self, frame: Frame) -> None:
        self.frames.append(frame)
        if not self.hold:
            self.answer(frame)

    @staticmethod
    def answer(frame: Frame, outcome: str = "ok") -> None:
        assert frame.answer is not None
        frame.answer(Row("e-1", frame.id, 1.0, "m", "d", "1.2", 3, "three", 0.5, 9.0, outcome))

    def say(self, data: bytes, *, until: Callable[[bytes], bool] | None = None) -> bytes:
        """Send bytes on a new connection, and read until `until` or the end."""
        with socket.create_connection(("127.0.0.1", self.source.port), timeout=10.0) as sock:
            sock.sendall(data)
            heard = b""
            while not (until and until(heard)):
                chunk = sock.recv(65536)
                if not chunk:
                    break
                heard += chunk
            return heard

    def close(self) -> None:
        self.stop.set()
        for frame in self.frames:
            if self.hold:
                self.answer(frame, "dropped")
        self.thread.join(10.0)
        assert not self.thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


def post(body: bytes = FRAME, head: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def test_one_connection_takes_many_frames(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.source.port, timeout=10)
    for number in range(20):
        connection.request("POST", "/", FRAME, {"X-Frame-Id": f"part-{number}"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert (answer.status, found["frame"]) == (200, f"part-{number}:{number + 1}")
        assert (found["prediction"], found["version"]) == (3, "1.2")
    connection.close()


def test_requests_sent_ahead_are_answered_in_turn(served: Served) -> None:
    served.hold = True
    with socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) as sock:
        sock.sendall(post() * 3)
        for number in range(3):
            while len(served.frames) <= number:
                time.sleep(0.002)
            assert len(served.frames) == number + 1, "one at a time"
            served.answer(served.frames[number])
        heard = b""
        while heard.count(b'"outcome"') < 3:
            heard += sock.recv(65536)
    served.hold = False


@pytest.mark.parametrize(
    ("outcome", "status"), [("ok", 200), ("refused", 422), ("faulted", 500), ("dropped", 503), ("else", 500)]
)
def test_the_status_says_how_the_frame_ended(served: Served, outcome: str, status: int) -> None:
    served.hold = True
    answers: list[bytes] = []
    asker = threading.Thread(target=lambda: answers.append(served.say(post(head="Connection: close\r\n"))))
    asker.start()
    while not served.frames:
        time.sleep(0.002)
    served.answer(served.frames[0], outcome)
    asker.join(10.0)
    served.hold = False
    assert answers[0].startswith(b"HTTP/1.1 %d " % status)
    assert (b"Retry-After" in answers[0]) == (status == 503)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n\r\n", 411),
        (b"PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GARBAGE\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nOrigin: http://evil.example\r\nContent-Length: 2\r\n\r\n[]", 403),
        (b"GET /secrets HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"X" * 20_000, 431),
    ],
)
def test_what_is_no_frame_gets_its_status_and_nobody_is_kept_waiting(
    served: Served, request_: bytes, status: int
) -> None:
    begun = time.monotonic()
    assert served.say(request_).startswith(b"HTTP/1.1 %d " % status)
    assert time.monotonic() - begun < 5.0
    assert served.say(post(head="Connection: close\r\n")).startswith(b"HTTP/1.1 200"), "others go on"


def test_large_bodies_are_asked_for(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(FRAME))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(FRAME)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_frame_without_a_result_in_time_is_a_504_and_its_late_answer_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TICK", 0.02)
    one = Served(answer_s=0.05)
    one.hold = True
    assert one.say(post()).startswith(b"HTTP/1.1 504 ")
    one.answer(one.frames[0])
    one.hold = False
    assert one.say(post(head="Connection: close\r\n")).startswith(b"HTTP/1.1 200")
    one.close()


def test_a_client_that_sends_half_a_request_is_shown_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK", 0.02)
    monkeypatch.setattr(module, "_UNFINISHED_S", 0.1)
    one = Served()
    assert one.say(b"POST / HTTP/1.1\r\nContent-Le") == b""
    one.close()


def test_only_so_many_connections(served: Served) -> None:
    socks = [socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) for _ in range(64)]
    assert b" 503 " in served.say(b"")
    for sock in socks:
        sock.close()
    while served.source._clients:
        time.sleep(0.005)
    assert served.say(post(head="Connection: close\r\n")).startswith(b"HTTP/1.1 200")


def buffered(source: HttpSource) -> int:
    """Bytes that the source keeps for its clients."""
    return sum(len(client.incoming) + len(client.outgoing) for client in list(vars(source)["_clients"]))


def test_who_reads_no_answers_is_not_read_either(served: Served) -> None:
    question = b"GET /healthz HTTP/1.1\r\n\r\n" * 10_000
    most: list[int] = []

    def ask(sock: socket.socket) -> None:
        for _ in range(200):  # 50 MB of questions, 260 MB of answers
            sock.sendall(question)
            most.append(buffered(served.source))

    with (
        socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) as sock,
        pytest.raises(OSError, match=r"reset|pipe"),
    ):
        ask(sock)
    assert max(most) < 2 << 20
    assert served.say(post(head="Connection: close\r\n")).startswith(b"HTTP/1.1 200")


def test_who_reads_late_gets_every_answer() -> None:
    served = Served()
    served.source.options = dataclasses.replace(served.source.options, max_bytes=64 << 20)
    try:
        with socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) as sock:
            sock.settimeout(20.0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sock.sendall(b"GET /healthz HTTP/1.1\r\n\r\n" * 30_000)
            sock.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
            heard = bytearray()
            while chunk := sock.recv(1 << 16):
                heard += chunk
        assert heard.count(b"HTTP/1.1 200 OK") == 30_001
    finally:
        served.close()


def test_half_sent_requests_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD", 30_000)
    monkeypatch.setattr(module, "_LARGE", 5_000)
    served = Served()
    served.source.options = dataclasses.replace(served.source.options, max_bytes=10_000)
    head = b"POST / HTTP/1.1\r\nContent-Length: 10000\r\n\r\n"
    clients = []
    try:
        for _ in range(8):
            clients.append(socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0))
            clients[-1].sendall(head + bytes(9_000))
        deadline = time.monotonic() + 10.0
        while served.source.counts.get("turned-away", 0) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert buffered(served.source) <= 40_000
    finally:
        for client in clients:
            client.close()
        served.close()


def test_a_flood_of_connections_takes_a_bounded_number_of_descriptors(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CLIENTS", 4)
    clients: list[socket.socket] = []
    try:
        clients.extend(socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) for _ in range(40))
        deadline = time.monotonic() + 10.0
        while served.source.counts.get("turned-away", 0) < 36:
            assert time.monotonic() < deadline
            assert len(vars(served.source)["_clients"]) <= 8
            time.sleep(0.005)
    finally:
        for client in clients:
            client.close()


def test_a_client_that_leaves_costs_nothing(served: Served) -> None:
    served.hold = True
    with socket.create_connection(("127.0.0.1", served.source.port), timeout=10.0) as sock:
        sock.sendall(post())
        while not served.frames:
            time.sleep(0.002)
    served.answer(served.frames[0])
    served.hold = False
    assert served.say(post(head="Connection: close\r\n")).startswith(b"HTTP/1.1 200")


def test_a_port_in_use_and_a_bad_address_are_named(served: Served) -> None:
    taken = HttpSource(SourceOptions(kind="http", listen=f"127.0.0.1:{served.source.port}"))
    with pytest.raises(SourceError, match="cannot listen"):
        taken.run(lambda _: None, threading.Event())
    with pytest.raises(UsageError, match="address:port"):
        HttpSource(SourceOptions(kind="http", listen="nowhere"))
