"""Health: every record is evidence, or a reason why it is none."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Counts, Event, FellBack, Instant, Link, Refused, Runs, Swap
from modelagent.inputs.health import MAX_BYTES, STALE_S, Poller, Reading, read, reader, running_of

BOOT = "boot-1"
AT = Instant(1000.0, 10.0, BOOT)
LINK = Link(7, 99)
A, B = "a" * 64, "b" * 64


def record(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": 1,
        "model": "digits",
        "boot_id": BOOT,
        "epoch": "e1",
        "seq": 5,
        "wall": 1000.0,
        "mono": 10.0,
        "pid": 42,
        "link": {"inode": 7, "mtime_ns": 99},
        "running": {"digest": A, "version": "1.1.0", "worker_pid": 43, "since_mono": 1.0},
        "loading": None,
        "refused": None,
        "fell_back": None,
        "idle": "",
        "counters": {
            A: {
                "frames": 100,
                "done": 98,
                "dropped": 1,
                "faults": {"crash": 1, "hang": 2, "not-finite": 3},
                "faulted": 1,
                "busy_s": 12,
                "latency_us": {"bounds": [], "counts": []},
                "confidence": {"bounds": [], "counts": []},
                "classes": {"3": 5},
                "labels": {"right": 20, "wrong": 2, "unknown": 9, "late": 1, "duplicate": 1},
            },
            B: {"frames": 7},
        },
        "shadow": {
            "digest": B, "frames": 9, "both_right": 4, "only_new": 3, "only_old": 1, "both_wrong": 1, "agree": 5,
        },
        "source": {"kind": "replay", "rate_fps": 30.0, "queue": 0, "capacity": 64, "dropped": 0, "received": 100},
        "last_result": None,
    }  # fmt: skip
    document.update(changes)
    return document


def events(reading: Reading) -> list[Event]:
    return [make(AT, 0.5) for make in reading.events]


def test_a_running_version_with_its_counts() -> None:
    reading = read(record(), BOOT)
    assert reading.mark == (f"{BOOT}:e1", 5)
    counts = Counts(100, 98, 1, 6, 12, 20, 2, 4, 3, 1, 1)
    assert events(reading) == [Runs(AT, 0.5, link=LINK, digest=A, epoch=f"{BOOT}:e1", counts=counts, shadow=B)]


def test_the_last_swap_comes_with_what_it_cost() -> None:
    last = {"from": B, "to": A, "how": "memory", "gap_s": 1.4, "without_s": 1.25, "overlap": False, "peak_kb": 9}
    room = {"available_kb": 80_000, "needed_kb": 120_000}
    (runs,) = events(read(record(swaps={"count": 2, "last": last | room}), BOOT))
    assert isinstance(runs, Runs)
    assert runs.swap == Swap(2, B, A, "memory", 1.4, 1.25, 80_000, 120_000)
    for silent in (None, {"count": 0, "last": None}, {"count": 1, "last": {"from": B, "to": A, "gap_s": 1.0}}):
        (runs,) = events(read(record(swaps=silent), BOOT))
        assert isinstance(runs, Runs)
        assert runs.swap is None, "an inference of an earlier version says less"
    for odd in ({"gap_s": -1.0}, {"without_s": float("nan")}, {"available_kb": "much"}, {"to": None}):
        assert not read(record(swaps={"count": 2, "last": last | odd}), BOOT).events


def test_nothing_runs_yet() -> None:
    reading = read(record(running=None, link=None, counters={}, shadow=None), BOOT)
    assert events(reading) == [Runs(AT, 0.5, link=None, digest=None, epoch=f"{BOOT}:e1", counts=Counts())]


def test_a_version_that_just_began_has_no_counters_yet() -> None:
    (runs,) = events(read(record(counters={}, shadow=None), BOOT))
    assert isinstance(runs, Runs)
    assert runs.counts == Counts()


@pytest.mark.parametrize(
    ("code", "hard"),
    [("crash", True), ("hang", True), ("not-finite", True), ("starts", False), ("refused", False), ("new", False)],
)
def test_fell_back_comes_first_and_says_whether_it_was_hard(code: str, hard: bool) -> None:
    left = {"from": B, "to": A, "reason": "the worker died", "code": code, "confirmed": False}
    first, last = events(read(record(fell_back=left), BOOT))
    assert first == FellBack(AT, 0.5, link=LINK, digest=B, reason="the worker died", confirmed=False, hard=hard)
    assert isinstance(last, Runs)


@pytest.mark.parametrize(("code", "hard"), [("hash", False), ("load", False), ("crash", True), ("not-finite", True)])
def test_refused(code: str, hard: bool) -> None:
    refused = {"digest": B, "code": code, "reason": "", "confirmed": True}
    first, _ = events(read(record(refused=refused), BOOT))
    assert first == Refused(AT, 0.5, link=LINK, digest=B, reason=code, confirmed=True, hard=hard)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "this version understands 1"),
        ({"schema": True}, "schema"),
        ({"boot_id": "boot-0"}, "earlier boot"),
        ({"boot_id": None}, "boot_id"),
        ({"epoch": 3}, "epoch"),
        ({"seq": -1}, "seq"),
        ({"seq": True}, "seq"),
        ({"seq": 1.0}, "seq"),
        ({"link": []}, "link"),
        ({"link": {"inode": 7}}, "mtime_ns"),
        ({"running": "a"}, "running"),
        ({"running": {}}, "digest"),
        ({"counters": []}, "counters"),
        ({"counters": {A: {"frames": "many"}}}, "frames"),
        ({"counters": {A: {"faults": 3}}}, "faults"),
        ({"counters": {A: {"labels": {"right": -1}}}}, "right"),
        ({"shadow": {"both_right": 1}}, "digest"),
        ({"fell_back": {"from": B}}, "reason"),
        ({"fell_back": {"from": B, "reason": "", "code": "crash", "confirmed": 0}}, "confirmed"),
        ({"fell_back": {"from": B, "reason": "", "code": "crash", "confirmed": False}, "link": None}, "without a link"),
        ({"refused": {"digest": B, "reason": "", "code": "hash", "confirmed": False}, "link": None}, "without a link"),
    ],
)
def test_a_doubtful_record_gives_a_reason_and_no_event(change: dict[str, Any], words: str) -> None:
    reading = read(record(**change), BOOT)
    assert reading.events == ()
    assert reading.mark is None
    assert words in reading.reason


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(anything)
def test_any_document_is_read(document: Any) -> None:
    reading = read(document, BOOT)
    assert bool(reading.events) != bool(reading.reason)


@given(st.data())
def test_any_one_change_to_a_good_record_is_read(data: st.DataObject) -> None:
    document = copy.deepcopy(record(fell_back={"from": B, "reason": "r", "code": "crash", "confirmed": False}))
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(anything)
    reading = read(document, BOOT)
    assert bool(reading.events) != bool(reading.reason)
    assert [make(AT, 0.5) for make in reading.events] == events(reading)


def scripted(*contents: bytes | OSError) -> Callable[[], bytes]:
    remaining = iter(contents)

    def read_bytes() -> bytes:
        content = next(remaining)
        if isinstance(content, OSError):
            raise content
        return content

    return read_bytes


def encoded(**changes: Any) -> bytes:
    return json.dumps(record(**changes)).encode()


def test_an_unchanged_record_is_no_news_and_then_no_sign_of_life() -> None:
    poller = Poller(scripted(encoded(), encoded(seq=6), encoded(seq=6), encoded(seq=6), encoded(seq=7)), BOOT)
    first, second, same, silent, again = (poller.poll(mono) for mono in (0.0, 1.0, 2.0, 1.0 + STALE_S, 20.0))
    assert (len(first.events), first.fresh) == (1, False)
    assert (len(second.events), second.fresh) == (1, True)
    assert (same.events, same.reason, same.fresh) == ((), "", False)
    assert silent.events == ()
    assert silent.reason == "no sign of life from inference for 10 s"
    assert silent.document is not None
    assert (len(again.events), again.fresh) == (1, True)


def test_a_new_epoch_starts_counting_again() -> None:
    poller = Poller(scripted(encoded(seq=50), encoded(epoch="e2", seq=1)), BOOT)
    poller.poll(0.0)
    assert poller.poll(1.0).fresh


def test_a_record_put_back_is_not_believed() -> None:
    poller = Poller(scripted(encoded(seq=50), encoded(seq=49), encoded(seq=51)), BOOT)
    poller.poll(0.0)
    assert "went backwards" in poller.poll(1.0).reason
    assert len(poller.poll(2.0).events) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FileNotFoundError(), "no health file yet"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (b"", "not whole"),
        (encoded()[:-20], "not whole"),
        (b"\xff\xfe", "not whole"),
        (b"[" * 100_000, "not whole"),
        (b"x" * (MAX_BYTES + 1), "more than"),
        (b"null", "expected an object"),
    ],
)
def test_a_file_that_says_nothing(content: bytes | OSError, words: str) -> None:
    reading = Poller(scripted(content), BOOT).poll(0.0)
    assert reading.events == ()
    assert words in reading.reason


@given(st.binary(max_size=100))
def test_any_bytes_are_polled(data: bytes) -> None:
    assert Poller(lambda: data, BOOT).poll(0.0).reason


def test_the_usual_reader(tmp_path: Path) -> None:
    (tmp_path / "health.json").write_bytes(encoded())
    assert len(Poller(reader(tmp_path / "health.json"), BOOT).poll(0.0).events) == 1
    assert "no health file" in Poller(reader(tmp_path / "other.json"), BOOT).poll(0.0).reason


def test_a_reason_without_end_is_cut_and_heard_all_the_same() -> None:
    left = {"from": B, "to": A, "reason": "x" * 100_000, "code": "crash", "confirmed": False}
    event = events(read(record(fell_back=left), BOOT))[0]
    assert isinstance(event, FellBack)
    assert event.reason == "x" * 2000


@pytest.mark.parametrize("odd", [None, 7, [[]], {"a": {}}])
def test_what_runs_is_told_in_short_words_or_not_at_all(odd: object) -> None:
    assert running_of(None) == running_of({"running": odd}) == {}
    assert running_of({"running": {"version": odd, "digest": "d" * 4000}}) == {"digest": "d" * 64}
