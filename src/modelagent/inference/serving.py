"""The hot path of one model: frame, worker, decision, result.

This file knows how one frame is run and what happens at a frame's boundary. It does not know which worker should run
or who is to blame for a fault: it reports to the main thread (`handover.py`) and runs what it is handed.

    server = Server(buffer, records, post=events.put)
    server.hand(Hand(worker))             # taken up at the next frame boundary, at once when idle
    # later `post` was called with: Adopted(worker, old), Fault(...), Retried(...)

While frames wait, several are in the worker's mailbox at once, so that it never sleeps between two; a frame boundary is
where the mailbox has been emptied. A frame whose worker failed is held and run once more on the next worker handed
over; those behind it go back to the queue. A runtime that fails on a frame without dying of it is asked once more
before that: what was only a hiccup is counted, and judged by how often it comes. Once a *trial* has passed, no frame is
taken until the main thread hands over again: what it decides must be on disk before serving goes on.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from modelagent.children import hurry
from modelagent.inference.buffer import FrameBuffer
from modelagent.inference.decisions import Decision, FrameError
from modelagent.inference.exchange import NOT_FINITE, OK, Reply
from modelagent.inference.frames import Frame
from modelagent.inference.records import Records
from modelagent.inference.shadow import Shadow
from modelagent.inference.workers import Worker

SERVES = "serve-"  # how the thread's name begins
_RECENT = 0.05  # weight of the newest inference in what they take lately
_BEAT = 4.0  # seconds between two signs of life of an idle thread; the watchdog waits ten


class Hand(NamedTuple):
    """A worker to serve with, or None to serve with none.

    `trial`: run the held frame and wait for the verdict. `give_up`: do not run the held frame again; it is `faulted`.
    """

    worker: Worker | None
    trial: bool = False
    give_up: bool = False


class Adopted(NamedTuple):
    """`worker` serves now; `old` no longer does, and may be ended."""

    worker: Worker | None
    old: Worker | None


class Fault(NamedTuple):
    """`worker` failed with `code` (crash, hang, not-finite) and serves no longer; after not-finite it still lives.

    `held`: a frame waits to be run again. `second`: that frame had failed before; it is recorded as `faulted`.
    """

    worker: Worker
    code: str
    reason: str
    held: bool
    second: bool


class Retried(NamedTuple):
    """The held frame has its result by `worker`. After a trial the thread waits for the next hand."""

    worker: Worker
    trial: bool


class Begun(NamedTuple):
    """`worker`, which had taken over, has its first result; `gap_s` after the last one before it, 0 if none was."""

    worker: Worker
    gap_s: float


Event = Adopted | Fault | Retried | Begun


class Server:
    """The serving thread of one model.

    Args:
        name: of the thread.
        buffer: where frames come from.
        records: where they end.
        shadow: what may want to run them again.
        post: takes events for the main thread; never waits.
        sample: sees each frame with its result, to send some of them; None: none is.
    """

    def __init__(
        self,
        name: str,
        buffer: FrameBuffer,
        records: Records,
        shadow: Shadow,
        post: Callable[[Event], None],
        *,
        sample: Callable[[str, Frame, str, str, Decision], None] | None = None,
    ) -> None:
        self.beat = time.monotonic()  # the thread came round
        self.progress = self.beat  # a frame was finished, or none waited
        self._buffer = buffer
        self._records = records
        self._shadow = shadow
        self._post = post
        self._sample = sample
        self._lock = threading.Lock()
        self._hand: Hand | None = None
        self._worker: Worker | None = None
        self._flying: deque[tuple[Frame, int]] = deque()  # asked and not answered: frame, when it was taken up (ns)
        self._answered = 0  # when the last answer was decided, ns
        self._fresh = False  # the worker has no result yet since it took over
        self._again: set[int] = set()  # frames, by identity, that the runtime failed on and is asked once more
        self._held: Frame | None = None
        self._blamed: Worker | None = None  # whose frame the held one was
        self._trial = False
        self._waiting = False
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"{SERVES}{name}", daemon=True)

    def start(self) -> None:
        """Begin to serve what is handed over."""
        self._thread.start()

    def hand(self, hand: Hand) -> Worker | None:
        """Hand over; returns a worker handed over before that was never taken up, which is the caller's again."""
        with self._lock:
            before = self._hand
            if before is not None and before.give_up and not hand.give_up:
                hand = hand._replace(give_up=True)
            self._hand = hand
        self._buffer.ring()
        return before.worker if before is not None and before.worker is not hand.worker else None

    @property
    def worker(self) -> Worker | None:
        """The one that frames are given to now, which may have a successor already."""
        return self._worker

    def look(self) -> None:
        """Look whether the worker still lives: it may have died with no frame to tell."""
        self._buffer.ring()

    def stop(self, timeout: float) -> bool:
        """Stop at the next frame boundary; a held frame ends as `dropped`. Returns whether it stopped in time."""
        self._stop = True
        self._buffer.ring()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        while self._flying:  # only where the thread met its end on the way
            worker = self._worker
            self._records.lost(
                self._flying.popleft()[0],
                worker.digest if worker is not None else "",
                worker.version if worker is not None else "",
                "dropped",
            )
        return True

    def _run(self) -> None:
        hurry()
        while True:
            self.beat = time.monotonic()
            if self._hand is not None:
                self._adopt()
            if self._stop:
                break
            worker = self._worker
            if worker is not None and self._held is not None:
                self._run_again(worker, self._held)
                self.progress = time.monotonic()
                continue
            frame = self._buffer.take(want=worker is not None and not self._waiting, timeout=_BEAT)
            if frame is None and not len(self._buffer):
                self.progress = time.monotonic()
            if worker is None:
                continue
            if frame is not None:
                self._serve(worker, frame)
            elif self._hand is None and not worker.child.alive():
                self._fail(worker, "crash", "the worker ended while it waited for a frame")
        if self._held is not None:
            self._give_up("dropped")

    def _adopt(self) -> None:
        with self._lock:
            hand, self._hand = self._hand, None
        if hand is None:
            return
        if hand.give_up and self._held is not None:
            self._give_up()
        old, self._worker = self._worker, hand.worker
        self._fresh = hand.worker is not None and hand.worker is not old
        self._trial, self._waiting = hand.trial, False
        if hand.worker is not None and not hand.worker.since:
            hand.worker.since = time.monotonic()
        self._post(Adopted(hand.worker, old if old is not hand.worker else None))

    def _serve(self, worker: Worker, first: Frame) -> None:
        """Run this frame and all that wait behind it, until none does or something else wants attention."""
        if not worker.fed and worker.ticket is not None:
            worker.ticket.use()
        flying, exchange, buffer = self._flying, worker.exchange, self._buffer
        self._ask(worker, first)
        while True:
            if exchange.room and self._hand is None and not self._stop:
                for more in buffer.more(exchange.room):
                    self._ask(worker, more)
            if not flying:
                return
            frame, begun = flying.popleft()
            code = self._collect(worker, frame, begun)
            self.beat = self.progress = time.monotonic()
            if code and self._once_more(worker, frame, code[0]):
                continue
            if code:
                self._held, self._blamed = frame, worker
                self._again.clear()
                self._empty(worker, code[0])
                self._fail(worker, *code)
                return

    def _once_more(self, worker: Worker, frame: Frame, code: str) -> bool:
        """Put the frame behind those in flight where its worker lives and keeps nothing between two frames."""
        if code != "failed" or id(frame) in self._again or worker.slot.manifest.stateful:
            return False
        self._again.add(id(frame))
        self._ask(worker, frame)
        return True

    def _ask(self, worker: Worker, frame: Frame) -> bool:
        """Put a frame into the mailbox; False when it does not fit the model, and has ended here."""
        begun = time.perf_counter_ns()
        worker.fed += 1
        try:
            worker.fill(frame.arrays)
        except FrameError:
            self._records.lost(frame, worker.digest, worker.version, "refused")
            return False
        worker.exchange.post()
        self._flying.append((frame, begun))
        return True

    def _collect(self, worker: Worker, frame: Frame, begun: int) -> tuple[str, str] | None:
        """Take the oldest answer, which is this frame's; returns code and reason when the worker failed."""
        exchange = worker.exchange
        reply = exchange.wait(worker.hang_s)
        if reply is Reply.ANSWERED and exchange.status == OK:
            try:
                decision = worker.decide()
            except ValueError as error:
                return "failed", f"the output for frame {frame.id} cannot be: {error}"
            now = time.perf_counter_ns()
            # What the frame took by itself: it did not run while the one before it did.
            latency_us = (now - max(begun, self._answered)) / 1000.0
            if self._fresh:
                self._fresh = False
                self._post(Begun(worker, (now - self._answered) / 1e9 if self._answered else 0.0))
            self._answered = now
            worker.invoke_us += (exchange.invoke_ns / 1000.0 - worker.invoke_us) * _RECENT
            name = self._records.done(frame, worker.digest, worker.version, decision, latency_us)
            worker.healthy += 1
            if self._again and id(frame) in self._again:
                self._again.remove(id(frame))
                self._records.recovered(worker.digest, frame.mono)
            self._shadow.keep(
                name,
                worker.digest,
                frame.arrays,
                decision.prediction,
                mono=frame.mono,
                us=exchange.invoke_ns / 1e3,
                budget_us=worker.budget_us,
            )
            if self._sample is not None:
                self._sample(name, frame, worker.digest, worker.version, decision)
            return None
        if reply is Reply.HUNG:
            return "hang", f"no answer to frame {frame.id} within {worker.hang_s:g} s"
        if reply is Reply.DIED:
            return "crash", f"the worker ended on frame {frame.id}"
        if exchange.status == NOT_FINITE:
            return "not-finite", f"the output for frame {frame.id} is NaN or infinite"
        return "failed", f"the runtime failed on frame {frame.id}"

    def _empty(self, worker: Worker, code: str) -> None:
        """Frames behind a failed one go back to the queue; a worker that lives finishes them for nobody."""
        behind = [frame for frame, _ in self._flying]
        self._flying.clear()
        if code == "not-finite":
            for _ in behind:
                if worker.exchange.wait(worker.hang_s) is not Reply.ANSWERED:
                    break  # its mailbox is spent: the next question will say so
        self._buffer.give_back(behind)

    def _run_again(self, worker: Worker, frame: Frame) -> None:
        if not worker.fed and worker.ticket is not None:
            worker.ticket.use()
        trial = self._trial
        code = None
        if self._ask(worker, frame):
            frame, begun = self._flying.popleft()
            code = self._collect(worker, frame, begun)
        if code:
            self._give_up()
            self._fail(worker, *code, second=True)
            return
        self._held = self._blamed = None
        self._waiting = trial
        self._trial = False
        self._post(Retried(worker, trial))

    def _fail(self, worker: Worker, code: str, reason: str, *, second: bool = False) -> None:
        self._worker = None
        self._trial = False
        code = "crash" if code == "failed" else code
        self._post(Fault(worker, code, reason, held=self._held is not None, second=second))

    def _give_up(self, outcome: str = "faulted") -> None:
        """The held frame ends here: it killed twice, so no version is to blame, or we stop."""
        frame, worker = self._held, self._blamed
        assert frame is not None  # noqa: S101 - callers have looked
        slot = worker.slot if worker is not None else None
        self._records.lost(frame, slot.digest if slot else "", slot.manifest.version if slot else "", outcome)
        self._held = self._blamed = None
