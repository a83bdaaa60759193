"""Pictures of any size become the model's input exactly as the manifest says."""

from typing import Any

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference.prepare import FrameError, preparations, resize
from modelagent.manifest import Tensor

COLOUR = Tensor("x", (1, 2, 4, 3), "float32", None)


def one(tensor: Tensor = COLOUR, **spec: Any) -> Any:
    return preparations({"kind": "image", **spec}, [tensor])[0]


def gradient(height: int, width: int) -> Any:
    """Red rises to the right, green downwards, blue is 50."""
    picture = np.full((height, width, 3), 50, np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    picture[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return picture


def test_a_picture_of_the_models_size_is_only_converted() -> None:
    picture = gradient(2, 4)
    found = one().prepare(picture)
    assert found.dtype == np.float32
    assert np.array_equal(found[0], picture)


def test_scaling_and_the_order_of_channels() -> None:
    picture = gradient(2, 4)
    found = one(order="bgr", mean=[1.0, 2.0, 3.0], scale=0.5).prepare(picture)[0]
    assert np.allclose(found[..., 0], (50 - 1) * 0.5)
    assert np.allclose(found[..., 2], (picture[..., 0] - 3.0) * 0.5)


def test_planes_first() -> None:
    picture = gradient(2, 4)
    found = one(Tensor("x", (1, 3, 2, 4), "float32", None), layout="chw").prepare(picture)
    assert np.array_equal(found[0, 2], picture[..., 2])


@pytest.mark.parametrize("method", ["bilinear", "nearest", "area"])
def test_resizing_keeps_flat_colours_edges_and_the_dtype(method: str) -> None:
    flat = np.full((17, 31, 3), 77, np.uint8)
    for size in ((5, 7), (40, 80), (17, 7)):
        found = resize(flat, *size, method)
        assert found.shape == (*size, 3)
        assert found.dtype == np.uint8
        assert set(np.unique(found)) == {77}
    halves = np.repeat(np.array([[0], [100]], np.float32), 8, axis=0).reshape(16, 1, 1)
    assert resize(halves, 2, 1, method).ravel().tolist() == [0.0, 100.0]


def test_bilinear_samples_pixel_centres_and_area_averages() -> None:
    line = np.array([0.0, 10.0, 20.0, 30.0], np.float32).reshape(1, 4, 1)
    assert resize(line, 1, 8, "bilinear").ravel().tolist() == [0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0]
    assert resize(line, 1, 2, "bilinear").ravel().tolist() == [5.0, 25.0]
    assert resize(line, 1, 2, "nearest").ravel().tolist() == [10.0, 30.0]
    checks = np.tile(np.array([0.0, 100.0], np.float32), 8).reshape(1, 16, 1)
    assert resize(checks, 1, 4, "area").ravel().tolist() == [50.0] * 4


def test_bilinear_agrees_with_a_second_implementation() -> None:
    image = pytest.importorskip("PIL.Image")
    picture = gradient(30, 40)
    ours = resize(picture, 60, 100, "bilinear").astype(int)
    theirs = np.asarray(image.fromarray(picture).resize((100, 60), image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_crops_and_what_is_done_with_other_proportions() -> None:
    picture = np.zeros((4, 16, 3), np.uint8)
    picture[:, 4:12] = 200
    assert one(crop=[0.0, 0.25, 1.0, 0.75]).prepare(picture).min() == 200.0
    assert one(fit="crop").prepare(picture).min() == 200.0
    padded = one(fit="pad", pad=9).prepare(picture)[0]
    assert set(np.unique(padded[0])) <= {9.0, 0.0, 200.0, 100.0, 50.0, 150.0}
    assert (padded[1] == 9.0).all()
    assert one(fit="stretch").prepare(picture)[0, :, 0].max() == 0.0


def test_grey_and_colour_become_each_other_and_alpha_goes() -> None:
    grey = Tensor("x", (1, 2, 4, 1), "float32", None)
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[..., 0] = 100
    assert one(grey).prepare(picture)[0, 0, 0, 0] == 30.0
    assert one().prepare(np.full((2, 4), 7, np.uint8)).shape == (1, 2, 4, 3)
    with_alpha = np.dstack([picture, np.full((2, 4), 255, np.uint8)])
    assert np.array_equal(one().prepare(with_alpha)[0], picture)


def test_quantised_inputs() -> None:
    signed = Tensor("x", (1, 2, 4, 3), "int8", (1 / 127.5, 0))
    white = np.full((2, 4, 3), 255, np.uint8)
    assert set(one(signed, mean=127.5, scale=1 / 127.5).prepare(white).ravel().tolist()) == {127}
    plain = Tensor("x", (1, 2, 4, 3), "uint8", (1 / 255, 0))
    assert np.array_equal(one(plain).prepare(white)[0], white), "its own type is taken as it is"
    bare = Tensor("x", (1, 2, 4, 3), "int8", None)
    assert set(one(bare, mean=128).prepare(white).ravel().tolist()) == {127}


def test_every_input_may_have_its_own() -> None:
    steps = preparations(
        {"kind": "each", "inputs": [{"kind": "image"}, {"kind": "scale", "mean": 0, "scale": 2}]},
        [COLOUR, Tensor("y", (1, 1), "float32", None)],
    )
    assert steps[0].prepare(gradient(9, 9)).shape == (1, 2, 4, 3)
    assert steps[1].prepare(np.ones(1, np.float32)).tolist() == [[2.0]]


def test_open_sizes_take_what_comes() -> None:
    [step] = preparations({"kind": "none"}, [Tensor("x", (None, None, 2), "float32", None)])
    for size in (1, 7):
        assert step.prepare(np.zeros((size, 2), np.float32)).shape == (1, size, 2)
    with pytest.raises(FrameError, match="shape"):
        step.prepare(np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(
    "frame", [np.zeros(5, np.uint8), np.zeros((2, 2, 7), np.uint8), np.zeros((0, 4, 3), np.uint8), np.array([["a"]])]
)
def test_what_is_no_picture_is_refused(frame: Any) -> None:
    with pytest.raises(FrameError, match="no picture"):
        one().prepare(frame)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "image", "method": "magic"},
        {"kind": "image", "fit": "squeeze"},
        {"kind": "image", "crop": [0, 0, 1]},
        {"kind": "image", "crop": [0.5, 0, 0.5, 1]},
        {"kind": "image", "mean": [1, 2]},
        {"kind": "image", "sharpen": 1},
        {"kind": "each", "inputs": []},
        {"kind": "each", "inputs": [{"kind": "each"}]},
        {"kind": "image", "pad": "x"},
    ],
)
def test_unknown_wishes_are_the_releases_fault(spec: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="published again"):
        preparations(spec, [COLOUR])


def test_an_input_that_is_no_picture_cannot_take_pictures() -> None:
    for shape in ((1, 4), (1, 2, 2, 2), (1, None, 4, 3)):
        with pytest.raises(ModelError, match="one picture"):
            one(Tensor("x", shape, "float32", None))
