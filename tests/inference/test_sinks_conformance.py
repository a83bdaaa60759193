"""What every result sink keeps, whatever it writes to."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_rig import free_port
from modelagent.inference.results import Outlet, ResultSink, Row
from modelagent.inference.results.courier import Courier
from modelagent.inference.results.jsonl import JsonlSink
from modelagent.inference.results.mqtt import MqttSink
from modelagent.inference.results.sqlite import SqliteSink
from modelagent.inputs.schema import Mqtt

Made = tuple[ResultSink, Callable[[], None]]


def sqlite(path: Path) -> Made:
    return SqliteSink(path / "r.db", max_bytes=1 << 20), lambda: None


def jsonl(path: Path) -> Made:
    return JsonlSink(path / "r.jsonl", max_bytes=1 << 20), lambda: None


def mqtt(path: Path) -> Made:
    courier = Courier(Mqtt(host="127.0.0.1", port=free_port()), "c", path / "outbox", most=10_000)
    return MqttSink(courier, "t/x"), lambda: courier.close(0.5)


@pytest.fixture(params=[sqlite, jsonl, mqtt], ids=lambda one: str(one.__name__))
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultSink]:
    made, close = request.param(tmp_path)
    yield made
    made.close()
    close()


def rows(count: int) -> list[Row]:
    detail = {"boxes": [{"class": 1, "label": "ä", "score": 0.5, "box": [0.0, 0.0, 1.0, 1.0]}]}
    return [
        Row(f"e-{n}", f"f-{n}", 1.0, "m", "d", "1", None if n % 2 else n, "", None, 3.0, "ok", detail)
        for n in range(count)
    ]


def test_it_has_a_name_and_takes_rows_of_every_kind(sink: ResultSink) -> None:
    assert sink.name
    sink.write(rows(3))
    sink.write([Row("e-x", "f", 1.0, "m", "", "", None, "", None, None, "dropped")])
    sink.write([])


def test_it_may_be_closed_and_opened_again(sink: ResultSink) -> None:
    sink.write(rows(1))
    sink.close()
    sink.close()
    sink.write(rows(2))


def test_behind_an_outlet_it_writes_everything_and_stops_in_time(sink: ResultSink) -> None:
    outlet = Outlet(sink)
    for row in rows(2000):
        outlet.put(row)
    outlet.close(10.0)
    assert (outlet.written, outlet.lost) == (2000, 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sink-")]


def test_putting_never_waits(sink: ResultSink) -> None:
    outlet = Outlet(sink, capacity=100)
    longest = 0.0
    for row in rows(500):
        begun = time.perf_counter()
        outlet.put(row)
        longest = max(longest, time.perf_counter() - begun)
    outlet.close(10.0)
    assert longest < 0.25
    assert outlet.written + outlet.lost == 500
