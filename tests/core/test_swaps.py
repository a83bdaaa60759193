"""The words in which history tells a swap."""

import pytest

from modelagent.core.events import Swap
from modelagent.core.swaps import describe


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        (Swap(1, "a", "b", "beside", 0.021), "no gap: loaded beside"),
        (
            Swap(1, "a", "b", "memory", 1.31, 1.26, available_kb=80 << 10, needed_kb=120 << 10),
            "gap 1.3 s: stop-then-start, 80 MB available, 120 MB needed",
        ),
        (Swap(2, "a", "b", "fault", 3600.0, 0.1234), "gap 123 ms: after a fault of 1.0.0"),
        (Swap(3, "a", "b", "idle", 90.0, 61.0), "gap 61.0 s: nothing was to run in between"),
        (Swap(4, "a", "b", "teleported", 2.0, 2.0), "gap 2.0 s: teleported"),
    ],
)
def test_what_a_swap_cost_in_words(swap: Swap, words: str) -> None:
    assert describe(swap, "1.0.0", "1.1.0") == f"1.1.0 has taken over from 1.0.0; {words}"
