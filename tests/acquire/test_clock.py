"""Clocks that are wrong: 1970, 2040 and back, weeks offline, no NTP. Releases wait or come; nothing is locked out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root

from modelagent.core.clock import LONG_S, Judged, Trust, judge, show, suspected
from modelagent.core.events import CheckFailed, DiskFacts, Instant, Link, RevertWanted, SlotFacts, Started
from modelagent.core.machine import step
from modelagent.core.state import Answers, Phase, State
from modelagent.core.verdicts import Allow
from modelagent.errors import AgentError, Remedy
from modelagent.manifest import parse
from modelagent.steps.acquire import Acquirer, Wish
from modelagent.steps.clock import BUILT, FloorClock, kernel_synchronised
from repository_simulator import START, Clock, RepositorySimulator

DAY = 86400.0


class Device:
    """A device whose own clock is set apart from the publisher's, which is right."""

    def __init__(self, directory: Path, trust: Trust, *, synchronised: bool | None = False) -> None:
        self.right = Clock()
        self.simulator = RepositorySimulator(directory / "publisher", self.right)
        self.wall = self.right()
        self.follows = True  # whether this clock goes on as the right one does
        self.state = directory / "state"
        self.state.mkdir()
        self.trust = trust
        self.synchronised = synchronised
        self.restart()

    def restart(self) -> None:
        self.acquirer = Acquirer(
            self.state, self.simulator, self.simulator.root_bytes, lambda: self.wall, trust=self.trust
        )
        floor = self.acquirer._floor
        assert floor is not None
        floor._synchronised = lambda: self.synchronised

    def pass_time(self, **delta: float) -> None:
        before = self.right()
        self.right.advance(**delta)
        if self.follows:
            self.wall += self.right() - before

    def set(self, moment: datetime) -> None:
        self.wall = moment.timestamp()

    def takes(self, version: str) -> None:
        checked = self.acquirer.check("digits", "stable")
        assert checked.offer is not None
        assert checked.offer.version == version
        self.acquirer.acquire(checked.offer)

    def refuses(self, code: str) -> str:
        with pytest.raises(AgentError) as caught:
            self.acquirer.check("digits", "stable")
        assert caught.value.code == code, caught.value.message
        return caught.value.message

    @property
    def clock(self) -> dict[str, object]:
        told: dict[str, object] = self.acquirer.describe()["clock"]
        return told


@pytest.fixture(params=list(Trust))
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    return Device(tmp_path, request.param)


@pytest.fixture
def rtc(tmp_path: Path) -> Device:
    return Device(tmp_path, Trust.RTC)


Y1970 = datetime(1970, 1, 1, 0, 0, 12, tzinfo=UTC)
Y2040 = datetime(2040, 1, 1, tzinfo=UTC)


# --- a device's life -----------------------------------------------------------------------------------------------


def test_1970_without_a_clock_takes_releases_and_says_how(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.set(Y1970)
    device.restart()
    device.takes("1.0.0")
    assert device.clock["believed"] is False
    assert "1970" in str(device.clock["reason"]) or device.trust is not Trust.RTC
    device.pass_time(days=3)
    device.simulator.release("1.1.0")
    device.set(Y1970)
    device.restart()
    device.takes("1.1.0")


def test_a_replayed_repository_is_refused_in_1970_too(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.simulator.remember()
    device.pass_time(days=2)
    device.simulator.release("1.1.0")
    device.set(Y1970)
    device.takes("1.1.0")
    device.simulator.replay("timestamp")
    device.restart()
    device.refuses("rollback-attack")
    device.simulator.honest()
    device.takes("1.1.0")


def test_2040_suspects_the_clock_and_back_again_everything_works(rtc: Device) -> None:
    rtc.simulator.release("1.0.0")
    rtc.takes("1.0.0")
    rtc.simulator.release("1.1.0")
    rtc.set(Y2040)
    said = rtc.refuses("wrong-clock")
    assert "2040" in said
    assert "suspected, not the repository" in said
    rtc.set(rtc.right.now)
    rtc.takes("1.1.0")
    rtc.restart()
    rtc.takes("1.1.0")
    kept = json.loads((rtc.state / "clock.json").read_bytes())
    assert all(at < Y2040.timestamp() for at, _ in kept["signed"].values()), "the floor never rises from a clock"


@pytest.mark.parametrize("trust", [Trust.NTP, Trust.SIGNED_FLOOR])
def test_2040_does_nothing_to_a_clock_that_is_not_believed(tmp_path: Path, trust: Trust) -> None:
    device = Device(tmp_path, trust)
    device.simulator.release("1.0.0")
    device.set(Y2040)
    device.takes("1.0.0")
    device.set(device.right.now)
    device.simulator.release("1.1.0")
    device.takes("1.1.0")


def test_a_clock_set_back_a_month_is_below_what_was_signed(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    device.set(START - timedelta(days=30))
    device.pass_time(days=1)
    device.simulator.release("1.1.0")
    device.takes("1.1.0")
    assert device.clock["believed"] is False


def test_five_weeks_offline_with_two_root_rotations_missed(device: Device) -> None:
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    device.pass_time(days=20)
    device.simulator.repository.rotate("online")
    device.pass_time(days=15)
    device.simulator.repository.rotate("root")
    device.simulator.release("1.1.0")
    device.restart()
    device.takes("1.1.0")


def test_an_expired_repository_is_told_from_a_wrong_clock(tmp_path: Path) -> None:
    device = Device(tmp_path, Trust.RTC, synchronised=True)
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    device.pass_time(days=60)  # nobody signs any more; NTP vouches for the clock
    assert "nobody signs any more" in device.refuses("freeze-attack")
    device.synchronised = False
    assert "suspected" in device.refuses("wrong-clock")
    device.simulator.repository.refresh()
    device.takes("1.0.0")


def test_the_servers_own_clock_is_a_hint_and_no_more(rtc: Device) -> None:
    rtc.simulator.release("1.0.0")
    rtc.takes("1.0.0")
    rtc.wall += 9 * DAY  # nine days ahead: the timestamp seems to have ended two days ago
    rtc.refuses("freeze-attack")
    rtc.simulator.server_time = rtc.right()
    assert "the server's clock says 2026-11-01" in rtc.refuses("wrong-clock")
    rtc.wall = rtc.right()
    rtc.simulator.server_time = Y2040.timestamp()
    rtc.takes("1.0.0")


def test_a_frozen_repository_is_noticed_by_a_clock_that_was_never_set(tmp_path: Path) -> None:
    """Judged by signed times alone, what was signed before something newer ended is old."""
    device = Device(tmp_path, Trust.SIGNED_FLOOR)
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    device.simulator.remember()
    device.pass_time(days=40)
    device.simulator.repository.refresh()
    device.takes("1.0.0")
    device.simulator.replay("timestamp")
    device.refuses("rollback-attack")


@pytest.mark.parametrize("trust", list(Trust))
def test_a_stolen_online_key_cannot_lock_a_device_out_for_good(tmp_path: Path, trust: Trust) -> None:
    """It signs a time far ahead, so that everything else looks expired; a new online key heals that."""
    device = Device(tmp_path, trust)
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    honest = device.right.now
    device.right.now = datetime(2027, 10, 1, tzinfo=UTC)  # the thief's idea of the time; all but his files go on
    device.simulator.repository.refresh()
    device.right.now = honest
    device.takes("1.0.0")
    device.simulator.repository.refresh()
    device.refuses("freeze-attack")
    device.simulator.repository.rotate("online")
    device.simulator.release("1.1.0")
    device.restart()
    device.takes("1.1.0")


# --- going back works whatever the clock says ----------------------------------------------------------------------


MOMENTS = {
    "1970": (Y1970.timestamp(), "freeze-attack"),
    "2040": (Y2040.timestamp(), "wrong-clock"),
    "five weeks offline": ((START + timedelta(weeks=5)).timestamp(), "unreachable"),
    "set back": ((START - timedelta(days=400)).timestamp(), "freeze-attack"),
    "expired repository": ((START + timedelta(days=60)).timestamp(), "freeze-attack"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_rollback_needs_no_clock_and_no_repository(tmp_path: Path, name: str) -> None:
    wall, code = MOMENTS[name]
    simulator = RepositorySimulator(tmp_path)
    slots = []
    for version in ("1.0.0", "1.1.0"):
        manifest = simulator.release(version)
        path = simulator.directory / f"targets/models/digits/{version}/{manifest.digest}.manifest.json"
        slots.append(SlotFacts(parse(path.read_bytes()).release, confirmed=True))
    old, new = slots
    link = Link(7, 7)
    answers = Answers(may_check=Allow("yes", "test"), load_free=True, canary_free=True)
    state = State("digits")
    at = Instant(START.timestamp(), 10.0, "boot-1")
    disk = DiskFacts((old, new), new.release.digest, link, old.release.digest)
    state, _ = step(state, Started(at, 0.5, disk, "runtime 1"), answers)
    later = Instant(wall, 5.0, "boot-2")
    state, _ = step(state, Started(later, 0.5, disk, "runtime 1"), answers)
    if state.watch.effect:
        failed = CheckFailed(later, 0.5, state.watch.effect, Remedy.STOP, code, "no")
        state, _ = step(state, failed, answers)
    assert state.current == new.release.digest, "what runs goes on"
    state, orders = step(state, RevertWanted(later, 0.5, "cli", "1", "because"), answers)
    assert state.phase is Phase.REVERTING
    assert any(type(order).__name__ == "Revert" for order in orders)


# --- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trust", "wall", "synchronised", "believed"),
    [
        (Trust.RTC, 200.0, None, True),
        (Trust.RTC, 200.0, False, True),
        (Trust.RTC, 50.0, True, False),
        (Trust.NTP, 200.0, True, True),
        (Trust.NTP, 200.0, False, False),
        (Trust.NTP, 200.0, None, False),
        (Trust.NTP, 50.0, True, False),
        (Trust.SIGNED_FLOOR, 200.0, True, False),
    ],
)
def test_which_clock_counts(trust: Trust, wall: float, synchronised: bool | None, believed: bool) -> None:
    judged = judge(trust, wall, 100.0, synchronised)
    assert judged.believed is believed
    assert judged.now == (wall if believed else 100.0)
    assert judged.reason


@given(st.sampled_from(list(Trust)), st.floats(-1e12, 1e12), st.floats(0, 1e11), st.sampled_from([None, True, False]))
def test_time_never_goes_below_the_floor(trust: Trust, wall: float, floor: float, synchronised: bool | None) -> None:
    assert judge(trust, wall, floor, synchronised).now >= floor


def test_the_clock_is_suspected_only_where_nobody_vouches_for_it() -> None:
    believed = Judged(1e9, True, "", synchronised=False)
    assert suspected(believed, 0.0, 1e9 - LONG_S - 1, None)
    assert not suspected(believed, 0.0, 1e9 - LONG_S + 1, None)
    assert suspected(believed, 5.0, 1e9 - 10, 6.0)
    assert not suspected(believed, 5.0, 1e9 - 10, 4.0), "the server's clock is wrong too"
    assert not suspected(Judged(1e9, True, "", synchronised=True), 0.0, 0.0, 6.0)
    assert not suspected(Judged(1e9, False, "", synchronised=False), 0.0, 0.0, 6.0)


@pytest.mark.parametrize("moment", [0.0, -1e18, 1e18, float("inf"), 1.7e9])
def test_any_moment_can_be_shown(moment: float) -> None:
    assert show(moment)


def root_of(simulator: RepositorySimulator) -> Root:
    return Metadata[Root].from_bytes(simulator.root_bytes).signed


def test_the_floor_survives_a_restart_and_belongs_to_its_keys(tmp_path: Path) -> None:
    simulator = RepositorySimulator(tmp_path)
    root = root_of(simulator)
    path = tmp_path / "clock.json"

    def made() -> FloorClock:
        return FloorClock(path, Trust.RTC, lambda: 0.0, synchronised=lambda: None, built=100.0)

    clock = made()
    assert clock.judge(root).now == 100.0
    clock.learn(root, online=300.0, offline=200.0)
    clock.learn(root, online=250.0, offline=0.0)
    assert made().judge(root).now == 300.0
    assert made().judge(None).now == 300.0
    simulator.repository.rotate("online")
    newer = Metadata[Root].from_bytes((tmp_path / "keys" / "root.json").read_bytes()).signed
    assert made().judge(newer).now == 200.0


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"signed": 5}', b'{"signed": {"a": 1}}', b'{"signed":{"a":["x",[]]}}']
)
def test_a_damaged_floor_is_the_day_of_the_build(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "clock.json"
    path.write_bytes(damage)
    assert FloorClock(path, Trust.SIGNED_FLOOR, lambda: 0.0).judge(None).now == BUILT


def test_the_kernel_is_asked_for_its_opinion() -> None:
    assert kernel_synchronised() in (True, False, None)


def test_a_signed_time_after_its_own_end_is_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = RepositorySimulator(tmp_path)
    signed = root_of(simulator)
    from modelagent.steps.workflow import issued  # noqa: PLC0415 - one use

    assert issued(signed) == START.timestamp()
    make: Callable[[str], None] = lambda text: signed.unrecognized_fields.__setitem__("issued", text)  # noqa: E731
    for text in ("2099-01-01T00:00:00Z", "yesterday", "2026-11-01T12:00:00", ""):
        make(text)
        assert issued(signed) == 0.0


def test_what_is_said_of_an_expired_repository_does_not_change_with_every_try(device: Device) -> None:
    """Else history would get a line at each one."""
    device.simulator.release("1.0.0")
    device.takes("1.0.0")
    device.wall = (START + timedelta(days=60)).timestamp()
    device.simulator.sign_with("channels", "operations", lambda _: None)
    said = set()
    for _ in range(3):
        device.wall += 60
        for answer in device.acquirer.check_many([Wish("digits", "stable")]):
            said.add(answer.message if isinstance(answer, AgentError) else "")
    assert len(said) == 1
