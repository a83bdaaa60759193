"""Several sources in turn: one that served bad bytes is asked last for a week, and blocks nothing.

This file knows the order in which sources are asked, and remembers it across restarts. It does not know why one was
blamed.

    for source in mirrors.in_turn():
        try: ...
        except TrustError as error: mirrors.blame(source, error.code)

What is attached (a stick) comes first: its bytes cost nothing. Then the mirrors in the order of the settings, those
that were set aside at the end.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.errors import UNREADABLE
from modelagent.sources import Source

ASIDE_S: Final = 7 * 86400.0  # how long one bad answer is remembered


class Mirrors:
    """The sources in the order in which they are asked.

    Args:
        sources: in the order of the settings.
        path: where set-aside sources are remembered; None keeps them in memory.
        now: Unix seconds.
    """

    def __init__(
        self, sources: Sequence[Source], path: Path | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._sources = list(sources)
        self._attached: list[Source] = []
        self._path = path
        self._now = now
        self._guard = threading.Lock()
        self._blamed: dict[str, tuple[float, str]] = {}
        if path is not None:
            with contextlib.suppress(*UNREADABLE):
                kept: Any = json.loads(path.read_bytes())["aside"]
                self._blamed = {str(name): (float(at), str(code)) for name, (at, code) in kept.items()}

    def in_turn(self) -> list[Source]:
        """Whom to ask, first to last."""
        with self._guard:
            every = [*self._attached, *self._sources]
            return sorted(every, key=lambda source: self._is_aside(source.name))

    def attached(self) -> list[Source]:
        """What is attached now."""
        with self._guard:
            return list(self._attached)

    def attach(self, source: Source) -> None:
        """Ask this one too, before the others; one of the same name is replaced."""
        with self._guard:
            self._attached = [source, *(other for other in self._attached if other.name != source.name)]
            self._blamed.pop(source.name, None)  # another stick may have been put in

    def detach(self, name: str) -> None:
        """Forget what was attached under this name."""
        with self._guard:
            gone = [source for source in self._attached if source.name == name]
            self._attached = [source for source in self._attached if source.name != name]
        for source in gone:
            source.close()

    def blame(self, source: Source, code: str) -> None:
        """Ask this one last from now on."""
        with self._guard:
            self._blamed[source.name] = (self._now(), code)
            kept = {name: aside for name, aside in self._blamed.items() if self._is_aside(name)}
            if self._path is None:
                return
            document = json.dumps({"schema": 1, "aside": kept}).encode()
            with contextlib.suppress(OSError):  # a full disk must not keep us from the next mirror
                durable.write_atomic(self._path, document)

    def aside(self) -> dict[str, str]:
        """Name of each source that is set aside -> why."""
        with self._guard:
            return {name: code for name, (_, code) in self._blamed.items() if self._is_aside(name)}

    def close(self) -> None:
        """Let go of all connections."""
        for source in (*self._attached, *self._sources):
            source.close()

    def _is_aside(self, name: str) -> bool:
        # A clock set back makes the moment lie in the future: then it still counts, and costs nothing but order.
        return name in self._blamed and self._now() - self._blamed[name][0] < ASIDE_S
