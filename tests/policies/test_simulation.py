"""Whole days: the policies, the machine and a made-up device, over traces."""

import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelagent.cli import main
from modelagent.core.events import Instant
from modelagent.core.state import Phase
from modelagent.errors import UsageError
from modelagent.inputs.config import Settings, parse
from modelagent.policies import Facts
from modelagent.updater.simulation import Days, gaps, simulate
from modelagent.updater.traces import line_of
from modelagent.updater.traces import parse as parse_trace

ROOT = Path(__file__).parents[2]
PLANT = ROOT / "examples" / "traces" / "plant.jsonl"
NIGHT = ROOT / "examples" / "traces" / "night.toml"
DAY = 86400.0
START = datetime(2026, 3, 2, tzinfo=UTC)


def settings(**sections: Any) -> Settings:
    return parse(sections, Path("test.toml"))


def days(*lines: dict[str, Any], policy: dict[str, Any] | None = None, start: datetime = START, **head: Any) -> Days:
    """A replay; `head` goes into the trace's first line, `repository` into the settings."""
    sections = {"policy": policy or {}} | {key: head.pop(key) for key in ("repository", "limits") if key in head}
    first = {"trace": 1, "start": start.isoformat(), "days": 5, "running": "1.0.0", "seed": "s"} | head
    text = "\n".join(json.dumps(line) for line in (first, *lines))
    return simulate(settings(**sections), parse_trace(text))


def release(version: str = "1.1.0", number: int = 2, size: int = 10_000_000, **more: Any) -> dict[str, Any]:
    return {"version": version, "number": number, "size": size, **more}


def when(outcome: Days, kind: str) -> list[float]:
    """True seconds after the start at which entries of this kind came."""
    return [entry.after for entry in outcome.entries if entry.kind == kind]


def texts(outcome: Days, kind: str) -> list[str]:
    return [entry.text for entry in outcome.entries if entry.kind == kind]


class TestDays:
    def test_a_release_goes_all_the_way(self) -> None:
        outcome = days({"at": DAY, "release": release()})
        kinds = " ".join(entry.kind for entry in outcome.entries if entry.kind != "check")
        assert kinds == (
            "offered acquiring download acquired staged canary activating activated probation probation confirmed"
        )
        assert (outcome.downloads, outcome.activations) == (1, 1)
        assert outcome.bytes == 10_000_000 + 12_000 * len(outcome.checks)

    def test_a_link_that_turns_metered_in_the_middle_sends_the_download_back(self) -> None:
        outcome = days(
            {"at": 0, "rate_bps": 80_000, "metered": False, "release": release()},  # 1,000 s at 10 kB/s
            {"at": 500, "metered": True},
            {"at": 5000, "metered": False},
            policy={"download": {"unmetered": True}},
        )
        begun, stopped = when(outcome, "acquiring"), when(outcome, "deferred")
        assert len(begun) == 2
        assert 500 <= stopped[0] <= 511
        assert begun[1] == pytest.approx(5030), "it settles first"
        assert sum(entry.bytes for entry in outcome.entries if entry.kind == "download") == 10_000_000, "partials kept"

    def test_waiting_too_long_is_an_alarm_and_then_goes_ahead_if_asked(self) -> None:
        lines: list[dict[str, Any]] = [{"at": 0, "metered": True, "release": release()}]
        for go_ahead in ([], ["metered"]):
            policy = {"download": {"unmetered": True, "max_wait": "2d", "go_ahead": go_ahead}}
            outcome = days(*lines, policy=policy)
            assert texts(outcome, "alarm") == ["overdue: download has waited for more than 2 d: the link is metered"], (
                "said once"
            )
            assert when(outcome, "alarm")[0] == pytest.approx(2 * DAY, abs=5)
            assert outcome.activations == len(go_ahead)
        assert "going ahead although the link is metered" in texts(outcome, "acquiring")[0]
        assert texts(outcome, "overdue") == ["no longer: download has waited for more than 2 d: the link is metered"]

    def test_now_lifts_the_window_and_not_the_safety_and_is_recorded(self) -> None:
        policy = {"download_windows": ["03:00-04:00"], "activate_windows": ["03:00-04:00"]}
        lines = [{"at": 4 * 3600, "release": release(), "temperature_c": 80}, {"at": 6 * 3600, "want": "update"}]
        outcome = days(
            *lines, {"at": 8 * 3600, "temperature_c": 40}, policy={**policy, "canary": {"max_temperature_c": 70}}
        )
        assert when(outcome, "acquiring")[0] < 6 * 3600 + 10
        assert 'window: closed, and lifted by "now"' in texts(outcome, "acquiring")[0]
        assert when(outcome, "canary")[0] >= 8 * 3600, "heat is no window"
        assert 'window: closed, and lifted by "now"' in texts(outcome, "activating")[0]
        assert when(outcome, "activating")[0] < 9 * 3600

    def test_a_withdrawal_is_acted_upon_within_one_check_whatever_is_closed(self) -> None:
        outcome = days(
            {"at": 0, "release": release()},
            {"at": DAY, "metered": True, "inhibited": ["busy"], "disk_free_mb": 0, "temperature_c": 120, "load1": 99},
            {"at": DAY + 10, "withdrawn": ["1.1.0"]},
            policy={
                "activate_windows": ["00:00-12:00"],
                "download": {"unmetered": True},
                "activate": {"max_load": 1, "max_temperature_c": 50},
            },
        )
        (gone,) = when(outcome, "withdrawn")
        (back,) = when(outcome, "reverting")
        assert gone == back <= DAY + 10 + 6.6 * 3600
        assert outcome.state.phase is Phase.IDLE

    def test_a_days_bytes(self) -> None:
        outcome = days({"at": 0, "rate_bps": 8e6, "release": release(size=250_000_000)}, repository={"daily_mb": 100})
        assert outcome.downloads == 1
        per_day = [0] * 5
        for entry in outcome.entries:
            if entry.kind == "download":
                per_day[int((entry.wall - START.timestamp()) // DAY)] += entry.bytes
        assert sum(per_day) == 250_000_000
        assert all(count <= 112_000_000 for count in per_day), "the gate is asked every ten seconds"
        assert when(outcome, "acquired")[0] >= 2 * DAY

    def test_switched_off_every_evening(self) -> None:
        lines = [{"at": f"{hour:02}:00", "every": "day", "power": hour == 7} for hour in (7, 18)]
        outcome = days(*lines, {"at": "12:00", "every": "day", "release": release()}, days=14)
        assert outcome.activations == 1
        for wall in outcome.checks:
            assert wall < START.timestamp() + 7 * 3600 or 7 <= wall % DAY / 3600 < 18, "off is off"
        in_the_morning = [wall % DAY - 7 * 3600 for wall in outcome.checks if 7 <= wall % DAY / 3600 < 8]
        assert len(in_the_morning) >= 10, "made up once"
        assert max(in_the_morning) <= 601, "and spread over ten minutes"

    def test_a_canary_that_fails_and_one_that_crashes_later(self) -> None:
        outcome = days(
            {"at": 0, "release": release("1.1.0", 2, canary="fail")},
            {"at": DAY, "release": release("1.2.0", 3, live="crash")},
            {"at": 2 * DAY, "release": release("1.3.0", 4)},
        )
        assert texts(outcome, "blocked") == ["1.1.0 (failed): as the trace says", "1.2.0 (failed): it crashes"]
        assert texts(outcome, "confirmed") == ["1.3.0 is confirmed"]

    def test_an_alarm_asks_for_a_check_at_once(self) -> None:
        outcome = days({"at": 10_000, "alarm": True}, policy={"check_interval": "12h"})
        checks = [wall - START.timestamp() for wall in outcome.checks]
        assert checks[1] == pytest.approx(10_001, abs=2)
        assert checks[2] > 10_001 + 12 * 3600

    @pytest.mark.parametrize("jump", [-20 * 365 * DAY, -40_000.0, -3600.0, 3600.0, 40_000.0, 20 * 365 * DAY])
    @pytest.mark.parametrize("policy", [{}, {"check_cron": "0 */6 * * *"}, {"feedback": False}])
    def test_jumping_clocks_neither_stop_nor_storm(self, jump: float, policy: dict[str, Any]) -> None:
        """By true time: a check at least every interval (and its spread) and its made-up rest, and no more than due."""
        outcome = days({"at": 2.3 * DAY, "clock": jump}, {"at": 3.7 * DAY, "clock": -jump}, policy=policy)
        true = when(outcome, "check")
        apart = [after - before for before, after in itertools.pairwise(true)]
        assert 18 <= len(true) <= 24
        assert max(apart) <= 12.2 * 3600, "what is left of an interval, and one more"
        short = [gap for gap in apart if gap < 5 * 3600]
        assert len(short) <= 5, "the first day's, and at each jump, there and back, one or two: no storm"

    @pytest.mark.parametrize(
        ("zone", "start"),
        [
            ("Europe/Madrid", datetime(2026, 3, 27, tzinfo=UTC)),
            ("Europe/Madrid", datetime(2026, 10, 23, tzinfo=UTC)),
            ("America/New_York", datetime(2026, 3, 6, tzinfo=UTC)),
            ("America/New_York", datetime(2026, 10, 30, tzinfo=UTC)),
            ("Australia/Lord_Howe", datetime(2026, 4, 3, tzinfo=UTC)),
            ("Australia/Lord_Howe", datetime(2026, 10, 2, tzinfo=UTC)),
            ("UTC", datetime(2028, 2, 27, tzinfo=UTC)),
        ],
    )
    def test_the_days_on_which_clocks_change_and_a_leap_day(self, zone: str, start: datetime) -> None:
        """One check by the calendar and one release a day, switched in its window: none lost, none double."""
        lines = [{"at": n * DAY + 60, "release": release(f"1.{n + 1}.0", n + 2, size=1000)} for n in range(5)]
        policy = {
            "check_cron": "30 2 * * *",
            "feedback": False,
            "timezone": zone,
            "activate_windows": ["04:00-05:00"],
        }
        outcome = days(*lines, policy=policy, start=start, days=5.5)
        local = [datetime.fromtimestamp(wall, ZoneInfo(zone)) for wall in outcome.checks[1:]]
        expected = [local[0].date() + timedelta(days=n) for n in range(len(local))]
        assert [moment.date() for moment in local] == expected
        assert 5 <= len(local) <= 6
        assert all(
            (moment.hour, moment.minute) in {(2, m) for m in range(30, 36)} | {(3, m) for m in range(6)}
            for moment in local
        )
        switched = [
            datetime.fromtimestamp(entry.wall, ZoneInfo(zone))
            for entry in outcome.entries
            if entry.kind == "activating"
        ]
        assert all(moment.hour == 4 for moment in switched)
        assert len({moment.date() for moment in switched}) == len(switched) >= 4

    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(
                st.floats(60, 2 * DAY),
                st.sampled_from(["drift", "quality_drop", "alarm"]),
                st.sampled_from([0.0, 0.6, 1.0]),
            ),
            max_size=40,
        )
    )
    def test_never_more_often_than_the_floor(self, signals: list[tuple[float, str, float]]) -> None:
        lines = [{"at": at, kind: bool(value) if kind == "alarm" else value} for at, kind, value in signals]
        outcome = days(*lines, policy={"check_interval": "4h", "check_floor": "30m"}, days=2)
        apart = gaps(outcome.checks)
        assert apart is not None
        assert apart[0] >= 1800
        assert apart[1] <= 4 * 3600 * 1.1 + 2

    def test_nothing_happens_before_its_window(self) -> None:
        policy = {"download_windows": ["22:00-05:00"], "activate_windows": ["Sun 03:00-04:00"]}
        outcome = days({"at": 100, "release": release()}, policy=policy, days=8)
        (begun,), (switched,) = when(outcome, "acquiring"), when(outcome, "activating")
        assert begun == pytest.approx(22 * 3600, abs=2)
        assert switched == pytest.approx(6 * DAY + 3 * 3600, abs=2), "the first Sunday"


def test_thirty_days_in_under_a_second() -> None:
    trace, wanted = parse_trace(PLANT.read_text()), parse_file(NIGHT)
    simulate(wanted, trace)
    began = time.process_time()
    outcome = simulate(wanted, trace)
    assert time.process_time() - began < 1.0
    assert (outcome.downloads, outcome.activations) == (3, 2)
    assert not any(b - a < 1800 for a, b in itertools.pairwise(outcome.checks))


def parse_file(path: Path) -> Settings:
    from modelagent.inputs.config import load  # noqa: PLC0415 - the name `parse` is the other one here

    return load(path, conf_d=False)


def test_the_same_trace_gives_the_same_days() -> None:
    trace, wanted = parse_trace(PLANT.read_text()), parse_file(NIGHT)
    assert simulate(wanted, trace).entries == simulate(wanted, trace).entries


class TestFormat:
    HEAD = '{"trace": 1, "start": "2026-03-02T00:00:00Z", "days": 2}'

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            ("{}", "line 1"),
            ('{"trace": 2, "start": "2026-03-02T00:00:00Z", "days": 2}', "line 1"),
            ('{"trace": 1, "start": "2026-03-02", "days": 2}', "without a zone"),
            ('{"trace": 1, "start": "2026-03-02T00:00:00Z", "days": 0}', "days"),
            ('{"trace": 1, "start": "2026-03-02T00:00:00Z", "days": 1e9}', "days"),
            (HEAD + "\nx", "line 2"),
            (HEAD + "\n\n# note\n[]", "line 4"),
            (HEAD + '\n{"at": -1}', "from 0"),
            (HEAD + '\n{"at": 0, "colour": 1}', "colour"),
            (HEAD + '\n{"at": 0, "metered": 1}', "true, false"),
            (HEAD + '\n{"at": 0, "load1": true}', "a number"),
            (HEAD + '\n{"at": 0, "load1": NaN}', "a number"),
            (HEAD + '\n{"at": 0, "inhibited": "x"}', "a list of texts"),
            (HEAD + '\n{"at": "25:00", "every": "day"}', "time of day"),
            (HEAD + '\n{"at": "08:00", "every": "month"}', "every"),
            (HEAD + '\n{"at": 0, "want": "format-disk"}', "a verb"),
            (HEAD + '\n{"at": 0, "want": {"verb": "config"}}', "a verb"),
            (HEAD + '\n{"at": 0, "power": 1}', "true or false"),
            (HEAD + '\n{"at": 0, "release": {"version": "1"}}', "version, number, size"),
            (HEAD + '\n{"at": 0, "release": {"version": "1", "number": 1, "size": 1, "canary": "maybe"}}', "canary"),
            (HEAD + '\n{"at": 0, "release": {"version": "1", "number": 1, "size": 1, "waves": [1]}}', "wave"),
        ],
    )
    def test_refused_with_the_line(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            parse_trace(text)

    def test_a_moment_of_a_device_is_a_line(self) -> None:
        facts = Facts(
            Instant(START.timestamp() + 90, 5.0, "boot"),
            metered=True,
            load1=0.5,
            inhibited=("a",),
            now=True,
            drift=0.25,
        )
        text = self.HEAD + "\n" + line_of(facts)
        (change,) = parse_trace(text).changes
        assert change.at == 90
        assert change.facts["metered"] is True
        assert change.facts["inhibited"] == ("a",)
        assert change.facts["temperature_c"] is None
        assert simulate(Settings(), parse_trace(text)).checks


class TestCommand:
    def run(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["simulate", *arguments])
        return done.exit_code, done.output

    def test_words(self) -> None:
        code, said = self.run("--policy", str(NIGHT), "--trace", str(PLANT))
        assert code == 0
        assert "Thu 2026-03-05 04:30:00  activating  1.1.0 in place of 1.0.0" in said
        assert "30 days: 189 checks, 30 min to 3 d apart; 3 downloads, 2 activations, 15.1 MB over the link" in said
        assert said.count("  check  ") == 189
        assert self.run("--policy", str(NIGHT), "--trace", str(PLANT), "--brief")[1].count("  check  ") == 0

    def test_json(self) -> None:
        code, said = self.run("--policy", str(NIGHT), "--trace", str(PLANT), "--json", "--brief")
        told = json.loads(said)
        assert code == 0
        assert (told["checks"], told["downloads"], told["activations"]) == (189, 3, 2)
        assert {entry["kind"] for entry in told["entries"]} >= {"activating", "blocked", "withdrawn", "reverting"}

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b"nonsense"])
    def test_no_trace(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "t.jsonl"
        if content is not None:
            path.write_bytes(content)
        code, said = self.run("--policy", str(NIGHT), "--trace", str(path))
        assert code == 2
        assert str(path) in said
