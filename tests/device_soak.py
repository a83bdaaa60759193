"""Months in the life of a simulated device, in seconds: virtual time, and the real journal, ledger and outbox.

    life = Life(Path("/tmp/life"), seed=7)
    life.live(days=180)
    life.tally                       # Counter({"releases": 26, "power cuts": 40, ...})
    python tests/device_soak.py      # long lives; MODELAGENT_SOAK_DAYS=720, MODELAGENT_SOAK_SEEDS=1-4

A release a week, some of them bad; withdrawals; waves that put the device off for days; metered days without a
download; the mains off every evening and at any point besides; clocks that jump; commands by a broker, each of them
brought twice; days with a full disk; weeks without a link. Looked at every other second while something moves, and
every quarter of an hour while nothing does. What must hold is looked at after every step and every change of
the disk (the simulator's own invariants), and every evening (`_check_evening`).
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

from device_simulator import Conduct, Device, release
from modelagent.core import effects
from modelagent.core.events import Event, Verb
from modelagent.core.state import Cause, Phase, Rules, State, block_reason, slot
from modelagent.core.verdicts import Outcome, Wait
from modelagent.errors import Remedy
from modelagent.inputs.ledger import Ledger
from modelagent.inputs.outbox import Outbox
from modelagent.steps.journal import Journal, read_history

MODEL: Final = "m"
DAY: Final = 86400.0
RULES: Final = Rules(setback_s=3600.0, label_horizon_s=2 * DAY)
HISTORY: Final = 256 * 1024  # bytes of a history file here: small, so that it turns over within the run
SPOOL: Final = 64 * 1024
LEDGER: Final = 128
KINDS: Final = ("good",) * 7 + ("bad", "crash", "refuse", "hang", "worse", "flaw", "unsure")
COMMANDS: Final = (*[Verb.CHECK, Verb.UPDATE, Verb.LIFT] * 3, Verb.HOLD, Verb.RESUME, Verb.ROLLBACK, Verb.CONFIRM)


class _Kept(dict[str, State]):
    """The simulator's journal, on disk as well: every state is written by the product's journal."""

    def __init__(self, life: "Life", states: dict[str, State]) -> None:
        super().__init__(states)
        self._life = life

    def __setitem__(self, model: str, state: State) -> None:
        super().__setitem__(model, state)
        self._life.written(state)


class Life:
    """One device, its days, and what is counted of them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng, self.tally = Random(seed), Counter[str]()
        self.directory = directory
        self.device = device = Device(MODEL, rules=RULES)
        device.interval = 6 * 3600.0
        device.install(MODEL, release(MODEL, 1))
        device.after_step = self._stepped
        device.journal = _Kept(self, device.journal)
        self._open()
        self._notes: tuple[effects.Note, ...] = ()
        self._owed: tuple[effects.Note, ...] = ()
        self._number = 1
        self._good = [1]  # what was named and is neither bad nor taken back
        self._day = self._wave = self._offline = 0  # today, and the days until which it is not its turn, or alone
        self._metered = False
        self._sizes: list[tuple[int, int]] = []
        self._boot = device.boot

    def _open(self) -> None:
        self.journal = Journal(self.directory, MODEL, State, limit=HISTORY, clock=lambda: self.device.wall)
        state, self.repairs = self.journal.load()
        self.ledger = Ledger(self.directory / "commands", most=LEDGER)
        self.outbox = Outbox(self.directory / "outbox", most=500, most_bytes=SPOOL)
        if state is not None:
            kept = self.device.journal[MODEL]
            assert state == kept, "what is read back is what was written"
        assert not self.repairs, f"nothing was to be repaired: {self.repairs}"

    # -- the updater's files -----------------------------------------------------------------------------------

    def _stepped(self, model: str, old: State, event: Event, new: State, orders: tuple[effects.Effect, ...]) -> None:
        """Before the orders of a step are carried out."""
        for order in orders:
            if isinstance(order, effects.Persist):
                self._notes = order.notes
                if self.device.full:
                    self._owed = (*self._owed, *order.notes)[-200:]
            elif isinstance(order, effects.Tell):
                for note in order.notes:
                    self.outbox.put("event", json.dumps({"kind": note.kind, "text": note.text}).encode())
        assert new.attempts.failures <= RULES.attempts or new.phase is Phase.REVERTING, "an attempt counter runs away"

    def written(self, state: State) -> None:
        self.journal.write(state, (*self._owed, *self._notes))
        self._owed = self._notes = ()
        self.tally["states written"] += 1

    def _deliver_reports(self) -> None:
        while (entry := self.outbox.take()) is not None:
            self.outbox.done(entry.number)
            self.tally["reports"] += 1

    # -- days --------------------------------------------------------------------------------------------------

    def live(self, days: int) -> None:
        """So many days, and then a calm one."""
        for day in range(days):
            self._morning(day)
            for _ in range(3):
                self._happening()
                self._pass(self.rng.uniform(2, 9) * 3600)
            self._evening()
        self._calm_down()

    def _morning(self, day: int) -> None:
        device, rng = self.device, self.rng
        self._day = day
        self.tally["days"] += 1
        if day % 7 == 0:
            self._release()
        self._metered = rng.random() < 0.25
        device.full = rng.random() < 0.04
        self.tally["full disk days"] += device.full
        self.tally["metered days"] += self._metered
        if self._offline <= day and rng.random() < 0.03:
            self._offline = day + rng.choice((1, 3, 14))
            self.tally["times without a link"] += 1
        known = device.states.get(MODEL) or device.journal[MODEL]
        if known.desired.hold is not None and device.up and rng.random() < 0.5:
            device.command(MODEL, Verb.RESUME)

    def _gates(self) -> None:
        device = self.device
        if self._day < self._offline:
            device.failing |= {"Check": Remedy.RETRY, "Acquire": Remedy.RETRY}
        else:
            device.failing.pop("Check", None)
            device.failing.pop("Acquire", None)
            self._deliver_reports()
        if self._metered:
            device.gates["acquire"] = Wait(device.wall + DAY, "the link is metered", "link")
        elif self._day < self._wave:
            device.gates["acquire"] = Wait(device.wall + DAY, "not this device's turn", "wave")
        else:
            device.gates.pop("acquire", None)

    def _release(self) -> None:
        device, rng = self.device, self.rng
        self._number += 1
        kind = rng.choice(KINDS)
        outcomes = {"flaw": (Outcome.FAIL,), "unsure": (Outcome.INSUFFICIENT,)}.get(kind, (Outcome.PASS,))
        live = kind if kind in ("bad", "crash", "refuse", "hang") else "good"
        conduct = Conduct(outcomes, live, "worse" if kind == "worse" else "alike")
        one = release(MODEL, self._number)
        device.publish(MODEL, one, conduct)
        self._wave = self._day + rng.choice((0, 0, 1, 3))
        self.tally["releases"] += 1
        self.tally[f"releases: {kind}"] += 1
        if kind == "good":
            self._good.append(self._number)

    def _happening(self) -> None:
        device, rng = self.device, self.rng
        match rng.randrange(12):
            case 0:
                self.tally["power cuts at a point"] += 1
                device.kill_at, device.power = device.points + rng.randint(1, 30), True
            case 1:
                self.tally["kills at a point"] += 1
                device.kill_at, device.power = device.points + rng.randint(1, 30), False
            case 2 if rng.random() < 0.3:
                jump = rng.choice((-20 * 365 * DAY, -3600.0, 3600.0, 14 * 365 * DAY))
                device.wall += jump
                device.changed = min(device.changed, device.wall)
                self.tally["clock jumps"] += 1
            case 3 if (
                rng.random() < 0.5 and len(self._good) > 2 and device.offers[MODEL] == release(MODEL, self._good[-1])
            ):
                self._withdraw()
            case 4 | 5:
                self._command()
            case 6:
                device.label(MODEL)
            case 7:
                device.end_inference(MODEL)
                device.tick()
                device.start_inference(MODEL)
                self.tally["inference restarts"] += 1

    def _withdraw(self) -> None:
        """What the channel names, if it was good, is taken back, and the one before is named again."""
        if len(self._good) < 3 or self.device.offers[MODEL] != release(MODEL, self._good[-1]):
            return
        number = self._good.pop()
        self.device.withdraw(MODEL, release(MODEL, number))
        self.device.publish(MODEL, release(MODEL, self._good[-1]))
        self.tally["withdrawals"] += 1

    def _command(self) -> None:
        device, rng = self.device, self.rng
        if not device.up:
            return
        verb = rng.choice(
            (*[Verb.CHECK, Verb.UPDATE, Verb.LIFT] * 3, Verb.HOLD, Verb.RESUME, Verb.ROLLBACK, Verb.CONFIRM)
        )
        by_hand = [b.version for b in device.states[MODEL].blocks.values() if b.cause is Cause.OPERATOR]
        what = by_hand[0] if by_hand and verb == Verb.LIFT else ""
        name = f"command-{self.tally['commands']}"
        said = device.command(MODEL, verb, what, name=name)
        self.tally["commands"] += 1
        if said == "killed" or not device.up:
            return
        self.ledger.keep(name, {"said": said})
        before = device.states[MODEL]
        if any(s.id == name for s in before.seen):
            assert device.command(MODEL, verb, what, name=name) == said, "a command brought twice is done once"
            assert replace(device.states[MODEL], again=False) == replace(before, again=False)

    def _pass(self, seconds: float) -> None:
        """Let time pass: closely while something moves."""
        device, end = self.device, self.device.mono + seconds
        boot, moved = device.boot, 0
        while device.mono < end and device.boot == boot:
            self._gates()
            here = device.states.get(MODEL)
            busy = here is None or here.phase not in (Phase.IDLE, Phase.DEFERRED) or bool(here.owed)
            moved = moved + 1 if busy else 0
            device.tick((2.0 if moved < 90 else 60.0) if busy else 900.0)
            self.tally["looks"] += 1
        if device.boot != boot:
            self._rebooted()

    def _rebooted(self) -> None:
        """The files are read again, as after every start."""
        self._open()

    def _evening(self) -> None:
        """The mains go off, and what must hold is looked at."""
        device = self.device
        device.kill_at = -1
        if not device.full:
            self._check_evening()
        if self.rng.random() < 0.7:
            device.power_cycle(10 * 3600.0)
            self.tally["evenings without power"] += 1
            self._rebooted()

    # -- what must hold ----------------------------------------------------------------------------------------

    def _check_evening(self) -> None:
        device = self.device
        state, store = device.journal[MODEL], device.stores[MODEL]
        here = store.slots.get(store.current or "")
        fit = [s for s in store.slots.values() if s.confirmed and not block_reason(state, s.release)]
        moving = state.phase not in (Phase.IDLE, Phase.DEFERRED) or bool(state.owed)
        if here is not None and not moving and fit:
            assert not block_reason(state, here.release), f"a blocked version is active: {device.describe()}"
        assert len(store.slots) <= RULES.keep_slots + 4, f"slots pile up: {sorted(store.slots)}"
        size = len(json.dumps(str(state)))
        kept = (state.blocks, state.seen, state.withdrawn, state.postponed, state.declined, state.alarms)
        assert size <= 6000 + 250 * sum(len(many) for many in kept), f"the state grows by itself: {size} bytes"
        files = [p for p in self.directory.rglob("*") if p.is_file()]
        total = sum(p.stat().st_size for p in files)
        self._sizes.append((size, total))
        # Every start without a link begins a file of reports; it goes with the last of them.
        assert len(files) <= 8 + self.outbox.queued, f"files pile up: {files}"
        assert total <= 2 * HISTORY + 2 * SPOOL + 600_000, f"the state directory grows: {total} bytes"
        assert len(state.seen) <= RULES.seen
        assert len(state.alarms) <= 8
        assert self.outbox.queued <= 500
        self._check_history(state)

    def _check_history(self, state: State) -> None:
        """What history says runs is what `current` names; its numbers only grow."""
        lines = read_history(self.directory)
        seqs = [line["seq"] for line in lines]
        assert seqs == sorted(seqs), "history goes back in time"
        kinds = [line for line in lines if line["kind"] in ("activated", "reverting", "reverted")]
        if state.phase is Phase.IDLE and kinds and not self._owed and not state.owed:
            last = kinds[-1]
            if last["kind"] != "reverting":
                assert last["digest"] == state.current, f"history says {last['text']}: {self.device.describe()}"

    def _calm_down(self) -> None:
        """Everything works again, and a good release comes: it ends on that one."""
        device = self.device
        device.full, device.kill_at, self._offline, self._wave, self._metered = False, -1, 0, 0, False
        device.wall = max(device.wall, 1.8e9)
        if not device.up:
            device.tick()
        device.command(MODEL, Verb.RESUME, name="the end")
        self._number += 1
        device.publish(MODEL, release(MODEL, self._number), Conduct())
        device.command(MODEL, Verb.UPDATE, name="the very end")
        self._gates()
        device.settle(14 * DAY)
        state = device.states[MODEL]
        here = slot(state, state.current)
        assert here is not None
        assert here.release.number == self._number, "it ends on the newest good version"
        assert here.confirmed
        self._check_evening()
        self._deliver_reports()
        self.tally["blocked at the end"] = len(state.blocks)
        self.tally["state bytes"] = self._sizes[-1][0]
        self.tally["all files, bytes"] = max(total for _, total in self._sizes)
        told = Counter(note.kind for _, note in device.notes)
        for kind in ("activated", "confirmed", "blocked", "reverted", "postponed", "deferred", "withdrawn"):
            self.tally[f"history: {kind}"] = told[kind]


def main() -> None:
    """Long lives, one after the other, with what was counted."""
    days = int(os.environ.get("MODELAGENT_SOAK_DAYS", "180"))
    first, _, last = os.environ.get("MODELAGENT_SOAK_SEEDS", "1-4").partition("-")
    for seed in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory() as name:
            began = time.monotonic()
            life = Life(Path(name), seed)
            life.live(days)
            sys.stdout.write(f"seed {seed}, {time.monotonic() - began:.0f} s: {dict(sorted(life.tally.items()))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
