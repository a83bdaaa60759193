"""Who answers the machine: policies on the device's facts, judges on the evidence, tokens of the device.

This file knows where each fact comes from and which policy or judge it goes to. It decides nothing itself.

    answerer = Answerer(settings, read_device)
    answerer(state, event, others).may_acquire        # Wait(until=..., reason="the link is metered", gate="metered")
    answerer.gates("digits")["download"]              # every gate: what it saw, what it says, since when
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelagent.core.events import Event, Instant, Runs
from modelagent.core.state import Answers, Phase, Rules, State, Way, gather
from modelagent.core.verdicts import Deny, ProbationVerdict, Standing, Verdict
from modelagent.inputs.config import Settings
from modelagent.judges.probation import ProbationCriteria, judge_probation
from modelagent.policies import Composed, Facts, Gate, Memory, Policy, Question, compose
from modelagent.policies.standard import standard

_log = logging.getLogger("modelagent.policies")
_NAMES = {
    Question.CHECK: "check",
    Question.ACQUIRE: "download",
    Question.CANARY: "canary",
    Question.ACTIVATE: "activate",
}
_OFFLINE = Deny("an offline command touches neither network nor candidate", gate="offline")
_UNDECIDED = ProbationVerdict(Standing.OPEN, "")

# The device's facts at a moment, for one model; None fields are what nobody knows.
ReadDevice = Callable[[Instant, str], Facts]


class Answerer:
    """Answers for every model of the device; keeps what the policies want remembered between two questions.

    Args:
        settings: the present ones; `use` replaces them.
        read_device: the facts that do not come from State.
        offline: refuse everything but going back.
    """

    def __init__(self, settings: Settings, read_device: ReadDevice, *, offline: bool = False) -> None:
        self._read_device = read_device
        self._offline = offline
        self._memories: dict[str, Memory] = {}
        self._composed: dict[str, dict[Question, Composed]] = {}
        self._loud: set[str] = set()
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Take new settings on; what the gates remember stays."""
        limits = settings.limits
        self._settings = settings
        self._policies: tuple[Policy, ...] = standard(settings.policy, limits.disk_reserve_mb)
        self._rules = Rules(
            attempts=limits.attempts,
            back_off_s=limits.back_off,
            postpone_s=limits.postpone,
            keep_slots=limits.keep_slots,
        )

    def __call__(self, state: State, event: Event, others: Sequence[State]) -> Answers:
        """Every question at once; each is cheap."""
        model = self._settings.models.get(state.model)
        rules = self._rules
        if model is not None:
            rules = replace(rules, activation_s=model.probation.timeout_s)
        composed = self._ask(state, event.at)

        def verdict(question: Question) -> Verdict:
            return _OFFLINE if self._offline else composed[question].verdict

        return Answers(
            may_check=verdict(Question.CHECK),
            may_acquire=verdict(Question.ACQUIRE),
            may_canary=verdict(Question.CANARY),
            may_activate=verdict(Question.ACTIVATE),
            canary_free=all(other.phase is not Phase.CANARY for other in others),
            load_free=all(other.phase not in {Phase.ACTIVATING, Phase.REVERTING} for other in others),
            probation=self._judge(state, event),
            rules=rules,
        )

    def gates(self, model: str) -> dict[str, list[dict[str, Any]]]:
        """Every gate's last answer, for `explain`."""
        return {
            _NAMES[question]: [_show(gate) for gate in composed.gates]
            for question, composed in self._composed.get(model, {}).items()
        }

    def _ask(self, state: State, at: Instant) -> Mapping[Question, Composed]:
        facts = self._facts(state, at)
        memory = self._memories.get(state.model, {})
        composed: dict[Question, Composed] = {}
        for question in Question:
            composed[question] = compose(question, self._policies, facts, memory)
            memory = composed[question].memory
            self._say_loudly(state.model, question, composed[question])
        self._memories[state.model], self._composed[state.model] = memory, composed
        return composed

    def _say_loudly(self, model: str, question: Question, composed: Composed) -> None:
        """What waits for too long is said once, as a warning."""
        for reason in composed.loud:
            key = f"{model}: {_NAMES[question]} has waited too long: {reason}"
            if key not in self._loud:
                self._loud.add(key)
                _log.warning("%s", key)

    def _facts(self, state: State, at: Instant) -> Facts:
        watch, candidate = state.watch, state.candidate
        wanted = candidate.release if candidate is not None else state.desired.offer
        return replace(
            self._read_device(at, state.model),
            last_check=watch.last_ok or None,
            last_check_attempt=watch.last_try or None,
            asked_check=at.wall if watch.asked else None,
            now=state.desired.now,
            back=candidate is not None and candidate.way in {Way.BACK, Way.LOCAL},
            waves=state.desired.waves,
            needed_mb=wanted.size / 2**20 if wanted is not None else None,
        )

    def _judge(self, state: State, event: Event) -> ProbationVerdict:
        model = self._settings.models.get(state.model)
        if not isinstance(event, Runs) or state.phase is not Phase.PROBATION or model is None:
            return _UNDECIDED
        wanted = model.probation
        if not wanted.enabled:
            return ProbationVerdict(Standing.GOOD, "the settings ask for no probation")
        criteria = ProbationCriteria(
            frames=wanted.frames,
            busy_s=round(wanted.seconds),
            labels=wanted.labels,
            error_p0=wanted.error_p0,
            error_p1=wanted.error_p1,
            alpha=wanted.alpha,
            beta=wanted.beta,
        )
        return judge_probation(gather(state, event).total, criteria)


def _show(gate: Gate) -> dict[str, Any]:
    return {
        "gate": gate.name,
        "answer": type(gate.verdict).__name__.lower(),
        "reason": gate.verdict.reason,
        "saw": gate.saw,
        "since": gate.since.wall,
        "until": getattr(gate.verdict, "until", None),
    }
