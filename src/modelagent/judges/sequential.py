"""Tests that may be looked at after every sample, with an error rate that looking does not spoil.

This file knows Wald's sequential probability ratio test on yes/no outcomes. It does not know what the outcomes are.

    test = Sprt(p0=0.10, p1=0.20, alpha=0.01, beta=0.05)
    test.decide(yes=23, no=90)          # Decision.HIGH: the rate is p1 rather than p0

The state is only the two counts, so a test survives a restart by being computed again, and the order of the outcomes
does not matter. Looking only now and then is safe: the likelihood ratio is a martingale under p0, so the chance that
it *ever* reaches 1/alpha is at most alpha (Ville's inequality; Wald, "Sequential Tests of Statistical Hypotheses",
Annals of Mathematical Statistics 16 (1945) 117-186). Bounds are taken as 1/alpha and beta instead of Wald's
approximations (1-beta)/alpha and beta/(1-alpha): a little slower, but the error rates hold without approximation.
"""

import enum
import math
from dataclasses import dataclass


class Decision(enum.Enum):
    """What a sequential test says."""

    OPEN = "open"
    HIGH = "high"  # the rate is p1
    LOW = "low"  # the rate is p0


@dataclass(frozen=True, slots=True)
class Sprt:
    """p0 against p1 > p0: `alpha` bounds the chance of HIGH when p0 is true, `beta` of LOW when p1 is."""

    p0: float
    p1: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Refuse what is no test.

        Raises:
            ValueError: naming the value.
        """
        if not 0.0 < self.p0 < self.p1 < 1.0:
            raise ValueError(f"0 < p0 < p1 < 1 is needed, not p0={self.p0}, p1={self.p1}")
        if not (0.0 < self.alpha < 0.5 and 0.0 < self.beta < 0.5):
            raise ValueError(f"alpha and beta must lie between 0 and 0.5, not {self.alpha}, {self.beta}")

    @property
    def upper(self) -> float:
        """At this logarithm of the likelihood ratio or above: HIGH."""
        return -math.log(self.alpha)

    @property
    def lower(self) -> float:
        """At this one or below: LOW."""
        return math.log(self.beta)

    def evidence(self, yes: int, no: int) -> float:
        """Logarithm of the likelihood ratio, p1 over p0."""
        return yes * math.log(self.p1 / self.p0) + no * math.log((1.0 - self.p1) / (1.0 - self.p0))

    def decide(self, yes: int, no: int) -> Decision:
        """The decision on these counts alone.

        A test that is computed again from cumulative counts may answer differently later; the caller acts on the
        first decision, or, where only HIGH has consequences, on HIGH whenever it comes: `alpha` holds for that too.
        """
        value = self.evidence(yes, no)
        if value >= self.upper:
            return Decision.HIGH
        return Decision.LOW if value <= self.lower else Decision.OPEN
