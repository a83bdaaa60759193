"""What every test shares: Hypothesis gives the same examples each time, and does not time a busy machine."""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("heavy", settings.get_profile("steady"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("MODELAGENT_HYPOTHESIS", "steady"))

# A shell starts what it puts into the background with SIGINT ignored, and so would every child of these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
