"""Links that move under load: no frame lost, the newest wins, a slot that cannot be loaded changes nothing."""

import json
import sys
import time
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from line_rig import Rig

pytestmark = pytest.mark.process


def serves(rig: Rig, digest: str) -> bool:
    return rig.running() == digest


def has_done(rig: Rig, digest: str) -> bool:
    return int(rig.counts(digest).get("done", 0)) > 5


def started(rig: Rig, times: int) -> bool:
    return bool(rig.starts()["consecutive_starts_without_progress"] == times)


def test_a_swap_under_load_loses_no_frame(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        slots = [rig.slot(f"digits-{version}.tflite", confirmed=True) for version in ("1.0.0", "1.1.0")]
        rig.link("current", slots[0])
        rig.frames(rig.scans())
        rig.start(fps=200.0, queue=400)
        rig.wait(lambda: rig.running() == slots[0])
        for turn in range(1, 9):
            rig.link("current", slots[turn % 2])
            rig.wait(partial(serves, rig, slots[turn % 2]))
        assert rig.stop() == 0
        rows = rig.rows()
        numbers = [int(row["frame"].rpartition(":")[2]) for row in rows]
        assert numbers == list(range(len(rows))), "every frame once, in order"
        assert {row["outcome"] for row in rows[:-2]} == {"ok"}, "what waited at the stop is dropped, nothing else"
        assert rig.health()["source"]["received"] == len(rows)
        gaps = np.diff([row["wall"] for row in rows])
        print(f"8 swaps at 200 fps: longest gap between results {gaps.max() * 1000:.1f} ms")


def test_the_newest_link_wins_while_another_loads(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        a, b, c = (rig.slot(f"digits-{version}.tflite", confirmed=True) for version in ("1.0.0", "1.1.0", "1.3.0"))
        rig.link("current", a)
        rig.frames(rig.scans())
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == a)
        rig.link("current", b)
        rig.wait(lambda: (rig.health()["loading"] or {}).get("digest") == b or rig.running() == b)
        link = rig.link("current", c)
        rig.wait(lambda: rig.running() == c)
        assert link is not None
        assert rig.health()["link"] == {"inode": link.inode, "mtime_ns": link.mtime_ns}
        rig.wait(lambda: rig.health()["counters"].get(c, {}).get("done"))
        rig.stop()
        served = [digest for digest, _ in groupby(row["digest"] for row in rig.rows() if row["outcome"] == "ok")]
        assert served in ([a, c], [a, b, c])  # on a busy machine b may have been ready before the link moved on


def test_the_same_slot_under_a_new_link_needs_no_new_worker(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans())
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == only)
        worker = rig.worker()
        link = rig.link("current", only)
        assert link is not None
        rig.wait(lambda: rig.health()["link"]["inode"] == link.inode)
        assert rig.worker() == worker


def test_no_link_means_idle_with_the_reason_and_frames_wait(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.frames(rig.scans()[:20])
        rig.start(fps=200.0, loop=False, queue=64)
        rig.wait(lambda: rig.health().get("source", {}).get("queue") == 20)
        assert rig.running() is None
        assert rig.health()["idle"].startswith("no model yet")
        rig.link("current", only)
        rig.wait(lambda: rig.total("done") == 20)
        rig.link("current", None)
        rig.wait(lambda: rig.running() is None and not rig.children())
        assert rig.health()["link"] is None


def test_after_a_stop_health_says_stopped(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.0.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans())
        rig.start(fps=50.0)
        rig.wait(lambda: rig.running() == only)
        assert rig.stop() == 0
        assert (rig.health()["idle"], rig.health()["running"]) == ("stopped", None)


@pytest.mark.parametrize(
    ("model", "flip", "code"),
    [("digits-1.1.0.tflite", True, "hash"), ("hostile/crash_on_load.tflite", False, "crash")],
)
def test_a_slot_that_cannot_be_loaded_is_refused_and_the_old_worker_goes_on(
    tmp_path: Path, model: str, flip: bool, code: str
) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        bad = rig.slot(model, confirmed=False)
        if flip:
            _flip(rig, bad)
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == old)
        worker = rig.worker()
        rig.link("fallback", old)
        rig.link("current", bad)
        rig.wait(lambda: rig.health()["refused"] is not None)
        refused = rig.health()["refused"]
        assert (refused["digest"], refused["code"], refused["confirmed"]) == (bad, code, False)
        assert rig.health()["fell_back"] is None
        assert (rig.running(), rig.worker()) == (old, worker)
        done = rig.total("done")
        rig.wait(lambda: rig.total("done") > done + 20)
        rig.stop()
        assert {row["digest"] for row in rig.rows() if row["outcome"] == "ok"} == {old}


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_slot_that_cannot_be_loaded_at_the_start_gives_way_to_the_fallback(tmp_path: Path, confirmed: bool) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        bad = rig.slot("digits-1.1.0.tflite", confirmed=confirmed)
        _flip(rig, bad)
        rig.link("fallback", old)
        rig.link("current", bad)
        rig.frames(rig.scans())
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == old)
        health = rig.health()
        assert health["refused"] | {"reason": ""} == {
            "digest": bad,
            "code": "hash",
            "reason": "",
            "confirmed": confirmed,
        }
        left = health["fell_back"]
        assert (left["from"], left["to"], left["code"], left["confirmed"]) == (bad, old, "refused", confirmed)


def test_a_start_that_never_got_anywhere_is_left_at_the_fourth_time(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False)
        rig.link("fallback", old)
        rig.link("current", new)
        rig.frames(rig.scans())
        for turn in (1, 2, 3):  # killed while it loads, as a model does that takes the machine down
            rig.start(fps=100.0)
            rig.wait((rig.keep_dir / "starts.json").exists)
            rig.wait(partial(started, rig, turn))
            rig.kill()
        rig.start(fps=100.0)
        rig.wait(lambda: rig.running() == old)
        assert rig.health()["fell_back"]["code"] == "starts"
        assert rig.starts()["left"]["code"] == "starts"
        rig.link("current", new)  # activated anew: another link, so it gets its chances again
        rig.wait(lambda: rig.health()["fell_back"] is None)
        rig.wait(lambda: rig.health()["fell_back"] is not None or rig.running() == new)


def test_stops_and_idle_lines_are_no_failed_starts(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        new = rig.slot("digits-1.1.0.tflite", confirmed=False)
        rig.link("current", new)
        rig.frames(rig.scans())
        for _ in range(2):
            rig.start(fps=0.001)
            rig.wait(lambda: rig.running() == new)
            assert rig.stop() == 0
        rig.start(fps=100.0)
        rig.wait(lambda: rig.total("done") > 5)
        rig.wait(lambda: rig.starts()["consecutive_starts_without_progress"] == 0)


def test_two_models_swap_independently(tmp_path: Path) -> None:
    with Rig(tmp_path / "a", "one") as one, Rig(tmp_path / "b", "two") as two:
        slots = {}
        for rig in (one, two):
            slots[rig] = [rig.slot(f"digits-{version}.tflite", confirmed=True) for version in ("1.0.0", "1.1.0")]
            rig.link("current", slots[rig][0])
            rig.frames(rig.scans())
        one.start(two.options(fps=100.0), fps=100.0)
        two.process = one.process
        one.wait(lambda: one.running() == slots[one][0] and two.running() == slots[two][0])
        one.link("current", slots[one][1])
        one.wait(lambda: one.running() == slots[one][1])
        assert two.running() == slots[two][0]
        two.process = None


def test_two_models_that_change_at_once_are_loaded_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = tmp_path / "diary"
    monkeypatch.setenv("STANDIN_DIARY", str(diary))
    slow: dict[str, Any] = {"worker_argv": [sys.executable, str(Path(__file__).parent.parent / "standin_worker.py")]}
    with Rig(tmp_path / "a", "one") as one, Rig(tmp_path / "b", "two") as two:
        slots = {}
        for rig in (one, two):
            slots[rig] = [
                rig.slot("digits-1.0.0.tflite", confirmed=True, change={"version": f"{rig.name}-{turn}+load-1.0"})
                for turn in range(3)
            ]
            rig.link("current", slots[rig][0])
            rig.frames(rig.scans())
        one.start(two.options(fps=50.0, **slow), fps=50.0, **slow)
        two.process = one.process
        for turn in range(3):  # the first one with nothing that serves, the others beside what does
            for rig in (one, two):
                rig.link("current", slots[rig][turn])
            for rig in (one, two):
                rig.wait(partial(serves, rig, slots[rig][turn]), 60.0)
        for rig in (one, two):
            rig.wait(partial(has_done, rig, slots[rig][2]), 60.0)
        two.process = None
        assert one.stop() == 0
    loads = sorted(
        (float(begun), float(over), name) for name, begun, over in map(str.split, diary.read_text().splitlines())
    )
    assert {name for *_, name in loads} == {*slots[one], *slots[two]}
    assert [
        f"{name[:8]} began before the other was loaded"
        for (_, over, _), (begun, _, name) in pairwise(loads)
        if begun < over
    ] == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.frames(rig.scans())
        rig.start()
        rig.wait(rig.health)
        with Rig(tmp_path / "other") as other:
            other.frames(rig.scans())
            other.start(lock=rig.options()["lock"])
            process = other.process
            assert process is not None
            assert process.wait(10.0) != 0
            assert "another inference process runs" in other.log()


def test_the_camera_can_be_changed_while_it_runs(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        only = rig.slot("digits-1.1.0.tflite", confirmed=True)
        rig.link("current", only)
        rig.frames(rig.scans()[:100])
        rig.start(fps=100.0)
        rig.wait(lambda: rig.total("done") > 20)
        rig.frames(rig.scans()[100:200])
        rig.wait(lambda: any(line["frame"].startswith("camera.2:") for line in rig.lines()), 5.0)


def test_labels_are_joined_and_pairs_counted(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False)
        rig.link("current", old)
        rig.frames(rig.scans())
        rig.start(fps=100.0, shadow_share=1.0, shadow_ring=400)
        rig.wait(lambda: rig.running() == old)
        rig.link("fallback", old)
        rig.link("shadow", old)
        rig.link("current", new)
        rig.wait(lambda: rig.running() == new and (rig.health()["shadow"] or {}).get("frames", 0) > 5)
        truth = rig.truth()
        begun = rig.counts(new)["done"]
        rig.wait(lambda: rig.counts(new)["done"] > begun + 150)
        time.sleep(0.2)  # the sink writes ten times a second
        rows = [line for line in rig.lines() if line["digest"] == new][-120:]
        rig.label([{"id": row["id"], "label": truth[int(row["frame"].split(":")[1])]} for row in rows])
        rig.wait(lambda: sum(rig.counts(new)["labels"].values()) == 120)
        labels = rig.counts(new)["labels"]
        right = sum(row["prediction"] == truth[int(row["frame"].split(":")[1])] for row in rows)
        assert (labels["right"], labels["wrong"]) == (right, 120 - right)
        rig.wait(lambda: sum(rig.health()["shadow"][k] for k in PAIRS) == 120)
        shadow = rig.health()["shadow"]
        assert shadow["digest"] == old
        assert shadow["both_right"] + shadow["only_new"] == right
        assert shadow["agree"] <= shadow["frames"]
        rig.label([{"id": rows[0]["id"], "right": True}, {"id": "nonsense", "label": 1}, {"id": "dead-7", "label": 1}])
        rig.wait(lambda: sum(rig.counts(new)["labels"].values()) == 123)
        labels = rig.counts(new)["labels"]
        assert (labels["duplicate"], labels["unknown"], labels["late"]) == (1, 1, 1)
        print(json.dumps(shadow))
        rig.link("shadow", old)  # another link: the counts begin anew
        rig.wait(lambda: sum(rig.health()["shadow"][k] for k in PAIRS) == 0)


PAIRS = ("both_right", "only_new", "only_old", "both_wrong")


def _flip(rig: Rig, digest: str) -> None:
    path = rig.model_dir / "slots" / digest / "model.tflite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
