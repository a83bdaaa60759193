"""What an update costs as a delta: bytes for really retrained models, beside the general tools, and time and memory.

This file knows the delta.* figures. Pairs are made once by `pairs.py` where tensorflow is installed and kept in
build/bench/delta/; each figure whose pair is missing is listed as not run. Ratios are what a device that runs the old
model fetches, divided by the new model's size: the delta, or the compressed file where that is smaller. Every delta
is applied and compared before it counts.
"""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import zstandard
from benchmarks.measure import Figure, Group, Measured, NotHereError

from modelagent.delta.make import make
from modelagent.delta.rebuild import rebuild
from modelagent.publish.deltas import size

_ROOT: Final = Path(__file__).resolve().parents[2]
_DTYPES: Final = ("int8", "float16", "float32")
_AIMS: Final = {
    "metadata": "<= 0.01",
    "head": "<= 0.005",
    "light_finetune": "",
    "full_finetune": "",
    "scratch": "",
}
_FULL_AIMS: Final = {"int8": "<= 0.33", "float16": "", "float32": "<= 0.67"}
_ROUNDS: Final = 15
_MB: Final = 1e6

# Runs in a process of its own, so that its peak is this one application's.
_PEAK: Final = """
import sys
from modelagent.delta.rebuild import rebuild
def kb(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
before = kb("VmRSS")
with open(sys.argv[1], "rb") as old, open(sys.argv[2], "rb") as delta, open(sys.argv[3], "wb") as new:
    rebuild(old, delta, new, int(sys.argv[4]))
print(kb("VmHWM") - before)
"""


def _pair(folder: Path, dtype: str, kind: str) -> tuple[bytes, bytes]:
    found = []
    for name in ("base", kind):
        path = folder / "delta" / f"{dtype}_{name}.tflite"
        if not path.exists():
            raise NotHereError(f"{path.name} is missing; run `python -m benchmarks.pairs build/bench/delta`")
        found.append(path.read_bytes())
    return found[0], found[1]


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(data)


def _patch_from(old: bytes, new: bytes) -> int:
    window = (len(old) + len(new)).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=len(new), dict_size=len(old), window_log=window, enable_ldm=True
    )
    base = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(dict_data=base, compression_params=parameters).compress(new))


@cache
def _tools() -> Mapping[str, Callable[[bytes, bytes], int] | None]:
    """The general tools; None: not installed here."""
    tools: dict[str, Callable[[bytes, bytes], int] | None] = {"zstd patch-from": _patch_from}
    bsdiff = _module("bsdiff4")
    tools["bsdiff4"] = None if bsdiff is None else lambda old, new: len(bsdiff.diff(old, new))
    hdiff = _module("hdiffpatch")
    tools["hdiffpatch"] = (
        None if hdiff is None else lambda old, new: len(hdiff.diff(old, new, compression=hdiff.COMPRESSION_LZMA2))
    )
    tools["xdelta3"] = _xdelta if shutil.which("xdelta3") else None
    return tools


def _module(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _xdelta(old: bytes, new: bytes) -> int:
    folder = _ROOT / "build" / "bench" / "delta"
    before, after, patch = (folder / f"xdelta.{part}" for part in ("old", "new", "patch"))
    before.write_bytes(old)
    after.write_bytes(new)
    try:
        subprocess.run(["xdelta3", "-e", "-f", "-9", "-S", "lzma", "-s", before, after, patch], check=True)
        return patch.stat().st_size
    finally:
        for path in (before, after, patch):
            path.unlink(missing_ok=True)


def _ratio(dtype: str, kind: str) -> Callable[[Path], Mapping[str, Measured]]:
    """`delta.<dtype>_<kind>.ratio`, and for light fine-tuning the distance to the best general tool."""

    def measure(folder: Path) -> Mapping[str, Measured]:
        old, new = _pair(folder, dtype, kind)
        began = time.perf_counter()
        ours = size(old, new)
        took = time.perf_counter() - began
        others = {name: None if tool is None else tool(old, new) for name, tool in _tools().items()}
        full = len(_compressed(new))
        told = ", ".join(
            f"{name} {'not installed' if found is None else f'{100 * found / len(new):.2f} %'}"
            for name, found in others.items()
        )
        how = f"{ours} of {len(new)} bytes, made in {took:.1f} s; {told}, zstd -19 of all {100 * full / len(new):.2f} %"
        best = min([full, *(found for found in others.values() if found is not None)])
        return {
            f"delta.{dtype}_{kind}.ratio": Measured(ours / len(new), how),
            f"delta.{dtype}_{kind}.over_best": Measured(
                100 * (ours - best) / len(new), "percentage points of the file; below zero: smaller than all of them"
            ),
        }

    return measure


def applying(folder: Path) -> Mapping[str, Measured]:
    """`delta.apply_ratio` and `delta.apply_extra_mb`, fully fine-tuned."""
    times, told, extra = [0.0, 0.0], [], []
    for dtype in _DTYPES:
        old, new = _pair(folder, dtype, "full_finetune")
        delta, full = make(old, new), _compressed(new)
        applied, unpacked = _times(folder / "delta", old, delta, full, new)
        times = [times[0] + applied, times[1] + unpacked]
        told.append(f"{dtype} {1e3 * applied:.1f} / {1e3 * unpacked:.1f} ms")
        extra.append((_extra(folder, old, delta, new), dtype))
    # The worst for memory: files of which no tensor pairs, so that zstd matches all against all.
    old, new = (data[8:] for data in _pair(folder, "int8", "metadata"))
    extra.append((_extra(folder, old, make(old, new), new), "int8 without pairs"))
    most, which = max(extra)
    return {
        "delta.apply_ratio": Measured(
            times[0] / times[1],
            f"sum over the fully fine-tuned pairs: {', '.join(told)}; file to file, best of {_ROUNDS}, without hashing",
        ),
        "delta.apply_extra_mb": Measured(
            most,
            f"peak of the process above its imports, less old and new file; worst of all: {which} ("
            + ", ".join(f"{name} {value:.1f}" for value, name in extra)
            + "); below zero: not both files were ever held",
        ),
    }


def _times(folder: Path, old: bytes, delta: bytes, full: bytes, new: bytes) -> tuple[float, float]:
    """Seconds from file to file: the delta applied, the full file decompressed; turn by turn."""
    paths = {part: folder / f"apply.{part}" for part in ("old", "delta", "full", "new")}
    for part, data in (("old", old), ("delta", delta), ("full", full)):
        paths[part].write_bytes(data)

    def apply() -> None:
        with paths["old"].open("rb") as base, paths["delta"].open("rb") as change, paths["new"].open("wb") as made:
            rebuild(base, change, made, len(new))

    def unpack() -> None:
        with paths["full"].open("rb") as packed, paths["new"].open("wb") as made:
            made.write(zstandard.ZstdDecompressor().decompress(packed.read()))

    taken: dict[Callable[[], None], list[float]] = {apply: [], unpack: []}
    try:
        for _ in range(_ROUNDS):
            for work, times in taken.items():
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
                if paths["new"].read_bytes() != new:
                    raise RuntimeError("a delta gives other bytes")
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    return min(taken[apply]), min(taken[unpack])  # what else the machine does can only add


def _extra(folder: Path, old: bytes, delta: bytes, new: bytes) -> float:
    paths = [folder / "delta" / f"apply.{part}" for part in ("old", "delta", "new")]
    try:
        paths[0].write_bytes(old)
        paths[1].write_bytes(delta)
        argv = [sys.executable, "-c", _PEAK, *map(str, paths), str(len(new))]
        environment = {"PYTHONPATH": str(_ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"}
        found = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
        if paths[2].read_bytes() != new:
            raise RuntimeError("a delta gives other bytes")
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    return int(found.stdout) * 1024 / _MB - (len(old) + len(new)) / _MB


def _group(dtype: str, kind: str) -> Group:
    aim = _FULL_AIMS[dtype] if kind == "full_finetune" else _AIMS[kind]
    over = "<= 1" if kind == "light_finetune" else "<= 0.3"
    return Group(
        (
            Figure(f"delta.{dtype}_{kind}.ratio", "of full", aim),
            Figure(f"delta.{dtype}_{kind}.over_best", "points", over),
        ),
        _ratio(dtype, kind),
    )


GROUPS: Final = (
    *(_group(dtype, kind) for dtype in _DTYPES for kind in _AIMS),
    Group(
        (Figure("delta.apply_ratio", "", "<= 4"), Figure("delta.apply_extra_mb", "MB", "<= 4")),
        applying,
    ),
)
