"""p95 of the last minute or two."""

from typing import Any

import pytest

from modelagent.inputs.latency import RecentLatency

BOUNDS = [1000.0, 10_000.0, 100_000.0]


def record(*counts: int, digest: str = "d", epoch: str = "e") -> dict[str, Any]:
    latency = {"bounds": BOUNDS, "counts": list(counts)}
    return {"epoch": epoch, "running": {"digest": digest}, "counters": {digest: {"latency_us": latency}}}


def test_only_what_was_counted_lately() -> None:
    recent = RecentLatency()
    assert recent.p95_ms(record(1000, 0, 0, 0), 0.0) is None, "the past is not lately"
    assert recent.p95_ms(record(1010, 0, 0, 0), 2.0) is None, "too few"
    assert recent.p95_ms(record(1100, 0, 0, 0), 30.0) == 1.0
    assert recent.p95_ms(record(1100, 100, 0, 0), 61.0) == 10.0
    assert recent.p95_ms(record(1100, 200, 0, 0), 125.0) == 10.0
    assert recent.p95_ms(record(1200, 210, 0, 0), 190.0) == 10.0, "ten slow ones among 110"
    assert recent.p95_ms(record(9100, 210, 0, 0), 255.0) == 1.0
    assert recent.p95_ms(record(9100, 210, 0, 99), 260.0) == 1.0
    assert recent.p95_ms(record(9100, 210, 0, 9999), 270.0) == float("inf")


def test_another_version_or_start_begins_anew() -> None:
    recent = RecentLatency()
    recent.p95_ms(record(0, 0, 0, 0), 0.0)
    assert recent.p95_ms(record(100, 0, 0, 0), 5.0) == 1.0
    assert recent.p95_ms(record(500, 0, 0, 0, epoch="f"), 6.0) is None
    assert recent.p95_ms(record(600, 0, 0, 0, epoch="f"), 7.0) == 1.0
    assert recent.p95_ms(record(900, 0, 0, 0, digest="x", epoch="f"), 8.0) is None


@pytest.mark.parametrize(
    "document", [None, {}, {"running": None}, {"epoch": "e", "running": {"digest": "d"}, "counters": {"d": {}}}]
)
def test_what_says_nothing(document: dict[str, Any] | None) -> None:
    recent = RecentLatency()
    recent.p95_ms(record(0, 0, 0, 0), 0.0)
    assert recent.p95_ms(document, 1.0) is None
    odd = record(0, 0, 0, 0)
    odd["counters"]["d"]["latency_us"]["counts"] = [1]
    assert recent.p95_ms(odd, 2.0) is None


@pytest.mark.parametrize("count", [10**400, -1, 2**53])
def test_a_count_without_measure_says_nothing(count: int) -> None:
    recent = RecentLatency()
    recent.p95_ms(record(0, 0, 0, 0), 0.0)
    assert recent.p95_ms(record(count, 0, 0, 0), 1.0) is None
