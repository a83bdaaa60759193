"""What the updater knows about one model: frozen data, and the pure questions that it answers about itself.

This file knows what is remembered and what follows from it (what is blocked, where to go back to, what evidence
has come together). It does not know what happens next: that is the table's matter (`machine.py`).

    revert_target(state, leaving=state.current)     ->  the newest confirmed unblocked slot on disk, or None
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum

from modelagent.core.events import ConfigWish, Counts, Instant, Link, Runs, SlotFacts, Wave
from modelagent.core.verdicts import Allow, ProbationVerdict, Standing, SteadyVerdict, Verdict
from modelagent.manifest import Release

SCHEMA = 1


class Phase(Enum):
    """Where a deployment stands. Phases are states of being."""

    IDLE = "Idle"
    DEFERRED = "Deferred"
    ACQUIRING = "Acquiring"
    STAGING = "Staging"
    CANARY = "Canary"
    STAGED = "Staged"
    ACTIVATING = "Activating"
    PROBATION = "Probation"
    REVERTING = "Reverting"


class Way(Enum):
    """How a release comes to run here."""

    FORWARD = "forward"  # canary against the running model, then probation
    FIRST = "first"  # nothing runs yet: absolute gates, then probation without fallback
    BACK = "back"  # an older release on purpose, not on disk: absolute gates, then probation
    LOCAL = "local"  # a slot confirmed here: re-hash, activate, done


class Reached(Enum):
    """How far a candidate has come; it keeps what it has when it has to wait."""

    OFFERED = 0
    STAGED = 1
    PASSED = 2


class Cause(Enum):
    """Why a digest is blocked; a withdrawal is kept apart, since only signed data lifts it."""

    FAILED = "failed"
    OPERATOR = "operator"


class Watching(Enum):
    """Where the check stands, beside the deployment."""

    RESTING = "Resting"
    CHECKING = "Checking"
    BACKED_OFF = "BackedOff"


@dataclass(frozen=True, slots=True)
class Timer:
    """A point to wait for that survives reboots and jumping clocks.

    Within one boot only the monotonic clock counts. After a reboot the wall clock does, unless it says that more
    time is left than was ever asked for: then it has been set back, and the wait is over.
    """

    wall: float
    mono: float
    boot_id: str
    length: float  # seconds

    @classmethod
    def after(cls, at: Instant, seconds: float) -> "Timer":
        """A timer that is due `seconds` after `at`."""
        return cls(at.wall + seconds, at.mono + seconds, at.boot_id, seconds)

    def left(self, at: Instant) -> float:
        """Seconds still to wait; 0 when due."""
        if at.boot_id == self.boot_id:
            return max(0.0, self.mono - at.mono)
        left = self.wall - at.wall
        return 0.0 if left <= 0 or left > self.length else left


@dataclass(frozen=True, slots=True)
class Block:
    """Why a digest is never activated. `model_file`: these bytes are blocked too (crash, hang, NaN)."""

    cause: Cause
    reason: str
    version: str
    at: float
    model_file: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """The release being deployed. `link` is the prepared `current` link, known since staging."""

    release: Release
    way: Way
    reached: Reached = Reached.OFFERED
    link: Link | None = None
    canary_run: int = 1
    judged_against: str | None = None
    judged_on: str = ""  # runtime version


@dataclass(frozen=True, slots=True)
class Doing:
    """The deployment's effect in flight: its id and a stable word for its kind."""

    id: int
    kind: str


@dataclass(frozen=True, slots=True)
class Going:
    """A revert under way: what is left, for what, and which targets have refused."""

    leaving: str | None
    target: str
    reason: str
    unconfirm: bool
    link: Link | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owed:
    """A change of the links beside the deployment (`fallback` or `stop`) that is not yet known to be done.

    `id` is its effect while that is under way; after a failure `timer` says when to order it again.
    """

    kind: str
    id: int
    failures: int = 0
    timer: Timer | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts at one digest that ended without getting past the furthest point (phase rank, bytes)."""

    digest: str = ""
    furthest: tuple[int, int] = (0, 0)
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Postponed:
    """A used-up attempt limit: not a block, only a longer wait that doubles each time."""

    timer: Timer
    times: int
    reason: str


@dataclass(frozen=True, slots=True)
class Setbacks:
    """Releases in a row that failed here: from the second on, the next one is tried only after `timer`."""

    times: int
    timer: Timer


@dataclass(frozen=True, slots=True)
class Declined:
    """Not to be tried again for this (release, running digest, runtime): insufficient evidence, or unsuitable."""

    digest: str
    running: str | None
    runtime: str
    reason: str


@dataclass(frozen=True, slots=True)
class Watch:
    """The check's region. `asked`: somebody wants a check now; `prompted`: the check in flight was asked for."""

    kind: Watching = Watching.RESTING
    effect: int = 0
    failures: int = 0
    timer: Timer | None = None
    last_ok: float = 0.0  # Unix seconds
    last_try: float = 0.0
    asked: bool = False
    prompted: bool = False
    error: str = ""
    notes: tuple[str, ...] = ()  # what the last good check had to say; each is told once while it stays


@dataclass(frozen=True, slots=True)
class Evidence:
    """What has come together for one activation: sums of differences, per epoch of inference."""

    epoch: str = ""
    first: Counts = field(default_factory=Counts)
    last: Counts = field(default_factory=Counts)
    before: Counts = field(default_factory=Counts)  # from earlier epochs
    past: tuple[str, ...] = ()  # the latest of these

    @property
    def total(self) -> Counts:
        """Counts since the first record of this activation."""
        return add(self.before, subtract(self.last, self.first))


@dataclass(frozen=True, slots=True)
class Aftercare:
    """A confirmed version whose comparison with the previous one is still open, because labels come late.

    `drifted`: opened by a drift alarm, with a shadow of its own, and not by the end of its probation. Until `until` the
    previous version is kept on disk, and a decision still leads back to it.
    """

    digest: str
    previous: str
    until: Timer
    evidence: Evidence
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """A wanted version, and who wants it."""

    version: str
    origin: str
    id: str


@dataclass(frozen=True, slots=True)
class Hold:
    """No new activation, and who wants that."""

    origin: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Following:
    """A channel that a command named, and who wants it.

    `withdrawn` (digest -> reason) is what the channels left for it take back: it stays withdrawn, because a command is
    trusted with less than the signed data that it would otherwise undo.
    """

    channel: str
    origin: str
    id: str
    withdrawn: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """What should hold: signed channel data, the settings file, and commands."""

    offer: Release | None = None
    pinned: Release | None = None
    pin: Pin | None = None
    hold: Hold | None = None
    waves: tuple[Wave, ...] = ()  # signed with the channel: when which share of the fleet may begin
    now: bool = False  # windows and waves are lifted for the present offer
    wish: ConfigWish = field(default_factory=ConfigWish)
    following: Following | None = None

    @property
    def channel(self) -> str:
        """The channel that is followed: a command's, until the settings' is edited."""
        return self.wish.channel if self.following is None else self.following.channel


@dataclass(frozen=True, slots=True)
class Seen:
    """A command that was answered; a repeat gets the same answer."""

    id: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """All that the updater knows of one model. Everything but `running`, `again` and `waiting` is worth keeping."""

    model: str
    schema: int = SCHEMA
    phase: Phase = Phase.IDLE
    watch: Watch = field(default_factory=Watch)
    desired: Desired = field(default_factory=Desired)
    candidate: Candidate | None = None
    standby: Candidate | None = None  # staged and passed, while a newer one is being prepared
    doing: Doing | None = None
    going: Going | None = None
    owed: tuple[Owed, ...] = ()
    timer: Timer | None = None  # back-off of the present phase
    slots: tuple[SlotFacts, ...] = ()
    current: str | None = None
    link: Link | None = None
    fallback: str | None = None
    blocks: Mapping[str, Block] = field(default_factory=dict)
    withdrawn: Mapping[str, str] = field(default_factory=dict)  # digest -> reason
    postponed: Mapping[str, Postponed] = field(default_factory=dict)
    declined: tuple[Declined, ...] = ()
    setbacks: Setbacks | None = None
    attempts: Attempts = field(default_factory=Attempts)
    evidence: Evidence = field(default_factory=Evidence)
    aftercare: Aftercare | None = None
    live_s: float = 0.0  # seconds in Activating with inference alive
    heard: Instant | None = None  # when health last spoke
    swaps: tuple[str, ...] = ()  # the latest swaps that history has been told of, as epoch and count
    saved: Timer | None = None  # when evidence is next worth writing
    alarms: tuple[str, ...] = ()
    floor: int = 0
    runtime: str = ""
    seen: tuple[Seen, ...] = ()
    next_id: int = 1
    running: str | None = None  # what health says
    again: bool = False  # look again at once
    waiting: str = ""  # why nothing happens now


@dataclass(frozen=True, slots=True)
class Rules:
    """Numbers that the settings give to the machine."""

    attempts: int = 5
    back_off_s: float = 30.0  # first back-off, doubling
    back_off_max_s: float = 6 * 3600.0
    postpone_s: float = 3600.0  # first postponement, doubling
    postpone_max_s: float = 7 * 86400.0
    setback_s: float = 0.0  # after the second release in a row that failed, doubling; 0: none
    activation_s: float = 120.0  # live seconds for a candidate to come up
    label_horizon_s: float = 0.0  # how long late labels may still decide after a confirmation; 0: not at all
    keep_slots: int = 3  # newest confirmed slots that are kept, as are current and fallback
    seen: int = 256


@dataclass(frozen=True, slots=True)
class Answers:
    """What policies, judges and the device answer at the moment of one event."""

    may_check: Verdict = field(default_factory=Allow)
    may_acquire: Verdict = field(default_factory=Allow)
    may_canary: Verdict = field(default_factory=Allow)
    may_activate: Verdict = field(default_factory=Allow)
    canary_free: bool = True  # the device's token: one canary at a time
    load_free: bool = True  # the device's token: one load at a time
    probation: ProbationVerdict = field(default_factory=lambda: ProbationVerdict(Standing.OPEN, ""))
    steady: SteadyVerdict = field(default_factory=SteadyVerdict)
    overdue: tuple[str, ...] = ()  # what has waited for longer than the settings find quiet
    rules: Rules = field(default_factory=Rules)


def add(one: Counts, other: Counts) -> Counts:
    """Sum of two counts, field by field."""
    return Counts(*(getattr(one, f.name) + getattr(other, f.name) for f in fields(Counts)))


def subtract(one: Counts, other: Counts) -> Counts:
    """Difference of two counts, field by field."""
    return Counts(*(getattr(one, f.name) - getattr(other, f.name) for f in fields(Counts)))


_PAIRS = frozenset({"both_right", "only_new", "only_old", "both_wrong", "slower_new", "slower_old"})


def gather(state: State, event: Runs) -> Evidence:
    """The evidence after one more health record; a record of another link or version changes nothing.

    The first record of an epoch is the zero that later ones are measured from, so that nothing counted before this
    activation, or twice, comes in. Within an epoch counts only grow, and an epoch once left does not come back: a
    record that says otherwise is a late one, and changes nothing. The pairs alone begin again from zero when the
    shadow worker does.
    """
    known = state.evidence
    if state.link is None or event.link != state.link or event.digest is None or event.digest != state.current:
        return known
    if event.epoch in known.past:
        return known
    if event.epoch == known.epoch:
        fell = {f.name for f in fields(Counts) if getattr(event.counts, f.name) < getattr(known.last, f.name)}
        if fell - _PAIRS:
            return known
        if not fell:
            return replace(known, last=event.counts)
        so_far = known.total
        first = replace(known.first, **{name: getattr(event.counts, name) for name in _PAIRS})
        before = replace(known.before, **{name: getattr(so_far, name) for name in _PAIRS})
        return replace(known, first=first, last=event.counts, before=before)
    past = (*known.past, known.epoch)[-16:] if known.epoch else known.past
    return Evidence(event.epoch, event.counts, event.counts, known.total, past)


def slot(state: State, digest: str | None) -> SlotFacts | None:
    """The slot of that digest, if it is on disk."""
    return next((s for s in state.slots if s.release.digest == digest), None)


def version(state: State, digest: str | None) -> str:
    """The version of a digest, as far as known; otherwise the digest's beginning."""
    if digest is None:
        return "nothing"
    found = slot(state, digest)
    if found is not None:
        return found.release.version
    for known in (state.candidate, state.standby):
        if known is not None and known.release.digest == digest:
            return known.release.version
    if digest in state.blocks:
        return state.blocks[digest].version
    return digest[:12]


def block_reason(state: State, release: Release) -> str:
    """Why this release may not be activated, or an empty string. Precedence: withdrawn, blocked, blocked file."""
    if release.digest in state.withdrawn:
        return f"withdrawn: {state.withdrawn[release.digest]}"
    own = state.blocks.get(release.digest)
    if own is not None:
        return f"blocked ({own.cause.value}): {own.reason}"
    used = {s.release.model_file for s in state.slots if s.confirmed and s.release.digest not in state.blocks}
    for other in state.blocks.values():
        if other.model_file == release.model_file and other.model_file not in used:
            return f"blocked ({other.cause.value}): the same model file as {other.version}: {other.reason}"
    return ""


def revert_target(state: State, leaving: str | None, refused: tuple[str, ...] = ()) -> str | None:
    """The newest confirmed slot on disk that is neither blocked nor being left nor has refused."""
    fit = [
        s.release
        for s in state.slots
        if s.confirmed
        and s.release.digest != leaving
        and s.release.digest not in refused
        and not block_reason(state, s.release)
    ]
    return max(fit, key=lambda release: (release.number, release.digest)).digest if fit else None
