"""Lines that tell whether they are whole: a checksum before each, so that a torn or rotten one is passed over.

This file knows the line. It does not know what stands in it.

    seal(b'{"id":"7f3a"}')                    # the checksum in hexadecimal, a space, the content, a newline
    lines, spoiled = unseal(data)             # the whole ones, and how many were not
"""

import zlib


def seal(content: bytes) -> bytes:
    """One line; `content` has no newline in it."""
    return b"%08x %b\n" % (zlib.crc32(content), content)


def unseal(data: bytes) -> tuple[list[bytes], int]:
    """What the lines of a file hold, and how many of them could not be believed."""
    whole, spoiled = [], 0
    for line in data.split(b"\n"):
        if not line:
            continue
        stamp, _, content = line.partition(b" ")
        if stamp == b"%08x" % zlib.crc32(content):
            whole.append(content)
        else:
            spoiled += 1
    return whole, spoiled
