"""The updater's hands: each long-lived thread takes one kind of work in order, so that nothing slow holds the driver.

This file knows how an effect becomes a call to a step and how its end becomes an event. It decides nothing.

    hands = Hands(post)
    hands.do("canary", 7, lambda work: {"verdict": runner.run(..., abandoned=work.abandoned)}, model="digits")
    ...                                    # post("digits", factory) is called with Finished or Failed

The threads live as long as the process: a child spawned from a thread dies with that thread (PR_SET_PDEATHSIG).
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelagent.core.events import Event, Failed, Finished, Instant
from modelagent.errors import AgentError, DeviceError
from modelagent.inputs import Emit

_log = logging.getLogger("modelagent.updater")


@dataclass(eq=False, slots=True)
class Work:
    """One piece of work. `abandoned` is asked by the step between its parts; `progress` in bytes."""

    model: str
    effect: int
    call: Callable[["Work"], Mapping[str, Any]]
    answer: Callable[["Work", Mapping[str, Any] | AgentError], Callable[[Instant, float], Event]]
    progress: int = 0
    _given_up: threading.Event = field(default_factory=threading.Event)

    def abandon(self) -> None:
        """Ask the step to stop at its next chance."""
        self._given_up.set()

    def abandoned(self) -> bool:
        """True once the result is no longer wanted."""
        return self._given_up.is_set()


def finished(work: Work, outcome: Mapping[str, Any] | AgentError) -> Callable[[Instant, float], Event]:
    """The usual answer: Finished with what the step returned, or Failed with the error's remedy."""

    def make(at: Instant, draw: float) -> Event:
        if isinstance(outcome, AgentError):
            return Failed(
                at,
                draw,
                work.effect,
                outcome.remedy,
                outcome.code,
                outcome.message,
                progress=work.progress,
                retry_after=float(getattr(outcome, "retry_after", 0.0)),
            )
        return Finished(at, draw, work.effect, progress=work.progress, **outcome)

    return make


class Hands:
    """Named threads with a queue each; made when first needed, ended by `stop`."""

    def __init__(self, post: Emit) -> None:
        self._post = post
        self._queues: dict[str, queue.SimpleQueue[Work | None]] = {}
        self._threads: list[threading.Thread] = []
        self._open: dict[tuple[str, int], Work] = {}
        self._guard = threading.Lock()

    def do(
        self,
        hand: str,
        model: str,
        effect: int,
        call: Callable[[Work], Mapping[str, Any]],
        answer: Callable[[Work, Mapping[str, Any] | AgentError], Callable[[Instant, float], Event]] = finished,
    ) -> None:
        """Queue one piece of work for the named hand. Effect 0: nobody waits, failures are only logged."""
        work = Work(model, effect, call, answer)
        with self._guard:
            if effect:
                self._open[model, effect] = work
        self._queue(hand).put(work)

    def abandon(self, model: str, effect: int) -> None:
        """Give up a piece of work that is queued or under way."""
        with self._guard:
            work = self._open.get((model, effect))
        if work is not None:
            work.abandon()

    def prepare(self, *hands: str) -> None:
        """Have the threads of these hands, so that nothing has to be started in an hour of need.

        A thread that finds no memory in its first steps leaves whoever starts it waiting for ever (CPython 3.11).
        """
        for hand in hands:
            self._queue(hand)

    def check(self) -> None:
        """Raise RuntimeError when a thread has died: what it had taken up, and all that is queued, would never end.

        A thread that finds no memory may die without a word: not even `threading.excepthook` is called then.
        """
        for thread in self._threads:
            if not thread.is_alive():
                raise RuntimeError(f"the thread {thread.name} is gone; the process has to be started again")

    def stop(self, timeout: float = 4.0) -> None:
        """Abandon everything and end the threads; a step that does not listen is left to the process's end."""
        with self._guard:
            for work in self._open.values():
                work.abandon()
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _queue(self, hand: str) -> queue.SimpleQueue[Work | None]:
        if hand not in self._queues:
            waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
            self._queues[hand] = waiting
            thread = threading.Thread(target=self._run, args=(waiting,), name=f"hand-{hand}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self._queues[hand]

    def _run(self, waiting: queue.SimpleQueue[Work | None]) -> None:
        while (work := waiting.get()) is not None:
            outcome: Mapping[str, Any] | AgentError
            try:
                outcome = {} if work.abandoned() else work.call(work)
            except AgentError as error:
                outcome = error
            except OSError as error:
                outcome = DeviceError(f"{error.filename or 'the device'}: {error.strerror or error}", code="io")
            with self._guard:
                self._open.pop((work.model, work.effect), None)
            if work.effect == 0:
                if isinstance(outcome, AgentError):
                    _log.warning("%s: %s", work.model, outcome.message)
            elif not work.abandoned():
                self._post(work.model, work.answer(work, outcome))
