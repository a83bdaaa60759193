"""Following a command to its end: what `--wait` waits for, and how it ended.

This file knows from the updater's status when an accepted command is over. It does not know what the command did: the
status says so, in words that `core/describe.py` made.

    wait = Wait("update", before, "")
    wait.look(status)        # Ending(good=False, text="1.2.0 is blocked (failed): 83.5 % against 97.2 % ..."), or None
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelagent.errors import AgentError

LOOK_S: Final = 0.3
GONE_S: Final = 60.0  # an updater that does not answer for so long is not being restarted, it is down
_SWITCHING: Final = ("Activating", "Reverting")
Told = Mapping[str, Any]  # one model of the status
Look = Callable[[str], Told]  # a verb (status, explain) -> what it says of the model; AgentError: no answer


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended, in words. `over` is False where the time ended first."""

    good: bool
    text: str
    over: bool = True


class Wait:
    """Tells from one status after another whether a command is over.

    Args:
        verb: as it was sent.
        before: the model's status before the command.
        wanted: the version or digest that a pin named; "": what the channel offers.
    """

    def __init__(self, verb: str, before: Told, wanted: str) -> None:
        self.asks = verb not in ("rollback", "confirm")  # whether a check of the repository comes first
        self._verb = verb
        self._wanted = wanted if verb == "pin" else ""
        self._last_try = _check(before).get("last_try")
        active = before.get("candidate") if before.get("phase") in (*_SWITCHING, "Probation") else before.get("current")
        self._left = _digest(active)

    def look(self, told: Told) -> Ending | None:
        """The ending, or None while it goes on."""
        if self._verb == "rollback":
            return self._left_it(told)
        if self._verb == "confirm":
            return self._confirmed(told)
        if not self.checked(told):
            return None
        if error := str(_check(told).get("error") or ""):
            return Ending(good=False, text=error)
        offer = told.get("offer") or {}
        if self._verb == "check":
            return Ending(good=True, text=f"the channel offers {offer.get('version') or 'nothing'}" + _reason(told))
        return self._settled(told, self._wanted or offer.get("version"))

    def checked(self, told: Told) -> bool:
        """Whether the repository has been asked since."""
        check = _check(told)
        return not check.get("asked") and check.get("state") != "Checking" and check.get("last_try") != self._last_try

    def _settled(self, told: Told, wanted: str | None) -> Ending | None:
        current = told.get("current") or {}
        if told.get("phase") != "Idle" or told.get("candidate") or told.get("standby"):
            return None
        if not wanted:
            return Ending(good=True, text="nothing is offered" + _reason(told))
        if wanted in (current.get("version"), current.get("digest")):
            return Ending(
                good=True, text=f"{current['version']} runs" + (" and is confirmed" if current.get("confirmed") else "")
            )
        return Ending(good=False, text=f"{wanted} does not run" + _reason(told))

    def _left_it(self, told: Told) -> Ending | None:
        current = told.get("current") or {}
        if told.get("leaving") or told.get("phase") in _SWITCHING:
            return None
        if current and current.get("digest") != self._left:
            return Ending(good=True, text=f"{current.get('version')} runs")
        return Ending(good=False, text="it was not left" + _reason(told)) if told.get("phase") == "Idle" else None

    def _confirmed(self, told: Told) -> Ending | None:
        current = told.get("current") or {}
        if told.get("phase") == "Probation":
            return None
        if current.get("confirmed") and current.get("digest") == self._left:
            return Ending(good=True, text=f"{current.get('version')} is confirmed")
        return Ending(good=False, text="it was not confirmed" + _reason(told))


def follow(look: Look, wait: Wait, limit: float, say: Callable[[str], None]) -> Ending:
    """Look until it is over, `limit` seconds have passed, or the updater has been gone for a minute.

    `say` is given a line for each new phase, and for each new reason why nothing happens.

    Raises:
        AgentError: the updater does not answer.
    """
    end, heard, said = time.monotonic() + limit, time.monotonic(), ""
    told: Told = {}
    while time.monotonic() < end:
        try:
            told = look("status")
            heard = time.monotonic()
            if ending := wait.look(told):
                return ending
            line = _doing(look, wait, told)
        except AgentError as error:
            if time.monotonic() - heard > GONE_S:
                raise
            line = f"{error.message}; still waiting for it"
        if line != said:
            say(line)
            said = line
        time.sleep(min(LOOK_S, max(0.0, end - time.monotonic())))
    text = f"not over after {limit:g} s: {told.get('phase') or 'nothing heard'}{_reason(told)}; the updater goes on"
    return Ending(good=False, text=text, over=False)


def _doing(look: Look, wait: Wait, told: Told) -> str:
    phase = str(told.get("phase"))
    if wait.asks and not wait.checked(told):
        gate = look("explain").get("check") or {}
        held = _check(told).get("asked") and gate.get("answer") in ("wait", "deny")
        return f"no check yet: {gate.get('reason')}" if held else "checking"
    return phase if phase == "Probation" else phase + _reason(told)  # its reason counts frames


def _check(told: Told) -> Mapping[str, Any]:
    check: Mapping[str, Any] = told.get("check") or {}
    return check


def _digest(named: Mapping[str, Any] | None) -> str | None:
    return (named or {}).get("digest")


def _reason(told: Told) -> str:
    return f": {told['waiting']}" if told.get("waiting") else ""
