"""What there is to know about this device: health files, and the updater's own words.

This file knows where both are found, and that either may be missing, old or wrong. It does not know how a number is
shown.

    reader = Reader(settings)
    view = reader.read()                    # at most once a second anew, whoever asks
    view.models["digits"].health            # the health record, or None with `silence` saying why
    view.ready                              # "" or why this device is not ready
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelagent.errors import AgentError
from modelagent.inputs.control import ask
from modelagent.inputs.schema import Settings

STALE_S: Final = 10.0  # seconds without a new health record: inference is taken for dead
_MAX_HEALTH: Final = 4 * 1024 * 1024  # bytes
_FRESH: Final = 1.0  # seconds for which what was read is given to everybody
_PATIENCE: Final = 2.0  # seconds for an answer of the updater; a scrape has ten


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model. `silence` says why `health` is missing or old; `state` and `gates` are the updater's."""

    health: Mapping[str, Any] | None
    age_s: float | None
    silence: str
    state: Mapping[str, Any]
    gates: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """The device at one moment. `updater` is "" while it answers, else why it does not."""

    device: str
    updater: str
    status: Mapping[str, Any]
    models: Mapping[str, ModelView] = field(default_factory=dict)

    @property
    def ready(self) -> str:
        """Why this device is not ready, or ""."""
        problems = [f"updater: {self.updater}"] if self.updater else []
        for name, model in self.models.items():
            if model.silence:
                problems.append(f"{name}: {model.silence}")
            elif not (model.health or {}).get("running"):
                problems.append(f"{name}: {(model.health or {}).get('idle') or 'nothing runs'}")
        return "; ".join(problems)


class Reader:
    """See the head of the file. Any thread may call `read`.

    Args:
        settings: whose models and paths.
        question: asks the updater; see `inputs.control.ask`.
        clock: seconds since boot.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        question: Callable[[Path, Mapping[str, Any], float], Mapping[str, Any]] = ask,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ask = question
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._at = float("-inf")

    def read(self) -> View:
        """The device now, or at most a second ago."""
        with self._lock:  # who comes meanwhile waits for the same answer
            if self._view is None or self._clock() - self._at >= _FRESH:
                self._view = self._look()
                self._at = self._clock()
            return self._view

    def _look(self) -> View:
        status, why = self._question("status", None)
        states = status.get("models")
        models = {}
        for name in self._settings.models:
            health, age, silence = self._health(name)
            explained = {} if why else self._question("explain", name)[0]
            models[name] = ModelView(health, age, silence, _of(states, name), _of(explained.get("models"), name))
        return View(self._settings.device.id, why, status, models)

    def _question(self, verb: str, model: str | None) -> tuple[Mapping[str, Any], str]:
        question: dict[str, Any] = {"id": f"metrics-{secrets.token_hex(6)}", "verb": verb}
        if model is not None:
            question["model"] = model
        try:
            answer = self._ask(self._settings.paths.control_socket, question, _PATIENCE)
        except AgentError as error:
            return {}, error.message
        result = answer.get("result")
        return (result, "") if isinstance(result, Mapping) else ({}, str(answer.get("reason") or "no result"))

    def _health(self, name: str) -> tuple[Mapping[str, Any] | None, float | None, str]:
        path = self._settings.paths.health(name)
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(_MAX_HEALTH))
            age = self._clock() - float(document["mono"])
        except FileNotFoundError:
            return None, None, "inference has written no health file"
        except OSError as error:
            return None, None, f"{path}: {error.strerror}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, None, f"{path}: not a whole health file"
        if age < -1.0:
            return None, None, "the health file is from an earlier boot"
        return document, max(0.0, age), f"no sign of life for {age:.0f} s" if age > STALE_S else ""


def _of(models: object, name: str) -> Mapping[str, Any]:
    """What an answer says of one model; empty when it says nothing."""
    found = models.get(name) if isinstance(models, Mapping) else None
    return found if isinstance(found, Mapping) else {}
