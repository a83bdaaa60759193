"""When a rule fires: hits among frames, hysteresis, hold, repetition, pause."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelagent.inference.results import Row
from modelagent.inference.rules import Rule, RuleWatch


def row(label: str = "scratch", score: float | None = 0.9, outcome: str = "ok", detail: Any = None) -> Row:
    return Row("e-1", "f", 0.0, "m", "d", "1", 3, label, score, 1.0, outcome, detail)


def fired(rule: Rule, rows: list[Row], period: float = 1.0) -> list[int]:
    """The frames at which the rule acts, one frame a period."""
    watch = RuleWatch(rule)
    return [number for number, one in enumerate(rows) if watch.step(one, 100.0 + number * period)]


def test_it_acts_once_when_it_begins_and_again_after_it_has_ended() -> None:
    good, bad = row("good"), row()
    assert fired(Rule("r", labels=("scratch",)), [good, bad, bad, bad, good, bad]) == [1, 5]


def test_classes_go_by_name_or_number_and_none_means_any() -> None:
    assert fired(Rule("r", labels=("3",)), [row("scratch")]) == [0]
    assert fired(Rule("r", labels=("dent",)), [row("scratch")]) == []
    assert fired(Rule("r", min_score=0.8), [row(score=0.7), row(score=0.8)]) == [1]
    assert fired(Rule("r"), [row(score=None)]) == []


def test_so_many_of_the_last_so_many() -> None:
    rule = Rule("r", labels=("scratch",), hits=3, of=5)
    good, bad = row("good"), row()
    assert fired(rule, [bad, good, bad, good, bad]) == [4]
    assert fired(rule, [bad, good, good, bad, good, bad, bad]) == [6]
    assert fired(rule, [bad, bad, good, good, good, bad, bad]) == []


def test_hysteresis_keeps_a_wavering_score_from_acting_again() -> None:
    scores = [0.85, 0.75, 0.85, 0.75, 0.5, 0.85]
    rows = [row(score=score) for score in scores]
    assert fired(Rule("r", min_score=0.8), rows) == [0, 2, 5]
    assert fired(Rule("r", min_score=0.8, release_score=0.7), rows) == [0, 5]


def test_it_must_hold_and_may_repeat_and_pauses() -> None:
    bad, good = row(), row("good")
    rule = Rule("r", labels=("scratch",), hold=3.0)
    assert fired(rule, [bad] * 10) == [3]
    assert fired(rule, [bad, bad, good, bad, bad, bad, bad]) == [6]
    assert fired(Rule("r", labels=("scratch",), repeat=4.0), [bad] * 10) == [0, 4, 8]
    assert fired(Rule("r", labels=("scratch",), pause=5.0), [bad, good] * 6) == [0, 6]


def test_frames_without_a_result_are_neither_hits_nor_misses() -> None:
    rule = Rule("r", labels=("scratch",), hits=2, of=2)
    lost = row("", None, "dropped")
    assert fired(rule, [row(), lost, lost, row()]) == [3]


def test_boxes_count_like_classes() -> None:
    boxes = {"boxes": [{"class": 0, "label": "cat", "score": 0.6}, {"class": 1, "label": "dog", "score": 0.9}]}
    assert fired(Rule("r", labels=("cat",), min_score=0.5), [row("dog", 0.9, detail=boxes)]) == [0]
    assert fired(Rule("r", labels=("cat",), min_score=0.7), [row("dog", 0.9, detail=boxes)]) == []
    assert fired(Rule("r", labels=("bird",)), [row("dog", 0.9, detail={"boxes": []})]) == []


@given(
    hits=st.lists(st.booleans(), max_size=60),
    need=st.integers(1, 5),
    extra=st.integers(0, 5),
    pause=st.floats(0, 10),
)
def test_it_never_acts_without_its_hits_nor_sooner_than_its_pause(
    hits: list[bool], need: int, extra: int, pause: float
) -> None:
    rule = Rule("r", labels=("scratch",), hits=need, of=need + extra, pause=pause)
    at = fired(rule, [row("scratch" if hit else "good") for hit in hits])
    for number in at:
        assert sum(hits[max(0, number - need - extra + 1) : number + 1]) >= need
    assert all(later - earlier >= pause for earlier, later in itertools.pairwise(at))


def test_a_watch_says_whether_it_is_met() -> None:
    watch = RuleWatch(Rule("r"))
    watch.step(row(), 1.0)
    assert (watch.met, watch.fired) == (True, 1)
    watch.step(row(score=0.1), 2.0)
    assert not watch.met
