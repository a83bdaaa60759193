"""Can this device serve a release? Answered from its manifest alone, before anything else is fetched.

This file knows hardware names, runtime versions, delegates and what the interpreter adapter can be asked for. It does
not know where the manifest came from.

    check_suitable(manifest, "rpi4", "2.3.0")       # ModelError wrong-hardware, runtime-too-old, runtime-too-new, ...
"""

import re
from pathlib import Path
from typing import Final

from modelagent.errors import DeviceError, ModelError
from modelagent.manifest import Manifest

CPU: Final = "cpu"  # the delegate that every device has
# What inference can do before and after the model; a test holds these against inference itself.
PREPROCESS: Final = ("none", "scale", "image", "each")
POSTPROCESS: Final = ("classification", "detection", "regression", "anomaly", "raw")
_NUMBER: Final = re.compile(r"\d+")


def check_suitable(
    found: Manifest, hardware: str, runtime_version: str, delegate: str | None = None, library: Path | None = None
) -> None:
    """Refuse a release that this device cannot serve, from its manifest alone.

    Args:
        found: the verified manifest.
        hardware: this device's name for itself, from the settings.
        runtime_version: of the installed runtime, for instance `2.3.0`.
        delegate: what releases call the delegate that this device has a library for; empty: whatever they ask for.
        library: that library; None: the device has the processor alone.

    Raises:
        DeviceError: `delegate`: the library is not there (any more), which is no fault of the release.
        ModelError: `wrong-hardware`, `wrong-delegate`, `contract`, `runtime-too-old` or `runtime-too-new`.
    """
    what = f"{found.model} {found.version}"
    if found.delegate != CPU:
        if library is None or delegate not in ("", found.delegate):
            here = CPU if library is None else f"{CPU}, {delegate}"
            raise ModelError(
                f"{what}: needs the delegate {found.delegate}, found {here}; publish it for one of those, or name the "
                "delegate's library as runtime.delegate",
                code="wrong-delegate",
            )
        if not library.is_file():
            raise DeviceError(
                f"{what}: needs the delegate {found.delegate}, whose library {library} is not there; install it or "
                "correct runtime.delegate",
                code="delegate",
            )
    for key, spec, known in (
        ("preprocess", found.preprocess, PREPROCESS),
        ("postprocess", found.postprocess, POSTPROCESS),
    ):
        kind = spec.get("kind")
        if kind is not None and kind not in known:
            raise ModelError(
                f"{what}: {key}.kind is {str(kind)[:80]!r}, known are {', '.join(known)}; update the agent first",
                code="contract",
            )
    if found.hardware and hardware not in found.hardware:
        raise ModelError(
            f"{what}: made for {', '.join(found.hardware)}, this device is {hardware or 'of no stated hardware'}; "
            "publish a release for it, or correct [device] hardware",
            code="wrong-hardware",
        )
    have = _numbers(runtime_version)
    if found.runtime_min is not None and have < _numbers(found.runtime_min):
        raise ModelError(
            f"{what}: needs runtime {found.runtime_min} or newer, found {runtime_version}; update the agent first",
            code="runtime-too-old",
        )
    if found.runtime_max is not None:
        most = _numbers(found.runtime_max)
        if have[: len(most)] > most:  # 2.3 allows every 2.3.x
            raise ModelError(
                f"{what}: works up to runtime {found.runtime_max}, found {runtime_version}; publish it anew",
                code="runtime-too-new",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _NUMBER.findall(version))
