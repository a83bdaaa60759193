"""The frame: what is imported when, what help says, and how errors become exit codes."""

import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modelagent import __version__, cli, durable
from modelagent.cli import COMMANDS, main

HEAVY = ("numpy", "rich", "prometheus_client", "ai_edge_litert", "tensorflow")
SOURCE = str(Path(__file__).parents[2] / "src")


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, command)]
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        found += leaves(child, (*path, name))
    return found


ALL = leaves(main)


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_after(statement: str) -> set[str]:
    return set(json.loads(run_python(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))")))


@pytest.mark.process
def test_the_frame_imports_no_command_and_nothing_heavy() -> None:
    modules = imported_after(
        "import contextlib, io, modelagent.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    modelagent.cli.main(['--help'], standalone_mode=False)"
    )
    assert not modules & {*HEAVY, "pydantic", "requests", "tuf", "paho"}
    assert not {m for m in modules if m.startswith("modelagent.cli.")}


@pytest.mark.process
@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in {"repo", "build"}])
def test_no_command_but_the_publishers_imports_anything_heavy(name: str) -> None:
    entry = COMMANDS[name]
    modules = imported_after(f"import modelagent.cli.{entry.module}")
    assert not modules & set(HEAVY), f"{name} imports {modules & set(HEAVY)}"


@pytest.mark.process
def test_the_updaters_process_imports_nothing_heavy() -> None:
    modules = imported_after("import modelagent.cli.run, modelagent.supervisor, modelagent.updater")
    assert not modules & set(HEAVY)


def test_each_command_is_where_the_list_says() -> None:
    for name, entry in COMMANDS.items():
        module = importlib.import_module(f"modelagent.cli.{entry.module}")
        assert getattr(module, entry.attribute).name == name


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_one_line_help_is_the_commands_own(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help is not None
    if name != "repo":
        assert command.help.splitlines()[0] == COMMANDS[name].help


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_explains_itself_and_its_exit_codes(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.output
    if "repo" not in path:
        assert "Exit codes: 0 done" in result.output


@pytest.mark.parametrize(
    "path", [path for path, command in ALL if not isinstance(command, click.Group) and path[0] not in {"repo", "run"}]
)
def test_every_command_has_json(path: tuple[str, ...]) -> None:
    assert "--json" in CliRunner().invoke(main, [*path, "--help"]).output


def test_the_list_of_commands_names_every_command() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert all(f"\n  {name} " in output for name in COMMANDS)


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"modelagent, version {__version__}\n"


def test_an_unknown_command_is_a_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["explode"])
    assert result.exit_code == cli.USAGE
    assert "explode" in result.output


def test_a_missing_settings_file_is_named_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--config", str(tmp_path / "none.toml"), "config", "check"])
    assert result.exit_code == cli.USAGE
    assert str(tmp_path / "none.toml") in result.stderr


def test_with_json_an_error_is_a_document_too(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[models.digits]\nchanel = 'stable'\n")
    result = CliRunner().invoke(main, ["--config", str(file), "config", "check", "--json"])
    assert result.exit_code == cli.USAGE
    assert "chanel" in json.loads(result.stdout)["error"]


def test_with_json_a_wrong_usage_is_a_document_too() -> None:
    for words in (["explain", "a", "b", "--json"], ["label", "--json", "--nothing"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == cli.USAGE
        assert json.loads(result.stdout)["code"] == "usage"


def test_a_directory_in_the_place_of_the_settings_is_said_as_every_other_bad_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--config", str(tmp_path), "config", "check", "--json"])
    assert result.exit_code == cli.USAGE
    assert json.loads(result.stdout)["error"].startswith(f"{tmp_path}: cannot be read: Is a directory")


@pytest.mark.parametrize(("errno_", "told"), [(errno.ENOSPC, "make room there"), (errno.EROFS, "can be written")])
def test_a_file_system_that_refuses_is_one_line_with_the_remedy(
    errno_: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno_, "refused", str(tmp_path / "x"))

    monkeypatch.setattr(durable, "write_atomic", refuse)
    result = CliRunner().invoke(main, ["repo", "keys", "new", "root-2", "--keys", str(tmp_path)])
    assert result.exit_code == cli.FAILED
    assert f"{tmp_path}/x: refused; " in result.stderr
    assert told in result.stderr


def test_the_settings_file_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text("[models.digits]\n")
    result = CliRunner().invoke(main, ["config", "check"], env={"MODELAGENT_CONFIG": str(file)})
    assert result.exit_code == 0
    assert "digits" in result.output


def test_config_show_has_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text("[models.digits]\n")
    arguments = ["--config", str(file), "config", "show"]
    assert "models.digits.source.fps = 30.0" in CliRunner().invoke(main, arguments).output
    assert (
        json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)["models"]["digits"]["channel"] == "stable"
    )


@pytest.mark.process
def test_run_with_a_bad_file_and_nothing_remembered_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        f'[paths]\nstate_dir = "{tmp_path}/state"\ninference_dir = "{tmp_path}/i"\n[models.digits]\nx = 1\n'
    )
    for role in ([], ["updater"], ["inference"]):
        done = subprocess.run(
            [sys.executable, "-m", "modelagent", "--config", str(file), "run", *role],
            env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == cli.USAGE, done.stderr
        assert "models.digits.x" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("path", [("repo",), ("repo", "keys")])
def test_no_line_of_the_publishers_commands_is_cut_short(path: tuple[str, ...]) -> None:
    commands = CliRunner().invoke(main, [*path, "--help"]).output.split("Commands:")[1].split("\n\n")[0]
    assert "..." not in commands


def test_the_model_is_needed_only_where_a_command_says_so() -> None:
    for path in (("status",), ("history",), ("watch",), ("explain",), ("report",), ("install",), ("block", "list")):
        assert "by default all" in CliRunner().invoke(main, [*path, "--help"]).output
    assert "needed if there are several" in CliRunner().invoke(main, ["rollback", "--help"]).output


def test_the_options_of_a_release_stand_in_the_order_of_use() -> None:
    output = CliRunner().invoke(main, ["repo", "add", "--help"]).output
    assert output.index("--canary FILE") < output.index("--metric") < output.index("--manifest FILE")
