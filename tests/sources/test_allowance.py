"""What may be taken of the link: the rate, the day's bytes, and clocks that jump meanwhile."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Instant
from modelagent.errors import AgentError
from modelagent.sources import Body
from modelagent.sources.allowance import DAY, Allowance, Metered, SpentError
from modelagent.sources.mirrors import ASIDE_S, Mirrors
from modelagent.steps.transfer import Transfer

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Clock:
    """Both clocks of a device, and its boots."""

    def __init__(self) -> None:
        self.wall, self.mono, self.boot = 1_000_000.0, 50.0, 1
        self.slept: list[float] = []

    def __call__(self) -> Instant:
        return Instant(self.wall, self.mono, f"boot-{self.boot}")

    def run(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds

    def reboot(self, off: float = 60.0) -> None:
        self.boot += 1
        self.wall += off
        self.mono = 5.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.run(seconds)


class Server:
    """Gives the content in chunks of 10,000 bytes."""

    remote = True

    def __init__(self, name: str = "server") -> None:
        self.name = name
        self.sent = 0

    def fetch(self, name: str, *, limit: int, offset: int = 0, validator: str = "") -> Body:
        def chunks() -> Iterator[bytes]:
            for at in range(offset, len(CONTENT), 10_000):
                chunk = CONTENT[at : at + 10_000]
                self.sent += len(chunk)
                yield chunk

        return Body(chunks(), offset=offset, total=len(CONTENT))

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(clock: Clock, path: Path | None = None, *, per_day: int = 0, per_second: float = 0.0) -> Allowance:
    return Allowance(path, per_day=per_day, per_second=per_second, clock=clock, sleep=clock.sleep)


def bring(incoming: Path, allowance: Allowance, server: Server | None = None) -> AgentError | None:
    source = Metered(server or Server(), allowance)
    transfer = Transfer(incoming, Mirrors([source]), lambda _: None, allowance=allowance)
    try:
        transfer.fetch(DIGEST, len(CONTENT), progress=lambda _: None, abandoned=lambda: False)
    except AgentError as error:
        return error
    finally:
        source.close()
    return None


def test_a_budget_stops_a_download_and_the_next_day_goes_on(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "incoming").mkdir()
    server = Server()
    days = 0
    while True:
        allowance = made(clock, tmp_path / "bytes.json", per_day=30_000)
        error = bring(tmp_path / "incoming", allowance, server)
        if error is None:
            break
        assert isinstance(error, SpentError)
        assert error.code == "byte-budget"
        assert 0 < error.retry_after <= DAY
        assert allowance.left() == 0
        clock.run(error.retry_after)
        days += 1
    assert days == len(CONTENT) // 30_000
    assert server.sent == len(CONTENT), "no byte was paid for twice"
    assert (tmp_path / "incoming" / DIGEST).read_bytes() == CONTENT


def test_a_spent_budget_survives_restart_and_reboot(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "incoming").mkdir()
    path = tmp_path / "bytes.json"
    assert bring(tmp_path / "incoming", made(clock, path, per_day=10_000)) is not None
    for reboots in (True, False):
        clock.reboot() if reboots else clock.run(60.0)
        server = Server()
        assert bring(tmp_path / "incoming", made(clock, path, per_day=10_000), server) is not None
        assert server.sent == 0, "not even asked"


@pytest.mark.parametrize("wall", [0.0, 5_000_000_000.0])
def test_a_jump_of_the_clock_buys_at_most_one_day_and_locks_nobody_out(
    tmp_path: Path, clock: Clock, wall: float
) -> None:
    path = tmp_path / "bytes.json"
    made(clock, path, per_day=100).spend(100)
    allowance = made(clock, path, per_day=100)
    allowance.spend(0)
    allowance.save()
    clock.wall = wall  # within one boot only the monotonic clock counts
    assert made(clock, path, per_day=100).left() in (0, 100)
    clock.reboot(0)
    clock.wall = 0.0
    left = made(clock, path, per_day=100)
    clock.run(DAY + 1)
    assert left.left() == 100


def test_an_unreadable_memory_is_an_empty_purse_for_a_day(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "bytes.json"
    path.write_bytes(b"{torn")
    allowance = made(clock, path, per_day=100)
    assert allowance.left() == 0
    clock.run(DAY + 1)
    assert allowance.left() == 100


def test_without_limits_nothing_is_kept(tmp_path: Path, clock: Clock) -> None:
    allowance = made(clock, tmp_path / "bytes.json")
    allowance.spend(10**9)
    allowance.check()
    allowance.save()
    assert allowance.left() is None
    assert not (tmp_path / "bytes.json").exists()
    assert clock.slept == []


@pytest.mark.parametrize("rate", [100.0, 5_000.0, 100_000.0])
def test_a_rate_cap_holds_and_each_pause_is_short(tmp_path: Path, clock: Clock, rate: float) -> None:
    (tmp_path / "incoming").mkdir()
    began = clock.mono
    assert bring(tmp_path / "incoming", made(clock, per_second=rate)) is None
    took = clock.mono - began
    assert len(CONTENT) / rate * 0.98 - 0.3 <= took <= len(CONTENT) / rate * 1.02 + 0.3
    assert max(clock.slept) <= 0.25, "a transfer that is not wanted any more must end soon"


@given(st.lists(st.tuples(st.sampled_from(["spend", "run", "reboot", "jump"]), st.integers(0, 200_000)), max_size=40))
def test_no_day_of_running_time_ever_holds_more_than_its_budget(moves: list[tuple[str, int]]) -> None:
    clock = Clock()
    allowance = made(clock, per_day=1000)
    spent: list[tuple[float, int]] = []
    lived = 0.0
    for move, amount in moves:
        if move == "spend":
            try:
                allowance.check()
            except SpentError:
                continue
            allowance.spend(min(amount, 100))
            spent.append((lived, min(amount, 100)))
        elif move == "run":
            clock.run(amount)
            lived += amount
        elif move == "jump":
            clock.wall = float(amount)
    # Two windows may touch, so any stretch of one day holds at most two budgets and one piece.
    for start, _ in spent:
        assert sum(count for at, count in spent if start <= at < start + DAY) <= 2 * (1000 + 100)


# --- mirrors ---------------------------------------------------------------------------------------------------------


def names(mirrors: Mirrors) -> list[str]:
    return [source.name for source in mirrors.in_turn()]


def test_mirrors_are_asked_in_order_and_the_blamed_last_for_a_week(tmp_path: Path) -> None:
    now = 1000.0
    path = tmp_path / "mirrors.json"
    tell: Callable[[], float] = lambda: now  # noqa: E731
    sources = [Server("a"), Server("b"), Server("c")]
    mirrors = Mirrors(sources, path, tell)
    assert names(mirrors) == ["a", "b", "c"]
    mirrors.blame(sources[0], "tampered-file")
    assert names(mirrors) == ["b", "c", "a"]
    assert names(Mirrors(sources, path, tell)) == ["b", "c", "a"]
    now += ASIDE_S + 1
    assert names(mirrors) == ["a", "b", "c"]
    now = 0.0
    assert names(mirrors) == ["b", "c", "a"], "a clock set back costs nothing but order"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"aside": 1}', b'{"aside": {"a": 1}}', b'{"aside": {"a": ["x", 1]}}']
)
def test_a_damaged_memory_of_mirrors_is_no_memory(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "mirrors.json"
    path.write_bytes(damage)
    mirrors = Mirrors([Server("a")], path)
    assert mirrors.aside() == {}
    mirrors.blame(Server("a"), "code")
    assert json.loads(path.read_bytes())["aside"]["a"][1] == "code"


def test_what_is_attached_comes_first_until_it_is_blamed() -> None:
    mirrors = Mirrors([Server("net")])
    stick = Server("stick")
    mirrors.attach(stick)
    assert names(mirrors) == ["stick", "net"]
    mirrors.blame(stick, "tampered-file")
    assert names(mirrors) == ["net", "stick"]
    mirrors.attach(Server("stick"))
    assert names(mirrors) == ["stick", "net"]
    mirrors.detach("stick")
    mirrors.detach("stick")
    assert names(mirrors) == ["net"]
    mirrors.close()
