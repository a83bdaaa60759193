"""A Debian 12 that really boots: its own systemd as process 1, its own network link, the product installed by dpkg.

    base = debian()                                     # debootstrap, once; kept in ~/.cache/modelagent-tests
    with Machine(base, tmp_path) as machine:            # an overlay above it: nothing is left behind
        machine.boot()
        machine.run("dpkg", "-i", "/root/modelagent.deb")
        machine.read("/run/modelagent-inference/digits/health.json")
        machine.pull_the_plug(); machine.boot()         # SIGKILL to everything in it

It is looked at from outside: files through /proc/<process 1>/root, commands by nsenter. Needs root, systemd-nspawn,
debootstrap and overlayfs; `missing()` names what is not there.

Two things a container does not have for itself. Its cgroup controllers are mounted read-only on hosts with version 1,
so they are remounted and process 1 looks again; else MemoryMax would be written nowhere. And the clock is the host's:
tests of a wrong clock give the services libfaketime instead (see `Machine.fake_clock`).
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parents[1]
PROGRAMS: Final = ("systemd-nspawn", "debootstrap", "nsenter", "setpriv", "ip", "tc", "dpkg-deb", "mount")
PACKAGES: Final = "systemd,systemd-sysv,dbus,python3,libstdc++6,libfaketime,iproute2"
MIRROR: Final = "http://deb.debian.org/debian"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAP_SYS_ADMIN: Final = 21  # linux/capability.h
_BOOT_S: Final = 60.0


def missing() -> str:
    """What this host lacks for booting a machine; empty when nothing."""
    if os.geteuid() != 0:
        return "not root"
    effective = re.search(r"^CapEff:\s+(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    if effective is None or not int(effective.group(1), 16) >> _CAP_SYS_ADMIN & 1:
        return "root here may not mount (no CAP_SYS_ADMIN)"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def cache() -> Path:
    """Where trees and packages are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelagent-tests"


def debian() -> Path:
    """A Debian 12 with systemd and python3; made once, a minute or two."""
    tree = cache() / f"debian12-{PACKAGES.replace(',', '-')}"
    if not tree.is_dir():
        fresh = tree.with_name(f".fresh-{os.getpid()}")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        _do("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(fresh), MIRROR)
        (fresh / "etc/machine-id").write_text("")
        # Nobody logs in, nothing updates itself, and what journald has is kept over a cut.
        for unit in ("console-getty", "systemd-logind"):
            (fresh / f"etc/systemd/system/{unit}.service").symlink_to("/dev/null")
        for unit in ("apt-daily", "apt-daily-upgrade", "e2scrub_all"):
            (fresh / f"etc/systemd/system/{unit}.timer").symlink_to("/dev/null")
        (fresh / "var/log/journal").mkdir(exist_ok=True)
        shutil.rmtree(fresh / "var/cache/apt/archives", ignore_errors=True)
        fresh.rename(tree)
    return tree


def package(revision: str, release: str = "") -> Path:
    """The Debian package of this source tree, quickly packed."""
    out = cache() / "packages"
    words = [str(ROOT / "script/deb"), "--quick", "--revision", revision, "--out", str(out)]
    if release:
        words += ["--release", release]
    return Path(_do(*words).strip().splitlines()[-1].rpartition(" (")[0])


def _do(*words: str, check: bool = True) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MODELAGENT"))}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment | {"PATH": _PATH}, timeout=600
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-4000:])
    return done.stdout


class Machine:
    """One machine with a disk of its own above the base; boots, can lose its power, and is gone at the end."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.name = f"ma{secrets.token_hex(3)}"  # names the link too, which has 15 letters at most
        self.folder = folder
        self.disk = folder / "disk"
        octets = secrets.token_bytes(2)
        self.host_ip = f"10.{octets[0]}.{octets[1] % 254}.1"
        self.ip = self.host_ip[:-1] + "2"
        self._groups: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        for part in ("upper", "work", "disk"):
            (folder / part).mkdir(parents=True)
        layers = f"lowerdir={base},upperdir={folder}/upper,workdir={folder}/work"
        _do("mount", "-t", "overlay", "overlay", "-o", layers, str(self.disk))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pull_the_plug()
        _do("umount", str(self.disk))

    # -- power -------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on; returns when systemd has nothing left to start."""
        self._groups = list(_groups(self.name))
        join = " ".join(f"&& echo $$ >{group}/cgroup.procs" for group in self._groups)
        # When this process is killed nspawn is told to shut the machine down; SIGKILL would end nspawn alone.
        nspawn = (
            "setpriv --pdeathsig TERM systemd-nspawn -q --boot --register=no --keep-unit --network-veth "
            f"--machine={self.name}"
        )
        with (self.folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"true {join} && exec {nspawn} --directory={self.disk}"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": _PATH},
                start_new_session=True,
            )
        self.wait("process 1", self._find_leader)
        self.wait("systemd", lambda: self._state() in {"running", "degraded"}, _BOOT_S)
        self._own_controllers()
        link = f"ve-{self.name}"
        _do("ip", "addr", "replace", f"{self.host_ip}/30", "dev", link)
        _do("ip", "link", "set", link, "up")
        self.run("ip", "addr", "replace", f"{self.ip}/30", "dev", "host0")
        self.run("ip", "link", "set", "host0", "up")

    def pull_the_plug(self) -> None:
        """SIGKILL to process 1, and with it to all the others."""
        if self._process is None:
            return
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process, self._leader = None, 0
        for group in self._groups:
            for folder in sorted([group, *(path for path in group.rglob("*") if path.is_dir())], reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _find_leader(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "console").read_text(errors="replace")[-2000:]
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._leader = int(children[0]) if children else 0
        return bool(self._leader) and "systemd" in Path(f"/proc/{self._leader}/comm").read_text()

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).strip()

    def _own_controllers(self) -> None:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return
        for group in self._groups:
            self.run("mount", "-o", "remount,rw,bind", str(group.parent), check=False)
        self.run("systemctl", "daemon-reexec")

    # -- looking in --------------------------------------------------------------------------------------------

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command in it as root; returns its standard output."""
        return _do("nsenter", "-t", str(self._leader), "-a", "--", *words, check=check)

    def path(self, inside: str) -> Path:
        """A file of the running machine, seen from here."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def pid(self, unit: str) -> int:
        """The main process of a unit, as numbered on this side; 0 when it has none."""
        inside = int(self.property(unit, "MainPID"))
        return next((pid for pid, number in self.processes(unit).items() if number == inside), 0) if inside else 0

    def processes(self, unit: str) -> dict[int, int]:
        """All processes of a unit: number on this side -> number inside."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"/{self.name}/system.slice/{unit}.service" in (folder / "cgroup").read_text():
                    status = (folder / "status").read_text()
                    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                    if "State:\tZ" not in status:
                        found[int(folder.name)] = int(numbers[-1])
        return found

    def journal(self, *words: str) -> str:
        """Lines of the journal."""
        return self.run("journalctl", "--no-pager", "-q", *words)

    @staticmethod
    def wait(what: str, true: Callable[[], bool], limit: float = 30.0, every: float = 0.1) -> float:
        """Wait until it holds; returns the seconds it took."""
        begun = time.monotonic()
        while not true():
            if time.monotonic() - begun > limit:
                raise AssertionError(f"{what}: not within {limit:g} s")
            time.sleep(every)
        return time.monotonic() - begun

    # -- weather -----------------------------------------------------------------------------------------------

    def link(self, *, up: bool) -> None:
        """Plug or unplug its network."""
        _do("ip", "link", "set", f"ve-{self.name}", "up" if up else "down")

    def slow_link(self, rate: str) -> None:
        """Limit what it receives, for instance to 256kbit; empty: no limit."""
        link = f"ve-{self.name}"
        _do("tc", "qdisc", "del", "dev", link, "root", check=False)
        if rate:
            _do("tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "8kb", "latency", "400ms")

    def fake_clock(self, offset: str) -> None:
        """Let both services see another time, for instance @1970-01-01 00:00:10; empty: the true one again."""
        for unit in ("modelagent", "modelagent-updater"):
            folder = self.path(f"/run/systemd/system/{unit}.service.d")
            folder.mkdir(parents=True, exist_ok=True)
            if offset:
                library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
                (folder / "clock.conf").write_text(
                    f'[Service]\nEnvironment=LD_PRELOAD={library} "FAKETIME={offset}" FAKETIME_DONT_FAKE_MONOTONIC=1\n'
                )
            else:
                (folder / "clock.conf").unlink(missing_ok=True)
        self.run("systemctl", "daemon-reload")


def _groups(name: str) -> list[Path]:
    """A control group of its own in every hierarchy that matters: two machines must not meet in the host's root."""
    top = Path("/sys/fs/cgroup")
    unified = (top / "cgroup.controllers").exists()
    made = []
    for parent in [top] if unified else [top / part for part in ("unified", "systemd", "memory", "pids", "cpu")]:
        if (parent / "cgroup.procs").exists():
            (parent / name).mkdir(exist_ok=True)
            made.append(parent / name)
    return made


if __name__ == "__main__":  # script/test asks what is missing: status 0 when nothing is
    reason = missing()
    print(reason or "everything needed is here")
    sys.exit(1 if reason else 0)
