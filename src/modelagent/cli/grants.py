"""What the settings ask of inference's unit beyond what it grants: devices, the network, directories.

This file knows which source or sink needs which drop-in, and how to ask systemd what the unit grants. It does not know
the units' text: systemd/ has it, and docs/systemd.md lists the drop-ins.

    needed(settings)         # [Grant("camera.conf", "models.gate.source: a camera", "PrivateDevices", "no")]
    missing(settings)        # those that the unit on this machine does not grant; () without systemd or the unit
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from modelagent.inputs.config import Settings

UNIT: Final = "modelagent.service"
_PROPERTIES: Final = ("LoadState", "PrivateDevices", "PrivateNetwork", "ReadWritePaths")


class Grant(NamedTuple):
    """One thing that is needed: which drop-in gives it, for what, and which property of the unit shows that it did."""

    drop_in: str
    reason: str
    name: str
    value: str  # of a list (ReadWritePaths) one entry, or a directory above it


def needed(settings: Settings) -> list[Grant]:
    """Everything that the settings ask for, model by model."""
    found = []
    for name, model in settings.models.items():
        source, place = model.source, f"models.{name}.source"
        if source.kind == "camera" and source.path is not None and source.path.is_relative_to("/dev"):
            found.append(Grant("camera.conf", f"{place}: a camera", "PrivateDevices", "no"))
        if source.kind in {"http", "mqtt"} or (source.kind == "camera" and source.url):
            found.append(_network(f'{place}: kind = "{source.kind}"'))
        if source.kind == "directory":
            found += [
                Grant("frames-directory.conf", f"{place}: files in {path}", "ReadWritePaths", str(path))
                for path in (source.path, source.done_dir)
                if path is not None
            ]
        if model.results.mqtt:
            found.append(_network(f"models.{name}.results: mqtt"))
        found += [
            _network(f"models.{name}.rules.{rule}: a message")
            for rule, wanted in model.rules.items()
            if wanted.topic or wanted.webhook
        ]
    return found


def missing(settings: Settings, unit: Mapping[str, str] | None = None) -> list[Grant]:
    """What is needed and not granted; `unit`: the unit's properties, asked of systemd when not given."""
    wanted = needed(settings)
    if not wanted:
        return []
    shown = properties() if unit is None else unit
    if shown.get("LoadState") != "loaded":
        return []
    return [grant for grant in wanted if not _grants(grant, shown.get(grant.name, ""))]


def properties() -> dict[str, str]:
    """The unit's properties on this machine; empty where there is no systemd to ask."""
    if not Path("/run/systemd/system").is_dir():
        return {}
    words = ["/usr/bin/systemctl", "show", *(f"--property={name}" for name in _PROPERTIES), UNIT]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _network(reason: str) -> Grant:
    return Grant("inference-network.conf", reason, "PrivateNetwork", "no")


def _grants(grant: Grant, shown: str) -> bool:
    if grant.name != "ReadWritePaths":
        return shown == grant.value
    return any(Path(grant.value).is_relative_to(entry.lstrip("-+")) for entry in shown.split())
