"""The benchmark runner: names, aims, order statistics, and figures that cannot be taken."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from benchmarks import run
from benchmarks.measure import Figure, Group, Measured, NotHereError, median, quantile

# Issue-stable names: later work may add to these, never rename them.
NAMES = {
    "loop.mnv2_int8.ratio": ">= 0.98",
    "loop.mnv2_float32.ratio": ">= 0.98",
    "loop.digits.added_us": "<= 35",
    "loop.smallest.added_us": "<= 35",
    "models.each_mb": "",
    "swap.peak_ratio": "<= 3",
    "swap.peak_model_ratio": "<= 3",
    "update.p99_ratio": "<= 1.5",
    "update.p99_ratio_float32": "",
    "update.p99_ratio_1cpu": "<= 1.1",
    "swap.gap_ratio": "<= 2",
    "swap.frames_lost": "<= 0",
    "memory.agent_pss_mb": "<= 130",
    "memory.updater_rss_mb": "<= 60",
    "start.first_result_s": "<= 1.0",
}


def test_names_and_aims_are_stable_and_unique() -> None:
    figures = [figure for group in run.groups() for figure in group.figures]
    assert len({figure.name for figure in figures}) == len(figures)
    assert NAMES.items() <= {figure.name: figure.aim for figure in figures}.items()


def test_only_takes_names_and_first_parts() -> None:
    picked = [figure.name for _, figures in run.chosen("swap, memory.updater_rss_mb") for figure in figures]
    assert picked == [
        "memory.updater_rss_mb",
        "swap.peak_ratio",
        "swap.peak_model_ratio",
        "swap.gap_ratio",
        "swap.frames_lost",
        "swap.growth_mb",
    ]
    assert len(run.chosen("")) == len(list(run.groups()))
    with pytest.raises(ValueError, match=r"no figure is called swa; there are: "):
        run.chosen("swa")


@pytest.mark.parametrize(
    ("aim", "value", "met"),
    [("<= 50", 50.0, True), ("<= 50", 50.1, False), (">= 0.97", 0.97, True), (">= 0.97", 0.9, False), ("", 1.0, None)],
)
def test_aims(aim: str, value: float, met: bool | None) -> None:
    assert Figure("x", "us", aim).met(value) is met


def test_quantile_is_an_observed_value() -> None:
    values = [float(value) for value in range(1000, 0, -1)]
    assert quantile(values, 0.999) == 999.0
    assert quantile(values, 1.0) == 1000.0
    assert quantile(values, 0.5) == 500.0
    assert quantile([3.0], 0.999) == 3.0
    assert median([1.0, 9.0, 2.0]) == 2.0
    assert median([1.0, 2.0, 3.0, 9.0]) == 2.5


def test_a_figure_that_cannot_be_taken_is_listed_by_name(tmp_path: Path) -> None:
    def absent(_folder: Path) -> Mapping[str, Measured]:
        raise NotHereError("tensorflow is missing")

    figure = Figure("some.ratio", "ratio", ">= 1")
    (row,), _, ran = run.measure(Group((figure,), absent), [figure], tmp_path)
    assert ran
    assert row["value"] is None
    assert row["met"] is None
    assert row["how"].startswith("not run: tensorflow is missing; foreign load ")
    assert "not run" in run.show(row)


def test_a_figure_that_fails_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_folder: Path) -> Mapping[str, Measured]:
        raise RuntimeError("no such device")

    figure = Figure("some.ratio", "ratio", ">= 1")
    (row,), _, ran = run.measure(Group((figure,), broken), [figure], tmp_path)
    assert not ran
    assert row["how"].startswith("failed: RuntimeError: no such device")
    assert "no such device" in capsys.readouterr().err


def test_a_measured_figure_has_every_key(tmp_path: Path) -> None:
    figure = Figure("some.ratio", "ratio", ">= 1")
    group = Group((figure,), lambda _folder: {"some.ratio": Measured(2.0, "median of 5")})
    (row,), foreign, ran = run.measure(group, [figure], tmp_path)
    assert ran
    assert foreign >= 0.0
    assert list(row) == ["name", "value", "unit", "aim", "met", "how"]
    assert (row["value"], row["met"]) == (2.0, True)
