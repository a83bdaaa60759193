"""When to check, download, try and switch: pure questions with a reasoned answer, and how policies combine.

This file knows the facts that policies may look at, the four questions, and composition. It does not know any single
policy, where facts come from, or what is done with an answer. Nothing here reads a clock: `Facts.at` is the time.

    composed = compose(Question.ACQUIRE, (Windows(...), Conditional(...), Rollout()), facts, memory)
    composed.verdict      # Wait(until=..., reason="the link is metered", gate="metered")
    composed.gates        # every gate with its answer, what it saw, and since when it answers so
    composed.memory       # to be given to the next question: hysteresis is data, not a hidden variable

All must allow; a question about which no policy has anything to say is refused.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Protocol

from modelagent.core.events import Instant, Wave
from modelagent.core.verdicts import Allow, Verdict, all_of


class Question(Enum):
    """What a policy can be asked: may the device do this now?"""

    CHECK = "check"
    ACQUIRE = "acquire"
    CANARY = "canary"
    ACTIVATE = "activate"


WORDS: Final = {
    Question.CHECK: "check",
    Question.ACQUIRE: "download",
    Question.CANARY: "canary",
    Question.ACTIVATE: "activation",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment. None is "not known", and never the same as zero.

    Times are Unix seconds; `at` carries both clocks. `last_check` is the last one that succeeded, `started` when the
    updater came up. `asked_check`: somebody wants a check no older than this. `now`: a person lifted windows and
    waves for the present offer. `back`: the candidate is an older version on purpose. `alarm` is when quality last
    raised one; `drift` and `quality_drop` are 0 (calm) to 1. `pending` holds the questions whose answer something waits
    for, None for all: a download that nobody wants is not late.
    """

    at: Instant
    seed: str = ""
    groups: tuple[str, ...] = ()
    hardware: str = ""
    started: float | None = None
    last_check: float | None = None
    last_check_attempt: float | None = None
    asked_check: float | None = None
    now: bool = False
    back: bool = False
    waves: tuple[Wave, ...] = ()
    link_up: bool | None = None
    metered: bool | None = None
    rate_bps: float | None = None  # bits per second, measured on recent transfers
    budget_left: float | None = None  # bytes that may still be fetched today
    load1: float | None = None
    cpus: int | None = None
    psi_cpu: float | None = None  # percent of the last 10 s in which some task waited for a CPU
    memory_available_mb: float | None = None
    temperature_c: float | None = None
    battery_percent: float | None = None
    on_ac: bool | None = None
    disk_free_mb: float | None = None
    needed_mb: float | None = None
    queue_fill: float | None = None  # 0..1 of inference's frame queue
    p95_ms: float | None = None  # of inference's latency, lately
    p95_budget_ms: float | None = None  # what the running version promises
    inhibited: tuple[str, ...] = ()
    drift: float | None = None
    quality_drop: float | None = None
    alarm: float | None = None
    pending: frozenset[Question] | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered between two questions: the kind of the last answer, since when, and one number."""

    kind: str
    since: Instant
    value: float = 0.0


Memory = Mapping[str, Past]


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate's answer, for people: what it saw, and since when it answers so.

    `loud` is what must not be passed over in silence, in words that stay the same while it lasts. `lifted`: it lets
    pass although it would not, for a reason that belongs into the history.
    """

    name: str
    verdict: Verdict
    saw: str
    since: Instant
    loud: str = ""
    lifted: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one policy says of one question; nothing at all when it has no say in it."""

    gates: tuple[Gate, ...] = ()
    memory: Memory = field(default_factory=dict)


class Policy(Protocol):
    """A pure question: facts and memory in, gates out."""

    def answer(self, question: Question, facts: Facts, memory: Memory, /) -> Answer:
        """The gates that this policy puts before `question`, and what it wants remembered."""


@dataclass(frozen=True, slots=True)
class Composed:
    """The answer of all policies together. `memory` belongs to the next question of any kind."""

    verdict: Verdict
    gates: tuple[Gate, ...] = ()
    memory: Memory = field(default_factory=dict)

    @property
    def loud(self) -> tuple[str, ...]:
        """Reasons for waiting that have lasted too long to stay quiet about."""
        return tuple(gate.loud for gate in self.gates if gate.loud)

    @property
    def lifted(self) -> str:
        """Which gates let pass although they would not, and why; empty when none does."""
        return "; ".join(f"{gate.name}: {gate.verdict.reason}" for gate in self.gates if gate.lifted)


def compose(question: Question, policies: Iterable[Policy], facts: Facts, memory: Memory | None = None) -> Composed:
    """Ask every policy; all must allow, and no answer at all is a refusal."""
    known = dict(memory or {})
    gates: list[Gate] = []
    for policy in policies:
        answer = policy.answer(question, facts, known)
        gates.extend(answer.gates)
        known.update(answer.memory)
    dated = []
    for gate in gates:
        key = f"{question.value}/{gate.name}"
        kind = type(gate.verdict).__name__
        past = known.get(key)
        if past is None or past.kind != kind:
            past = known[key] = Past(kind, facts.at)
        dated.append(replace(gate, since=past.since))
    composed = Composed(all_of(gate.verdict for gate in dated), tuple(dated), known)
    if isinstance(composed.verdict, Allow):  # which of them spoke last means nothing; what was lifted does
        return replace(composed, verdict=Allow(composed.lifted))
    return composed


def elapsed(since: Instant, at: Instant) -> float:
    """Seconds between two instants: by the clock that cannot jump within one boot, by the wall across boots."""
    if since.boot_id == at.boot_id:
        return max(0.0, at.mono - since.mono)
    return max(0.0, at.wall - since.wall)


def span(seconds: float) -> str:
    """A length of time for people."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.3g} s"


def fraction(seed: str, salt: str) -> float:
    """This device's place in [0, 1) for one purpose: fixed by its seed, even over the fleet."""
    digest = hashlib.sha256(f"{salt}\0{seed}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2.0**48
