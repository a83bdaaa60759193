"""Metered or not, asked of a bus: a made-up one that says anything, and a real daemon without NetworkManager."""

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.inputs.networkmanager import Metered


def field(code: int, kind: str, value: str | int) -> bytes:
    data = (
        struct.pack("<I", value) if isinstance(value, int) else struct.pack("<I", len(value)) + value.encode() + b"\0"
    )
    if kind == "g":
        data = bytes([len(str(value))]) + str(value).encode() + b"\0"
    return bytes([code, 1, ord(kind), 0]) + data


def message(kind: int, serial: int, body: bytes, *, signature: str = "v") -> bytes:
    fields = b""
    for part in (field(7, "s", ":1.7"), field(5, "u", serial), field(6, "s", ":1.9"), field(8, "g", signature)):
        fields += b"\0" * (-len(fields) % 8) + part
    head = struct.pack("<cBBBIII", b"l", kind, 1, 1, len(body), 99, len(fields))
    return head + fields + b"\0" * (-len(fields) % 8) + body


def value(number: int) -> bytes:
    return b"\x01u\0\0" + struct.pack("<I", number)


HELLO = message(2, 1, struct.pack("<I", 5) + b":1.42\0", signature="s")
SIGNAL = message(4, 0, struct.pack("<I", 5) + b":1.42\0", signature="s")


class Bus:
    """Answers one connection after another with the same bytes, whatever is asked."""

    def __init__(self, path: Path, answers: bytes, *, greeting: bytes = b"OK 0123456789abcdef\r\n") -> None:
        self.asked = 0
        self.heard = b""
        self._answers, self._greeting = answers, greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with line:
                self.asked += 1
                self.heard = line.recv(4096)
                line.sendall(self._greeting)
                try:
                    while b"Metered\0" not in self.heard and (more := line.recv(4096)):
                        self.heard += more
                    line.sendall(self._answers)
                    while line.recv(4096):
                        pass
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus"


def ask(path: Path, answers: bytes, **more: bytes) -> bool | None:
    bus = Bus(path, answers, **more)
    try:
        return Metered(path).ask()
    finally:
        bus.close()


@pytest.mark.parametrize(
    ("number", "said"), [(0, None), (1, True), (2, False), (3, True), (4, False), (5, None), (2**32 - 1, None)]
)
def test_what_the_numbers_mean(path: Path, number: int, said: bool | None) -> None:
    assert ask(path, HELLO + SIGNAL + message(2, 2, value(number))) is said


@pytest.mark.parametrize(
    "answers",
    [
        HELLO + message(3, 2, struct.pack("<I", 2) + b"no\0", signature="s"),  # no NetworkManager on this bus
        HELLO + message(2, 2, b"\x01s\0\0" + struct.pack("<I", 3) + b"yes\0"),
        HELLO + message(2, 2, b""),
        HELLO + struct.pack("<cBBBIII", b"l", 2, 1, 1, 2**31, 1, 8),
        HELLO + struct.pack("<cBBBIII", b"l", 2, 1, 1, 8, 1, 2**31),
        b"B" + HELLO[1:],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        message(2, 2, value(1))[:20],
    ],
)
def test_anything_else_is_not_known(path: Path, answers: bytes) -> None:
    assert ask(path, answers) is None


def test_a_bus_that_refuses_us(path: Path) -> None:
    assert ask(path, b"", greeting=b"REJECTED EXTERNAL\r\n") is None


def test_who_asks_and_what(path: Path) -> None:
    bus = Bus(path, HELLO + message(2, 2, value(1)))
    try:
        Metered(path).ask()
    finally:
        bus.close()
    assert bus.heard.startswith(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
    for word in (b"Hello", b"org.freedesktop.NetworkManager\0", b"org.freedesktop.DBus.Properties\0", b"Get\0"):
        assert word in bus.heard


def test_an_answer_is_kept_for_a_while(path: Path) -> None:
    now = [0.0]
    bus = Bus(path, HELLO + message(2, 2, value(1)))
    try:
        metered = Metered(path, lambda: now[0])
        for now[0] in (0.0, 5.0, 14.9):
            assert metered.ask() is True
        assert bus.asked == 1
        now[0] = 15.0
        metered.ask()
        assert bus.asked == 2
    finally:
        bus.close()


def test_no_bus_is_left_alone(path: Path) -> None:
    now = [0.0]
    metered = Metered(path, lambda: now[0])
    assert metered.ask() is None
    bus = Bus(path, HELLO + message(2, 2, value(1)))
    try:
        now[0] = 119.0
        assert metered.ask() is None
        now[0] = 120.0
        assert metered.ask() is True
    finally:
        bus.close()


@pytest.fixture
def real_bus(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "real"
    command = ["dbus-daemon", "--session", "--nofork", "--nosyslog", f"--address=unix:path={path}", "--print-address"]
    try:
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("no dbus-daemon here")
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline()
        yield path
    finally:
        daemon.kill()
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()


@pytest.mark.process
def test_a_real_bus_without_network_manager_says_so_at_once(real_bus: Path) -> None:
    from modelagent.inputs import networkmanager  # noqa: PLC0415 - its inner part, for this test alone

    with pytest.raises(ValueError, match="NetworkManager is not there"):
        networkmanager._read_property(real_bus)
    assert Metered(real_bus).ask() is None
