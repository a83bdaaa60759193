"""Whether the link is metered, as NetworkManager says on the system bus.

This file knows just enough of D-Bus to read one property: authentication as a uid, Hello, Properties.Get (D-Bus
specification, "Message Protocol"). It does not know policies. A library for it would weigh more than the answer.

    Metered().ask()        # True, False, or None: no bus, no NetworkManager, or it does not know

It is asked on the updater's own thread, so an answer is waited for half a second at most, kept for a while, and a
bus that gave none is left alone for longer.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

BUS: Final = Path("/run/dbus/system_bus_socket")
_PATIENCE_S: Final = 0.5
_KEEP_S: Final = 15.0
_LEAVE_ALONE_S: Final = 120.0
_MAX_BYTES: Final = 64 * 1024  # of one message; those we wait for have a hundred
_CALL, _RETURN, _ERROR = 1, 2, 3
_NO_AUTO_START: Final = 2  # asking must not start a NetworkManager
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8
_NM: Final = "org.freedesktop.NetworkManager"
# NMMetered: 0 unknown, 1 yes, 2 no, 3 and 4 the same as guesses.
_MEANING: Final = {1: True, 2: False, 3: True, 4: False}


class Metered:
    """Asks NetworkManager, and remembers what it said for 15 s.

    Args:
        bus: the system bus's socket.
        mono: monotonic seconds.
    """

    def __init__(self, bus: Path = BUS, mono: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._mono = mono
        self._known: bool | None = None
        self._until = -1.0

    def ask(self) -> bool | None:
        """Whether the link is metered; None where nobody knows. Never raises."""
        now = self._mono()
        if now >= self._until:
            try:
                self._known, keep = _MEANING.get(_read_property(self._bus)), _KEEP_S
            except (OSError, ValueError, struct.error):
                self._known, keep = None, _LEAVE_ALONE_S
            self._until = now + keep
        return self._known


def _read_property(bus: Path) -> int:
    """The property `Metered`; OSError without a bus or in time, ValueError for an answer of another kind."""
    with contextlib.closing(_Line(bus)) as line:
        line.send(_call(1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"))
        get = _call(2, _NM, "/org/freedesktop/NetworkManager", "org.freedesktop.DBus.Properties", "Get", _NM, "Metered")
        line.send(get)
        while True:
            kind, serial, body = line.message()
            if serial == 2 and kind == _ERROR:
                raise ValueError("NetworkManager is not there, or does not know the property")
            if serial == 2 and kind == _RETURN:
                # A variant: the signature "u" with its length and a zero, padded to four, then the number.
                if body[:3] != b"\x01u\x00":
                    raise ValueError(f"the property is no number: {body[:8]!r}")
                return int(struct.unpack_from("<I", body, 4)[0])


class _Line:
    """A connection to the bus with one deadline for everything."""

    def __init__(self, bus: Path) -> None:
        self._deadline = time.monotonic() + _PATIENCE_S
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._rest = b""
        try:
            self._socket.settimeout(_PATIENCE_S)
            self._socket.connect(str(bus))
            self.send(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            while b"\r\n" not in self._rest:
                self._more()
            answer, self._rest = self._rest.split(b"\r\n", 1)
            if not answer.startswith(b"OK "):
                raise ValueError(f"the bus refused us: {answer[:80]!r}")
            self.send(b"BEGIN\r\n")
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def message(self) -> tuple[int, int, bytes]:
        """Kind, the serial that it answers (0 for none) and body of the next message."""
        head = self._take(16)
        if head[:1] != b"l":
            raise ValueError("a message in the other byte order, which a bus on this machine does not send")
        kind, body_length, fields_length = head[1], *struct.unpack_from("<I4xI", head, 4)
        if body_length + fields_length > _MAX_BYTES:
            raise ValueError("a message far longer than any answer to us")
        fields = self._take((fields_length + 7) // 8 * 8)[:fields_length]
        return kind, _reply_serial(fields), self._take(body_length)

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def _more(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or len(self._rest) > 2 * _MAX_BYTES:
            raise TimeoutError("the bus took too long")
        self._socket.settimeout(left)
        data = self._socket.recv(4096)
        if not data:
            raise ConnectionError("the bus hung up")
        self._rest += data


def _reply_serial(fields: bytes) -> int:
    """The field REPLY_SERIAL of a header: an array of structures, each aligned to eight, of a byte and a variant."""
    at = 0
    while at + 4 <= len(fields):
        code, signature = fields[at], fields[at + 2 : at + 3]
        at += 4  # code, length of the signature, one letter, zero: all our fields have signatures of one letter
        if signature == b"u":
            (number,) = struct.unpack_from("<I", fields, at)
            if code == _REPLY_SERIAL:
                return int(number)
            at += 4
        elif signature in (b"s", b"o"):
            at += 4 + struct.unpack_from("<I", fields, at)[0] + 1
        elif signature == b"g":
            at += 1 + fields[at] + 1
        else:
            raise ValueError(f"a header field of type {signature!r}")
        at = (at + 7) // 8 * 8
    return 0


def _call(serial: int, destination: str, path: str, interface: str, member: str, *texts: str) -> bytes:
    """A method call with texts as arguments, little-endian."""
    body = b""
    for text in texts:
        body = _pad(body, 4) + _text(text)
    fields = b""
    named = ((_PATH, "o", path), (_DESTINATION, "s", destination), (_INTERFACE, "s", interface), (_MEMBER, "s", member))
    for code, kind, text in named:
        fields = _pad(fields, 8) + bytes([code, 1, ord(kind), 0]) + _text(text)
    if texts:
        signature = "s" * len(texts)
        fields = _pad(fields, 8) + bytes([_SIGNATURE, 1, ord("g"), 0, len(signature)]) + signature.encode() + b"\0"
    head = struct.pack("<cBBBIII", b"l", _CALL, _NO_AUTO_START, 1, len(body), serial, len(fields))
    return _pad(head + fields, 8) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _pad(data: bytes, to: int) -> bytes:
    return data + b"\0" * (-len(data) % to)
