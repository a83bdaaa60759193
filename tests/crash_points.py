"""Cut or fail an operation at every point where it changes the disk.

    for count, point in enumerate(points_of(operation)):       # run once, watching
        killed_at(count, operation)                             # in a child that dies there, as by SIGKILL

A child is forked, so that no clean-up code runs: what is on disk is what a killed process leaves.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from modelagent import durable

SPACE_TAKING = ("create", "write", "symlink", "mkdir", "link", "append")


def points_of(operation: Callable[[], object]) -> list[tuple[str, str]]:
    """Run the operation to its end and list its points: (operation, path)."""
    seen: list[tuple[str, str]] = []
    with hooked(lambda name, path: seen.append((name, path))):
        operation()
    return seen


def killed_at(count: int, operation: Callable[[], object]) -> bool:
    """Run the operation in a child that is killed before its point number `count`; True when it was."""
    child = os.fork()
    if child == 0:
        left = count

        def die(name: str, path: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        try:
            durable.set_hook(die)
            operation()
        except BaseException:  # noqa: BLE001 - nothing may leave the child
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the operation failed in the child"
    return False


@contextlib.contextmanager
def hooked(hook: Callable[[str, str], None]) -> Iterator[None]:
    durable.set_hook(hook)
    try:
        yield
    finally:
        durable.set_hook(None)


def failing_once(count: int, error: int) -> Callable[[str, str], None]:
    """A hook that raises the error at point number `count` alone."""
    left = count

    def hook(name: str, path: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(error, os.strerror(error), path)

    return hook


def failing_from(count: int, error: int, names: tuple[str, ...] = ()) -> Callable[[str, str], None]:
    """A hook that raises the error from point number `count` on, for all points or those with these names."""
    left = count

    def hook(name: str, path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0 and (not names or name in names):
            raise OSError(error, os.strerror(error), path)

    return hook
