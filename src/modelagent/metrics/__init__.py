"""Metrics: what the device says of itself, for Prometheus and for whoever asks whether it is well.

A third process that only reads: health files and the control socket's `status` and `explain`. Nothing waits for it, and
nothing is lost without it.

    exit_status = run(settings)          # until SIGTERM or SIGINT
"""

import signal
import threading

from modelagent.inputs.schema import Settings
from modelagent.notify import notify


def run(settings: Settings) -> int:
    """Serve /metrics, /healthz and /readyz until SIGTERM or SIGINT.

    Raises:
        DeviceError: `port` when the address cannot be listened on.
    """
    # `modelagent top` reads without serving, and shall not pay for the page.
    from modelagent.metrics.reading import Reader  # noqa: PLC0415
    from modelagent.metrics.server import MetricsServer  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = MetricsServer(settings.metrics.listen, Reader(settings))
    server.start()
    notify("READY=1", f"STATUS=listening on {server.address}")
    # A timed wait: a signal that comes between two instructions is seen within half a second.
    while not stop.wait(0.5):
        pass
    notify("STOPPING=1")
    server.close()
    return 0
