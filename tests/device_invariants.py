"""What must hold for a simulated device after every step and after every change on its disk; and how it looks.

device._check_step(model, old, event, new, orders)      # raises AssertionError
device._check_disk(model)
device.end_state("digits")["runs"]                      # "1.2.0"
"""

from collections.abc import Mapping

from device_inference import Following
from device_parts import WORLD
from modelagent.core import effects
from modelagent.core.events import Event, Failed, Finished, Learned, Started
from modelagent.core.state import Phase, State, block_reason, slot


class Watched(Following):
    """The invariants of the design, and words for people."""

    # -- what must hold ----------------------------------------------------------------------------------------

    def _check_step(self, model: str, old: State, event: Event, new: State, orders: tuple[effects.Effect, ...]) -> None:
        world = [o for o in orders if isinstance(o, WORLD)]
        kept = [o for o in orders if isinstance(o, effects.Persist)]
        if world:
            assert kept, f"{event} changes the world unrecorded: {world}"
        if kept:
            assert orders[0] is kept[0]
            assert len(kept) == 1
            assert kept[0].state == new, "what is written is what is known"
        for order in orders:
            if isinstance(order, effects.Activate):
                assert not block_reason(new, order.release), "a blocked version is activated"
                self._must_be_fit(new, order.fallback)
            if isinstance(order, effects.Revert):
                self._must_be_fit(new, order.target)
                self._must_be_fit(new, order.fallback)
            if isinstance(order, effects.SetFallback):
                self._must_be_fit(new, order.target)
        others = [s for m, s in self.states.items() if m != model]
        if new.phase is Phase.CANARY:
            assert all(o.phase is not Phase.CANARY for o in others), "the canary's token is held twice"
        if new.phase is Phase.ACTIVATING:
            assert all(o.phase is not Phase.ACTIVATING for o in others), "the load token is held twice"
        switching = new.doing is not None and new.doing.kind in ("activate", "revert")
        if isinstance(event, Learned | Started) and not switching:
            self._must_be_fit(new, new.fallback)
        if new.current is not None and new.link is not None and new.phase is Phase.PROBATION:
            done = new.evidence.total.done
            assert done <= self.produced[new.current, new.link], "evidence of another link was counted"
        open_test = new.aftercare
        if open_test is not None and new.current == open_test.digest and new.link is not None:
            total = open_test.evidence.total
            pairs = total.both_right + total.only_new + total.only_old
            assert pairs <= self.compared[open_test.digest, new.link], "pairs of another activation were counted"
        for order in orders:
            if isinstance(order, effects.Vacuum) and open_test is not None:
                assert open_test.previous in order.keep, "the way back from a test that is open is thrown away"
        if isinstance(event, Finished | Failed):
            expected = {o.id for o in old.owed} | ({old.doing.id} if old.doing is not None else set())
            if event.effect not in expected:
                assert new == old, "a stale answer changes nothing"
                assert not orders

    def _must_be_fit(self, state: State, digest: str | None) -> None:
        if digest is None:
            return
        here = slot(state, digest)
        assert here is not None, "a link to a slot that is not there"
        assert here.confirmed, "a link back to an unconfirmed slot"
        assert not block_reason(state, here.release), f"a blocked version is gone back to: {here.release.version}"

    def _check_disk(self, model: str) -> None:
        """The invariant, at every moment, of links and marks alone; with blocks where nothing is under way."""
        store, state = self.stores[model], self.states[model]
        for named in (store.current, store.fallback, store.shadow):
            assert named is None or named in store.slots, "a link to nowhere"
        moving = bool(state.owed) or (state.doing is not None and state.doing.kind in ("activate", "revert"))
        moving = moving or any(w.model == model for w in self.queues.get(f"store-{model}", ()))

        def fit(digest: str | None) -> bool:
            here = store.slots.get(digest or "")
            return here is not None and here.confirmed and (moving or not block_reason(state, here.release))

        current = store.slots.get(store.current or "")
        if current is None or current.confirmed or fit(store.fallback):
            return
        known = {s.release.digest for s in state.slots}
        if moving:  # what became fit only after the links were ordered is seen to when their answer comes
            known &= self.fit_then[model]
        others = [d for d in store.slots if d != store.current and d in known]
        assert not any(store.slots[d].confirmed and not block_reason(state, store.slots[d].release) for d in others), (
            f"unconfirmed {current.release.version} without a way back: {self.describe()}"
        )

    # -- for people --------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, str]:
        told = {}
        for model, state in self.states.items():
            box = self.inference[model]
            told[model] = (
                f"{state.phase.value} current={self.version(model, state.current)} doing={state.doing} "
                f"waiting={state.waiting!r} runs={self.version(model, box.running)} owed={state.owed} "
                f"chain={[p.value for p in self.chain[model][-12:]]}"
            )
        return told

    def version(self, model: str, digest: str | None) -> str | None:
        known = {r.digest: r.version for r in self.library[model].values()}
        return known.get(digest, digest) if digest is not None else None

    def end_state(self, model: str) -> dict[str, object]:
        """What counts at the end: what runs, what the links say, what is blocked, what is remembered."""
        state, store = self.states[model], self.stores[model]
        return {
            "phase": state.phase,
            "runs": self.version(model, self.inference[model].running),
            "current": self.version(model, store.current),
            "confirmed": store.current is not None and store.slots[store.current].confirmed,
            "fallback": self.version(model, store.fallback),
            "believed": (self.version(model, state.current), self.version(model, state.fallback)),
            "blocks": {b.version: (b.cause, b.reason) for b in state.blocks.values()},
            "withdrawn": sorted(state.withdrawn),
            "pin": state.desired.pin.version if state.desired.pin else None,
            "hold": state.desired.hold is not None,
            "floor": state.floor,
        }
