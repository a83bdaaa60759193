"""Tells systemd how we are (sd_notify(3)): one datagram to the socket that it named.

This file knows the protocol. It does not know when to say what. Without systemd it does nothing.

    notify("READY=1", "STATUS=2 models")
"""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send the lines to $NOTIFY_SOCKET, if there is one; never fails and never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), address)
