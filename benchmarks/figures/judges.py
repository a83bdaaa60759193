"""How often the judges err and how soon they notice; how quickly the loop goes back; what a canary costs the loop.

This file knows eight figures. The first three run the shipped judges on made streams (exact where the sum over all
outcomes can be taken); the others run real processes. The table of the canary's rule is printed and written to
build/bench/judges.txt.
"""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.bare import Bare
from benchmarks.measure import Figure, Group, Measured, NotHereError, median, quantile
from benchmarks.stand import Stand

from modelagent.core.events import Counts
from modelagent.core.verdicts import Standing
from modelagent.inputs.model_schema import Runtime
from modelagent.judges.metrics import upper_share
from modelagent.judges.paired import normal_quantile, tango_statistic
from modelagent.judges.probation import ProbationCriteria, judge_probation
from modelagent.manifest import Manifest, dump, parse
from modelagent.steps.canary import CanaryRunner

_ROOT: Final = Path(__file__).resolve().parents[2]
_EXAMPLE: Final = _ROOT / "examples" / "digits"
_CELLS: Final = (
    # samples, margin, share of samples that one model alone has right
    (100, 0.05, 0.10),
    (200, 0.05, 0.10),
    (300, 0.05, 0.10),
    (400, 0.05, 0.10),
    (500, 0.03, 0.10),
    (1000, 0.02, 0.10),
    (1000, 0.03, 0.10),
    (2000, 0.02, 0.04),
)
_STREAMS: Final = 3000
_LASTING: Final = math.exp(-1.0 / 0.5)  # chance that a scene of half a second on average is still there a second later
_LABELS: Final = 2000
_SAMPLES: Final = 400  # of the canary whose cost is measured: about what a margin of five points needs
_FPS: Final = 30.0


def _outcomes(n: int, difference: float, discordance: float) -> Iterator[tuple[int, int, float]]:
    """Every (only new, only old) of n samples that is not next to impossible, with its probability."""
    up, down = max(0.0, (discordance + difference) / 2.0), (discordance - difference) / 2.0
    rest = 1.0 - discordance
    for b in range(n + 1):
        if abs(b - n * up) > 8.0 * math.sqrt(n * up) + 8.0 or (b and not up):
            continue
        for c in range(n - b + 1):
            if abs(c - n * down) > 8.0 * math.sqrt(n * down) + 8.0:
                continue
            log = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(n - b - c + 1)
            log += (b * math.log(up) if b else 0.0) + c * math.log(down) + (n - b - c) * math.log(rest)
            yield b, c, math.exp(log)


def rule(n: int, margin: float, difference: float, discordance: float) -> tuple[float, float, float]:
    """Chances of pass, fail and insufficient for a true difference, one-sided 95 %."""
    z = normal_quantile(0.95)
    passed = failed = 0.0
    for b, c, chance in _outcomes(n, difference, discordance):
        # The lower bound lies above -margin exactly when the statistic for that difference exceeds z; see `paired.py`.
        statistic = tango_statistic(b, c, n, -margin)
        passed += chance * (statistic > z)
        failed += chance * (statistic < -z)
    return passed, failed, max(0.0, 1.0 - passed - failed)


def operating(folder: Path) -> dict[str, Measured]:
    """`judges.false_pass` and the table."""
    lines = [f"{'N':>5} {'margin':>7} {'discord':>8} {'true':>7}   {'pass':>6} {'fail':>6} {'insuff.':>8}"]
    at_margin: dict[tuple[int, float, float], float] = {}
    for n, margin, discordance in _CELLS:
        for true in (0.0, -margin / 2, -margin, -2 * margin):
            if -true > discordance:
                continue
            passed, failed, neither = rule(n, margin, true, discordance)
            lines.append(
                f"{n:5d} {margin:7.1%} {discordance:8.1%} {true:7.1%}   {passed:6.3f} {failed:6.3f} {neither:8.3f}"
            )
            if true == -margin:
                at_margin[n, margin, discordance] = passed
    (folder / "judges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)
    worst = max(at_margin, key=lambda cell: at_margin[cell])
    how = (
        "exact chance that a model just as bad as the margin passes, the highest of the table: "
        f"{worst[0]} samples, margin {worst[1]:.0%}, {worst[2]:.0%} discordant (with 400, 5 % and 10 %: "
        f"{at_margin[400, 0.05, 0.10]:.4f}); table in build/bench/judges.txt"
    )
    return {"judges.false_pass": Measured(at_margin[worst], how)}


def _at_fault(repeat: float, seed: int) -> tuple[int, int]:
    """Of `_STREAMS` probations of a version that is as good as its predecessor in everything: sent back, and alarms.

    A labelled frame a second, as thinning takes them, 2,000 of them; looked at every ten. With the chance `repeat` one
    shows the scene of the one before it, and both versions say of it what they said. 8 % of the scenes are judged
    differently, 10 % wrongly; each version alone is slow on 1 %; in as many seconds as the settings find normal a frame
    fails at first.
    """
    generator = np.random.default_rng(seed)
    criteria = ProbationCriteria()
    shares = [0.86, 0.04, 0.04, 0.06]
    bad = alarms = 0
    for _ in range(_STREAMS):
        scene = np.maximum.accumulate(np.where(generator.random(_LABELS) < repeat, 0, np.arange(_LABELS)))
        said = generator.choice(4, size=_LABELS, p=shares)[scene]
        slow = generator.random(_LABELS)[scene]
        hiccup = generator.random(_LABELS) < criteria.fault_p0
        seen = np.stack([*(said == kind for kind in range(4)), slow < 0.01, slow > 0.99, hiccup], axis=1).cumsum(axis=0)
        alarmed = False
        for number, row in enumerate(seen[9::10].tolist(), start=1):
            both, only_new, only_old, neither, slower_new, slower_old, unsteady = row
            counts = Counts(
                frames=number * 300,
                done=number * 300,
                busy_s=number * 10,
                unsteady_s=unsteady,
                right=both + only_new,
                wrong=only_old + neither,
                both_right=both,
                only_new=only_new,
                only_old=only_old,
                both_wrong=neither,
                slower_new=slower_new,
                slower_old=slower_old,
            )
            verdict = judge_probation(counts, criteria)
            alarmed |= bool(verdict.drift)
            if verdict.standing is Standing.BAD:
                bad += 1
                break
        alarms += alarmed
    return bad, alarms


def rollback(folder: Path) -> dict[str, Measured]:
    """`judges.false_rollback`: upper bounds, for independent scenes and for scenes that last."""
    del folder
    found = {repeat: _at_fault(repeat, seed) for repeat, seed in ((0.0, 20_26), (_LASTING, 20_27))}
    bounds = {repeat: upper_share(bad, _STREAMS, 0.95) for repeat, (bad, _) in found.items()}
    (alone, alarms), (lasting, more) = found[0.0], found[_LASTING]
    how = (
        f"exact upper bound, one-sided 95 %, the larger of two: {alone} of {_STREAMS} probations of a version as good "
        f"as the previous one (8 % discordant, 10 % wrong, slow and stumbling as often as is normal) went back within "
        f"{_LABELS} labelled seconds of independent scenes (bound {bounds[0.0]:.4f}), {lasting} where a scene lasts "
        f"half a second on average and a frame a second is taken (bound {bounds[_LASTING]:.4f}); drift alarms: "
        f"{alarms} and {more}; the budget for all of it is 1 %"
    )
    return {"judges.false_rollback": Measured(max(bounds.values()), how)}


def detection(folder: Path) -> dict[str, Measured]:
    """`judges.detect_labels_median`: errors double from 10 to 20 %, nobody to compare with."""
    del folder
    generator = np.random.default_rng(7)
    criteria = ProbationCriteria()
    delays: list[float] = []
    false = 0
    for _ in range(600):
        for share, limit in ((0.20, 3000), (0.10, 2000)):
            wrong = 0
            for number, bad in enumerate((generator.random(limit) < share).tolist(), start=1):
                wrong += bad
                verdict = judge_probation(Counts(right=number - wrong, wrong=wrong), criteria) if bad else None
                if verdict is not None and verdict.drift:
                    break
            else:
                number = limit + 1
            if share == 0.20:
                delays.append(number)
            else:
                false += number <= limit
    how = (
        f"labels until the alarm when 20 % are wrong instead of 10 %, median of {len(delays)} streams, 90 % within "
        f"{quantile(delays, 0.9):.0f}; without a change {false} of {len(delays)} streams of 2,000 labels alarmed"
    )
    return {"judges.detect_labels_median": Measured(median(delays), how)}


# -- with real processes -------------------------------------------------------------------------------------------


def _contract() -> dict[str, Any]:
    catalogue: dict[str, Any] = json.loads((_EXAMPLE / "releases.json").read_text(encoding="utf-8"))
    return catalogue


def _go_back(folder: Path, hostile: str) -> tuple[float, float]:
    """Seconds from the last result of a version that then fails to the first of the one before it; its time budget."""
    catalogue = _contract()
    with Stand(folder / "rollback") as stand:
        digests = [
            stand.add_slot("digits", _EXAMPLE / "models" / file, catalogue, version=version, number=number)
            for number, version, file in ((1, "old", "digits-1.1.0.tflite"), (2, "new", f"hostile/{hostile}.tflite"))
        ]
        slot = stand.paths["state_dir"] / "models" / "digits" / "slots" / digests[1]
        (slot / "confirmed").unlink()
        promised = parse((slot / "manifest.json").read_bytes()).limits.latency_ms / 1000.0
        with np.load(_EXAMPLE / "canary.npz", allow_pickle=False) as archive:
            seen = archive["input_0"][:200].copy()
        frames = stand.folder / "frames.npz"
        seen[-1] = 1.0  # glare, after two hundred good frames
        np.savez(frames, input_0=seen)
        source = {"kind": "replay", "path": str(frames), "fps": 100.0, "loop": False}
        stand.configure({"digits": {"source": source, "results": {"jsonl": True}}})
        stand.point("digits", "fallback", digests[0])
        stand.point("digits", "current", digests[1])
        stand.start("inference")
        stand.wait("digits", lambda health: (health["running"] or {}).get("digest") == digests[0], seconds=30.0)
        time.sleep(0.5)
        rows = stand.rows("digits")
    last = max(row["wall"] for row in rows if row["version"] == "new" and row["outcome"] == "ok")
    first = min(row["wall"] for row in rows if row["version"] == "old" and row["outcome"] == "ok")
    return float(first - last), max(20.0 * promised, Runtime().hang_s)


def hard_fault(folder: Path) -> dict[str, Measured]:
    """`rollback.hard_fault_s` and `rollback.hang_extra_s`."""
    budget = 0.0
    found: dict[str, list[float]] = {"crash": [], "nan": [], "hang": []}
    for name, times in found.items():
        for _ in range(3):
            seconds, budget = _go_back(folder, f"{name}_on_input")
            times.append(seconds)
    worst, hang = max(median(found["crash"]), median(found["nan"])), median(found["hang"])
    how = (
        "from the last good result to the first of the previous version, which reads the frame that failed: "
        f"crash {median(found['crash']):.2f} s, NaN {median(found['nan']):.2f} s, medians of 3, no network"
    )
    said = (
        f"the same where an inference hangs: {hang:.2f} s (median of 3), less the {budget:g} s that the device has "
        "to wait before it may call it one (20 times the promised latency, at least runtime.hang_s)"
    )
    return {
        "rollback.hard_fault_s": Measured(worst, how),
        "rollback.hang_extra_s": Measured(max(0.0, hang - budget), said),
    }


def _canary_slots(folder: Path, model: Path) -> tuple[Manifest, Path]:
    """A slot of MobileNetV2 with samples that nobody needs to get right."""
    samples = np.random.RandomState(2).randint(-128, 128, (_SAMPLES, 224, 224, 3)).astype(np.int8)
    slot = folder / "canary-slot"
    shutil.rmtree(slot, ignore_errors=True)
    slot.mkdir()
    shutil.copyfile(model, slot / "model.tflite")
    np.savez(slot / "canary.npz", input_0=samples, labels=np.zeros(_SAMPLES, np.int64))
    frames = folder / "mnv2_frames.npz"
    np.savez(frames, input_0=samples[:16])
    with Bare(model, frames) as bare:
        contract = bare.contract
    document = {
        "schema": 1,
        "model": "bench",
        "version": "2",
        "number": 2,
        "floor": 0,
        "issued": "2026-11-01T12:00:00Z",
        "files": {
            role: {"sha256": sha256(path.read_bytes()).hexdigest(), "length": path.stat().st_size}
            for role, path in (("model", slot / "model.tflite"), ("canary", slot / "canary.npz"))
        },
        "runtime": {},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        **contract,
        "labels": [],
        "preprocess": {"kind": "none"},
        "postprocess": {"kind": "classification", "softmax": False},
        "canary": {"metric": "accuracy", "margin": 1.0, "confidence": 0.95, "floor": 0.0, "samples": _SAMPLES},
        "limits": {"latency_ms": 1000.0, "latency_ratio": 100.0, "memory_mb": 400.0, "load_s": 60.0},
        "card": {},
    }
    data = dump(document)
    (slot / "manifest.json").write_bytes(data)
    return parse(data), slot


def _mobilenet(folder: Path) -> Path:
    model = folder / "mnv2_int8.tflite"
    if not model.exists():
        raise NotHereError(
            f"MobileNetV2 was never built here; run `python -m benchmarks.mobilenet {model}` where tensorflow is"
        )
    return model


def wall(folder: Path) -> dict[str, Measured]:
    """`canary.wall_ratio`."""
    model = _mobilenet(folder)
    manifest, slot = _canary_slots(folder, model)
    ratios = []
    with Bare(model, folder / "mnv2_frames.npz") as bare:
        for _ in range(3):
            alone = bare.run(2.0)
            begun = time.monotonic()
            CanaryRunner().run(slot, slot, 1, manifest, lambda: False)
            ratios.append((time.monotonic() - begun) / (2 * _SAMPLES * alone))
    how = (
        f"wall time of a canary of {_SAMPLES} samples, MobileNetV2 int8 against itself, both workers started, caged, "
        "loaded and unloaded / the time of as many bare inferences just before; median of 3"
    )
    return {"canary.wall_ratio": Measured(median(ratios), how)}


def _with_and_without(folder: Path, cores: set[int] | None) -> tuple[float, float]:
    """p99 of the live loop's latency, quiet and while canaries run, in windows that alternate; microseconds."""
    model = _mobilenet(folder)
    manifest, slot = _canary_slots(folder, model)
    before = os.sched_getaffinity(0)
    spans: list[tuple[bool, float, float]] = []
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)  # every process started from here on inherits it
        with Bare(model, folder / "mnv2_frames.npz") as bare, Stand(folder / "live") as stand:
            digest = stand.add_slot("bench", model, bare.contract, version="1", number=1)
            source = {"kind": "replay", "path": str(folder / "mnv2_frames.npz"), "fps": _FPS}
            stand.configure({"bench": {"source": source, "results": {"jsonl": True, "max_mb": 200}}})
            stand.point("bench", "current", digest)
            stand.start("inference")
            stand.wait("bench", lambda health: health["counters"].get(digest, {}).get("done", 0) > 30)
            for index in range(6):
                begun = time.time()
                if index % 2:
                    ended = threading.Event()
                    while time.time() - begun < 12.0:
                        CanaryRunner().run(slot, slot, 1, manifest, ended.is_set)
                else:
                    time.sleep(12.0)
                spans.append((bool(index % 2), begun, time.time()))
            rows = stand.rows("bench")
    finally:
        os.sched_setaffinity(0, before)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        for busy, begun, ended_at in spans:
            if begun <= row["wall"] < ended_at and row["outcome"] == "ok":
                taken[busy].append(float(row["latency_us"]))
    return quantile(taken[False], 0.99), quantile(taken[True], 0.99)


def live(folder: Path) -> dict[str, Measured]:
    """`canary.p99_ratio`."""
    quiet, busy = _with_and_without(folder, None)
    return {"canary.p99_ratio": Measured(busy / quiet, _said(quiet, busy, "all processors"))}


def live_on_one(folder: Path) -> dict[str, Measured]:
    """`canary.p99_ratio_1cpu`."""
    quiet, busy = _with_and_without(folder, {min(os.sched_getaffinity(0))})
    return {"canary.p99_ratio_1cpu": Measured(busy / quiet, _said(quiet, busy, "one processor for loop and canary"))}


def _said(quiet: float, busy: float, where: str) -> str:
    return (
        f"p99 of the live loop's latency, MobileNetV2 int8 at {_FPS:g} fps, {where}: {quiet / 1e3:.1f} ms quiet, "
        f"{busy / 1e3:.1f} ms while canaries of the same model run; three windows of 12 s each, alternating"
    )


GROUPS: Final[tuple[Group, ...]] = (
    Group((Figure("judges.false_pass", "share", "<= 0.05"),), operating),
    Group((Figure("judges.false_rollback", "share", "<= 0.01"),), rollback),
    Group((Figure("judges.detect_labels_median", "labels", "<= 110"),), detection),
    Group((Figure("rollback.hard_fault_s", "s", "<= 1"), Figure("rollback.hang_extra_s", "s", "<= 1")), hard_fault),
    Group((Figure("canary.p99_ratio", "ratio", "<= 1.5"),), live),
    Group((Figure("canary.p99_ratio_1cpu", "ratio", "<= 1.1"),), live_on_one),
    Group((Figure("canary.wall_ratio", "ratio", "<= 1.5"),), wall),
)
