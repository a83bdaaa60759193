"""What `[policy]` refuses, in words, and that settings and policies agree on defaults."""

from pathlib import Path
from typing import Any

import pytest

from modelagent.errors import UsageError
from modelagent.inputs.config import Settings, parse
from modelagent.policies import Question
from modelagent.policies.conditional import Conditional
from modelagent.policies.feedback import Feedback, Sooner
from modelagent.policies.periodic import Periodic
from modelagent.policies.standard import schedule, standard


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"check_cron": "every day"}, "five fields"),
        ({"check_cron": "0 0 31 2 *"}, "a date that never comes"),
        ({"check_cron": "61 * * * *"}, "five fields"),
        ({"check_floor": "fast"}, "policy.check_floor"),
        ({"check_ceiling": "2000d"}, "policy.check_ceiling"),
        ({"feedback": "yes"}, "policy.feedback"),
        ({"timezone": "Mars/Olympus"}, "policy.timezone"),
        ({"download_windows": ["Mon 22-23"]}, "policy.download_windows"),
        ({"download": {"go_ahead": ["memory"]}}, "policy.download.go_ahead"),
        ({"download": {"max_wait": 0}}, "policy.download.max_wait"),
        ({"canary": {"max_queue": 1.5}}, "policy.canary.max_queue"),
        ({"canary": {"max_pressure": 101}}, "policy.canary.max_pressure"),
        ({"check": {"min_rate_kbps": -1}}, "policy.check.min_rate_kbps"),
        ({"activate": {"quiet": True}}, "policy.activate.quiet"),
        ({"allow_metered": False}, "policy.allow_metered"),
    ],
)
def test_refused_with_the_key(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse({"policy": policy}, Path("modelagent.toml"))


def test_defaults() -> None:
    policies = standard(Settings().policy, 256)
    (conditions,) = (policy for policy in policies if isinstance(policy, Conditional))
    asked = {question: {c.name for c in conditions.conditions if question in c.questions} for question in Question}
    assert asked == {
        Question.CHECK: {"link"},
        Question.ACQUIRE: {"link", "budget", "disk"},
        Question.CANARY: {"memory", "inhibit"},
        Question.ACTIVATE: {"inhibit"},
    }


def test_which_schedule() -> None:
    def made(**policy: Any) -> object:
        return schedule(parse({"policy": policy}, Path("modelagent.toml")).policy)

    assert made() == Feedback(900.0, 21_600.0, 21_600.0, 0.1)
    assert made(check_ceiling="1d") == Feedback(900.0, 21_600.0, 86_400.0, 0.1)
    assert made(feedback=False) == Periodic(21_600.0, 0.1)
    assert isinstance(made(check_cron="0 3 * * *"), Sooner)
    assert type(made(check_cron="0 3 * * *", feedback=False)).__name__ == "Cron"
