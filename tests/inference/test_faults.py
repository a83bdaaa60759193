"""Workers that die, hang or give NaN under a paced source: every frame ends once, and the right one is blamed."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from line_rig import GLARE, Frames, Rig
from modelagent.inference.counters import FAULTS

pytestmark = pytest.mark.process

QUEUE = 64  # frames that may wait: the default
ROOMY = 400  # more than come while a worker is replaced on a busy machine

RATES = [pytest.param(30.0, marks=pytest.mark.long), 200.0]  # the faster one asks more


def glare_at(count: int, *places: int) -> Frames:
    """`count` real scans, saturated at some places."""
    frames = np.resize(Rig.scans(), (count, 8, 8, 1))
    for place in places:
        frames[place] = GLARE
    return frames


def finish(rig: Rig, count: int, timeout: float = 30.0) -> list[dict[str, Any]]:
    """Wait until `count` frames have ended, stop, and check that each id is there exactly once."""
    rig.wait(lambda: rig.total() == count, timeout)
    assert rig.stop() == 0
    rows = rig.rows()
    assert len(rows) == count
    assert len({row["frame"] for row in rows}) == count
    assert sorted(row["frame"] for row in rows) == sorted(row["frame"] for row in rig.lines())
    return rows


def report(name: str, fps: float, rows: list[dict[str, Any]], queue: int = QUEUE) -> None:
    """Print what an interruption cost: the longest time between two results, and the frames dropped."""
    times = sorted(row["wall"] for row in rows if row["outcome"] == "ok")
    gap = max(b - a for a, b in itertools.pairwise(times))
    dropped = sum(row["outcome"] == "dropped" for row in rows)
    print(f"{name} at {fps:g} fps, queue {queue}: next result after {gap * 1000:.0f} ms, {dropped} dropped")


@pytest.mark.parametrize("fps", RATES)
def test_a_killed_worker_is_replaced_and_its_frame_run_again(tmp_path: Path, fps: float) -> None:
    count = int(fps * 2.5)
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(glare_at(count))
        rig.start(fps=fps, loop=False, queue=QUEUE)
        rig.wait(lambda: rig.total("done") >= fps * 0.5)
        first = rig.worker()
        os.kill(first, signal.SIGKILL)
        rig.wait(lambda: rig.running() == only and rig.worker() not in {0, first})
        rows = finish(rig, count)
        report("SIGKILL", fps, rows)
        dropped = sum(row["outcome"] == "dropped" for row in rows)
        assert {row["outcome"] for row in rows} <= {"ok", "dropped"}
        assert rig.health()["source"]["dropped"] == dropped
        assert fps > QUEUE or not dropped, "two seconds of frames fit the queue"
        assert rig.counts(only)["faults"]["crash"] == 1


@pytest.mark.parametrize("fps", RATES)
def test_a_stopped_worker_is_ended_and_what_does_not_fit_the_queue_is_counted(tmp_path: Path, fps: float) -> None:
    count = int(fps * 4)
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(glare_at(count))
        rig.start(fps=fps, loop=False, queue=QUEUE, hang_s=1.0)
        rig.wait(lambda: rig.total("done") >= fps * 0.5)
        first = rig.worker()
        os.kill(first, signal.SIGSTOP)
        rig.wait(lambda: rig.running() == only and rig.worker() not in {0, first})
        assert not Path(f"/proc/{first}").exists()
        rows = finish(rig, count)
        report("SIGSTOP, hang_s 1.0", fps, rows)
        dropped = sum(row["outcome"] == "dropped" for row in rows)
        assert {row["outcome"] for row in rows} <= {"ok", "dropped"}
        assert rig.counts(only)["faults"]["hang"] == 1
        assert rig.health()["source"]["dropped"] == dropped
        assert (dropped > 0) == (fps * 1.0 > QUEUE)


@pytest.mark.parametrize("fps", RATES)
def test_a_frame_that_kills_a_confirmed_model_twice_is_faulted_and_costs_nobody_else(
    tmp_path: Path, fps: float
) -> None:
    count = int(fps * 5)
    bad = count * 4 // 5  # late enough for a model that loads on a busy machine: what comes before is dropped
    with Rig(tmp_path) as rig:
        only = rig.slot("hostile/crash_on_input.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(glare_at(count, bad))
        rig.start(fps=fps, loop=False, queue=QUEUE)
        rows = finish(rig, count)
        report("model crashes twice", fps, rows)
        faulted = [row for row in rows if row["outcome"] != "ok"]
        assert [(row["outcome"], row["frame"].split(":")[1]) for row in faulted if row["outcome"] != "dropped"] == [
            ("faulted", str(bad))
        ]
        assert rig.counts(only)["faults"] == dict.fromkeys(FAULTS, 0)
        assert rig.counts(only)["faulted"] == 1
        assert rig.health()["fell_back"] is None


@pytest.mark.parametrize(
    ("model", "code"),
    [("crash_on_input", "crash"), ("hang_on_input", "hang"), ("nan_on_input", "not-finite")],
)
@pytest.mark.parametrize("warm", [True, False])
def test_an_unconfirmed_model_that_fails_is_left_for_the_fallback(
    tmp_path: Path, model: str, code: str, warm: bool
) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.1.0.tflite", confirmed=True)
        new = rig.slot(f"hostile/{model}.tflite", confirmed=False)
        rig.link("fallback", old)
        rig.link("current", old if warm else new)
        rig.frames(rig.scans())
        rig.start(fps=100.0, queue=ROOMY, hang_s=1.0)
        if warm:  # the usual way: the old worker stays ready behind the new one
            rig.wait(lambda: rig.total("done") > 20)
            rig.link("current", new)
        link = (rig.model_dir / "current").lstat()
        rig.wait(lambda: rig.running() == new)
        rig.frames(glare_at(400, 20))  # the sun comes out
        rig.wait(lambda: rig.health()["fell_back"] is not None)
        assert rig.health()["fell_back"] | {"reason": ""} == {
            "from": new,
            "to": old,
            "reason": "",
            "code": code,
            "confirmed": False,
        }
        assert rig.health()["running"]["digest"] == old
        assert rig.health()["link"] == {"inode": link.st_ino, "mtime_ns": link.st_mtime_ns}
        left = rig.starts()["left"]
        assert (left["digest"], left["code"], left["link"]) == (new, code, rig.health()["link"])
        done = rig.counts(old)["done"]
        rig.wait(lambda: rig.counts(old)["done"] > done + 20)
        assert rig.stop() == 0
        rows = rig.rows()
        assert len({row["frame"] for row in rows}) == len(rows) == rig.health()["source"]["received"]
        report(f"{code}, fallback {'warm' if warm else 'cold'}", 100.0, rows, ROOMY)
        assert {row["outcome"] for row in rows[:-20]} == {"ok"}, "what waited at the stop is dropped, nothing else"
        again = next(row for row in rows if row["frame"].startswith("camera.2:20:"))
        assert (again["outcome"], again["digest"]) == ("ok", old)
        assert rig.counts(new)["faults"][code] == 1
        assert sum(rig.counts(old)["faults"].values()) == 0

        rig.start(fps=100.0, queue=ROOMY)  # the link is still the same: it is not tried again
        rig.wait(lambda: rig.running() is not None)
        assert rig.running() == old
        assert rig.health()["fell_back"]["code"] == code
        rig.wait(lambda: rig.total("done") > 20)
        assert not rig.counts(new)
        rig.link("current", old)  # the updater reverts: the same worker goes on, under a new link
        rig.wait(lambda: rig.health()["fell_back"] is None)
        assert rig.running() == old


@pytest.mark.parametrize("model", ["crash_on_input", "nan_on_input"])
def test_a_frame_that_fails_on_both_blames_neither(tmp_path: Path, model: str) -> None:
    count, bad = 300, 100
    with Rig(tmp_path) as rig:
        old = rig.slot(f"hostile/{model}.tflite", confirmed=True, change={"version": "old"})
        new = rig.slot(f"hostile/{model}.tflite", confirmed=False, change={"version": "new"})
        rig.link("fallback", old)
        rig.link("current", new)
        rig.frames(glare_at(count, bad))
        rig.start(fps=100.0, loop=False, queue=ROOMY)
        rows = finish(rig, count)
        [faulted] = [row for row in rows if row["outcome"] == "faulted"]
        assert f":{bad}:" in faulted["frame"]
        assert rig.health()["fell_back"] is None
        assert rig.starts()["left"] is None
        assert rows[-1]["digest"] == new, "the candidate goes on"
        assert {row["outcome"] for row in rows if row is not faulted} == {"ok"}
        for digest in (old, new):
            assert sum(rig.counts(digest).get("faults", {}).values()) == 0


def test_nan_from_a_confirmed_model_costs_the_frame_alone(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("hostile/nan_on_input.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(glare_at(200, 50, 51, 120))
        rig.start(fps=100.0, loop=False, queue=ROOMY)
        rig.wait(lambda: rig.running() == only)
        worker = rig.worker()
        rows = finish(rig, 200)
        assert [row["outcome"] for row in rows].count("faulted") == 3
        assert rig.counts(only)["faulted"] == 3
        assert rig.health()["running"] is None or rig.health()["running"]["worker_pid"] == worker


def test_frames_that_do_not_fit_are_refused_and_counted(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(np.zeros((40, 9, 9, 1), np.float32))
        rig.start(fps=100.0, loop=False, queue=ROOMY)
        rows = finish(rig, 40)
        assert {row["outcome"] for row in rows} == {"refused"}
        assert rig.counts(only)["refused"] == 40
        assert sum(rig.counts(only)["faults"].values()) == 0


def test_no_worker_outlives_a_killed_loop(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False)
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == old)
        rig.link("fallback", old)
        rig.link("shadow", old)
        rig.link("current", new)
        rig.wait(lambda: rig.running() == new and len(rig.children()) == 3)  # serving, standby, shadow
        children = rig.children()
        rig.kill()
        rig.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 5.0)


def test_sigterm_ends_everything_even_a_hung_worker(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("hostile/hang_on_input.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(glare_at(400, 30))
        rig.start(fps=100.0, hang_s=60.0)
        rig.wait(lambda: rig.total("done") >= 30)
        children = rig.children()
        assert rig.stop(timeout=5.0) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)


STANDIN = (sys.executable, str(Path(__file__).parents[1] / "standin_worker.py"))


def test_a_runtime_that_stumbles_is_asked_again_and_only_counted(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False, change={"version": "2+trip-20"})
        rig.link("fallback", old)
        rig.link("current", new)
        rig.frames(rig.scans())
        rig.start(fps=100.0, loop=False, queue=ROOMY, worker_argv=STANDIN)
        rows = finish(rig, 400, 60.0)
        assert {row["outcome"] for row in rows} == {"ok"}
        assert {row["digest"] for row in rows} == {new}, "one worker did it all"
        counts = rig.counts(new)
        # Each 20th that the worker is given fails, and counts as one that it was given when it comes again.
        assert counts["faults"]["recovered"] == sum(1 for number in range(1, 422) if number % 20 == 0)
        assert 1 <= counts["unsteady_s"] <= counts["busy_s"]
        assert counts["faults"]["crash"] == 0
        assert rig.health()["fell_back"] is None


def test_a_runtime_that_fails_twice_on_a_frame_is_left(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False, change={"version": "2+trip-1"})
        rig.link("fallback", old)
        rig.link("current", new)
        rig.frames(rig.scans()[:50])
        rig.start(fps=100.0, loop=False, queue=ROOMY, worker_argv=STANDIN)
        rows = finish(rig, 50, 60.0)
        assert {(row["outcome"], row["digest"]) for row in rows} == {("ok", old)}
        assert rig.health()["fell_back"]["code"] == "crash"
        assert "the runtime failed on frame" in rig.health()["fell_back"]["reason"]
        assert rig.counts(new)["faults"]["recovered"] == 0
