"""Inference's health file, read as evidence: events for the machine, or a reason why there are none.

This file knows the format of health.json and how to doubt it. It does not know the deployment: whether a record names
the link that matters is the machine's to decide, so every event carries its link.

    reading = read(json.loads(path.read_bytes()), boot_id)
    [make(at, draw) for make in reading.events]        # FellBack, Refused, Runs, in this order
    reading.reason                                     # "" or why there is nothing to learn

A file that is missing, torn, of another boot or of another schema is no error and no event: bad silence is judged by
others, from frames without results. Freshness is judged by `seq` alone, never by comparing clocks.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelagent.core.events import Counts, Event, FellBack, Instant, Link, Refused, Runs, Swap
from modelagent.inputs import EventFactory

SCHEMA: Final = 1
MAX_BYTES: Final = 4 * 1024 * 1024
_AT_ONCE: Final = 64 * 1024
STALE_S: Final = 10.0  # ten times the interval at which inference writes
HARD: Final = ("crash", "hang", "not-finite")  # the model file's own doing, wherever it runs
_TEXT_MAX: Final = 2000  # characters of a reason, which State remembers; and no name is so long
_NAME_MAX: Final = 64  # characters of a version or a digest
_MOST: Final = 2**53  # no count grows so far, and beyond it arithmetic fails
_HALVES: Final = re.compile("[\ud800-\udfff]")  # JSON can say half a character; UTF-8, in which we write, cannot
_PAIRS: Final = ("both_right", "only_new", "only_old", "both_wrong", "slower_new", "slower_old")


class _Doubt(Exception):  # noqa: N818 - not an error: the file simply says nothing that can be used
    """The document is not what it should be; the text says where."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the file gave.

    `mark` is (epoch, seq), None without a usable record; `fresh` says that the record is newer than one seen before,
    that is, inference was seen alive; `document` is the whole record, for status.
    """

    events: tuple[EventFactory, ...] = ()
    reason: str = ""
    mark: tuple[str, int] | None = None
    fresh: bool = False
    document: Mapping[str, Any] | None = None


def read(document: object, boot_id: str) -> Reading:
    """Turn one health document (as json.loads gives it) into events; pure, and total on any input."""
    try:
        record = _dict(document, "health")
        schema = record.get("schema")
        if isinstance(schema, bool) or schema != SCHEMA:
            raise _Doubt(f"schema: found {_show(schema)}, this version understands {SCHEMA}")
        if _text(record, "boot_id") != boot_id:
            raise _Doubt("the record is from an earlier boot")
        mark = (f"{boot_id}:{_text(record, 'epoch')}", _count(record, "seq"))
        link = _link(record.get("link"))
        events = [*_left(record, link), *_refused(record, link), _runs(record, link, mark[0])]
    except _Doubt as doubt:
        return Reading(reason=str(doubt))
    return Reading(events=tuple(events), mark=mark, document=record)


def queue_fill(document: Mapping[str, Any] | None) -> float | None:
    """How full the frames' queue is, from 0 to 1; None where the record does not say so."""
    source = (document or {}).get("source")
    queue, capacity = (source.get("queue", 0), source.get("capacity")) if isinstance(source, dict) else (0, None)
    whole = all(isinstance(number, int) and 0 <= number < _MOST for number in (queue, capacity))
    return min(1.0, queue / capacity) if whole and capacity else None


def running_of(document: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Version and digest of what runs, as the record says; empty where nothing does."""
    running = (document or {}).get("running")
    told = {} if not isinstance(running, dict) else {key: running.get(key) for key in ("version", "digest")}
    # It goes on to the broker: nothing that is too long or too deep to be sent.
    return {key: text[:_NAME_MAX] for key, text in told.items() if isinstance(text, str)}


class Poller:
    """Looks at one health file and tells news from repetition.

    An unchanged record gives no events (the machine has had them); one that does not change for STALE_S gives the
    reason "no sign of life" as well.
    """

    def __init__(self, read_bytes: Callable[[], bytes], boot_id: str) -> None:
        """`read_bytes` returns the file's content or raises OSError; see `reader`."""
        self._read_bytes = read_bytes
        self._boot_id = boot_id
        self._mark: tuple[str, int] | None = None
        self._since = 0.0

    def poll(self, mono: float) -> Reading:
        """Look now; `mono` is the driver's own monotonic seconds."""
        try:
            data = self._read_bytes()
            if len(data) > MAX_BYTES:
                return Reading(reason=f"the health file has more than {MAX_BYTES} bytes")
            reading = read(json.loads(data), self._boot_id)
        except FileNotFoundError:
            return Reading(reason="inference has written no health file yet")
        except OSError as error:
            return Reading(reason=f"the health file cannot be read: {error.strerror}")
        except (ValueError, RecursionError):
            return Reading(reason="the health file is not whole")
        if reading.mark is None:
            return reading
        if reading.mark == self._mark:
            silent = mono - self._since
            reason = f"no sign of life from inference for {silent:.0f} s" if silent >= STALE_S else ""
            return Reading(reason=reason, mark=reading.mark, document=reading.document)
        # A lower seq within one epoch cannot be newer: a copy that somebody put back. Say so, use nothing.
        if self._mark is not None and reading.mark[0] == self._mark[0] and reading.mark[1] < self._mark[1]:
            return Reading(reason="the health file went backwards", mark=self._mark)
        fresh = self._mark is not None  # the first look may find what a dead process left
        self._mark, self._since = reading.mark, mono
        return Reading(reading.events, "", reading.mark, fresh, reading.document)


def reader(path: Path) -> Callable[[], bytes]:
    """The usual `read_bytes` of a Poller: at most one byte more than is allowed."""

    def read_bytes() -> bytes:
        with path.open("rb", buffering=0) as file:
            # It is asked for what there is, not for the most that is allowed: that would be megabytes for each look.
            whole = b""
            while len(whole) <= MAX_BYTES and (part := file.read(_AT_ONCE)):
                whole += part
            return whole[: MAX_BYTES + 1]

    return read_bytes


def _left(record: Mapping[str, Any], link: Link | None) -> list[EventFactory]:
    if record.get("fell_back") is None:
        return []
    left = _dict(record["fell_back"], "fell_back")
    digest, reason, code = _text(left, "from"), _text(left, "reason"), _text(left, "code")
    confirmed = _flag(left, "confirmed")
    if link is None:
        raise _Doubt("fell_back: a record without a link proves nothing")
    known = link

    def make(at: Instant, draw: float) -> Event:
        return FellBack(
            at, draw, link=known, digest=digest, reason=reason or code, confirmed=confirmed, hard=code in HARD
        )

    return [make]


def _refused(record: Mapping[str, Any], link: Link | None) -> list[EventFactory]:
    if record.get("refused") is None:
        return []
    refused = _dict(record["refused"], "refused")
    digest, reason, code = _text(refused, "digest"), _text(refused, "reason"), _text(refused, "code")
    confirmed = _flag(refused, "confirmed")
    if link is None:
        raise _Doubt("refused: a record without a link proves nothing")
    known = link

    def make(at: Instant, draw: float) -> Event:
        return Refused(
            at, draw, link=known, digest=digest, reason=reason or code, confirmed=confirmed, hard=code in HARD
        )

    return [make]


def _runs(record: Mapping[str, Any], link: Link | None, epoch: str) -> EventFactory:
    running = None if record.get("running") is None else _dict(record["running"], "running")
    digest = None if running is None else _text(running, "digest")
    shadow = None if record.get("shadow") is None else _dict(record["shadow"], "shadow")
    shadow_digest = None if shadow is None else _text(shadow, "digest")
    counters = _dict(record.get("counters", {}), "counters")
    own = _dict(counters.get(digest, {}), f"counters.{digest}") if digest is not None else {}
    labels = _dict(own.get("labels", {}), "labels")
    samples = _dict(own.get("samples", labels), "samples")  # an inference of an earlier version thins nothing
    faults = _dict(own.get("faults", {}), "faults")
    confident, confidence = _confidence(own.get("confidence"))
    pairs = {name: _count(shadow or {}, name, 0) for name in _PAIRS}
    counts = Counts(
        frames=_count(own, "frames", 0),
        done=_count(own, "done", 0),
        dropped=_count(own, "dropped", 0),
        faults=sum(_count(faults, code, 0) for code in HARD),
        busy_s=_count(own, "busy_s", 0),
        right=_count(samples, "right", 0),
        wrong=_count(samples, "wrong", 0),
        confident=confident,
        confidence=confidence,
        unsteady_s=_count(own, "unsteady_s", 0),
        **pairs,
    )

    swap = _swap(record.get("swaps"))

    def make(at: Instant, draw: float) -> Event:
        return Runs(at, draw, link=link, digest=digest, epoch=epoch, counts=counts, shadow=shadow_digest, swap=swap)

    return make


def _swap(value: object) -> Swap | None:
    found = {} if value is None else _dict(value, "swaps")
    if found.get("last") is None:
        return None
    last = _dict(found["last"], "swaps.last")
    if "how" not in last:  # an inference of an earlier version does not say why
        return None
    return Swap(
        count=_count(found, "count"),
        origin=_text(last, "from"),
        target=_text(last, "to"),
        how=_text(last, "how"),
        gap_s=_seconds(last, "gap_s"),
        without_s=_seconds(last, "without_s"),
        available_kb=_count(last, "available_kb", 0),
        needed_kb=_count(last, "needed_kb", 0),
    )


def _confidence(value: object) -> tuple[int, int]:
    """Number and sum (thousandths) of a histogram of confidences, each counted as the middle of its bucket."""
    found = {} if value is None else _dict(value, "confidence")
    bounds, counts = found.get("bounds", []), found.get("counts", [])
    if not isinstance(bounds, list) or not isinstance(counts, list) or len(counts) not in (0, len(bounds) + 1):
        raise _Doubt("confidence: expected bounds and one count more than these")
    number = total = 0
    below = 0.0
    for bound, count in zip([*bounds, 1.0], counts, strict=False):
        good = isinstance(bound, int | float) and not isinstance(bound, bool) and -_MOST < bound < _MOST
        if not good or not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < _MOST:
            raise _Doubt(f"confidence: found {_show(bound)} and {_show(count)}, expected a bound and a count")
        middle = min(1.0, max(0.0, (below + bound) / 2.0))
        below = bound
        number += count
        total += count * round(middle * 1000)
    return number, total


def _link(value: object) -> Link | None:
    if value is None:
        return None
    found = _dict(value, "link")
    return Link(inode=_count(found, "inode", most=2**64), mtime_ns=_count(found, "mtime_ns", most=2**63))


def _dict(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Doubt(f"{where}: found {_show(value)}, expected an object")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or _HALVES.search(value):
        raise _Doubt(f"{key}: found {_show(value)}, expected a text")
    return value[:_TEXT_MAX]


def _flag(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key)
    if not isinstance(value, bool):
        raise _Doubt(f"{key}: found {_show(value)}, expected true or false")
    return value


def _count(record: Mapping[str, Any], key: str, default: int | None = None, most: int = _MOST) -> int:
    value = record.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < most:
        raise _Doubt(f"{key}: found {_show(value)}, expected a whole number from 0")
    return value


def _seconds(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < _MOST:
        raise _Doubt(f"{key}: found {_show(value)}, expected seconds")
    return float(value)


def _show(value: object) -> str:
    # Containers by kind only: their text may be megabytes long, or too deep to print. So may a number's.
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not -_MOST < value < _MOST:
        return "a number without measure"
    return ascii(value)[:40]
