"""Periodic, cron, windows and local time: tables and properties."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Instant
from modelagent.core.verdicts import Allow, Wait
from modelagent.errors import UsageError
from modelagent.policies import Facts, Question, compose
from modelagent.policies.cron import Cron
from modelagent.policies.localtime import instant_of, local_of, zone_of
from modelagent.policies.periodic import MAKE_UP_S, Periodic
from modelagent.policies.window import Window, Windows

ZONES = ("Europe/Madrid", "America/New_York", "Australia/Lord_Howe")  # the last one jumps by half an hour
zones = st.sampled_from([*ZONES, "UTC", "Asia/Kolkata", "Pacific/Chatham"])
walls = st.floats(1.6e9, 2.0e9)
hour = 3600.0
day = 86400.0


def at(wall: float, mono: float = 0.0) -> Instant:
    return Instant(wall, mono, "boot")


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def local(text: str, zone: str) -> float:
    return instant_of(datetime.fromisoformat(text), ZoneInfo(zone))


class TestLocalTime:
    @pytest.mark.parametrize(
        ("text", "zone", "expected"),
        [
            ("2026-03-29T02:30", "Europe/Madrid", "2026-03-29T01:00"),  # skipped: 03:00 summer time
            ("2026-10-25T02:30", "Europe/Madrid", "2026-10-25T00:30"),  # twice: the first
            ("2026-03-08T02:30", "America/New_York", "2026-03-08T07:00"),
            ("2026-11-01T01:30", "America/New_York", "2026-11-01T05:30"),
            ("2026-10-04T02:10", "Australia/Lord_Howe", "2026-10-03T15:30"),  # half an hour skipped, to 02:30
            ("2026-04-05T01:45", "Australia/Lord_Howe", "2026-04-04T14:45"),
            ("2026-07-01T12:00", "Asia/Kolkata", "2026-07-01T06:30"),
        ],
    )
    def test_table(self, text: str, zone: str, expected: str) -> None:
        assert local(text, zone) == utc(expected)

    @given(wall=st.integers(1_600_000_000, 2_000_000_000), zone=zones)
    def test_round_trip_but_for_the_second_pass(self, wall: int, zone: str) -> None:
        tz = zone_of(zone)
        back = instant_of(local_of(wall, tz), tz)
        assert back == wall or datetime.fromtimestamp(wall, tz).fold == 1

    @given(wall=st.integers(1_600_000_000, 2_000_000_000), zone=zones, step=st.integers(1, 10_000))
    def test_monotone_where_local_time_rises(self, wall: int, zone: str, step: int) -> None:
        tz = zone_of(zone)
        one = local_of(wall, tz)
        assert instant_of(one, tz) <= instant_of(one + timedelta(seconds=step), tz)

    def test_unknown_zone(self) -> None:
        for name in ("Mars/Olympus", "../etc/passwd", ""):
            with pytest.raises(UsageError):
                zone_of(name)


class TestPeriodic:
    def test_first_check_ever_is_now(self) -> None:
        composed = compose(Question.CHECK, (Periodic(hour),), Facts(at(utc("2026-01-01T00:00"))))
        assert isinstance(composed.verdict, Allow)

    def test_speaks_of_checks_only(self) -> None:
        facts = Facts(at(0.0))
        for question in (Question.ACQUIRE, Question.CANARY, Question.ACTIVATE):
            assert Periodic(hour).answer(question, facts, {}).gates == ()

    @given(last=walls, later=st.floats(0, 10 * day), interval=st.floats(1, 31 * day), seed=st.text())
    def test_never_earlier_and_never_much_later(self, last: float, later: float, interval: float, seed: str) -> None:
        facts = Facts(at(last + later), seed=seed, last_check=last)
        verdict = compose(Question.CHECK, (Periodic(interval, 0.1),), facts).verdict
        if isinstance(verdict, Allow):
            assert later >= interval * 0.999999
        else:
            assert isinstance(verdict, Wait)
            assert last + later < verdict.until <= last + interval * 1.1
            there = Facts(at(verdict.until), seed=seed, last_check=last)
            assert isinstance(compose(Question.CHECK, (Periodic(interval, 0.1),), there).verdict, Allow)

    @given(last=walls, now=walls, seed=st.text())
    def test_a_clock_that_was_set_back_does_not_lock_out(self, last: float, now: float, seed: str) -> None:
        verdict = compose(Question.CHECK, (Periodic(hour),), Facts(at(now), seed=seed, last_check=last)).verdict
        if now < last:
            assert isinstance(verdict, Allow)
        elif isinstance(verdict, Wait):
            assert verdict.until - now <= hour * 1.1

    @given(off=st.floats(2 * day, 100 * day), seed=st.text())
    def test_missed_checks_are_made_up_once_and_spread(self, off: float, seed: str) -> None:
        started = 1.7e9 + off
        facts = Facts(at(started), seed=seed, last_check=1.7e9, started=started)
        verdict = compose(Question.CHECK, (Periodic(day, 0.1),), facts).verdict
        if isinstance(verdict, Wait):
            assert verdict.until <= started + MAKE_UP_S
        after = Facts(at(started + 700), seed=seed, last_check=started + 650, started=started)
        assert isinstance(compose(Question.CHECK, (Periodic(day, 0.1),), after).verdict, Wait)

    def test_a_fleet_spreads(self) -> None:
        untils = []
        for n in range(400):
            facts = Facts(at(1.7e9), seed=f"device-{n}", last_check=1.7e9)
            verdict = compose(Question.CHECK, (Periodic(hour, 0.5),), facts).verdict
            assert isinstance(verdict, Wait)
            untils.append((verdict.until - 1.7e9 - hour) / (hour / 2))
        assert min(untils) < 0.05
        assert max(untils) > 0.95
        assert 0.4 < sum(untils) / 400 < 0.6

    def test_an_asked_check(self) -> None:
        last = 1.7e9
        asked = Facts(at(last + 10), last_check=last, asked_check=last + 5)
        assert isinstance(compose(Question.CHECK, (Periodic(hour),), asked).verdict, Allow)
        had = Facts(at(last + 10), last_check=last, asked_check=last - 5)
        assert isinstance(compose(Question.CHECK, (Periodic(hour),), had).verdict, Wait)


class TestCron:
    def fires(self, cron: Cron, start: float, stop: float) -> list[float]:
        found = []
        while (start := cron.after(start)) < stop:
            found.append(start)
        return found

    @pytest.mark.parametrize(
        ("zone", "line", "day_text", "expected"),
        [
            ("Europe/Madrid", "30 2 * * *", "2026-03-29", ["2026-03-29T03:00"]),
            ("Europe/Madrid", "30 2 * * *", "2026-10-25", ["2026-10-25T02:30"]),
            ("America/New_York", "30 2 * * *", "2026-03-08", ["2026-03-08T03:00"]),
            ("America/New_York", "30 1 * * *", "2026-11-01", ["2026-11-01T01:30"]),
            ("Australia/Lord_Howe", "10 2 * * *", "2026-10-04", ["2026-10-04T02:30"]),
            ("Australia/Lord_Howe", "45 1 * * *", "2026-04-05", ["2026-04-05T01:45"]),
            ("UTC", "0 12 29 2 *", "2028-02-29", ["2028-02-29T12:00"]),
            ("UTC", "0 12 29 2 *", "2027-03-01", []),
            ("UTC", "0 0 * * 0", "2026-11-01", ["2026-11-01T00:00"]),
            ("UTC", "0 0 * * 7", "2026-11-01", ["2026-11-01T00:00"]),
            ("UTC", "0 0 * * 1-5", "2026-11-01", []),
            ("UTC", "0 0 * * 5-1", "2026-11-01", ["2026-11-01T00:00"]),
            ("UTC", "0 0 * * sat-mon", "2026-11-01", ["2026-11-01T00:00"]),
            ("UTC", "0 0 13 * fri", "2026-11-13", ["2026-11-13T00:00"]),
            ("UTC", "0 0 13 * fri", "2026-11-20", ["2026-11-20T00:00"]),
            ("UTC", "0 0 13 * fri", "2026-12-13", ["2026-12-13T00:00"]),
            ("UTC", "*/20 3 * * *", "2026-12-13", ["2026-12-13T03:00", "2026-12-13T03:20", "2026-12-13T03:40"]),
        ],
    )
    def test_days(self, zone: str, line: str, day_text: str, expected: list[str]) -> None:
        start = local(f"{day_text}T00:00", zone) - 1
        fires = self.fires(Cron(line, zone), start, start + 23 * hour)
        assert fires == [local(text, zone) for text in expected]

    @pytest.mark.parametrize("zone", ZONES)
    def test_once_on_every_day_of_two_years(self, zone: str) -> None:
        start, stop = local("2026-01-01T00:00", zone), local("2028-01-01T00:00", zone)
        for line in ("30 2 * * *", "15 2 * * *", "30 1 * * *", "0 3 * * *"):
            fires = self.fires(Cron(line, zone), start, stop)
            assert len(fires) == 730
            assert len({local_of(wall, ZoneInfo(zone)).date() for wall in fires}) == 730

    @given(wall=walls, zone=zones, minute=st.integers(0, 59), hours=st.integers(0, 23))
    def test_strictly_later_and_within_two_days(self, wall: float, zone: str, minute: int, hours: int) -> None:
        fire = Cron(f"{minute} {hours} * * *", zone).after(wall)
        assert wall < fire <= wall + 2 * day

    @given(wall=walls, seed=st.text(), spread=st.floats(0, 3000))
    def test_a_check_is_followed_by_a_wait_for_the_next(self, wall: float, seed: str, spread: float) -> None:
        policy = Cron("0 4 * * *", spread_s=spread)
        first = compose(Question.CHECK, (policy,), Facts(at(wall), seed=seed, last_check=wall)).verdict
        assert isinstance(first, Wait)
        assert first.until <= wall + day + spread
        again = compose(
            Question.CHECK, (policy,), Facts(at(first.until + 20), seed=seed, last_check=first.until + 20)
        ).verdict
        assert isinstance(again, Wait)
        assert again.until - first.until == pytest.approx(day, abs=1.0)

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "* * * *",
            "61 * * * *",
            "* 24 * * *",
            "0 0 31 2 *",
            "0 0 30 feb *",
            "x * * * *",
            "0 0 * * 8",
            "0 0 * * foo",
        ],
    )
    def test_bad_lines_are_refused(self, line: str) -> None:
        with pytest.raises(UsageError, match="five fields"):
            Cron(line)


class TestWindows:
    def asked(self, windows: Windows, wall: float, *, now: bool = False, back: bool = False) -> Allow | Wait:
        facts = Facts(at(wall), now=now, back=back)
        verdict = compose(Question.ACQUIRE, (windows,), facts).verdict
        assert isinstance(verdict, Allow | Wait)
        return verdict

    @pytest.mark.parametrize(
        ("window", "when", "opens"),
        [
            ("01:00-04:00", "2026-06-03T02:00", None),
            ("01:00-04:00", "2026-06-03T04:00", "2026-06-04T01:00"),
            ("01:00-04:00", "2026-06-03T00:59", "2026-06-03T01:00"),
            ("22:00-05:00", "2026-06-03T04:59", None),
            ("22:00-05:00", "2026-06-03T05:00", "2026-06-03T22:00"),
            ("Mon-Fri 22:00-05:00", "2026-06-06T04:00", None),  # Saturday, from Friday's window
            ("Mon-Fri 22:00-05:00", "2026-06-06T06:00", "2026-06-08T22:00"),
            ("Mon-Fri 22:00-05:00", "2026-06-08T04:00", "2026-06-08T22:00"),  # Sunday has none
            ("Sat,Sun 00:00-24:00", "2026-06-07T23:59", None),
            ("Sat,Sun 00:00-24:00", "2026-06-08T00:00", "2026-06-13T00:00"),
            ("Sat-Mon 10:00-11:00", "2026-06-08T10:30", None),
            ("02:30-04:00", "2026-03-29T01:59", "2026-03-29T03:00"),  # its start is skipped
            ("02:10-02:50", "2026-03-29T01:59", "2026-03-30T02:10"),  # all of it is skipped
            ("Sun 02:10-02:50", "2026-03-29T01:59", "2026-04-05T02:10"),
            ("02:00-02:15", "2026-10-25T02:10", None),
        ],
    )
    def test_table(self, window: str, when: str, opens: str | None) -> None:
        zone = "Europe/Madrid"
        verdict = self.asked(Windows((window,), (), zone), local(when, zone))
        if opens is None:
            assert isinstance(verdict, Allow)
        else:
            assert isinstance(verdict, Wait)
            assert verdict.until == local(opens, zone)

    def test_the_hour_that_comes_twice_opens_twice(self) -> None:
        zone = "Europe/Madrid"
        verdict = self.asked(Windows(("02:00-02:15",), (), zone), local("2026-10-25T02:15", zone))
        assert isinstance(verdict, Wait)
        assert verdict.until == local("2026-10-25T02:00", zone) + hour

    @given(
        wall=walls,
        zone=zones,
        start=st.integers(0, 95),
        length=st.integers(1, 95),
        days=st.sets(st.sampled_from(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]), min_size=1),
    )
    def test_waits_until_it_opens_and_not_longer(
        self, wall: float, zone: str, start: int, length: int, days: set[str]
    ) -> None:
        stop = (start + length) % 96
        text = ",".join(sorted(days)) + f" {start // 4:02}:{start % 4 * 15:02}-{stop // 4:02}:{stop % 4 * 15:02}"
        windows = Windows((text,), (), zone)
        verdict = self.asked(windows, wall)
        if isinstance(verdict, Wait):
            assert wall < verdict.until <= wall + 14 * day
            assert isinstance(self.asked(windows, verdict.until), Allow)
            middle = wall + (verdict.until - wall) / 2
            assert isinstance(self.asked(windows, middle), Wait)
            assert isinstance(self.asked(windows, wall, now=True), Allow)
            assert isinstance(self.asked(windows, wall, back=True), Allow)

    def test_downloads_and_activation_apart(self) -> None:
        windows = Windows(("01:00-02:00",), ("03:00-04:00",))
        facts = Facts(at(utc("2026-06-03T01:30")))
        assert isinstance(compose(Question.ACQUIRE, (windows,), facts).verdict, Allow)
        assert isinstance(compose(Question.ACTIVATE, (windows,), facts).verdict, Wait)
        assert windows.answer(Question.CANARY, facts, {}).gates == ()
        assert windows.answer(Question.CHECK, facts, {}).gates == ()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "25:00-26:00",
            "Mon 01:00",
            "Foo 01:00-02:00",
            "Mon- 01:00-02:00",
            "24:00-01:00",
            "1:00-2:00",
            "01:60-02:00",
        ],
    )
    def test_bad_windows_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="window"):
            Window.parse(text)
