"""The command line: one command per file, imported only when it is called.

This file knows the commands' names, modules and one-line help, and how an error becomes an exit code. It does not
know what a command does, and must stay light: `modelagent run updater` passes through here, and neither numpy nor
rich may come with it.

    modelagent --config FILE COMMAND ...          the settings file; or MODELAGENT_CONFIG; or /etc/modelagent/...

Exit codes, the same for every command: 0 done; 1 failed or unhealthy; 2 wrong usage or settings; 3 refused, with
the reason; 4 the updater does not answer.
"""

import errno
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from modelagent import __version__
from modelagent.errors import AgentError, UsageError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNREACHABLE: Final = 4
# What a person can do about a file that a command could not use.
_REMEDIES: Final = {
    errno.ENOSPC: "make room there and run the command again",
    errno.EDQUOT: "make room there and run the command again",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "run the command as its owner, or name another place",
    errno.EPERM: "run the command as its owner, or name another place",
    errno.ENOENT: "name a place that is there",
    errno.ENOTDIR: "name another place",
    errno.EISDIR: "name another place",
    errno.EEXIST: "name another place",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "name another place",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EIO: "see `dmesg`: the storage may be failing",
}
DEFAULT_CONFIG: Final = Path("/etc/modelagent/modelagent.toml")
EXIT_CODES: Final = (
    "\b\nExit codes: 0 done; 1 failed or unhealthy; 2 wrong usage or settings;\n"
    "3 refused, with the reason; 4 the updater does not answer."
)


class Entry(NamedTuple):
    """Where a command lives: module below this package, attribute in it, one line of help."""

    module: str
    attribute: str
    help: str


COMMANDS: Final[dict[str, Entry]] = {
    "status": Entry("status", "status", "What runs, and why nothing else does."),
    "watch": Entry("watch", "watch", "What happens on this device, as it happens."),
    "history": Entry("history", "history", "What happened to which version, and why."),
    "explain": Entry("explain", "explain", "Why is something happening, or not: each gate's present answer."),
    "report": Entry("report", "report", "Write what was decided about a version as one page with plots."),
    "simulate": Entry(
        "simulate",
        "simulate",
        "Replay days in a second: when would this policy have acted, and the bytes.",
    ),
    "check": Entry("check", "check", "Ask the repository now."),
    "update": Entry("check", "update", "Check, and take the offered release without waiting for its window or wave."),
    "install": Entry("bundle", "install", "Take a release from a bundle: a stick, a file, a directory."),
    "rollback": Entry("rollback", "rollback", "Leave the running version for the newest confirmed one."),
    "pin": Entry("pin", "pin", "Run this version and no other."),
    "unpin": Entry("pin", "unpin", "Follow the channel again."),
    "hold": Entry("pin", "hold", "Activate nothing new until resumed."),
    "resume": Entry("pin", "resume", "End a hold."),
    "confirm": Entry("confirm", "confirm", "Vouch for the version on probation, without waiting for its judge."),
    "channel": Entry("channel", "channel", "Follow another channel of the repository."),
    "block": Entry("block", "block", "List, add and lift blocks."),
    "label": Entry("label", "label", "Say what a result should have been."),
    "config": Entry("config", "config", "Check and show the settings."),
    "top": Entry("top", "top", "What each model does now, renewed every second."),
    "doctor": Entry("doctor", "doctor", "Look at this device: clock, disk, permissions, runtime, trust, links."),
    "setup": Entry("setup", "setup", "Write a checked configuration, make the directories, run doctor."),
    "run": Entry("run", "run", "Run the agent: inference and updater, or one of them."),
    "install-service": Entry(
        "install", "install_service", "Install the units of this environment, make users and settings, start."
    ),
    "uninstall": Entry("install", "uninstall", "Stop the services and take their units away; data stays."),
    "fleet": Entry("fleet", "fleet", "All devices, and commands to one, a group or all."),
    "build": Entry(
        "build",
        "build",
        "Build variants of a network, measure each, and choose.",
    ),
    "repo": Entry("repo", "repo", "Publish: keys, releases, channels, withdrawal."),
}


@dataclass
class Frame:
    """What every command is given: the settings file's place, and whether the answer is to be JSON."""

    config: Path = DEFAULT_CONFIG
    json: bool = False


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and not for the list of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """The command itself; imports its module."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command), f"{entry} is no command"  # noqa: S101 - a programmer's error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the list of commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """As click does it, under our own name even when started by `python -m`."""
        return super().main(*args, **{**extra, "prog_name": "modelagent"})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes one message and an exit code."""
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not as_json:
                raise
            click.echo(json.dumps({"error": error.format_message(), "code": "usage"}, indent=1))
            ctx.exit(USAGE)
        except AgentError as error:
            say_error(ctx.find_object(Frame), error.message, error.code)
            ctx.exit(USAGE if isinstance(error, UsageError) else FAILED)
        except OSError as error:
            # The agent's own processes keep their traces; a person who typed a command wants the place and the remedy.
            if ctx.invoked_subcommand == "run" or error.errno not in _REMEDIES:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            say_error(ctx.find_object(Frame), f"{where}{error.strerror}; {_REMEDIES[error.errno]}", "file")
            ctx.exit(FAILED)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES + "\n\nEach command explains itself: modelagent COMMAND --help",
)
@click.option(
    "--config",
    "config_file",
    envvar="MODELAGENT_CONFIG",
    type=click.Path(path_type=Path, readable=False),  # the reader says what is wrong, and may know the last good one
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    help="The settings file.",
)
@click.version_option(__version__, prog_name="modelagent")
@click.pass_context
def main(ctx: click.Context, config_file: Path) -> None:
    """Keep the model on this device up to date, and the better one running."""
    ctx.obj = Frame(config=config_file.absolute())


def _remember_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    frame = ctx.find_object(Frame)
    if frame is not None:
        frame.json = value
    return value


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The `--json` that every command has: one document on standard output, errors too."""
    return click.option(
        "--json",
        "_as_json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_json,
        help="Answer with one JSON document.",
    )(command)


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The `--model` of commands about one model; needed only where the settings name several."""
    return click.option("--model", "-m", default="", metavar="NAME", help="The model; needed if there are several.")(
        command
    )


def one_model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The `--model` of commands that show or take up all models unless one is named."""
    return click.option("--model", "-m", default="", metavar="NAME", help="This model alone; by default all.")(command)


def say_error(frame: Frame | None, message: str, code: str) -> None:
    """Print an error for the one who asked: a JSON document, or a line on standard error."""
    if frame is not None and frame.json:
        click.echo(json.dumps({"error": message, "code": code}, indent=1))
    else:
        click.echo(f"modelagent: {message}", err=True)
