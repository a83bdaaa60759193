"""What may happen: every input of the updater, as frozen data.

This file knows the events. It does not know where they come from. Time and chance are data: every event carries
both clocks, the boot's id and one random draw, so that the core reads no clock and throws no dice.

Events are past participles: they say what was, never what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelagent.core.verdicts import CanaryVerdict
from modelagent.errors import Remedy
from modelagent.manifest import Release


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on both clocks: Unix seconds, seconds since boot, and which boot."""

    wall: float
    mono: float
    boot_id: str


@dataclass(frozen=True, slots=True)
class Link:
    """Identity of one activation: inode and mtime_ns of the `current` link. Never repeats."""

    inode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One complete slot found on disk."""

    release: Release
    confirmed: bool


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What the store holds: complete slots, and what the links name (digest), with the identity of `current`."""

    slots: tuple[SlotFacts, ...] = ()
    current: str | None = None
    link: Link | None = None
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Cumulative counts of one version in one inference epoch; evidence is the difference of two of these.

    `busy_s` counts seconds in which frames came. The four pair counts compare running and shadow model on the same
    labelled frames; `slower_new` counts frames on which the running model alone broke its promised time and took more
    than twice as long, `slower_old` the other way round. `faults` are crashes, hangs and NaN; `faulted` frames blame
    nobody and are not among them. `right` and `wrong` are thinned: labels of neighbouring frames count once.
    `confident` results have a confidence, whose sum, in thousandths, is `confidence`. In `unsteady_s` of the seconds
    with frames one at least failed at first, and succeeded when it was run again.
    """

    frames: int = 0
    done: int = 0
    dropped: int = 0
    faults: int = 0
    busy_s: int = 0
    right: int = 0
    wrong: int = 0
    both_right: int = 0
    only_new: int = 0
    only_old: int = 0
    both_wrong: int = 0
    slower_new: int = 0
    slower_old: int = 0
    confident: int = 0
    confidence: int = 0
    unsteady_s: int = 0


@dataclass(frozen=True, slots=True)
class Swap:
    """Health: one version has taken over from another.

    `count` says which swap of its epoch it was. `how`: `beside` (loaded beside the old one), `memory` (the old one had
    to stop first, with `available_kb` and `needed_kb` for the new one), `fault` (the old one had failed) or `idle`
    (nothing was to run). `without_s` is how long no worker served, `gap_s` lies between the last result and the first.
    """

    count: int
    origin: str
    target: str
    how: str
    gap_s: float
    without_s: float = 0.0
    available_kb: int = 0
    needed_kb: int = 0


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A version that signed channel data takes back."""

    digest: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wave:
    """From `start` (Unix seconds) on, the share (0..1] of devices that may begin.

    Where `groups` or `hardware` name any, the wave is for devices in one of these groups, of one of these classes.
    """

    start: float
    share: float
    groups: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Base: when it happened, and one draw from [0, 1) for jitter."""

    at: Instant
    draw: float


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The updater came up, first boot or after any crash; `disk` is the truth about the store."""

    disk: DiskFacts
    runtime: str


@dataclass(frozen=True, slots=True)
class Elapsed(Event):
    """Time passed: look again."""


@dataclass(frozen=True, slots=True)
class Learned(Event):
    """A check finished with fresh signed metadata.

    `offer` is what the channel names (None: the channel names nothing), `pinned` the release of the wanted pin if the
    repository has it. `withdrawn` lists every version the channel takes back.
    """

    effect: int
    offer: Release | None
    pinned: Release | None = None
    withdrawn: tuple[Withdrawal, ...] = ()
    waves: tuple[Wave, ...] = ()
    notes: tuple[str, ...] = ()  # warnings about the metadata, for instance soon expiring


@dataclass(frozen=True, slots=True)
class CheckFailed(Event):
    """A check did not finish; nothing is known that was not known before."""

    effect: int
    remedy: Remedy
    code: str
    message: str
    retry_after: float = 0.0  # seconds, as the server asked


class Verb:
    """What a command may ask for. Commands say what should hold; they are not orders."""

    CHECK = "check"
    UPDATE = "update"  # check, and lift windows and waves ("now")
    PIN = "pin"
    UNPIN = "unpin"
    HOLD = "hold"
    RESUME = "resume"
    ROLLBACK = "rollback"
    LIFT = "lift"
    BLOCK = "block"
    CONFIRM = "confirm"  # the version on probation is good: do not wait for the judge
    SET_CHANNEL = "set-channel"
    CONFIG = "config"  # a config edit: channel, pin, hold, forbidden versions
    ALL = (CHECK, UPDATE, PIN, UNPIN, HOLD, RESUME, ROLLBACK, LIFT, BLOCK, CONFIRM, SET_CHANNEL, CONFIG)


@dataclass(frozen=True, slots=True)
class Wanted(Event):
    """Somebody says what should hold.

    `verb` is one of Verb.ALL but ROLLBACK (that is RevertWanted); `argument` a version, digest, channel or reason; `id`
    makes a repeat a no-op; `origin` is cli, mqtt or config.
    """

    verb: str
    origin: str
    id: str
    argument: str = ""
    settings: "ConfigWish | None" = None


@dataclass(frozen=True, slots=True)
class ConfigWish:
    """What the settings file says should hold for one model."""

    channel: str = "stable"
    pin: str = ""
    hold: bool = False
    updates: bool = True  # False: config forbids every new activation
    forbid: tuple[str, ...] = ()  # versions that config forbids
    safe_action: str = "keep-and-alarm"  # or "stop"
    probation: bool = True


@dataclass(frozen=True, slots=True)
class RevertWanted(Event):
    """Leave the running version: an operator's rollback."""

    origin: str
    id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """An effect of this id is done. `link` belongs to Stage, Activate and Revert, `verdict` to RunCanary."""

    effect: int
    link: Link | None = None
    verdict: CanaryVerdict | None = None
    progress: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """An effect of this id could not be done.

    `progress` says how far it got (bytes), for the attempt limit. `disk` is the store as it is after a failed
    Activate or Revert, which may have done half of its work, or all but the last fsync.
    """

    effect: int
    remedy: Remedy
    code: str
    message: str
    progress: int = 0
    retry_after: float = 0.0
    disk: DiskFacts | None = None


@dataclass(frozen=True, slots=True)
class Runs(Event):
    """Health: inference acts on `link` and runs `digest` (None: nothing yet), with these counts since `epoch`.

    `swap` is the last one of this epoch; it comes with every record until the next.
    """

    link: Link | None
    digest: str | None
    epoch: str
    counts: Counts
    shadow: str | None = None
    swap: Swap | None = None


@dataclass(frozen=True, slots=True)
class FellBack(Event):
    """Health: for `link`, inference left `digest` for the fallback by itself.

    `confirmed` says whether inference saw the slot confirmed; `hard` whether it was crash, hang or NaN.
    """

    link: Link
    digest: str
    reason: str
    confirmed: bool
    hard: bool = True


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """Health: for `link`, inference could not load `digest` (wrong hash, contract, load failure)."""

    link: Link
    digest: str
    reason: str
    confirmed: bool
    hard: bool = False
