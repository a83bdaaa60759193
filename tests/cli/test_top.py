"""`modelagent top`: one picture from two looks."""

from typing import Any

from rich.console import Console

from modelagent.cli.top import picture
from modelagent.metrics.reading import ModelView, View


def view(done: int, mono: float, **more: Any) -> View:
    counts = {"done": done, "faults": {"crash": 1}, "latency_us": {"bounds": [100, 2000], "counts": [90, 10, 0]}}
    health = {
        "epoch": "e",
        "mono": mono,
        "running": {"digest": "d", "version": "1.4.0"},
        "counters": {"d": counts},
        "source": {"queue": 2, "capacity": 64, "dropped": 3},
        "worker": {"rss_kb": 51_200},
        **more,
    }
    state = {"phase": "resting", "waiting": "on hold by cli"}
    return View("box-17", "", {}, {"digits": ModelView(health, 0.1, "", state, {})})


def shown(before: View, now: View) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    console.print(picture(before, now, 1.0))
    console.file.close()
    return console.export_text()


def test_rates_come_from_the_records_own_clock() -> None:
    text = shown(view(100, 10.0), view(160, 12.0))
    for part in ("box-17", "digits", "1.4.0", "resting", "30.0", "≤100 us", "≤2 ms", "2/64", "50 MB", "on hold by cli"):
        assert part in text, part


def test_a_restart_or_silence_has_no_rate_and_says_why() -> None:
    text = shown(view(100, 10.0), view(5, 12.0, epoch="f"))
    assert "-" in text
    quiet = View("box-17", "it does not answer", {}, {"digits": ModelView(None, None, "no health file", {}, {})})
    text = shown(quiet, quiet)
    assert "updater: it does not answer" in text
    assert "digits: no health file" in text
