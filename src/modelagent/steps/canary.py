"""Run the canary: the candidate and the running model, the same samples, each in a caged child.

This file knows in which order two workers are put on trial (`trial.py`), and how to turn whatever they do into
evidence. It does not know statistics (`judges/canary.py` judges), the runtime (the worker does) or what follows from a
verdict.

    runner = CanaryRunner(threads=1)
    verdict = runner.run(slots / candidate, slots / current, 1, manifest, abandoned=lambda: False)

A candidate that dies, hangs, eats memory, talks nonsense or prints for ever is a verdict. A *running* model that does
is not the candidate's fault: the comparison falls away, the absolute gates stay, and the reason says so. What neither
did (no process to be had, killed from outside, starved of the processor, a worker that fails before it has seen any
model, bytes on disk that changed) is a DeviceError, and blames no release.

Call `run` from a long-lived thread (see `children.py`). It keeps nothing between two runs.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from modelagent.core.verdicts import CanaryVerdict
from modelagent.errors import DeviceError, ModelError
from modelagent.judges.canary import CanaryEvidence, Problem, judge_canary
from modelagent.manifest import Manifest, parse
from modelagent.steps.trial import Ended, Terms, Trial

WORKER: Final = (sys.executable, "-m", "modelagent.inference.worker")
_BATCH: Final = 16  # samples before it is the other model's turn


class CanaryRunner:
    """Runs canaries, one at a time.

    Args:
        worker: program and first arguments; the JSON argument is appended. Tests put stand-ins here.
        threads: processor threads, as inference uses them.
        budget_s: wall-clock seconds that each of the two models may take altogether.
        delegate: library of an external delegate, for releases that ask for one. None: the processor, on which every
            release must run as well, since an accelerator that serves can seldom be opened twice.
        memory_mb: what this device gives one worker at most. One that needs more and keeps its promise blames no
            release: the device cannot try it.
        clock: Unix seconds, for the verdict's time.
    """

    def __init__(
        self,
        *,
        worker: Sequence[str] = WORKER,
        threads: int = 1,
        budget_s: float = 600.0,
        delegate: Path | None = None,
        memory_mb: float = math.inf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._worker = tuple(worker)
        self._delegate = delegate
        self._threads = threads
        self._budget_s = budget_s
        self._memory_mb = memory_mb
        self._clock = clock

    def run(
        self,
        candidate_slot: Path,
        baseline_slot: Path | None,
        run: int,
        criteria: Manifest,
        abandoned: Callable[[], bool],
    ) -> CanaryVerdict:
        """Run both models once over the signed samples and judge.

        Args:
            candidate_slot: absolute path of the complete slot.
            baseline_slot: of what runs now; None: absolute gates alone.
            run: 1, 2 or 3; from the second on after an earlier verdict AGAIN.
            criteria: the candidate's manifest.
            abandoned: asked every few hundredths of a second; true ends the run.

        Raises:
            DeviceError: `abandoned`, `canary` (this device cannot now) or `hash` (the slot's bytes have changed).
        """
        bench = _Bench(
            Terms(
                worker=self._worker,
                threads=self._threads,
                budget_s=self._budget_s,
                memory_mb=self._memory_mb,
                delegate=self._delegate,
                criteria=criteria,
                abandoned=abandoned,
            )
        )
        try:
            evidence = bench.gather(candidate_slot, baseline_slot, run, self._clock())
        finally:
            bench.close()
        verdict = judge_canary(evidence, criteria.canary, criteria.limits)
        if criteria.delegate == "cpu" or not evidence.candidate.delegate:
            return verdict
        return replace(verdict, reason=f"{verdict.reason}; {_where(criteria.delegate, evidence.candidate.delegate)}")


class _Bench:
    """One run: two workers side by side."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._criteria = terms.criteria
        self._trials: list[Trial] = []

    def close(self) -> None:
        for trial in self._trials:
            trial.close()

    def gather(self, candidate_slot: Path, baseline_slot: Path | None, run: int, at: float) -> CanaryEvidence:
        candidate = Trial(self._criteria.digest, self._criteria.version, self._terms)
        baseline, alone = self._prepare_baseline(baseline_slot, candidate_slot)
        self._trials.append(candidate)
        try:
            candidate.spawn(candidate_slot)  # both import the runtime at the same time
            if baseline is not None and baseline_slot is not None:
                baseline, alone = self._open_baseline(baseline, baseline_slot, candidate_slot)
            candidate.greet()
            candidate.load(candidate_slot)
            count = candidate.open_samples(candidate_slot) if self._criteria.canary.samples else 0
            if count != self._criteria.canary.samples:
                raise Ended(Problem("canary", _unlike(count, self._criteria), "opening the samples"))
            for number, start in enumerate(range(0, count, _BATCH)):
                stop = min(count, start + _BATCH)
                if baseline is None:
                    candidate.infer(start, stop)
                    continue
                # Alternating who begins keeps a slow drift of the clock speed from favouring one.
                for trial in (candidate, baseline) if number % 2 == 0 else (baseline, candidate):
                    if trial is candidate:
                        candidate.infer(start, stop)
                    elif baseline is not None:
                        lost = self._try_baseline(baseline, start, stop)
                        if lost:
                            baseline, alone = None, lost
            candidate.unload()
        except Ended as ended:
            self._blame_device(ended, candidate_slot)
            candidate.problem = ended.problem
        return CanaryEvidence(
            candidate=candidate.result(),
            baseline=None if baseline is None else baseline.result(),
            run=run,
            at=at,
            alone="" if baseline is not None else alone,
        )

    def _prepare_baseline(self, slot: Path | None, candidate_slot: Path) -> tuple[Trial | None, str]:
        if slot is None:
            return None, "nothing is running to compare it with"
        try:
            manifest = parse((slot / "manifest.json").read_bytes())
        except (OSError, ModelError) as error:
            return None, f"the running release's manifest cannot be read: {error}"
        trial = Trial(manifest.digest, manifest.version, self._terms)
        self._trials.append(trial)
        try:
            trial.spawn(slot, candidate_slot)
        except Ended as ended:
            self._blame_device(ended, slot)
        return trial, ""

    def _open_baseline(self, trial: Trial, slot: Path, candidate_slot: Path) -> tuple[Trial | None, str]:
        try:
            trial.greet()
            trial.load(slot)
            if self._criteria.canary.samples:
                trial.open_samples(candidate_slot)
        except Ended as ended:
            trial.close()
            if ended.outside:
                self._blame_device(ended, slot)
            return None, f"the running {trial.version} cannot take part: {ended.problem.reason}"
        return trial, ""

    def _try_baseline(self, trial: Trial, start: int, stop: int) -> str:
        try:
            trial.infer(start, stop)
        except Ended as ended:
            trial.close()
            if ended.outside:
                self._blame_device(ended, Path())
            return f"the running {trial.version} dropped out: {ended.problem.reason}"
        return ""

    def _blame_device(self, ended: Ended, slot: Path) -> None:
        if ended.outside:
            raise DeviceError(
                f"the canary could not be run: {ended.problem.reason}; it is tried again when the device is calmer",
                code="canary",
            )
        if ended.problem.code == "delegate":
            raise DeviceError(f"the canary could not be run: {ended.problem.reason}", code="delegate")
        if ended.problem.code == "hash":
            raise DeviceError(
                f"the canary could not be run: {ended.problem.reason}; slot {slot.name[:12]} changed on disk",
                code="hash",
            )


def _where(wanted: str, used: str) -> str:
    return f"on {used}" if used == wanted else f"on {used}, will serve on {wanted}"


def _unlike(count: int, criteria: Manifest) -> str:
    return f"the sample set holds {count} samples, its manifest promises {criteria.canary.samples}"
