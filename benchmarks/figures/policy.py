"""What deciding costs: thirty simulated days, and the real updater at rest.

This file knows three figures. At rest means: no release is offered, policies with every kind of gate, one model, no
inference; the processor's time and the voluntary context switches of all its threads are taken from /proc.
"""

import time
from pathlib import Path
from typing import Final

from benchmarks.measure import Figure, Group, Measured, median
from benchmarks.stand import Stand

from modelagent.inputs.config import load
from modelagent.updater.simulation import simulate
from modelagent.updater.traces import parse

_ROOT: Final = Path(__file__).resolve().parents[2]
_TRACES: Final = _ROOT / "examples" / "traces"
_SETTLE_S: Final = 10.0
_REST_S: Final = 60.0


def simulated(_folder: Path) -> dict[str, Measured]:
    """`policy.simulate_30d_s`."""
    settings, trace = load(_TRACES / "night.toml", conf_d=False), parse((_TRACES / "plant.jsonl").read_text())
    took = []
    for _ in range(5):
        began = time.process_time()
        days = simulate(settings, trace)
        took.append(time.process_time() - began)
    how = (
        f"median of five; {trace.days:g} days, {len(trace.changes)} changes of facts, {days.steps} steps of the real "
        f"machine, {len(days.checks)} checks, {days.downloads} downloads, {days.activations} activations"
    )
    return {"policy.simulate_30d_s": Measured(median(took), how)}


def resting(folder: Path) -> dict[str, Measured]:
    """`updater.idle_cpu_s_per_h` and `updater.wakeups_per_s`."""
    with Stand(folder / "policy") as stand:
        repository = stand.folder / "repository"
        repository.mkdir()
        (stand.folder / "inhibit").mkdir()
        stand.configure(
            {"digits": {}},
            repository={"url": str(repository), "root": str(stand.folder / "root.json")},
            policy={
                "check_cron": "30 2 * * *",
                "download_windows": ["22:00-05:00"],
                "activate_windows": ["Sun 03:00-04:00"],
                "inhibit_dir": str(stand.folder / "inhibit"),
            },
            limits={"back_off": 3600.0},  # the one failing check of an empty repository is not what is measured
        )
        process = stand.start("updater")
        time.sleep(_SETTLE_S)
        before, began = _spent(process.pid), time.monotonic()
        time.sleep(_REST_S)
        after, lasted = _spent(process.pid), time.monotonic() - began
    cpu, wakeups = ((now - then) / lasted for now, then in zip(after, before, strict=True))
    how = f"the real updater, one model, nothing offered, {lasted:.0f} s of rest after {_SETTLE_S:g} s"
    return {
        "updater.idle_cpu_s_per_h": Measured(cpu * 3600, f"{how}; user and system time of all threads"),
        "updater.wakeups_per_s": Measured(wakeups, f"{how}; voluntary context switches of all threads"),
    }


def _spent(pid: int) -> tuple[float, float]:
    """Seconds of processor time, and voluntary context switches, of all threads so far."""
    nanoseconds = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # The kernel's sched-stats: time on a processor comes first. /proc/<pid>/stat counts in hundredths of a second.
        nanoseconds += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        for line in (task / "status").read_text(encoding="ascii").splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                switches += int(line.split()[1])
    return nanoseconds / 1e9, float(switches)


GROUPS: Final = (
    Group((Figure("policy.simulate_30d_s", "s", "<= 1"),), simulated),
    Group(
        (
            Figure("updater.idle_cpu_s_per_h", "s/h", "<= 1"),
            Figure("updater.wakeups_per_s", "1/s", "<= 2"),
        ),
        resting,
    ),
)
