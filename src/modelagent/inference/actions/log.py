"""A rule's line in the log.

This file knows the line. It does not know where the log goes.

    LogAction().do(firing, stop)         # rule scrap: scratch (0.93) on frame camera:17, result 9f2c-17
"""

import logging
import threading

from modelagent.inference.actions import Firing

_log = logging.getLogger("modelagent.rules")


class LogAction:
    """See Action."""

    name = "log"

    def do(self, firing: Firing, stop: threading.Event) -> None:  # noqa: ARG002 - it takes no time
        """Write one line."""
        row = firing.row
        score = "" if row.confidence is None else f" ({row.confidence:.3g})"
        _log.warning("rule %s: %s%s on frame %s, result %s", firing.rule, row.label or "met", score, row.frame, row.id)
