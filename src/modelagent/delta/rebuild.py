"""Old file and delta -> new file, in blocks of at most 2 MiB (docs/delta-format.md, section 5).

This file knows the order of a delta's parts. It does not know where the files come from, nor what the result ought to
be: who asks compares its sha256.

    rebuild(old, delta, new, length)        # binary files open for reading, reading, writing

In memory are the rest (what is no weight), the old file's rest, and some times the size of a block. Neither file is
held whole unless the delta has no regions at all.
"""

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from modelagent.delta import DeltaError, form, words


def rebuild(old: BinaryIO | None, delta: BinaryIO, new: BinaryIO, length: int) -> None:
    """Write the new file.

    Args:
        old: the base; None: nothing but a delta that needs none will do.
        delta: the delta.
        new: empty; written out of order.
        length: what the new file must have, bytes.

    Raises:
        DeltaError: the delta is damaged, or for other files. What was written is to be thrown away.
    """
    left = delta.seek(0, os.SEEK_END)
    delta.seek(0)

    def read(size: int) -> bytes:
        nonlocal left
        if size > left:  # before memory is taken for it
            raise DeltaError(f"the delta ends {size - left} bytes too early")
        left -= size
        return delta.read(size)

    header = form.parse_header(read(min(left, form.HEADER.size)))
    old_length = 0 if old is None else old.seek(0, os.SEEK_END)
    if header.new_length != length:
        raise DeltaError(f"the delta makes a file of {header.new_length} bytes, expected {length}")
    if header.old_length not in {0, old_length}:
        raise DeltaError(f"the delta is for a file of {header.old_length} bytes, found {old_length}")
    lanes = form.parse_table(words.inflate(read(header.table_packed), header.table_raw), header.old_length, length)
    places = form.new_gaps(lanes, length)
    base = words.dictionary(_gather(old, form.old_gaps(lanes, header.old_length)))
    _scatter(new, places, words.inflate(read(header.rest_packed), sum(size for _, size in places), base))
    del base
    for lane in lanes:
        for pieces in blocks(lane):
            count = sum(piece.words for piece in pieces)
            before = None
            if lane.based:
                data = _gather(old, [(piece.old, piece.words * lane.width) for piece in pieces])
                before = np.frombuffer(data, words.word_type(lane.width))
            block = words.decode(read, count, lane.width, before, (lane.key_shift, lane.key_bits))
            _scatter(new, [(piece.new, piece.words * lane.width) for piece in pieces], block.view(np.uint8).data)
    if left:
        raise DeltaError(f"the delta goes on for {left} bytes after its end")


def _gather(old: BinaryIO | None, spans: Sequence[tuple[int, int]]) -> bytearray:
    if old is None:
        return bytearray()
    data = bytearray(sum(size for _, size in spans))
    view = memoryview(data)
    done = 0
    for place, size in spans:
        old.seek(place)
        done += old.readinto(view[done : done + size])  # type: ignore[attr-defined]
    if done != len(data):
        raise DeltaError("the old file became shorter")
    return data


def _scatter(new: BinaryIO, spans: Sequence[tuple[int, int]], data: bytes | memoryview) -> None:
    view = memoryview(data)
    for place, size in spans:
        new.seek(place)
        new.write(view[:size])
        view = view[size:]


def blocks(lane: form.Lane) -> Iterator[list[form.Region]]:
    """The lane's regions cut into blocks, the last one shorter."""
    pieces: list[form.Region] = []
    room = form.BLOCK
    for region in lane.regions:
        done = 0
        while done < region.words:
            count = min(room, region.words - done)
            offset = done * lane.width
            pieces.append(form.Region(region.old + offset, region.new + offset, count))
            done += count
            room -= count
            if room == 0:
                yield pieces
                pieces, room = [], form.BLOCK
    if pieces:
        yield pieces
