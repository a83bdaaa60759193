"""What every test shares: Hypothesis gives the same examples each time, and does not time a busy machine."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("heavy", settings.get_profile("steady"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("MODELAGENT_HYPOTHESIS", "steady"))
