"""Who answers the machine: policies on the device's facts, judges on the evidence, tokens of the device.

This file knows where each fact comes from and which policy or judge it goes to. It decides nothing itself.

    answerer = Answerer(settings, read_device)
    answerer(state, event, others).may_acquire        # Wait(until=..., reason="the link is metered", gate="metered")
    answerer.gates("digits")["download"]              # every gate: what it saw, what it says, since when
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelagent.core.events import Event, Instant, Runs
from modelagent.core.state import Answers, Candidate, Phase, Reached, Rules, State, Way, gather, slot
from modelagent.core.verdicts import Deny, ProbationVerdict, Standing, SteadyVerdict, Verdict
from modelagent.durable import have_directory
from modelagent.inputs.config import Settings
from modelagent.judges.probation import ProbationCriteria, hiccups, judge_probation
from modelagent.policies import Composed, Facts, Gate, Memory, Policy, Question, compose
from modelagent.policies.conditional import RECHECK_S
from modelagent.policies.standard import standard
from modelagent.updater.memory import Remembered
from modelagent.updater.steady import Steady

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
        remember: keep what policies and drift charts want remembered on disk; without, there are no charts.
        recheck_s: after so many seconds a fact that stands in the way is looked at again.
    """

    def __init__(
        self,
        settings: Settings,
        read_device: ReadDevice,
        *,
        offline: bool = False,
        remember: bool = True,
        recheck_s: float = RECHECK_S,
    ) -> None:
        self._read_device = read_device
        self._offline = offline
        self._remember = remember and not offline
        self._recheck_s = recheck_s
        self._memories: dict[str, Memory] = {}
        self._remembered: dict[str, Remembered] = {}
        self._composed: dict[str, dict[Question, Composed]] = {}
        self._facts: dict[str, Facts] = {}
        self._steady: dict[str, Steady] = {}
        if self._remember:
            for name in ("policies", "steady"):
                with contextlib.suppress(OSError):  # where there is no room now, the first save tries again
                    have_directory(settings.paths.state_dir / name)
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Take new settings on; what the gates remember stays."""
        limits = settings.limits
        self._settings = settings
        self._policies: tuple[Policy, ...] = standard(
            settings.policy, limits.disk_reserve_mb, recheck_s=self._recheck_s
        )
        self._rules = Rules(
            attempts=limits.attempts,
            back_off_s=limits.back_off,
            setback_s=limits.back_off,
            postpone_s=limits.postpone,
            keep_slots=limits.keep_slots,
        )

    def __call__(self, state: State, event: Event, others: Sequence[State]) -> Answers:
        """Every question at once; each is cheap."""
        model = self._settings.models.get(state.model)
        rules = self._rules
        if model is not None:
            rules = replace(rules, activation_s=model.probation.timeout_s, label_horizon_s=model.label_horizon)
        steady = self._watch(state, event)
        known = self._composed.get(state.model) if isinstance(event, Runs) else None
        # Health comes all the time and asks no policy: the last answers do for it.
        composed = known if known is not None else self._ask(state, event.at)

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
            steady=steady,
            overdue=() if self._offline else tuple(text for answer in composed.values() for text in answer.loud),
            rules=rules,
        )

    def gates(self, model: str) -> dict[str, list[dict[str, Any]]]:
        """Every gate's last answer, for `explain`."""
        return {
            _NAMES[question]: [_show(gate) for gate in composed.gates]
            for question, composed in self._composed.get(model, {}).items()
        }

    def facts(self, model: str) -> Facts | None:
        """What the last answers were given on."""
        return self._facts.get(model)

    def keep(self, mono: float) -> None:
        """At the end: what is still to be remembered."""
        for model, remembered in self._remembered.items():
            remembered.save(self._memories[model], mono, at_once=True)

    def _ask(self, state: State, at: Instant) -> Mapping[Question, Composed]:
        model = state.model
        if self._remember and model not in self._remembered:
            path = self._settings.paths.state_dir / "policies" / f"{model}.json"
            self._remembered[model] = Remembered(path)
            self._memories[model] = self._remembered[model].load()
        facts, memory = self._gather(state, at), self._memories.get(model, {})
        composed: dict[Question, Composed] = {}
        for question in Question:
            composed[question] = compose(question, self._policies, facts, memory)
            memory = composed[question].memory
        self._memories[model], self._composed[model], self._facts[model] = memory, composed, facts
        if self._remember:
            self._remembered[model].save(memory, at.mono)
        return composed

    def _gather(self, state: State, at: Instant) -> Facts:
        watch, candidate = state.watch, state.candidate
        wanted = candidate.release if candidate is not None else state.desired.offer
        device, steady = self._read_device(at, state.model), self._steady.get(state.model)
        if steady is not None:
            device = replace(device, drift=steady.drift, quality_drop=steady.quality_drop, alarm=steady.alarmed)
        return replace(
            device,
            last_check=watch.last_ok or None,
            last_check_attempt=watch.last_try or None,
            asked_check=at.wall if watch.asked else None,
            now=state.desired.now,
            back=candidate is not None and candidate.way in {Way.BACK, Way.LOCAL},
            waves=state.desired.waves,
            needed_mb=wanted.size / 2**20 if wanted is not None else None,
            pending=pending(state),
        )

    def _watch(self, state: State, event: Event) -> SteadyVerdict:
        """Feed the charts of a confirmed version in peace; in every other phase what comes is not theirs."""
        model = self._settings.models.get(state.model)
        here = slot(state, state.current)
        if not isinstance(event, Runs) or model is None or not self._remember or here is None or not here.confirmed:
            return SteadyVerdict()
        if state.phase in {Phase.ACTIVATING, Phase.PROBATION, Phase.REVERTING} or event.digest != here.release.digest:
            return SteadyVerdict()
        return self._charts(state.model).take(event, model.drift)

    def _charts(self, model: str) -> Steady:
        steady = self._steady.get(model)
        if steady is None:
            steady = self._steady[model] = Steady(self._settings.paths.state_dir / "steady" / f"{model}.json")
        return steady

    def _judge(self, state: State, event: Event) -> ProbationVerdict:
        model = self._settings.models.get(state.model)
        switched = {Phase.ACTIVATING, Phase.PROBATION, Phase.REVERTING}
        known = state.aftercare if state.phase not in switched else None
        known = known if known is not None and known.digest == state.current else None
        if not isinstance(event, Runs) or model is None or (state.phase is not Phase.PROBATION and known is None):
            return _UNDECIDED
        wanted = model.probation
        if not wanted.enabled and known is None:
            return ProbationVerdict(Standing.GOOD, "the settings ask for no probation")
        before = state.candidate.judged_against if state.candidate is not None else None
        usual = self._charts(state.model).hiccups(before) if self._remember else (0, 0)
        fault_p0, fault_p1 = hiccups(wanted.fault_p0, wanted.fault_p1, *usual)
        criteria = ProbationCriteria(
            frames=wanted.frames,
            busy_s=round(wanted.seconds),
            limit_frames=wanted.limit_frames,
            limit_busy_s=round(wanted.limit_seconds),
            undecided_good=wanted.undecided == "confirm",
            labels=wanted.labels,
            error_p0=wanted.error_p0,
            error_p1=wanted.error_p1,
            fault_p0=fault_p0,
            fault_p1=fault_p1,
            alpha=wanted.alpha,
            beta=wanted.beta,
        )
        counts = gather(state if known is None else replace(state, evidence=known.evidence), event).total
        if state.aftercare is not None and state.aftercare.digest == state.current:
            # It was confirmed: faults are restarted and hiccups counted, only the comparison condemns.
            counts = replace(counts, faults=0, unsteady_s=0)
        return judge_probation(counts, criteria)


def pending(state: State) -> frozenset[Question]:
    """What is waited for in this phase; the next check always is."""
    match state.phase, state.candidate:
        case (Phase.ACQUIRING, _):
            return frozenset({Question.CHECK, Question.ACQUIRE})
        case (Phase.DEFERRED, Candidate(reached=Reached.OFFERED)):
            return frozenset({Question.CHECK, Question.ACQUIRE})
        case (Phase.CANARY | Phase.DEFERRED, _):
            return frozenset({Question.CHECK, Question.CANARY})
        case (Phase.STAGED, _):
            return frozenset({Question.CHECK, Question.ACTIVATE})
    return frozenset({Question.CHECK})


def _show(gate: Gate) -> dict[str, Any]:
    return {
        "gate": gate.name,
        "answer": type(gate.verdict).__name__.lower(),
        "reason": gate.verdict.reason,
        "saw": gate.saw,
        "since": gate.since.wall,
        "until": getattr(gate.verdict, "until", None),
        "loud": gate.loud,
    }
