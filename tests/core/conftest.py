"""Hypothesis for the core: the same examples at every run, more of them with MODELAGENT_HYPOTHESIS=heavy."""

import os

from hypothesis import HealthCheck, settings

_CALM = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("core", settings(**_CALM, max_examples=60, stateful_step_count=60))  # type: ignore[arg-type]
settings.register_profile("core-heavy", settings(**_CALM, max_examples=2000, stateful_step_count=120))  # type: ignore[arg-type]
settings.load_profile("core-heavy" if os.environ.get("MODELAGENT_HYPOTHESIS") == "heavy" else "core")
