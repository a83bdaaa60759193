"""`rollback --offline` by root while the run directory is gone: on as the state's owner, with a place for the lock."""

import os
from pathlib import Path

import pytest

from modelagent.cli.rollback import become_owner

NOBODY = 65534


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What root would do, in order; nothing of it is done."""
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("chown", "setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda *args, name=name: made.append((name, *args)))
    return made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "state", NOBODY, NOBODY)
    return tmp_path / "state"


def test_the_run_directory_is_made_for_the_owner_before_root_becomes_it(
    state: Path, tmp_path: Path, calls: list[tuple[object, ...]]
) -> None:
    owner, run = state.stat(), tmp_path / "run"
    become_owner(state, run)
    assert run.is_dir()
    assert calls == [
        ("chown", run, owner.st_uid, owner.st_gid),
        ("setgroups", []),
        ("setgid", owner.st_gid),
        ("setuid", owner.st_uid),
    ]


def test_one_that_is_there_is_left_alone(state: Path, tmp_path: Path, calls: list[tuple[object, ...]]) -> None:
    become_owner(state, tmp_path)
    assert [name for name, *_ in calls] == ["setgroups", "setgid", "setuid"]
