"""Inference of a simulated device: follows `current` by its own rules, with its own durable memory.

device.live("digits", 1.0)          # a second of frames, on whatever the links ask for
device.label("digits")              # the truth about what two versions have said of the same frames
device.health("digits")             # what the newest health record says, as events
"""

from dataclasses import replace

from device_parts import FPS, Conduct, Inference, Parts, Slot, Store
from modelagent.core.events import Counts, Event, FellBack, Refused, Runs, Swap


class Following(Parts):
    """Inference's part."""

    # -- inference ---------------------------------------------------------------------------------------------

    def end_inference(self, model: str) -> None:
        old = self.inference[model]
        self.inference[model] = Inference(self._epoch(), alive=False, left=old.left, kept=old.kept, asleep=old.asleep)

    def start_inference(self, model: str) -> None:
        self.inference[model].alive = True

    def live(self, model: str, seconds: float) -> None:
        """What inference does in this time: follow the link, run frames, leave what fails."""
        box, store = self.inference[model], self.stores[model]
        if not box.alive:
            return
        if box.link != store.link or store.current is None:
            self._follow(box, store)
        if box.running is None:
            return
        conduct = self._conduct(box.running)
        here = store.slots.get(box.running)
        if conduct.live == "crash" and self.mono - box.since >= 3.0 and box.running == store.current:
            self._crash(box, store, here)
        elif not box.asleep:
            self._serve(model, box, store, seconds)

    def _serve(self, model: str, box: Inference, store: Store, seconds: float) -> None:
        assert box.running is not None
        frames = int(seconds * FPS)
        if box.running != box.served:
            if box.served:
                count = box.swap.count + 1 if box.swap is not None else 1
                box.swap = Swap(count, box.served, box.running, "beside", gap_s=0.02)
            box.served = box.running
        known = box.counts.get(box.running, Counts())
        box.counts[box.running] = replace(
            known, frames=known.frames + frames, done=known.done + frames, busy_s=known.busy_s + int(seconds)
        )
        if box.link is not None and box.running == store.current and box.link == store.link:
            self.produced[box.running, box.link] += frames
            if self._loadable(store, store.shadow) not in (None, box.running):
                box.kept[box.running, box.link] += frames
                self.compared[box.running, box.link] += frames

    def label(self, model: str) -> None:
        """The truth about every frame that two versions have read: it counts for the activation that serves now."""
        box = self.inference[model]
        if not box.alive or box.running is None or box.link is None:
            return  # the labels lie in the spool until inference is back
        number, conduct = box.kept[box.running, box.link], self._conduct(box.running)
        box.kept.clear()
        known = box.counts.get(box.running, Counts())
        match conduct.truth:
            case "worse":
                known = replace(known, only_old=known.only_old + number)
            case "better":
                known = replace(known, only_new=known.only_new + number)
            case _:
                known = replace(known, both_right=known.both_right + number)
        box.counts[box.running] = known

    def _follow(self, box: Inference, store: Store) -> None:
        box.link = store.link if store.current is not None else None
        if box.running is not None and box.running in box.counts:  # another activation is another comparison
            known = box.counts[box.running]
            box.counts[box.running] = replace(known, both_right=0, only_new=0, only_old=0, both_wrong=0)
        box.refused = box.fell_back = None
        if store.current is None:
            box.running = None
            return
        assert box.link is not None
        if box.left is not None and box.left[0] == box.link:
            box.fell_back = box.left[1:]
            box.running = self._loadable(store, store.fallback)
            return
        here = store.slots.get(store.current)
        conduct = self._conduct(store.current)
        if here is None or here.rotten or conduct.live == "refuse":
            box.refused = (store.current, "cannot be loaded", here is not None and here.confirmed)
            box.running = self._loadable(store, store.fallback)
        elif conduct.live != "hang":
            box.running, box.since = store.current, self.mono

    def _loadable(self, store: Store, digest: str | None) -> str | None:
        here = store.slots.get(digest or "")
        if here is None or here.rotten or digest is None or self._conduct(digest).live in ("refuse", "hang"):
            return None
        return digest

    def _crash(self, box: Inference, store: Store, here: Slot | None) -> None:
        assert box.running is not None
        assert box.link is not None
        known = box.counts.get(box.running, Counts())
        box.counts[box.running] = replace(known, faults=known.faults + 1)
        box.since = self.mono
        confirmed = here is not None and here.confirmed
        if not confirmed and self._loadable(store, store.fallback) not in (None, box.running):
            box.left = (box.link, box.running, "worker crashed", False, True)
            box.fell_back = box.left[1:]
            box.running = store.fallback

    def _conduct(self, digest: str) -> Conduct:
        return self.conduct.get(digest, Conduct())

    def health(self, model: str) -> list[Event]:
        """What the newest health record says, as the reader turns it into events."""
        box = self.inference[model]
        if not box.alive:
            return []
        said: list[Event] = []
        if box.fell_back is not None and box.link is not None:
            digest, reason, confirmed, hard = box.fell_back
            said.append(FellBack(self.now, self.draw, box.link, digest, reason, confirmed, hard))
        if box.refused is not None and box.link is not None:
            digest, reason, confirmed = box.refused
            said.append(Refused(self.now, self.draw, box.link, digest, reason, confirmed))
        counts = box.counts.get(box.running, Counts()) if box.running is not None else Counts()
        said.append(Runs(self.now, self.draw, box.link, box.running, box.epoch, counts, swap=box.swap))
        self.heard += [(model, event) for event in said]
        return said
