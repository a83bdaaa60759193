"""What inference and the updater's hands do in a world of values (`model_state`).

    matter = Matter(natures, releases)
    matter.follow(box)                          # Inference(...): what it makes of the links
    matter.perform(world, box, Activate(...))   # (Disk(...), Finished(...)): the disk afterwards, and the answer

The store, the repository, the canary and inference behave as the simulated device's do (`device_hands`,
`device_inference`), but every change gives a new value, and each durable change can be the last one.
"""

from collections.abc import Iterator
from dataclasses import replace

from model_state import NOW, Box, Disk, Fixed, Inference, World, fresh_link
from modelagent.core import effects
from modelagent.core.events import (
    CheckFailed,
    Counts,
    Event,
    Failed,
    FellBack,
    Finished,
    Learned,
    Link,
    Refused,
    Runs,
    Withdrawal,
)
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.errors import Remedy
from modelagent.manifest import Release

SWITCHES = (effects.Activate, effects.Revert)


class Matter:
    """Everything but the updater's mind.

    Args:
        natures: digest -> good, bad (the judge says so), crash (inference leaves it), flaw (its canary fails).
        releases: what the repository has, by model.
    """

    def __init__(self, natures: dict[str, str], releases: dict[str, list[Release]]) -> None:
        self.natures, self.releases = natures, releases

    # -- inference ---------------------------------------------------------------------------------------------

    def follow(self, box: Box) -> Inference:
        disk, left = box.disk, box.inference.left
        if disk.current is None or disk.link is None:
            return Inference(left=left)
        here = disk.slot(disk.current)
        behind = disk.fallback if disk.fallback not in disk.rotten else None
        if left == disk.link:
            return Inference(disk.link, behind, ("fell back", disk.current, False), left)
        if here is None or disk.current in disk.rotten:
            return Inference(disk.link, behind, ("refused", disk.current, here is not None and here.confirmed), left)
        return Inference(disk.link, disk.current, None, left)

    def left(self, box: Box) -> Inference | None:
        seen, disk = box.inference, box.disk
        here = disk.slot(disk.current)
        if (
            here is None
            or here.confirmed
            or seen.running != disk.current
            or self.natures[here.release.digest] != "crash"
        ):
            return None
        if disk.fallback is None or disk.fallback in (seen.running, *disk.rotten):
            return None
        return Inference(seen.link, disk.fallback, ("fell back", here.release.digest, False), seen.link)

    def said(self, box: Box) -> list[Event]:
        seen = box.inference
        if seen.link is None:
            return []
        said: list[Event] = []
        if seen.said is not None:
            kind, digest, confirmed = seen.said
            made = FellBack if kind == "fell back" else Refused
            said.append(made(NOW, 0.5, seen.link, digest, kind, confirmed))
        return [*said, Runs(NOW, 0.5, seen.link, seen.running, "e", Counts())]

    def perform(self, world: World, box: Box, order: effects.Effect) -> tuple[Disk, Event | None]:
        disk, full = box.disk, world.full
        done = Finished(NOW, 0.5, order.id, evidence=Fixed())
        failed = failure(order, Remedy.WAIT, disk)
        match order:
            case effects.Check():
                return disk, self._learned(box, order)
            case effects.Acquire():
                if full and order.release.digest not in disk.incoming:
                    return disk, failed
                return disk._replace(incoming=disk.incoming | {order.release.digest}), done
            case effects.Stage(release=wanted):
                here, digest = disk.slot(wanted.digest), wanted.digest
                if full:
                    return disk, failed
                if here is None or digest in disk.rotten:
                    if digest not in disk.incoming:
                        return disk, failure(order, Remedy.STOP if here is not None else Remedy.RETRY)
                    disk = disk.with_slot(wanted, confirmed=here is not None and here.confirmed)
                    disk = disk._replace(rotten=disk.rotten - {digest}, incoming=disk.incoming - {digest})
                return disk, replace(done, link=Link(0, 0))
            case effects.RunCanary():
                passed = self.natures[order.release.digest] != "flaw"
                verdict = CanaryVerdict(Outcome.PASS if passed else Outcome.FAIL, "measured", evidence=Fixed())
                return disk, replace(done, verdict=verdict)
            case effects.Activate():
                if disk.slot(order.release.digest) is None or (full and disk.fallback != order.fallback is not None):
                    return disk, failed
            case effects.Revert():
                if disk.slot(order.target) is None:
                    return disk, failed
            case effects.Confirm():
                if full or disk.slot(order.release.digest) is None:
                    return disk, failed
            case effects.SetFallback() | effects.SetShadow():
                if full and order.target is not None:
                    return disk, failed
        states = self._stages(box, order)
        after = states[-1] if states else disk
        if isinstance(order, SWITCHES):
            if full and isinstance(order, effects.Revert):
                after = after._replace(fallback=None)
            return after, replace(done, link=after.link)
        return after, done

    def _stages(self, box: Box, order: effects.Effect) -> list[Disk]:
        """The disk after each durable change that the effect makes, in order."""
        disk = box.disk

        def named(disk: Disk, digest: str) -> Disk:
            return disk if disk.current == digest else disk._replace(current=digest, link=fresh_link(box))

        match order:
            case effects.Activate():
                first = disk._replace(fallback=order.fallback)
                second = first._replace(shadow=order.shadow)
                return [first, second, named(second, order.release.digest)]
            case effects.Revert():
                first = named(disk, order.target)
                second = first._replace(fallback=order.fallback, shadow=None)
                gone = second.slot(order.leaving) if order.unconfirm else None
                return [first, second, second.with_slot(gone.release, confirmed=False) if gone else second]
            case effects.Confirm():
                first = disk.with_slot(order.release, confirmed=True)
                return [first, first._replace(shadow=None)]
            case effects.SetFallback():
                return [disk._replace(fallback=order.target)]
            case effects.SetShadow():
                return [disk._replace(shadow=order.target)]
            case effects.Stop():
                return [disk._replace(current=None, link=None, shadow=None)]
            case effects.Vacuum():
                spared = {*order.keep, disk.current, disk.fallback, disk.shadow}
                kept = tuple(s for s in disk.slots if s.release.digest in spared)
                known = {s.release.digest for s in kept}
                return [disk._replace(slots=kept, rotten=disk.rotten & known)]
        return []

    def halves(self, box: Box, order: effects.Effect) -> Iterator[tuple[str, Disk]]:
        """Where a death in the middle leaves the disk; all of it done and nobody told is one of them."""
        for number, disk in enumerate(self._stages(box, order), 1):
            if isinstance(order, effects.Activate | effects.Revert | effects.Confirm | effects.Stop):
                yield f"after change {number}", disk

    def _learned(self, box: Box, order: effects.Check) -> Event:
        known = {r.digest: r for r in self.releases[box.journal.model]}
        gone = tuple(Withdrawal(d, known[d].version, "") for d in sorted(box.withdrawn))
        pinned = self.pinned(box, order.pin) if order.pin else None
        return Learned(NOW, 0.5, order.id, box.offer, pinned, gone)

    def pinned(self, box: Box, version: str) -> Release | None:
        return next((r for r in self.releases[box.journal.model] if r.version == version), None)


def failure(order: effects.Effect, remedy: Remedy, disk: Disk | None = None) -> Event:
    if isinstance(order, effects.Check):
        return CheckFailed(NOW, 0.5, order.id, remedy, "made", "made to fail")
    facts = disk.facts() if disk is not None and isinstance(order, SWITCHES) else None
    return Failed(NOW, 0.5, order.id, remedy, "made", "made to fail", disk=facts)
