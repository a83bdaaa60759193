"""The runtime adapter and the sample reader, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import digit_slots
import tiny_models
from modelagent.errors import DeviceError, ModelError
from modelagent.inference import interpreter
from modelagent.inference.interpreter import Found, mismatch
from modelagent.inference.samples import Samples
from modelagent.manifest import Tensor

X = Tensor("x", (1, 4), "float32", None)


def found(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Found:
    return Found(tensor, shape or tuple(size or 1 for size in tensor.shape))


@pytest.mark.parametrize(
    ("want", "have", "words"),
    [
        (X, X, ()),
        (Tensor("x", (None, 4), "float32", None), X, ()),
        (X, Tensor("x", (None, 4), "float32", None), ()),
        (X, Tensor("w", (1, 4), "float32", None), ("'x'", "'w'")),
        (X, Tensor("x", (1, 4), "int8", None), ("float32", "int8")),
        (X, Tensor("x", (1, 5), "float32", None), ("[1, 4]", "[1, 5]")),
        (Tensor("x", (None, 5), "float32", None), X, ("[any, 5]", "[1, 4]")),
        (X, Tensor("x", (4,), "float32", None), ("[1, 4]", "[4]")),
        (X, Tensor("x", (1, 4), "float32", (0.5, 0)), ("none", "(0.5, 0)")),
        (
            Tensor("x", (1, 4), "int8", (0.5, 3)),
            Tensor("x", (1, 4), "int8", (0.5, 4)),
            ("(0.5, 3)", "(0.5, 4)"),
        ),
        (Tensor("x", (1, 4), "int8", (0.1, 3)), Tensor("x", (1, 4), "int8", (float(np.float32(0.1)), 3)), ()),
    ],
)
def test_a_contract_is_kept_or_the_message_says_where_not(want: Tensor, have: Tensor, words: tuple[str, ...]) -> None:
    text = mismatch([want], [found(have)], "input")
    assert bool(text) == bool(words)
    assert not words or text.startswith("input 0 ('x')")
    for word in words:
        assert word in text


def test_another_number_of_tensors_is_named() -> None:
    assert mismatch([X, X], [found(X)], "output") == "the manifest promises 2 output tensors, the model has 1 (x)"


def test_a_size_the_file_leaves_open_must_be_allocated_as_promised() -> None:
    open_file = Tensor("x", (None, 4), "float32", None)
    assert not mismatch([X], [found(open_file, (1, 4))], "input")
    assert mismatch([X], [found(open_file, (8, 4))], "input")


def test_load_invoke_reset_close(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(tiny_models.linear(np.diag([1.0, 2.0, 3.0])))
    model = interpreter.load(path)
    x = np.array([[1.0, 1.0, 2.0]], np.float32)
    np.testing.assert_allclose(model.invoke([x])[0], [[1.0, 2.0, 6.0]])
    model.reset()
    model.fit([x])  # the shape it has
    with pytest.raises(ModelError, match=r"\[\[1, 9\]\]"):
        model.fit([np.zeros((1, 9), np.float32)])
    model.close()


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 4096])
def test_what_is_no_model_is_refused_with_the_path(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"m\.tflite") as caught:
        interpreter.load(path)
    assert caught.value.code == "load"


def test_without_a_runtime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter.runtime_version().startswith("ai-edge-litert ")
    monkeypatch.setattr(interpreter, "_BACKENDS", (("no-such-package", "no_such", "Interpreter"),))
    with pytest.raises(DeviceError, match="install the package ai-edge-litert"):
        interpreter.runtime_version()


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore")
def test_tensorflows_interpreter_says_the_same_behind_the_same_adapter() -> None:
    pytest.importorskip("tensorflow")
    path = digit_slots.EXAMPLE / "models" / "digits-1.1.0.tflite"
    one, other = interpreter.load(path), interpreter.load(path, backend="tensorflow")
    assert one.inputs == other.inputs
    assert one.outputs == other.outputs
    x = np.random.default_rng(0).random((1, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(one.invoke([x])[0], other.invoke([x])[0], atol=1e-5)


def test_only_floats_can_be_other_than_finite() -> None:
    assert interpreter.is_finite([np.array([1, 2]), np.array([1.0])])
    assert not interpreter.is_finite([np.array([1.0]), np.array([np.inf])])
    assert not interpreter.is_finite([np.array([np.nan], np.float16)])


@pytest.mark.parametrize("compressed", [False, True])
def test_samples_are_streamed_in_any_order(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "s.npz"
    images = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
    save: Any = np.savez_compressed if compressed else np.savez
    save(path, input_0=images, input_1=np.arange(10, dtype=np.int8), labels=np.arange(10) % 3)
    with Samples(path, 2) as samples:
        assert samples.count == 10
        for index in (0, 1, 5, 4, 9, 9, 0):
            image, number = samples.read(index)
            np.testing.assert_array_equal(image, images[index])
            assert number == index
            assert samples.label(index) == index % 3
        with pytest.raises(ModelError, match="0 to 9"):
            samples.read(10)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"wrong": np.zeros(3)}, "input_0"),
        ({"input_0": np.float32(3.0)}, "sample axis"),
        ({"input_0": np.zeros((3, 2)), "labels": np.zeros(4, np.int64)}, "one number or array per sample"),
        ({"input_0": np.zeros((3, 2)), "labels": np.zeros(3, bool)}, "one number or array per sample"),
        ({"input_0": np.zeros((3, 2)), "labels": np.zeros(3), "reference": np.zeros(3)}, "one of them"),
        ({"input_0": np.asfortranarray(np.zeros((3, 2)))}, "column by column"),
        ({"input_0": np.array([{}, {}], dtype=object)}, "Python objects"),
    ],
)
def test_a_sample_set_of_another_form_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ModelError, match=words) as caught:
        Samples(tmp_path / "s.npz", 1)
    assert caught.value.code == "canary"


def test_sets_of_unequal_length_and_damaged_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "u.npz", input_0=np.zeros((3, 1)), input_1=np.zeros((4, 1)))
    with pytest.raises(ModelError, match="as many samples"):
        Samples(tmp_path / "u.npz", 2)
    (tmp_path / "n.npz").write_bytes(b"PK no archive")
    with pytest.raises(ModelError, match=r"an \.npz archive"):
        Samples(tmp_path / "n.npz", 1)
    np.savez(tmp_path / "d.npz", input_0=np.zeros((50, 1000)))
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[200_000] ^= 0xFF  # within the numbers: the archive's checksum no longer fits
    (tmp_path / "d.npz").write_bytes(data)
    with Samples(tmp_path / "d.npz", 1) as samples, pytest.raises(ModelError, match="sample 49"):
        samples.read(49)
