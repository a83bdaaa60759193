"""The canary on models that are no plain classifiers: several tensors, open sizes, state; all without signatures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from modelagent.core.verdicts import CanaryVerdict, Outcome
from modelagent.manifest import dump, parse
from modelagent.steps.canary import CanaryRunner
from odd_models import elastic, positives, running_sum, two

pytestmark = pytest.mark.process

N = 100


def tensor(name: str, shape: list[int | None], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": dtype, "quantisation": None}


def judge(root: Path, model: bytes, arrays: dict[str, Any], **contract: Any) -> CanaryVerdict:
    """The verdict on a model whose output 0 is compared with `reference`."""
    slot = root / "1.0.0"
    tiny_models.write_slot(slot, model, size=(1, 1), change={"postprocess": {"kind": "raw"}, "labels": []})
    np.savez(slot / "canary.npz", **arrays)
    data = (slot / "canary.npz").read_bytes()
    document = json.loads((slot / "manifest.json").read_bytes()) | contract
    document["files"]["canary"] = {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}
    document["canary"] |= {"metric": "agreement", "samples": N, "floor": 0.9}
    (slot / "manifest.json").write_bytes(dump(document))
    manifest = parse((slot / "manifest.json").read_bytes())
    return CanaryRunner().run(slot, None, 1, manifest, lambda: False)


def share_right(verdict: CanaryVerdict) -> float:
    candidate = verdict.evidence["candidate"]
    assert isinstance(candidate, dict)
    assert candidate["problem"] is None, candidate
    return float(candidate["right"]) / N


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    a = np.arange(N * 3, dtype=np.float32).reshape(N, 1, 3)
    arrays = {"input_0": a, "input_1": a * 2, "reference": a * 3}
    verdict = judge(
        tmp_path,
        two(),
        arrays,
        inputs=[tensor("a", [1, 3]), tensor("b", [1, 3])],
        outputs=[tensor("sum", [1, 3]), tensor("difference", [1, 3])],
    )
    assert verdict.outcome is Outcome.PASS, verdict
    assert share_right(verdict) == 1.0


def test_an_input_of_open_size(tmp_path: Path) -> None:
    x = np.arange(N * 7, dtype=np.float32).reshape(N, 1, 7)
    contract = {"inputs": [tensor("x", [1, None])], "outputs": [tensor("y", [1, None])]}
    verdict = judge(tmp_path, elastic(), {"input_0": x, "reference": x * 2}, **contract)
    assert verdict.outcome is Outcome.PASS, verdict
    assert share_right(verdict) == 1.0


def test_an_output_whose_size_depends_on_the_frame(tmp_path: Path) -> None:
    x = np.zeros((N, 1, 6), np.float32)
    x[:, 0, 2] = x[:, 0, 5] = 1.0
    places = np.tile(np.array([[0, 2], [0, 5]], np.int64), (N, 1, 1))
    contract = {"inputs": [tensor("x", [1, 6])], "outputs": [tensor("y", [None, 2], "int64")]}
    verdict = judge(tmp_path, positives(), {"input_0": x, "reference": places}, **contract)
    assert verdict.outcome is Outcome.PASS, verdict
    assert share_right(verdict) == 1.0


@pytest.mark.parametrize("stateful", [False, True])
def test_state_is_kept_from_sample_to_sample_only_where_the_manifest_says_so(tmp_path: Path, stateful: bool) -> None:
    x = np.ones((N, 1, 3), np.float32)
    summed = x * np.arange(1, N + 1, dtype=np.float32)[:, np.newaxis, np.newaxis]
    contract = {"inputs": [tensor("x", [1, 3])], "outputs": [tensor("y", [1, 3])], "stateful": stateful}
    verdict = judge(tmp_path, running_sum(), {"input_0": x, "reference": summed}, **contract)
    if stateful:
        assert verdict.outcome is Outcome.PASS, verdict
        assert share_right(verdict) == 1.0
    else:
        assert verdict.outcome is Outcome.FAIL, "each sample began anew, so only the first agrees with a running sum"
        assert share_right(verdict) == 1 / N
