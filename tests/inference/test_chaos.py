"""Everything at once, from a seed: links move, workers die, hang and are stopped, bad slots come and go."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from line_rig import GLARE, Rig

pytestmark = pytest.mark.process

SECONDS = float(os.environ.get("CHAOS_SECONDS", "6"))


@pytest.mark.parametrize("seed", [int(os.environ.get("CHAOS_SEED", "1"))])
def test_whatever_happens_every_frame_ends_once_and_it_settles(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Rig(tmp_path) as rig:
        good = [rig.slot(f"digits-{version}.tflite", confirmed=True) for version in ("1.0.0", "1.1.0")]
        others = [
            rig.slot(f"{name}.tflite", confirmed=confirmed, change={"version": f"{number}-{confirmed}"})
            for number, name in enumerate(
                (
                    "digits-1.3.0",
                    "hostile/crash_on_load",
                    "hostile/crash_on_input",
                    "hostile/hang_on_input",
                    "hostile/nan_on_input",
                )
            )
            for confirmed in (True, False)
        ]
        frames = rig.scans()
        frames[::70] = GLARE
        rig.frames(frames)
        rig.link("current", good[0])
        rig.start(fps=150.0, queue=64, hang_s=0.3, shadow_share=0.5, healthy_after=20)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            match chance.randrange(8):
                case 0 | 1:
                    rig.link("fallback", chance.choice(good))
                    rig.link("current", chance.choice(others))
                case 2:
                    rig.link("current", chance.choice(good))
                case 3:
                    rig.link("shadow", chance.choice([*good, *others]))
                case 4 | 5 | 6:
                    assert rig.process is not None
                    children = rig.children()
                    if children:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(chance.choice(children), chance.choice([signal.SIGKILL, signal.SIGSTOP]))
                case 7:
                    (rig.model_dir / chance.choice(["current", "fallback", "shadow"])).unlink(missing_ok=True)
            time.sleep(chance.choice([0.0, 0.05, 0.3]))
        (rig.model_dir / "shadow").unlink(missing_ok=True)
        rig.link("fallback", good[0])
        rig.link("current", good[1])
        took = rig.wait(lambda: rig.running() == good[1], 30.0)
        done = rig.counts(good[1]).get("done", 0)
        rig.wait(lambda: rig.counts(good[1]).get("done", 0) > done + 20)
        rig.wait(lambda: len(rig.children()) <= 2, 10.0)
        assert rig.stop() == 0
        rows = rig.rows()
        numbers = sorted(int(row["frame"].rpartition(":")[2]) for row in rows)
        assert numbers == list(range(len(rows)))
        assert rig.health()["source"]["received"] == len(rows)
        ends = {end: sum(row["outcome"] == end for row in rows) for end in ("ok", "dropped", "faulted")}
        gaps = np.diff([row["wall"] for row in rows])
        print(f"seed {seed}: {len(rows)} frames, {ends}, settled after {took:.2f} s, gap {gaps.max():.2f} s")
        assert sum(ends.values()) == len(rows)
