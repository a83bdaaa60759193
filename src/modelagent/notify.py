"""What systemd is told: sd_notify(3) without a library.

This file knows the datagram. It does not know when a process is ready: that is each process's to say.

    notify("READY=1", "STATUS=digits: no model yet")
"""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send the lines to $NOTIFY_SOCKET, if there is one; never fails and never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # An abstract address begins with a zero byte, which an environment variable writes as "@".
    name = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), name)
