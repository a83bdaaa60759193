"""The cage of a process that runs what it does not trust: system calls and files that it may still use.

This file knows seccomp filters and Landlock rules of the kernel's own interface, for x86-64 and ARM64. It does not
know what runs in the cage; limits on memory, time and descriptors are `children.py`'s.

    confine(readable=["/var/lib/modelagent/models/digits/slots/5f..."])    # ("seccomp", "landlock 7")
    open("/etc/passwd")            # PermissionError: Landlock
    socket.socket()                # PermissionError: seccomp

There is no way back, and threads and children (there can be none) inherit it. Call it after the imports: what is
imported later must lie below the interpreter's own directories, which stay readable.

The filter names what is refused (EPERM) rather than what is allowed: the runtime and the C library are free to use any
harmless call of a later kernel, and whatever makes processes, reaches another one, opens a channel, changes a file's
attributes or the machine, or gets around the filter (io_uring, the 32-bit calls) is refused. A file may be opened for
reading only. With Landlock (Linux 5.13) nothing outside the named directories can be read either.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from modelagent.errors import DeviceError

_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
_SET_MODE_FILTER: Final = 1  # linux/seccomp.h
_FILTER_FLAG_TSYNC: Final = 1  # threads that exist already are caged too

# Filter answers (linux/seccomp.h).
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
# Classic BPF (linux/bpf_common.h): load word, jump if equal / greater or equal / any bit set, return.
_LD: Final = 0x20
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06
# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments; both machines are little-endian.
_NR: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16

_X32: Final = 0x40000000  # x86-64 kernels may serve a second table of calls above this bit
_CLONE_THREAD: Final = 0x00010000
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# name: number on x86-64, on ARM64 (None: no such call there). From arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h; numbers from 424 on are the same everywhere.
_CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    # processes
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    # channels
    "socket": (41, 198),
    "socketpair": (53, 199),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "connect": (42, 203),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # files: everything that changes one but writing to a descriptor that is open already
    "creat": (85, None),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the machine, and ways around a cage
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
}
# Refused as if the kernel did not have them: the C library then takes the older call, whose arguments can be seen.
_UNSEEN: Final[dict[str, tuple[int, int]]] = {"clone3": (435, 435), "openat2": (437, 437)}
# Allowed when an argument says so: (numbers, argument, how, value).
_CLONE: Final = (56, 220)
_OPEN: Final = (2, None)
_OPENAT: Final = (257, 56)
_KILL_CALL: Final = (62, 129)
_TGKILL: Final = (234, 131)
_PRLIMIT: Final = (302, 261)
_SETAFFINITY: Final = (203, 122)
_FCNTL: Final = (72, 25)
_IOCTL: Final = (16, 29)
# A descriptor may name any process of the same user as its owner, and any signal, SIGKILL too, for news of it: kill(2)
# by another name. Landlock sees that from version 6 (Linux 6.12) on.
_OWNERS: Final = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl(2)
_REQUESTS: Final = (0x8901, 0x8902, 0x5412)  # FIOSETOWN, SIOCSPGRP; TIOCSTI types into a terminal

# (column in the tables above, AUDIT_ARCH_* of linux/audit.h, numbers of seccomp(2) and of the three Landlock calls)
_MACHINES: Final = {
    "x86_64": (0, 0xC000003E, 317, (444, 445, 446)),
    "aarch64": (1, 0xC00000B7, 277, (444, 445, 446)),
}

# linux/landlock.h. Rights to files by the version of the interface that brought them.
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS: Final = 0b11  # bind and connect of TCP, version 4
_SCOPES: Final = 0b11  # abstract Unix sockets and signals to the outside, version 6
_RULE_PATH_BENEATH: Final = 1

# What the interpreter and the runtime look at, besides the interpreter's own directories.
_ALWAYS: Final = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
)


class _Program:
    """A filter being written: each test answers or falls through to the next."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self.code.append((_LD, 0, 0, offset))

    def answer(self, value: int) -> None:
        self.code.append((_RET, 0, 0, value))

    def when(self, test: int, value: int, answer: int) -> None:
        """If the loaded word passes the test, this is the answer."""
        self.code += [(test, 0, 1, value), (_RET, 0, 0, answer)]

    def unless(self, test: int, value: int, answer: int) -> None:
        self.code += [(test, 1, 0, value), (_RET, 0, 0, answer)]

    def call(self, number: int, argument: int, *, test: int, values: Sequence[int], allow: bool) -> None:
        """For one call: does argument `argument` pass the test with any value? Then allow it or refuse it."""
        body = _Program()
        # Only the low half counts: flags and pids are 32 bits wide, and the kernel cuts them to that.
        body.load(_ARGUMENTS + 8 * argument)
        for value in values:
            body.when(test, value, _ALLOW if allow else _ERRNO | errno.EPERM)
        body.answer(_ERRNO | errno.EPERM if allow else _ALLOW)
        self.code += [(_JEQ, 0, len(body.code), number), *body.code]

    def pack(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *line) for line in self.code)


def program(machine: str, pid: int) -> bytes:
    """The filter for a machine, as the kernel takes it: 8 bytes an instruction.

    Args:
        machine: `x86_64` or `aarch64`.
        pid: the only process that signals may go to and whose limits and processors may be changed.

    Raises:
        DeviceError: `sandbox` for another machine.
    """
    column, arch, _, _ = _machine(machine)
    filter_ = _Program()
    filter_.load(_ARCH)
    filter_.unless(_JEQ, arch, _KILL)
    filter_.load(_NR)
    if machine == "x86_64":
        filter_.when(_JGE, _X32, _KILL)
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            filter_.when(_JEQ, number, _ERRNO | errno.EPERM)
    for pair in _UNSEEN.values():
        filter_.when(_JEQ, pair[column], _ERRNO | errno.ENOSYS)
    filter_.call(_CLONE[column], 0, test=_JSET, values=(_CLONE_THREAD,), allow=True)
    for numbers, flags in ((_OPEN, 1), (_OPENAT, 2)):
        if (number := numbers[column]) is not None:
            filter_.call(number, flags, test=_JSET, values=(_WRITING,), allow=False)
    for pair, own in ((_KILL_CALL, (pid,)), (_TGKILL, (pid,)), (_PRLIMIT, (0, pid)), (_SETAFFINITY, (0, pid))):
        filter_.call(pair[column], 0, test=_JEQ, values=own, allow=True)
    for pair, refused in ((_FCNTL, _OWNERS), (_IOCTL, _REQUESTS)):
        filter_.call(pair[column], 1, test=_JEQ, values=refused, allow=False)
    filter_.answer(_ALLOW)
    return filter_.pack()


def confine(readable: Iterable[str | Path] = ()) -> tuple[str, ...]:
    """Cage this process for good.

    Args:
        readable: directories or files that stay readable, besides the interpreter's and the system's libraries.

    Returns:
        What holds: `seccomp`, and `landlock <version>` where the kernel has it.

    Raises:
        DeviceError: `sandbox`, when the kernel refuses the filter: a candidate is not run without it.
    """
    machine = platform.machine()
    _, _, seccomp, landlock = _machine(machine)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _refused("NO_NEW_PRIVS")
    holds: tuple[str, ...] = ()
    version = _restrict_files(libc, landlock, [*_own_directories(), *map(str, readable)])
    if version:
        holds = (f"landlock {version}",)
    code = program(machine, os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, padding, where they are.
    wish = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer)), 16)
    if libc.syscall(seccomp, _SET_MODE_FILTER, _FILTER_FLAG_TSYNC, wish) != 0:
        raise _refused("seccomp")
    return ("seccomp", *holds)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 without one."""
    _, _, _, (create, _, _) = _machine(platform.machine())
    found = ctypes.CDLL(None, use_errno=True).syscall(create, None, 0, 1)
    return max(0, int(found))


def _own_directories() -> list[str]:
    own = {sys.prefix, sys.base_prefix, *(path for path in sys.path if path)}
    return [*_ALWAYS, *sorted(own)]


def _restrict_files(libc: ctypes.CDLL, calls: tuple[int, int, int], readable: Sequence[str]) -> int:
    """Refuse every file that is not below `readable`, and all writing; returns the interface's version, 0 if none."""
    create, add, restrict = calls
    version = int(libc.syscall(create, None, 0, 1))
    if version < 1:
        return 0
    files = sum(rights for since, rights in _FILE_RIGHTS.items() if since <= version)
    wish = struct.pack("=QQQ", files, _NET_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(create, ctypes.create_string_buffer(wish, 24), size, 0)
    if rules < 0:
        raise _refused("Landlock")
    try:
        for path in readable:
            with contextlib.suppress(OSError):  # what does not exist needs no rule
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    rights = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
                    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd), 12)
                    if libc.syscall(add, rules, _RULE_PATH_BENEATH, rule, 0) != 0:
                        raise _refused(f"Landlock for {path}")
                finally:
                    os.close(fd)
        if libc.syscall(restrict, rules, 0) != 0:
            raise _refused("Landlock")
    finally:
        os.close(rules)
    return version


def _machine(name: str) -> tuple[int, int, int, tuple[int, int, int]]:
    if name not in _MACHINES:
        raise DeviceError(
            f"no cage is known for {name}, only for {', '.join(_MACHINES)}; candidates cannot be tried here",
            code="sandbox",
        )
    return _MACHINES[name]


def _refused(what: str) -> DeviceError:
    reason = os.strerror(ctypes.get_errno())
    return DeviceError(
        f"the kernel refused {what} ({reason}); allow it (CONFIG_SECCOMP_FILTER, SystemCallFilter= of the unit): "
        "candidates are not tried without a cage",
        code="sandbox",
    )
