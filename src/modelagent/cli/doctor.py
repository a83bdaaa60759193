"""`modelagent doctor`: look at this device before it has to rely on it.

This file knows one small question per check, and what to do about each bad answer. It changes nothing and needs no
updater. A new check is a function in CHECKS; it may raise nothing but OSError.

    modelagent doctor                 # exit 1 when a check fails; warnings do not fail
    modelagent doctor --json | jq '.checks[] | select(.status != "ok")'
"""

import ctypes
import json
import os
import platform
import resource
import shutil
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from modelagent.children import describe_exit, spawn
from modelagent.cli import EXIT_CODES, FAILED, OK, Frame, json_option
from modelagent.cli.grants import missing, needed
from modelagent.cli.kinship import relation
from modelagent.cli.show import table
from modelagent.inputs.config import Settings, load

NOT_BEFORE: Final = datetime(2026, 1, 1, tzinfo=UTC)  # this program is younger than that
_NET_S: Final = 5.0  # seconds for each connection
_RUNTIME_S: Final = 60.0  # seconds for the runtime to load; a slow card may take twenty
_SOCKET_MAX: Final = 107  # bytes of a Unix socket's path (unix(7)), one less for the closing zero
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: `status` ok, warn or fail; `remedy` is empty when nothing needs doing."""

    name: str
    status: str
    detail: str
    remedy: str = ""


Answer = tuple[str, str, str]  # status, detail, remedy
Check = Callable[[Settings], Answer]


@click.command(epilog=EXIT_CODES)
@json_option
@click.pass_obj
def doctor(frame: Frame) -> None:
    """Look at this device: clock, disk, permissions, runtime, trust, links.

    Nothing is changed, and neither updater nor inference need to run. A warning does not fail.
    """
    raise SystemExit(report(frame, examine(load(frame.config))))


def examine(settings: Settings, checks: Sequence[tuple[str, Check]] | None = None) -> list[Finding]:
    """Run the checks one by one."""
    findings = []
    for name, check in CHECKS if checks is None else checks:
        try:
            status, detail, remedy = check(settings)
        except OSError as error:
            status, detail, remedy = "fail", str(error), "see the error; try again with more rights"
        findings.append(Finding(name, status, detail, remedy))
    return findings


def report(frame: Frame, findings: Sequence[Finding]) -> int:
    """Print the findings; returns the exit code."""
    healthy = all(finding.status != "fail" for finding in findings)
    if frame.json:
        click.echo(json.dumps({"ok": healthy, "checks": [asdict(finding) for finding in findings]}, indent=1))
    else:
        table(
            ["check", "", "finding"],
            [[f.name, f.status, f.detail + (f". Remedy: {f.remedy}" if f.remedy else "")] for f in findings],
            [f.status for f in findings],
        )
        bad = sum(f.status == "fail" for f in findings)
        warned = sum(f.status == "warn" for f in findings)
        click.echo(f"{bad} failed, {warned} to look at, {len(findings) - bad - warned} good")
    return OK if healthy else FAILED


# ---- the checks ----------------------------------------------------------------------------------------------


def check_clock(_settings: Settings) -> Answer:
    """Is the time plausible, and does somebody keep it?"""
    now = datetime.now(UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < NOT_BEFORE:
        return (
            "fail",
            f"{shown} is before this program was made",
            "set the clock (timedatectl set-time ...) or enable NTP; till then the newest signed time is used",
        )
    # struct timex, modes = 0: only ask. 5 is TIME_ERROR, the kernel's word for "not synchronised" (adjtimex(2)).
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    if state == 5:
        return (
            "warn",
            f"{shown}, but not synchronised",
            "enable NTP (timedatectl set-ntp true), unless this device keeps time otherwise",
        )
    return "ok", f"{shown}, synchronised", ""


def check_disk(settings: Settings) -> Answer:
    """Is there room for a release beyond the reserve?"""
    place = _nearest(settings.paths.state_dir)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize // _MIB
    reserve = settings.limits.disk_reserve_mb
    if found.f_files and found.f_favail < 1000:
        return (
            "fail",
            f"{place}: only {found.f_favail} inodes left",
            "remove files; nothing can be stored without inodes",
        )
    if free <= reserve:
        return (
            "fail",
            f"{place}: {free} MB free, and {reserve} MB are never touched (limits.disk_reserve_mb)",
            "free some space or lower the reserve; what runs goes on, a rollback works, downloads wait",
        )
    results = _nearest(settings.paths.inference_dir)
    left = os.statvfs(results)
    if left.f_blocks and left.f_bavail * left.f_frsize < _MIB:
        return "fail", f"{results}: full; frames go on, their results are lost", "free some space there"
    return "ok", f"{place}: {free} MB free, {reserve} MB of it reserved", ""


def check_directories(settings: Settings) -> Answer:
    """Are the four directories there, and safe from others?"""
    paths = settings.paths
    missing = []
    for key in ("state_dir", "inference_dir", "run_dir", "inference_run_dir"):
        path: Path = getattr(paths, key)
        try:
            found = path.stat()
        except FileNotFoundError:
            missing.append((key, path))
            continue
        if not stat.S_ISDIR(found.st_mode):
            return "fail", f"paths.{key}: {path} is no directory", "remove it, then run modelagent setup"
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return (
                "fail",
                f"paths.{key}: {path} is on a file system that is mounted read-only",
                "mount it read-write; see dmesg if the kernel made it read-only",
            )
        if found.st_mode & stat.S_IWOTH:
            return "fail", f"paths.{key}: everybody may write in {path}", f"chmod o-w {path}"
        if not os.access(path, os.R_OK | os.X_OK):
            return (
                "warn",
                f"paths.{key}: {path} cannot be read by this user",
                "run doctor with sudo, or become a member of the agent's group",
            )
    if len(os.fsencode(paths.control_socket)) > _SOCKET_MAX:
        return (
            "fail",
            f"paths.run_dir: {paths.control_socket} is longer than a socket's name may be ({_SOCKET_MAX} bytes)",
            "choose a shorter directory",
        )
    # Those below /run are made anew at each boot, by systemd or by the processes themselves.
    lasting = [f"paths.{key}: {path}" for key, path in missing if not str(path).startswith("/run/")]
    if lasting:
        return "fail", f"not there: {', '.join(lasting)}", "run modelagent setup"
    if missing:
        return "ok", f"{', '.join(str(path) for _, path in missing)}: made when the agent starts", ""
    return "ok", "all four there, none open to others", ""


def check_runtime(_settings: Settings) -> Answer:
    """Does the model runtime load here? In a child: on a CPU that it was not built for, it dies by SIGILL."""
    program = "from ai_edge_litert.interpreter import Interpreter; print(Interpreter.__module__)"
    begun = time.monotonic()
    child = spawn([sys.executable, "-c", program], capture=4096)
    try:
        status = child.wait(_RUNTIME_S)
        said = child.said().splitlines()[-1:]
    finally:
        child.close()
    remedy = "reinstall modelagent for this machine; the runtime is the package ai-edge-litert"
    if status is None:
        return "fail", f"the runtime did not load within {_RUNTIME_S:g} s", "free the CPU and the disk, then try again"
    if status != 0:
        return "fail", f"the runtime does not load: {describe_exit(status)} {''.join(said)}".rstrip(), remedy
    version = metadata.version("ai-edge-litert")
    return "ok", f"ai-edge-litert {version} loads in {time.monotonic() - begun:.1f} s on {platform.machine()}", ""


def check_root(settings: Settings) -> Answer:
    """Is the trusted root file there, is it signed by its own keys, and how long does it last?"""
    root = settings.repository.root
    if not settings.repository.url and not root.exists():
        return "warn", f"{root}: not there yet, and no repository is named", "run modelagent setup"
    return inspect_root(root)


def inspect_root(path: Path) -> Answer:
    """The same for any root file."""
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415 - heavy, and doctor is not the only user here
    from tuf.api.metadata import Metadata, Root  # noqa: PLC0415 - the same

    remedy = "copy root.json from the publisher, by a way that you trust"
    try:
        root: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        if not isinstance(root.signed, Root):
            return "fail", f"{path}: TUF metadata, but of the role {root.signed.type}", remedy
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except FileNotFoundError:
        return "fail", f"{path}: not there", remedy
    except (RepositoryError, ValueError, KeyError, TypeError) as error:
        return "fail", f"{path}: not a valid root: {error}", remedy
    left = root.signed.expires - datetime.now(UTC)
    shown = f"{path}: version {root.signed.version}, until {root.signed.expires:%Y-%m-%d}"
    if left < timedelta(0):
        # An expired start is no obstacle: the chain of newer roots is followed from it, and only its end must be valid.
        return "warn", f"{shown}: expired", "check the clock; if a newer root was published it is found from this one"
    if left < timedelta(days=90):
        return "warn", shown, "ask the publisher for a newer root before then"
    return "ok", shown, ""


def check_repository(settings: Settings) -> Answer:
    """Does the repository show its newest metadata?"""
    url = settings.repository.url
    if not url:
        return "warn", "repository.url is empty", "name the repository, or bring releases on a stick"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        file = Path(parts.path if parts.scheme == "file" else url) / "metadata" / "timestamp.json"
        if file.is_file():
            return "ok", f"{file} is there", ""
        return "fail", f"{file}: not there", "check repository.url, and that the stick or share is mounted"
    return _fetch(settings, url.rstrip("/") + "/metadata/timestamp.json")


def _fetch(settings: Settings, url: str) -> Answer:
    import requests  # noqa: PLC0415 - only where there is a link to look at

    wanted = settings.repository
    try:
        answer = requests.get(
            url,
            timeout=_NET_S,
            stream=True,
            verify=str(wanted.ca) if wanted.ca else True,
            cert=(str(wanted.client_cert), str(wanted.client_key)) if wanted.client_cert else None,
            proxies={"http": wanted.proxy, "https": wanted.proxy} if wanted.proxy else None,
        )
        answer.close()
    except requests.RequestException as error:
        return "fail", f"{url}: {error}", "check repository.url, the link, the proxy and the certificates"
    if answer.status_code != 200:
        return (
            "fail",
            f"{url}: the server says {answer.status_code} {answer.reason}",
            "check repository.url: below it lie metadata/ and files/",
        )
    return "ok", f"{url} answers in {answer.elapsed.total_seconds() * 1000:.0f} ms", ""


def check_trust(settings: Settings) -> Answer:
    """Is the repository the one that the root file vouches for?"""
    return relation(settings.repository.root, settings.repository)


def check_mqtt(settings: Settings) -> Answer:
    """Does the broker take a connection, if one is configured?"""
    wanted = settings.mqtt
    if not wanted.host:
        return "ok", "off (mqtt.host is empty)", ""
    place = f"{wanted.host}:{wanted.effective_port}"
    try:
        with socket.create_connection((wanted.host, wanted.effective_port), timeout=_NET_S) as plain:
            if wanted.tls.wanted:
                context = ssl.create_default_context(cafile=str(wanted.tls.ca) if wanted.tls.ca else None)
                if wanted.tls.cert is not None:
                    context.load_cert_chain(wanted.tls.cert, wanted.tls.key)
                with context.wrap_socket(plain, server_hostname=wanted.host) as secure:
                    return "ok", f"{place} takes a connection by {secure.version()}", ""
    except OSError as error:
        return "fail", f"{place}: {error}", "check mqtt.host, mqtt.port and [mqtt.tls]; updates work without a broker"
    return "ok", f"{place} takes a connection", ""


def check_priority(_settings: Settings) -> Answer:
    """May a worker that was loaded at lowest priority come back to normal?"""
    if os.geteuid() == 0:
        return "ok", "root may", ""
    # RLIMIT_NICE counts the other way round: 20 - nice (getrlimit(2)); normal priority, nice 0, is 20.
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if soft == resource.RLIM_INFINITY or soft >= 20:
        return "ok", "a worker may come back to normal priority", ""
    return (
        "warn",
        "a worker that loads at lowest priority could not come back, so it loads at normal priority",
        "LimitNICE=+0 in the unit (ours has it), or `<user> - nice 0` in /etc/security/limits.conf",
    )


def check_sources(settings: Settings) -> Answer:
    """Can the frames be read?"""
    idle = []
    for name, model in settings.models.items():
        if model.source.path is not None and not os.access(model.source.path, os.R_OK):
            return (
                "fail",
                f"models.{name}.source.path: {model.source.path} cannot be read by this user",
                "check the path and its permissions",
            )
        if model.source.kind == "none":
            idle.append(name)
    if not settings.models:
        return "warn", "no model is configured", "add a [models.<name>] table"
    if idle:
        return "warn", f"no frames for {', '.join(idle)}", "set models.<name>.source, or feed it otherwise"
    return "ok", f"frames for {', '.join(settings.models)}", ""


def check_grants(settings: Settings) -> Answer:
    """Do the units grant what sources, sinks and inputs need?"""
    lacking = missing(settings)
    if lacking:
        files = ", ".join(sorted({f"{grant.drop_in} of {grant.unit.removesuffix('.service')}" for grant in lacking}))
        return (
            "fail",
            f"{'; '.join(grant.reason for grant in lacking)}: not granted by the unit",
            f"drop-in {files}, see docs/systemd.md; then systemctl daemon-reload and restart what it is of",
        )
    return "ok", "the units grant what sources, sinks and inputs need" if needed(settings) else "none needed", ""


def check_programs(_settings: Settings) -> Answer:
    """Is compiled bytecode there? Without it every start takes about four times as long."""
    package = Path(__file__).parent.parent
    missing = [f for f in package.glob("*.py") if not list(f.parent.glob(f"__pycache__/{f.stem}.*.pyc"))]
    if missing and not os.access(package, os.W_OK):
        return "warn", f"{package}: no bytecode, starts are slow", f"sudo {sys.executable} -m compileall -q {package}"
    free = shutil.disk_usage(package).free // _MIB
    return "ok", f"Python {platform.python_version()}, {package} ({free} MB free there)", ""


def _nearest(path: Path) -> Path:
    """The directory itself, or the nearest above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("program", check_programs),
    ("clock", check_clock),
    ("disk", check_disk),
    ("directories", check_directories),
    ("runtime", check_runtime),
    ("root file", check_root),
    ("repository", check_repository),
    ("trust", check_trust),
    ("broker", check_mqtt),
    ("priority", check_priority),
    ("frames", check_sources),
    ("drop-ins", check_grants),
)
