"""Two verbs: confirm what is on probation, and follow another channel; with what neither may ever do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from device_simulator import Conduct, Device, release
from modelagent.core import effects
from modelagent.core.describe import describe
from modelagent.core.events import ConfigWish, Event, Learned, Verb, Withdrawal
from modelagent.core.state import Phase, State, block_reason, slot

ONE, TWO, THREE = (release("m", n) for n in (1, 2, 3))


def run(device: Device, seconds: float) -> None:
    """Let so much time pass, second by second."""
    end = device.wall + seconds
    while device.wall < end:
        device.tick()


def on_probation() -> Device:
    """1.1.0 is confirmed; 1.2.0 runs, and its judge never decides."""
    device = Device("m")
    device.install("m", ONE)
    device.publish("m", TWO, Conduct(live="open"))
    device.start()
    run(device, 120.0)
    assert device.states["m"].phase is Phase.PROBATION
    return device


def confirmed(device: Device, digest: str) -> bool:
    return device.stores["m"].slots[digest].confirmed


# ---- confirm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["", TWO.version, TWO.digest])
def test_an_operator_confirms_early(argument: str) -> None:
    device = on_probation()
    assert device.command("m", Verb.CONFIRM, argument) == "accepted: 1.2.0 is being confirmed"
    run(device, 30.0)
    assert device.states["m"].phase is Phase.IDLE
    assert confirmed(device, TWO.digest)
    assert any(n.kind == "command" and n.origin == "cli" for _, n in device.notes)


def test_confirming_the_wrong_version_is_refused() -> None:
    device = on_probation()
    assert device.command("m", Verb.CONFIRM, "1.1.0") == "refused: 1.2.0 is on probation, not 1.1.0"
    run(device, 30.0)
    assert not confirmed(device, TWO.digest)


def test_without_a_probation_there_is_nothing_to_confirm() -> None:
    device = Device("m")
    device.install("m", ONE)
    device.start()
    run(device, 30.0)
    assert device.command("m", Verb.CONFIRM) == "refused: nothing is on probation"


def test_a_blocked_version_is_never_confirmed() -> None:
    """It stays on probation only because there is nowhere to go; nobody's word makes it good."""
    device = Device("m")
    device.publish("m", TWO, Conduct(live="open"))
    device.start()
    run(device, 120.0)
    assert device.states["m"].phase is Phase.PROBATION
    device.withdraw("m", TWO)
    run(device, 60.0)
    assert device.states["m"].phase is Phase.PROBATION
    assert device.command("m", Verb.CONFIRM) == "refused: 1.2.0 is withdrawn: smells"
    run(device, 30.0)
    assert not confirmed(device, TWO.digest)


def test_a_full_disk_delays_the_confirmation() -> None:
    device = on_probation()
    device.full = True
    device.command("m", Verb.CONFIRM, name="c-1")
    run(device, 5.0)
    assert not confirmed(device, TWO.digest)
    device.full = False
    assert device.command("m", Verb.CONFIRM, name="c-2").startswith("accepted")
    run(device, 30.0)
    assert confirmed(device, TWO.digest)


# ---- set-channel -------------------------------------------------------------------------------------------------


def resting() -> Device:
    device = Device("m")
    device.install("m", ONE)
    device.start()
    device.configure("m", ConfigWish(channel="stable"))
    run(device, 60.0)
    return device


def last_asked(device: Device) -> str:
    return device.checks[-1].channel


def test_a_command_names_the_channel_and_the_settings_win_when_edited() -> None:
    device = resting()
    assert device.command("m", Verb.SET_CHANNEL, "beta") == "accepted: the channel beta is followed"
    run(device, 5.0)
    assert last_asked(device) == "beta"
    assert (describe(device.states["m"])["channel"], describe(device.states["m"])["channel_by"]) == ("beta", "cli")
    device.configure("m", ConfigWish(channel="stable"))  # the same settings again, as at every start
    assert device.states["m"].desired.channel == "beta"
    device.configure("m", ConfigWish(channel="stable", forbid=("9.9.9",)))  # an edit of something else
    assert device.states["m"].desired.channel == "beta"
    device.configure("m", ConfigWish(channel="early", forbid=("9.9.9",)))
    run(device, 5.0)
    assert (device.states["m"].desired.channel, last_asked(device)) == ("early", "early")
    assert describe(device.states["m"])["channel_by"] == "config"


def test_the_settings_channel_comes_back_by_an_empty_or_equal_name() -> None:
    for name in ("", "stable"):
        device = resting()
        device.command("m", Verb.SET_CHANNEL, "beta")
        assert device.command("m", Verb.SET_CHANNEL, name) == "accepted: the channel stable is followed"
        assert device.states["m"].desired.following is None
        assert device.command("m", Verb.SET_CHANNEL, name).startswith("done")


def test_the_choice_survives_a_kill() -> None:
    device = resting()
    device.command("m", Verb.SET_CHANNEL, "beta")
    device.kill()
    device.start()
    assert device.states["m"].desired.channel == "beta"


def test_a_pin_goes_before_a_channel() -> None:
    device = resting()
    device.publish("m", TWO)
    device.command("m", Verb.PIN, ONE.version)
    assert "the pin to 1.1.0 goes before it" in device.command("m", Verb.SET_CHANNEL, "beta")
    run(device, 60.0)
    assert device.stores["m"].current == ONE.digest


@pytest.mark.parametrize("name", ["../../other", "Beta", "a" * 65, "http://x"])
def test_what_is_no_channel_is_refused(name: str) -> None:
    device = resting()
    assert device.command("m", Verb.SET_CHANNEL, name).startswith("refused")
    assert device.states["m"].desired.channel == "stable"


def test_what_one_channel_withdraws_stays_withdrawn_in_another() -> None:
    """Else whoever may send a command could undo a signed withdrawal."""
    device = resting()
    device.withdraw("m", THREE)
    device.publish("m", None)
    run(device, 60.0)
    assert THREE.digest in device.states["m"].withdrawn
    device.command("m", Verb.SET_CHANNEL, "beta")
    device.withdrawn["m"] = []  # beta's own data does not know of it
    device.publish("m", THREE)
    run(device, 120.0)
    assert device.stores["m"].current == ONE.digest
    assert "withdrawn" in device.command("m", Verb.PIN, THREE.version)
    device.command("m", Verb.SET_CHANNEL, "")  # back at the settings' channel, only its own signed data counts
    run(device, 60.0)
    assert device.states["m"].withdrawn == {}


# ---- who wanted what, in history ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        (Verb.CONFIRM, ""),
        (Verb.SET_CHANNEL, "beta"),
        (Verb.PIN, "1.2.0"),
        (Verb.UNPIN, ""),
        (Verb.HOLD, "audit"),
        (Verb.RESUME, ""),
        (Verb.UPDATE, ""),
        (Verb.BLOCK, THREE.digest),
        (Verb.ROLLBACK, "wrong"),
    ],
)
def test_a_command_that_changes_something_leaves_its_origin_and_id(verb: str, argument: str) -> None:
    device = on_probation()
    device.command("m", verb, argument, name="who-1")
    found = [note for _, note in device.notes if note.evidence.get("id") == "who-1"]
    assert [note.origin for note in found] == ["cli"]


# ---- both, with everything else ----------------------------------------------------------------------------------

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just(Verb.CONFIRM), st.sampled_from(["", "1.1.0", "1.2.0", "1.3.0"])),
        st.tuples(st.just(Verb.SET_CHANNEL), st.sampled_from(["", "beta", "stable"])),
        st.tuples(st.just(Verb.BLOCK), st.sampled_from([ONE.digest, TWO.digest, THREE.digest])),
        st.tuples(st.sampled_from([Verb.ROLLBACK, Verb.HOLD, Verb.RESUME, Verb.UNPIN]), st.just("")),
        st.tuples(st.sampled_from(["publish", "withdraw"]), st.sampled_from(["2", "3"])),
        st.tuples(st.just("run"), st.sampled_from(["1", "7", "30"])),
        st.tuples(st.just("full"), st.sampled_from(["", "yes"])),
        st.tuples(st.just("kill"), st.just("")),
    ),
    max_size=20,
)


@given(moves=MOVES, live=st.sampled_from(["open", "good", "bad", "crash"]))
def test_no_command_confirms_what_is_blocked(moves: list[tuple[str, str]], live: str) -> None:
    device = Device("m")
    device.install("m", ONE)
    for one in (TWO, THREE):
        device.conduct[one.digest] = Conduct(live=live)
    device.publish("m", TWO)

    def watch(model: str, old: State, event: Event, new: State, orders: tuple[effects.Effect, ...]) -> None:
        if getattr(event, "verb", "") == Verb.CONFIRM:
            for order in orders:
                if isinstance(order, effects.Confirm):
                    assert not block_reason(old, order.release)
                    here = slot(old, order.release.digest)
                    assert here is not None
                    assert old.current == order.release.digest
        if isinstance(event, Learned) and new.desired.following is not None:
            assert new.desired.following.withdrawn.keys() <= new.withdrawn.keys()

    device.after_step = watch
    device.start()
    for verb, argument in moves:
        if verb == "run":
            run(device, float(argument))
        elif verb == "publish":
            device.publish("m", {"2": TWO, "3": THREE}[argument])
        elif verb == "withdraw":
            gone = {"2": TWO, "3": THREE}[argument]
            device.withdrawn["m"].append(Withdrawal(gone.digest, gone.version, "smells"))
        elif verb == "full":
            device.full = bool(argument)
        elif verb == "kill":
            device.kill()
            device.start()
        else:
            device.command("m", verb, argument)
    device.full = False
    run(device, 60.0)


def test_a_state_written_before_these_verbs_existed_is_still_read() -> None:
    adapter = TypeAdapter(State)
    document = adapter.dump_python(replace(State("m"), phase=Phase.IDLE), mode="json")
    del document["desired"]["following"]
    assert adapter.validate_python(document).desired.channel == "stable"
