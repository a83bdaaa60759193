"""Data sets: where they come from, how they are divided, and that the same ones give the same bytes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelagent.build import data
from modelagent.build.data import Samples
from modelagent.errors import UsageError


def some(count: int = 100, classes: int = 4) -> Samples:
    random = np.random.RandomState(1)
    labels = np.arange(count) % classes
    return Samples(
        (random.rand(count, 3).astype(np.float32),), labels.astype(np.int64), tuple(str(n) for n in range(classes))
    )


def entry() -> dict[str, Any]:
    return {"x": np.zeros((6, 2)), "y": np.array([0, 1, 2, 0, 1, 2]), "classes": np.array(["a", "b", "c"])}


def entry_of_samples() -> Samples:
    return some()


def bad_entry() -> int:
    return 3


def test_an_npz_under_both_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_0=np.zeros((4, 2)), input_1=np.zeros((4, 1), np.int8), labels=[0, 1, 0, 1])
    found = data.read(str(tmp_path / "a.npz"))
    assert [array.dtype.name for array in found.inputs] == ["float32", "int8"]
    assert found.classes == ("0", "1")
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 2), np.float32), y=np.array([0, 1, 0, 1]))
    assert len(data.read(str(tmp_path / "b.npz"))) == 4


def test_an_entry_point_gives_arrays_or_samples() -> None:
    assert data.read(f"{__name__}:entry").classes == ("a", "b", "c")
    assert data.read(f"{__name__}:entry_of_samples").digest == some().digest
    for text in (f"{__name__}:bad_entry", f"{__name__}:missing", "no.such.module:x"):
        with pytest.raises(UsageError, match=text):
            data.read(text)


def test_class_folders(tmp_path: Path) -> None:
    for name, value in (("cat", 0.0), ("dog", 1.0)):
        (tmp_path / name).mkdir()
        for index in range(3):
            np.save(tmp_path / name / f"{index}.npy", np.full((2, 2), value, np.float32))
        (tmp_path / name / "notes.txt").write_text("not a sample")
    found = data.read(str(tmp_path))
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.inputs[0].shape == (6, 2, 2)
    np.save(tmp_path / "dog" / "9.npy", np.zeros((3, 3)))
    with pytest.raises(UsageError, match="shape"):
        data.read(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no sample"):
        data.read(str(tmp_path / "empty"))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("1", 1), ("P", 3)])
def test_class_folders_of_pictures(tmp_path: Path, mode: str, channels: int) -> None:
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        for suffix in ("png", "bmp") if mode in ("L", "RGB") else ("png",):
            picture = Image.new("L", (4, 3), value).convert(mode)
            picture.save(tmp_path / name / f"one.{suffix}")
        if mode in ("L", "RGB"):
            picture.save(tmp_path / name / "two.JPG", "JPEG")
    found = data.read(str(tmp_path))
    assert found.inputs[0].shape[1:] == (3, 4, channels)
    assert found.inputs[0].dtype == np.float32
    assert [found.inputs[0][found.labels == label].mean() for label in (0, 1)] == [0.0, 1.0]
    (tmp_path / "cat" / "zero.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"zero\.png.*no readable picture"):
        data.read(str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"labels": [0, 1]}, "input_0"),
        ({"x": [[1.0]]}, "labels"),
        ({"x": [[1.0], [2.0]], "y": [0.5, 1.5]}, "whole number"),
        ({"x": [[1.0]], "y": [0, 1]}, "one each a sample"),
        ({"x": [[1.0], [2.0]], "y": [-1, 0]}, "from 0"),
        ({"x": [[1.0], [2.0]], "y": [0, 5], "classes": ["a"]}, "below 1"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, arrays: dict[str, Any], word: str) -> None:
    np.savez(tmp_path / "d.npz", **{name: np.array(values) for name, values in arrays.items()})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        data.read(str(tmp_path / "d.npz"))
    assert caught.value.code == "data"
    assert word in caught.value.message


def test_pickles_and_foreign_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([object()]), y=np.array([0]))
    (tmp_path / "q.npz").write_bytes(b"no archive")
    for name in ("p.npz", "q.npz", "missing.npz"):
        with pytest.raises(UsageError):
            data.read(str(tmp_path / name))


@settings(max_examples=30)
@given(st.integers(30, 300), st.integers(2, 5), st.integers(0, 1000))
def test_a_division_is_disjoint_stratified_and_the_same_again(count: int, classes: int, seed: int) -> None:
    samples = some(count, classes)
    indexed = Samples((np.arange(count),), samples.labels, samples.classes)
    parts = data.split(indexed, seed=seed)
    seen = [set(getattr(parts, name).inputs[0].tolist()) for name in data.SHARES]
    assert sum(map(len, seen)) == len(set().union(*seen)) == count
    for name, share in data.SHARES.items():
        part = getattr(parts, name)
        for label in range(classes):
            assert abs(np.sum(part.labels == label) - share * np.sum(samples.labels == label)) <= 1.001
    assert data.split(indexed, seed=seed).canary.digest == parts.canary.digest
    assert data.split(indexed, seed=seed + 1).train.digest != parts.train.digest


def test_a_division_that_came_with_the_data_is_taken() -> None:
    fixed = {"train": np.arange(50), "validation": np.arange(50, 60), "canary": np.arange(60, 100)}
    base = some()
    parts = data.split(Samples(base.inputs, base.labels, base.classes, fixed), seed=1)
    assert parts.validation.digest == base.take(np.arange(50, 60)).digest
    with pytest.raises(UsageError, match="canary"):
        data.split(Samples(base.inputs, base.labels, base.classes, {"train": fixed["train"]}), seed=1)


@pytest.mark.parametrize("shares", [{"train": 0.9, "canary": 0.5}, {"test": 0.1}, {"train": 0.0}])
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="shares"):
        data.split(some(), seed=1, shares=shares)


def test_a_part_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="no sample"):
        data.split(some(3, 3), seed=1)


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(0, 100))
def test_a_stratified_choice_has_every_class_in_its_share(count: int, seed: int) -> None:
    samples = some(100, 4)
    chosen = data.stratified(samples, count, seed=seed)
    assert len(chosen) == min(count, 100)
    for label in range(4):
        assert abs(np.sum(chosen.labels == label) - len(chosen) / 4) <= 2


def test_the_same_samples_give_the_same_bytes() -> None:
    first = data.pack(some())
    assert first == data.pack(some())
    with np.load(io.BytesIO(first), allow_pickle=False) as archive:
        assert set(archive.files) == {"input_0", "labels"}
        assert np.array_equal(archive["input_0"], some().inputs[0])
    assert b"labels" not in data.pack(some(), labels=False)


# --- wrong input ------------------------------------------------------------------------------------------------


def refused(source: Path | str, metric: str = "accuracy") -> str:
    with pytest.raises(UsageError) as caught:
        data.read(str(source), metric)
    assert caught.value.code == "data"
    assert str(source) in caught.value.message
    return caught.value.message


def test_arrays_that_no_network_can_take_are_refused_with_their_place(tmp_path: Path) -> None:
    def told(metric: str = "accuracy", /, **arrays: Any) -> str:
        arrays.setdefault("y", np.array([0, 1, 0, 1]))
        np.savez(tmp_path / "d.npz", **arrays)
        return refused(tmp_path / "d.npz", metric)

    gap = np.zeros((4, 2))
    gap[2, 1] = np.nan
    assert "input_0 with NaN, infinite or too large numbers in 1 of 4 samples, the first at 2" in told(x=gap)
    assert "the first at 0" in told(x=np.full((4, 2), 1e200))  # beyond float32
    assert "input_0 <U1 [4]" in told(x=np.array(list("abcd")))
    assert "input_0 complex128" in told(x=np.zeros((4, 2), complex))
    assert "input_0 float64 [4, 0]" in told(x=np.zeros((4, 0)))
    assert "[5] inputs for 4 labels" in told(x=np.zeros((5, 2)))
    assert "a single number" in told(x=np.float64(1.0))
    assert "np.unique" in told(x=np.zeros((4, 2)), y=np.array(["cat", "dog", "cat", "dog"]))
    assert "at least one sample" in told(x=np.zeros((0, 2)), y=np.zeros(0, int))
    assert "the class 3 alone in 4 samples" in told(x=np.zeros((4, 2)), y=np.full(4, 3))
    assert "labels float64" in told(x=np.zeros((4, 2)), y=np.array([0.0, 1.0, 0.0, 1.0]))
    np.savez(tmp_path / "ok.npz", x=np.zeros((4, 2), np.float64), y=np.array([0, 1, 0, 1]))
    assert data.read(str(tmp_path / "ok.npz")).inputs[0].dtype == np.float32


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("input_0,labels\n")
    np.save(tmp_path / "one.npy", np.zeros(4))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], object), y=[0, 1])
    np.savez(tmp_path / "whole.npz", x=np.random.RandomState(1).rand(200, 9), y=np.arange(200) % 2)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:3000] + bytes([whole[3000] ^ 8]) + whole[3001:])
    for name in ("empty.npz", "cut.npz", "flipped.npz", "missing.npz"):
        refused(tmp_path / name)
    assert "not numbers" in refused(tmp_path / "text.npz")
    assert "not numbers" in refused(tmp_path / "objects.npz")
    assert "without labels" in refused(tmp_path / "one.npy")


def test_class_folders_with_something_wrong_in_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", np.zeros((2, 2)))
    (tmp_path / "emu").mkdir()
    assert str(tmp_path / "emu") in refused(tmp_path)  # else a class that nothing could ever be
    (tmp_path / "emu" / "0.npy").write_bytes(b"")
    assert str(tmp_path / "emu" / "0.npy") in refused(tmp_path)
    (tmp_path / "emu" / "0.npy").write_text("no array")
    assert str(tmp_path / "emu" / "0.npy") in refused(tmp_path)
    for name in ("dog", "emu"):
        (tmp_path / name / "0.npy").unlink()
        (tmp_path / name).rmdir()
    assert "the class 0 alone" in refused(tmp_path)


def rough() -> Samples:
    return Samples((np.full((4, 2), np.inf),), np.array([0, 1, 0, 1]), ())


def whole_targets() -> Samples:
    return Samples((np.zeros((4, 2)),), np.array([3, 1, 4, 1]), ())


not_callable = 3


def test_samples_of_an_entry_point_are_checked_as_a_file_is() -> None:
    assert "infinite" in refused(f"{__name__}:rough")
    assert data.read(f"{__name__}:whole_targets", "mae").labels.dtype == np.float32  # numbers, not classes
    with pytest.raises(UsageError, match="no function"):
        data.read(f"{__name__}:not_callable")


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        (([0, 1], [2, 3], [4, 9]), "0 to 9"),
        (([0, 1], [2, 3], [3, 4]), "two parts"),
        (([0, 1], [2, 3], []), "canary"),
        (([0, 1], [-1], [2]), "-1 to 2"),
    ],
)
def test_a_division_that_came_with_the_data_is_checked(parts: tuple[list[int], ...], word: str) -> None:
    found = some(6, 2)
    fixed = {name: np.array(indices, np.int64) for name, indices in zip(data.SHARES, parts, strict=True)}
    with pytest.raises(UsageError, match=word):
        data.split(Samples(found.inputs, found.labels, found.classes, fixed), seed=1)


def test_a_class_that_some_part_has_none_of_is_said() -> None:
    labels = np.array([0] * 40 + [1] * 40 + [2], np.int64)
    found = Samples((np.zeros((81, 2), np.float32),), labels, ("cat", "dog", "emu"))
    (note,) = data.thin(data.split(found, seed=1))
    assert "emu" in note
    assert "validation, canary" in note
    assert data.thin(data.split(some(), seed=1)) == []
