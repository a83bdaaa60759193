"""What a check has to say besides its answer: told when it is new, kept for `status` while it stays."""

from dataclasses import replace

from modelagent.core.describe import describe
from modelagent.core.effects import Tell
from modelagent.core.events import Instant, Learned
from modelagent.core.machine import step
from modelagent.core.state import Answers, State, Watch, Watching


def told(state: State, *notes: str) -> tuple[State, list[str]]:
    """The state after a check that ended with these notes, and what was told of it."""
    checking = replace(state, watch=replace(state.watch, kind=Watching.CHECKING, effect=5))
    event = Learned(Instant(1.8e9, 10.0, "boot"), 0.5, 5, None, notes=notes)
    after, effects = step(checking, event, Answers())
    texts = [note.text for e in effects if isinstance(e, Tell) for note in e.notes if note.kind == "repository"]
    return after, texts


def test_a_warning_is_told_once_while_it_stays_and_again_when_it_comes_back() -> None:
    state, texts = told(State("m", watch=Watch()), "timestamp ends soon")
    assert texts == ["timestamp ends soon"]
    state, texts = told(state, "timestamp ends soon", "bad-bundle: /media/stick")
    assert texts == ["bad-bundle: /media/stick"]
    assert describe(state)["check"]["notes"] == ["timestamp ends soon", "bad-bundle: /media/stick"]
    state, texts = told(state, "timestamp ends soon", "bad-bundle: /media/stick")
    assert texts == []
    state, texts = told(state)
    assert (texts, describe(state)["check"]["notes"]) == ([], [])
    assert told(state, "timestamp ends soon")[1] == ["timestamp ends soon"]
