"""The real updater's process: gates explained, facts recorded and replayed, memory over a restart, dropped labels."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = str(Path(__file__).parents[2] / "src")
ENVIRONMENT = {"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
pytestmark = pytest.mark.process


@pytest.fixture
def config(tmp_path: Path) -> Path:
    paths = {key: tmp_path / key for key in ("state_dir", "inference_dir", "run_dir", "inference_run_dir")}
    for path in (*paths.values(), tmp_path / "drop", tmp_path / "inhibit"):
        path.mkdir()
    (tmp_path / "inhibit" / "calibration").touch()
    config = tmp_path / "modelagent.toml"
    config.write_text(
        "[paths]\n"
        + "".join(f"{key} = '{path}'\n" for key, path in paths.items())
        + f"[repository]\nroot = '{tmp_path}/root.json'\n"
        + f"[models.digits]\nlabels_dir = '{tmp_path}/drop'\n"
        + "[policy]\nmetered = true\ndownload_windows = ['03:00-03:01']\ncheck_cron = '30 2 * * *'\n"
        + f"inhibit_dir = '{tmp_path}/inhibit'\n[policy.download]\nunmetered = true\n"
    )
    return config


def call(config: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "modelagent", "--config", str(config), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def start(config: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "modelagent", "--config", str(config), "run", "updater"]
        with (config.parent / "log").open("ab") as log:
            process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        started.append(process)
        wait_for(lambda: b"is ready" in (config.parent / "log").read_bytes().rsplit(b"---", 1)[-1])
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_explained_recorded_remembered_and_labelled(config: Path, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    box = config.parent
    (box / "drop" / "today.json").write_text(json.dumps([{"id": "9f-1", "label": 7}, {"id": "9f-2", "right": False}]))
    process = start()

    said = call(config, "explain")
    assert "digits: Idle" in said
    for words in (
        "window      wait ",
        "[03:00-03:01 (UTC)]",
        "metered     wait ",
        ": the link is metered [yes]",
        "inhibit     wait ",
        ": the application asks not to be disturbed (calibration)",
        "cron        allow",
    ):
        assert words in said, said

    trace = box / "days.jsonl"
    trace.write_text(
        '{"trace": 1, "start": "2026-01-01T00:00:00Z", "days": 0.5}\n' + call(config, "explain", "--facts")
    )
    line = json.loads(trace.read_text().splitlines()[1])
    assert line["metered"] is True
    assert line["inhibited"] == ["calibration"]
    line["at"] = 0
    trace.write_text('{"trace": 1, "start": "2026-01-01T00:00:00Z", "days": 0.5}\n' + json.dumps(line) + "\n")
    assert json.loads(call(config, "simulate", "--policy", str(config), "--trace", str(trace), "--json"))["checks"] == 2

    spool = box / "state_dir" / "labels" / "digits"
    wait_for(lambda: spool.is_dir() and len(list(spool.iterdir())) == 1)
    (batch,) = spool.iterdir()
    assert json.loads(batch.read_text())["labels"] == [{"id": "9f-1", "label": 7}, {"id": "9f-2", "right": False}]
    assert not list((box / "drop").iterdir())

    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    kept = json.loads((box / "state_dir" / "policies" / "digits.json").read_text())["memory"]
    assert kept["acquire/metered/state"][0] == "closed"
    since = kept["acquire/metered"][1][0]
    with (box / "log").open("ab") as log:
        log.write(b"---")
    start()
    gates = json.loads(call(config, "explain", "--json"))["models"]["digits"]["gates"]["download"]
    assert next(gate["since"] for gate in gates if gate["gate"] == "metered") == since, "since before the restart"
