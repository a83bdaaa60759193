"""A rule's command: a program of this machine, with the firing in its environment.

This file knows how the program is started and when it is ended. It does not know what it does.

    CommandAction(("/usr/local/bin/eject", "--lane", "3"))

The program is never given to a shell. MODELAGENT_RULE is the rule's name, MODELAGENT_FIRING the firing as JSON. It has
30 seconds; then it and its children get SIGKILL.
"""

import json
import os
import threading
import time
from typing import Final

from modelagent.children import describe_exit, spawn
from modelagent.inference.actions import Firing

_SECONDS: Final = 30.0
_MOST: Final = 64 * 1024  # bytes of the firing: an environment has its limits


class CommandAction:
    """See Action. `argv`: an absolute path, and arguments."""

    name = "command"

    def __init__(self, argv: tuple[str, ...], seconds: float = _SECONDS) -> None:
        self._argv = argv
        self._seconds = seconds

    def do(self, firing: Firing, stop: threading.Event) -> None:
        """Run it to its end; OSError when it could not be started, failed or took too long."""
        text = json.dumps(firing.document(), separators=(",", ":"))
        if len(text) > _MOST:
            text = json.dumps({**firing.document(), "result": {"id": firing.row.id}})
        child = spawn(
            self._argv,
            env={**os.environ, "MODELAGENT_RULE": firing.rule, "MODELAGENT_FIRING": text},
            capture=4096,
        )
        try:
            deadline = time.monotonic() + self._seconds
            status = child.wait(0.05)
            while status is None and not stop.is_set() and time.monotonic() < deadline:
                status = child.wait(0.2)
            if status is None:
                raise OSError(f"{self._argv[0]}: not done within {self._seconds:g} s")
            if status:
                said = child.said(200).strip().splitlines()
                raise OSError(f"{self._argv[0]}: {describe_exit(status)}{': ' + said[-1] if said else ''}")
        finally:
            child.kill()
            child.wait(5.0)
            child.close()
