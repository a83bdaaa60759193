"""The development server: what it serves, ranges, and what it does not serve."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from modelagent.publish.serve import Server


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x").write_bytes(b"0123456789")
    (tmp_path / "files" / ".hidden").write_bytes(b"hidden")
    (tmp_path / "files" / "sub").mkdir()
    (tmp_path / "publisher.json").write_bytes(b"{}")
    (tmp_path / "files" / "link").symlink_to(tmp_path / "publisher.json")
    (tmp_path / "files" / "out").symlink_to("/etc")
    with Server(tmp_path) as server:
        found = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        yield found
        found.close()


def get(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read(), dict(response.getheaders())


def test_files_and_ranges(connection: http.client.HTTPConnection) -> None:
    status, body, headers = get(connection, "/files/x")
    assert (status, body) == (200, b"0123456789")
    status, body, headers = get(connection, "/files/x", Range="bytes=3-")
    assert (status, body, headers["Content-Range"]) == (206, b"3456789", "bytes 3-9/10")
    assert get(connection, "/files/x", Range="bytes=3-5")[:2] == (206, b"345")
    assert get(connection, "/files/x", Range="bytes=3-500")[:2] == (206, b"3456789")
    assert get(connection, "/files/x", Range="bytes=0-")[:2] == (200, b"0123456789")
    assert get(connection, "/files/x", Range="bytes=10-")[0] == 416
    assert get(connection, "/files/x", Range="bytes=-3")[:2] == (200, b"0123456789")
    status, body, headers = get(connection, "/files/x", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")


def test_if_range_asks_for_the_same_file(connection: http.client.HTTPConnection) -> None:
    tag = get(connection, "/files/x")[2]["ETag"]
    assert get(connection, "/files/x", Range="bytes=3-", If_Range=tag)[0] == 206
    assert get(connection, "/files/x", Range="bytes=3-", If_Range='"other"')[:2] == (200, b"0123456789")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/publisher.json", "/files", "/files/", "/files/sub", "/files/link", "/files/out/passwd", "/files/.hidden",
        "/files/../publisher.json", "/files/%2e%2e/publisher.json", "/files/..%2fpublisher.json", "/files/%00",
        "/.publisher.lock", "//files/x/../../x", "/keys/root.pem", "/files/" + "x" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_served(connection: http.client.HTTPConnection, path: str) -> None:
    assert get(connection, path)[0] == 404
