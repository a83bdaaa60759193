"""What the settings ask of the units beyond what they grant: devices, the network, directories.

This file knows which source, sink or input needs which drop-in of which unit, and how to ask systemd what a unit
grants. It does not know the units' text: systemd/ has it, and docs/systemd.md lists the drop-ins.

    needed(settings)         # [Grant("camera.conf", "models.gate.source: a camera", "PrivateDevices", "no")]
    missing(settings)        # those that the units on this machine do not grant; [] without systemd or the units
"""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from modelagent.inputs.config import Settings

INFERENCE: Final = "modelagent.service"
UPDATER: Final = "modelagent-updater.service"
METRICS: Final = "modelagent-metrics.service"
_PROPERTIES: Final = (
    "LoadState",
    "PrivateDevices",
    "PrivateNetwork",
    "IPAddressAllow",
    "ReadWritePaths",
    "ProtectHome",
)
_LOOPBACK: Final = ("127.", "localhost:", "[::1]:")
_ITSELF: Final = {"127.0.0.0/8", "::1/128"}
_HIDDEN: Final = ("/home", "/root", "/run/user")  # by ProtectHome


class Grant(NamedTuple):
    """One thing that is needed: the drop-in that gives it, for what, and which property of which unit shows it."""

    drop_in: str
    reason: str
    name: str
    value: str  # of a list (ReadWritePaths) one entry, or a directory above it; empty: anything
    unit: str = INFERENCE


def needed(settings: Settings) -> list[Grant]:
    """Everything that the settings ask for, model by model."""
    found = []
    for name, model in settings.models.items():
        source, place = model.source, f"models.{name}.source"
        if source.kind == "camera" and source.path is not None and source.path.is_relative_to("/dev"):
            found.append(Grant("camera.conf", f"{place}: a camera", "PrivateDevices", "no"))
        if source.kind in {"http", "mqtt"} or (source.kind == "camera" and source.url):
            found.append(_network(f'{place}: kind = "{source.kind}"'))
        own = settings.paths.inference_run_dir
        if source.kind == "unix" and source.path is not None and not source.path.is_relative_to(own):
            where = source.path.parent
            found.append(Grant("frames-directory.conf", f"{place}: a socket in {where}", "ReadWritePaths", str(where)))
        if source.kind == "directory":
            found += [
                Grant("frames-directory.conf", f"{place}: files in {path}", "ReadWritePaths", str(path))
                for path in (source.path, source.done_dir)
                if path is not None
            ]
        if model.runtime.delegate is not None:
            found.append(Grant("npu.conf", f"models.{name}.runtime.delegate: an accelerator", "PrivateDevices", "no"))
        found += [
            _home(path, f"models.{name}.{key}")
            for key, path in (
                ("source.path", source.path),
                ("source.done_dir", source.done_dir),
                ("runtime.delegate", model.runtime.delegate),
                ("samples.path", model.samples.path),
                *((f"rules.{rule}.command", Path(one.command[0])) for rule, one in model.rules.items() if one.command),
            )
            if _is_home(path)
        ]
        if model.results.mqtt:
            found.append(_network(f"models.{name}.results: mqtt"))
        found += [
            _network(f"models.{name}.rules.{rule}: a message")
            for rule, wanted in model.rules.items()
            if wanted.topic or wanted.webhook
        ]
        if model.samples.url:
            found.append(_network(f"models.{name}.samples: frames sent by HTTP"))
        if (samples := model.samples.path) is not None and not samples.is_relative_to(settings.paths.inference_dir):
            why = f"models.{name}.samples: files in {samples}"
            found.append(Grant("frames-directory.conf", why, "ReadWritePaths", str(samples)))
        if (labels := model.labels_dir) is not None and not labels.is_relative_to(settings.paths.state_dir):
            why = f"models.{name}.labels_dir: label files in {labels}"
            found.append(Grant("labels-directory.conf", why, "ReadWritePaths", str(labels), UPDATER))
            if _is_home(labels):
                found.append(_home(labels, f"models.{name}.labels_dir", UPDATER))
    for key in ("root", "media", "ca", "client_cert", "client_key"):
        if _is_home(path := getattr(settings.repository, key)):
            found.append(_home(path, f"repository.{key}", UPDATER))
    if not settings.metrics.listen.startswith(_LOOPBACK):
        why = f"metrics.listen: a page for others on {settings.metrics.listen}"
        found.append(Grant("metrics-network.conf", why, "IPAddressAllow", "", METRICS))
    return found


def missing(settings: Settings, ask: Callable[[str], Mapping[str, str]] | None = None) -> list[Grant]:
    """What is needed and not granted; `ask` gives a unit's properties, systemd is asked when it is not given."""
    wanted = needed(settings)
    shown = {unit: (ask or properties)(unit) for unit in {grant.unit for grant in wanted}}
    return [
        grant
        for grant in wanted
        if shown[grant.unit].get("LoadState") == "loaded" and not _grants(grant, shown[grant.unit].get(grant.name, ""))
    ]


def properties(unit: str) -> dict[str, str]:
    """A unit's properties on this machine; empty where there is no systemd to ask."""
    if not Path("/run/systemd/system").is_dir():
        return {}
    words = ["/usr/bin/systemctl", "show", *(f"--property={name}" for name in _PROPERTIES), unit]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _network(reason: str) -> Grant:
    return Grant("inference-network.conf", reason, "PrivateNetwork", "no")


def _home(path: Path | None, place: str, unit: str = INFERENCE) -> Grant:
    return Grant("home-files.conf", f"{place}: {path}, which the unit cannot see", "ProtectHome", "read-only", unit)


def _is_home(path: Path | None) -> bool:
    return path is not None and any(path.is_relative_to(hidden) for hidden in _HIDDEN)


def _grants(grant: Grant, shown: str) -> bool:
    match grant.name:
        case "ReadWritePaths":
            return any(Path(grant.value).is_relative_to(entry.lstrip("-+")) for entry in shown.split())
        case "IPAddressAllow":  # what there is lets the device itself in; who else shall come is not ours to know
            return bool(set(shown.split()) - _ITSELF)
        case "ProtectHome":
            return shown in {"no", "read-only"}
        case _:
            return shown == grant.value
