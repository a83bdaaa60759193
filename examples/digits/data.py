"""The digits data: who holds which scan, and what may happen to the camera.

This file knows the 1,797 scans (digits.npz, the very ones that scikit-learn bundles), how they are divided, and the
input changes that the demo plays. It needs numpy and nothing else, and knows nothing of any model.

    scans, labels = digits()                       # float32 [1797, 8, 8, 1] in 0..1, int64 [1797]
    part = split()                                 # disjoint index arrays: train 900, canary 400, live 497
    seen = slipped(scans[part.live])               # what the camera sees after it slipped by one pixel

The division is a fixed permutation from numpy's legacy generator, whose streams are frozen for good (NumPy
Enhancement Proposal 19), so training, canary set and live frames agree on every machine.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Scans = NDArray[np.float32]
Labels = NDArray[np.int64]

TRAIN, CANARY = 900, 400  # scans; the remaining 497 are the live frames
_SEED = 1797
_SCANS: Final = Path(__file__).resolve().parent / "digits.npz"  # uint8 0..16 [1797, 8, 8] and uint8 [1797]


class Split(NamedTuple):
    """Indices into `digits()`; no scan is in two parts."""

    train: Labels
    canary: Labels
    live: Labels


def digits() -> tuple[Scans, Labels]:
    """All scans: float32 [1797, 8, 8, 1], 0 paper and 1 ink, and their digits, int64 [1797]."""
    with np.load(_SCANS, allow_pickle=False) as bundled:
        scans = (bundled["images"] / 16.0).astype(np.float32)
        return scans[..., np.newaxis], bundled["target"].astype(np.int64)


def split() -> Split:
    """The one division of the scans that everything here uses."""
    order = np.random.RandomState(_SEED).permutation(1797).astype(np.int64)
    return Split(order[:TRAIN], order[TRAIN : TRAIN + CANARY], order[TRAIN + CANARY :])


def shift(scans: Scans, right: int, down: int) -> Scans:
    """The scans moved by whole pixels; what leaves the picture is lost and paper (0) comes in."""
    moved = np.zeros_like(scans)
    height, width = scans.shape[1:3]
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = scans[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def slipped(scans: Scans) -> Scans:
    """Input change A: the camera slipped, every digit sits one pixel to the right and one down."""
    return shift(scans, 1, 1)


def dirty(scans: Scans) -> Scans:
    """Input change B: a smear of dirt, two pixels by four, over the upper half of the dial. Hurts every model alike."""
    seen = scans.copy()
    seen[:, 2:4, 2:6] = 1.0
    return seen


def glare(scans: Scans) -> Scans:
    """Input change C: the sun hits the lens and every pixel is saturated at 1."""
    return np.ones_like(scans)
