"""The shadow's pairs: answers outlive frames and shadow, times are compared, frames are thinned by time."""

import numpy as np
import pytest

from modelagent.inference.shadow import Shadow

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
FRAME = (np.zeros(1),)
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
