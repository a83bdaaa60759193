"""Whole stories, told once undisturbed and once for every place where the power may go: the end is the same.

A story is a value: acts that happen to the device one after the other, and the phases it is expected to pass. Each
is played through undisturbed, then killed before, inside and after every effect; the updater alone, or the device.
A command whose answer was lost is given again with the same id, as a person or a broker would.
"""

from dataclasses import dataclass

import pytest

from device_parts import PEAK_KB
from device_simulator import Conduct, Device, release
from modelagent.core.events import ConfigWish, Verb
from modelagent.core.state import Phase
from modelagent.core.verdicts import Outcome

GOOD = Conduct()
FORWARD = "Deferred Acquiring Staging Canary Staged Activating Probation"
LOCAL = "Deferred Staging Staged Activating Idle"


@dataclass(frozen=True)
class Act:
    """One thing that happens: publish or withdraw a version, or a command."""

    verb: str
    number: int = 0
    argument: str = ""
    conduct: Conduct = GOOD
    wish: ConfigWish | None = None


@dataclass(frozen=True)
class Scenario:
    """`have`: versions provisioned, confirmed; `acts`; the chain of phases expected; what runs at the end."""

    name: str
    have: tuple[int, ...]
    acts: tuple[Act, ...]
    chain: str
    runs: str | None
    fallback: str | None = None
    blocks: tuple[str, ...] = ()
    wish: ConfigWish | None = None


STORIES = (
    Scenario("update", (1,), (Act("publish", 2),), f"Idle {FORWARD} Idle", "1.2.0", "1.1.0"),
    Scenario("first install", (), (Act("publish", 1),), f"Idle {FORWARD} Idle", "1.1.0"),
    Scenario(
        "first install gone bad, keep",
        (),
        (Act("publish", 1, conduct=Conduct(live="bad")),),
        f"Idle {FORWARD} Idle",
        "1.1.0",
        blocks=("1.1.0",),
    ),
    Scenario(
        "first install gone bad, stop",
        (),
        (Act("publish", 1, conduct=Conduct(live="bad")),),
        f"Idle {FORWARD} Idle",
        None,
        blocks=("1.1.0",),
        wish=ConfigWish(safe_action="stop"),
    ),
    Scenario(
        "the canary refuses",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(canary=(Outcome.FAIL,))),),
        "Idle Deferred Acquiring Staging Canary Idle",
        "1.2.0",
        "1.1.0",
        blocks=("1.3.0",),
    ),
    Scenario(
        "the canary wants another look",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(canary=(Outcome.AGAIN, Outcome.PASS))),),
        "Idle Deferred Acquiring Staging Canary Deferred Canary Staged Activating Probation Idle",
        "1.3.0",
        "1.2.0",
    ),
    Scenario(
        "bad on probation",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(live="bad")),),
        f"Idle {FORWARD} Reverting Idle",
        "1.2.0",
        "1.1.0",
        blocks=("1.3.0",),
    ),
    Scenario(
        "inference falls back by itself",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(live="crash")),),
        f"Idle {FORWARD} Reverting Idle",
        "1.2.0",
        "1.1.0",
        blocks=("1.3.0",),
    ),
    Scenario(
        "inference refuses it",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(live="refuse")),),
        "Idle Deferred Acquiring Staging Canary Staged Activating Reverting Idle",
        "1.2.0",
        "1.1.0",
        blocks=("1.3.0",),
    ),
    Scenario(
        "it never comes up",
        (1, 2),
        (Act("publish", 3, conduct=Conduct(live="hang")),),
        "Idle Deferred Acquiring Staging Canary Staged Activating Reverting Idle",
        "1.2.0",
        "1.1.0",
    ),
    Scenario(
        "an operator goes back",
        (1, 2, 3),
        (Act("rollback", argument="looks odd"),),
        "Idle Reverting Idle",
        "1.2.0",
        "1.1.0",
        blocks=("1.3.0",),
    ),
    Scenario("the running version is withdrawn", (1, 2), (Act("withdraw", 2),), "Idle Reverting Idle", "1.1.0"),
    Scenario("the fallback is withdrawn", (1, 2, 3), (Act("withdraw", 2),), "Idle", "1.3.0", "1.1.0"),
    Scenario("the only version is withdrawn", (1,), (Act("withdraw", 1),), "Idle", "1.1.0"),
    Scenario(
        "the channel goes back to a version on disk",
        (1, 2),
        (Act("publish", 2), Act("publish", 1)),
        f"Idle {LOCAL}",
        "1.1.0",
        "1.2.0",
    ),
    Scenario(
        "the channel goes back to a version that is not on disk",
        (2, 3),
        (Act("publish", 3), Act("publish", 1)),
        f"Idle {FORWARD} Idle",
        "1.1.0",
        "1.3.0",
    ),
    Scenario(
        "pinned to a version on disk, then let go",
        (1, 2),
        (Act("publish", 2), Act(Verb.PIN, argument="1.1.0"), Act(Verb.UNPIN)),
        f"Idle {LOCAL} {LOCAL}",
        "1.2.0",
        "1.1.0",
    ),
    Scenario(
        "back by hand, then pinned to it again",
        (1, 2),
        (Act("publish", 2), Act("rollback"), Act(Verb.PIN, argument="1.2.0")),
        f"Idle Reverting {'Idle'} {LOCAL}",
        "1.2.0",
        "1.1.0",
    ),
)


def prepare(story: Scenario) -> Device:
    device = Device("m", vacuum=False)
    if story.have:
        device.install("m", *(release("m", n) for n in story.have))
    device.settle()
    if story.wish is not None:
        device.configure("m", story.wish)
    device.chain["m"] = [Phase.IDLE]
    return device


def perform(device: Device, act: Act, count: int, *, power: bool = False) -> None:
    match act.verb:
        case "publish":
            device.publish("m", release("m", act.number), act.conduct)
        case "withdraw":
            device.withdraw("m", release("m", act.number))
        case _:
            name = f"act-{count}"
            if device.command("m", act.verb, act.argument, name=name) == "killed":
                device.tick()
                said = device.command("m", act.verb, act.argument, name=name)
                assert said.split(":")[0] in ("accepted", "done")
    device.settle()


def play(story: Scenario, kill_at: int = -1, *, power: bool = False) -> Device:
    device = prepare(story)
    device.points, device.kill_at, device.power = 0, kill_at, power
    for count, act in enumerate(story.acts):
        perform(device, act, count)
    return device


@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.name)
def test_the_story_undisturbed(story: Scenario) -> None:
    device = play(story)
    assert " ".join(phase.value for phase in device.chain["m"]) == story.chain
    end = device.end_state("m")
    assert (end["runs"], end["fallback"]) == (story.runs, story.fallback)
    assert end["current"] == story.runs
    assert tuple(end["blocks"]) == story.blocks  # type: ignore[arg-type]
    assert end["believed"] == (end["current"], end["fallback"])


def test_what_a_passed_canary_measured_is_kept_before_the_switch() -> None:
    device = prepare(STORIES[0])
    device.publish("m", release("m", 2), Conduct(canary=(Outcome.FAIL,)))
    device.settle()
    assert device.stores["m"].slots[release("m", 2).digest].peak_kb == 0, "a candidate that failed is not loaded again"
    ordered: list[str] = []
    device.after_step = lambda _m, _s, _e, _n, orders: ordered.extend(type(order).__name__ for order in orders)
    device.publish("m", release("m", 3), GOOD)
    device.settle()
    assert device.stores["m"].slots[release("m", 3).digest].peak_kb == PEAK_KB
    assert ordered.index("KeepPeak") < ordered.index("Activate")


def swaps_told(device: Device) -> list[tuple[str, str]]:
    return [(note.version, note.text) for _, note in device.notes if note.kind == "swap"]


def test_each_swap_is_told_once_however_often_the_updater_dies() -> None:
    story = next(story for story in STORIES if story.name == "inference falls back by itself")
    calm = play(story)
    told = swaps_told(calm)
    assert told == [
        ("1.3.0", "1.3.0 has taken over from 1.2.0; no gap: loaded beside"),
        ("1.2.0", "1.2.0 has taken over from 1.3.0; no gap: loaded beside"),
    ]
    for point in range(1, calm.points + 1):
        assert swaps_told(play(story, point)) == told, f"killed at point {point}"


@pytest.mark.parametrize("power", [False, True], ids=["updater", "mains"])
@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.name)
def test_killed_before_and_after_every_effect_it_ends_the_same(story: Scenario, power: bool) -> None:
    calm = play(story)
    wanted, points = calm.end_state("m"), calm.points
    assert points >= 2
    for point in range(1, points + 1):
        device = play(story, point, power=power)
        assert device.kills == 1
        assert device.end_state("m") == wanted, f"killed at point {point} of {points}: {device.describe()}"
