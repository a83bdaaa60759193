"""What the fuzzer knows of a parser: true inputs, words that matter to it, and how it is given bytes.

Parser(lambda: [b"{}"], taking(manifest.parse, ModelError))        # may raise ModelError and nothing else
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelagent.errors import AgentError

SLOW_S: Final = 5.0
Take = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser: true inputs to start from, words that matter to it, and how it is given bytes.

    `open` yields the function that takes one input and raises nothing but programmer errors.
    """

    seeds: Callable[[], list[bytes]]
    open: Callable[[], contextlib.AbstractContextManager[Take]]
    words: tuple[bytes, ...] = (b"null", b"NaN", b"1e999", b"-1", b"[[", b"{", b'"', b"\\ud800", b"\0", b"\xff", b"..")


def taking(call: Callable[[bytes], object], *refusals: type[AgentError]) -> Callable[[], Any]:
    """A parser that is a function of bytes; `refusals` are what it may raise."""

    @contextlib.contextmanager
    def opened() -> Iterator[Take]:
        def take(data: bytes) -> None:
            with contextlib.suppress(*refusals):
                call(data)

        yield take

    return opened


@contextlib.contextmanager
def reading(call: Callable[[Path], object], name: str, *refusals: type[AgentError]) -> Iterator[Take]:
    """A parser that reads a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name

        def take(data: bytes) -> None:
            path.unlink(missing_ok=True)  # another inode: what was read of the one before is not believed
            path.write_bytes(data)
            with contextlib.suppress(*refusals):
                call(path)

        yield take
