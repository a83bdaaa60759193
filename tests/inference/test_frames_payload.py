"""What is taken as a frame, and what is refused before it costs memory."""

import io
import json
import resource
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from modelagent.errors import SourceError
from modelagent.inference.frames import SourceOptions
from modelagent.inference.frames.payload import read, read_npy

OPTIONS = SourceOptions(kind="http", max_bytes=1 << 20)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new(mode, size, 128 if mode in {"L", "I;16"} else (200, 100, 0)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.float32(3)])
def test_npy_comes_as_it_is(array: Any) -> None:
    [found] = read(npy(array), OPTIONS).arrays
    assert np.array_equal(found, array)
    assert found.dtype == np.asarray(array).dtype


def test_npz_holds_several_inputs() -> None:
    found = read(npz(input_0=np.zeros(2), input_1=np.ones(3), labels=np.zeros(1)), OPTIONS).arrays
    assert [array.shape for array in found] == [(2,), (3,)]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
def test_pictures_are_red_green_blue(form: str) -> None:
    [found] = read(picture(form), OPTIONS).arrays
    assert found.shape == (4, 6, 3)
    assert abs(int(found[0, 0, 0]) - 200) < 5
    [grey] = read(picture(form, "L"), OPTIONS).arrays
    assert grey.shape == (4, 6)


def test_sixteen_bits_of_grey_are_kept() -> None:
    assert read(picture("PNG", "I;16"), OPTIONS).arrays[0].dtype == np.uint16


def test_json_is_a_list_or_names_its_frame() -> None:
    assert read(b"[[1, 2], [3, 4]]", OPTIONS).arrays[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    found = read(b'{"id": "part-7", "inputs": [[1], [2, 3]]}', SourceOptions(dtype="int32"))
    assert found.id == "part-7"
    assert [array.dtype for array in found.arrays] == [np.int32, np.int32]
    flat = read(b"[1, 2, 3, 4]", SourceOptions(shape=(2, 2)))
    assert flat.arrays[0].shape == (2, 2)


def test_raw_numbers_need_a_shape() -> None:
    options = SourceOptions(shape=(2, 2), dtype="uint8")
    assert read(b"\x01\x02\x03\x04", options).arrays[0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(SourceError, match="5 bytes"):
        read(b"\x01\x02\x03\x04\x05", options)


@pytest.mark.parametrize("first", [b"[", b"{", b"BM", b"PK\3\4", b"\xff\xd8\xff"])
def test_raw_numbers_may_begin_like_another_form(first: bytes) -> None:
    data = first + bytes(range(200, 216 - len(first)))
    options = SourceOptions(shape=(4, 4), dtype="uint8")
    assert read(data, options).arrays[0].tobytes() == data
    with pytest.raises(SourceError):
        read(data + b"\0", options)


def test_a_name_that_is_half_a_character_can_be_written() -> None:
    name = read(b'{"id": "part \\ud800", "inputs": [[1]]}', OPTIONS).id
    assert name.encode() == b"part \\ud800"


def _unbelievable(kind: int) -> bytes:
    """An archive whose one input unfolds into 192 MB and says that it has 1000 bytes."""
    file, head = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (872,)})
    with zipfile.ZipFile(file, "w", kind, compresslevel=1) as archive, archive.open("input_0.npy", "w") as member:
        member.write(head.getvalue())
        for _ in range(192):
            member.write(bytes(1 << 20))
    data = bytearray(file.getvalue())
    struct.pack_into("<I", data, data.rfind(b"PK\1\2") + 24, 1000)
    return bytes(data)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_an_archive_that_lies_of_its_size_costs_no_memory(kind: int) -> None:
    data = _unbelievable(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError):
        read(data, SourceOptions(kind="http", max_bytes=16 << 20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"


def _backwards() -> bytes:
    return npy(np.zeros(128, np.uint8)).replace(b"'shape': (128,), ", b"'shape': (-1,128)")


def _many_inputs() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(300):
            archive.writestr(f"input_{number}.npy", npy(np.zeros(1)))
    return file.getvalue()


def _lying_npy() -> bytes:
    return npy(np.zeros(1)).replace(b"'shape': (1,), ", b"'shape': (9999999999999,), ")[:200]


def _bomb() -> bytes:
    return npz(input_0=np.zeros(8 << 20))


def _without_input() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.txt", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (npy(np.zeros(9))[:-4], "cut short"),
        (_lying_npy(), "."),
        (npy(np.array([{}], dtype=object)), "objects"),
        (_backwards(), "shape"),
        (_bomb(), "unfolds"),
        (_many_inputs(), "never"),
        (_without_input(), "input_0"),
        (b"PK\x03\x04garbage", "not readable"),
        (b"[1, [2, 3]]", "not readable"),
        (b"[" * 5000, "nested|not readable"),
        (b'{"inputs": 5}', "no list"),
        (b'{"id": "x"}', "not readable"),
        (b'["a"]', "not readable"),
        (b"\x89PNG\r\n broken", "not readable|Pillow|damaged"),
        (b"x" * (2 << 20), "at most"),
        (json.dumps([[1.0]] * 3).encode()[:-1], "not readable"),
    ],
)
def test_what_cannot_be_a_frame_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        read(data, OPTIONS)
    assert caught.value.code == "payload"


def test_a_picture_that_unfolds_into_too_many_pixels_is_refused_unread() -> None:
    data = picture("PNG", "1" if False else "L", (9000, 9000))
    with pytest.raises(SourceError, match="pixels"):
        read(data, OPTIONS)


def test_npy_in_a_stream_says_where_it_ends() -> None:
    data = npy(np.zeros(3)) + npy(np.ones(2))
    first, end = read_npy(memoryview(data))
    second, rest = read_npy(memoryview(data)[end:])
    assert (first.size, second.size, end + rest) == (3, 2, len(data))
    for cut in (4, 9, 40, len(npy(np.zeros(3))) - 1):
        with pytest.raises(EOFError):
            read_npy(memoryview(data)[:cut])
