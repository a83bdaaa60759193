"""Rules: from results to the moments at which something is to be done.

This file knows when a rule fires. It does not know what is done then, and reads no clock.

    watch = RuleWatch(Rule("scrap", labels=("scratch",), min_score=0.8, hits=3, of=5))
    watch.step(row, mono)                    # True: act now

A frame is a hit when one of the rule's classes has at least `min_score` (a box of a detection counts like a class; a
rule without classes looks at the score alone, which for regression is the first value). The rule is *met* while `hits`
of the last `of` frames are hits; once met, `release_score` is enough (hysteresis). It acts when it has been met for
`hold` seconds, then again every `repeat` seconds while it lasts, and never sooner than `pause` seconds after it last
acted. Frames without a result (dropped, faulted) are neither hits nor misses.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from modelagent.inference.results import Row


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; times are seconds. What it does is named by the rest: empty means no."""

    name: str
    labels: tuple[str, ...] = ()
    min_score: float = 0.5
    release_score: float = 0.0  # 0: as min_score
    hits: int = 1
    of: int = 1
    hold: float = 0.0
    repeat: float = 0.0  # 0: once
    pause: float = 0.0
    log: bool = False
    topic: str = ""
    webhook: str = ""
    command: tuple[str, ...] = ()


class RuleWatch:
    """One rule's memory."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.met = False
        self.fired = 0
        self._labels = frozenset(rule.labels)
        self._window: deque[bool] = deque(maxlen=max(rule.of, rule.hits))
        self._hits = 0
        self._since = 0.0
        self._acted = False  # since it was met
        self._last = float("-inf")

    def step(self, row: Row, mono: float) -> bool:
        """Take one result; returns whether to act now. `mono`: seconds since boot."""
        if row.outcome != "ok":
            return False
        rule = self.rule
        wanted = rule.release_score if self.met and rule.release_score else rule.min_score
        hit = any(score >= wanted for score in self._scores(row))
        if len(self._window) == self._window.maxlen:
            self._hits -= self._window[0]
        self._window.append(hit)
        self._hits += hit
        if self._hits < rule.hits:
            self.met = False
            return False
        if not self.met:
            self.met, self._since, self._acted = True, mono, False
        due = not self._acted or (rule.repeat > 0 and mono - self._last >= rule.repeat)
        if not due or mono - self._since < rule.hold or mono - self._last < rule.pause:
            return False
        self._acted, self._last = True, mono
        self.fired += 1
        return True

    def _scores(self, row: Row) -> Iterable[float]:
        """The scores of the rule's classes in this result."""
        boxes = row.detail.get("boxes") if row.detail is not None else None
        if boxes is not None:
            return [
                box["score"]
                for box in boxes
                if not self._labels or box["label"] in self._labels or str(box["class"]) in self._labels
            ]
        if row.confidence is None:
            return ()
        if self._labels and row.label not in self._labels and str(row.prediction) not in self._labels:
            return ()
        return (row.confidence,)
