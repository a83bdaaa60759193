"""What `rollback --offline` says is what became of the link, on a disk that fails and on one that is full."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crash_points import SPACE_TAKING, hooked
from modelagent.errors import DeviceError
from modelagent.inputs.config import Settings, load
from modelagent.updater import Updater, rollback_offline
from store_cases import Depot


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A device on 1.1.0 with 1.0.0 behind it, whose updater has run and is gone."""
    config = tmp_path / "modelagent.toml"
    config.write_text(
        f'[device]\nid = "box"\n[paths]\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
        f'inference_dir = "{tmp_path}/inference"\n[models.digits]\n'
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "run").mkdir()
    depot = Depot(tmp_path / "state")
    depot.install("1.1.0", fallback=depot.install("1.0.0"))
    found = load(config)
    Updater(found, models=("digits",)).driver.start()
    return found


def current(settings: Settings) -> str:
    return str((settings.paths.model_dir("digits") / "current").readlink())


def failing(error: int, where: Callable[[str, str], bool]) -> Callable[[str, str], None]:
    def hook(operation: str, path: str) -> None:
        if where(operation, path):
            raise OSError(error, os.strerror(error), path)

    return hook


def test_a_switch_that_fails_is_no_success(settings: Settings) -> None:
    before = current(settings)
    hook = failing(errno.EIO, lambda operation, path: operation == "swap" and path.endswith("/current"))
    with hooked(hook), pytest.raises(DeviceError, match=r"1\.1\.0 is still active: going back is not possible yet"):
        rollback_offline(settings, "digits")
    assert current(settings) == before
    rollback_offline(settings, "digits")
    assert current(settings) != before


def test_on_a_full_disk_it_goes_back_and_says_so(settings: Settings) -> None:
    """Called refused, it would be tried again, and lead from the good version to the bad one."""
    before, state = current(settings), str(settings.paths.state_dir)
    hook = failing(errno.ENOSPC, lambda operation, path: operation in SPACE_TAKING and path.startswith(state))
    with hooked(hook):
        said = rollback_offline(settings, "digits")
    assert current(settings) != before
    assert said.startswith("gone back to 1.0.0, but that could not be written down")
    assert "modelagent block 1.1.0" in said
