"""Samples that leave the device: which, how many, and that no target, however broken, costs the loop a frame."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from line_rig import Rig
from modelagent.inference.decisions import Decision
from modelagent.inference.frames import Frame, SourceOptions, payload
from modelagent.inference.options import LoopOptions, SampleOptions
from modelagent.inference.upload import Upload
from modelagent.inputs.schema import Settings

ALL = 1e15  # an hour: nothing is left out
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
UNSURE = Decision(prediction=3, label="three", confidence=0.4, detail=None)
SURE = Decision(prediction=3, label="three", confidence=0.9, detail=None)


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.003)


def frame(number: int = 1, mono: float | None = None) -> Frame:
    return Frame(f"camera:{number}", (PIXELS,), 1795290187.5, float(number) if mono is None else mono)


class Collector:
    """A server that takes samples: each POST gets the next status; none is answered while `gate` is closed."""

    def __init__(self, *statuses: int) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, dict(self.headers.items()), body))
                outer.gate.wait(30.0)
                self.send_response(statuses[min(len(outer.asked), len(statuses)) - 1])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A sender that was ended in the middle is no news."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/frames?line=3"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Callable[..., Collector]]:
    made: list[Collector] = []

    def make(*statuses: int) -> Collector:
        made.append(Collector(*statuses))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Callable[..., Upload]]:
    made: list[Upload] = []

    def make(**options: Any) -> Upload:
        wanted = SampleOptions(**{"per_hour": ALL, "queue": 100} | options)
        made.append(Upload("digits", wanted, "box-17", tmp_path / "samples.json", back_off=(0.01, 0.05)))
        return made[-1]

    yield make
    for one in made:
        one.close(15.0)


def test_a_sample_carries_the_frame_and_what_was_said_of_it(
    collector: Callable[..., Collector], upload: Callable[..., Upload]
) -> None:
    server = collector(204)
    one = upload(url=server.url)
    strange = Decision(prediction=3, label="drei\r\nX-Evil: é", confidence=0.4, detail=None)
    one.keep("e-7", Frame("d/ä.jpg", (PIXELS, PIXELS[0]), 5.5, 1.0), "d" * 64, "1.4.0", strange)
    wait(lambda: one.report()["sent"] == 1)
    [(path, headers, body)] = server.asked
    assert path == "/frames?line=3"
    said = {key.removeprefix("Modelagent-"): text for key, text in headers.items() if key.startswith("Modelagent-")}
    assert said == {
        "Result": "e-7",
        "Device": "box-17",
        "Model": "digits",
        "Version": "1.4.0",
        "Digest": "d" * 64,
        "Frame": "d/%C3%A4.jpg",
        "At": "5.5",
        "Prediction": "3",
        "Label": "drei%0D%0AX-Evil%3A%20%C3%A9",
        "Confidence": "0.4",
    }
    assert headers["Idempotency-Key"] == "e-7"
    arrays = payload.read(body, SourceOptions()).arrays
    assert len(arrays) == 2
    assert np.array_equal(arrays[0], PIXELS)
    assert np.array_equal(arrays[1], PIXELS[0])
    assert arrays[0].dtype == np.uint8


def test_what_is_unsure_goes_and_of_the_rest_a_share(
    collector: Callable[..., Collector], upload: Callable[..., Upload]
) -> None:
    server = collector(200)
    one = upload(url=server.url, below_confidence=0.5, share=0.25)
    unscored = Decision(prediction=None, label="", confidence=None, detail=None)
    for number in range(1, 9):
        one.keep(f"sure-{number}", frame(number), "d", "1", SURE)
    for number in range(9, 13):
        one.keep(f"unscored-{number}", frame(number), "d", "1", unscored)
    one.keep("unsure-13", frame(13), "d", "1", UNSURE)
    wait(lambda: one.report()["sent"] == 4)
    keys = [headers["Idempotency-Key"] for _, headers, _ in server.asked]
    assert keys == ["sure-4", "sure-8", "unscored-12", "unsure-13"]
    assert "Modelagent-Confidence" not in server.asked[2][1]


def test_no_more_than_so_many_an_hour_spread_evenly(
    collector: Callable[..., Collector], upload: Callable[..., Upload]
) -> None:
    server = collector(200)
    one = upload(url=server.url, per_hour=60.0)
    for second in range(300):
        one.keep(f"e-{second}", frame(second, mono=1000.0 + second), "d", "1", UNSURE)
    wait(lambda: one.report()["sent"] == 5)
    assert [headers["Idempotency-Key"] for _, headers, _ in server.asked] == [f"e-{60 * number}" for number in range(5)]


def test_a_failing_server_is_asked_again_and_said_once(
    collector: Callable[..., Collector], upload: Callable[..., Upload], caplog: pytest.LogCaptureFixture
) -> None:
    server = collector(500, 503, 429, 200)
    with caplog.at_level(logging.INFO):
        one = upload(url=server.url)
        one.keep("e-1", frame(), "d", "1", UNSURE)
        wait(lambda: one.report()["sent"] == 1)
    assert [headers["Idempotency-Key"] for _, headers, _ in server.asked] == ["e-1"] * 4
    assert caplog.text.count("samples: 127.0.0.1: answered 500; samples wait in memory, up to 100") == 1
    assert "answered 503" not in caplog.text
    assert "digits: samples are taken again" in caplog.text
    report = one.report()
    assert (report["problem"], report["lost"], report["refused"]) == ("", 0, 0)
    assert report["bytes_today"] == sum(len(body) for _, _, body in server.asked), "the link has carried each try"


def test_what_is_refused_is_given_up_and_the_next_is_sent(
    collector: Callable[..., Collector], upload: Callable[..., Upload]
) -> None:
    server = collector(413, 302, 200)
    one = upload(url=server.url)
    for number in (1, 2, 3):
        one.keep(f"e-{number}", frame(number), "d", "1", UNSURE)
    wait(lambda: one.report()["sent"] == 1)
    assert one.report()["refused"] == 2
    assert len(server.asked) == 3


def test_a_server_that_stands_still_holds_up_nobody_and_what_it_lost_is_counted(
    collector: Callable[..., Collector], upload: Callable[..., Upload]
) -> None:
    server = collector(200)
    server.gate.clear()
    one = upload(url=server.url, queue=5)
    for number in range(1, 51):
        one.keep(f"e-{number}", frame(number), "d", "1", UNSURE)  # would take hours if it waited
    assert one.report()["lost"] == 45
    assert one.report()["waiting"] == 5
    server.gate.set()
    wait(lambda: one.report()["sent"] == 5)
    assert [headers["Idempotency-Key"] for _, headers, _ in server.asked] == [f"e-{number}" for number in range(1, 6)]
    one.close(15.0)
    assert one.report()["waiting"] == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://127.0.0.1:1/", "http://" + "x" * 70 + ".invalid/"])
def test_a_server_that_is_not_there_is_a_problem_in_health_and_a_stop_ends_the_waiting(
    upload: Callable[..., Upload], url: str
) -> None:
    one = upload(url=url, queue=2)
    for number in (1, 2, 3):
        one.keep(f"e-{number}", frame(number), "d", "1", UNSURE)
    wait(lambda: one.report()["problem"] != "")
    one.close(15.0)
    report = one.report()
    assert (report["sent"], report["lost"], report["waiting"], report["bytes_today"]) == (0, 3, 0, 0)


def test_the_days_bytes_hold_over_a_restart_and_end_with_the_day(
    collector: Callable[..., Collector], upload: Callable[..., Upload], tmp_path: Path
) -> None:
    server = collector(200)
    first = upload(url=server.url, daily_bytes=500)
    for number in (1, 2, 3, 4):
        first.keep(f"e-{number}", frame(number), "d", "1", UNSURE)
    wait(lambda: first.report()["sent"] + first.report()["over_budget"] == 4)
    sent = first.report()["sent"]
    assert sent >= 1
    assert first.report()["over_budget"] == 4 - sent
    first.close(15.0)
    ledger = tmp_path / "samples.json"
    document = json.loads(ledger.read_text())
    assert document["bytes"] == sum(len(body) for _, _, body in server.asked) <= 500
    second = upload(url=server.url, daily_bytes=500)
    second.keep("f-1", frame(), "d", "1", UNSURE)
    wait(lambda: second.report()["over_budget"] == 1)
    second.close(15.0)
    ledger.write_text(json.dumps(document | {"day": document["day"] - 1}))
    third = upload(url=server.url, daily_bytes=500)
    third.keep("g-1", frame(), "d", "1", UNSURE)
    wait(lambda: third.report()["sent"] == 1)
    assert third.report()["bytes_today"] == len(server.asked[-1][2])


@pytest.mark.parametrize("damage", ["", "[]", '{"day": 1}', '{"day": "x", "bytes": 3}', '{"day": 1e999, "bytes": 3}'])
def test_a_damaged_ledger_is_an_empty_one(upload: Callable[..., Upload], tmp_path: Path, damage: str) -> None:
    (tmp_path / "samples.json").write_text(damage)
    assert upload(path=tmp_path).report()["bytes_today"] == 0


def test_a_directory_is_filled_up_to_its_bound_and_goes_on_once_it_is_emptied(
    upload: Callable[..., Upload], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    one = upload(path=target, daily_bytes=1000)
    one.keep("e-1", frame(), "d", "1.4.0", UNSURE)
    wait(lambda: "No such file" in one.report()["problem"])
    target.mkdir()
    wait(lambda: one.report()["sent"] == 1)
    assert json.loads((target / "e-1.json").read_text())["version"] == "1.4.0"
    with np.load(target / "e-1.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["input_0"], PIXELS)
    (target / "older.npz").write_bytes(bytes(1000))
    one.keep("e-2", frame(2), "d", "1.4.0", UNSURE)
    wait(lambda: "nobody has collected" in one.report()["problem"])
    (target / "older.npz").unlink()
    wait(lambda: one.report()["sent"] == 2)
    assert sorted(path.name for path in target.iterdir()) == ["e-1.json", "e-1.npz", "e-2.json", "e-2.npz"]


def settings(**samples: Any) -> Settings:
    return Settings.model_validate({"models": {"gate": {"samples": samples}}})


def test_the_settings_are_off_until_a_target_is_named() -> None:
    [off] = LoopOptions.from_settings(settings(below_confidence=0.9, share=1.0)).models
    assert off.samples is None
    [on] = LoopOptions.from_settings(settings(url="https://h.example.org/f", per_hour=7, daily_mb=3, queue=2)).models
    assert on.samples == SampleOptions(
        url="https://h.example.org/f", per_hour=7, daily_bytes=3 << 20, queue=2, below_confidence=0.6, share=0.0
    )


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ({"url": "http://h/f", "path": "/srv/x"}, "url or path, and not both"),
        ({"url": "http://h/f", "below_confidence": 0.0}, "something to send"),
        ({"url": "http://h:99999/f"}, "ort"),
        ({"url": "http://me:secret@h/f"}, "without user and password"),
        ({"url": "http://h/\u00e4"}, "pattern"),
        ({"url": "ftp://h/f"}, "pattern"),
    ],
)
def test_settings_that_cannot_be_are_refused(samples: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(**samples)


@pytest.mark.process
def test_the_whole_loop_sends_what_it_decides(tmp_path: Path, collector: Callable[..., Collector]) -> None:
    server = collector(200)
    with Rig(tmp_path) as rig:
        digest = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.link("current", digest)
        scans = rig.scans()[:40]
        rig.frames(scans)
        samples = {"url": server.url, "below_confidence": 0.0, "share": 1.0, "per_hour": ALL, "queue": 100}
        rig.start(fps=50.0, loop=False, samples=samples)
        rig.wait(lambda: rig.health().get("samples") and rig.health()["samples"]["sent"] == 40, 40.0)
        assert rig.stop() == 0
        rows = {row["id"]: row for row in rig.rows()}
    assert len(rows) == 40
    for _, headers, body in server.asked:
        row = rows.pop(headers["Modelagent-Result"])
        assert (headers["Modelagent-Digest"], headers["Modelagent-Prediction"]) == (digest, str(row["prediction"]))
        number = int(cast("str", row["frame"]).rpartition(":")[2])
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            assert np.array_equal(archive["input_0"], scans[number])
    assert rows == {}


@pytest.mark.process
@pytest.mark.parametrize("kind", ["dead", "hanging"])
def test_a_broken_target_costs_the_loop_no_frame(
    tmp_path: Path, collector: Callable[..., Collector], kind: str
) -> None:
    server = collector(200)
    server.gate.clear()
    url = server.url if kind == "hanging" else "http://127.0.0.1:1/"
    with Rig(tmp_path) as rig:
        rig.link("current", rig.slot("digits-1.0.0.tflite", confirmed=True))
        rig.frames(rig.scans())
        samples = {"url": url, "below_confidence": 0.0, "share": 1.0, "per_hour": ALL, "queue": 3}
        rig.start(fps=200.0, loop=False, queue=2000, samples=samples)
        rig.wait(lambda: rig.total("done") == 400, 40.0)
        rig.wait(lambda: rig.health()["samples"]["lost"] == 397, 10.0)
        assert (rig.health()["samples"]["sent"], rig.health()["samples"]["waiting"]) == (0, 3)
        assert rig.stop() == 0, "a request that hangs does not hold up the end"
        assert [row["outcome"] for row in rig.rows()] == ["ok"] * 400
        assert rig.log().count("samples: ") <= 1, "said once at most: a hanging one is known as such only later"
