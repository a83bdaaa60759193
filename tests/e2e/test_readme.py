"""The README's six commands, run as they stand there, on the digits' files under the names that it uses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"

pytestmark = pytest.mark.process


def six_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- six commands -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


@pytest.fixture
def desk(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory with the files that the README names, and `modelagent` on the path."""
    shutil.copy(DIGITS / "models" / "digits-1.1.0.tflite", tmp_path / "reader.tflite")
    shutil.copy(DIGITS / "canary.npz", tmp_path / "canary.npz")
    with np.load(DIGITS / "canary.npz") as canary:
        np.savez(tmp_path / "frames.npz", input_0=canary["input_0"][:50])
    program = tmp_path / "bin" / "modelagent"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m modelagent "$@"\n')
    program.chmod(0o755)
    return tmp_path, {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def test_six_commands_make_a_running_box(desk: tuple[Path, dict[str, str]]) -> None:
    place, environment = desk
    commands = six_commands()
    assert len(commands) == 6
    running = None
    try:
        for command in commands[:4]:
            done = subprocess.run(
                ["sh", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert commands[4].endswith(" &")
        running = subprocess.Popen(
            ["sh", "-c", "exec " + commands[4].removesuffix(" &")],
            cwd=place,
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + 60
        version = None
        while version != "1.0.0" and time.monotonic() < end:
            done = subprocess.run(
                ["sh", "-c", f"{commands[5]} --json"],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            with_status = json.loads(done.stdout) if done.stdout else {"models": {}}
            version = ((with_status["models"].get("reader") or {}).get("running") or {}).get("version")
        assert version == "1.0.0", done.stdout + done.stderr
    finally:
        if running is not None:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(timeout=15)
