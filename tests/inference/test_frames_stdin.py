"""Frames on a pipe: where one ends and the next begins, also where numbers look like text."""

import os
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from modelagent.errors import SourceError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames.stdin import StdinSource

Picture = npt.NDArray[np.uint8]


def come(data: Sequence[bytes], **options: object) -> list[Frame]:
    """What the source makes of these writes, of which each is there before the next."""
    reader, writer = os.pipe()
    frames: list[Frame] = []
    source = StdinSource(SourceOptions(kind="stdin", **options), fd=reader)  # type: ignore[arg-type]

    def write() -> None:
        for part in data:
            os.write(writer, part)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        source.run(frames.append, threading.Event())
    finally:
        thread.join()
        os.close(reader)
    return frames


@pytest.mark.parametrize("value", [0x0A, 0x0D, ord("["), ord("{"), ord('"'), 0x93, 0])
@pytest.mark.parametrize("dark", [True, False])
def test_raw_pictures_may_begin_with_any_number(value: int, dark: bool) -> None:
    pictures = [np.full((8, 9, 3), value, np.uint8) for _ in range(4)]
    for number, picture in enumerate(pictures):
        if not dark:
            picture[0, 1:] = (200, number, 0x22)
    data = b"".join(picture.tobytes() for picture in pictures)
    for cut in (1, 216, 300):
        frames = come([data[:cut], data[cut:]], shape=(8, 9, 3), dtype="uint8")
        assert [frame.arrays[0].tobytes() for frame in frames] == [picture.tobytes() for picture in pictures]


def test_lines_of_json_may_have_a_shape_and_stand_between_raw_numbers() -> None:
    raw = np.array([[10, 13], [91, 123]], np.uint8)
    name = '{"id": "Größe", "inputs": [[1, 2, 3, 4]]}\n'.encode()
    frames = come([raw.tobytes(), name, b"[[5, 6], [7, 8]]\r\n\n[9, 9, 9, 9]\n"], shape=(2, 2), dtype="uint8")
    assert [frame.arrays[0].reshape(-1).tolist() for frame in frames] == [
        [10, 13, 91, 123],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 9, 9, 9],
    ]
    assert frames[1].id.startswith("Größe:")


@pytest.mark.parametrize("data", [b"hello", b"[1, 2", b"[1, x]\n", b"\0\0"])
def test_without_a_shape_what_is_neither_npy_nor_json_ends_the_source(data: bytes) -> None:
    with pytest.raises(SourceError, match="frame 1"):
        come([data])
