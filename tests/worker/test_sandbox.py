"""The cage: the filter interpreted instruction by instruction, and tried on a real process."""

import errno
import json
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from modelagent import sandbox
from modelagent.errors import DeviceError

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
PID = 4711


def run(code: bytes, number: int, *arguments: int, arch: int) -> int:
    """What the kernel would answer: classic BPF over struct seccomp_data."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = [struct.unpack("=HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    at, word = 0, 0
    while True:
        what, yes, no, value = lines[at]
        at += 1
        match what:
            case 0x20:
                (word,) = struct.unpack_from("=I", data, value)
            case 0x15:
                at += yes if word == value else no
            case 0x35:
                at += yes if word >= value else no
            case 0x45:
                at += yes if word & value else no
            case 0x06:
                return int(value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_named_call_is_refused_and_the_ordinary_ones_are_not(machine: str) -> None:
    code, arch = sandbox.program(machine, PID), ARCH[machine]
    column = list(ARCH).index(machine)
    for name, numbers in sandbox._CALLS.items():
        if (number := numbers[column]) is not None:
            assert run(code, number, arch=arch) == EPERM, name
    for name, pair in sandbox._UNSEEN.items():
        assert run(code, pair[column], arch=arch) == ENOSYS, name
    # read, write, mmap, futex, recvfrom, sendto, exit_group, brk, clock_gettime, sched_yield, madvise
    ordinary = {
        "x86_64": (0, 1, 9, 202, 45, 44, 231, 12, 228, 24, 28),
        "aarch64": (63, 64, 222, 98, 207, 206, 94, 214, 113, 124, 233),
    }
    for number in ordinary[machine]:
        assert run(code, number, arch=arch) == ALLOW, number


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_arguments_decide_where_a_call_serves_good_and_bad(machine: str) -> None:
    code, arch = sandbox.program(machine, PID), ARCH[machine]
    column = list(ARCH).index(machine)
    clone, openat = sandbox._CLONE[column], sandbox._OPENAT[column]
    assert run(code, clone, 0x3D0F00, arch=arch) == ALLOW, "a thread"
    assert run(code, clone, 17, arch=arch) == EPERM, "a process"
    assert run(code, openat, 0, 0, 0o2000000, arch=arch) == ALLOW, "reading, close on exec"
    for flag in (1, 2, 0o100, 0o1000, 0o2000):
        assert run(code, openat, 0, 0, flag, arch=arch) == EPERM, flag
    for pair in (sandbox._KILL_CALL, sandbox._TGKILL):
        assert run(code, pair[column], PID, arch=arch) == ALLOW, "abort() is a signal to oneself"
        for other in (1, 0, PID + 1, 2**32 - 1):
            assert run(code, pair[column], other, arch=arch) == EPERM
    for pair in (sandbox._PRLIMIT, sandbox._SETAFFINITY):
        assert run(code, pair[column], 0, arch=arch) == ALLOW
        assert run(code, pair[column], PID, arch=arch) == ALLOW
        assert run(code, pair[column], 1, arch=arch) == EPERM
    for command in (1, 2, 3, 4, 1030):  # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
        assert run(code, sandbox._FCNTL[column], 5, command, arch=arch) == ALLOW
    for command in (8, 10, 15):
        assert run(code, sandbox._FCNTL[column], 5, command, arch=arch) == EPERM
    assert run(code, sandbox._IOCTL[column], 5, 0x5421, arch=arch) == ALLOW, "FIONBIO"
    for request in (0x8901, 0x8902, 0x5412):
        assert run(code, sandbox._IOCTL[column], 5, request, arch=arch) == EPERM


def test_other_tables_of_calls_are_no_way_around() -> None:
    code = sandbox.program("x86_64", PID)
    assert run(code, 41, arch=0x40000003) == KILL, "32-bit calls have other numbers"
    assert run(code, 41 | 0x40000000, arch=ARCH["x86_64"]) == KILL, "x32"
    assert run(sandbox.program("aarch64", PID), 198, arch=0x40000028) == KILL
    with pytest.raises(DeviceError, match="no cage is known for riscv64"):
        sandbox.program("riscv64", PID)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    text = HEADERS[machine].read_text()
    found = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+) (\d+)\n", text)}
    column, checked = list(ARCH).index(machine), 0
    special = {"clone": sandbox._CLONE, "openat": sandbox._OPENAT, "kill": sandbox._KILL_CALL}
    special |= {"tgkill": sandbox._TGKILL, "prlimit64": sandbox._PRLIMIT, "sched_setaffinity": sandbox._SETAFFINITY}
    special |= {"fcntl": sandbox._FCNTL, "ioctl": sandbox._IOCTL}
    for name, numbers in {**sandbox._CALLS, **sandbox._UNSEEN, **special}.items():
        if name in found:
            assert numbers[column] == found[name], name
            checked += 1
    assert checked > 80


PROBE = r"""
import ctypes, errno, fcntl, json, os, signal, socket, sys, threading, mmap
from modelagent import sandbox
import resource, subprocess
inside, outside = sys.argv[1:3]
open(inside + "/scratch", "w").close()
held = os.open(inside + "/scratch", os.O_WRONLY)
parent = os.getppid()
holds = sandbox.confine([inside])
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
tries = {
    "socket": lambda: socket.socket(),
    "socketpair": lambda: socket.socketpair(),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: subprocess.run(["/bin/true"]),
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "kill": lambda: os.kill(parent, 0),
    "kill by news": lambda: fcntl.fcntl(held, fcntl.F_SETOWN, parent),
    "a signal for news": lambda: fcntl.fcntl(held, 10, signal.SIGKILL),
    "processors of others": lambda: os.sched_setaffinity(parent, {0}),
    "limits of others": lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)),
    "write a new file": lambda: open(inside + "/new", "w"),
    "write an old file": lambda: open(inside + "/known", "r+"),
    "read outside": lambda: open(outside + "/secret").read(),
    "list outside": lambda: os.listdir(outside),
    "read /etc/passwd": lambda: open("/etc/passwd").read(),
    "unlink": lambda: os.unlink(inside + "/known"),
    "rename": lambda: os.rename(inside + "/known", inside + "/other"),
    "chmod": lambda: os.chmod(inside + "/known", 0o777),
    "utime": lambda: os.utime(inside + "/known"),
    "symlink": lambda: os.symlink("x", inside + "/link"),
    "mkdir": lambda: os.mkdir(inside + "/dir"),
    "truncate": lambda: os.truncate(inside + "/known", 0),
    "memfd": lambda: os.memfd_create("x"),
    "setsid": os.setsid,
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
    "ptrace": lambda: call(101 if sys.maxsize and os.uname().machine == "x86_64" else 117, 16, parent, 0, 0),
    "io_uring": lambda: call(425, 8, None),
    "unshare": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000),
    "mount": lambda: call(165 if os.uname().machine == "x86_64" else 40, b"x", b"/", b"tmpfs", 0, None),
}
if not any(word.startswith("landlock") for word in holds):
    for name in ("read outside", "list outside", "read /etc/passwd"):
        del tries[name]
said = {}
for name, attempt in tries.items():
    try:
        attempt()
        said[name] = "done"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
done = []
thread = threading.Thread(target=lambda: done.append(open(inside + "/known").read()))
thread.start(); thread.join()
import decimal  # a module that was not loaded before
print(json.dumps({"holds": holds, "said": said, "thread": done, "own": open("/proc/self/status").read(60),
                  "limits": resource.prlimit(0, resource.RLIMIT_CORE)}), flush=True)
os.abort()
"""


@pytest.mark.process
@pytest.mark.skipif(platform.machine() not in ARCH, reason="no cage is known for this machine")
def test_a_real_process_in_the_cage_can_read_think_and_die_and_nothing_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "known").write_text("known")
    (outside / "secret").write_text("secret")
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, str(inside), str(outside)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -6, ended.stderr
    told = json.loads(ended.stdout)
    assert "seccomp" in told["holds"]
    if sandbox.landlock_version():
        assert f"landlock {sandbox.landlock_version()}" in told["holds"]
    assert {name: word for name, word in told["said"].items() if word not in ("EPERM", "EACCES")} == {}
    assert told["thread"] == ["known"], "threads and reading go on"
    assert sorted(path.name for path in inside.iterdir()) == ["known", "scratch"]
    assert (inside / "known").read_text() == "known"
