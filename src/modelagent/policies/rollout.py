"""Whose turn it is: waves, signed by the publisher, met by the device's own seed.

This file knows waves. It does not know who signed them. A wave says from which time on which share of the devices may
begin; the device's place in [0, 1) comes from its seed and stays, so no server has to keep a list of devices
(the scheme of Bottlerocket's updater). A wave may be for certain groups or hardware classes only.

    Rollout().answer(Question.ACQUIRE, facts, {})      # facts.waves: 10 % on Monday, all on Wednesday

Withdrawals and reverts do not pass here at all, and going back on purpose is never delayed.
"""

from dataclasses import dataclass

from modelagent.core.events import Wave
from modelagent.core.verdicts import Allow, Deny, Verdict, Wait
from modelagent.policies import Answer, Facts, Gate, Memory, Question, fraction
from modelagent.policies.localtime import show


@dataclass(frozen=True, slots=True)
class Rollout:
    """The waves of the offered release, before its download and before its activation."""

    def answer(self, question: Question, facts: Facts, _memory: Memory) -> Answer:
        """Speaks of downloads and switching."""
        if question not in (Question.ACQUIRE, Question.ACTIVATE):
            return Answer()
        place = fraction(facts.seed, "wave")
        saw = f"this device is at {place:.1%}; " + (", ".join(map(_words, facts.waves)) or "no waves")
        verdict, lifted = _turn(facts, place)
        return Answer((Gate("wave", verdict, saw, facts.at, lifted=lifted),))


def reaches(wave: Wave, facts: Facts, place: float) -> bool:
    """Whether this wave is for this device: its share, and its groups and hardware where the wave names any."""
    grouped = not wave.groups or not set(wave.groups).isdisjoint(facts.groups)
    return grouped and (not wave.hardware or facts.hardware in wave.hardware) and place < wave.share


def _turn(facts: Facts, place: float) -> tuple[Verdict, bool]:
    if not facts.waves:
        return Allow("no waves are set", "wave"), False
    mine = [wave.start for wave in facts.waves if reaches(wave, facts, place)]
    if mine and min(mine) <= facts.at.wall:
        return Allow("it is this device's turn", "wave"), False
    if facts.now:
        return Allow('not this device\'s turn yet, lifted by "now"', "wave"), True
    if facts.back:
        return Allow("going back is never delayed", "wave"), False
    if mine:
        return Wait(min(mine), f"this device's wave begins at {show(min(mine))}", "wave"), False
    return Deny("no wave reaches this device; the publisher has to widen them", "wave"), False


def _words(wave: Wave) -> str:
    whose = "".join(f" of {name}" for name in (" or ".join(wave.groups), " or ".join(wave.hardware)) if name)
    return f"{wave.share:.0%}{whose} from {show(wave.start)}"
