"""Which drop-in the settings need, and whether the unit already grants it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelagent.cli.grants import missing, needed
from modelagent.inputs.config import Settings

PLAIN = {
    "LoadState": "loaded",
    "PrivateDevices": "yes",
    "PrivateNetwork": "yes",
    "ReadWritePaths": "",
    "ProtectHome": "yes",
}


def asked(**shown: str) -> Callable[[str], dict[str, str]]:
    return lambda _unit: PLAIN | shown


def settings(**model: Any) -> Settings:
    return Settings.model_validate({"models": {"gate": model}})


@pytest.mark.parametrize(
    ("model", "drop_in"),
    [
        ({"source": {"kind": "camera", "path": "/dev/video0"}}, "camera.conf"),
        ({"source": {"kind": "camera", "url": "rtsp://10.0.0.7/1"}}, "inference-network.conf"),
        ({"source": {"kind": "http", "shape": [8, 8, 1]}}, "inference-network.conf"),
        ({"source": {"kind": "mqtt", "topic": "line/1", "shape": [8, 8, 1]}}, "inference-network.conf"),
        ({"source": {"kind": "directory", "path": "/srv/frames"}}, "frames-directory.conf"),
        ({"source": {"kind": "unix", "path": "/srv/line/frames.sock"}}, "frames-directory.conf"),
        ({"results": {"mqtt": True}}, "inference-network.conf"),
        ({"rules": {"alarm": {"webhook": "http://10.0.0.9/alarm"}}}, "inference-network.conf"),
        ({"samples": {"url": "https://10.0.0.9/frames"}}, "inference-network.conf"),
        ({"samples": {"path": "/srv/samples"}}, "frames-directory.conf"),
        ({"rules": {"alarm": {"topic": "plant/alarm"}}}, "inference-network.conf"),
        ({"rules": {"alarm": {"command": ["/home/pi/eject"]}}}, "home-files.conf"),
        ({"source": {"kind": "replay", "path": "/root/day.npz"}}, "home-files.conf"),
        ({"runtime": {"delegate": "/usr/lib/libnpu.so"}}, "npu.conf"),
        ({"labels_dir": "/srv/labels"}, "labels-directory.conf"),
    ],
)
def test_what_needs_more_than_the_unit_grants_is_named_with_its_drop_in(model: dict[str, Any], drop_in: str) -> None:
    assert {grant.drop_in for grant in missing(settings(**model), asked())} == {drop_in}


def test_replay_and_a_video_file_need_nothing() -> None:
    assert needed(settings(source={"kind": "replay", "path": "/srv/day.npz"})) == []
    assert needed(settings(source={"kind": "camera", "path": "/srv/day.mp4"})) == []
    assert needed(settings(source={"kind": "unix", "path": "/run/modelagent-inference/frames.sock"})) == []


def test_what_a_drop_in_grants_is_not_missing() -> None:
    http = settings(source={"kind": "http", "shape": [8, 8, 1]})
    assert missing(http, asked(PrivateNetwork="no")) == []
    files = settings(source={"kind": "directory", "path": "/srv/frames/line-1"})
    assert missing(files, asked(ReadWritePaths="/var/spool -/srv/frames")) == []
    assert missing(files, asked(ReadWritePaths="/srv/framesets"))


def test_without_the_unit_nothing_can_be_missing() -> None:
    assert missing(settings(results={"mqtt": True}), asked(LoadState="not-found")) == []


def test_what_the_updater_and_the_metrics_need_is_asked_of_their_own_units() -> None:
    labels = settings(labels_dir="/srv/labels")
    assert [grant.unit for grant in needed(labels)] == ["modelagent-updater.service"]
    assert needed(settings(labels_dir="/var/lib/modelagent/drop")) == []
    home = Settings.model_validate({"repository": {"ca": "/home/op/ca.pem"}, "metrics": {"listen": "0.0.0.0:9470"}})
    assert [(grant.unit, grant.drop_in) for grant in missing(home, asked(IPAddressAllow="127.0.0.0/8 ::1/128"))] == [
        ("modelagent-updater.service", "home-files.conf"),
        ("modelagent-metrics.service", "metrics-network.conf"),
    ]
    assert missing(home, asked(IPAddressAllow="127.0.0.0/8 ::1/128 192.0.2.7/32", ProtectHome="read-only")) == []


def test_each_drop_in_that_is_named_is_shipped_and_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    shipped = {path.name for path in (root / "systemd" / "drop-ins").iterdir()}
    documented = (root / "docs" / "systemd.md").read_text(encoding="utf-8")
    named = set(re.findall(r'"([a-z-]+\.conf)"', (root / "src/modelagent/cli/grants.py").read_text(encoding="utf-8")))
    assert named <= shipped
    assert all(f"| {name} |" in documented for name in shipped)
