"""`modelagent run` with the real processes, on a device without a release: up, answering, and gone without a trace."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelagent import cli
from modelagent.publish.repository import Repository

SOURCE = str(Path(__file__).parents[2] / "src")
ENVIRONMENT = {"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
pytestmark = pytest.mark.process


@pytest.fixture
def box(tmp_path: Path) -> Path:
    Repository.init(tmp_path / "repo", tmp_path / "keys", ["digits"])
    root = str(tmp_path / "keys" / "root.json")
    done = call("setup", "--prefix", str(tmp_path), "--repo", str(tmp_path / "repo"), "--root", root, "-m", "digits")
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelagent", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(box: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call("--config", str(box / "etc" / "modelagent.toml"), *arguments)


@pytest.fixture
def agent(box: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "modelagent", "--config", str(box / "etc" / "modelagent.toml"), "run"],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for((box / "run" / "control.sock").exists)
        wait_for((box / "inference-run" / "digits" / "health.json").exists)
        yield process
    finally:
        process.kill()  # what it started dies with it, which is tested below
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child)} | descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_both_processes_answer_and_end_in_order(box: Path, agent: subprocess.Popen[bytes]) -> None:
    status = ask(box, "status", "--json")
    assert status.returncode == cli.FAILED, status.stderr  # healthy updater, but nothing runs yet
    document = json.loads(status.stdout)
    assert document["updater"]["answers"]
    assert document["models"]["digits"]["inference"]["alive"]
    assert "no model yet" in document["models"]["digits"]["inference"]["idle"]
    assert document["models"]["digits"]["phase"] == "Idle"
    assert json.loads(ask(box, "explain", "--json").stdout)["models"]["digits"]["phase"] == "Idle"
    assert ask(box, "hold", "--reason", "audit").returncode == cli.OK
    assert "held" in ask(box, "status").stdout
    refused = ask(box, "rollback")
    assert refused.returncode == cli.REFUSED, refused.stdout + refused.stderr
    children = descendants(agent.pid)
    assert len(children) >= 2
    begun = time.monotonic()
    agent.terminate()
    assert agent.wait(10) == 0
    assert time.monotonic() - begun < 5.0
    assert all(gone(pid) for pid in children)
    held = json.loads(ask(box, "status", "--json").stdout)
    assert not held["updater"]["answers"]
    assert held["models"]["digits"]["hold"] == {"by": "cli", "reason": "audit"}
    assert "held" in ask(box, "history", "--json").stdout
    offline = ask(box, "rollback", "--offline", "--json")
    assert offline.returncode == cli.REFUSED
    assert json.loads(offline.stdout)["status"] == "refused"


def test_sigkill_leaves_no_orphan(agent: subprocess.Popen[bytes]) -> None:
    children = descendants(agent.pid)
    assert len(children) >= 2
    agent.kill()
    agent.wait()
    wait_for(lambda: all(gone(pid) for pid in children), 5.0)


def test_offline_rollback_is_refused_while_the_updater_runs(box: Path, agent: subprocess.Popen[bytes]) -> None:
    done = ask(box, "rollback", "--offline")
    assert done.returncode == cli.FAILED
    assert "another updater is running" in done.stderr
    assert agent.poll() is None


def test_the_updater_has_nothing_heavy_in_it(box: Path, agent: subprocess.Popen[bytes]) -> None:
    (updater,) = [
        pid for pid in descendants(agent.pid) if b"updater" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    mapped = Path(f"/proc/{updater}/maps").read_text()
    assert not [name for name in ("numpy", "litert", "tensorflow") if f"/{name}" in mapped]


def test_a_bad_edit_after_a_good_start_keeps_the_last_good_settings(box: Path) -> None:
    config, said = box / "etc" / "modelagent.toml", box / "said"
    good = config.read_text()
    for role, directory in (("inference", "inference"), ("updater", "state")):
        arguments = [sys.executable, "-m", "modelagent", "--config", str(config), "run", role]
        marker = box / directory / "settings.json"
        for text, done in (
            (good, marker.exists),
            (good + "\nnonsense = 1\n", lambda: "going on with the last good ones" in said.read_text()),
        ):
            config.write_text(text)
            with said.open("wb") as output:
                process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=output)
                try:
                    wait_for(done)
                    assert process.poll() is None
                finally:
                    os.kill(process.pid, signal.SIGTERM)
                    process.wait(20)
        assert "nonsense" in said.read_text()
        config.write_text(good)

    # Both as children of one process, as in a container.
    config.write_text(good + "\nnonsense = 1\n")
    (box / "run" / "control.sock").unlink(missing_ok=True)
    with said.open("wb") as output:
        process = subprocess.Popen(arguments[:-1], env=ENVIRONMENT, stderr=output)
        try:
            wait_for((box / "run" / "control.sock").exists)
            wait_for(lambda: said.read_text().count("going on with the last good ones") == 2)
            wait_for(lambda: "nonsense" in json.loads(ask(box, "status", "--json").stdout).get("settings_problem", ""))
            config.write_text(good)
            wait_for(lambda: json.loads(ask(box, "status", "--json").stdout).get("settings_problem") == "")
        finally:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(20)


def test_an_updater_that_stands_still_is_ended_by_the_kernel(box: Path) -> None:
    """Stopped for longer than its limit (cut to six seconds here), it dies as soon as it could go on."""
    shortened = "from modelagent import updater, cli; updater._STILL_S = 6; cli.main()"
    arguments = [sys.executable, "-c", shortened, "--config", str(box / "etc" / "modelagent.toml"), "run", "updater"]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        wait_for((box / "run" / "control.sock").exists)
        assert ask(box, "status", "--json").stdout
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: int(status_of(process.pid)["ShdPnd"], 16) & 1 << signal.SIGALRM - 1 != 0)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(20) == -signal.SIGALRM
    finally:
        process.kill()
        process.wait()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_what_comes_from_outside_cannot_forge_a_line_of_the_log(box: Path) -> None:
    """The name of a file in conf.d is anybody's who may write there; the log shows it, on one line."""
    config, said = box / "etc" / "modelagent.toml", box / "said"
    with said.open("wb") as output:
        arguments = [sys.executable, "-m", "modelagent", "--config", str(config), "run", "updater"]
        process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=output)
        try:
            wait_for((box / "run" / "control.sock").exists)
            (box / "etc" / "conf.d").mkdir(exist_ok=True)
            (box / "etc" / "conf.d" / "a\nforged line\x1b[2J.toml").write_text("[nonsense]\n")
            wait_for(lambda: "forged line" in said.read_text())
        finally:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(20)
    lines = said.read_text().splitlines()
    assert any("a\\nforged line\\x1b[2J.toml" in line for line in lines)
    assert not any(line.startswith("forged") for line in lines)
    assert all(" updater: " in line for line in lines)


def test_models_that_come_and_go_in_the_settings_end_nothing(box: Path, agent: subprocess.Popen[bytes]) -> None:
    def problem() -> object:
        return json.loads(ask(box, "status", "--json").stdout).get("settings_problem")

    processes = descendants(agent.pid)
    file = box / "etc" / "modelagent.toml"
    good = file.read_text()
    file.write_text("\ufeff" + good + "[models.gauge]\n")  # with the mark that some editors put first
    wait_for(lambda: problem() == "takes effect at the next start: models.gauge")
    file.write_text(good.replace("[models.digits", "[models.gauge"))
    wait_for(lambda: problem() == "takes effect at the next start: models.digits, models.gauge")
    file.write_text(good)
    wait_for(lambda: problem() == "")
    assert processes <= descendants(agent.pid)
