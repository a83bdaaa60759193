"""TLS with real servers on loopback: private authorities, client certificates, proxies, redirects."""

import contextlib
import http.server
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.errors import SourceError
from modelagent.sources.http import HttpSource
from rogue_server import BEHAVIOURS, Request, Rogue
from tls_authority import Authority

CONTENT = b"content of a file"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def read(source: HttpSource) -> bytes:
    with contextlib.closing(source), source.fetch("files/x", limit=100) as body:
        return b"".join(body)


def refused(source: HttpSource) -> str:
    with pytest.raises(SourceError) as caught:
        read(source)
    return caught.value.code


def test_a_private_authority_is_trusted_where_it_is_named_and_only_there(authority: Authority, tmp_path: Path) -> None:
    with Rogue(CONTENT, tls=authority.server()) as server:
        assert read(HttpSource(server.url, ca=authority.ca)) == CONTENT
        assert refused(HttpSource(server.url)) == "tls"
        assert refused(HttpSource(server.url, ca=Authority(tmp_path, "a stranger").ca)) == "tls"
        assert len(server.asked) == 1, "nothing was said to a server that was not believed"


@pytest.mark.parametrize(("name", "days"), [("models.example.org", 10.0), ("127.0.0.1", -1.0)])
def test_another_name_and_an_ended_certificate_are_refused(authority: Authority, name: str, days: float) -> None:
    with Rogue(CONTENT, tls=authority.server(name, days=days)) as server:
        assert refused(HttpSource(server.url, ca=authority.ca)) == "tls"


def test_a_client_certificate_opens_the_door(authority: Authority, tmp_path: Path) -> None:
    device = authority.issue("device-17")
    with Rogue(CONTENT, tls=authority.server(client_needed=True)) as server:
        assert read(HttpSource(server.url, ca=authority.ca, client=device)) == CONTENT
        assert refused(HttpSource(server.url, ca=authority.ca)) in {"tls", "unreachable", "cut"}
        foreign = Authority(tmp_path, "another").issue("device-18")
        assert refused(HttpSource(server.url, ca=authority.ca, client=foreign)) in {"tls", "unreachable", "cut"}
        assert len(server.asked) == 1


def test_a_redirect_from_https_to_http_is_never_followed(authority: Authority) -> None:
    with Rogue(CONTENT) as plain, Rogue(CONTENT, tls=authority.server()) as server:
        server.play = lambda request: request.head(302, Location=f"{plain.url}/files/x", Content_Length="0")
        assert refused(HttpSource(server.url, ca=authority.ca)) == "redirect"
        assert plain.asked == []


def test_a_redirect_from_http_to_https_is_followed(authority: Authority) -> None:
    with Rogue(CONTENT, tls=authority.server()) as server, Rogue(CONTENT) as plain:
        plain.play = lambda request: request.head(301, Location=f"{server.url}/files/x", Content_Length="0")
        assert read(HttpSource(plain.url, ca=authority.ca)) == CONTENT


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "http://", "//", "http://[", ""]
)
def test_a_redirect_to_something_else_is_refused(target: str) -> None:
    with Rogue(CONTENT) as server:
        server.play = lambda request: request.head(302, Location=target, Content_Length="0")
        assert refused(HttpSource(server.url)) in {"redirect", "unreachable", "refused", "not-found"}


def test_a_slow_head_over_tls_is_bounded_too(authority: Authority) -> None:
    with Rogue(CONTENT, pause=0.001, tls=authority.server()) as server:
        server.play = BEHAVIOURS["slow-head"]
        assert refused(HttpSource(server.url, ca=authority.ca, read_timeout=0.3)) == "timeout"


class Proxy:
    """A small forward proxy: plain requests are passed on, CONNECT opens a tunnel."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.asked.append(f"GET {self.path}")
                host, _, path = self.path.removeprefix("http://").partition("/")
                name, _, port = host.partition(":")
                with socket.create_connection((name, int(port)), 5) as other:
                    other.sendall(f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                    while data := other.recv(65536):
                        self.wfile.write(data)
                self.close_connection = True

            def do_CONNECT(self) -> None:
                proxy.asked.append(f"CONNECT {self.path}")
                name, _, port = self.path.partition(":")
                with socket.create_connection((name, int(port)), 5) as other:
                    self.send_response(200)
                    self.end_headers()
                    pair = {self.connection: other, other: self.connection}
                    while True:
                        for ready in select.select(list(pair), [], [], 5)[0]:
                            data = ready.recv(65536)
                            if not data:
                                self.close_connection = True
                                return
                            pair[ready].sendall(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join(5)
        self.http.server_close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def test_a_proxy_carries_plain_and_encrypted_requests(authority: Authority, proxy: Proxy) -> None:
    with Rogue(CONTENT) as plain, Rogue(CONTENT, tls=authority.server()) as secure:
        assert read(HttpSource(plain.url, proxy=proxy.url)) == CONTENT
        assert read(HttpSource(secure.url, proxy=proxy.url, ca=authority.ca)) == CONTENT
        assert proxy.asked == [f"GET {plain.url}/files/x", f"CONNECT 127.0.0.1:{secure.port}"]


def test_a_proxy_that_is_not_there_is_named() -> None:
    with Rogue(CONTENT) as server:
        gone = Proxy()
        gone.close()
        assert refused(HttpSource(server.url, proxy=gone.url)) in {"proxy", "unreachable"}
        assert server.asked == []


def test_a_proxy_that_refuses_is_named(authority: Authority) -> None:
    def deny(request: Request) -> None:
        request.head(407, Content_Length="0")

    with Rogue(CONTENT) as denier:
        denier.play = deny
        url = denier.url.removesuffix("/repo")
        assert refused(HttpSource("http://models.example.org/x", proxy=url)) == "refused"
        assert refused(HttpSource("https://models.example.org/x", proxy=url, ca=authority.ca)) in {
            "proxy",
            "unreachable",
        }


def test_the_environment_gives_way_to_the_settings(
    authority: Authority, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE does not replace our own authority, and ~/.netrc gives nothing away."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path, "another").ca))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Rogue(CONTENT, tls=authority.server()) as server:
        assert read(HttpSource(server.url, ca=authority.ca)) == CONTENT
        assert refused(HttpSource(server.url)) == "tls"
        assert "Authorization" not in server.headers[0]
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    with Rogue(CONTENT) as plain:
        assert read(HttpSource(plain.url)) == CONTENT
        assert proxy.asked == [f"GET {plain.url}/files/x"]
