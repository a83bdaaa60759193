"""May this canary set speak for this margin? The publisher's check of the samples that it signs.

This file knows the sample size of a paired comparison and the layout of `canary.npz`. It does not know what the
device does with the samples (the canary judge does), and it never unpickles.

    needed(margin=0.05)         -> 248 samples
    supported(samples=100)      -> 0.0786..., the margin that 100 samples can speak for

The rule is the paired non-inferiority sample size N >= (z_alpha + z_beta)^2 * discordance / margin^2 for equally
good models: discordance is the share of samples on which exactly one of the two is right. It is asked of every metric
that is a share or a mean of shares; errors (mae, rmse) have no such scale and need what the bootstrap needs, and
agreement with a reference needs as many samples as can show the wanted share at all.
"""

import io
import math
import zipfile
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np

from modelagent.errors import UsageError
from modelagent.judges.metrics import LEAST_SAMPLES, is_share, lower_is_better, wilson
from modelagent.manifest import Manifest

DISCORDANCE: Final = 0.10
POWER: Final = 0.80
_BY_VALUE: Final = ("agreement", "mean-iou", "mae", "rmse")  # whose truth is no class but an array or a number
MAX_UNPACKED: Final = 2**30  # bytes; a canary set that unpacks to more is a mistake or a bomb


def needed(margin: float, *, confidence: float = 0.95, discordance: float = DISCORDANCE, power: float = POWER) -> int:
    """How many samples a margin needs; `margin` as a share (0.05 is five points), one-sided confidence."""
    if margin <= 0:
        return 2**53
    return math.ceil(_spread(confidence, power) ** 2 * discordance / margin**2)


def supported(
    samples: int, *, confidence: float = 0.95, discordance: float = DISCORDANCE, power: float = POWER
) -> float:
    """The smallest margin that so many samples can speak for; 1.0 without samples."""
    if samples <= 0:
        return 1.0
    return min(1.0, _spread(confidence, power) * math.sqrt(discordance / samples))


def shortfall(manifest: Manifest) -> str:
    """Why the canary set is too small for its margin, or an empty text."""
    canary = manifest.canary
    if canary.metric == "agreement":
        can_show, _ = wilson(canary.samples, canary.samples, canary.confidence)
        if can_show >= canary.floor:
            return ""
        return (
            f"{canary.samples} canary samples that all agree show an agreement of {can_show:.3f}, not of the "
            f"{canary.floor:.3f} that the floor asks for ({canary.confidence:.0%} confidence)"
        )
    if not is_share(canary.metric) and canary.samples < LEAST_SAMPLES:
        return (
            f"{canary.samples} canary samples are too few for the metric {canary.metric}, which takes {LEAST_SAMPLES}"
        )
    if lower_is_better(canary.metric):
        return ""
    least = needed(canary.margin, confidence=canary.confidence)
    if canary.samples >= least:
        return ""
    can = supported(canary.samples, confidence=canary.confidence)
    wants = f"{least} samples" if least < 2**53 else "more samples than there can be"
    return (
        f"{canary.samples} canary samples can speak for a margin of {can:.3f}, not of {canary.margin:.3f}, which "
        f"takes {wants} (paired, {DISCORDANCE:.0%} of samples judged differently, {POWER:.0%} power, "
        f"{canary.confidence:.0%} confidence)"
    )


def count_samples(data: Path | bytes) -> int:
    """How many samples a `canary.npz` holds, by its labels; 0 without any.

    Raises:
        UsageError: `canary-file`.
    """
    shapes = _shapes(data)
    if "labels" in shapes:
        return shapes["labels"][0][0] if shapes["labels"][0] else 0
    return shapes["input_0"][0][0] if "input_0" in shapes and shapes["input_0"][0] else 0


def check_file(manifest: Manifest, data: Path | bytes, *, what: str = "canary") -> None:
    """Check that an .npz holds what the manifest promises: one `input_<i>` an input, and labels or a reference.

    Args:
        manifest: the promise.
        data: the file, or its bytes.
        what: `canary` (samples and labels) or `warmup` (inputs alone).

    Raises:
        UsageError: `canary-file`, naming the array, what it is and what it should be.
    """
    shapes = _shapes(data, what)
    names = [f"input_{index}" for index in range(len(manifest.inputs))]
    metric = manifest.canary.metric
    truth = "reference" if metric == "agreement" else "labels"
    expected = set(names) | ({truth} if what == "canary" else set())
    if set(shapes) != expected:
        raise _bad(what, "arrays", ", ".join(sorted(shapes)) or "none", ", ".join(sorted(expected)))
    counts = {shape[0] if shape else 0 for shape, _ in shapes.values()}
    if len(counts) != 1 or 0 in counts:
        raise _bad(what, "leading axis", sorted(counts), "the same number of samples in each array")
    if what == "canary" and counts != {manifest.canary.samples}:
        raise _bad(what, "samples", counts.pop(), f"the {manifest.canary.samples} that the manifest promises")
    # Frames that are prepared first have shapes and types of their own; proving the release runs them.
    exact = manifest.preprocess.get("kind", "none") == "none"
    for name, tensor in zip(names, manifest.inputs, strict=True) if exact else ():
        shape, dtype = shapes[name]
        if dtype != tensor.dtype:
            raise _bad(what, f"{name}.dtype", dtype, f"{tensor.dtype}, as the model's input {tensor.name}")
        wanted = tensor.shape[1:]
        if len(shape) - 1 != len(wanted) or any(
            size is not None and size != got for size, got in zip(wanted, shape[1:], strict=True)
        ):
            raise _bad(what, f"{name}.shape", list(shape), f"samples x {list(wanted)}")
    if what == "canary" and metric not in _BY_VALUE:
        shape, dtype = shapes["labels"]
        if dtype != "int64" or len(shape) != 1:
            raise _bad(what, "labels", f"{dtype} {list(shape)}", "int64, one a sample")


def _shapes(data: Path | bytes, what: str = "canary") -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array, read from the headers alone."""
    try:
        with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_UNPACKED:
                raise _bad(what, "size", f"{unpacked} bytes unpacked", f"at most {MAX_UNPACKED}")
            found = {}
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                if dtype.hasobject:
                    raise _bad(what, entry.filename, "Python objects", "plain numbers")
                found[entry.filename.removesuffix(".npy")] = (tuple(int(size) for size in shape), dtype.name)
            return found
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        found_instead = error.strerror if isinstance(error, OSError) and error.strerror else error
        name = "the file" if isinstance(data, bytes) else str(data)
        raise _bad(what, name, found_instead, "an .npz made by numpy.savez") from error


def _spread(confidence: float, power: float) -> float:
    return NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)


def _bad(what: str, key: str, found: object, allowed: str) -> UsageError:
    return UsageError(f"{what} file: {key}: found {found}, allowed is {allowed}", code="canary-file")
