"""Where events come from: settings edits, the broker, the control socket, labels, health.

This file knows what every input is given by the driver, and nothing else; it must stay light, because inference
imports `inputs.config` through it. No input reads a clock or throws dice for an event: it emits a factory, and the
driver stamps it with the one clock and the one source of chance.

    def emit(model: str, make: EventFactory) -> None:
        queue.put((model, make(clock.now(), draw())))       # the driver's side

    emit("digits", lambda at, draw: Wanted(at, draw, verb="hold", origin="cli", id="7f3a"))

Commands go the same way through `Submit`, with a `Reply` that the driver calls for every answer it has (first
`accepted` or `refused`, perhaps later `done` or `failed`); the request's id is the driver's key for both.
"""

from collections.abc import Callable, Mapping
from typing import Any

from modelagent.core.events import Event, Instant

# Makes one event of the moment and the draw (from [0, 1)) that the driver gives it.
EventFactory = Callable[[Instant, float], Event]

# Takes the name of the model that the event is for, and the factory. Never blocks, may be called from any thread.
Emit = Callable[[str, EventFactory], None]

# Takes one answer, a JSON-like object with `id`, `status` and `reason`. Never blocks, may be called from any
# thread and more than once; answers after the asker has gone are dropped.
Reply = Callable[[Mapping[str, Any]], None]
