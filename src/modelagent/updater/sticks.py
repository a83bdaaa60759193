"""Sticks: bundles that somebody brings, by `modelagent install` or by plugging them in.

This file knows where to look and what a bundle looks like from outside. It does not look inside: the check does, and
trusts it no more than any mirror.

    sticks = Sticks(acquirer, Path("/media"), state_dir / "sticks.json", on_new=check_now)
    sticks.install(Path("/home/op/digits.modelagent"))      # attached; also after a restart, while it is there
    with sticks: ...                                        # a thread looks below /media every few seconds

The thread is there because a dying medium can hold whoever looks at it for minutes.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from modelagent import durable
from modelagent.errors import UNREADABLE, AgentError, DeviceError, UsageError
from modelagent.steps.acquire import Acquirer
from modelagent.updater.way import source_at

SUFFIX: Final = ".modelagent"
_REST_S: Final = 60.0  # where there is nothing to look for
_LOOK_S: Final = 3.0
_DEPTH: Final = 3  # /media/USER/LABEL/bundle
_MOST: Final = 500  # entries looked at in one directory
_KEPT: Final = 8  # paths remembered over a restart
_FIRST: Final = "metadata/timestamp.json"  # whether it is a bundle shows here; whether it is believed, in the check
_FIRST_MOST: Final = 16 * 1024  # bytes
_log = logging.getLogger("modelagent.updater")
Identity = tuple[int, int, int]


class Sticks:
    """Attaches and detaches bundles.

    Args:
        acquirer: what they are attached to.
        media: below which sticks are mounted; None looks nowhere.
        path: remembers what was installed by hand.
        on_new: told the place of each bundle that has appeared; called from the looking thread.
    """

    def __init__(self, acquirer: Acquirer, media: Path | None, path: Path, on_new: Callable[[Path], None]) -> None:
        self._acquirer = acquirer
        self._media = media
        self._path = path
        self._on_new = on_new
        self._seen: dict[Path, Identity] = {}
        self._byhand: list[Path] = []
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        with contextlib.suppress(*UNREADABLE):
            kept: Any = json.loads(path.read_bytes())["paths"]
            self._byhand = [Path(str(item)) for item in kept]

    def install(self, path: Path) -> None:
        """Attach a bundle by hand.

        Raises:
            UsageError: `bundle`: there is none, or one that cannot be read.
            DeviceError: that cannot be remembered.
        """
        source = source_at(path)
        try:
            with source.fetch(_FIRST, limit=_FIRST_MOST) as body:
                document = json.loads(b"".join(body))
            if not isinstance(document, dict) or "signed" not in document:
                raise ValueError("it is no signed document")
        except AgentError as error:
            raise UsageError(f"{error.message}; nothing was installed", code="bundle") from error
        except (ValueError, RecursionError) as error:
            why = f"{path}: {_FIRST}: {error}; write the bundle again with `modelagent repo bundle`"
            raise UsageError(why, code="bundle") from error
        with self._guard:
            self._byhand = [path, *(other for other in self._byhand if other != path)][:_KEPT]
            self._seen[path] = _identity(path) or (0, 0, 0)
            self._keep()
        self._acquirer.attach(source)

    def look(self) -> None:
        """Attach what has appeared, detach what is gone."""
        here = dict(self._found())
        forgotten = False
        with self._guard:
            for path in list(self._byhand):
                identity = _identity(path)
                if identity is None:
                    self._byhand.remove(path)
                    forgotten = True
                else:
                    here[path] = identity
            if forgotten:
                with contextlib.suppress(DeviceError):  # a full disk: after a restart it is found to be gone once more
                    self._keep()
            gone = set(self._seen) - set(here)
            new = [path for path, identity in here.items() if self._seen.get(path) != identity]
            self._seen = here
        for path in gone:
            self._acquirer.detach(str(path))
            _log.info("the bundle %s is gone", path)
        for path in new:
            try:
                self._acquirer.attach(source_at(path))
            except UsageError as error:  # pulled out again, or of another kind than it looked
                _log.warning("%s", error.message)
                continue
            _log.info("a bundle is here: %s", path)
            self._on_new(path)

    def _found(self) -> Iterator[tuple[Path, Identity]]:
        if self._media is None:
            return
        waiting = [(self._media, 0)]
        while waiting:
            directory, depth = waiting.pop()
            if (identity := _identity(directory)) is not None:
                yield directory, identity
                continue
            for entry in _entries(directory):
                if entry.suffix == SUFFIX and (found := _identity(entry)) is not None:
                    yield entry, found
                elif depth < _DEPTH and not entry.name.startswith(".") and _is_directory(entry):
                    waiting.append((entry, depth + 1))

    def _keep(self) -> None:
        document = json.dumps({"schema": 1, "paths": [str(path) for path in self._byhand]})
        with durable.device_errors("remembering the bundle"):
            durable.write_atomic(self._path, document.encode())

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S if self._media is not None or self._byhand else _REST_S):
            with contextlib.suppress(OSError):
                self.look()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="sticks", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a thread that a dying medium holds is left to the process's end


def _identity(path: Path) -> Identity | None:
    """What tells one bundle from another in the same place; None where there is none."""
    try:
        told = path.lstat()
        if path.is_dir():
            told = (path / "metadata" / "timestamp.json").lstat()
        return told.st_dev, told.st_ino, told.st_mtime_ns
    except OSError:
        return None


def _is_directory(path: Path) -> bool:
    """Whether one may look into it; a medium that is dying, or not for us, must not hide the others."""
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114 - pathlib's raise for both


def _entries(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as found:
            return sorted(Path(entry.path) for entry, _ in zip(found, range(_MOST), strict=False))
    except OSError:
        return []
