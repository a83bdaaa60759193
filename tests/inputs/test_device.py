import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import Instant
from modelagent.inputs.device import Device, reaches_out
from modelagent.policies import Facts

BASE = Facts(Instant(1.0, 2.0, "boot"), seed="s", needed_mb=7.0)

ZERO = "0" * 32
LAPTOP = {
    "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
    "proc/pressure/cpu": "some avg10=12.50 avg60=3.00 avg300=1.00 total=1\nfull avg10=99.00 avg60=0 avg300=0 total=0\n",
    "proc/meminfo": "MemTotal:        8000000 kB\nMemFree:  100 kB\nMemAvailable:    2048000 kB\n",
    "proc/net/route": "Iface\tDestination\tGateway\tFlags\nwlan0\t00000000\t0100A8C0\t0003\t0\n",
    "sys/class/net/wlan0/operstate": "up\n",
    "sys/devices/system/cpu/online": "0-2,5\n",
    "sys/class/thermal/thermal_zone0/temp": "45500\n",
    "sys/class/thermal/thermal_zone1/temp": "61000\n",
    "sys/class/thermal/thermal_zone2/temp": "-273000\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "80\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT1/type": "Battery\n",
    "sys/class/power_supply/BAT1/capacity": "40\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/capacity": "1\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def gather(root: Path, *, metered: bool | None = None, inhibit: Path | None = None, link: bool = True) -> Facts:
    return Device(state_dir=root, inhibit_dir=inhibit, metered=metered, link_matters=link, root=root).gather(BASE)


def test_a_laptop_on_battery(tmp_path: Path) -> None:
    facts = gather(plant(tmp_path, LAPTOP), metered=True)
    assert (facts.load1, facts.cpus, facts.psi_cpu) == (0.52, 4, 12.5)
    assert facts.memory_available_mb == 2000.0
    assert facts.temperature_c == 61.0
    assert (facts.battery_percent, facts.on_ac) == (60.0, False)
    assert (facts.link_up, facts.metered) == (True, True)
    assert facts.disk_free_mb is not None
    assert facts.disk_free_mb > 0
    assert (facts.seed, facts.needed_mb) == ("s", 7.0), "what others know stays"


def test_nothing_at_all_is_not_known_and_no_error(tmp_path: Path) -> None:
    facts = gather(tmp_path / "nowhere")
    assert facts.cpus == os.cpu_count()
    for name in ("load1", "psi_cpu", "memory_available_mb", "temperature_c", "battery_percent", "on_ac"):
        assert getattr(facts, name) is None
    assert (facts.link_up, facts.metered, facts.disk_free_mb, facts.inhibited) == (None, None, None, ())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sys/class/net/wlan0/operstate": "down"}, False),
        ({"sys/class/net/wlan0/operstate": "unknown"}, True),
        ({"proc/net/route": "Iface\tDestination\tGateway\tFlags\n"}, False),
        ({"proc/net/route": "Iface\tDestination\tGateway\tFlags\nlo\t0\t0\t0001\n"}, False),
        ({"proc/net/route": "Iface\tDestination\tGateway\tFlags\nwlan0\t0\t0\t0002\n"}, False),
        ({"proc/net/route": "garbage\nshort line\nwlan0 0 0 zz\n"}, False),
        (
            {
                "proc/net/route": "",
                "proc/net/ipv6_route": f"{ZERO} 00 {ZERO} 00 {ZERO} 00000400 00000001 00000000 00000003 eth1\n",
                "sys/class/net/eth1/operstate": "up",
            },
            True,
        ),
    ],
)
def test_link(tmp_path: Path, changes: dict[str, str], expected: bool) -> None:
    root = plant(tmp_path, LAPTOP | changes)
    assert gather(root).link_up is expected
    assert gather(root, link=False).link_up is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sys/class/power_supply/AC/online": "1"}, True),
        ({"sys/class/power_supply/AC/type": "Unknown"}, False),
        ({"sys/class/power_supply/AC/type": "Unknown", "sys/class/power_supply/BAT0/status": "Charging"}, True),
        ({"sys/class/power_supply/AC/type": "Unknown", "sys/class/power_supply/BAT0/status": "Unknown"}, None),
    ],
)
def test_mains(tmp_path: Path, changes: dict[str, str], expected: bool | None) -> None:
    assert gather(plant(tmp_path, LAPTOP | changes)).on_ac is expected


def test_the_limit_of_the_control_group_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/modelagent.service"
    root = plant(
        tmp_path,
        LAPTOP
        | {
            "proc/self/cgroup": "0::/system.slice/modelagent.service\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "1\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{300 * 1048576}\n",
            "sys/fs/cgroup/system.slice/memory.current": f"{250 * 1048576}\n",
            "sys/fs/cgroup/system.slice/memory.stat": f"anon 5\ninactive_file {20 * 1048576}\n",
        },
    )
    assert gather(root).memory_available_mb == 70.0


def test_inhibit_files(tmp_path: Path) -> None:
    inhibit = tmp_path / "inhibit"
    assert gather(tmp_path, inhibit=inhibit).inhibited == ()
    inhibit.mkdir()
    for name in ("surgery", ".hidden", "calibration"):
        (inhibit / name).touch()
    assert gather(tmp_path, inhibit=inhibit).inhibited == ("calibration", "surgery")
    for n in range(100):
        (inhibit / f"x{n}").touch()
    assert len(gather(tmp_path, inhibit=inhibit).inhibited) == 20


@given(name=st.sampled_from(sorted(LAPTOP)), data=st.binary(max_size=300))
def test_any_content_of_any_file_is_survived(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "device"
    plant(root, LAPTOP)
    (root / name).write_bytes(data)
    gather(root)


def test_this_machine(tmp_path: Path) -> None:
    facts = Device(state_dir=tmp_path).gather(BASE)
    assert facts.load1 is not None
    assert facts.cpus is not None
    assert facts.memory_available_mb is not None
    assert facts.memory_available_mb > 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080/repo", False),
        ("http://[::1]:8080/", False),
        ("http://localhost/", False),
        ("file:///media/stick", False),
        ("/media/stick", False),
        ("https://models.example.com/", True),
        ("https://10.0.0.1/", True),
    ],
)
def test_reaches_out(url: str, expected: bool) -> None:
    assert reaches_out(url) is expected


@pytest.mark.parametrize(("told", "metered"), [(True, True), (False, False), (None, True)])
def test_who_tells_of_the_link_goes_before_the_setting(tmp_path: Path, told: bool | None, metered: bool) -> None:
    root = plant(tmp_path, LAPTOP)
    device = Device(state_dir=root, metered=True, ask_metered=lambda: told, root=root)
    assert device.gather(BASE).metered is metered


def test_nobody_is_asked_about_a_link_that_does_not_matter(tmp_path: Path) -> None:
    def ask() -> bool:
        raise AssertionError("asked")

    device = Device(state_dir=tmp_path, metered=False, ask_metered=ask, link_matters=False, root=tmp_path)
    assert device.gather(BASE).metered is False
