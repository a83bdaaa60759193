"""Every behaviour of the rogue server, against the source alone and against the whole transfer."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.errors import AgentError, SourceError, TrustError
from modelagent.sources.http import HttpSource
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.transfer import Transfer
from rogue_server import BEHAVIOURS, PAGE, Request, Rogue

CONTENT = bytes(range(256)) * 200
DIGEST = hashlib.sha256(CONTENT).hexdigest()
# behaviour -> how the transfer names it; None: it succeeds all the same
CODES: dict[str, str | None] = {
    "honest": None,
    "ignores-range": None,
    "stall": "timeout",
    "trickle": "too-slow",
    "slow-head": "timeout",
    "reset": "cut",
    "truncated": "cut",
    "lying-length": "endless-data",
    "longer": "endless-data",
    "endless": "endless-data",
    "wrong-range": None,
    "endless-headers": "unreachable",
    "redirect-loop": "redirect",
    "storm": "server-error",
    "portal": "captive-portal",
    "sly-portal": "captive-portal",
    "gzip": "content-encoding",
    "silent": "timeout",
    "garbage": "unreachable",
    "endless-error": "not-found",
    "error-drip": "not-found",
    "chunk-drip": "timeout",
    "endless-trailers": "cut",
}


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    with Rogue(CONTENT, pause=0.001) as server:
        yield server


@pytest.fixture
def source(rogue: Rogue) -> Iterator[HttpSource]:
    found = HttpSource(rogue.url, connect_timeout=2, read_timeout=0.15, min_rate=10_000, window=0.1)
    yield found
    found.close()


def bring(source: HttpSource, incoming: Path) -> AgentError | None:
    transfer = Transfer(incoming, Mirrors([source]), lambda _: None)
    try:
        transfer.fetch(DIGEST, len(CONTENT), progress=lambda _: None, abandoned=lambda: False)
    except AgentError as error:
        return error
    return None


def test_every_behaviour_is_listed() -> None:
    assert set(CODES) == set(BEHAVIOURS)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_ends_soon_under_its_name_and_the_next_try_succeeds(
    rogue: Rogue, source: HttpSource, tmp_path: Path, name: str
) -> None:
    rogue.play = BEHAVIOURS[name]
    began = time.monotonic()
    error = bring(source, tmp_path)
    assert time.monotonic() - began < 5
    assert (error.code if error else None) == CODES[name]
    if error is not None:
        assert source.name in error.message
        assert not (tmp_path / DIGEST).exists()
        if isinstance(error, TrustError):
            assert list(tmp_path.iterdir()) == [], "nothing of a lie is left"
    rogue.play = BEHAVIOURS["honest"]
    assert bring(source, tmp_path) is None
    assert (tmp_path / DIGEST).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST]


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_in_the_middle_costs_no_byte_that_came_before(
    rogue: Rogue, source: HttpSource, tmp_path: Path, name: str
) -> None:
    """Half of the file is here; whatever the server does then, it is still here or the file is whole."""
    (tmp_path / f"{DIGEST}.part").write_bytes(CONTENT[:20_000])
    rogue.play = BEHAVIOURS[name]
    error = bring(source, tmp_path)
    if error is None:
        assert (tmp_path / DIGEST).read_bytes() == CONTENT
        return
    assert (tmp_path / f"{DIGEST}.part").stat().st_size >= 20_000
    rogue.play = BEHAVIOURS["honest"]
    assert bring(source, tmp_path) is None
    asked = str(rogue.asked[-1][1])
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= 20_000


def test_a_portal_that_calls_itself_a_file_blames_no_mirror(rogue: Rogue, source: HttpSource, tmp_path: Path) -> None:
    rogue.play = BEHAVIOURS["sly-portal"]
    assert isinstance(bring(source, tmp_path), SourceError)
    mirrors = Mirrors([source])
    assert mirrors.aside() == {}

    def same_length(request: Request) -> None:
        page = PAGE + b" " * (len(CONTENT) - len(PAGE))
        request.head(200, Content_Length=str(len(page)))
        request.send(page)

    rogue.play = same_length
    error = bring(source, tmp_path)
    assert error is not None
    assert list(tmp_path.iterdir()) == []


def test_retry_after_reaches_the_one_who_asked(rogue: Rogue, source: HttpSource, tmp_path: Path) -> None:
    rogue.play = BEHAVIOURS["storm"]
    assert getattr(bring(source, tmp_path), "retry_after", None) == 120.0
    assert len(rogue.asked) == 1, "one try each; when to try again is the machine's to say"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451])
def test_a_4xx_ends_at_once_and_asks_for_a_long_pause(
    rogue: Rogue, source: HttpSource, tmp_path: Path, status: int
) -> None:
    rogue.play = lambda request: request.head(status, Content_Length="0")
    error = bring(source, tmp_path)
    assert len(rogue.asked) == 1
    assert getattr(error, "retry_after", 0.0) >= 600


def test_a_resume_after_a_restart_asks_for_the_same_file(rogue: Rogue, source: HttpSource, tmp_path: Path) -> None:
    rogue.play = BEHAVIOURS["truncated"]
    assert bring(source, tmp_path) is not None
    again = HttpSource(rogue.url)  # another process: nothing but the disk remembers
    rogue.play = BEHAVIOURS["honest"]
    assert bring(again, tmp_path) is None
    again.close()
    assert rogue.headers[-1]["If-Range"] == '"v1"'
    assert rogue.headers[-1]["Range"] == f"bytes={len(CONTENT) // 2}-"
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST]


def test_a_file_that_changed_meanwhile_restarts_by_itself(rogue: Rogue, source: HttpSource, tmp_path: Path) -> None:
    rogue.content = CONTENT[::-1]
    rogue.play = BEHAVIOURS["truncated"]
    assert bring(source, tmp_path) is not None
    rogue.content, rogue.tag, rogue.play = CONTENT, '"v2"', BEHAVIOURS["honest"]
    assert bring(source, tmp_path) is None
    assert len(rogue.asked) == 2


def test_another_mirror_is_not_asked_for_the_first_ones_version(rogue: Rogue, tmp_path: Path) -> None:
    """Its name of the same file may be another one: then If-Range would fetch again what is here."""
    with Rogue(CONTENT) as other:
        other.tag = '"something else"'
        first, second = HttpSource(rogue.url), HttpSource(other.url)
        rogue.play = BEHAVIOURS["truncated"]
        transfer = Transfer(tmp_path, Mirrors([first, second]), lambda _: None)
        transfer.fetch(DIGEST, len(CONTENT), progress=lambda _: None, abandoned=lambda: False)
        assert "If-Range" not in other.headers[0]
        assert other.sent == len(CONTENT) - len(CONTENT) // 2
        first.close()
        second.close()


@pytest.mark.parametrize("tag", ["", 'W/"weak"', "no quotes", '"line\tbreak"', '"' + "x" * 300 + '"'])
def test_a_weak_or_odd_validator_is_not_sent(rogue: Rogue, source: HttpSource, tmp_path: Path, tag: str) -> None:
    rogue.tag, rogue.play = tag, BEHAVIOURS["truncated"]
    assert bring(source, tmp_path) is not None
    rogue.play = BEHAVIOURS["honest"]
    assert bring(source, tmp_path) is None
    assert "If-Range" not in rogue.headers[-1]


def test_a_head_that_comes_slowly_is_bounded_as_a_whole(rogue: Rogue) -> None:
    """A byte every 20 ms: no single read ever times out."""
    rogue.play = BEHAVIOURS["slow-head"]
    source = HttpSource(rogue.url, read_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        source.fetch("files/x", limit=10)
    assert caught.value.code == "timeout"
    assert 0.2 < time.monotonic() - began < 2
    source.close()


def test_a_body_may_take_longer_than_a_head(rogue: Rogue) -> None:
    """Once the head is whole, each read has the whole time-out again."""

    def in_parts(request: Request) -> None:
        data = request.body_from(0)
        for start in range(0, len(data), 10_000):
            request.send(data[start : start + 10_000])
            threading.Event().wait(0.1)

    rogue.play = in_parts
    source = HttpSource(rogue.url, read_timeout=0.3)
    with source.fetch("files/x", limit=len(CONTENT)) as body:
        assert b"".join(body) == CONTENT
    source.close()


def test_nothing_is_asked_but_what_is_needed(rogue: Rogue, source: HttpSource, tmp_path: Path) -> None:
    assert bring(source, tmp_path) is None
    assert {name.lower() for name in rogue.headers[0]} == {"host", "accept-encoding", "user-agent"}
