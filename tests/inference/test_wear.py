"""Workers that leak or slow down are replaced; swaps look at memory first; where and how a worker runs."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from digit_slots import write_slot
from line_rig import Rig
from modelagent.inference import budget
from modelagent.inference.budget import available_kb, expected_kb, shortage
from modelagent.inference.links import Slot
from modelagent.inference.wear import Wear

STANDIN = [sys.executable, str(Path(__file__).parents[1] / "standin_worker.py")]


def aged(**more: float) -> Wear:
    wear = Wear(**{"limit_mb": 60.0, "latency_ms": 10.0, **more})
    assert wear.look(rss_kb=50_000, invoke_us=1000.0, frames=99) == ""
    assert wear.look(rss_kb=50_000, invoke_us=1000.0, frames=100) == ""
    return wear


def test_a_worker_that_grows_beyond_its_promise_and_its_youth_leaks() -> None:
    wear = aged()
    assert wear.look(rss_kb=61_000, invoke_us=1000.0, frames=200) == "", "not a quarter more than it was"
    assert wear.look(rss_kb=63_000, invoke_us=1000.0, frames=300) == "leak"
    assert "61 MB, 48 MB when it was young, promised are 60 MB" in wear.reason
    assert aged(limit_mb=100.0).look(rss_kb=90_000, invoke_us=1000.0, frames=300) == "", "promised"


def test_one_that_was_always_large_is_left_alone() -> None:
    wear = Wear(limit_mb=60.0, latency_ms=10.0)
    for frames in (100, 200, 300):
        assert wear.look(rss_kb=90_000, invoke_us=99_000.0, frames=frames) == ""


def test_slow_must_last() -> None:
    wear = aged()
    for _ in range(4):
        assert wear.look(rss_kb=50_000, invoke_us=20_000.0, frames=200) == ""
    assert wear.look(rss_kb=50_000, invoke_us=2_000.0, frames=200) == ""
    found = [wear.look(rss_kb=50_000, invoke_us=20_000.0, frames=200) for _ in range(5)]
    assert found == ["", "", "", "", "slow"]
    slower_but_promised = aged(latency_ms=30.0)
    assert [slower_but_promised.look(rss_kb=1, invoke_us=20_000.0, frames=200) for _ in range(6)] == [""] * 6


def slot_of(path: Path, **change: Any) -> Slot:
    manifest = write_slot(path, "digits-1.1.0.tflite", change=change)
    return Slot(path, manifest.digest, manifest, SimpleNamespace())  # type: ignore[arg-type]


def test_what_is_available_is_the_devices_and_the_control_groups() -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   900000 kB\n",
        "/proc/self/cgroup": "0::/system.slice/modelagent.service\n",
        "/sys/fs/cgroup/system.slice/modelagent.service/memory.max": "max\n",
        "/sys/fs/cgroup/system.slice/memory.max": f"{500 << 20}\n",
        "/sys/fs/cgroup/system.slice/memory.current": f"{450 << 20}\n",
        "/sys/fs/cgroup/system.slice/memory.stat": f"anon 1\ninactive_file {30 << 20}\n",
    }

    def read(path: Path) -> str:
        try:
            return files[str(path)]
        except KeyError as error:
            raise FileNotFoundError(path) from error

    assert available_kb(read) == 80 * 1024
    del files["/sys/fs/cgroup/system.slice/memory.max"]
    assert available_kb(read) == 900_000
    files.clear()
    assert available_kb(read) is None


def test_what_a_worker_will_take_is_measured_or_estimated_and_never_more_than_promised(tmp_path: Path) -> None:
    slot = slot_of(tmp_path / "a", **{"limits.memory_mb": 200.0})
    length = slot.manifest.model_file.length
    assert expected_kb(slot, None) == 45 * 1024 + 3 * length // 1024
    present: Any = SimpleNamespace(slot=slot, child=SimpleNamespace(resident_kb=lambda: 60_000))
    assert expected_kb(slot, present) == 60_000
    larger = replace(slot.manifest.files[0], length=length + (100 << 20))
    big = Slot(tmp_path, "d", replace(slot.manifest, files=(larger,)), slot.layout)
    assert expected_kb(big, present) == 200 * 1024
    (slot.path / "measured.json").write_text('{"schema": 1, "peak_kb": 77000}')
    assert expected_kb(slot, present) == 77_000
    for broken in (
        '{"schema": 1, "peak_kb": "much"}',
        '{"schema": 2, "peak_kb": 7}',
        '{"schema": 1, "peak',
        "[" * 9999,
    ):
        (slot.path / "measured.json").write_text(broken)
        assert expected_kb(slot, present) == 60_000, broken[:40]


def test_without_anybody_saying_what_is_there_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = slot_of(tmp_path / "a")
    monkeypatch.setattr(budget, "available_kb", lambda: None)
    assert shortage(slot, None, reserve_kb=1) is None
    monkeypatch.setattr(budget, "available_kb", lambda: 50_000)
    assert shortage(slot, None, reserve_kb=40_000) == (50_000, expected_kb(slot, None) + 40_000)


def standin(rig: Rig, version: str, *, confirmed: bool = True, **change: Any) -> str:
    return rig.slot("digits-1.1.0.tflite", confirmed=confirmed, change={"version": version, **change})


@pytest.mark.process
@pytest.mark.parametrize(("version", "code"), [("leak-600", "leak"), ("slow-150", "slow")])
def test_a_confirmed_version_that_wears_out_gets_a_fresh_worker_and_no_frame_is_lost(
    tmp_path: Path, version: str, code: str
) -> None:
    with Rig(tmp_path) as rig:
        change: dict[str, Any] = {"limits.memory_mb": 60.0, "limits.latency_ms": 5.0}
        only = standin(rig, version, **change)
        rig.link("current", only)
        rig.frames(rig.scans())
        rig.start(fps=100.0, worker_argv=STANDIN, queue=2000)
        rig.wait(lambda: rig.running() == only)
        first = rig.worker()
        rig.wait(lambda: rig.running() == only and rig.worker() not in {0, first}, 40.0)
        rig.wait(lambda: not Path(f"/proc/{first}").exists())
        assert rig.counts(only)["faults"][code] >= 1
        assert rig.health()["fell_back"] is None
        assert rig.stop() == 0
        rows = rig.rows()
        assert {row["outcome"] for row in rows} <= {"ok", "dropped"}
        assert len({row["frame"] for row in rows}) == len(rows)


@pytest.mark.process
def test_an_unconfirmed_version_that_leaks_is_left_for_the_fallback(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = standin(rig, "old")
        new = standin(rig, "leak-600", confirmed=False, **{"limits.memory_mb": 60.0})
        rig.link("fallback", old)
        rig.link("current", new)
        rig.frames(rig.scans())
        rig.start(fps=100.0, worker_argv=STANDIN, queue=2000)
        rig.wait(lambda: rig.running() == old, 40.0)
        left = rig.health()["fell_back"]
        assert (left["from"], left["code"]) == (new, "leak")
        rig.wait(lambda: rig.health()["swaps"]["count"] == 1)
        last = rig.health()["swaps"]["last"]
        assert (last["to"], last["how"], last["without_s"]) == (old, "beside", 0.0)


@pytest.mark.process
@pytest.mark.parametrize("room", [True, False])
def test_without_memory_for_both_the_old_version_stops_first_and_the_gap_is_told(tmp_path: Path, room: bool) -> None:
    with Rig(tmp_path) as rig:
        old, new = standin(rig, "old"), standin(rig, "load-0.5")
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=100.0, worker_argv=STANDIN, queue=2000, memory_reserve_kb=0 if room else 1 << 40)
        rig.wait(lambda: rig.total("done") > 20)
        rig.link("current", new)
        rig.wait(lambda: rig.running() == new)
        rig.wait(lambda: rig.health()["swaps"]["count"] == 1)
        last = rig.health()["swaps"]["last"]
        assert (last["from"], last["to"], last["overlap"]) == (old, new, room)
        assert (last["gap_s"] > 0.5) is not room
        assert (last["how"], last["without_s"] > 0.5) == ("beside" if room else "memory", not room)
        assert room or last["needed_kb"] > last["available_kb"] > 0
        assert rig.total("dropped") == 0
        assert rig.stop() == 0


@pytest.mark.process
def test_a_worker_runs_where_and_how_its_settings_say(tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans())
        rig.start(fps=100.0, cpus=[cpu], nice=7, threads=2)
        rig.wait(lambda: rig.running() == only and rig.total("done") > 5)
        for task in Path(f"/proc/{rig.worker()}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {cpu}
            assert os.getpriority(os.PRIO_PROCESS, int(task.name)) == 7
        health = rig.health()
        assert health["worker"]["delegate"] == "cpu"
        assert health["worker"]["rss_kb"] > 10_000
        assert health["versions"] == {only: "1.1.0"}
        assert rig.stop() == 0
