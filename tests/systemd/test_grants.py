"""Which drop-in the settings need, and whether the unit already grants it."""

from typing import Any

import pytest

from modelagent.cli.grants import missing, needed
from modelagent.inputs.config import Settings

PLAIN = {"LoadState": "loaded", "PrivateDevices": "yes", "PrivateNetwork": "yes", "ReadWritePaths": ""}


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
        ({"results": {"mqtt": True}}, "inference-network.conf"),
        ({"rules": {"alarm": {"webhook": "http://10.0.0.9/alarm"}}}, "inference-network.conf"),
    ],
)
def test_what_needs_more_than_the_unit_grants_is_named_with_its_drop_in(model: dict[str, Any], drop_in: str) -> None:
    assert {grant.drop_in for grant in missing(settings(**model), PLAIN)} == {drop_in}


def test_replay_and_a_video_file_need_nothing() -> None:
    assert needed(settings(source={"kind": "replay", "path": "/srv/day.npz"})) == []
    assert needed(settings(source={"kind": "camera", "path": "/srv/day.mp4"})) == []


def test_what_a_drop_in_grants_is_not_missing() -> None:
    http = settings(source={"kind": "http", "shape": [8, 8, 1]})
    assert missing(http, PLAIN | {"PrivateNetwork": "no"}) == []
    files = settings(source={"kind": "directory", "path": "/srv/frames/line-1"})
    assert missing(files, PLAIN | {"ReadWritePaths": "/var/spool -/srv/frames"}) == []
    assert missing(files, PLAIN | {"ReadWritePaths": "/srv/framesets"})


def test_without_the_unit_nothing_can_be_missing() -> None:
    assert missing(settings(results={"mqtt": True}), {"LoadState": "not-found"}) == []
