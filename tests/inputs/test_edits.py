"""Edits of the settings, with real files and real notices, saved in all the ways editors save."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelagent.core.events import Instant, Wanted
from modelagent.core.state import State
from modelagent.inputs import EventFactory
from modelagent.inputs.config import Settings, load, parse
from modelagent.inputs.edits import Edits, changed_keys, wishes
from modelagent.updater import Updater

AT = Instant(1000.0, 10.0, "boot")
START = '[models.digits]\nchannel = "stable"\n'
PATIENCE = 10.0  # seconds; a notice takes a fraction of one


class Watched:
    """One settings directory under watch, and what came of it, in order."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "modelagent.toml"
        self.path.write_text(START)
        self.seen: queue.Queue[object] = queue.Queue()
        self.edits = Edits(
            self.path, load(self.path), emit=self.emit, on_good=self.seen.put, on_bad=self.seen.put, quiet=0.05
        )

    def emit(self, model: str, make: EventFactory) -> None:
        event = make(AT, 0.25)
        assert isinstance(event, Wanted)
        self.seen.put((model, event))

    def good(self) -> Settings:
        found = self.seen.get(timeout=PATIENCE)
        assert isinstance(found, Settings), found
        return found

    def bad(self) -> str:
        found = self.seen.get(timeout=PATIENCE)
        assert isinstance(found, str), found
        return found

    def wish(self) -> Wanted:
        found = self.seen.get(timeout=PATIENCE)
        assert isinstance(found, tuple), found
        assert isinstance(found[1], Wanted)
        return found[1]

    def nothing_more(self) -> None:
        """What follows the marker edit is the marker alone: nothing else was pending."""
        self.path.write_text(self.path.read_text() + '\n[log]\nlevel = "debug"\n')
        assert self.good().log.level == "debug"
        assert self.seen.empty()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    with watched.edits:
        yield watched


def test_a_good_edit_arrives_as_settings_and_as_a_wish(watched: Watched) -> None:
    watched.path.write_text('[models.digits]\nchannel = "beta"\nhold = true\n')
    assert watched.good().models["digits"].channel == "beta"
    wish = watched.wish()
    assert (wish.verb, wish.origin) == ("config", "config")
    assert wish.settings is not None
    assert (wish.settings.channel, wish.settings.hold) == ("beta", True)
    watched.nothing_more()


def test_rename_and_replace(watched: Watched) -> None:
    for channel in ("one", "two"):
        fresh = watched.path.with_name(".modelagent.toml.swp~")
        fresh.write_text(f'[models.digits]\nchannel = "{channel}"\n')
        watched.path.rename(watched.path.with_name("modelagent.toml~"))
        fresh.rename(watched.path)
        assert watched.good().models["digits"].channel == channel
        assert watched.wish().settings is not None


def test_a_file_written_in_parts_is_read_once_whole(watched: Watched) -> None:
    with watched.path.open("w") as file:
        for part in ("[models.dig", 'its]\nchannel = "', 'beta"\n', "hold = true\n"):
            file.write(part)
            file.flush()
    assert watched.good().models["digits"].hold
    assert watched.wish().settings is not None
    watched.nothing_more()


def test_a_bad_edit_is_told_once_and_undoing_it_too(watched: Watched) -> None:
    watched.path.write_text("[models.digits]\nchannel = 5\n")
    assert "models.digits.channel: found 5" in watched.bad()
    watched.path.write_text(START)
    assert watched.good() == parse({"models": {"digits": {}}}, watched.path)
    watched.nothing_more()


def test_an_edit_that_changes_nothing_is_silent(watched: Watched) -> None:
    watched.path.write_text("# a comment\n" + START)
    watched.nothing_more()


def test_a_removed_file_is_a_bad_edit(watched: Watched) -> None:
    watched.path.unlink()
    assert "cannot be read" in watched.bad()


def test_a_drop_in_is_seen_though_its_directory_is_new(watched: Watched) -> None:
    directory = watched.path.parent / "conf.d"
    directory.mkdir()
    watched.edits.reload()
    (directory / "10-hold.toml").write_text("[models.digits]\nhold = true\n")
    assert watched.good().models["digits"].hold
    assert watched.wish().settings is not None
    (directory / "10-hold.toml").unlink()
    assert not watched.good().models["digits"].hold
    assert watched.wish().settings is not None


def test_a_drop_in_directory_made_anew_is_followed(watched: Watched) -> None:
    directory = watched.path.parent / "conf.d"
    for hold in ("true", "false", "true"):
        directory.mkdir()
        (directory / "x.toml").write_text(f"[models.digits]\nhold = {hold}\nupdates = false\n")
        assert watched.good().models["digits"].hold is (hold == "true")
        assert watched.wish().settings is not None
        (directory / "x.toml").unlink()
        directory.rmdir()
        assert watched.good().models["digits"].updates
        assert watched.wish().settings is not None


def test_a_mounted_map_is_followed(tmp_path: Path) -> None:
    """A link to `..data/modelagent.toml`, where `..data` is switched by a rename, as container platforms mount it."""
    for name, channel in (("..v1", "stable"), ("..v2", "beta")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "modelagent.toml").write_text(f'[models.digits]\nchannel = "{channel}"\n')
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "modelagent.toml").symlink_to("..data/modelagent.toml")
    seen: queue.Queue[Settings] = queue.Queue()
    path = tmp_path / "modelagent.toml"
    with Edits(path, load(path), emit=lambda *_: None, on_good=seen.put, on_bad=pytest.fail, quiet=0.05):
        (tmp_path / "..new").symlink_to("..v2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        assert seen.get(timeout=PATIENCE).models["digits"].channel == "beta"


def test_an_edit_before_the_watch_began_and_one_that_a_reload_names_are_seen_at_once(tmp_path: Path) -> None:
    """Between a process's reading of its settings and its watch lie its imports and its directories."""
    seen: queue.Queue[Settings] = queue.Queue()
    path = tmp_path / "modelagent.toml"
    path.write_text("[models.digits]\nhold = true\n")
    old = parse({"models": {"digits": {}}}, path)
    with Edits(path, old, emit=lambda *_: None, on_good=seen.put, on_bad=pytest.fail, quiet=60.0) as edits:
        assert seen.get(timeout=PATIENCE).models["digits"].hold
        path.write_text("[models.digits]\nhold = false\n")
        edits.reload()
        assert not seen.get(timeout=PATIENCE).models["digits"].hold


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.edits.start()
    watched.edits.stop()
    watched.edits.stop()


def test_wishes_name_only_what_changed() -> None:
    old = Settings.model_validate({"models": {"a": {}, "b": {}}})
    new = Settings.model_validate({"models": {"a": {"hold": True}, "b": {"results": {"jsonl": True}}, "c": {}}})
    assert [model for model, _ in wishes(new, old)] == ["a", "c"]
    assert [model for model, _ in wishes(new)] == ["a", "b", "c"]


def test_the_same_wish_later_is_a_new_one() -> None:
    ((_, make),) = wishes(Settings.model_validate({"models": {"a": {}}}))
    first, second = make(AT, 0.25), make(Instant(2000.0, 20.0, "boot"), 0.25)
    assert isinstance(first, Wanted)
    assert isinstance(second, Wanted)
    assert first.id != second.id


def test_changed_keys() -> None:
    old = Settings.model_validate({"models": {"a": {}}, "log": {"level": "info"}})
    new = Settings.model_validate({"models": {"a": {"source": {"fps": 5}}, "b": {}}, "log": {"level": "debug"}})
    assert changed_keys(old, new) == ("log.level", "models.a.source.fps", "models.b")


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"limits": {"max_store_mb": 7}}, "limits.max_store_mb"),
        ({"limits": {"disk_reserve_mb": 7}}, "limits.disk_reserve_mb"),
        ({"models": {"digits": {"runtime": {"threads": 2}}}}, "models.digits.runtime.threads"),
        ({"models": {"digits": {"runtime": {"delegate": "/lib/npu.so"}}}}, "models.digits.runtime.delegate"),
        ({"policy": {"jitter": 0.2}}, ""),
    ],
)
def test_status_says_what_the_updater_reads_at_its_start_alone(tmp_path: Path, table: dict[str, Any], key: str) -> None:
    names = ("state_dir", "inference_dir", "run_dir", "inference_run_dir")
    document = {"paths": {name: str(tmp_path / name) for name in names}, "models": {"digits": {}}}
    updater = Updater(parse(document, tmp_path / "modelagent.toml"), models=("digits",))
    updater.driver.states["digits"] = State("digits")
    updater._settings_changed(parse({**document, **table}, tmp_path / "modelagent.toml"))
    assert updater.problem == (f"takes effect at the next start: {key}" if key else "")
