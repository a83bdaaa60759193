"""A root file and a repository that do not belong together: found before a device relies on them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modelagent import cli
from modelagent.cli import main
from modelagent.cli.kinship import FOREIGN, relation
from modelagent.inputs.config import Repository as Where
from modelagent.publish.repository import Repository


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ours")
    Repository.init(place / "repo", place / "keys", ["digits"])
    return place


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("theirs")
    Repository.init(place / "repo", place / "keys", ["digits"])
    return place


def root(place: Path) -> Path:
    return place / "keys" / "root.json"


def where(address: object) -> Where:
    return Where(url=str(address))


def set_up(address: object, trusted: Path, box: Path) -> Result:
    words = ["setup", "--repo", str(address), "--root", str(trusted), "--model", "digits", "--prefix", str(box)]
    return CliRunner().invoke(main, words)


def test_the_right_root_file_is_found_right(ours: Path) -> None:
    assert relation(root(ours), where(ours / "repo"))[0] == "ok"
    assert relation(root(ours), where(f"file://{ours}/repo"))[0] == "ok"


def test_a_root_file_of_another_repository_is_named_with_a_remedy(ours: Path, theirs: Path) -> None:
    status, detail, remedy = relation(root(theirs), where(ours / "repo"))
    assert (status, FOREIGN in detail, "root.json" in remedy) == ("fail", True, True)


def test_setup_refuses_it_and_changes_nothing(ours: Path, theirs: Path, tmp_path: Path) -> None:
    result = set_up(ours / "repo", root(theirs), tmp_path / "box")
    assert result.exit_code == cli.USAGE
    assert FOREIGN in result.stderr
    assert not (tmp_path / "box").exists()


def test_doctor_finds_it_where_it_was_put_in_place_by_hand(ours: Path, theirs: Path, tmp_path: Path) -> None:
    assert set_up(ours / "repo", root(ours), tmp_path / "box").exit_code == cli.OK
    config = tmp_path / "box" / "etc" / "modelagent.toml"
    (config.parent / "root.json").write_bytes(root(theirs).read_bytes())
    result = CliRunner().invoke(main, ["--config", str(config), "doctor", "--json"])
    assert result.exit_code == cli.FAILED
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["root file"]["status"] == checks["repository"]["status"] == "ok"
    assert (checks["trust"]["status"], FOREIGN in checks["trust"]["detail"]) == ("fail", True)


def test_a_repository_that_cannot_be_reached_is_no_obstacle(ours: Path, tmp_path: Path) -> None:
    for address in (tmp_path / "not-mounted", "http://127.0.0.1:1"):
        assert relation(root(ours), where(address))[0] == "warn"
    set_up(tmp_path / "not-mounted", root(ours), tmp_path / "box")
    assert (tmp_path / "box" / "etc" / "modelagent.toml").exists()
    assert relation(root(ours), Where())[0] == "warn"


def test_what_has_expired_is_told_apart_from_what_is_foreign(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=4000)
    Repository.init(tmp_path / "repo", tmp_path / "keys", ["digits"], now=lambda: then)
    status, detail, _ = relation(root(tmp_path), where(tmp_path / "repo"))
    assert (status, FOREIGN in detail) == ("warn", False)
