"""The verb `watch`: status first, then every piece of news, for as long as the asker reads."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelagent.errors import UsageError
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, answer
from modelagent.inputs.control import ControlServer, converse


def submit(request: Request, reply: Reply) -> None:
    reply(answer(request.id, "done"))


def view(request: Request) -> Mapping[str, Any]:
    if request.model == "other":
        raise UsageError("no model 'other' here", code="no-model")
    return {"verb": request.verb}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    desk = Desk(submit=submit, view=view, now=lambda: 0.0)
    with ControlServer(tmp_path / "control.sock", desk, patience=5.0) as running:
        yield running


@contextlib.contextmanager
def connected(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(tmp_path / "control.sock"))
        yield sock


def wait_for_watchers(server: ControlServer, number: int) -> None:
    pause, deadline = threading.Event(), time.monotonic() + 10
    while server.watchers != number:
        assert time.monotonic() < deadline
        pause.wait(0.005)


def test_the_status_comes_first_then_the_news_in_order(tmp_path: Path, server: ControlServer) -> None:
    news = converse(tmp_path / "control.sock", {"id": "w", "verb": "watch"}, 10)
    assert next(news) == answer("w", "accepted", result={"status": {"verb": "status"}})
    for n in range(100):
        server.broadcast({"event": {"n": n}})
    assert [next(news)["result"]["event"]["n"] for _ in range(100)] == list(range(100))
    news.close()
    wait_for_watchers(server, 0)


def test_without_watchers_nothing_is_kept(tmp_path: Path, server: ControlServer) -> None:
    server.broadcast({"event": {"n": 0}})
    news = converse(tmp_path / "control.sock", {"id": "w", "verb": "watch"}, 10)
    next(news)
    server.broadcast({"event": {"n": 1}})
    assert next(news)["result"]["event"]["n"] == 1
    news.close()


def test_a_watcher_may_ask_other_things_on_the_same_line(tmp_path: Path, server: ControlServer) -> None:
    with connected(tmp_path) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"id":"w","verb":"watch"}\n{"id":"h","verb":"hold"}\n{"id":"w","verb":"watch"}\n')
        assert [json.loads(lines.readline())["id"] for _ in range(3)] == ["w", "h", "w"]
        assert server.watchers == 1


def test_what_cannot_be_watched_is_refused(tmp_path: Path, server: ControlServer) -> None:
    (said,) = converse(tmp_path / "control.sock", {"id": "w", "verb": "watch", "model": "other"}, 10)
    assert said["code"] == "no-model"
    assert server.watchers == 0


def test_one_who_hangs_up_is_forgotten_and_the_others_go_on(tmp_path: Path, server: ControlServer) -> None:
    news = converse(tmp_path / "control.sock", {"id": "w", "verb": "watch"}, 10)
    next(news)
    with connected(tmp_path) as sock:
        sock.sendall(b'{"id":"x","verb":"watch"}\n')
        wait_for_watchers(server, 2)
        sock.shutdown(socket.SHUT_WR)
        wait_for_watchers(server, 1)
    server.broadcast({"event": {}})
    assert next(news)["result"] == {"event": {}}
    news.close()


def test_one_who_does_not_read_is_shown_the_door(tmp_path: Path, server: ControlServer) -> None:
    with connected(tmp_path) as sock:
        sock.sendall(b'{"id":"x","verb":"watch"}\n')
        wait_for_watchers(server, 1)
        for _ in range(100):
            server.broadcast({"event": {"text": "x" * 100_000}})
        wait_for_watchers(server, 0)


def test_over_the_broker_there_are_topics_for_that() -> None:
    said: list[Mapping[str, Any]] = []
    desk = Desk(submit=submit, view=view, now=lambda: 0.0)
    desk.take(b'{"id":"w","verb":"watch"}', origin="mqtt", limit=1000, reply=said.append)
    assert (said[0]["status"], said[0]["code"]) == ("refused", "no-watch")
