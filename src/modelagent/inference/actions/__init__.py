"""What rules do: one file for each kind. This page is what they share: the firing, and the thread between.

It knows that a decision is made in the serving thread and acted on in another: no action, however slow or broken, may
hold up a frame. It does not know what an action is made of.

    book = RuleBook([rule, ...], device="box-17", courier=None)      # an outlet of results, as records.py wants it
    book.put(row)                                  # decides at once, never waits
    book.report()                                  # for health: {"scrap": {"met": true, "fired": 3, "webhook": {...}}}
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from modelagent.inference.results import Row
from modelagent.inference.rules import Rule, RuleWatch

_log = logging.getLogger(__name__)

_WAIT: Final = 100  # firings that may wait for one action
_COMPLAIN: Final = 60.0  # seconds between two complaints about the same action


class Firing(NamedTuple):
    """One moment at which a rule acts. `id` is unique for ever; `wall` is Unix seconds."""

    id: str
    rule: str
    device: str
    wall: float
    row: Row

    def document(self) -> dict[str, Any]:
        """As it leaves the device."""
        return {
            "schema": 1,
            "id": self.id,
            "device": self.device,
            "model": self.row.model,
            "rule": self.rule,
            "at": self.wall,
            "result": self.row._asdict(),
        }


class Action(Protocol):
    """Does one thing. Used by one thread only."""

    name: str

    def do(self, firing: Firing, stop: threading.Event) -> None:
        """Act on one firing; gives up soon once `stop` is set.

        Raises:
            OSError: it could not be done, for the reason in the message.
        """


class Doer:
    """An action behind a bounded queue and a thread of its own."""

    def __init__(self, action: Action, *, capacity: int = _WAIT) -> None:
        self.name = action.name
        self.done = 0
        self.failed = 0
        self.lost = 0
        self._action = action
        self._capacity = capacity
        self._firings: deque[Firing] = deque()
        self._some = threading.Event()
        self._stop = threading.Event()
        self._complained = -_COMPLAIN
        self._thread = threading.Thread(target=self._run, name=f"action-{action.name}", daemon=True)
        self._thread.start()

    def put(self, firing: Firing) -> None:
        """Take a firing; when too many wait it is lost and counted."""
        if len(self._firings) >= self._capacity:
            self.lost += 1
            return
        self._firings.append(firing)
        self._some.set()

    def close(self, timeout: float) -> None:
        """Do what waits, as far as the time allows; what is left is lost."""
        deadline = time.monotonic() + timeout
        while self._firings and time.monotonic() < deadline - 0.1:
            time.sleep(0.005)
        self._stop.set()
        self._some.set()
        self._thread.join(max(0.1, deadline - time.monotonic()))

    def report(self) -> dict[str, int]:
        """For health."""
        return {"done": self.done, "failed": self.failed, "lost": self.lost}

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            while self._firings and not self._stop.is_set():
                self._do(self._firings[0])
                self._firings.popleft()  # only now: what is being done still counts against the capacity
            if self._stop.is_set():
                self.lost += len(self._firings)
                return

    def _do(self, firing: Firing) -> None:
        try:
            self._action.do(firing, self._stop)
            self.done += 1
        except Exception as error:  # noqa: BLE001 - an action is a plug-in: no fault of one may end its thread for good
            self.failed += 1
            now = time.monotonic()
            if now - self._complained >= _COMPLAIN:
                self._complained = now
                text = error if isinstance(error, OSError) else repr(error)
                _log.warning("rule %s: %s: %s; %d failed so far", firing.rule, self.name, text, self.failed)


class RuleBook:
    """All rules of one model, as an outlet of its results."""

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        device: str,
        publish: Callable[[str, dict[str, Any]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`publish(topic, document)` leaves an MQTT message to be sent; None where there is no broker."""
        self.written = 0
        self._device = device
        self._clock = clock
        self._watches = [(RuleWatch(rule), [Doer(action) for action in _actions(rule, publish)]) for rule in rules]

    @property
    def lost(self) -> int:
        """Firings that no action has done."""
        return sum(doer.lost + doer.failed for _, doers in self._watches for doer in doers)

    def put(self, row: Row) -> None:
        """Decide on one result."""
        now = self._clock()
        for watch, doers in self._watches:
            if watch.step(row, now):
                self.written += 1
                firing = Firing(f"{row.id}-{watch.rule.name}", watch.rule.name, self._device, time.time(), row)
                for doer in doers:
                    doer.put(firing)

    def close(self, timeout: float) -> None:
        """Act on what waits, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for _, doers in self._watches:
            for doer in doers:
                doer.close(max(0.1, deadline - time.monotonic()))

    def report(self) -> dict[str, Any]:
        """For health."""
        return {
            watch.rule.name: {"met": watch.met, "fired": watch.fired} | {doer.name: doer.report() for doer in doers}
            for watch, doers in self._watches
        }


def _actions(rule: Rule, publish: Callable[[str, dict[str, Any]], None] | None) -> list[Action]:
    # Only what is used is loaded.
    actions: list[Action] = []
    if rule.log:
        from modelagent.inference.actions.log import LogAction  # noqa: PLC0415

        actions.append(LogAction())
    if rule.topic and publish is not None:
        from modelagent.inference.actions.message import MessageAction  # noqa: PLC0415

        actions.append(MessageAction(rule.topic, publish))
    if rule.webhook:
        from modelagent.inference.actions.webhook import WebhookAction  # noqa: PLC0415

        actions.append(WebhookAction(rule.webhook))
    if rule.command:
        from modelagent.inference.actions.command import CommandAction  # noqa: PLC0415

        actions.append(CommandAction(rule.command))
    return actions
