"""The settings file: every bad edit is refused by file, key, what was found and what is allowed."""

import contextlib
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelagent.core.events import ConfigWish
from modelagent.errors import UsageError
from modelagent.inputs.config import (
    MAX_BYTES,
    Settings,
    load,
    load_or_recall,
    parse,
    parse_duration,
    recall,
    remember,
)

GOOD = """
[device]
id = "box-17"
groups = ["lab", "north"]

[repository]
url = "https://models.example.org/fleet"

[models.digits]
channel = "beta"
pin = "1.2.0"
forbid = ["1.0.0"]
[models.digits.source]
kind = "replay"
path = "/srv/frames.npz"
fps = 200
[models.digits.probation]
seconds = "1h30m"

[policy]
check_interval = "15m"
activate_windows = ["Mon-Fri 22:00-05:00", "Sat,Sun 00:00-24:00"]
timezone = "Europe/Madrid"
"""

# (the edit, the key path, words of the rest)
BAD = [
    ('[policy]\ncheck_intervall = "6h"', "policy.check_intervall", ["unknown key", "did you mean check_interval?"]),
    ("[polizy]", "polizy", ["unknown key", "did you mean policy?", "mqtt"]),
    ("[models.digits]\nchanel = 'x'", "models.digits.chanel", ["unknown key", "did you mean channel?"]),
    ("[limits.canary]\nmemory = 1", "limits.canary.memory", ["unknown key", "memory_mb"]),
    ("[models.digits.source]\nfps = 'fast'", "models.digits.source.fps", ["found 'fast'", "allowed: a number"]),
    ("[models.digits.source]\nfps = -1", "models.digits.source.fps", ["found -1", "at least 0"]),
    ("[models.digits.source]\nfps = inf", "models.digits.source.fps", ["found inf", "finite"]),
    ("[models.digits.source]\nfps = true", "models.digits.source.fps", ["found true", "a number"]),
    ("[models.digits.source]\nqueue = 1.5", "models.digits.source.queue", ["found 1.5", "a whole number"]),
    ("[models.digits.source]\nqueue = 0", "models.digits.source.queue", ["found 0", "at least 1"]),
    ("[models.digits.source]\nkind = 'tape'", "models.digits.source.kind", ["found 'tape'", '"none", "replay"']),
    ("[models.digits.source]\nkind = 'replay'", "models.digits.source", ['kind = "replay" needs path']),
    ("[models.digits.source]\npath = 'a.npz'", "models.digits.source.path", ["found 'a.npz'", "absolute path"]),
    ("[models.digits.source]\noverflow = 'wait'", "models.digits.source.overflow", ['"drop-oldest" or "block"']),
    ("[models.digits]\nhold = 'yes'", "models.digits.hold", ["found 'yes'", "true or false"]),
    ("[models.digits]\nhold = 1", "models.digits.hold", ["found 1", "true or false"]),
    ("[models.digits]\nchannel = 'Stable!'", "models.digits.channel", ["found 'Stable!'", "matches"]),
    ("[models.digits]\npin = '../x'", "models.digits.pin", ["found '../x'", "matches"]),
    ("[models.digits]\npin = 1.2", "models.digits.pin", ["found 1.2", "a text in quotes"]),
    ("[models.digits]\nforbid = '1.0'", "models.digits.forbid", ["found '1.0'", "a list"]),
    ("[models.digits]\nforbid = ['1.0', 2]", "models.digits.forbid[1]", ["found 2", "a text in quotes"]),
    ("[models.digits]\nsafe_action = 'panic'", "models.digits.safe_action", ['"keep-and-alarm" or "stop"']),
    ("[models.digits]\nlabel_horizon = 0", "models.digits.label_horizon", ["found 0", "more than 0"]),
    ("[models.'Bad Name']", "models.Bad Name", ["matches"]),
    ("models = []", "models", ["found []", "a table"]),
    ("[models]\ndigits = 3", "models.digits", ["found 3", "a table"]),
    (
        "[models.digits.probation]\nerror_p0 = 0.2\nerror_p1 = 0.1",
        "models.digits.probation",
        ["error_p0 (0.2)", "below"],
    ),
    ("[models.digits.probation]\nalpha = 1.0", "models.digits.probation.alpha", ["found 1.0", "less than 1"]),
    ("[models.digits.shadow]\nrate = 2", "models.digits.shadow.rate", ["found 2", "at most 1"]),
    ("[models.digits.runtime]\nhang_s = '2 parsecs'", "models.digits.runtime.hang_s", ["found '2 parsecs'", "30s"]),
    ("[policy]\ncheck_interval = '6x'", "policy.check_interval", ["found '6x'", "1h30m"]),
    ("[policy]\ncheck_interval = -5", "policy.check_interval", ["found -5", "seconds"]),
    ("[policy]\ncheck_interval = '90d'", "policy.check_interval", ["found '90d'", "at most 2678400"]),
    ("[policy]\njitter = 0.9", "policy.jitter", ["found 0.9", "at most 0.5"]),
    ("[policy]\ndownload_windows = ['22-5']", "policy.download_windows[0]", ["found '22-5'", "Mon-Fri 22:00-05:00"]),
    ("[policy]\nactivate_windows = ['Mon 25:00-26:00']", "policy.activate_windows[0]", ["weekly window"]),
    ("[policy]\ntimezone = 'Mars/Olympus'", "policy.timezone", ["found 'Mars/Olympus'", "Europe/Madrid"]),
    ("[repository]\nurl = 'ftp://x'", "repository.url", ["found 'ftp://x'", "https://"]),
    ("[repository]\nurl = 'https://'", "repository.url", ["host name"]),
    ("[repository]\nurl = 'https://me:secret@x'", "repository.url", ["without user and password"]),
    ("[repository]\nurl = 'https://x/a?b=c'", "repository.url", ["without ? and #"]),
    ("[repository]\nurl = 'file://server/a'", "repository.url", ["on this machine"]),
    ("[repository]\nurl = 'file:a'", "repository.url", ["on this machine"]),
    ("[repository]\nclient_cert = '/a'", "repository", ["both or neither"]),
    ("[repository]\nproxy = 'socks5://x'", "repository.proxy", ["found 'socks5://x'", "http://host:port"]),
    ("[paths]\nstate_dir = 'var'", "paths.state_dir", ["found 'var'", "absolute"]),
    ("[paths]\nstate_dir = 3", "paths.state_dir", ["found 3", "absolute"]),
    ("[mqtt]\nport = 70000", "mqtt.port", ["found 70000", "at most 65535"]),
    ("[mqtt]\nprefix = 'a/#'", "mqtt.prefix", ["found 'a/#'", "matches"]),
    ("[mqtt]\npassword_file = '/x'", "mqtt", ["password_file needs username"]),
    ("[mqtt.tls]\ncert = '/x'", "mqtt.tls", ["both or neither"]),
    ("[device]\nid = 'a b'", "device.id", ["found 'a b'", "matches"]),
    ("[device]\nid = 'all'", "device.id", ["found 'all'", "any name but all and group"]),
    ("[control]\nmode = 0o666", "control.mode", ["0o600 or 0o660"]),
    ("[log]\nlevel = 'loud'", "log.level", ["found 'loud'", '"debug"']),
    ("[limits]\nkeep_slots = 1", "limits.keep_slots", ["found 1", "at least 2"]),
    ("[limits]\nkeep_slots = 1979-05-27", "limits.keep_slots", ["a whole number"]),
]


def write(directory: Path, text: str) -> Path:
    path = directory / "modelagent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_taken_whole(tmp_path: Path) -> None:
    settings = load(write(tmp_path, GOOD))
    digits = settings.models["digits"]
    assert settings.device.groups == ("lab", "north")
    assert digits.source.path == Path("/srv/frames.npz")
    assert digits.source.fps == 200.0
    assert digits.probation.seconds == 5400.0
    assert digits.wish == ConfigWish(channel="beta", pin="1.2.0", forbid=("1.0.0",))
    assert settings.policy.check_interval == 900.0
    assert settings.paths.health("digits") == Path("/run/modelagent-inference/digits/health.json")


def test_a_file_of_comments_is_all_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "# nothing said\n"))
    assert settings.models == {}
    assert settings.mqtt.host == ""
    assert settings.device.id


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().log.level = "debug"


@pytest.mark.parametrize(("edit", "key", "words"), BAD, ids=[f"{n}-{bad[1]}" for n, bad in enumerate(BAD)])
def test_a_bad_edit_names_file_key_found_and_allowed(tmp_path: Path, edit: str, key: str, words: list[str]) -> None:
    path = write(tmp_path, edit)
    with pytest.raises(UsageError) as refused:
        load(path)
    message = refused.value.message
    assert message.startswith(f"{path}: {key}: ")
    assert not [word for word in words if word not in message], message


def test_there_are_more_than_thirty_bad_edits() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[policy", ["not valid TOML", "table declaration"]),
        (b"a = 1\na = 2", ["not valid TOML", "overwrite"]),
        (b'x = "\xff"', ["byte 5 is not UTF-8"]),
        (b"#" * (MAX_BYTES + 1), [f"allowed: {MAX_BYTES}"]),
        (b"a = " + b"[" * 5000, ["not valid TOML"]),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, data: bytes, words: list[str]) -> None:
    path = tmp_path / "modelagent.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        load(path)
    assert refused.value.message.startswith(f"{path}: ")
    assert not [word for word in words if word not in refused.value.message], refused.value.message


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load(tmp_path / "modelagent.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)


def test_a_fifo_in_the_files_place_does_not_hold_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "modelagent.toml")
    with pytest.raises(UsageError, match="no plain file"):
        load(tmp_path / "modelagent.toml")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_what_a_power_cut_leaves_of_a_file_is_no_settings(tmp_path: Path, text: str) -> None:
    """Or the box would come up with every default: no model, no repository, other directories."""
    good = write(tmp_path, "[log]\nlevel = 'debug'\n")
    remember(load(good), tmp_path)
    good.write_text(text)
    loaded = load_or_recall(good, tmp_path)
    assert loaded.settings.log.level == "debug"
    assert "found nothing in it" in loaded.problem
    good.write_text("[log]\nlevel = 'debug'\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50-site.toml").write_text(text)
    with pytest.raises(UsageError, match=r"50-site\.toml: found nothing"):
        load(good)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load(write(tmp_path, "[log]\nlevel = 1\n[mqtt]\nport = 'x'"))
    assert len(refused.value.message.splitlines()) == 2


def test_drop_ins_merge_in_order_of_name_and_lists_replace(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "20-late.toml").write_text('[models.digits]\nchannel = "late"\n[device]\ngroups = []')
    (tmp_path / "conf.d" / "10-early.toml").write_text('[models.digits]\nchannel = "early"\nhold = true')
    (tmp_path / "conf.d" / ".hidden.toml").write_text("broken")
    (tmp_path / "conf.d" / "30-old.toml.bak").write_text("broken")
    settings = load(path)
    assert settings.models["digits"].channel == "late"
    assert settings.models["digits"].hold
    assert settings.models["digits"].pin == "1.2.0"
    assert settings.device.groups == ()
    assert load(path, conf_d=False).models["digits"].channel == "beta"


def test_a_fault_in_a_drop_in_names_the_drop_in(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "conf.d").mkdir()
    drop_in = tmp_path / "conf.d" / "10-x.toml"
    drop_in.write_text('[models.digits.source]\nfps = "fast"')
    with pytest.raises(UsageError) as refused:
        load(path)
    assert refused.value.message.startswith(f"{drop_in}: models.digits.source.fps: ")


def test_the_last_good_settings_outlive_a_bad_edit_and_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    settings = load(path)
    remember(settings, tmp_path)
    write(tmp_path, "[policy]\ncheck_interval = 'soon'")
    loaded = load_or_recall(path, tmp_path)
    assert loaded.settings == settings
    assert "policy.check_interval" in loaded.problem
    write(tmp_path, GOOD)
    assert load_or_recall(path, tmp_path) == (settings, "")


def test_a_bad_edit_with_nothing_remembered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_or_recall(write(tmp_path, "x = 1"), tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema":2,"settings":{}}', b'{"schema":1}', b"[" * 9000])
def test_damaged_memory_is_no_memory(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(data)
    assert recall(tmp_path) is None


def test_remembering_the_same_again_writes_nothing(tmp_path: Path) -> None:
    remember(Settings(), tmp_path)
    before = (tmp_path / "settings.json").stat().st_ino
    remember(Settings(), tmp_path)
    assert (tmp_path / "settings.json").stat().st_ino == before


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21600), ("30s", 30), ("1d", 86400), ("1h30m", 5400), ("250ms", 0.25), ("1h 30m", 5400), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", ["", " ", "h", "5", "5y", "-5s", "5s!", True, None, [], float("nan"), float("inf"), -1]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="seconds as a number"):
        parse_duration(value)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["models", "digits", "source", "fps", "policy", "mqtt", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*Settings.model_fields, "x"]), documents, max_size=4))
def test_any_document_is_taken_or_refused_in_words(document: dict[str, object]) -> None:
    message = ""
    try:
        parse(document, Path("/etc/modelagent/modelagent.toml"))
    except UsageError as error:
        message = error.message
    assert all(line.startswith(("/etc/", "...")) for line in message.splitlines())


@pytest.mark.parametrize("key", ["rules.scrap.webhook", "samples.url"])
def test_a_token_in_the_query_of_somebodys_server_is_no_fault(key: str) -> None:
    table, _, name = key.rpartition(".")
    text = f"[models.digits.{table}]\n{name} = 'https://hooks.example.org/frames?token=abc'\n"
    settings = parse(tomllib.loads(text), Path("page")).models["digits"]
    assert "?token=abc" in (settings.samples.url or settings.rules["scrap"].webhook)
