"""The canary's criteria in a manifest: metrics, class floors, tolerance."""

import json
from pathlib import Path
from typing import Any

import pytest

import digit_slots
from modelagent.errors import ModelError
from modelagent.manifest import METRICS, dump, parse


def changed(tmp_path: Path, **canary: Any) -> bytes:
    digit_slots.write_slot(tmp_path / "1", "digits-1.0.0.tflite")
    document = json.loads((tmp_path / "1" / "manifest.json").read_bytes())
    document["canary"] |= canary
    return dump(document)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_may_be_named(tmp_path: Path, metric: str) -> None:
    found = parse(changed(tmp_path, metric=metric)).canary
    assert (found.metric, found.class_floors, found.tolerance) == (metric, {}, 0.0)


def test_class_floors_tolerance_and_limits_in_the_outputs_unit(tmp_path: Path) -> None:
    found = parse(changed(tmp_path, class_floors={"3": 0.9, "*": 0.5}, tolerance=0.01)).canary
    assert found.class_floors == {"*": 0.5, "3": 0.9}
    assert found.tolerance == 0.01
    assert parse(changed(tmp_path / "b", metric="mae", margin=12.5, floor=200.0)).canary.floor == 200.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "fame"}, "canary.metric"),
        ({"margin": 12.5}, "canary.margin"),
        ({"class_floors": {"three": 0.9}}, "canary.class_floors.three"),
        ({"class_floors": {"03": 0.9}}, "canary.class_floors.03"),
        ({"class_floors": {"3": 1.5}}, "canary.class_floors.3"),
        ({"class_floors": 0.9}, "canary.class_floors"),
        ({"tolerance": -1}, "canary.tolerance"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words.replace(".", r"\.")):
        changed(tmp_path, **change)
