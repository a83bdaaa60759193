"""Facts and moments for the tests of policies."""

from modelagent.core.events import Instant
from modelagent.core.verdicts import Allow, Wait
from modelagent.policies import Composed, Facts

NOW = 1_767_225_600.0  # Thursday 2026-01-01 00:00 UTC


def at(seconds: float, boot: str = "boot") -> Instant:
    return Instant(NOW + seconds, seconds, boot)


def facts(seconds: float = 0.0) -> Facts:
    return Facts(at(seconds))


def next_time(composed: Composed, asked: Facts) -> float | None:
    """When to ask again: now for Allow, never for Deny, which only new facts or settings can help."""
    verdict = composed.verdict
    return asked.at.wall if isinstance(verdict, Allow) else verdict.until if isinstance(verdict, Wait) else None
