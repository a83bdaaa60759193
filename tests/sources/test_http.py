"""The web source against our own server, and against one that misbehaves."""

import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from modelagent.errors import SourceError, TrustError, UsageError
from modelagent.publish.serve import Server
from modelagent.sources import BusyError, parts_of
from modelagent.sources.http import HttpSource, RateFloor
from modelagent.steps.acquire import Acquirer
from repository_simulator import Clock, RepositorySimulator

CONTENT = bytes(range(256)) * 100
Play = Callable[[http.server.BaseHTTPRequestHandler], None]


class Rogue:
    """A web server that plays one scripted behaviour for every request, and remembers what it was asked.

    The script gets the request handler and may answer, lie, trickle or hang up as it likes.
    """

    def __init__(self) -> None:
        self.play: Play = answer()
        self.asked: list[tuple[str, str | None]] = []
        self.connections = 0
        rogue = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def setup(self) -> None:
                rogue.connections += 1
                super().setup()

            def do_GET(self) -> None:
                rogue.asked.append((self.path, self.headers.get("Range")))
                rogue.play(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/repo"

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join(5)
        self.http.server_close()


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    server = Rogue()
    yield server
    server.close()


@pytest.fixture
def source(rogue: Rogue) -> Iterator[HttpSource]:
    found = HttpSource(rogue.url, read_timeout=5, connect_timeout=5)
    yield found
    found.close()


def answer(status: int = 200, body: bytes = CONTENT, **headers: str) -> Play:
    def play(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | named).items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        if named.get("Content-Length") != str(len(body)) and named:
            handler.close_connection = True

    return play


def read(source: HttpSource, *, limit: int = len(CONTENT), offset: int = 0) -> bytes:
    with source.fetch("files/x", limit=limit, offset=offset) as body:
        return b"".join(body)


def refused(source: HttpSource, *, limit: int = len(CONTENT), offset: int = 0) -> str:
    with pytest.raises((SourceError, TrustError)) as caught:
        read(source, limit=limit, offset=offset)
    assert "files/x" in caught.value.message
    return caught.value.code


def test_a_file_comes_whole_from_below_the_address(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer()
    assert read(source) == CONTENT
    assert rogue.asked == [("/repo/files/x", None)]


def test_one_connection_is_kept_over_answers_and_errors(rogue: Rogue, source: HttpSource) -> None:
    for _ in range(3):
        rogue.play = answer()
        read(source)
        rogue.play = answer(404, b"no such file")
        assert refused(source) == "not-found"
    assert rogue.connections == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "not-found"),
        (404, "not-found"),
        (410, "not-found"),
        (400, "refused"),
        (401, "refused"),
        (416, "wrong-range"),
        (429, "server-error"),
        (500, "server-error"),
        (503, "server-error"),
    ],
)
def test_a_status_has_a_name(rogue: Rogue, source: HttpSource, status: int, code: str) -> None:
    rogue.play = answer(status, b"sorry")
    assert refused(source) == code


def test_retry_after_is_told_in_seconds_or_by_the_servers_own_clock(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer(503, b"", Retry_After="120")
    with pytest.raises(BusyError) as caught:
        read(source)
    assert caught.value.retry_after == 120.0

    def by_date(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(503)
        handler.send_header("Date", formatdate(1000.0, usegmt=True))
        handler.send_header("Retry-After", formatdate(1090.0, usegmt=True))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    rogue.play = by_date
    with pytest.raises(BusyError) as caught:
        read(source)
    assert caught.value.retry_after == 90.0


def test_more_than_the_limit_is_endless_data_before_it_is_read(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer()
    assert refused(source, limit=len(CONTENT) - 1) == "endless-data"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_without_a_length_stops_at_the_limit(rogue: Rogue, source: HttpSource, chunked: bool) -> None:
    def forever(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write((b"1000\r\n" if chunked else b"") + b"x" * 4096 + (b"\r\n" if chunked else b""))
        except OSError:
            return

    rogue.play = forever
    assert refused(source, limit=100_000) == "endless-data"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_connection_that_breaks_is_cut(rogue: Rogue, source: HttpSource, chunked: bool) -> None:
    def half(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write((b"1000\r\n" if chunked else b"") + b"x" * 4096)
        handler.close_connection = True

    rogue.play = half
    assert refused(source) == "cut"


def test_content_encoding_is_refused(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer(Content_Encoding="gzip")
    assert refused(source) == "content-encoding"


def test_a_captive_portal_is_recognised(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
    assert refused(source) == "captive-portal"


def test_resume_goes_on_where_it_was(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer(ETag='"v1"')
    read(source)
    size = len(CONTENT)
    rogue.play = answer(206, CONTENT[100:], Content_Range=f"bytes 100-{size - 1}/{size}")
    with source.fetch("files/x", limit=size, offset=100) as body:
        assert (body.offset, body.total) == (100, size)
        assert b"".join(body) == CONTENT[100:]
    assert rogue.asked[-1] == ("/repo/files/x", "bytes=100-")


def test_a_200_to_a_range_request_starts_again(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer()
    with source.fetch("files/x", limit=len(CONTENT), offset=100) as body:
        assert (body.offset, body.total) == (0, len(CONTENT))
        assert b"".join(body) == CONTENT


@pytest.mark.parametrize(
    "content_range",
    ["", "bytes 0-24/25600", "bytes 99-25599/25600", "bytes 100-200/25600", "bytes 100-25599/30000", "items 100-1/2"],
)
def test_a_wrong_content_range_is_refused(rogue: Rogue, source: HttpSource, content_range: str) -> None:
    rogue.play = answer(206, CONTENT[100:], Content_Range=content_range)
    assert refused(source, offset=100, limit=30_000) == "wrong-range"


def test_a_range_nobody_asked_for_is_refused(rogue: Rogue, source: HttpSource) -> None:
    rogue.play = answer(206, CONTENT, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
    assert refused(source) == "wrong-range"


def test_redirects_are_followed_but_not_for_ever(rogue: Rogue, source: HttpSource) -> None:
    def once(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/elsewhere":
            answer()(handler)
        else:
            answer(302, b"moved", Location="/elsewhere")(handler)

    rogue.play = once
    assert read(source) == CONTENT
    rogue.play = answer(302, b"", Location="/repo/files/x")
    assert refused(source) == "redirect"
    assert len(rogue.asked) == 2 + 6


def test_a_slow_server_is_given_up(rogue: Rogue) -> None:
    """One byte now and then: each resets the read time-out, the rate over the window does not forgive it."""

    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.01)
        except OSError:
            return

    rogue.play = trickle
    seconds = iter(range(0, 10_000, 20))  # each look at the clock is 20 s after the last
    source = HttpSource(rogue.url, min_rate=500, window=60, clock=lambda: float(next(seconds)))
    assert refused(source) == "too-slow"
    source.close()


def test_a_server_that_says_nothing_times_out(rogue: Rogue) -> None:
    stop = threading.Event()

    def silence(handler: http.server.BaseHTTPRequestHandler) -> None:
        stop.wait(10)

    rogue.play = silence
    source = HttpSource(rogue.url, read_timeout=0.2)
    assert refused(source) == "timeout"
    stop.set()
    source.close()


def test_a_server_that_stalls_in_the_middle_times_out(rogue: Rogue) -> None:
    stop = threading.Event()

    def stall(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:23_000])
        handler.wfile.flush()
        stop.wait(10)

    rogue.play = stall
    source = HttpSource(rogue.url, read_timeout=0.2)
    assert refused(source) == "timeout"
    stop.set()
    source.close()


def test_nobody_there_is_unreachable() -> None:
    server = Rogue()
    server.close()
    source = HttpSource(server.url)
    assert refused(source) == "unreachable"
    source.close()


def test_endless_headers_are_refused(rogue: Rogue, source: HttpSource) -> None:
    def headers(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            for index in range(10_000):
                handler.wfile.write(b"X-%d: y\r\n" % index)
        except OSError:
            pass
        handler.close_connection = True

    rogue.play = headers
    assert refused(source) == "unreachable"


@pytest.mark.parametrize("url", ["", "ftp://x/", "models.example.org", "http://", "file:///x", "http://[::1/"])
def test_a_bad_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        HttpSource(url)
    assert caught.value.code == "bad-url"


def test_a_password_in_the_address_is_not_shown() -> None:
    source = HttpSource("https://user:secret@models.example.org/x")
    assert source.name == "https://models.example.org/x/"
    source.close()


def test_nor_in_what_the_library_says_of_an_address_it_cannot_use() -> None:
    source = HttpSource("http://user:secret@models.example.org:99999/")
    with pytest.raises(SourceError) as caught:
        source.fetch("a", limit=5)
    assert "models.example.org:99999/a" in caught.value.message
    assert "secret" not in caught.value.message
    source.close()


def test_no_connection_in_time_is_told_apart_from_no_answer(
    source: HttpSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(self: requests.Session, url: str, **more: object) -> requests.Response:
        raise requests.exceptions.ConnectTimeout

    monkeypatch.setattr(requests.Session, "get", get)
    with pytest.raises(SourceError, match="not connected within") as caught:
        source.fetch("a", limit=5)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize("name", ["../x", "a/../b", "a//b", "/x", "a/%2e%2e/b", "a/%00", ".hidden", "", "a/"])
def test_a_name_that_climbs_is_a_path_trick(source: HttpSource, rogue: Rogue, name: str) -> None:
    with pytest.raises(TrustError) as caught:
        source.fetch(name, limit=10)
    assert caught.value.code == "path-trick"
    assert rogue.asked == []
    with pytest.raises(TrustError):
        parts_of(name)


def test_the_rate_floor_forgives_a_pause_but_not_a_trickle() -> None:
    floor = RateFloor(100.0, 60.0)
    assert floor.passed(1, 59.0)
    assert floor.passed(7000, 2.0)
    assert not floor.passed(5000, 61.0)
    assert RateFloor(0.0, 1.0).passed(0, 5.0)


def test_a_whole_acquire_over_http_takes_one_connection(tmp_path: Path) -> None:
    clock = Clock()
    simulator = RepositorySimulator(tmp_path, clock)
    release = simulator.release("1.0.0")
    (tmp_path / "state").mkdir()
    with Server(simulator.directory) as server:
        source = HttpSource(server.url)
        acquirer = Acquirer(tmp_path / "state", source, simulator.root_bytes, clock)
        offer = acquirer.check("digits", "stable").offer
        assert offer is not None
        acquirer.acquire(offer)
        acquirer.close()
    data = (tmp_path / "state" / "incoming" / release.model_file.sha256).read_bytes()
    assert hashlib.sha256(data).hexdigest() == release.model_file.sha256


def test_a_changed_file_on_our_server_restarts_a_resume(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "x"
    path.write_bytes(CONTENT)
    with Server(tmp_path) as server:
        source = HttpSource(server.url)
        with source.fetch("files/x", limit=len(CONTENT)) as body:
            called = body.validator
            assert b"".join(body) == CONTENT
        with source.fetch("files/x", limit=len(CONTENT), offset=10, validator=called) as body:
            assert body.offset == 10
            assert b"".join(body) == CONTENT[10:]
        path.unlink()
        path.write_bytes(CONTENT[::-1])
        with source.fetch("files/x", limit=len(CONTENT), offset=10, validator=called) as body:
            assert body.offset == 0
            assert b"".join(body) == CONTENT[::-1]
        assert refused(source, offset=len(CONTENT)) == "wrong-range"
        source.close()
