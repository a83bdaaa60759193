"""A contract that this agent cannot serve is refused from the manifest, before the model is fetched."""

import json

import pytest

from modelagent.errors import ModelError
from modelagent.inference import prepare, readout
from modelagent.manifest import parse
from modelagent.steps.suitable import POSTPROCESS, PREPROCESS, check_suitable
from repository_simulator import make_manifest


def test_the_kinds_are_those_that_inference_knows() -> None:
    assert prepare._KINDS == PREPROCESS
    assert readout._KINDS == POSTPROCESS


@pytest.mark.parametrize("key", ["preprocess", "postprocess"])
def test_an_unknown_kind_is_refused_in_words(key: str) -> None:
    document = {**make_manifest(), key: {"kind": "divination"}}
    with pytest.raises(ModelError, match=rf"{key}.kind is 'divination', known are .*; update the agent") as caught:
        check_suitable(parse(json.dumps(document).encode()), "", "2.3.0")
    assert caught.value.code == "contract"
