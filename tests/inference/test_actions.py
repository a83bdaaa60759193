"""What rules do, and that nothing they do holds up a frame."""

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelagent.inference import post
from modelagent.inference.actions import Doer, Firing, RuleBook
from modelagent.inference.actions.command import CommandAction
from modelagent.inference.actions.log import LogAction
from modelagent.inference.actions.message import MessageAction
from modelagent.inference.actions.webhook import WebhookAction
from modelagent.inference.results import Row
from modelagent.inference.rules import Rule

ROW = Row("e-7", "part-7", 5.0, "digits", "d" * 64, "1.1", 3, "three", 0.93, 12.0, "ok")
FIRING = Firing("e-7-scrap", "scrap", "box-17", 6.0, ROW)


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.003)


class Hook:
    """A server that answers each POST with the next status."""

    def __init__(self, statuses: list[int]) -> None:
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, json.loads(body), self.headers["Idempotency-Key"]))
                self.send_response(statuses[min(len(outer.asked), len(statuses)) - 1])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/scrap?line=3"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Callable[..., Hook]]:
    made: list[Hook] = []

    def make(*statuses: int) -> Hook:
        made.append(Hook(list(statuses)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_webhook_posts_the_firing_with_its_id(hook: Callable[..., Hook]) -> None:
    server = hook(204)
    WebhookAction(server.url).do(FIRING, threading.Event())
    [(path, body, key)] = server.asked
    assert (path, key) == ("/hooks/scrap?line=3", "e-7-scrap")
    assert (body["rule"], body["device"], body["result"]["label"]) == ("scrap", "box-17", "three")


def test_a_webhook_tries_again_after_a_fault_of_the_server_and_not_after_a_refusal(hook: Callable[..., Hook]) -> None:
    server = hook(500, 503, 200)
    WebhookAction(server.url, (0.0, 0.0)).do(FIRING, threading.Event())
    assert len(server.asked) == 3
    assert {key for _, _, key in server.asked} == {"e-7-scrap"}
    refusing = hook(404)
    with pytest.raises(OSError, match="answered 404"):
        WebhookAction(refusing.url, (0.0, 0.0)).do(FIRING, threading.Event())
    assert len(refusing.asked) == 1
    with pytest.raises(OSError, match=r"127\.0\.0\.1: "):
        WebhookAction("http://127.0.0.1:1/", (0.0, 0.0)).do(FIRING, threading.Event())


def test_a_webhook_gives_up_when_told_to_stop(hook: Callable[..., Hook]) -> None:
    server, stop = hook(500), threading.Event()
    stop.set()
    with pytest.raises(OSError, match="500"):
        WebhookAction(server.url, (60.0, 60.0)).do(FIRING, stop)
    assert len(server.asked) == 1


@pytest.mark.process
@pytest.mark.parametrize("gives", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_server_that_gives_a_byte_now_and_then_is_given_up(gives: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "_WHOLE", 0.5)
    stop = threading.Event()

    def drip(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.sendall(gives)
            while not stop.wait(0.05):
                sock.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0]))
        thread.start()
        try:
            with pytest.raises(OSError, match="took too long"):
                WebhookAction(f"http://127.0.0.1:{server.getsockname()[1]}/", pauses=()).do(FIRING, stop)
        finally:
            stop.set()
            thread.join(10.0)


def test_a_body_may_take_longer_than_one_wait_on_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "_TIMEOUT", 1.0)
    size = 2 << 20
    taken = 0

    def take(server: socket.socket) -> None:
        nonlocal taken
        sock, _ = server.accept()
        with sock:
            while taken < size and (chunk := sock.recv(32 << 10)):
                taken += len(chunk)
                time.sleep(0.03)
            sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        thread = threading.Thread(target=take, args=(server,))
        thread.start()
        try:
            assert post.post(f"http://127.0.0.1:{server.getsockname()[1]}/", bytes(size), {}, "e-1") == 204
        finally:
            thread.join(30.0)


def test_a_command_gets_the_firing_in_its_environment_and_no_shell(tmp_path: Path) -> None:
    program = "import os, sys; open(sys.argv[1], 'w').write(os.environ['MODELAGENT_FIRING'] + sys.argv[2])"
    target = tmp_path / "said"
    CommandAction((sys.executable, "-c", program, str(target), "$(id)")).do(FIRING, threading.Event())
    text = target.read_text()
    assert text.endswith("$(id)")
    assert json.loads(text.removesuffix("$(id)"))["result"]["frame"] == "part-7"


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; print('no paper', flush=True); sys.exit(3)", "status 3: no paper"),
        ("import time; time.sleep(60)", "not done within 0.3 s"),
    ],
)
def test_a_command_that_fails_or_takes_too_long_is_ended_and_said(program: str, why: str) -> None:
    with pytest.raises(OSError, match=why):
        CommandAction((sys.executable, "-c", program), seconds=0.3 if "sleep" in program else 20.0).do(
            FIRING, threading.Event()
        )


def test_a_command_that_is_not_there_is_said() -> None:
    with pytest.raises(OSError, match="No such file"):
        CommandAction(("/absent/program",)).do(FIRING, threading.Event())


def test_the_log_and_a_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        LogAction().do(FIRING, threading.Event())
    assert "rule scrap: three (0.93) on frame part-7, result e-7" in caplog.text
    sent: list[Any] = []
    MessageAction("line/3/eject", lambda *message: sent.append(message)).do(FIRING, threading.Event())
    assert sent[0][0] == "line/3/eject"
    assert sent[0][1]["id"] == "e-7-scrap"


class Slow:
    """Stands still until it is let go; then fails if told to."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.done: list[str] = []

    def do(self, firing: Firing, stop: threading.Event) -> None:
        while not self.go.wait(0.01):
            if stop.is_set():
                raise OSError("stopped")
        self.done.append(firing.id)


def test_a_slow_action_never_holds_up_and_what_it_lost_is_counted() -> None:
    action = Slow()
    doer = Doer(action, capacity=5)
    begun = time.monotonic()
    for _ in range(50):
        doer.put(FIRING)
    assert time.monotonic() - begun < 0.5
    assert doer.lost == 45
    action.go.set()
    wait(lambda: doer.done == 5)
    doer.close(2.0)
    assert doer.report() == {"done": 5, "failed": 0, "lost": 45}


class Faulty:
    """An action with a mistake in it."""

    name = "faulty"

    def do(self, firing: Firing, stop: threading.Event) -> None:
        raise ValueError(f"no such thing as {firing.id}")


def test_an_action_with_a_mistake_in_it_goes_on_to_the_next_firing(caplog: pytest.LogCaptureFixture) -> None:
    doer = Doer(Faulty())
    for number in (1, 2):
        doer.put(FIRING)
        wait(lambda number=number: doer.failed == number)  # type: ignore[misc]
    doer.close(2.0)
    assert "no such thing as e-7-scrap" in caplog.text


def test_closing_ends_an_action_that_stands_still() -> None:
    doer = Doer(Slow())
    doer.put(FIRING)
    doer.put(FIRING)
    begun = time.monotonic()
    doer.close(0.3)
    assert time.monotonic() - begun < 2.0
    assert doer.failed + doer.lost == 2


def test_a_book_of_rules_decides_at_once_and_reports(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    rules = [
        Rule("scrap", labels=("three",), log=True, topic="line/3/eject"),
        Rule("never", labels=("nine",), log=True),
    ]
    book = RuleBook(rules, device="box-17", publish=lambda *one: sent.append(one))
    with caplog.at_level(logging.WARNING):
        book.put(ROW)
        book.put(ROW)
        wait(lambda: len(sent) == 1)
        book.close(2.0)
    report = book.report()
    assert report["scrap"] == {
        "met": True,
        "fired": 1,
        "log": {"done": 1, "failed": 0, "lost": 0},
        "mqtt": {"done": 1, "failed": 0, "lost": 0},
    }
    assert report["never"]["fired"] == 0
    assert (book.written, book.lost) == (1, 0)
    assert sent[0][1]["id"] == "e-7-scrap"


def test_a_failed_action_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    doer = Doer(CommandAction(("/absent/program",)))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            doer.put(FIRING)
        wait(lambda: doer.failed == 5)
        doer.close(1.0)
    assert caplog.text.count("rule scrap: command: ") == 1
