"""The shadow's pairs: answers outlive frames and shadow, times are compared, frames are thinned by time."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from line_rig import Rig
from modelagent.durable import LinkId
from modelagent.inference.archive import Archive, Pair
from modelagent.inference.shadow import Shadow

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
FRAME = (np.zeros(1),)
LINK, LATER = LinkId(5, 5), LinkId(6, 6)
PAIRS = ("both_right", "only_new", "only_old", "both_wrong")


@pytest.fixture
def shadow() -> Shadow:
    made = Shadow(share=1.0, ring=3, died=lambda _: None)
    made.arm("key", OLD, NEW)
    return made


def run(shadow: Shadow, old: int, us: float = 10.0) -> None:
    """The shadow's worker answers the next frame."""
    kept = shadow._next()
    assert kept is not None
    kept.ran = True
    shadow._take(kept, old, us)


def pairs(shadow: Shadow, running: str | None = NEW) -> tuple[int, ...]:
    report = shadow.report(running)
    assert report is not None
    return tuple(report[name] for name in PAIRS)


def test_a_label_makes_a_pair_long_after_the_frame_is_gone(shadow: Shadow) -> None:
    for number in range(20):
        shadow.keep(str(number), NEW, FRAME, 3)
        run(shadow, 5)
    assert not shadow._kept, "no frame is held for a label"
    for number in range(20):
        shadow.label(str(number), 5 if number < 15 else 3, None)
        shadow.label(str(number), 3, None)
    assert pairs(shadow) == (0, 5, 15, 0)


def test_and_when_the_shadow_is_gone_too_while_the_same_version_runs(shadow: Shadow) -> None:
    shadow.keep("1", NEW, FRAME, 3)
    run(shadow, 5)
    shadow.clear()
    shadow.label("1", 5, None)
    assert pairs(shadow) == (0, 0, 1, 0)
    assert shadow.report() is None, "nobody runs: nothing to say now"
    assert pairs(shadow) == (0, 0, 1, 0), "and the same again once it does"
    assert shadow.report(OTHER) is None
    assert shadow.report(NEW) is None, "another version has run since"


def test_another_comparison_begins_anew(shadow: Shadow) -> None:
    shadow.keep("1", NEW, FRAME, 3)
    run(shadow, 5)
    shadow.clear()
    shadow.arm("other", OLD, NEW)
    shadow.label("1", 5, None)
    assert pairs(shadow) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "slower"),
    [
        (900.0, 10.0, (0, 0)),  # within its promise
        (1500.0, 10.0, (1, 0)),
        (1500.0, 800.0, (0, 0)),  # not twice as long: the machine was busy
        (10.0, 1500.0, (0, 1)),
        (1500.0, 1600.0, (0, 0)),
    ],
)
def test_a_frame_is_slow_when_one_alone_broke_the_promise_by_far(
    shadow: Shadow, ours: float, theirs: float, slower: tuple[int, int]
) -> None:
    shadow.keep("1", NEW, FRAME, 3, us=ours, budget_us=1000.0)
    run(shadow, 3, theirs)
    report = shadow.report(NEW)
    assert report is not None
    assert (report["slower_new"], report["slower_old"]) == slower


def test_without_a_promise_times_are_not_compared(shadow: Shadow) -> None:
    shadow.keep("1", NEW, FRAME, 3, us=1e9)
    run(shadow, 3)
    assert (shadow.report(NEW) or {})["slower_new"] == 0


def test_frames_are_thinned_by_time() -> None:
    made = Shadow(share=1.0, ring=100, died=lambda _: None, thin_s=1.0)
    made.arm("key", OLD, NEW)
    for number in range(100):
        made.keep(str(number), NEW, FRAME, 3, mono=50.0 + number / 30.0)
    assert len(made._kept) == 4


# -- over a restart ------------------------------------------------------------------------------------------------


def both_said(shadow: Shadow, name: str, new: int, old: int) -> Pair:
    """A frame that both have read; what the archive gets of it."""
    shadow.arm("key", OLD, NEW, LINK)
    shadow.keep(name, NEW, FRAME, new)
    run(shadow, old)
    (pair,) = shadow.fresh()
    return pair


def test_what_both_said_is_given_to_the_archive_once_and_not_where_the_truth_is_known(shadow: Shadow) -> None:
    pair = both_said(shadow, "e-1", 3, 5)
    assert pair[:1] + pair[2:] == ("e-1", LINK, NEW, OLD, 3, 5)
    assert shadow.fresh() == []
    shadow.keep("e-2", NEW, FRAME, 3)
    shadow.label("e-2", 3, None)
    run(shadow, 3)
    assert shadow.fresh() == []


def test_a_pair_of_an_earlier_run_counts_for_the_version_that_serves_and_its_activation_alone(shadow: Shadow) -> None:
    pair = both_said(shadow, "e-1", 3, 5)
    after = Shadow(share=1.0, ring=3, died=lambda _: None)
    assert not after.label("e-1", 5, None)
    after.recall(pair, 5, None, running=OTHER, link=LINK)
    after.recall(pair, 5, None, running=NEW, link=LATER)
    after.recall(pair, 5, None, running=NEW, link=None)
    assert after.report(NEW) is None
    after.recall(pair, 5, None, running=NEW, link=LINK)
    after.recall(pair._replace(name="e-2", old=3), None, True, running=NEW, link=LINK)
    after.recall(pair._replace(name="e-3"), None, False, running=NEW, link=LINK)  # which of the two was right?
    assert pairs(after) == (1, 0, 1, 0)
    assert after.report(OTHER) is None


def test_a_shadow_that_runs_again_goes_on_with_the_pairs_from_before(shadow: Shadow) -> None:
    pair = both_said(shadow, "e-1", 3, 5)
    after = Shadow(share=1.0, ring=3, died=lambda _: None)
    after.arm("key", OLD, NEW, LINK)
    after.recall(pair, 5, None, running=NEW, link=LINK)
    after.recall(pair._replace(shadow=OTHER), 5, None, running=NEW, link=LINK)
    after.keep("f-1", NEW, FRAME, 3)
    run(after, 3)
    after.label("f-1", 3, None)
    assert pairs(after) == (1, 0, 1, 0)


def test_pairs_outlive_the_run_up_to_the_horizon_and_up_to_their_number(tmp_path: Path) -> None:
    pair = Pair("e-1", time.time(), LINK, NEW, OLD, 3, 5)
    one = Archive(tmp_path / "results.db", tmp_path / "labels.db", horizon=3600.0)
    assert one.pair("e-1") is None
    one.keep([pair, pair._replace(name="e-2", wall=time.time() - 3601.0), pair])
    one.close()
    two = Archive(tmp_path / "results.db", tmp_path / "labels.db", horizon=3600.0)
    assert two.pair("e-1") == pair
    assert two.pair("e-2") is None, "beyond the horizon"
    found = two.find("e-1")
    assert found is not None, "a device that keeps no results still knows what was said"
    assert (found.digest, found.prediction) == (NEW, 3)
    two.keep([pair._replace(name=f"f-{number}") for number in range(21_000)])
    assert two.pair("e-1") is None, "the oldest go first"
    assert two.pair("f-20999") is not None
    two.close()


def test_a_file_that_cannot_be_written_costs_pairs_and_nothing_else(tmp_path: Path) -> None:
    lost = Archive(tmp_path / "no" / "results.db", tmp_path / "no" / "labels.db", horizon=3600.0)
    lost.keep([Pair("e-1", time.time(), LINK, NEW, OLD, 3, 5)])
    assert lost.pair("e-1") is None
    lost.close()


@pytest.mark.process
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_labels_that_come_after_the_confirmation_and_a_restart_still_make_pairs(tmp_path: Path, end: str) -> None:
    with Rig(tmp_path) as rig:
        old = rig.slot("digits-1.0.0.tflite", confirmed=True)
        new = rig.slot("digits-1.1.0.tflite", confirmed=False)
        rig.frames(rig.scans()[:100])
        rig.link("fallback", old)
        rig.link("shadow", old)
        rig.link("current", new)
        rig.start(fps=50.0, shadow_share=1.0, sqlite=False)
        rig.wait(lambda: (rig.health().get("shadow") or {}).get("frames", 0) >= 60, 60.0)
        (rig.model_dir / "slots" / new / "confirmed").touch()
        rig.link("shadow", None)
        rig.wait(lambda: len(rig.children()) < 3, 60.0)
        rig.wait(lambda: len(_on_disk(rig)) >= 60, 60.0)
        if end == "stopped":
            assert rig.stop() == 0
        else:
            rig.kill()
        rows = _on_disk(rig)[:50]  # what came before the shadow was loaded has no pair
        truth = rig.truth()
        rig.label([{"id": row["id"], "label": truth[int(row["frame"].split(":")[1])]} for row in rows])
        rig.start(fps=1.0, shadow_share=1.0, sqlite=False)
        rig.wait(lambda: _compared(rig) == 50, 60.0)
        assert rig.health()["shadow"]["digest"] == old


def _on_disk(rig: Rig) -> list[dict[str, Any]]:
    """The results that have a pair."""
    archive = Archive(rig.keep_dir / "results.db", rig.keep_dir / "labels.db", horizon=3600.0)
    try:
        return [row for row in rig.lines() if archive.pair(row["id"]) is not None]
    finally:
        archive.close()


def _compared(rig: Rig) -> int:
    shadow = rig.health().get("shadow") or {}
    return sum(int(shadow.get(name, 0)) for name in PAIRS)
