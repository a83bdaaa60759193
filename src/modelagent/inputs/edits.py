"""Edits of the settings file, noticed while the agent runs.

This file knows how editors save (rename and replace, truncate and write in parts, several files one after another)
and waits until they are done. It does not know what a setting means: a good edit is handed on as a whole and as one
wish for each model whose wishes changed; a bad one as its message. The settings in force stay until a good edit.

    with Edits(path, settings, emit=emit, on_good=driver.settings_changed, on_bad=driver.settings_refused) as edits:
        edits.reload()            # SIGHUP, or the verb `reload`: look now, without waiting for a notice
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from modelagent.core.events import ConfigWish, Event, Instant, Verb, Wanted
from modelagent.errors import UsageError
from modelagent.inputs import Emit, EventFactory
from modelagent.inputs.config import Settings, load

QUIET_S: Final = 0.3  # no further notice for this long: the editor is done
LONGEST_S: Final = 3.0  # ... or this long after the first one, whatever happens
# Notices of reading are left out: our own reading would cause the next one, for ever.
_CHANGES: Final = ("created", "modified", "moved", "deleted", "closed")


def wish_event(wish: ConfigWish) -> EventFactory:
    """What the settings say should hold, as an event; each call is a new wish with an id of its own."""

    def make(at: Instant, draw: float) -> Event:
        # The moment and the draw make the id new: the same settings, set again later, are a new wish.
        name = f"config-{at.wall:.3f}-{int(draw * 1e9):09d}"
        return Wanted(at, draw, verb=Verb.CONFIG, origin="config", id=name, settings=wish)

    return make


def wishes(new: Settings, old: Settings | None = None) -> Iterator[tuple[str, EventFactory]]:
    """(model, event) for each model whose wish differs from `old`; without `old` (at start) for every one."""
    for name, model in new.models.items():
        before = None if old is None else old.models.get(name)
        if before is None or before.wish != model.wish:
            yield name, wish_event(model.wish)


def changed_keys(old: Settings, new: Settings) -> tuple[str, ...]:
    """The key paths that differ, in order of name; a model that came or went is named as a whole."""
    return tuple(sorted(_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), "")))


def _differences(old: dict[str, Any], new: dict[str, Any], at: str) -> Iterator[str]:
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{at}{key}.")
        elif before != after:
            yield f"{at}{key}"


class Edits(FileSystemEventHandler):
    """Watches one settings file with its drop-ins between `start` and `stop`."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        *,
        emit: Emit,
        on_good: Callable[[Settings], None],
        on_bad: Callable[[str], None],
        quiet: float = QUIET_S,
        problem: str = "",
    ) -> None:
        """`settings` are those in force. The callbacks are called from this object's thread, one at a time.

        `on_good` gets new settings, before their wishes are emitted; also when a bad edit is undone (the same ones
        again). `on_bad` gets the message, once for each different one.
        """
        self._path = path.absolute()
        self._settings = settings
        self._emit = emit
        self._on_good = on_good
        self._on_bad = on_bad
        self._quiet = quiet
        self._problem = problem  # known already: told once, and undone by the next good file
        self._notices = threading.Condition()
        self._first = self._last = 0.0  # of the notices not looked at yet; 0: there are none
        self._now = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        # The time-out is watchdog's pulse while nothing happens; its stop does not wait for it.
        self._observer = Observer(timeout=60)
        self._drop_ins: Any = None

    def start(self) -> None:
        """Begin to watch; raises OSError when the directory is missing or inotify has no watch left."""
        self._observer.schedule(self, str(self._path.parent))
        self._observer.start()
        self._follow_drop_ins()
        self._thread = threading.Thread(target=self._run, name="edits", daemon=True)
        self._thread.start()
        self.reload()  # an edit between the reading of `settings` and this moment has given no notice

    def stop(self) -> None:
        """End the watch; safe to call twice."""
        if self._thread is None:
            return
        with self._notices:
            self._stopping = True
            self._notices.notify()
        self._thread.join()
        self._thread = None
        self._observer.stop()
        self._observer.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reload(self) -> None:
        """Look now, in the background; what is found arrives as after an edit."""
        with self._notices:
            self._now = True
            self._notices.notify()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog for each notice."""
        if event.event_type in _CHANGES and any(map(self._concerns, (event.src_path, event.dest_path))):
            with self._notices:
                self._last = time.monotonic()
                self._first = self._first or self._last
                self._notices.notify()

    def _concerns(self, name: str | bytes) -> bool:
        path = Path(name.decode() if isinstance(name, bytes) else name)
        # Names with two dots: a mounted configuration map is switched by renaming `..data`, the file itself is a link.
        return path.suffix == ".toml" or path.name in {self._path.name, "conf.d"} or path.name.startswith("..")

    def _run(self) -> None:
        while self._wait():
            self._follow_drop_ins()
            try:
                found = load(self._path)
            except UsageError as error:
                # Perhaps half a file: look again if more comes, else believe it.
                if not self._more_comes():
                    self._refuse(error.message)
                continue
            self._accept(found)

    def _wait(self) -> bool:
        """Sleep until there is something to look at and the editor is done; False at the end."""
        with self._notices:
            while not self._stopping:
                if self._now:
                    break
                if not self._first:
                    self._notices.wait()
                    continue
                left = min(self._last + self._quiet, self._first + LONGEST_S) - time.monotonic()
                if left <= 0:
                    break
                self._notices.wait(left)
            self._first = self._last = 0.0
            self._now = False
            return not self._stopping

    def _more_comes(self) -> bool:
        with self._notices:
            if not self._first and not self._stopping:
                self._notices.wait(self._quiet)
            return bool(self._first) or self._stopping

    def _refuse(self, message: str) -> None:
        if message != self._problem:
            self._problem = message
            self._on_bad(message)

    def _accept(self, found: Settings) -> None:
        old = self._settings
        if found == old and not self._problem:
            return
        self._settings, self._problem = found, ""
        self._on_good(found)
        for model, make in wishes(found, old):
            self._emit(model, make)

    def _follow_drop_ins(self) -> None:
        """Watch conf.d once it exists; made anew it is another directory, so the old watch is given up."""
        directory = self._path.parent / "conf.d"
        try:
            inode = directory.stat().st_ino if directory.is_dir() else 0
        except OSError:
            inode = 0
        if self._drop_ins is not None and self._drop_ins[1] != inode:
            self._observer.unschedule(self._drop_ins[0])
            self._drop_ins = None
        if inode and self._drop_ins is None:
            try:
                self._drop_ins = (self._observer.schedule(self, str(directory)), inode)
            except OSError:
                self._drop_ins = None  # removed again meanwhile: the next notice tells
