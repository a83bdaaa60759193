"""What history says of a swap: who took over from whom, and what it cost.

This file knows how to word a swap, and that each is told once however often health repeats it. It does not know how
versions change places: inference does that, and says so in health.

    describe(swap, "1.0.0", "1.1.0")
    # "1.1.0 has taken over from 1.0.0; gap 1.3 s: stop-then-start, 80 MB available, 120 MB needed"
"""

from dataclasses import asdict
from typing import Final

from modelagent.core.events import Swap
from modelagent.core.scene import Scene
from modelagent.core.state import version

_TOLD: Final = 8  # swaps remembered as told; health repeats the last one of the present run alone


def tell(x: Scene, epoch: str, swap: Swap) -> None:
    """Write the line of history, unless it was written before."""
    name = f"{epoch} {swap.count}"
    if name in x.state.swaps:
        return
    x.set(swaps=(*x.state.swaps, name)[-_TOLD:])
    origin, target = version(x.state, swap.origin), version(x.state, swap.target)
    x.note("swap", describe(swap, origin, target), digest=swap.target, evidence=asdict(swap))


def describe(swap: Swap, origin: str, target: str) -> str:
    """One line for a person; `origin` and `target` are versions."""
    return f"{target} has taken over from {origin}; {_cost(swap, origin)}"


def _cost(swap: Swap, origin: str) -> str:
    gap = f"gap {_seconds(swap.without_s)}"
    match swap.how:
        case "beside":
            return "no gap: loaded beside"
        case "memory":
            room = f"{swap.available_kb >> 10} MB available, {swap.needed_kb >> 10} MB needed"
            return f"{gap}: stop-then-start, {room}"
        case "fault":
            return f"{gap}: after a fault of {origin}"
        case "idle":
            return f"{gap}: nothing was to run in between"
    return f"{gap}: {swap.how[:40]}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1.0 else f"{value * 1000.0:.0f} ms"
