"""The updater's queue in a few lines: commands from any thread, one thread for the real machine, one answer each.

    executor = Executor("digits", journal_directory)
    desk = Desk(submit=executor.submit, view=executor.view, now=time.time, ledger=Ledger(directory))
    executor.start()
    ...
    executor.stop()
    executor.done               # how often each command's id was carried out, counted at the state

The state goes through the real journal: what a kill would leave is what the next executor begins with.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelagent.core import effects
from modelagent.core.describe import describe
from modelagent.core.events import DiskFacts, Event, Instant, Started
from modelagent.core.machine import step
from modelagent.core.state import Answers, State
from modelagent.core.verdicts import Wait
from modelagent.inputs import Reply
from modelagent.inputs.commands import Request, answer
from modelagent.steps.journal import Journal

# Nothing is to be checked or switched here: commands alone move the state.
QUIET = Answers(may_check=Wait(4e9, "not in this test"))


class Executor:
    """One model's machine behind a queue."""

    def __init__(self, model: str, directory: Path) -> None:
        self.model = model
        self.done: Counter[str] = Counter()
        self._journal = Journal(directory, model, State)
        kept, _ = self._journal.load()
        self.state = kept if kept is not None else State(model)
        self._queue: queue.SimpleQueue[tuple[Request, Reply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="executor")

    def start(self) -> None:
        self._turn(Started(self._now(), 0.5, DiskFacts(), "litert 2"))
        self._thread.start()

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def submit(self, request: Request, reply: Reply) -> None:
        self._queue.put((request, reply))

    def view(self, request: Request) -> Mapping[str, Any]:
        return {"models": {self.model: describe(self.state)}}

    @staticmethod
    def _now() -> Instant:
        return Instant(time.time(), time.monotonic(), "boot")

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            request, reply = item
            seen = {one.id for one in self.state.seen}
            for said in self._turn(request.event(self._now(), 0.5)):
                if said.duplicate:
                    reply(answer(said.command, said.status, said.reason, duplicate=True))
                    continue
                if request.id not in seen:
                    self.done[request.id] += 1
                reply(answer(said.command, said.status, said.reason))

    def _turn(self, event: Event) -> list[effects.Answer]:
        self.state, orders = step(self.state, event, QUIET)
        for order in orders:
            if isinstance(order, effects.Persist):
                self._journal.write(order.state, order.notes)
        return [order for order in orders if isinstance(order, effects.Answer)]
