"""A thread that dies without a word must not leave an updater that waits for it for ever."""

import threading

import pytest

from modelagent.updater.hands import Hands


def test_a_thread_that_is_gone_is_noticed() -> None:
    done = threading.Event()
    hands = Hands(lambda *_: done.set())
    hands.do("check", "digits", 1, lambda _: {})
    assert done.wait(30)
    hands.check()
    hands.stop()
    with pytest.raises(RuntimeError, match="hand-check is gone"):
        hands.check()
