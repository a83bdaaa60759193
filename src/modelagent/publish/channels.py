"""Channel documents as the publisher makes them: a new one from the last one and a wish.

This file knows how a channel document changes. It is pure: it reads no file and signs nothing.

    document = compose("digits", "stable", previous, now=now, release=("1.1.0", digest), waves=[(now, 0.1)])

What was withdrawn once stays withdrawn: devices that were off for a year must still learn of it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from modelagent.errors import UsageError
from modelagent.steps import channel as form

NOTHING: Final = "none"  # how a channel that names no release is typed; no version is called so

Named = tuple[str, str]  # version, digest of the manifest


class Plan(NamedTuple):
    """A wave: from when, which share, and of which groups and hardware classes (none: of all)."""

    start: datetime
    share: float
    groups: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()


Planned = Plan | tuple[datetime, float]


def compose(
    model: str,
    channel: str,
    previous: Mapping[str, Any] | None,
    *,
    now: datetime,
    release: Named | None,
    waves: Sequence[Planned] = (),
    withdrawn: Sequence[tuple[Named, str]] = (),
) -> bytes:
    """Compose the bytes of a channel document.

    Args:
        model: its name.
        channel: its name.
        previous: the document that is published now, or None.
        now: becomes `issued`.
        release: what devices should run, or None for nothing.
        waves: from which time which share of devices may start, see `Plan`; empty means all at once.
        withdrawn: further versions to take back, with the reason.

    Raises:
        UsageError: names the argument and what is allowed; nothing was changed.
    """
    for what, name in (("model", model), ("channel", channel)):
        if not form.NAME.fullmatch(name):
            raise UsageError(f"{what} name {name!r}: allowed are names like /{form.NAME.pattern}/", code="bad-name")
    plans = [Plan(*wave) for wave in waves]
    last: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for start, share, groups, hardware in plans:
        if start.tzinfo is None or not 0 < share <= 1:
            raise UsageError(
                f"wave {start.isoformat()}={share}: allowed is a time with a zone and a share above 0 and at most 1",
                code="bad-wave",
            )
        for name in (*groups, *hardware):
            if not form.MEMBER.fullmatch(name):
                raise UsageError(
                    f"wave {start.isoformat()}={share}: found {name!r}; a group or hardware class is a name such as "
                    "line-3 or aarch64",
                    code="bad-wave",
                )
        before = last.get((groups, hardware), 0.0)
        if share <= before:
            raise UsageError(
                f"wave {start.isoformat()}={share}: each wave must hold more devices than the one before ({before})",
                code="bad-wave",
            )
        last[groups, hardware] = share
    if [plan.start for plan in plans] != sorted(plan.start for plan in plans):
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
            "waves": [
                {"start": instant(plan.start), "share": plan.share}
                | ({"groups": list(plan.groups)} if plan.groups else {})
                | ({"hardware": list(plan.hardware)} if plan.hardware else {})
                for plan in plans
            ],
            "withdrawn": sorted(taken_back.values(), key=lambda entry: str(entry["version"])),
        }
    )


def plan_of(wave: Mapping[str, Any]) -> Plan:
    """A wave of a published document, as it was planned."""
    names = {key: tuple(wave.get(key, ())) for key in ("groups", "hardware")}
    return Plan(datetime.fromisoformat(wave["start"]), wave["share"], **names)


def instant(moment: datetime) -> str:
    """A time as every signed document writes it."""
    return moment.astimezone(UTC).replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")
