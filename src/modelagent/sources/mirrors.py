"""Several sources in turn: one that served bad bytes is asked last, and blocks nothing.

This file knows the order in which mirrors are asked. It does not know why one was blamed.

    for source in mirrors.in_turn():
        try: ...
        except TrustError: mirrors.blame(source)
"""

from collections.abc import Sequence

from modelagent.sources import Source


class Mirrors:
    """The sources in the order of the settings, those that were blamed at the end.

    Args:
        sources: at least one.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._blamed: set[str] = set()

    def in_turn(self) -> list[Source]:
        """Whom to ask, first to last."""
        return sorted(self._sources, key=lambda source: source.name in self._blamed)

    def blame(self, source: Source) -> None:
        """Ask this one last from now on."""
        self._blamed.add(source.name)

    def close(self) -> None:
        """Let go of all connections."""
        for source in self._sources:
            source.close()
