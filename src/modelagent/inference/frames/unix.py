"""Frames by a Unix socket, for programs on the same machine: a length, a frame; a line with the result comes back.

This file knows the socket's file and where one frame ends. It does not know the frames' forms; connections, their
limits and times are those of `http.py`, whose place behind a shorter head this is.

    source = UnixSource(SourceOptions(kind="unix", path=Path("/run/modelagent-inference/digits.sock"), group="line"))

A client sends {u32 length, little-endian} and so many bytes (.npy, .npz, a picture, JSON, raw numbers), and reads one
line of JSON: the result, as an HTTP answer carries it, or {"error": "..."}. One frame of a connection is on its way at
a time, but the next may be sent ahead. After a frame that is too large, or one without a result in time, the connection
ends. `mode` and `group` say who may connect. examples/unix_client.py is a client.
"""

import contextlib
import grp
import json
import os
import selectors
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from modelagent.errors import SourceError, UsageError
from modelagent.inference.frames import Frame, SourceOptions
from modelagent.inference.frames.http import Client, HttpSource

_HEAD: Final = struct.Struct("<I")


class UnixSource(HttpSource):
    """See the head of the file.

    Raises:
        UsageError: `config` without a path.
    """

    kind = "unix"

    def __init__(self, options: SourceOptions) -> None:
        if options.path is None:
            raise UsageError('source: kind = "unix" needs path; add it to the settings', code="config")
        self._path = options.path
        self._inode = 0
        super().__init__(options)

    def run(self, put: Callable[[Frame], None], stop: threading.Event) -> None:
        """See FrameSource."""
        try:
            super().run(put, stop)
        finally:
            inode, self._inode = self._inode, 0
            with contextlib.suppress(OSError):
                if inode and self._path.lstat().st_ino == inode:  # not a successor's
                    self._path.unlink()

    def _read_address(self) -> tuple[str, int]:
        return str(self._path), 0

    def _listen(self) -> socket.socket:
        prepared = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _check_place(self._path)
            prepared.unlink(missing_ok=True)
            # Nobody may connect before `mode` and `group` hold, and nobody ever finds half a socket.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(prepared))
            if self.options.group:
                os.chown(prepared, -1, grp.getgrnam(self.options.group).gr_gid)
            prepared.chmod(self.options.mode)
            listener.listen(128)
            self._inode = prepared.stat().st_ino
            prepared.replace(self._path)
        except (OSError, KeyError) as error:
            listener.close()
            with contextlib.suppress(OSError):
                prepared.unlink(missing_ok=True)
            why = (error.strerror or error) if isinstance(error, OSError) else f"no group {self.options.group!r}"
            raise SourceError(
                f"cannot listen on {self._path}: {why}; correct source.path, mode or group", code="source"
            ) from error
        return listener

    def _read_head(self, client: Client, selector: selectors.BaseSelector) -> bool:
        if len(client.incoming) < _HEAD.size:
            return False
        (length,) = _HEAD.unpack_from(client.incoming)
        if length > self.options.max_bytes:
            self._refuse(client, selector, 413, f"{length} bytes, at most {self.options.max_bytes} are taken")
            return False
        del client.incoming[: _HEAD.size]
        client.headers, client.body = {"keep": "1"}, length
        return True

    def _say(self, client: Client, selector: selectors.BaseSelector, status: int, document: dict[str, Any]) -> None:
        del status  # the document says it
        client.outgoing += json.dumps(document).encode() + b"\n"
        self._send(client, selector)


def _check_place(path: Path) -> None:
    """OSError when something lies there that is not ours to replace: no socket, or one that somebody serves."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError("there is something else of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asker:
        asker.settimeout(1.0)
        try:
            asker.connect(str(path))
        except ConnectionRefusedError:
            return  # left by one that was killed
        raise OSError("somebody serves it already")
