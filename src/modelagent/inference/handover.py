"""Which slot serves: follows the links, hands over ready workers, and goes back by itself.

This file knows the rules between the updater's links and the serving thread: load beside, switch at a frame
boundary, run a killed worker's frame once more, leave an unconfirmed slot that fails, restart a confirmed one. It
does not know frames, files of results or how a worker is started. Everything here runs in the main thread.

    handover.look(now)                    # the links may have changed
    handover.handle(event, now)           # the serving thread said something
    handover.tick(now)                    # once a second

The rules, with their reasons:
- A link is a wish, and `current` may change at any moment: each load looks again before it is handed over.
- A fault of an *unconfirmed* slot with a fallback is put to the test: the frame runs on the fallback. If that works
  the slot is to blame; it is left, which is on disk before the next frame is served. If the frame kills the fallback
  too, nobody is to blame and the slot goes on. Without a frame in hand there is nothing to test: the slot is left.
- Any other fault restarts the same slot: at once, then after 0.1 s, doubling to 10 s. Frames wait in the queue.
- A slot that cannot be loaded changes nothing while another worker serves, else gives way to the fallback.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

from modelagent.errors import ModelError
from modelagent.inference.budget import available_kb, shortage
from modelagent.inference.links import NO_LINKS, Slot, Target, open_slot, read_links
from modelagent.inference.options import ModelOptions
from modelagent.inference.records import Records
from modelagent.inference.serving import Adopted, Begun, Event, Fault, Hand, Retried, Server
from modelagent.inference.shadow import Shadow
from modelagent.inference.shadows import Shadows
from modelagent.inference.starts import Left, Starts
from modelagent.inference.swaps import FAULT, IDLE, MEMORY, Swaps
from modelagent.inference.workers import SERVE, SWAP, Load, Loader, Worker

_log = logging.getLogger(__name__)

_IDLE: Final = 5.0  # seconds without a frame after which a start proves nothing


@dataclass(frozen=True, slots=True)
class _Trial:
    """A fault put to the test on the fallback. `origin` still lives after not-finite."""

    target: Target
    origin: Worker | None
    digest: str
    version: str
    code: str
    reason: str


def back_off(failures: int) -> float:
    """Seconds to wait before a start after so many failures in a row."""
    return 0.0 if failures <= 1 else min(10.0, 0.1 * 2.0 ** min(failures - 2, 10))


class Handover:
    """One model's succession of workers.

    Args:
        options: of the model.
        loader: the device's.
        server: the model's serving thread.
        records: for the counts of faults.
        starts: starts.json.
        shadow: the paired re-run.
    """

    def __init__(
        self,
        options: ModelOptions,
        *,
        loader: Loader,
        server: Server,
        records: Records,
        starts: Starts,
        shadow: Shadow,
    ) -> None:
        self.links = NO_LINKS
        self.active: Worker | None = None  # handed over last; serves once `since` is set
        self.refused: dict[str, Any] | None = None
        self.fell_back: dict[str, Any] | None = None
        self._options = options
        self._loader = loader
        self._server = server
        self._records = records
        self._starts = starts
        self._shadows = Shadows(options, loader, shadow)
        self._standby: Worker | None = None
        self._load: Load | None = None
        self._trial: _Trial | None = None
        self._suspect: tuple[str, str] | None = None  # digest and code of a fault, until its frame has a result
        self._unusable: set[str] = set()
        self._failures = 0
        self._not_before = 0.0
        self._swaps = Swaps()
        self._closed = False
        self._renewal: Load | None = None  # of what serves, because its worker is worn out

    # -- what others may ask ---------------------------------------------------------------------------------------

    @property
    def running(self) -> Worker | None:
        """The worker that serves: nobody while a fault is on trial."""
        worker = self.active
        return worker if worker is not None and worker.since and self._trial is None else None

    @property
    def loading(self) -> str | None:
        """The digest being loaded to serve."""
        return self._load.slot.digest if self._load is not None else None

    @property
    def idle(self) -> str:
        """Why nothing runs, or empty."""
        if self.running is not None:
            return ""
        if self._closed:
            return "stopped"
        if self.links.current is None:
            return "no model yet: the updater has activated none"
        if self.refused is not None and self._load is None:
            return f"the model cannot be loaded: {self.refused['reason']}"
        return "starting"

    @property
    def swaps(self) -> dict[str, Any]:
        """How often another version took over, and what the last time cost."""
        return self._swaps.report()

    @property
    def fds(self) -> tuple[int, ...]:
        """Readable when a worker has died: call `look_after`."""
        return () if self.active is None else (self.active.child.pidfd,)

    def look_after(self) -> None:
        """A worker may have died; the serving thread finds out, so that there is one way to report it."""
        self._server.look()

    def shadow_died(self, worker: Worker) -> None:
        """The shadow's worker ended or hung."""
        self._shadows.died(worker)

    # -- what happens ----------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Read the links, and act on what they say."""
        self._read()
        self._reconsider(now)
        self._shadows.reconsider(self.links, self.running)

    def handle(self, event: Event, now: float) -> None:
        """Act on what the serving thread said."""
        match event:
            case Adopted():
                self._adopted(event)
            case Fault():
                self._fault(event, now)
            case Retried():
                self._retried(event)
            case Begun():
                self._swaps.begun(event.worker, event.gap_s)
        self._reconsider(now)
        self._shadows.reconsider(self.links, self.running)

    def tick(self, now: float) -> None:
        """What takes time rather than events: progress, forgiveness, idle lines."""
        worker = self.active
        if worker is not None and worker.since:
            if worker.healthy:
                self._starts.progress(worker.digest)
            elif not worker.fed and now - worker.since >= _IDLE and worker.ticket is not None:
                worker.ticket.take_back()
            if worker.healthy >= self._options.healthy_after:
                self._failures = 0
            self._look_at_wear(worker, now)
        standby = self._standby
        settled = self.active is not None and self._trial is None
        if standby is not None and settled and not (self._keeps(standby) and standby.child.alive()):
            self._standby = None
            standby.end()
        self.look(now)

    def close(self) -> None:
        """End every worker; the serving thread has stopped."""
        self._closed = True
        self._cancel()
        self._shadows.drop()
        origin = self._trial.origin if self._trial is not None else None
        for worker in (self.active, self._standby, origin):
            if worker is not None:
                self._retire(worker)
        self.active = self._standby = None

    # -- links -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        before = self.links.current
        self.links = read_links(self._options.model_dir, self.links)
        target = self.links.current
        if target == before:
            return
        self.refused = None
        self._unusable.clear()
        self._shadows.forgive()
        left = self._starts.has_left(target) if target is not None else None
        self.fell_back = self._fell_back(left) if left is not None else None
        if before is None or target is None or target.digest != before.digest:
            self._failures, self._not_before = 0, 0.0
        if self._trial is not None:
            self._end_trial()

    def _wanted(self) -> str | None:
        """The digest that should serve now."""
        target = self.links.current
        if target is None:
            return None
        fallback = self._fallback(target.digest)
        if self._starts.has_left(target) is not None and fallback is not None:
            return fallback
        if self.refused is not None:
            return self.active.digest if self.active is not None else (fallback or target.digest)
        return target.digest

    def _fallback(self, instead_of: str) -> str | None:
        target = self.links.fallback
        if target is None or target.digest == instead_of or target.digest in self._unusable:
            return None
        return target.digest

    def _reconsider(self, now: float) -> None:
        if self._trial is not None:
            return
        target, wanted = self.links.current, self._wanted()
        renewing = self._load is not None and self._load is self._renewal
        if self._load is not None and (self._load.slot.digest != wanted or (self._serves(wanted) and not renewing)):
            self._cancel()
        if wanted is None or target is None:
            if self.active is not None:
                self._swaps.stopped(IDLE)
                self._hand(None)
            return
        if self._serves(wanted) or self._load is not None:
            return
        if self.refused is not None and self.active is None and wanted != target.digest and self.fell_back is None:
            self.fell_back = {
                "from": target.digest,
                "to": wanted,
                "reason": self.refused["reason"],
                "code": "refused",
                "confirmed": self.refused["confirmed"],
            }
        if self._standby is not None and self._standby.digest == wanted and self._standby.child.alive():
            standby, self._standby = self._standby, None
            self._hand(standby)
            return
        self._begin(target, wanted, now)

    def _serves(self, digest: str | None) -> bool:
        return self.active is not None and self.active.digest == digest

    def _begin(self, target: Target, wanted: str, now: float) -> None:
        """Load the wanted slot, counting the start if it has yet to prove itself."""
        slot = self._open(wanted, now)
        if slot is None:
            return
        ticket = None
        if wanted == target.digest and not slot.confirmed():
            count = self._starts.count(wanted)
            if count >= self._options.starts and self._fallback(wanted) is not None:
                self._leave(target, wanted, "starts", f"{count} starts without one result", confirmed=False)
                self._reconsider(now)
                return
            ticket = self._starts.begin(wanted)

        def done(load: Load) -> None:
            self._load = None
            if load.worker is None:
                if ticket is not None:
                    ticket.take_back()  # it was refused, which is its own report
                self._refuse(load.slot.digest, load.code, load.reason, now=load.ended)
                self._reconsider(load.ended)
                return
            load.worker.ticket = ticket
            self._read()
            if self._trial is None and self._wanted() == load.worker.digest and not self._serves(load.worker.digest):
                self._hand(load.worker)
            else:
                self._retire(load.worker)
            self._reconsider(load.ended)

        short = None
        if self.active is not None:
            short = shortage(slot, self.active, reserve_kb=self._options.memory_reserve_kb)
        if short is not None:
            _log.warning(
                "%s: no memory for two versions (%d MB available, %d MB needed): the old one stops first",
                self._options.name,
                short[0] >> 10,
                short[1] >> 10,
            )
            self._shadows.drop()
            self._swaps.stopped(MEMORY, available_kb=short[0], needed_kb=short[1])
            self._hand(None)
        serving = self.active is not None
        self._load = self._loader.request(
            slot,
            self._options,
            purpose=SWAP if serving else SERVE,
            done=done,
            not_before=now if serving else max(now, self._not_before),
        )
        self._load.ticket = ticket

    def _open(self, digest: str, now: float) -> Slot | None:
        try:
            return open_slot(self._options.model_dir, digest)
        except ModelError as error:
            self._refuse(digest, error.code, error.message, now=now)
            return None

    def _refuse(self, digest: str, code: str, reason: str, *, now: float) -> None:
        """A slot could not be loaded: remember for this link, and wait a while if that leaves nothing to serve."""
        _log.warning("%s: cannot load %s: %s", self._options.name, digest[:12], reason)
        target = self.links.current
        if self.active is None:
            self._failures += 1
            self._not_before = now + back_off(self._failures)
        if target is not None and digest == target.digest:
            self.refused = {
                "digest": digest,
                "code": code,
                "reason": reason,
                "confirmed": (self._options.model_dir / "slots" / digest / "confirmed").exists(),
            }
            self._unusable.clear()  # with nothing else to run, the fallback is worth another try
        else:
            self._unusable.add(digest)

    def _cancel(self) -> None:
        if self._load is not None:
            if self._load.ticket is not None:
                self._load.ticket.take_back()
            self._loader.cancel(self._load)
            self._load = None

    def _look_at_wear(self, worker: Worker, now: float) -> None:
        """Replace a worker that leaks or slows down; an unconfirmed slot that does so is left."""
        if self._trial is not None or self._load is not None or now < self._not_before:
            return
        code = worker.wear.look(
            rss_kb=worker.child.resident_kb() or 0, invoke_us=worker.invoke_us, frames=worker.healthy
        )
        if not code:
            return
        _log.warning("%s: %s: %s: %s", self._options.name, worker.digest[:12], code, worker.wear.reason)
        self._records.fault(worker.digest, code)
        target = self.links.current
        probing = target is not None and target.digest == worker.digest and not worker.slot.confirmed()
        if target is not None and probing and self._fallback(worker.digest) is not None:
            self._leave(target, worker.digest, code, worker.wear.reason, confirmed=False)
            return
        self._fail(now)

        def done(load: Load) -> None:
            self._load = self._renewal = None
            if load.worker is None:
                _log.warning("%s: no fresh worker: %s", self._options.name, load.reason)
            elif self.active is worker and self._trial is None:
                self._hand(load.worker)
            else:
                self._retire(load.worker)
            self._reconsider(load.ended)

        self._load = self._renewal = self._loader.request(
            worker.slot, self._options, purpose=SWAP, done=done, not_before=self._not_before
        )

    # -- handing over ----------------------------------------------------------------------------------------------

    def _hand(self, worker: Worker | None, *, trial: bool = False, give_up: bool = False) -> None:
        self.active = worker
        unused = self._server.hand(Hand(worker, trial, give_up))
        if unused is not None:
            self._retire(unused)

    def _adopted(self, event: Adopted) -> None:
        old = event.old
        if event.worker is not None:
            self._swaps.serves(event.worker)
        if old is None or old is self.active:
            return
        if self._standby is None and self._keeps(old) and _memory_for(old):
            self._standby = old
            old.since = 0.0
        else:
            self._retire(old)

    def _keeps(self, worker: Worker) -> bool:
        """Whether it is the way back from a slot that has yet to prove itself: then it stays warm."""
        fallback, active = self.links.fallback, self.active
        return (
            fallback is not None
            and fallback.digest == worker.digest
            and active is not None
            and active.digest != worker.digest
            and not active.slot.confirmed()
        )

    @staticmethod
    def _retire(worker: Worker) -> None:
        if worker.ticket is not None:
            worker.ticket.take_back()
        worker.end()

    # -- faults ----------------------------------------------------------------------------------------------------

    def _fault(self, event: Fault, now: float) -> None:
        worker = event.worker
        lives = event.code == "not-finite"
        reason = event.reason if lives else f"{event.reason} ({worker.end()})"
        _log.warning("%s: %s: %s: %s", self._options.name, worker.digest[:12], event.code, reason)
        if worker is not self.active:  # it was being replaced anyway, and its successor runs the frame
            if lives:
                self._retire(worker)
            if not event.second:
                self._blame(worker.digest, event.code, held=event.held)
            return
        self.active = None
        self._swaps.stopped(FAULT)
        if event.second:
            self._second(worker, now, lives=lives)
            return
        self._read()
        target = self.links.current
        probing = target is not None and target.digest == worker.digest and not worker.slot.confirmed()
        fallback = self._fallback(worker.digest) if probing else None
        if target is None or fallback is None:
            if lives:
                if probing:  # a first install: there is nothing to go back to, but the updater must know
                    self._records.fault(worker.digest, event.code)
                self._hand(worker, give_up=True)
                return
            self._blame(worker.digest, event.code, held=event.held)
            self._fail(now)
        elif not event.held:
            self._records.fault(worker.digest, event.code)
            self._leave(target, worker.digest, event.code, reason, confirmed=False)
        else:
            self._cancel()
            self._trial = _Trial(
                target, worker if lives else None, worker.digest, worker.slot.manifest.version, event.code, reason
            )
            self._try(fallback, now)

    def _blame(self, digest: str, code: str, *, held: bool) -> None:
        """A fault counts once its frame has a result elsewhere: a frame that kills twice blames nobody."""
        if held:
            self._suspect = (digest, code)
        else:
            self._records.fault(digest, code)

    def _fail(self, now: float) -> None:
        self._failures += 1
        self._not_before = now + back_off(self._failures)

    def _try(self, fallback: str, now: float) -> None:
        """Run the held frame on the fallback."""
        standby = self._standby
        if standby is not None and standby.digest == fallback and standby.child.alive():
            self._standby = None
            self._hand(standby, trial=True)
            return
        slot = self._open(fallback, now)

        def done(load: Load) -> None:
            self._load = None
            if load.worker is None:
                self._unusable.add(load.slot.digest)
                self._end_trial()
            elif self._trial is None:
                self._retire(load.worker)
            else:
                self._hand(load.worker, trial=True)
            self._reconsider(load.ended)

        if slot is None:
            self._end_trial()
        else:
            self._load = self._loader.request(slot, self._options, purpose=SERVE, done=done, not_before=now)

    def _end_trial(self) -> None:
        """No verdict: the link has changed, or the fallback does not load. The frame runs on what comes next."""
        trial, self._trial = self._trial, None
        if trial is None:
            return
        self._cancel()
        self._suspect = (trial.digest, trial.code)
        if trial.origin is None:
            return
        target = self.links.current
        if self.active is None and target is not None and target.digest == trial.digest:
            self._records.fault(trial.digest, trial.code)
            self._suspect = None
            self._hand(trial.origin, give_up=True)
        else:
            self._retire(trial.origin)

    def _retried(self, event: Retried) -> None:
        if not event.trial:
            if self._suspect is not None:
                self._records.fault(*self._suspect)
                self._suspect = None
            return
        self._read()
        trial, self._trial = self._trial, None
        if trial is not None:
            self._records.fault(trial.digest, trial.code)
            self._leave(trial.target, trial.digest, trial.code, trial.reason, confirmed=False)
            if trial.origin is not None:
                self._retire(trial.origin)
        elif self._suspect is not None:
            self._records.fault(*self._suspect)
            self._suspect = None
        if event.worker is self.active:  # else a newer one has been handed over already
            self._hand(event.worker)

    def _second(self, worker: Worker, now: float, *, lives: bool) -> None:
        """The frame failed twice and has been recorded: nobody is blamed, and the slot that was serving goes on."""
        trial, self._trial = self._trial, None
        self._suspect = None
        if trial is None:
            if lives:
                self._hand(worker)
            else:
                self._fail(now)
            return
        if lives and self._standby is None:
            self._standby = worker
            worker.since = 0.0
        elif lives:
            self._retire(worker)
        if trial.origin is not None:
            self._hand(trial.origin)
        else:
            self._fail(now)

    def _leave(self, target: Target, digest: str, code: str, reason: str, *, confirmed: bool) -> None:
        """Leave a slot for good, as far as this link goes: on disk before anything is served."""
        left = Left(digest, target.link, f"{code}: {reason}", code)
        self._starts.leave(left)
        self.fell_back = self._fell_back(left) | {"confirmed": confirmed}
        _log.warning("%s: left %s for the fallback: %s: %s", self._options.name, digest[:12], code, reason)

    def _fell_back(self, left: Left) -> dict[str, Any]:
        fallback = self.links.fallback
        return {
            "from": left.digest,
            "to": fallback.digest if fallback is not None else None,
            "reason": left.reason,
            "code": left.code,
            "confirmed": False,
        }


def _memory_for(worker: Worker) -> bool:
    """Whether the device can spare a second worker: twice its size is available."""
    available = available_kb()
    return available is not None and available > 2 * (worker.child.resident_kb() or 0)
