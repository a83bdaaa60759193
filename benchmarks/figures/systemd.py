"""The product as a package under systemd: how soon it works, how soon it stops, what it costs when nothing happens.

This file knows the figures of an installation. The machine is a Debian 12 that boots (tests/systemd_machine.py) with
the package of this source tree in it; what is measured is what systemctl's user sees. Idle means: a model is loaded,
its source gives no frame, the next check is hours away.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.measure import Figure, Group, Measured, NotHereError, median

_ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.append(str(_ROOT / "tests"))

from systemd_device import FPS, INFERENCE, UPDATER, Device  # noqa: E402 - the line above makes them importable
from systemd_machine import Machine, cache, debian, missing, package  # noqa: E402 - the same

_TENSORFLOW_MIB: Final = 1977.0  # installed, with what it needs: see install.size_ratio in docs
_STARTS: Final = 5
_IDLE_S: Final = 60.0


@contextmanager
def _device(folder: Path) -> Iterator[Device]:
    """A booted device that runs a confirmed model."""
    if reason := missing():
        raise NotHereError(f"no machine can be booted: {reason}; run as root on Debian with systemd-container")
    shutil.rmtree(folder / "systemd", ignore_errors=True)
    with Machine(debian(), folder / "systemd") as machine:
        device = Device(machine, machine.folder)
        device.publish("1.0.0")
        device.provision()
        machine.boot()
        device.serve()
        try:
            device.install(package("1"))
            device.wait_for("1.0.0")
            yield device
        finally:
            device.close()


def installed(folder: Path) -> dict[str, Measured]:
    """All figures of one booted machine."""
    with _device(folder) as device:
        _change(device, "[models.digits.results]", "[models.digits.results]\njsonl = true")
        device.ctl("restart", INFERENCE)
        device.wait_for("1.0.0")
        starts, stops = zip(*(_start_and_stop(device) for _ in range(_STARTS)), strict=True)
        device.ctl("start", INFERENCE)
        device.wait_for("1.0.0")
        size = int(device.machine.run("du", "-s", "-k", "/opt/modelagent").split()[0]) / 1024.0
        return {
            "systemd.first_prediction_s": Measured(
                median(starts), f"median of {_STARTS} `systemctl start`, slowest {max(starts):.2f} s, {FPS} fps"
            ),
            "systemd.stop_s": Measured(
                median(stops), f"median of {_STARTS} `systemctl stop` of both units, slowest {max(stops):.2f} s"
            ),
            "install.size_ratio": Measured(
                size / _TENSORFLOW_MIB, f"{size:.0f} MiB below /opt/modelagent; tensorflow {_TENSORFLOW_MIB:.0f} MiB"
            ),
            **_idle(device),
        }


def image(folder: Path) -> dict[str, Measured]:
    """`image.mb`: the container image, its Dockerfile replayed without an engine."""
    if reason := missing():
        raise NotHereError(f"the Dockerfile cannot be replayed: {reason}; run as root on Debian")
    del folder  # the tree that it starts from is kept with those of the tests
    words = [sys.executable, str(_ROOT / "deploy/replay.py"), "--json", "--base", str(cache() / "slim")]
    facts = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return {
        "image.mb": Measured(facts["mb"], f"all files of the last stage, runs as {facts['user']}, doctor is content")
    }


def _change(device: Device, old: str, new: str) -> None:
    site = device.machine.path("/etc/modelagent/conf.d/site.toml")
    text = site.read_text(encoding="utf-8")
    site.write_text(text.replace(old, new) if old in text else f"{text}{new}\n", encoding="utf-8")


def _start_and_stop(device: Device) -> tuple[float, float]:
    """Seconds from `systemctl start` to the first result, and those that `systemctl stop` of both takes."""
    rows = device.machine.path("/var/lib/modelagent-inference/digits/results.jsonl")
    begun = time.monotonic()
    device.ctl("stop", INFERENCE, UPDATER)
    stopped = time.monotonic() - begun
    rows.unlink(missing_ok=True)
    begun_wall = time.time()
    device.ctl("start", INFERENCE)
    while not rows.exists() or not rows.stat().st_size:
        if time.time() - begun_wall > 30.0:
            raise TimeoutError("no result within 30 s of `systemctl start`")
        time.sleep(0.01)
    with rows.open(encoding="utf-8") as file:
        return float(json.loads(file.readline())["wall"]) - begun_wall, stopped


def _idle(device: Device) -> dict[str, Measured]:
    _change(device, 'kind = "replay"', 'kind = "none"')
    _change(device, 'check_interval = "2s"', 'check_interval = "6h"')
    device.ctl("restart", INFERENCE)
    device.machine.wait("a model runs", lambda: device.running() == "1.0.0")
    time.sleep(15.0)  # the first check, and what follows a start
    before = {pid: _spent(pid) for pid in _processes(device)}
    begun = time.monotonic()
    time.sleep(_IDLE_S)
    seconds = time.monotonic() - begun
    after = {pid: _spent(pid) for pid in before}
    cpu = sum(after[pid][0] - before[pid][0] for pid in before) / seconds * 3600.0
    wakes = sum(after[pid][1] - before[pid][1] for pid in before) / seconds
    each = ", ".join(
        f"{name} {(after[pid][0] - before[pid][0]) / seconds * 3600.0:.1f}"
        for pid, name in _processes(device).items()
        if pid in before
    )
    how = f"{len(before)} processes over {seconds:.0f} s, a model loaded, no frames: {each} s/h"
    memory = {name: _memory(pid) for pid, name in _processes(device).items()}
    return {
        "agent.idle_cpu_s_per_h": Measured(cpu, how),
        "agent.wakeups_per_s": Measured(wakes, f"voluntary context switches of all threads; {how}"),
        **{
            f"systemd.{name}_pss_mb": Measured(pss, f"shared pages by share; RSS {rss:.1f} MB; idle")
            for name, (rss, pss) in memory.items()
        },
    }


def _processes(device: Device) -> dict[int, str]:
    """Number -> name of every process of the agent."""
    found = dict.fromkeys(device.machine.processes(INFERENCE), "worker")
    found |= dict.fromkeys(device.machine.processes(UPDATER), "canary")
    return found | {device.machine.pid(INFERENCE): "inference", device.machine.pid(UPDATER): "updater"}


def _spent(pid: int) -> tuple[float, int]:
    """Processor seconds, and how often a thread of it woke up by itself."""
    nanoseconds = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((task / "schedstat").read_text("ascii").split()[0])
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text("ascii"), re.MULTILINE)
        switches += int(found.group(1)) if found else 0
    return nanoseconds / 1e9, switches


def _memory(pid: int) -> tuple[float, float]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    facts: Mapping[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return int(facts["Rss"]) / 1024.0, int(facts["Pss"]) / 1024.0


GROUPS: Final = (
    Group(
        (
            Figure("systemd.first_prediction_s", "s", "<= 1.5"),
            Figure("systemd.stop_s", "s", "<= 2"),
            Figure("install.size_ratio", "ratio", "<= 0.075"),
            Figure("agent.idle_cpu_s_per_h", "s/h", "<= 4"),
            Figure("agent.wakeups_per_s", "1/s", ""),
            Figure("systemd.inference_pss_mb", "MB", ""),
            Figure("systemd.worker_pss_mb", "MB", ""),
            Figure("systemd.updater_pss_mb", "MB", ""),
        ),
        installed,
    ),
    Group((Figure("image.mb", "MB", "<= 250"),), image),
)
