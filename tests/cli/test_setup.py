"""`setup` and `doctor`: from nothing to a checked device, and every check's good and bad answer."""

import json
import os
import resource
import socket
import stat
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import doctor, main
from modelagent.cli.setup import compose
from modelagent.inputs.config import Settings, load
from modelagent.publish.repository import Repository


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without releases; `keys/root.json` is what a device gets."""
    place = tmp_path_factory.mktemp("publisher")
    Repository.init(place / "repo", place / "keys", ["digits"])
    return place


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "box"


def set_up(published: Path, box: Path, *more: str) -> Result:
    arguments = ["--repo", str(published / "repo"), "--root", str(published / "keys" / "root.json")]
    return CliRunner().invoke(main, ["setup", *arguments, "--model", "digits", "--prefix", str(box), *more])


def test_setup_makes_a_device_that_doctor_finds_healthy(published: Path, box: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames.npz"
    frames.write_bytes(b"")
    result = set_up(published, box, "--device", "box-7", "--frames", str(frames), "--fps", "12.5")
    assert result.exit_code == cli.OK, result.output
    assert "0 failed" in result.stdout
    settings = load(box / "etc" / "modelagent.toml")
    assert settings.device.id == "box-7"
    assert settings.models["digits"].source.path == frames
    assert settings.models["digits"].source.fps == 12.5
    assert settings.repository.root.read_bytes() == (published / "keys" / "root.json").read_bytes()
    for path in (settings.paths.state_dir, settings.paths.inference_dir, settings.paths.run_dir):
        assert path.is_relative_to(box)
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    again = CliRunner().invoke(main, ["--config", str(box / "etc" / "modelagent.toml"), "doctor", "--json"])
    assert again.exit_code == cli.OK
    assert json.loads(again.stdout)["ok"] is True


def test_a_second_setup_with_the_same_answers_changes_nothing(published: Path, box: Path) -> None:
    set_up(published, box)
    before = {p: p.stat().st_mtime_ns for p in box.rglob("*") if p.is_file()}
    assert set_up(published, box).exit_code == cli.OK
    contents = {p: p.read_bytes() for p in before}
    assert {p for p in box.rglob("*") if p.is_file()} == set(contents)


def test_a_different_file_is_never_replaced_without_force(published: Path, box: Path) -> None:
    set_up(published, box)
    config = box / "etc" / "modelagent.toml"
    edited = config.read_text() + "\n# edited by hand\n"
    config.write_text(edited)
    result = set_up(published, box, "--device", "other")
    assert result.exit_code == cli.REFUSED
    assert "--force" in result.stderr
    assert config.read_text() == edited
    assert set_up(published, box, "--device", "other", "--force").exit_code == cli.OK
    assert load(config).device.id == "other"
    assert config.with_name("modelagent.toml.old").read_text() == edited


def test_the_settings_that_a_package_ships_set_nothing_and_give_way(published: Path, box: Path) -> None:
    shipped = Path(__file__).parents[2] / "config" / "modelagent.toml"
    config = box / "etc" / "modelagent.toml"
    config.parent.mkdir(parents=True)
    config.write_bytes(shipped.read_bytes())
    result = set_up(published, box)
    assert result.exit_code == cli.OK, result.output
    assert "digits" in load(config).models
    assert config.with_name("modelagent.toml.old").read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--device", "two words", "device.id"),
        ("--repo", "ftp://example.org", "repository.url"),
        ("--channel", "No Such", "channel"),
        ("--model", "Großbuchstaben", "models"),
        ("--fps", "-1", "fps"),
    ],
)
def test_a_bad_answer_is_refused_before_anything_is_written(
    published: Path, box: Path, *, option: str, value: str, named: str
) -> None:
    frames = Path(__file__)  # any file: its content is looked at when it runs
    result = set_up(published, box, "--frames", str(frames), option, value)
    assert result.exit_code == cli.USAGE
    assert named in result.stderr
    assert not box.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"signed": {"_type": "root"}, "signatures": []}'])
def test_a_root_file_that_is_none_is_refused(published: Path, box: Path, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    result = set_up(published, box, "--root", str(bad))
    assert result.exit_code == cli.USAGE
    assert "not a valid root" in result.stderr
    assert not box.exists()


def test_other_metadata_and_a_tampered_root_are_no_root(published: Path, tmp_path: Path) -> None:
    status, detail, _ = doctor.inspect_root(published / "repo" / "metadata" / "timestamp.json")
    assert (status, "role timestamp" in detail) == ("fail", True)
    tampered = tmp_path / "root.json"
    document = json.loads((published / "keys" / "root.json").read_bytes())
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    tampered.write_text(json.dumps(document))
    assert doctor.inspect_root(tampered)[0] == "fail"


def test_an_expired_root_is_a_warning_since_a_newer_one_may_follow(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=4000)
    Repository.init(tmp_path / "repo", tmp_path / "keys", ["digits"], now=lambda: then)
    status, detail, _ = doctor.inspect_root(tmp_path / "keys" / "root.json")
    assert (status, "expired" in detail) == ("warn", True)


def test_the_composed_file_survives_any_name() -> None:
    text = compose(repo='http://h/"x"\\y', root=Path('/a "b"\n\x7f'), model="digits", device="a\tb")
    document = tomllib.loads(text)
    assert document["repository"] == {"url": 'http://h/"x"\\y', "root": '/a "b"\n\x7f'}
    assert document["device"]["id"] == "a\tb"


# ---- doctor's checks ---------------------------------------------------------------------------------------------


def settings(tmp_path: Path, **sections: object) -> Settings:
    document: dict[str, object] = {
        "paths": {
            f"{key}_dir": str(tmp_path / name)
            for key, name in (("state", "s"), ("inference", "i"), ("run", "r"), ("inference_run", "ir"))
        }
    }
    return Settings.model_validate(document | sections)


def made(found: Settings) -> Settings:
    paths = found.paths
    for path in (paths.state_dir, paths.inference_dir, paths.run_dir, paths.inference_run_dir):
        path.mkdir(mode=0o750)
    return found


def test_each_check_has_its_own_name_and_a_failed_one_does_not_stop_the_others(tmp_path: Path) -> None:
    def broken(_settings: Settings) -> doctor.Answer:
        raise PermissionError(13, "Permission denied", "/somewhere")

    names = [name for name, _ in doctor.CHECKS]
    assert len(set(names)) == len(names)
    findings = doctor.examine(settings(tmp_path), [("broken", broken), ("broker", doctor.check_mqtt)])
    assert [finding.status for finding in findings] == ["fail", "ok"]
    assert "/somewhere" in findings[0].detail


def test_directories(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert doctor.check_directories(found)[0] == "fail"
    made(found)
    assert doctor.check_directories(found)[0] == "ok"
    found.paths.state_dir.chmod(0o777)
    status, detail, remedy = doctor.check_directories(found)
    assert (status, "everybody" in detail, remedy) == ("fail", True, f"chmod o-w {found.paths.state_dir}")


def test_a_file_system_that_is_full_or_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(settings(tmp_path, limits={"disk_reserve_mb": 0}))
    real = os.statvfs(tmp_path)

    def played(free: int, flag: int) -> os.statvfs_result:
        return os.statvfs_result((real[0], real[1], real[2], free, free, *real[5:8], flag, real[9]))

    monkeypatch.setattr(os, "statvfs", lambda _: played(real[4], os.ST_RDONLY))
    status, detail, _ = doctor.check_directories(found)
    assert (status, "read-only" in detail) == ("fail", True)
    inference = str(found.paths.inference_dir)
    monkeypatch.setattr(os, "statvfs", lambda path: played(0 if str(path) == inference else real[4], 0))
    status, detail, _ = doctor.check_disk(found)
    assert (status, detail) == ("fail", f"{inference}: full; frames go on, their results are lost")


def test_a_socket_name_that_the_kernel_will_not_take(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    found = settings(tmp_path, paths={f"{k}_dir": str(long) for k in ("state", "inference", "run", "inference_run")})
    long.mkdir()
    status, detail, _ = doctor.check_directories(found)
    assert (status, "longer" in detail) == ("fail", True)


def test_disk_below_its_reserve(tmp_path: Path) -> None:
    assert doctor.check_disk(settings(tmp_path, limits={"disk_reserve_mb": 0}))[0] == "ok"
    status, detail, _ = doctor.check_disk(settings(tmp_path, limits={"disk_reserve_mb": 10**9}))
    assert (status, "limits.disk_reserve_mb" in detail) == ("fail", True)


def test_repository_by_directory_and_by_http(published: Path, tmp_path: Path) -> None:
    def ask(url: str) -> tuple[str, str]:
        return doctor.check_repository(settings(tmp_path, repository={"url": url}))[:2]

    assert ask("")[0] == "warn"
    assert ask(str(published / "repo"))[0] == "ok"
    assert ask(f"file://{published}/repo")[0] == "ok"
    assert ask(str(tmp_path / "nothing"))[0] == "fail"


@pytest.mark.process
def test_repository_over_http(published: Path, tmp_path: Path) -> None:
    from functools import partial  # noqa: PLC0415 - used here alone
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415
    from threading import Thread  # noqa: PLC0415

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's word
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published / "repo"))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            good = settings(tmp_path, repository={"url": base})
            assert doctor.check_repository(good)[0] == "ok"
            wrong = settings(tmp_path, repository={"url": f"{base}/elsewhere"})
            status, detail, _ = doctor.check_repository(wrong)
            assert (status, "404" in detail) == ("fail", True)
        finally:
            server.shutdown()
            thread.join()
    assert doctor.check_repository(good)[0] == "fail"


def test_broker(tmp_path: Path) -> None:
    assert doctor.check_mqtt(settings(tmp_path))[0] == "ok"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = settings(tmp_path, mqtt={"host": "127.0.0.1", "port": port})
        assert doctor.check_mqtt(found)[0] == "ok"
    status, detail, _ = doctor.check_mqtt(found)
    assert (status, f"127.0.0.1:{port}" in detail) == ("fail", True)


def test_frames(tmp_path: Path) -> None:
    assert doctor.check_sources(settings(tmp_path))[0] == "warn"
    replay = {"digits": {"source": {"kind": "replay", "path": str(tmp_path / "f.npz")}}}
    found = settings(tmp_path, models=replay)
    assert doctor.check_sources(found)[0] == "fail"
    (tmp_path / "f.npz").write_bytes(b"")
    assert doctor.check_sources(found)[0] == "ok"


@pytest.mark.process
def test_the_runtime_is_looked_at_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_runtime(settings(tmp_path))[0] == "ok"
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -ILL $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    status, detail, _ = doctor.check_runtime(settings(tmp_path))
    assert (status, "SIGILL" in detail) == ("fail", True)


def test_priority_and_clock_answer_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_clock(settings(tmp_path))[0] in {"ok", "warn"}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    assert doctor.check_priority(settings(tmp_path))[0] == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    assert doctor.check_priority(settings(tmp_path))[0] == "ok"


def test_a_clock_before_this_programs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NOT_BEFORE", datetime.now(UTC) + timedelta(days=1))
    status, _, remedy = doctor.check_clock(settings(tmp_path))
    assert (status, "set the clock" in remedy) == ("fail", True)
