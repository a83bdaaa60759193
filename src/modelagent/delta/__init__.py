"""Deltas between two model files: a small format of our own (docs/delta-format.md), made here and applied here.

This package knows bytes, words and tensors. It does not know releases, repositories or slots. It imports numpy and
zstandard, so the updater's process never imports it: a device applies a delta in a caged child,
`python -m modelagent.delta.apply`; the publisher calls `make` and checks what it made by `apply` itself.

    form.py        what a delta looks like as bytes: parse and print
    words.py       the arithmetic on blocks of words, forwards and back
    flatbuffer.py  where a .tflite file keeps its weights (publisher only: a device never parses a flatbuffer)
    make.py        old and new file -> delta
    apply.py       delta and old file -> new file

Everything that foreign bytes can cause is a DeltaError.
"""

from modelagent.errors import SourceError


class DeltaError(SourceError):
    """A delta that cannot be used, or files that no delta can be made from: take the full file instead.

    It is the way to the bytes that failed, not the model and not this device, so the remedy is another way.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; the full file is used instead", code="delta")
