"""Every operation of the store, killed before every single point and failing at every single point."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crash_points import SPACE_TAKING, failing_from, failing_once, hooked, killed_at, points_of
from modelagent.errors import AgentError, DeviceError, SourceError
from store_cases import Depot

CODES = {errno.ENOSPC: "no-space", errno.EIO: "io", errno.EROFS: "read-only", errno.EMFILE: "too-many-files"}


class World:
    """A store with 1.0.0 and 1.1.0 confirmed, and 1.2.0 fetched; `at` brings it to the eve of an operation."""

    def __init__(self, directory: Path) -> None:
        self.depot = Depot(directory)
        self.one = self.depot.install("1.0.0")
        self.two = self.depot.install("1.1.0", fallback=self.one)
        self.loose = self.depot.offer("0.9.0")
        self.depot.store.stage(self.loose, self.depot.incoming, self.one)
        self.three = self.depot.offer("1.2.0")

    def operations(self, depot: Depot) -> dict[str, Callable[[], object]]:
        store = depot.store

        def stage() -> object:
            depot.acquire(self.three)
            return store.stage(self.three, depot.incoming, self.two)

        return {
            "stage": stage,
            "activate": lambda: store.activate(self.three, self.two, self.two),
            "confirm": lambda: store.confirm(self.three),
            "keep_peak": lambda: store.keep_peak(self.three, 77_000),
            "set_fallback": lambda: store.set_fallback(self.one),
            "unset_fallback": lambda: store.set_fallback(None),
            "set_shadow": lambda: store.set_shadow(self.two),
            "revert": lambda: store.revert(self.three, self.two, self.one, unconfirm=True),
            "revert_without_fallback": lambda: store.revert(self.three, self.two, None, unconfirm=False),
            "revert_elsewhere": lambda: store.revert(self.three, self.one, self.two, unconfirm=False),
            "stop": store.stop,
            "vacuum": lambda: store.vacuum((), (), 0.0, 0, 1e12),
        }

    def at(self, name: str, directory: Path) -> Depot:
        """A copy of the world in which the operation is the next thing to do."""
        shutil.copytree(self.depot.state_dir, directory, symlinks=True)
        depot = Depot(directory)
        depot.bytes = self.depot.bytes
        before = {"stage": (), "activate": ("stage",)}.get(name, ("stage", "activate"))
        for earlier in before:
            self.operations(depot)[earlier]()
        if name.startswith("revert"):
            depot.store.confirm(self.three)
        return depot


OPERATIONS = (
    "stage",
    "activate",
    "confirm",
    "keep_peak",
    "set_fallback",
    "unset_fallback",
    "set_shadow",
    "revert",
    "revert_without_fallback",
    "revert_elsewhere",
    "stop",
    "vacuum",
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.mark.process
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_before_every_point(world: World, tmp_path: Path, name: str) -> None:
    whole = world.at(name, tmp_path / "whole")
    old = whole.check()
    points = points_of(world.operations(whole)[name])
    new, expected = whole.check(), whole.tree()
    assert points
    for count in range(len(points) + 1):
        depot = world.at(name, tmp_path / f"cut{count}")
        operation = world.operations(depot)[name]
        assert killed_at(count, operation) == (count < len(points)), points[count]
        facts = depot.check()
        assert facts.current in (old.current, new.current)
        assert facts.fallback in (old.fallback, new.fallback, None)
        operation()
        depot.check()
        if any(path.endswith(".tmp") for path in depot.tree()):
            depot.store.vacuum({world.loose, world.three}, (), 1e12, 10**12, 0.0)
        assert depot.tree() == expected, f"killed before {points[min(count, len(points) - 1)]}"
        shutil.rmtree(depot.state_dir)


@pytest.mark.parametrize(
    ("name", "error"),
    [(name, error) for name in OPERATIONS for error in (errno.ENOSPC, errno.EIO)]
    + [(name, error) for name in ("stage", "activate", "revert") for error in (errno.EROFS, errno.EMFILE)],
)
def test_failing_once_at_every_point(world: World, tmp_path: Path, name: str, error: int) -> None:
    whole = world.at(name, tmp_path / "whole")
    points = points_of(world.operations(whole)[name])
    expected = whole.tree()
    for count, point in enumerate(points):
        depot = world.at(name, tmp_path / f"cut{count}")
        operation = world.operations(depot)[name]
        failed = None
        try:
            with hooked(failing_once(count, error)):
                operation()
        except DeviceError as caught:
            failed = caught.code
        if failed is not None:
            assert failed == CODES[error], point
        else:
            assert depot.store.warnings or depot.tree() == expected, f"{point} failed in silence"
        depot.check()
        operation()
        depot.check()
        assert depot.tree() == expected, f"{CODES[error]} at {point}"
        shutil.rmtree(depot.state_dir)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_device_that_stays_full_from_any_point_on(world: World, tmp_path: Path, name: str) -> None:
    points = points_of(world.operations(world.at(name, tmp_path / "whole"))[name])
    for count in range(len(points)):
        depot = world.at(name, tmp_path / f"cut{count}")
        link = depot.store.facts().link
        failed = None
        try:
            with hooked(failing_from(count, errno.ENOSPC, SPACE_TAKING)):
                world.operations(depot)[name]()
        except AgentError as caught:
            failed = caught.code
        if failed is not None:
            assert failed == "no-space"
            assert name not in ("revert", "revert_without_fallback"), "a revert needs no space"
        facts = depot.check()
        with hooked(failing_from(0, errno.ENOSPC, SPACE_TAKING)):
            if facts.current == world.three and facts.fallback is not None:
                back = depot.store.revert(world.three, facts.fallback, None, unconfirm=False)
                assert back != link
                assert depot.check().current == facts.fallback
        shutil.rmtree(depot.state_dir)


@pytest.mark.parametrize("broken", [None, ".current.revert"])
@pytest.mark.parametrize("fallback", ["one", None])
def test_revert_on_a_full_disk(world: World, tmp_path: Path, broken: str | None, fallback: str | None) -> None:
    depot = world.at("revert", tmp_path / "full")
    if broken:
        (depot.store.root / broken).unlink()
    with hooked(failing_from(0, errno.ENOSPC, SPACE_TAKING)):
        depot.store.revert(world.three, world.two, world.one if fallback else None, unconfirm=True)
    facts = depot.check()
    assert facts.current == world.two
    assert facts.fallback is None, "removed rather than left naming a wrong slot"
    assert bool(depot.store.warnings) == bool(fallback)
    assert all(s.confirmed != (s.release.digest == world.three) for s in facts.slots if s.release.number > 90)


def test_a_lost_file_asks_for_another_acquire(world: World, tmp_path: Path) -> None:
    depot = world.at("stage", tmp_path / "lost")
    for entry in depot.incoming.iterdir():
        entry.unlink()
    with pytest.raises(SourceError):
        depot.store.stage(world.three, depot.incoming, world.two)
    depot.check()
