"""The paired re-run: the previous version on the frames that the running one has just decided.

This file knows the ring of recent frames, the lowest-priority worker that runs them again, and the paired counts
that come of it. It does not know what the counts prove: `judges/probation.py` does.

    shadow = Shadow(share=0.2, ring=256)
    shadow.arm(key, "<digest>", "<running digest>")     # another key: the counts begin anew
    shadow.give(worker)                                 # a thread runs what is kept, labelled frames first
    shadow.keep(result_id, digest, frame.arrays, prediction)    # the serving thread: never waits for the shadow
    shadow.label(result_id, 7, None)

Frames live in this ring only and never touch a disk. What both said of a frame is kept when the frame is gone, and when
the shadow is: a label that comes late still makes a pair. `fresh` gives it to the archive, and `recall` takes it from
there after a restart.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

from modelagent.durable import LinkId
from modelagent.inference.archive import Pair
from modelagent.inference.decisions import FrameError
from modelagent.inference.exchange import OK, Reply
from modelagent.inference.workers import Worker

_PAIRS = ("both_right", "only_new", "only_old", "both_wrong")
_COUNTS = ("frames", *_PAIRS, "agree", "slower_new", "slower_old")
_PATIENCE = 20_000  # pairs that wait for a label


class _Kept:
    """One frame of the ring."""

    __slots__ = ("arrays", "budget_us", "generation", "label", "new", "old", "ran", "right", "us")

    def __init__(
        self, arrays: tuple[npt.NDArray[Any], ...], new: int | None, generation: int, us: float, budget_us: float
    ) -> None:
        self.arrays = arrays
        self.us = us  # time that the running version took
        self.budget_us = budget_us  # and what it promised
        self.generation = generation
        self.new = new  # what the running version said
        self.old: int | None = None  # what the shadow says
        self.ran = False
        self.label: int | None = None
        self.right: bool | None = None


class Shadow:
    """One model's shadow. `keep` is the serving thread's, the rest the main thread's.

    Args:
        share: of the frames that are kept, 0 to 1: neighbouring frames prove little more than one.
        ring: frames kept.
        thin_s: seconds between two frames that are kept, at least.
        died: called, in the shadow's thread, when the worker ended or hung.
    """

    def __init__(self, *, share: float, ring: int, died: Callable[[Worker], None], thin_s: float = 0.0) -> None:
        self.worker: Worker | None = None
        self._share = share
        self._capacity = ring
        self._died = died
        self._changed = threading.Condition()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._urgent: deque[str] = deque()
        self._pending: deque[str] = deque()
        self._due = 0.0
        self._thin_s = thin_s
        self._not_before = 0.0
        self._waiting: OrderedDict[str, _Kept] = OrderedDict()  # both have spoken, the truth is not known yet
        self._of = ""  # the version that the counts are about
        self._generation = 0
        self._key: Hashable = None
        self._digest = ""
        self._running = ""
        self._link: LinkId | None = None
        self._counts: dict[str, int] = {}
        self._fresh: list[Pair] = []  # not with the archive yet
        self._thread: threading.Thread | None = None
        self._stop = False

    def arm(self, key: Hashable, digest: str, running: str, link: LinkId | None = None) -> None:
        """Compare `running` with the shadow `digest` from now on; counts go on only under the same key.

        `link` is the activation of `running` that the pairs are about.
        """
        with self._changed:
            self._link = link
            if key != self._key:
                self._counts = dict.fromkeys(_COUNTS, 0)
                self._waiting.clear()
            if (key, running) != (self._key, self._running):
                self._forget()
            self._key, self._digest, self._running = key, digest, running
            self._of = running

    def disarm(self) -> None:
        """Keep nothing; the counts are reported until another key comes or `clear`."""
        with self._changed:
            self._running = ""
            self._forget()

    def clear(self) -> None:
        """There is no shadow any more; the counts are reported as long as labels may still come."""
        self.disarm()
        self._key = None

    def keep(
        self,
        name: str,
        digest: str,
        arrays: tuple[npt.NDArray[Any], ...],
        prediction: int | None,
        *,
        mono: float = 0.0,
        us: float = 0.0,
        budget_us: float = 0.0,
    ) -> None:
        """Keep a frame that version `digest` has decided, if its turn has come.

        Args:
            name: id of the result.
            digest: of the version that made it.
            arrays: the frame.
            prediction: what it said.
            mono: when the frame came, seconds since boot.
            us: time of the inference alone, microseconds.
            budget_us: what the version promised; 0: times are not compared.
        """
        if digest != self._running or prediction is None or mono < self._not_before:
            return
        self._due += self._share
        if self._due < 1.0:
            return
        self._due -= 1.0
        self._not_before = mono + self._thin_s
        with self._changed:
            if digest != self._running:
                return
            self._kept[name] = _Kept(arrays, prediction, self._generation, us, budget_us)
            self._pending.append(name)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            self._changed.notify()

    def label(self, name: str, label: int | None, right: bool | None) -> bool:
        """The truth about a result: counts if the frame is kept; goes first if it has not been run yet.

        False when nothing is known of that result here.
        """
        with self._changed:
            kept = self._kept.get(name) or self._waiting.get(name)
            if kept is None:
                return False
            if kept.label is not None or kept.right is not None:
                return True
            kept.label, kept.right = label, right
            if kept.ran:
                self._settle(kept)
                self._waiting.pop(name, None)
            else:
                self._urgent.append(name)
                self._changed.notify()
            return True

    def fresh(self) -> list[Pair]:
        """What both have said since the last call, where the truth is still to come: for the archive."""
        with self._changed:
            fresh, self._fresh = self._fresh, []
            return fresh

    def recall(self, pair: Pair, label: int | None, right: bool | None, *, running: str, link: LinkId | None) -> None:
        """The truth about a pair of an earlier run of this process; counts for that activation alone.

        Args:
            pair: from the archive.
            label: as for `label`.
            right: as for `label`.
            running: the version that serves.
            link: its activation.
        """
        if link is None or (pair.digest, pair.link) != (running, link):
            return
        with self._changed:
            if self._key is None and self._of != running:
                self._of, self._digest, self._counts = running, pair.shadow, dict.fromkeys(_COUNTS, 0)
            if (self._of, self._digest) == (running, pair.shadow):
                self._count(pair.new, pair.old, label, right)

    def report(self, running: str | None = None) -> dict[str, Any] | None:
        """The `shadow` of health.json, while `running` serves."""
        with self._changed:
            if self._key is None and running is not None and running != self._of:
                self._of = ""
                self._waiting.clear()
            if self._key is None and (running != self._of or not any(self._counts.values())):
                return None
            return {"digest": self._digest, **self._counts}

    def give(self, worker: Worker) -> None:
        """Run the kept frames with this worker, in a thread of its own."""
        self.withdraw()
        self.worker = worker
        self._stop = False
        self._thread = threading.Thread(target=self._run, args=(worker,), name="shadow", daemon=True)
        self._thread.start()

    def withdraw(self) -> None:
        """End the worker, whatever it is doing."""
        worker, thread = self.worker, self._thread
        if worker is None or thread is None:
            return
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        worker.child.kill()
        thread.join()  # at once: the worker's end wakes it out of any wait
        worker.end()
        self.worker = self._thread = None

    def _forget(self) -> None:
        self._generation += 1
        self._kept.clear()
        self._urgent.clear()
        self._pending.clear()

    def _run(self, worker: Worker) -> None:
        while True:
            with self._changed:
                kept = self._next()
                while kept is None and not self._stop:
                    self._changed.wait()
                    kept = self._next()
                if kept is None or self._stop:
                    return
                kept.ran = True  # also if it kills: no frame is tried twice
            try:
                worker.fill(kept.arrays)
            except FrameError:  # the two versions take different frames: nothing to compare
                continue
            reply = worker.exchange.ask(worker.hang_s)
            if reply is not Reply.ANSWERED:
                if not self._stop:
                    self._died(worker)
                return
            if worker.exchange.status != OK:
                continue
            try:
                decision = worker.decide()
            except ValueError:  # an output that cannot be: nothing to compare
                continue
            self._take(kept, decision.prediction, worker.exchange.invoke_ns / 1e3)

    def _take(self, kept: _Kept, old: int | None, us: float) -> None:
        """Both have spoken of this frame."""
        with self._changed:
            kept.old = old
            if kept.generation != self._generation:  # the ring was emptied meanwhile
                return
            self._counts["frames"] += 1
            self._counts["agree"] += kept.old == kept.new
            # The shadow runs at the lowest priority: waiting for a processor can only speak for the running version.
            self._counts["slower_new"] += 0.0 < kept.budget_us < kept.us and kept.us > 2.0 * us
            self._counts["slower_old"] += 0.0 < kept.budget_us < us and us > 2.0 * kept.us
            self._settle(kept)
            if kept.label is None and kept.right is None:
                self._wait_for_truth(kept)

    def _wait_for_truth(self, kept: _Kept) -> None:
        kept.arrays = ()  # only the two answers are needed now
        name = next((name for name, one in reversed(self._kept.items()) if one is kept), None)
        if name is not None:
            del self._kept[name]
            self._waiting[name] = kept
            if self._link is not None and kept.new is not None and kept.old is not None:
                self._fresh.append(Pair(name, time.time(), self._link, self._running, self._digest, kept.new, kept.old))
                del self._fresh[:-_PATIENCE]
            if len(self._waiting) > _PATIENCE:
                self._waiting.popitem(last=False)

    def _next(self) -> _Kept | None:
        for queue in (self._urgent, self._pending):
            while queue:
                kept = self._kept.get(queue.popleft())
                if kept is not None and not kept.ran:
                    return kept
        return None

    def _settle(self, kept: _Kept) -> None:
        """Count the pair once both predictions and the truth are known."""
        if kept.old is not None and (kept.label is not None or kept.right is not None):
            self._count(kept.new, kept.old, kept.label, kept.right)

    def _count(self, said: int | None, old_said: int | None, label: int | None, right: bool | None) -> None:
        if label is not None:
            new, old = said == label, old_said == label
        elif right or old_said == said:
            new = bool(right)
            old = new if old_said == said else False
        else:
            return  # the running version was wrong and the shadow said something else: right or wrong, nobody knows
        self._counts[_PAIRS[(0 if old else 1) if new else (2 if old else 3)]] += 1
