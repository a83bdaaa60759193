"""Frames of one camera are no independent samples: what that does to the error rate, and that thinning mends it."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from modelagent.core.events import Counts
from modelagent.core.verdicts import Standing
from modelagent.inference.records import Records
from modelagent.judges.metrics import upper_share
from modelagent.judges.probation import ProbationCriteria, judge_probation
from modelagent.judges.sequential import Sprt

TRIALS, SCENES, FRAMES = 600, 300, 30  # a scene lasts a second at 30 frames a second
CRITERIA = ProbationCriteria()
# The comparison by labels, as the judge of a probation makes it.
TEST = Sprt(0.5, CRITERIA.pair_p1, CRITERIA.alpha * 0.15, CRITERIA.beta)


def gone_back(discordant: npt.NDArray[np.int8]) -> float:
    """Share of streams that the comparison ever condemns. +1: only the previous model is right, -1: only the new."""
    up, down = math.log(TEST.p1 / TEST.p0), math.log((1 - TEST.p1) / (1 - TEST.p0))
    steps = np.where(discordant > 0, up, np.where(discordant < 0, down, 0.0))
    return float((steps.cumsum(axis=1) >= TEST.upper).any(axis=1).mean())


def scenes() -> npt.NDArray[np.int8]:
    """Equal models: in 8 % of the scenes one of the two alone is right, whichever."""
    draws = np.random.default_rng(8).random((TRIALS, SCENES))
    return np.where(draws < 0.04, 1, np.where(draws < 0.08, -1, 0)).astype(np.int8)


def test_thirty_frames_of_one_scene_are_not_thirty_samples() -> None:
    assert gone_back(np.repeat(scenes(), FRAMES, axis=1)) > 0.2, "every frame taken for a sample"


def test_one_sample_a_scene_holds_the_rate() -> None:
    bound = 0.0015 + 3 * math.sqrt(0.0015 * 0.9985 / TRIALS)
    assert gone_back(scenes()) <= bound
    # One a second of frames that change a little faster or slower than that.
    longer = np.repeat(scenes(), FRAMES, axis=1)[:, :: FRAMES + 7]
    assert gone_back(longer) <= bound


def test_labels_are_thinned_by_the_time_of_their_frames_in_whatever_order_they_come() -> None:
    records = Records("m", "e", (), recent=10_000, horizon=1e9, thin_s=1.0)
    monos = [second + frame / FRAMES for second in range(50) for frame in range(FRAMES)]
    taken = sum(records._is_sample(monos[place]) for place in np.random.default_rng(1).permutation(len(monos)))
    assert taken == 50
    assert not any(records._is_sample(mono) for mono in monos)
    everything = Records("m", "e", (), recent=10, horizon=1e9)
    assert all(everything._is_sample(mono) for mono in monos)


@pytest.mark.parametrize("repeat", [0.0, math.exp(-1.0 / 0.5)], ids=["independent", "scenes of half a second"])
def test_all_tests_together_go_back_without_cause_in_less_than_one_probation_in_a_hundred(repeat: float) -> None:
    """The shipped judge, every test of it at its own null, and an exact upper bound instead of a share."""
    streams, seconds, step = 2000, 1000, 20
    generator = np.random.default_rng(11)
    bad = 0
    for _ in range(streams):
        scene = np.maximum.accumulate(np.where(generator.random(seconds) < repeat, 0, np.arange(seconds)))
        said = generator.choice(4, size=seconds, p=[0.86, 0.04, 0.04, 0.06])[scene]
        slow = generator.random(seconds)[scene]
        hiccup = generator.random(seconds) < CRITERIA.fault_p0
        columns = [said == 0, said == 1, said == 2, said == 3, slow < 0.01, slow > 0.99, hiccup]
        seen = np.stack(columns, axis=1).cumsum(axis=0)[step - 1 :: step]
        for number, row in enumerate(seen.tolist(), start=1):
            both, only_new, only_old, neither, slower_new, slower_old, unsteady = row
            counts = Counts(
                frames=number * step * 30,
                done=number * step * 30,
                busy_s=number * step,
                right=both + only_new,
                wrong=only_old + neither,
                both_right=both,
                only_new=only_new,
                only_old=only_old,
                both_wrong=neither,
                slower_new=slower_new,
                slower_old=slower_old,
                unsteady_s=unsteady,
            )
            if judge_probation(counts, CRITERIA).standing is Standing.BAD:
                bad += 1
                break
    assert upper_share(bad, streams, 0.95) <= 0.01, f"{bad} of {streams}"
