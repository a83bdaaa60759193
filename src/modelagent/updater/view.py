"""What only the running updater can show: each gate's present answer, and one line for systemd.

This file knows how answers read to a person. It decides nothing and touches nothing; what the state itself says is
`core/describe.py`'s, which works without a daemon too.

    explain(state, answers)["download"]       # {"answer": "wait", "reason": "...", "gate": "window", "until": ...}
"""

from typing import Any

from modelagent.core.state import Answers, State, version
from modelagent.core.verdicts import Allow, Verdict, Wait


def explain(state: State, answers: Answers) -> dict[str, Any]:
    """Each gate's present answer, for `explain`."""
    return {
        "model": state.model,
        "phase": state.phase.value,
        "waiting": state.waiting,
        "check": _verdict(answers.may_check),
        "download": _verdict(answers.may_acquire),
        "canary": _verdict(answers.may_canary),
        "activate": _verdict(answers.may_activate),
        "canary_token": "free" if answers.canary_free else "another model's canary is running",
        "load_token": "free" if answers.load_free else "another model is being loaded",
        "probation": {"standing": answers.probation.standing.value, "reason": answers.probation.reason},
    }


def summary(state: State) -> str:
    """One line, for systemd's STATUS."""
    running = version(state, state.running) if state.running else "nothing"
    return f"{state.model}: {running} runs, {state.phase.value}" + (f" ({state.waiting})" if state.waiting else "")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    word = "allow" if isinstance(verdict, Allow) else "wait" if isinstance(verdict, Wait) else "deny"
    shown: dict[str, Any] = {"answer": word, "reason": verdict.reason, "gate": verdict.gate}
    if isinstance(verdict, Wait):
        shown["until"] = verdict.until
    return shown
