"""The hands of a simulated updater: each effect carried out on the simulated disk, as a step would do it.

    answer = device.perform(Work("digits", effects.Stage(...)))      # Finished(...), Failed(...)

Disks are full, transfers fail, switches break half-way, and the power may go at every point between two changes.
"""

from device_invariants import Watched
from device_parts import PEAK_KB, Slot, Store, Work
from modelagent.core import effects
from modelagent.core.events import CheckFailed, Event, Failed, Finished, Learned, Link, Wave
from modelagent.core.verdicts import CanaryVerdict
from modelagent.errors import Remedy


class Hands(Watched):
    """What the driver's hands do."""

    def perform(self, work: Work) -> Event | None:
        """Carry one effect out, as a step would; the answer it would give."""
        model, order = work.model, work.effect
        if (remedy := self.failing.get(type(order).__name__)) is not None:
            return self._failure(order, remedy, "made to fail")
        store = self.stores[model]
        match order:
            case effects.Check():
                return self._check(order)
            case effects.Acquire():
                if self.full and order.release.digest not in store.incoming:
                    return self._failure(order, Remedy.WAIT, "no space")
                store.incoming.add(order.release.digest)
                return Finished(self.now, self.draw, order.id)
            case effects.Stage():
                return self._stage(store, order)
            case effects.RunCanary():
                return self._canary(store, order)
            case effects.KeepPeak():
                if self.full or order.release.digest not in store.slots:
                    return self._failure(order, Remedy.WAIT, "no space for a number")
                store.slots[order.release.digest].peak_kb = order.peak_kb
            case effects.Activate():
                return self._activate(model, store, order)
            case effects.Revert():
                return self._revert(model, store, order)
            case effects.Confirm():
                if self.full or order.release.digest not in store.slots:
                    return self._failure(order, Remedy.WAIT, "no space for the mark")
                store.slots[order.release.digest].confirmed = True
                self._check_disk(model)
                self._point()
                store.shadow = None
            case effects.SetFallback():
                if self.full and order.target is not None:
                    return self._failure(order, Remedy.WAIT, "no space for a link")
                assert order.target is None or order.target in store.slots
                store.fallback = order.target
            case effects.SetShadow():
                if self.full and order.target is not None:
                    return self._failure(order, Remedy.WAIT, "no space for a link")
                assert order.target is None or order.target in store.slots
                store.shadow = order.target
            case effects.Stop():
                store.current = store.link = store.shadow = None
            case effects.Vacuum():
                self._vacuum(model, store, order)
            case _:
                raise AssertionError(f"no hand for {order}")
        self._check_disk(model)
        return Finished(self.now, self.draw, order.id)

    def _failure(self, order: effects.Effect, remedy: Remedy, message: str) -> Event:
        if isinstance(order, effects.Check):
            return CheckFailed(self.now, self.draw, order.id, remedy, "simulated", message)
        disk = self.stores[order.model].facts() if isinstance(order, effects.Activate | effects.Revert) else None
        done = self.progress if isinstance(order, effects.Acquire) else 0
        return Failed(self.now, self.draw, order.id, remedy, "simulated", message, done, disk=disk)

    def _check(self, order: effects.Check) -> Event:
        self.checks.append(order)
        pinned = self.library[order.model].get(order.pin) if order.pin else None
        offer = self.offers[order.model]
        gone = tuple(self.withdrawn[order.model])
        return Learned(self.now, self.draw, order.id, offer, pinned, gone, (Wave(0.0, 1.0),))

    def _stage(self, store: Store, order: effects.Stage) -> Event:
        if self.full:
            return self._failure(order, Remedy.WAIT, "no space to stage")
        digest = order.release.digest
        here = store.slots.get(digest)
        if here is None or here.rotten:
            if digest not in store.incoming:
                remedy = Remedy.STOP if here is not None else Remedy.RETRY
                return self._failure(order, remedy, "a file is missing or spoiled")
            store.slots[digest] = Slot(order.release, confirmed=here is not None and here.confirmed)
            store.incoming.discard(digest)
        assert order.fallback is None or order.fallback in store.slots
        self._point()
        return Finished(self.now, self.draw, order.id, link=Link(0, 0))

    def _canary(self, store: Store, order: effects.RunCanary) -> Event:
        assert order.release.digest in store.slots, "the candidate's slot is there"
        assert order.baseline is None or order.baseline in store.slots, "the baseline's slot is there"
        outcomes = self._conduct(order.release.digest).canary
        outcome = outcomes[min(self.canaries[order.release.digest], len(outcomes) - 1)]
        self.canaries[order.release.digest] += 1
        verdict = CanaryVerdict(
            outcome, f"scripted {outcome.value}", hard=False, retry_at=self.wall + 20, peak_kb=PEAK_KB
        )
        return Finished(self.now, self.draw, order.id, verdict=verdict)

    def _activate(self, model: str, store: Store, order: effects.Activate) -> Event:
        digest, broken = order.release.digest, self.broken_after.get(type(order), "")
        if digest not in store.slots:
            return self._failure(order, Remedy.WAIT, "no complete slot")
        if broken == "nothing" or (self.full and store.fallback != order.fallback and order.fallback is not None):
            return self._failure(order, Remedy.WAIT, "cannot switch")
        store.fallback = order.fallback
        self._check_disk(model)
        self._point()
        if broken == "fallback":
            return self._failure(order, Remedy.WAIT, "cannot switch")
        store.shadow = order.shadow
        if store.current != digest:
            store.current, store.link = digest, self._link()
        self._check_disk(model)
        if broken == "current":
            return self._failure(order, Remedy.WAIT, "switched, but not synced")
        return Finished(self.now, self.draw, order.id, link=store.link)

    def _revert(self, model: str, store: Store, order: effects.Revert) -> Event:
        broken = self.broken_after.get(type(order), "")
        if order.target not in store.slots or broken == "nothing":
            return self._failure(order, Remedy.WAIT, "cannot go back")
        if store.current != order.target:
            store.current, store.link = order.target, self._link()
        self._check_disk(model)
        self._point()
        if broken == "current":
            return self._failure(order, Remedy.WAIT, "went back, but not synced")
        store.fallback = order.fallback if not self.full else None
        store.shadow = None
        self._point()
        if order.unconfirm and order.leaving in store.slots:
            store.slots[order.leaving].confirmed = False
        self._check_disk(model)
        return Finished(self.now, self.draw, order.id, link=store.link)

    def _vacuum(self, model: str, store: Store, order: effects.Vacuum) -> None:
        if not self.vacuum:
            return
        spared = {*order.keep, store.current, store.fallback, store.shadow}
        gone = [d for d in store.slots if d not in spared]
        for digest in gone:
            del store.slots[digest]
