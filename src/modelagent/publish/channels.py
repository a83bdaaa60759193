"""Channel documents as the publisher makes them: a new one from the last one and a wish.

This file knows how a channel document changes. It is pure: it reads no file and signs nothing.

    document = compose("digits", "stable", previous, now=now, release=("1.1.0", digest), waves=[(now, 0.1)])

What was withdrawn once stays withdrawn: devices that were off for a year must still learn of it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from modelagent.errors import UsageError
from modelagent.steps import channel as form

Named = tuple[str, str]  # version, digest of the manifest


def compose(
    model: str,
    channel: str,
    previous: Mapping[str, Any] | None,
    *,
    now: datetime,
    release: Named | None,
    waves: Sequence[tuple[datetime, float]] = (),
    withdrawn: Sequence[tuple[Named, str]] = (),
) -> bytes:
    """Compose the bytes of a channel document.

    Args:
        model: its name.
        channel: its name.
        previous: the document that is published now, or None.
        now: becomes `issued`.
        release: what devices should run, or None for nothing.
        waves: from which time which share of devices may start; empty means all at once.
        withdrawn: further versions to take back, with the reason.

    Raises:
        UsageError: names the argument and what is allowed; nothing was changed.
    """
    for what, name in (("model", model), ("channel", channel)):
        if not form.NAME.fullmatch(name):
            raise UsageError(f"{what} name {name!r}: allowed are names like /{form.NAME.pattern}/", code="bad-name")
    last = 0.0
    for start, share in waves:
        if start.tzinfo is None or not 0 < share <= 1:
            raise UsageError(
                f"wave {start.isoformat()}={share}: allowed is a time with a zone and a share above 0 and at most 1",
                code="bad-wave",
            )
        if share <= last:
            raise UsageError(
                f"wave {start.isoformat()}={share}: each wave must hold more devices than the one before ({last})",
                code="bad-wave",
            )
        last = share
    if [start for start, _ in waves] != sorted(start for start, _ in waves):
        raise UsageError("waves: give them in the order of their start", code="bad-wave")
    taken_back = {entry["digest"]: dict(entry) for entry in (previous or {}).get("withdrawn", [])}
    for (version, digest), reason in withdrawn:
        taken_back[digest] = {"version": version, "digest": digest, "reason": reason[:500]}
    if release is not None and release[1] in taken_back:
        reason = taken_back[release[1]]["reason"]
        raise UsageError(
            f"{model} {release[0]} is withdrawn ({reason}); publish the same files under a new version instead",
            code="withdrawn",
        )
    return form.dump(
        {
            "schema": form.SCHEMA,
            "model": model,
            "channel": channel,
            "issued": instant(now),
            "release": None if release is None else {"version": release[0], "digest": release[1]},
            "waves": [{"start": instant(start), "share": share} for start, share in waves],
            "withdrawn": sorted(taken_back.values(), key=lambda entry: str(entry["version"])),
        }
    )


def instant(moment: datetime) -> str:
    """A time as every signed document writes it."""
    return moment.astimezone(UTC).replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")
