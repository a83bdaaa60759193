"""Preprocessing and decisions as a manifest declares them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference.decisions import Decider, Decision, FrameError
from modelagent.inference.exchange import ParentSide, Slot, fixed_shape, plan
from modelagent.inference.prepare import quantise
from modelagent.inference.readout import dequantise
from modelagent.manifest import Canary, Limits, Manifest, Tensor

FLOAT = Tensor("x", (1, 2, 2, 1), "float32", None)
SCORES = Tensor("y", (1, 3), "float32", None)
QUANTISED = Tensor("x", (1, 2, 2, 1), "int8", (0.5, -3))


def manifest(
    *,
    inputs: tuple[Tensor, ...] = (FLOAT,),
    outputs: tuple[Tensor, ...] = (SCORES,),
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Manifest:
    return Manifest(
        digest="0" * 64,
        length=1,
        model="m",
        version="1",
        number=1,
        floor=0,
        issued=0.0,
        parent=None,
        files=(),
        runtime_min=None,
        runtime_max=None,
        delegate="cpu",
        hardware=(),
        stateful=False,
        inputs=inputs,
        outputs=outputs,
        labels=("cat", "dog"),
        preprocess=before or {"kind": "none"},
        postprocess=after or {"kind": "classification", "softmax": False},
        canary=Canary("accuracy", 0.05, 0.95, 0.5, 0),
        limits=Limits(1.0, 2.0, 100.0, 1.0),
        card={},
    )


def test_classification_takes_the_best_class_and_its_name() -> None:
    decider = Decider(manifest())
    found = decider.decide([np.array([[0.2, 0.7, 0.1]], np.float32)])
    assert (found.prediction, found.label) == (1, "dog")
    assert found.confidence == pytest.approx(0.7)
    assert decider.decide([np.array([[0.0, 0.1, 0.9]], np.float32)]).label == "2", "a class without a name"


def test_softmax_turns_logits_into_a_probability_and_survives_large_ones() -> None:
    decider = Decider(manifest(after={"kind": "classification", "softmax": True}))
    logits = np.array([[1000.0, 999.0, 998.0]], np.float32)
    wanted = 1.0 / (1.0 + np.exp(-1.0) + np.exp(-2.0))
    found = decider.decide([logits])
    assert found.prediction == 0
    assert found.confidence == pytest.approx(wanted, rel=1e-5)


def test_raw_decides_nothing() -> None:
    assert Decider(manifest(after={"kind": "raw"})).decide([np.zeros((1, 3), np.float32)]) == Decision(None, "", None)


def test_quantised_outputs_are_dequantised_before_deciding() -> None:
    tensor = Tensor("y", (1, 3), "uint8", (1 / 256, 0))
    decider = Decider(manifest(outputs=(tensor,)))
    assert decider.decide([np.array([[1, 2, 192]], np.uint8)]).confidence == pytest.approx(0.75)
    assert dequantise(np.array([192], np.uint8), tensor)[0] == pytest.approx(0.75)


def test_quantising_rounds_clips_and_makes_nan_the_zero_point() -> None:
    found = quantise(np.array([0.0, 1.0, -1.0, 1e9, -1e9, np.nan], np.float32), QUANTISED)
    assert found.dtype == np.int8
    assert found.tolist() == [-3, -1, -5, 127, -128, -3]


@pytest.fixture
def slot_of() -> Iterator[Callable[[Manifest], Slot]]:
    """The one slot of a mailbox for a manifest."""
    sides: list[ParentSide] = []

    def make(manifest: Manifest) -> Slot:
        sides.append(ParentSide(plan(manifest.inputs, manifest.outputs)))
        return sides[-1].filling

    yield make
    for side in sides:
        side.close()


def given(slot: Slot) -> Any:
    """What the model reads from input 0."""
    return slot.read_inputs()[0].copy()


def test_a_frame_may_come_with_or_without_the_batch_axis(slot_of: Callable[[Manifest], Slot]) -> None:
    slot = slot_of(manifest())
    binding = Decider(manifest()).bind(slot)
    frame = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    binding.fill([frame])
    assert np.array_equal(given(slot)[0], frame)
    binding.fill([frame[np.newaxis] * 2])
    assert np.array_equal(given(slot)[0], frame * 2)
    binding.release()


def test_scaling_takes_whole_numbers_and_channels() -> None:
    tensor = Tensor("x", (1, 1, 1, 2), "float32", None)
    decider = Decider(manifest(inputs=(tensor,), before={"kind": "scale", "mean": [10, 20], "scale": 0.5}))
    assert decider.prepare(0, np.array([[[12, 26]]], np.uint8)).ravel().tolist() == [1.0, 3.0]


def test_a_float_frame_is_quantised_and_one_of_the_tensors_type_is_taken_as_it_is() -> None:
    decider = Decider(manifest(inputs=(QUANTISED,)))
    assert set(decider.prepare(0, np.full((2, 2, 1), 2.0, np.float32)).ravel().tolist()) == {1}
    assert set(decider.prepare(0, np.full((2, 2, 1), 7, np.int8)).ravel().tolist()) == {7}


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ([np.zeros((3, 2, 1), np.float32)], "shape"),
        ([np.zeros((2, 2, 1), np.float64)], "float64"),
        ([np.zeros((2, 2, 1), np.uint8)], "uint8"),
        ([np.zeros((1, 2, 2, 1), np.float32)] * 2, "2 arrays"),
        ([np.zeros((), np.float32)], "shape"),
        ([np.array([["a"]])], "shape"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_by_name(
    arrays: list[Any], what: str, slot_of: Callable[[Manifest], Slot]
) -> None:
    binding = Decider(manifest()).bind(slot_of(manifest()))
    with pytest.raises(FrameError, match=what):
        binding.fill(arrays)
    binding.release()


@pytest.mark.parametrize(
    "wrong",
    [
        {"before": {"kind": "resize"}},
        {"before": {"kind": "scale", "mean": 0}},
        {"before": {"kind": "scale", "mean": "x", "scale": 1}},
        {"before": {"kind": "scale", "mean": 0, "scale": [[1]]}},
        {"after": {"kind": "boxes"}},
        {"after": {"kind": "classification", "softmax": 1}},
    ],
)
def test_unknown_processing_is_the_releases_fault(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="published again") as caught:
        Decider(manifest(**wrong))
    assert caught.value.code == "contract"


def test_an_open_size_is_one_until_something_comes() -> None:
    assert fixed_shape(Tensor("x", (None, 4), "float32", None)) == (1, 4)
    assert fixed_shape(Tensor("x", (1, None), "float32", None)) == (1, 1)
