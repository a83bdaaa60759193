"""The product under a real systemd: what the issue of installation promises, seen from outside the machine.

One machine is booted once; the tests follow each other on it, as months do on a device, and each leaves it at work.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.cli.install import UNITS
from systemd_device import FPS, INFERENCE, UPDATER, Device
from systemd_machine import ROOT, Machine, debian, missing, package

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(bool(missing()), reason=f"no machine can be booted here: {missing()}"),
]
METRICS = "modelagent-metrics"
SLOW = 300_000  # bytes of padding that take ten seconds at 256 kbit/s
STOP_S = 10.0  # TimeoutStopSec of inference


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    first = package("1")
    with Machine(debian(), folder / "machine") as machine:
        device = Device(machine, folder)
        device.publish("1.0.0", of="1.0.0")
        device.provision()
        machine.boot()
        device.serve()
        try:
            device.install(first)
            device.wait_for("1.0.0")
            yield device
        finally:
            print(machine.journal("-n", "80", "-u", INFERENCE, "-u", UPDATER, "-u", "modelagent-sweep"))
            device.close()


def test_a_fresh_installation_runs_its_first_model(device: Device) -> None:
    machine = device.machine
    assert machine.property(INFERENCE, "UnitFileState") == "enabled"
    assert "1.0.0 runs" in machine.property(INFERENCE, "StatusText")
    assert "1.0.0" in machine.property(UPDATER, "StatusText")
    status = json.loads(device.cli("status", "--json"))
    assert status["models"]["digits"]["running"]["version"] == "1.0.0"


def test_doctor_finds_nothing_wrong(device: Device) -> None:
    checks = json.loads(device.cli("doctor", "--json"))["checks"]
    assert not [check for check in checks if check["status"] == "fail"]


def test_each_directory_has_one_owner_and_one_group(device: Device) -> None:
    wanted = {
        "/var/lib/modelagent": "modelagent",
        "/run/modelagent": "modelagent",
        "/var/lib/modelagent-inference": "modelagent-inference",
        "/run/modelagent-inference": "modelagent-inference",
    }
    said = device.machine.run("stat", "-c", "%n %U %G %a", *wanted).splitlines()
    assert said == [f"{path} {user} modelagent 750" for path, user in wanted.items()]


def test_systemd_finds_nothing_to_complain_of(device: Device) -> None:
    units = [f"{unit}.service" for unit in (INFERENCE, UPDATER, METRICS, "modelagent-sweep")]
    assert device.machine.run("sh", "-c", f"systemd-analyze verify {' '.join(units)} 2>&1") == ""


def test_no_unit_is_more_exposed_than_promised(device: Device) -> None:
    for unit, most in ((INFERENCE, 1.5), (UPDATER, 2.0), (METRICS, 2.0)):
        said = device.machine.run("systemd-analyze", "security", "--no-pager", f"{unit}.service")
        level = float(said.rpartition("exposure level for")[2].split(":")[1].split()[0])
        print(f"{unit}: {level}")
        assert level <= most


def test_metrics_are_served_to_the_device_itself_once_somebody_wants_them(device: Device) -> None:
    machine = device.machine
    assert machine.property(METRICS, "ActiveState") == "inactive", "it is optional"
    device.ctl("enable", "--now", METRICS)
    ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    page = machine.run("python3", "-c", ask, "http://127.0.0.1:9470/metrics")
    assert f'version="{device.newest}"' in page
    machine.run("python3", "-c", ask, "http://127.0.0.1:9470/readyz")
    assert "listening on 127.0.0.1:9470" in machine.property(METRICS, "StatusText")
    before = machine.pid(METRICS)
    os.kill(before, signal.SIGKILL)
    machine.wait("another process", lambda: machine.pid(METRICS) not in {0, before})
    machine.wait("ready again", lambda: device.active(METRICS))
    assert f'version="{device.newest}"' in machine.run("python3", "-c", ask, "http://127.0.0.1:9470/metrics")
    device.ctl("disable", "--now", METRICS)
    assert machine.processes(METRICS) == {}
    device.wait_for(device.newest)


def test_an_update_comes_over_the_link(device: Device) -> None:
    lost = device.count("dropped")  # before the first model came, frames had nothing to go to
    device.publish("1.1.0")
    device.wait_for("1.1.0")
    assert device.count("dropped") == lost
    assert device.count("faulted") == 0


def test_a_worker_may_come_back_to_normal_priority(device: Device) -> None:
    worker = int(device.health()["running"]["worker_pid"])
    stat = device.machine.path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[16]) == 0, "LimitNICE lets a worker that loaded at 19 serve at 0"


@pytest.mark.parametrize("whom", ["worker", INFERENCE, UPDATER])
def test_kill_9_is_outlived(device: Device, whom: str) -> None:
    machine = device.machine
    if whom == "worker":
        before = int(device.health()["running"]["worker_pid"])
        os.kill(_outside(machine, before), signal.SIGKILL)
        machine.wait(
            "another worker", lambda: (device.health().get("running") or {}).get("worker_pid", before) != before
        )
        assert device.count("faulted") == 0, "the frame that it held was run again"
    else:
        before = machine.pid(whom)
        os.kill(before, signal.SIGKILL)
        machine.wait("another process", lambda: machine.pid(whom) not in {0, before})
    device.wait_for(device.newest)


def _outside(machine: Machine, inside: int) -> int:
    """The number on this side of a process of inference."""
    return next(pid for pid, number in machine.processes(INFERENCE).items() if number == inside)


def test_a_stopped_worker_is_replaced(device: Device) -> None:
    before = int(device.health()["running"]["worker_pid"])
    os.kill(_outside(device.machine, before), signal.SIGSTOP)
    seconds = device.machine.wait(
        "another worker", lambda: (device.health().get("running") or {}).get("worker_pid", before) != before
    )
    print(f"a stopped worker was replaced after {seconds:.1f} s")
    device.wait_for(device.newest)


@pytest.mark.parametrize("unit", [UPDATER, INFERENCE])
def test_the_watchdog_restarts_what_was_stopped(device: Device, unit: str) -> None:
    machine = device.machine
    pid = machine.pid(unit)
    limit = float(machine.property(unit, "WatchdogUSec").removesuffix("s").replace("1min", "60"))
    os.kill(pid, signal.SIGSTOP)
    if unit == UPDATER:
        assert device.answers(), "inference does not notice"
    seconds = machine.wait("another process", lambda: machine.pid(unit) not in {0, pid}, limit + 20.0)
    assert seconds > limit / 2
    assert f"{unit}.service: Watchdog timeout" in machine.journal("-n", "200", "-u", unit)
    device.wait_for(device.newest)


def test_stopping_one_leaves_the_others_files(device: Device) -> None:
    machine = device.machine
    device.ctl("stop", UPDATER)
    assert device.active(INFERENCE)
    assert device.answers()
    assert not machine.path("/run/modelagent").exists()
    assert machine.path("/run/modelagent-inference/digits/health.json").exists()
    assert device.cli("status", check=False), "status needs no updater"
    device.ctl("start", UPDATER)
    device.wait_for(device.newest)


def test_stop_is_quick_and_leaves_no_process(device: Device) -> None:
    machine = device.machine
    begun = time.monotonic()
    device.ctl("stop", INFERENCE)
    seconds = time.monotonic() - begun
    print(f"stopped within {seconds:.1f} s")
    assert seconds < STOP_S
    machine.wait("the updater has stopped too", lambda: machine.property(UPDATER, "ActiveState") == "inactive", 20.0)
    for unit in (INFERENCE, UPDATER):
        assert machine.processes(unit) == {}
        assert machine.property(unit, "Result") == "success", "ended by itself, not by SIGKILL"
    assert machine.path("/var/lib/modelagent-inference/digits/starts.json").exists()
    device.ctl("start", INFERENCE)
    device.wait_for(device.newest)


def test_restart_of_inference_leaves_both_active(device: Device) -> None:
    updater = device.machine.pid(UPDATER)
    device.ctl("restart", INFERENCE)
    device.wait_for(device.newest)
    assert device.machine.pid(UPDATER) == updater, "it goes on, whatever it is at"


def test_an_inference_that_crashes_again_and_again_takes_the_updater_no_time(device: Device) -> None:
    machine = device.machine
    updater = machine.pid(UPDATER)
    drop_in = machine.path("/run/systemd/system/modelagent.service.d/crash.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit 1'\n")
    device.ctl("daemon-reload")
    os.kill(machine.pid(INFERENCE), signal.SIGKILL)
    machine.wait("five starts again", lambda: int(machine.property(INFERENCE, "NRestarts")) >= 5, 60.0)
    assert machine.pid(UPDATER) == updater
    drop_in.unlink()
    device.ctl("daemon-reload")
    device.wait_for(device.newest)
    assert machine.pid(UPDATER) == updater


def test_restart_during_a_download(device: Device) -> None:
    machine = device.machine
    machine.slow_link("256kbit")
    device.publish("1.2.0", padding=SLOW)
    machine.wait("a download", device.downloading("1.2.0"))
    updater = machine.pid(UPDATER)
    device.ctl("restart", INFERENCE)
    assert machine.pid(UPDATER) == updater, "and the download with it"
    machine.slow_link("")
    device.wait_for("1.2.0")


def test_kill_9_of_inference_during_a_download(device: Device) -> None:
    machine = device.machine
    machine.slow_link("256kbit")
    device.publish("1.3.0", padding=SLOW)
    machine.wait("a download", device.downloading("1.3.0"))
    updater = machine.pid(UPDATER)
    os.kill(machine.pid(INFERENCE), signal.SIGKILL)
    machine.wait("inference again", lambda: device.active() and device.answers())
    assert machine.pid(UPDATER) == updater
    machine.slow_link("")
    device.wait_for("1.3.0")


def test_a_link_that_goes_down_in_a_download_and_comes_back(device: Device) -> None:
    machine, before = device.machine, device.running()
    machine.slow_link("256kbit")
    device.publish("1.4.0", padding=SLOW)
    machine.wait("a download", device.downloading("1.4.0"))
    machine.link(up=False)
    time.sleep(6)  # longer than read_timeout: the transfer has been given up
    assert device.running() == before
    assert device.answers()
    machine.slow_link("")
    machine.link(up=True)
    device.wait_for("1.4.0")


def test_an_update_over_256_kbit_harms_no_frame(device: Device) -> None:
    machine = device.machine
    machine.slow_link("256kbit")
    device.publish("1.5.0", padding=SLOW)
    machine.wait("a download", device.downloading("1.5.0"))
    epoch, done, lost = device.health()["epoch"], device.count("done"), device.count("dropped")
    begun = time.monotonic()
    device.wait_for("1.5.0", 90.0)
    seconds = time.monotonic() - begun
    machine.slow_link("")
    assert device.health()["epoch"] == epoch
    assert device.count("dropped") == lost
    assert device.count("faulted") == 0
    assert device.count("done") - done > 0.9 * FPS * (seconds - 2)


def test_an_upgrade_of_the_package_during_an_update(device: Device) -> None:
    machine = device.machine
    settings = machine.path("/etc/modelagent/modelagent.toml")
    settings.write_text(settings.read_text() + "# an edit of the operator\n")
    machine.slow_link("256kbit")
    device.publish("1.6.0", padding=SLOW)
    machine.wait("a download", device.downloading("1.6.0"))
    epoch, loop, lost = device.health()["epoch"], machine.pid(INFERENCE), device.count("dropped")
    said = device.install(package("1", "0.1.1"))
    machine.slow_link("")
    device.wait_for("1.6.0")
    assert "systemctl restart modelagent" in said
    assert machine.pid(INFERENCE) == loop, "an upgrade keeps inference running"
    assert device.health()["epoch"] == epoch
    assert device.count("dropped") == lost
    assert "# an edit of the operator" in settings.read_text()
    trees = machine.path("/opt/modelagent")
    assert {path.name for path in trees.iterdir()} == {"0.1.0-1", "0.1.1-1", "current"}
    assert "0.1.1" in machine.run("modelagent", "--version")
    assert "/opt/modelagent/0.1.0-1/" in _command(loop), "it and its workers are of the version before"

    worker = int(device.health()["running"]["worker_pid"])
    os.kill(_outside(machine, worker), signal.SIGKILL)  # a new worker comes from the old tree
    machine.wait("a worker", lambda: (device.health().get("running") or {}).get("worker_pid", worker) != worker)

    device.ctl("restart", INFERENCE)
    device.wait_for("1.6.0")
    assert "/opt/modelagent/0.1.1-1/" in _command(machine.pid(INFERENCE))
    machine.wait("the old tree goes", lambda: not (trees / "0.1.0-1").exists())


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_memory_max_ends_the_eater_and_spares_the_service(device: Device) -> None:
    machine, version = device.machine, device.running()
    limits = {
        "v1": machine.path("/sys/fs/cgroup/memory/system.slice/modelagent-updater.service"),
        "v2": machine.path("/sys/fs/cgroup/system.slice/modelagent-updater.service"),
    }
    group = next(path for path in limits.values() if path.exists())
    limit = next(path for path in (group / "memory.limit_in_bytes", group / "memory.max") if path.exists())
    assert int(limit.read_text()) == 2**30
    device.ctl("set-property", "--runtime", UPDATER, "MemoryMax=160M", "MemoryHigh=infinity")
    updater, loop = machine.pid(UPDATER), machine.pid(INFERENCE)
    inside = f"/sys/fs/cgroup{'/memory' if 'memory/' in str(group) else ''}/system.slice/{UPDATER}.service/cgroup.procs"
    eat = (
        "echo 1000 >/proc/self/oom_score_adj && "
        f"echo $$ >{inside} && exec python3 -c 'x = bytearray(400 << 20); print(len(x))'"
    )
    assert machine.run("sh", "-c", eat, check=False) == "", "the eater was ended"
    assert machine.pid(UPDATER) == updater
    assert machine.pid(INFERENCE) == loop
    device.ctl("set-property", "--runtime", UPDATER, "MemoryMax=1G", "MemoryHigh=768M")
    device.wait_for(version)


def test_a_reload_takes_up_an_edit_without_a_restart(device: Device) -> None:
    machine, version = device.machine, device.running()
    site = machine.path("/etc/modelagent/conf.d/site.toml")
    site.write_text(site.read_text().replace(f"fps = {FPS}", f"fps = {2 * FPS}"))
    loop = machine.pid(INFERENCE)
    device.ctl("reload", INFERENCE)
    machine.wait("the new rate", lambda: (device.health().get("source") or {}).get("rate_fps") == 2 * FPS)
    site.write_text(site.read_text().replace(f"fps = {2 * FPS}", f"fps = {FPS}"))
    device.ctl("reload", INFERENCE, UPDATER)
    machine.wait("the old rate", lambda: (device.health().get("source") or {}).get("rate_fps") == FPS)
    device.wait_for(version)
    assert machine.pid(INFERENCE) == loop


def test_the_journal_can_be_asked_by_field(device: Device) -> None:
    said = device.machine.run("journalctl", "-q", "-o", "json", "MODEL=digits", "KIND=confirmed")
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["VERSION"] for line in lines} >= {"1.0.0", device.running()}
    assert len({line["MESSAGE_ID"] for line in lines}) == 1
    assert all(line["PHASE"] and line["_SYSTEMD_UNIT"] == f"{UPDATER}.service" for line in lines)


def test_a_missing_drop_in_is_named_and_then_found(device: Device) -> None:
    machine, version = device.machine, device.running()
    more = machine.path("/etc/modelagent/conf.d/network.toml")
    more.write_text("[models.digits.results]\nmqtt = true\n")
    try:
        assert "inference-network.conf" in device.cli("config", "check")
        assert "inference-network.conf" in device.cli("doctor", check=False)
        folder = "/etc/systemd/system/modelagent.service.d"
        machine.run("mkdir", "-p", folder)
        machine.run("cp", "/usr/share/doc/modelagent/examples/drop-ins/inference-network.conf", folder)
        device.ctl("daemon-reload")
        assert "inference-network.conf" not in device.cli("config", "check")
        machine.run("rm", "-r", folder)
    finally:
        more.unlink()
        device.ctl("daemon-reload")
    device.ctl("reload", INFERENCE)
    device.wait_for(version)


@pytest.mark.parametrize("when", ["download", "probation"])
def test_a_power_cut_during_an_update(device: Device, when: str) -> None:
    machine = device.machine
    version = {"download": "1.7.0", "probation": "1.8.0"}[when]
    if when == "download":
        machine.slow_link("256kbit")
    device.publish(version, padding=SLOW)
    if when == "download":
        machine.wait("a download", device.downloading(version))
    else:
        machine.wait("an activation", lambda: device.running() == version, 60.0, 0.02)
    machine.pull_the_plug()
    machine.boot()
    device.wait_for(version)
    assert machine.property("modelagent-sweep", "Result") == "success"


@pytest.mark.parametrize("wrong", ["@1970-01-01 00:00:10", "@2040-01-01 00:00:00"])
def test_a_wrong_clock_stops_nothing_that_worked_and_a_right_one_heals(device: Device, wrong: str) -> None:
    machine = device.machine
    known = device.running()
    machine.fake_clock(wrong)
    device.ctl("restart", INFERENCE)
    machine.wait("both units are active", device.active)
    machine.wait("it runs", lambda: device.running() == known and device.answers())
    version = f"{known}.{wrong[1:5]}"
    device.publish(version, padding=100)
    time.sleep(8)  # four checks
    assert device.answers()
    assert device.active()
    machine.fake_clock("")
    device.ctl("restart", INFERENCE)
    device.wait_for(version)


def test_removal_keeps_the_data_and_purge_takes_it(device: Device) -> None:
    machine = device.machine
    machine.run("dpkg", "-r", "modelagent")
    assert machine.processes(INFERENCE) == machine.processes(UPDATER) == {}
    assert not machine.path("/opt/modelagent").exists()
    assert machine.path("/var/lib/modelagent/models/digits/current").is_symlink()
    assert machine.path("/etc/modelagent/modelagent.toml").exists()
    machine.run("dpkg", "-P", "modelagent")
    for path in ("/var/lib/modelagent", "/var/lib/modelagent-inference", "/etc/modelagent", "/usr/lib/modelagent"):
        assert not machine.path(path).exists()


def test_without_the_package_install_service_does_the_same(device: Device) -> None:
    """The wheel's own files, in an environment made of the package's tree: there is no pip on the machine."""
    machine, venv = device.machine, "/opt/venv"
    shutil.copy(package("1"), machine.path("/root/package.deb"))
    machine.run("dpkg-deb", "-x", "/root/package.deb", "/root/unpacked")
    machine.run("cp", "-a", "/root/unpacked/usr/lib/modelagent/tree", venv)
    machine.run("sed", "-i", f"1s|.*|#!{venv}/bin/python3 -P|", f"{venv}/bin/modelagent")
    for name in (*(f"systemd/{unit}" for unit in UNITS), "systemd/modelagent.sysusers", "config/modelagent.toml"):
        target = machine.path(f"{venv}/share/modelagent/{name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    device.provision()

    program = f"{venv}/bin/modelagent"
    assert "would start modelagent" in machine.run(program, "install-service", "--dry-run")
    machine.run(program, "install-service")
    assert machine.run(program, "install-service") == "everything is in place\n"
    device.wait_for(device.newest)
    assert f"{venv}/bin/python3" in _command(machine.pid(INFERENCE))
    assert device.cli("status"), "/usr/local/bin has it"

    machine.run(program, "uninstall")
    assert machine.processes(INFERENCE) == machine.processes(UPDATER) == {}
    assert machine.path("/var/lib/modelagent/history.jsonl").exists()
    machine.run(program, "uninstall", "--purge")
    assert not machine.path("/var/lib/modelagent").exists()
