"""Loads that are slow, hang or are overtaken, time bombs, priorities: with a stand-in where no real model does it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from line_rig import Rig

pytestmark = pytest.mark.process

STAND_IN = [sys.executable, str(Path(__file__).parent.parent / "standin_worker.py")]


def slot(rig: Rig, version: str, *, confirmed: bool = True) -> str:
    return rig.slot("digits-1.0.0.tflite", confirmed=confirmed, change={"version": version})


def ready(rig: Rig, digest: str, *, fps: float = 100.0, **more: Any) -> None:
    rig.link("current", digest)
    rig.frames(rig.scans())
    rig.start(fps=fps, worker_argv=STAND_IN, **more)
    rig.wait(lambda: rig.running() == digest)


def test_a_link_that_moves_during_a_slow_load_kills_that_load(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        a, slow, c = slot(rig, "a"), slot(rig, "load-30", confirmed=False), slot(rig, "c")
        ready(rig, a)
        rig.link("current", slow)
        rig.wait(lambda: (rig.health()["loading"] or {}).get("digest") == slow)
        loading = [pid for pid in rig.children() if pid != rig.worker()]
        rig.link("current", c)
        assert rig.wait(lambda: rig.running() == c) < 5.0
        rig.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in loading))
        assert rig.starts()["consecutive_starts_without_progress"] == 0, "a load that was overtaken proves nothing"


def test_a_dead_worker_goes_before_another_models_slow_load(tmp_path: Path) -> None:
    with Rig(tmp_path / "a", "one") as one, Rig(tmp_path / "b", "two") as two:
        first, slow, second = slot(one, "a"), slot(one, "load-2"), slot(two, "b")
        two.link("current", second)
        two.frames(two.scans())
        one.link("current", first)
        one.frames(one.scans())
        one.start(two.options(fps=100.0, worker_argv=STAND_IN), fps=100.0, worker_argv=STAND_IN)
        two.process = one.process
        one.wait(lambda: one.running() == first and two.running() == second)
        one.link("current", slow)
        one.wait(lambda: (one.health()["loading"] or {}).get("digest") == slow)
        worker = two.worker()
        os.kill(worker, signal.SIGKILL)
        assert two.wait(lambda: two.running() == second and two.worker() != worker) < 1.5
        one.wait(lambda: one.running() == slow, 10.0)  # put off, not forgotten
        two.process = None


@pytest.mark.parametrize(("version", "code"), [("load-hang", "hang"), ("load-die", "crash")])
def test_a_load_that_hangs_or_dies_is_refused(tmp_path: Path, version: str, code: str) -> None:
    with Rig(tmp_path) as rig:
        a = slot(rig, "a")
        bad = rig.slot("digits-1.0.0.tflite", confirmed=False, change={"version": version, "limits.load_s": 0.1})
        ready(rig, a, load_timeout=0.5 if code == "hang" else 20.0)
        rig.link("fallback", a)
        rig.link("current", bad)
        rig.wait(lambda: rig.health()["refused"] is not None)
        assert rig.health()["refused"]["code"] == code
        assert rig.running() == a
        assert rig.wait(lambda: len(rig.children()) == 1) < 5.0


def test_a_load_that_may_take_longer_by_its_release_is_told_so(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        a = slot(rig, "a")
        bad = rig.slot("digits-1.0.0.tflite", confirmed=False, change={"version": "load-hang", "limits.load_s": 0.75})
        ready(rig, a, load_timeout=0.5)
        rig.link("fallback", a)
        rig.link("current", bad)
        rig.wait(lambda: rig.health()["refused"] is not None)
        assert rig.health()["refused"]["reason"] == "not loaded within 0.75 s"


@pytest.mark.parametrize(("version", "code"), [("bomb-50", "hang"), ("nan-50", "not-finite")])
def test_a_time_bomb_ends_in_the_fallback(tmp_path: Path, version: str, code: str) -> None:
    with Rig(tmp_path) as rig:
        a, bomb = slot(rig, "a"), slot(rig, version, confirmed=False)
        ready(rig, a, hang_s=0.3)
        rig.link("fallback", a)
        rig.link("current", bomb)
        rig.wait(lambda: rig.health()["fell_back"] is not None)
        assert rig.health()["fell_back"]["code"] == code
        rig.wait(lambda: rig.running() == a)
        assert rig.counts(bomb)["faults"][code] == 1
        assert rig.total("faulted") == 0


def test_a_confirmed_model_that_dies_again_and_again_is_restarted_more_and_more_slowly(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        bad = slot(rig, "die-3")
        ready(rig, bad, overflow="block", queue=4)
        rig.wait(lambda: len(rig.lines()) >= 12, 30.0)
        times = [line["wall"] for line in rig.lines()]
        # The third frame kills each worker and is the first of the next one: two results, a restart, two results.
        waits = [times[place] - times[place - 1] for place in range(2, 12, 2)]
        print("restarts after", ", ".join(f"{wait * 1000:.0f} ms" for wait in waits))
        assert waits[4] > waits[0] + 0.3, waits
        assert rig.health()["source"]["dropped"] == 0, "the source waits"
        assert rig.counts(bad)["faults"]["crash"] >= 4
        assert rig.counts(bad)["faulted"] == 0, "each frame had its result from the next worker"
        assert rig.stop() == 0


def test_the_way_back_stays_warm_until_the_slot_is_confirmed(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        a, b = slot(rig, "a"), slot(rig, "b", confirmed=False)
        ready(rig, a)
        before = rig.worker()
        rig.link("fallback", a)
        rig.link("current", b)
        rig.wait(lambda: rig.running() == b)
        assert len(rig.children()) == 2
        rig.link("current", a)  # reverted by the updater: the same worker, at once
        rig.wait(lambda: rig.running() == a)
        assert rig.worker() == before
        rig.link("current", b)
        rig.wait(lambda: rig.running() == b)
        (rig.model_dir / "slots" / b / "confirmed").touch()
        rig.wait(lambda: rig.children() == [rig.worker()])


def test_a_worker_that_dies_without_a_frame_is_noticed(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        a, b = slot(rig, "a"), slot(rig, "b", confirmed=False)
        ready(rig, a, fps=0.001)
        rig.link("fallback", a)
        rig.link("current", b)
        rig.wait(lambda: rig.running() == b)
        os.kill(rig.worker(), signal.SIGKILL)
        rig.wait(lambda: rig.running() == a, 2.0)
        assert rig.health()["fell_back"]["code"] == "crash"
        worker = rig.worker()
        os.kill(worker, signal.SIGKILL)
        rig.wait(lambda: rig.running() == a and rig.worker() != worker, 2.0)
        assert rig.counts(a)["faults"]["crash"] == 1


def test_a_shadow_that_dies_or_stands_still_costs_the_line_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old, new = slot(rig, "old"), slot(rig, "new")
        rig.link("shadow", old)
        ready(rig, new, shadow_share=1.0, hang_s=0.5)
        rig.wait(lambda: (rig.health()["shadow"] or {}).get("frames", 0) > 10)
        [shadow] = [pid for pid in rig.children() if pid != rig.worker()]
        priority = (Path("/proc") / str(shadow) / "stat").read_text().rpartition(")")[2].split()[16]
        assert priority == "19"
        dropped = rig.total("dropped")  # at the start, on a busy machine
        os.kill(shadow, signal.SIGSTOP)
        begun, done = time.monotonic(), rig.total("done")
        rig.wait(lambda: [pid for pid in rig.children() if pid not in (rig.worker(), shadow)])
        served = rig.total("done") - done
        assert served > (time.monotonic() - begun - 1.0) * 80
        frames = rig.health()["shadow"]["frames"]
        rig.wait(lambda: rig.health()["shadow"]["frames"] > frames)
        assert rig.total("dropped") == dropped


WITHOUT_RIGHT = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice", "--"]


@pytest.mark.parametrize("limit", [0, 20])
def test_the_serving_worker_has_normal_priority_also_without_the_right_to_raise_it(tmp_path: Path, limit: int) -> None:
    """With RLIMIT_NICE (as the unit sets it) it loads at the lowest and comes back, without it loads at normal."""
    wrapper = [*(["prlimit", f"--nice={limit}"] if limit else []), *WITHOUT_RIGHT]
    if shutil.which("setpriv") is None or subprocess.run([*wrapper, "true"], check=False).returncode:
        pytest.skip("raising RLIMIT_NICE needs CAP_SYS_RESOURCE and dropping a capability CAP_SETPCAP: not given here")
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans())
        rig.start(fps=100.0, wrapper=wrapper, threads=2)
        rig.wait(lambda: rig.running() == only and rig.total("done") > 10)
        tasks = list(Path(f"/proc/{rig.worker()}/task").iterdir())
        priorities = {(task / "stat").read_text().rpartition(")")[2].split()[16] for task in tasks}
        # Without the right nobody can leave the niceness that these tests were started with.
        assert priorities == {"0" if limit else str(os.getpriority(os.PRIO_PROCESS, 0))}
        assert rig.stop() == 0
