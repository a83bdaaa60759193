"""A month in the life of a device, in seconds; `make model-check` lives for years."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import device_soak
from device_simulator import release
from device_soak import MODEL, Life
from modelagent.core import desired, scene
from modelagent.core.state import Phase, State
from modelagent.manifest import Release


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of writes is asked about here, not the disk's patience: no test cuts the power of a real disk."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


def test_a_month_ends_on_the_newest_good_version_and_nothing_has_grown(tmp_path: Path) -> None:
    life = Life(tmp_path, seed=3)
    life.live(days=30)
    assert life.tally["releases"] >= 4
    assert life.tally["history: activated"] > 1
    assert life.tally["evenings without power"] > 10
    assert life.tally["states written"] > 100


def test_the_same_seed_lives_the_same_life(tmp_path: Path) -> None:
    lives = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        life = Life(tmp_path / name, seed=5)
        life.live(days=6)
        lives.append((life.tally, life.device.end_state(MODEL)))
    assert lives[0] == lives[1]


def test_a_blocked_version_that_comes_back_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(_state: State, _release: Release) -> str:
        return ""

    life = Life(tmp_path, seed=1)
    monkeypatch.setattr(desired, "block_reason", blind)
    monkeypatch.setattr(scene, "block_reason", blind)
    monkeypatch.setattr("modelagent.core.before.block_reason", blind)
    monkeypatch.setattr(device_soak, "KINDS", ("bad",))
    with pytest.raises(AssertionError, match="block"):
        life.live(days=20)


def test_slots_that_pile_up_are_noticed(tmp_path: Path) -> None:
    life = Life(tmp_path, seed=1)
    life.device.vacuum = False
    life.device.install(MODEL, *(release(MODEL, number) for number in range(1, 12)))
    with pytest.raises(AssertionError, match="slots pile up"):
        life.live(days=3)


def test_an_evening_looks_at_what_history_says(tmp_path: Path) -> None:
    life = Life(tmp_path, seed=4)
    life.live(days=8)
    state = life.device.journal[MODEL]
    assert state.phase is Phase.IDLE
    life._check_evening()
    with pytest.raises(AssertionError, match="history says"):
        life._check_history(replace(state, current=release(MODEL, 99).digest))
    assert device_soak.DAY == 86400.0
