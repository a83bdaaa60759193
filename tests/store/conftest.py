"""These tests sync thousands of times, and ask what a killed process leaves, not a power cut: memory will do."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 64 * 2**20:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="modelagent-", dir=MEMORY) as name:
        yield Path(name)
