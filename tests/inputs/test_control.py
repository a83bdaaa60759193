"""The control socket: whatever arrives is answered or shown the door, and nobody waits for anybody."""

import contextlib
import errno
import json
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelagent.core.events import Instant, RevertWanted, Wanted
from modelagent.errors import DeviceError, UsageError
from modelagent.inputs import Reply
from modelagent.inputs.commands import Desk, Request, RequestError, answer, parse_request
from modelagent.inputs.control import MAX_LINE, MAX_UNREAD, ControlServer, ask, converse

NOW = 1_700_000_000.0


class Driver:
    """Answers as the updater would: at once, or later from another thread."""

    def __init__(self) -> None:
        self.taken: list[Request] = []
        self.later: list[tuple[Request, Reply]] = []
        self.threads: list[threading.Thread] = []

    def submit(self, request: Request, reply: Reply) -> None:
        self.taken.append(request)
        if request.verb == "update":
            reply(answer(request.id, "accepted"))
            thread = threading.Thread(target=reply, args=(answer(request.id, "done", "1.1.0 runs"),))
            self.threads.append(thread)
            thread.start()
        elif request.verb == "check":
            self.later.append((request, reply))
        elif request.argument == "blocked":
            raise UsageError("1.2.0 is blocked: its canary failed; lift the block first", code="blocked")
        else:
            reply(answer(request.id, "done"))

    def view(self, request: Request) -> Mapping[str, Any]:
        return {"verb": request.verb, "model": request.model}


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def desk(driver: Driver) -> Desk:
    return Desk(submit=driver.submit, view=driver.view, now=lambda: NOW)


@pytest.fixture
def path(tmp_path: Path, desk: Desk, driver: Driver) -> Iterator[Path]:
    with ControlServer(tmp_path / "control.sock", desk, patience=5.0):
        yield tmp_path / "control.sock"
    for thread in driver.threads:
        thread.join()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        yield sock


def line(sock: socket.socket) -> dict[str, Any]:
    with sock.makefile("rb") as file:
        document = json.loads(file.readline())
    assert isinstance(document, dict)
    return document


def test_a_read_only_verb_is_answered_from_the_view(path: Path, driver: Driver) -> None:
    reply = ask(path, {"id": "1", "verb": "status", "model": "digits"}, 5)
    assert reply == {"id": "1", "status": "done", "reason": "", "result": {"verb": "status", "model": "digits"}}
    assert driver.taken == []


def test_a_steering_verb_reaches_the_driver(path: Path, driver: Driver) -> None:
    assert ask(path, {"id": "1", "verb": "pin", "argument": "1.2.0"}, 5)["status"] == "done"
    assert driver.taken == [Request("1", "pin", "cli", argument="1.2.0")]


def test_every_answer_up_to_the_final_one_arrives(path: Path) -> None:
    assert [a["status"] for a in converse(path, {"id": "1", "verb": "update"}, 5)] == ["accepted", "done"]


def test_a_refusal_of_the_driver_is_an_answer(path: Path) -> None:
    reply = ask(path, {"id": "1", "verb": "pin", "argument": "blocked"}, 5)
    assert (reply["status"], reply["code"]) == ("refused", "blocked")


def test_requests_of_several_clients_do_not_wait_for_each_other(path: Path, driver: Driver) -> None:
    with connected(path) as slow:
        slow.sendall(b'{"id":"slow","verb":"check"}\n')
        assert ask(path, {"id": "quick", "verb": "status"}, 5)["id"] == "quick"
        while not driver.later:
            pass
        request, reply = driver.later.pop()
        reply(answer(request.id, "done"))
        assert line(slow)["id"] == "slow"


def test_a_client_that_has_said_all_still_gets_its_answer(path: Path) -> None:
    with connected(path) as sock:
        sock.sendall(b'{"id":"1","verb":"status"}\n{"id":"2","verb":"hold"}\n')
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            assert [json.loads(each)["id"] for each in file] == ["1", "2"]


def test_an_answer_to_one_who_left_is_dropped(path: Path, driver: Driver) -> None:
    with connected(path) as sock:
        sock.sendall(b'{"id":"1","verb":"check"}\n')
        while not driver.later:
            pass
    request, reply = driver.later.pop()
    reply(answer(request.id, "done"))
    assert ask(path, {"id": "2", "verb": "status"}, 5)["id"] == "2"


def test_a_line_without_end_is_refused(path: Path) -> None:
    with connected(path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"x" * (MAX_LINE * 4))
        reply = line(sock)
        assert (reply["status"], reply["code"]) == ("refused", "oversized")
    assert ask(path, {"id": "2", "verb": "status"}, 5)["id"] == "2"


def test_half_a_line_is_shown_the_door(tmp_path: Path, desk: Desk) -> None:
    with ControlServer(tmp_path / "s", desk, patience=0.05), connected(tmp_path / "s") as sock:
        sock.sendall(b'{"id":')
        assert sock.recv(10) == b""


def test_an_idle_client_is_shown_the_door(tmp_path: Path, desk: Desk) -> None:
    with ControlServer(tmp_path / "s", desk, idle=0.05), connected(tmp_path / "s") as sock:
        assert sock.recv(10) == b""


def test_who_does_not_read_is_shown_the_door(tmp_path: Path) -> None:
    moment = [0.0]
    big = Desk(submit=Driver().submit, view=lambda _: {"x": "y" * 500_000}, now=lambda: NOW)
    with ControlServer(tmp_path / "s", big, clock=lambda: moment[0]), connected(tmp_path / "s") as sock:
        sock.sendall(b'{"id":"1","verb":"status"}\n' * 5)
        assert ask(tmp_path / "s", {"id": "2", "verb": "status"}, 5)["id"] == "2"
        moment[0] += 60.0
        assert ask(tmp_path / "s", {"id": "3", "verb": "status"}, 5)["id"] == "3"
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(1 << 20):
                received += len(data)
        assert received < 5 * 500_000


def test_without_a_descriptor_left_the_thread_does_not_spin(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            raise OSError(errno.EMFILE, "Too many open files")

    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    with selectors.DefaultSelector() as selector, Listener(socket.AF_UNIX) as listener:
        ControlServer(tmp_path / "control.sock", desk)._accept(selector, listener)
    assert len(rests) == 1
    assert 0 < rests[0] < 1


def test_a_result_without_end_is_an_answer_too(tmp_path: Path) -> None:
    desk = Desk(submit=Driver().submit, view=lambda _: {"lines": ["x" * MAX_UNREAD]}, now=lambda: NOW)
    with ControlServer(tmp_path / "control.sock", desk):
        told = ask(tmp_path / "control.sock", {"id": "7f3a", "verb": "history"}, timeout=10)
    assert (told["id"], told["status"], told["code"]) == ("7f3a", "failed", "oversized")
    assert "ask for less" in told["reason"]


def test_permission_and_removal(tmp_path: Path, desk: Desk) -> None:
    path = tmp_path / "s"
    with ControlServer(path, desk, group="root"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert names(tmp_path) == ["s"]
    assert names(tmp_path) == []


def test_a_stale_socket_is_replaced_and_a_successor_is_left_alone(tmp_path: Path, desk: Desk) -> None:
    path = tmp_path / "s"
    first = ControlServer(path, desk)
    first.start()
    with ControlServer(path, desk):
        first.stop()
        assert ask(path, {"id": "1", "verb": "status"}, 5)["id"] == "1"


def test_stopping_twice_and_late_answers_are_harmless(tmp_path: Path, driver: Driver, desk: Desk) -> None:
    server = ControlServer(tmp_path / "s", desk)
    server.start()
    with connected(tmp_path / "s") as sock:
        sock.sendall(b'{"id":"1","verb":"check"}\n')
        while not driver.later:
            pass
        server.stop()
    server.stop()
    driver.later[0][1](answer("1", "done"))


def test_what_cannot_be_opened_is_said(tmp_path: Path, desk: Desk) -> None:
    with pytest.raises(DeviceError, match=r"check paths\.run_dir"):
        ControlServer(tmp_path / "missing" / "s", desk).start()
    with pytest.raises(DeviceError, match="AF_UNIX path too long"):
        ControlServer(tmp_path / ("x" * 120), desk).start()
    with pytest.raises(DeviceError, match="no group 'nobody-here'"):
        ControlServer(tmp_path / "s", desk, group="nobody-here").start()
    assert names(tmp_path) == []


def test_the_client_says_that_the_updater_is_down(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(DeviceError, match="the updater is not running") as refused:
        ask(path, {"id": "1", "verb": "status"}, 1)
    assert refused.value.code == "down"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(DeviceError, match="the updater is not running"):
        ask(path, {"id": "1", "verb": "status"}, 1)


def test_the_client_does_not_wait_for_ever(path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no answer within .* may still do what was asked") as refused:
        ask(path, {"id": "1", "verb": "check"}, 0.05)
    assert refused.value.code == "no-answer"


# ---- the parser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "malformed", "not JSON"),
        (b"[]", "malformed", "one JSON object"),
        (b"\xff", "malformed", "not JSON"),
        (b'{"verb":"hold"}', "malformed", "id:"),
        (b'{"id":"","verb":"hold"}', "malformed", "id:"),
        (b'{"id":"a b","verb":"hold"}', "malformed", "id:"),
        (b'{"id":1,"verb":"hold"}', "malformed", "id:"),
        (b'{"id":"1"}', "unknown-verb", "verb:"),
        (b'{"id":"1","verb":"reboot"}', "unknown-verb", "found 'reboot'"),
        (b'{"id":"1","verb":"config"}', "unknown-verb", "found 'config'"),
        (b'{"id":"1","verb":["hold"]}', "unknown-verb", "found a list"),
        (b'{"id":"1","verb":"hold","expiers":1}', "malformed", "unknown key 'expiers'"),
        (b'{"id":"1","verb":"hold","model":"../x"}', "malformed", "model:"),
        (b'{"id":"1","verb":"pin"}', "malformed", "needs one"),
        (b'{"id":"1","verb":"pin","argument":"a\\u0000"}', "malformed", "argument:"),
        (b'{"id":"1","verb":"hold","argument":7}', "malformed", "argument:"),
        (b'{"id":"1","verb":"hold","expires":"soon"}', "malformed", "expires:"),
        (b'{"id":"1","verb":"hold","expires":NaN}', "malformed", "NaN"),
        (b'{"id":"1","verb":"hold","expires":1e999}', "malformed", "expires:"),
        (b'{"id":"1","verb":"hold","labels":[]}', "malformed", "labels:"),
        (b'{"id":"1","verb":"label"}', "bad-label", "labels:"),
        (b'{"id":"1","verb":"label","labels":[{"id":"r"}]}', "bad-label", "labels[0]"),
        (b'{"id":"1","verb":"hold","x":' + b"[" * 50 + b"]" * 50 + b"}", "malformed", "nested"),
        (b"9" * 5000, "malformed", "not JSON"),
        (b'{"id":"1","verb":"hold","expires":1' + b"0" * 400 + b"}", "malformed", "expires:"),
        (b'{"id":"1","verb":"hold"}' + b" " * 20000, "oversized", "allowed: 16384"),
    ],
)
def test_bad_requests_are_refused_in_words(data: bytes, code: str, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_request(data, origin="cli", limit=16384)
    assert refused.value.code == code
    assert words in refused.value.message
    assert len(refused.value.message) < 500


def test_an_expired_request_has_no_effect(desk: Desk, driver: Driver) -> None:
    replies: list[Mapping[str, Any]] = []
    late = json.dumps({"id": "1", "verb": "hold", "expires": NOW - 5}).encode()
    good = json.dumps({"id": "2", "verb": "hold", "expires": NOW + 5}).encode()
    desk.take(late, origin="mqtt", limit=1000, reply=replies.append)
    desk.take(good, origin="mqtt", limit=1000, reply=replies.append)
    assert (replies[0]["status"], replies[0]["code"]) == ("refused", "expired")
    assert "5 s ago" in replies[0]["reason"]
    assert [request.id for request in driver.taken] == ["2"]


def test_requests_become_events() -> None:
    at = Instant(1.0, 2.0, "boot")
    assert Request("1", "pin", "mqtt", argument="1.2.0").event(at, 0.5) == Wanted(
        at, 0.5, verb="pin", origin="mqtt", id="1", argument="1.2.0"
    )
    assert Request("1", "rollback", "cli", argument="looks wrong").event(at, 0.5) == RevertWanted(
        at, 0.5, origin="cli", id="1", reason="looks wrong"
    )


plausible = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | st.just("1") | st.integers(),
        "verb": st.sampled_from(["hold", "pin", "status", "label", "config", ""]) | st.none(),
        "model": st.text(max_size=5) | st.none() | st.just("digits"),
        "argument": st.text(max_size=5) | st.floats(),
        "expires": st.floats() | st.integers() | st.text(max_size=3) | st.booleans(),
        "labels": st.lists(st.dictionaries(st.sampled_from(["id", "label", "right", "x"]), st.text() | st.integers())),
    },
)


@given(st.binary(max_size=200) | plausible.map(lambda d: json.dumps(d).encode()))
@settings(max_examples=300)
def test_any_bytes_get_exactly_one_answer(data: bytes) -> None:
    replies: list[Mapping[str, Any]] = []
    submit: Callable[[Request, Reply], None] = lambda request, reply: reply(answer(request.id, "done"))  # noqa: E731
    Desk(submit=submit, view=lambda _: {}, now=lambda: NOW).take(data, origin="mqtt", limit=150, reply=replies.append)
    assert len(replies) == 1
    json.dumps(replies[0])


@given(st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_on_the_socket_leave_it_serving(path: Path, pieces: list[bytes]) -> None:
    with connected(path) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            sock.sendall(piece)
        sock.sendall(b'\n{"id":"last","verb":"status"}\n')
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            answers = [json.loads(each) for each in file]
        assert answers[-1]["id"] == "last"
        assert all(a["status"] == "refused" for a in answers[:-1])


def test_a_path_longer_than_a_socket_address_serves_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    path = directory / "control.sock"
    desk = Desk(submit=lambda _request, _reply: None, view=lambda _request: {"fine": True}, now=lambda: 0.0)
    with ControlServer(path, desk):
        assert ask(path, {"id": "1", "verb": "status"}, timeout=5)["result"] == {"fine": True}
