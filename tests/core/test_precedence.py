"""What should run: withdrawn > blocked > config forbids > pin > hold > channel, cell by cell, and every command."""

import itertools
from dataclasses import replace

import pytest

from device_simulator import Conduct, Device, release
from modelagent.core.desired import Keep, Want, choose, way_of
from modelagent.core.events import ConfigWish, Elapsed, Instant, SlotFacts, Verb
from modelagent.core.state import (
    Block,
    Cause,
    Declined,
    Desired,
    Hold,
    Phase,
    Pin,
    Postponed,
    State,
    Timer,
    Watch,
    Way,
    block_reason,
    revert_target,
)
from modelagent.core.verdicts import Outcome, Wait
from modelagent.manifest import Release

NOW = Instant(1000.0, 100.0, "boot")
OLD, RUNNING, OFFER, PINNED = (release("m", n) for n in (1, 2, 4, 3))
AXES = ("withdrawn", "blocked", "forbidden", "no_updates", "pinned", "pin_unseen", "held", "offered")


def state_of(cell: dict[str, bool]) -> State:
    subject = PINNED if cell["pinned"] else OFFER
    return State(
        "m",
        watch=Watch(last_ok=1.0),
        current=RUNNING.digest,
        slots=(SlotFacts(OLD, confirmed=True), SlotFacts(RUNNING, confirmed=True)),
        withdrawn={subject.digest: "smells"} if cell["withdrawn"] else {},
        blocks={subject.digest: Block(Cause.FAILED, "worse", subject.version, 0.0)} if cell["blocked"] else {},
        desired=Desired(
            offer=OFFER if cell["offered"] else None,
            pin=Pin(PINNED.version, "cli", "p") if cell["pinned"] else None,
            pinned=PINNED if cell["pinned"] and not cell["pin_unseen"] else None,
            hold=Hold("cli", "h", "audit week") if cell["held"] else None,
            wish=ConfigWish(
                forbid=(subject.version,) if cell["forbidden"] else (),
                updates=not cell["no_updates"],
            ),
        ),
    )


def oracle(cell: dict[str, bool]) -> tuple[Release | None, str]:
    """The precedence as the design words it, written down a second time: what wins, and its word."""
    subject: Release | None = PINNED if cell["pinned"] else OFFER
    if cell["pinned"] and cell["pin_unseen"]:
        return None, "has not shown"
    if not cell["pinned"] and not cell["offered"]:
        return None, "names no release"
    for axis, word in (("withdrawn", "withdrawn"), ("blocked", "blocked"), ("forbidden", "forbid")):
        if cell[axis]:
            return None, "forbid" if axis == "forbidden" else word
    if cell["no_updates"]:
        return None, "forbid"
    if cell["held"] and not cell["pinned"]:
        return None, "on hold"
    return subject, "pinned to" if cell["pinned"] else "channel"


CELLS = [dict(zip(AXES, bits, strict=True)) for bits in itertools.product((False, True), repeat=len(AXES))]


def test_what_no_check_has_shown_is_not_called_nothing() -> None:
    empty = state_of(dict.fromkeys(AXES, False))
    for watch in (Watch(), Watch(last_ok=1.0, error="no route")):
        found = choose(replace(empty, watch=watch), NOW)
        assert isinstance(found, Keep)
        assert found.reason == "what the channel stable names is not known yet: no check of it has succeeded"


def test_every_cell_of_the_precedence() -> None:
    for cell in CELLS:
        choice, (wanted, word) = choose(state_of(cell), NOW), oracle(cell)
        assert word in choice.reason, (cell, choice)
        if wanted is None:
            assert isinstance(choice, Keep), cell
        else:
            assert isinstance(choice, Want), cell
            assert choice.release == wanted
            assert choice.firm == cell["pinned"]


def test_the_stronger_word_is_the_reason() -> None:
    cell, said = dict.fromkeys(AXES, True) | {"pin_unseen": False}, []
    for axis in ("withdrawn", "blocked", "no_updates", "forbidden"):
        said.append(choose(state_of(cell), NOW).reason)
        cell[axis] = False
    for word, reason in zip(("withdrawn: smells", "blocked (failed)", "updates = false", "forbid"), said, strict=True):
        assert word in reason


def plain(**more: object) -> State:
    base = state_of(dict.fromkeys(AXES, False) | {"offered": True})
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"current": OFFER.digest, "slots": (SlotFacts(OFFER, confirmed=True),)}, "active already"),
        ({"floor": 5}, "below the floor 5"),
        ({"declined": (Declined(OFFER.digest, RUNNING.digest, "", "too few samples"),)}, "too few samples"),
        ({"postponed": {OFFER.digest: Postponed(Timer.after(NOW, 60), 1, "no luck")}}, "no luck"),
    ],
)
def test_what_else_keeps_things_as_they_are(more: dict[str, object], word: str) -> None:
    choice = choose(plain(**more), NOW)
    assert isinstance(choice, Keep)
    assert word in choice.reason


def test_a_decline_is_forgotten_when_what_runs_or_the_runtime_changes() -> None:
    memory = (Declined(OFFER.digest, OLD.digest, "", "x"), Declined(OFFER.digest, RUNNING.digest, "litert 3", "x"))
    assert isinstance(choose(plain(declined=memory), NOW), Want)


def test_a_postponement_says_how_long_and_ends() -> None:
    late = {OFFER.digest: Postponed(Timer.after(NOW, 60), 1, "no luck")}
    choice = choose(plain(postponed=late), replace(NOW, mono=NOW.mono + 20))
    assert isinstance(choice, Keep)
    assert choice.left == 40
    assert isinstance(choose(plain(postponed=late), replace(NOW, mono=NOW.mono + 60)), Want)


def test_the_floor_binds_equal_numbers_not() -> None:
    assert isinstance(choose(plain(floor=OFFER.number), NOW), Want)


def test_the_ways() -> None:
    both = plain()
    assert way_of(both, OFFER) is Way.FORWARD
    assert way_of(both, OLD) is Way.LOCAL
    assert way_of(replace(both, slots=both.slots[1:]), OLD) is Way.BACK
    assert way_of(replace(both, current=None), OFFER) is Way.FIRST
    assert way_of(replace(both, slots=()), OFFER) is Way.FIRST, "a `current` without a slot is no baseline"


def test_a_blocked_file_blocks_its_other_release_unless_a_confirmed_one_uses_it() -> None:
    twin = replace(OFFER, model_file="f" * 64)
    guilty = Block(Cause.FAILED, "crash", "1.9.0", 0.0, model_file="f" * 64)
    state = plain(blocks={"9" * 64: guilty})
    assert "same model file as 1.9.0" in block_reason(state, twin)
    used = replace(state, slots=(*state.slots, SlotFacts(replace(OLD, digest="7" * 64, model_file="f" * 64), True)))
    assert not block_reason(used, twin)
    only_the_guilty = SlotFacts(replace(OLD, digest="9" * 64, model_file="f" * 64), True)
    assert block_reason(replace(state, slots=(*state.slots, only_the_guilty)), twin)


def test_the_revert_target_is_the_newest_that_is_fit() -> None:
    slots = tuple(SlotFacts(release("m", n), confirmed=n != 5) for n in range(1, 7))
    state = State(
        "m",
        slots=slots,
        withdrawn={release("m", 4).digest: "x"},
        blocks={release("m", 3).digest: Block(Cause.OPERATOR, "x", "1.3.0", 0.0)},
    )
    assert revert_target(state, None) == release("m", 6).digest
    assert revert_target(state, release("m", 6).digest) == release("m", 2).digest
    assert revert_target(state, release("m", 6).digest, (release("m", 2).digest,)) == release("m", 1).digest
    only = replace(state, slots=slots[5:])
    assert revert_target(only, release("m", 6).digest) is None


# -- commands --------------------------------------------------------------------------------------------------------


def device_with(*numbers: int) -> Device:
    """A device that has taken these releases one after the other."""
    device = Device("m", vacuum=False)
    device.install("m", *(release("m", n) for n in numbers))
    device.offers["m"] = release("m", numbers[-1])
    device.settle()
    return device


def begin_check(device: Device) -> None:
    device.pass_time(device.interval)
    device.turn("m", Elapsed(device.now, 0.5))
    assert device.queues["check"]


def test_a_pin_to_a_blocked_version_is_refused_with_the_reason() -> None:
    device = device_with(1, 2)
    device.publish("m", release("m", 3), Conduct(canary=(Outcome.FAIL,)))
    device.settle()
    before = device.states["m"]
    assert device.command("m", Verb.PIN, "1.3.0") == "refused: 1.3.0 is blocked (failed): scripted fail"
    assert replace(device.states["m"], seen=(), again=False, saved=None) == replace(before, seen=(), saved=None)


def test_a_pin_to_a_withdrawn_version_is_refused() -> None:
    device = device_with(1, 2)
    device.withdraw("m", release("m", 1))
    device.settle()
    assert device.command("m", Verb.PIN, "1.1.0") == "refused: 1.1.0 is withdrawn: smells"


def test_a_pin_that_the_settings_forbid_is_refused() -> None:
    device = device_with(1, 2)
    device.configure("m", ConfigWish(forbid=("1.1.0", "1.7.0")))
    for version in ("1.1.0", "1.7.0"):
        assert "forbidden by the settings" in device.command("m", Verb.PIN, version)
    device.configure("m", ConfigWish(pin="1.2.0"))
    assert "the settings pin 1.2.0" in device.command("m", Verb.PIN, "1.1.0")
    assert "the settings pin 1.2.0" in device.command("m", Verb.UNPIN)


def test_a_pin_below_the_floor_is_refused_but_never_a_revert() -> None:
    device = device_with(1, 2)
    device.publish("m", release("m", 3, floor=3))
    device.settle()
    assert device.states["m"].floor == 3
    assert device.command("m", Verb.PIN, "1.2.0").startswith("refused: 1.2.0 is below the floor")
    assert device.command("m", "rollback") == "accepted: going back to 1.2.0"
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"


@pytest.mark.parametrize("origin", ["command", "config"])
def test_a_pin_lifts_an_operators_block_and_only_that(origin: str) -> None:
    device = device_with(1, 2)
    device.command("m", "rollback", "looks odd")
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"
    if origin == "command":
        assert device.command("m", Verb.PIN, "1.2.0") == "accepted: pinned to 1.2.0"
    else:
        device.configure("m", ConfigWish(pin="1.2.0"))
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    assert device.end_state("m")["blocks"] == {}
    assert Phase.CANARY not in device.chain["m"], "a slot confirmed here goes straight"


def test_now_lifts_windows_but_no_block_no_hold_and_no_canary() -> None:
    device = device_with(1, 2)
    device.publish("m", release("m", 3), Conduct(canary=(Outcome.FAIL,)))
    device.command("m", Verb.UPDATE)
    assert device.states["m"].desired.now, "the policies are told"
    device.settle()
    assert "1.3.0" in device.end_state("m")["blocks"]  # type: ignore[operator]
    device.command("m", Verb.UPDATE)
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"
    device.command("m", Verb.HOLD, "audit")
    device.publish("m", release("m", 4))
    device.command("m", Verb.UPDATE)
    device.settle()
    assert device.states["m"].phase is Phase.IDLE
    assert "on hold by cli: audit" in device.states["m"].waiting


def test_now_lasts_for_the_offer_that_its_own_check_brings() -> None:
    device = device_with(1)
    device.gates["activate"] = Wait(4e9, "window", "window")
    device.publish("m", release("m", 2))
    device.command("m", Verb.UPDATE)
    device.until(lambda d: d.states["m"].phase is Phase.STAGED)
    assert device.states["m"].desired.now
    device.publish("m", release("m", 3))
    device.until(lambda d: d.states["m"].desired.offer == release("m", 3))
    assert not device.states["m"].desired.now, "nobody said now for this one"


def test_hold_stops_activation_never_a_revert() -> None:
    device = device_with(1, 2)
    device.command("m", Verb.HOLD)
    assert device.command("m", "rollback").startswith("accepted")
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"
    device.publish("m", release("m", 3))
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"
    device.command("m", Verb.RESUME)
    device.settle()
    assert device.end_state("m")["runs"] == "1.3.0"


def test_a_pin_is_above_a_hold() -> None:
    device = device_with(1, 2)
    device.command("m", Verb.HOLD)
    device.command("m", Verb.PIN, "1.1.0")
    device.settle()
    assert device.end_state("m")["runs"] == "1.1.0"


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        (Verb.CHECK, ""),
        (Verb.UPDATE, ""),
        (Verb.PIN, "1.1.0"),
        (Verb.PIN, ""),
        (Verb.UNPIN, ""),
        (Verb.HOLD, "audit"),
        (Verb.RESUME, ""),
        ("rollback", ""),
        (Verb.LIFT, "1.1.0"),
        (Verb.BLOCK, "1.1.0"),
        (Verb.BLOCK, "1.2.0"),
        ("dance", ""),
    ],
)
def test_a_repeated_command_changes_nothing_and_gets_the_recorded_answer(verb: str, argument: str) -> None:
    device = device_with(1, 2)
    first = device.command("m", verb, argument, name="the-id")
    device.settle()
    before, spent = device.states["m"], list(device.spent)
    assert device.command("m", verb, argument, name="the-id") == first
    assert device.answers[-1].duplicate
    assert device.states["m"] == before
    assert device.spent == spent
    device.kill()
    device.tick()
    device.command("m", verb, argument, name="the-id")
    assert device.answers[-1].duplicate, "also after a restart"


def test_a_rollback_without_a_target_is_refused_with_the_reason() -> None:
    device = device_with(1)
    said = device.command("m", "rollback")
    assert said == "refused: 1.1.0 is active and no other confirmed, unblocked version is on disk"
    empty = Device("m")
    empty.settle()
    assert empty.command("m", "rollback").startswith("refused: nothing is active")


def test_block_and_lift() -> None:
    device = device_with(1, 2)
    assert "use rollback" in device.command("m", Verb.BLOCK, "1.2.0")
    assert "give its digest" in device.command("m", Verb.BLOCK, "9.9.9")
    assert device.command("m", Verb.BLOCK, "1.1.0").startswith("done")
    device.settle()
    assert device.end_state("m")["fallback"] is None, "a blocked slot is no fallback"
    assert "blocked already" in device.command("m", Verb.BLOCK, "1.1.0")
    assert device.command("m", Verb.LIFT, "1.1.0").startswith("done")
    device.settle()
    assert device.stores["m"].fallback == release("m", 1).digest
    assert "not blocked here" in device.command("m", Verb.LIFT, "1.1.0")
    assert "needs a version" in device.command("m", Verb.LIFT)
    assert "needs a version" in device.command("m", Verb.BLOCK)


def test_only_signed_data_lifts_a_withdrawal() -> None:
    device = device_with(1, 2)
    device.withdraw("m", release("m", 1))
    device.settle()
    assert "only newly signed" in device.command("m", Verb.LIFT, "1.1.0")
    device.withdrawn["m"].clear()
    device.publish("m", None)
    device.settle()
    assert device.states["m"].withdrawn == {}
    assert device.stores["m"].fallback == release("m", 1).digest


def test_a_lift_ends_a_postponement_and_a_decline() -> None:
    device = device_with(1)
    device.publish("m", release("m", 2), Conduct(canary=(Outcome.INSUFFICIENT, Outcome.PASS)))
    device.settle()
    assert device.states["m"].declined
    assert device.command("m", Verb.LIFT, "1.2.0").startswith("done")
    device.settle()
    assert device.end_state("m")["runs"] == "1.2.0"


def test_settings_replace_only_what_they_mention() -> None:
    device = device_with(1, 2)
    device.command("m", Verb.HOLD, "audit")
    device.configure("m", ConfigWish(forbid=("1.9.0",)))
    assert device.states["m"].desired.hold is not None
    device.configure("m", ConfigWish(hold=True))
    assert "hold = true" in device.command("m", Verb.RESUME)
    device.configure("m", ConfigWish())
    assert device.states["m"].desired.hold is None


@pytest.mark.parametrize("change", ["channel", "pin"])
def test_a_check_that_asked_for_something_else_is_not_heard(change: str) -> None:
    device = device_with(1, 2)
    before = device.states["m"].desired.offer
    device.publish("m", release("m", 3))
    begin_check(device)
    if change == "channel":
        device.configure("m", ConfigWish(channel="beta"))
        before = None
    else:
        device.command("m", Verb.PIN, "1.9.0")
    stale = [work for work in device.queues["check"] if work.abandoned]
    answer = device.perform(stale[0])
    assert answer is not None
    device.turn("m", answer)
    assert device.states["m"].desired.offer == before
    device.settle()
    asked = "beta" if change == "channel" else "1.9.0"
    assert any(asked in (order.channel, order.pin) for order in device.checks)


def test_a_check_asked_for_during_a_check_is_made_after_it() -> None:
    device = device_with(1)
    begin_check(device)
    device.command("m", Verb.UPDATE)
    made = len(device.checks)
    device.settle()
    assert len(device.checks) == made + 2


@pytest.mark.parametrize("name", ["1.2.0 .1", "../1.2.0", "v" * 65, "-1"])
def test_a_pin_to_what_is_no_version_is_refused_and_checks_go_on(name: str) -> None:
    device = device_with(1)
    assert "is no name of a version" in device.command("m", Verb.PIN, name)
    assert device.states["m"].desired.pin is None
