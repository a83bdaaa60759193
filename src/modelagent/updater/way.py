"""The way to the repository, put together from the settings: sources, what they may cost, and which clock counts.

This file knows which setting goes where. It does not know how anything is fetched or trusted.

    acquirer = acquirer_of(settings, clock.now, "ai-edge-litert 2.3.0")
    source_at("/media/stick/digits.modelagent")
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelagent.core.clock import Trust
from modelagent.core.events import Instant
from modelagent.errors import UsageError
from modelagent.inputs.config import Repository, Settings
from modelagent.manifest import Manifest
from modelagent.sources import Source
from modelagent.sources.allowance import Allowance, Metered
from modelagent.sources.archive import ArchiveSource
from modelagent.sources.directory import DirectorySource, place_of
from modelagent.sources.http import HttpSource
from modelagent.steps.acquire import Acquirer, check_suitable
from modelagent.steps.delta import Rebuilder

_log = logging.getLogger("modelagent.updater")
_BUFFER: Final = 64 * 1024  # bytes that the kernel may take in while a rate cap makes us wait


def acquirer_of(settings: Settings, clock: Callable[[], Instant], runtime: str) -> Acquirer:
    """The device's way to the repository.

    Args:
        settings: the settings.
        clock: this moment on both clocks.
        runtime: name and version of the installed runtime.
    """
    repository, state = settings.repository, settings.paths.state_dir
    allowance = Allowance(
        state / "bytes.json",
        per_second=float(repository.max_rate),
        per_day=repository.daily_mb * 1_000_000,
        clock=clock,
    )
    addresses = [address for address in (repository.url, *repository.mirrors) if address]
    return Acquirer(
        state,
        [_source(address, repository, allowance) for address in addresses],
        _root(repository.root),
        time.time,
        trust=Trust(settings.clock.trust),
        reserve=settings.limits.disk_reserve_mb * 2**20,
        suits=lambda manifest: _check(manifest, settings, runtime),
        allowance=allowance,
        delta=Rebuilder(state),
    )


def _check(manifest: Manifest, settings: Settings, runtime: str) -> None:
    """Refuse what this device cannot serve, with the delegate that it has for this model."""
    model = settings.models.get(manifest.model)
    version = runtime.rsplit(maxsplit=1)[-1]
    name, library = (model.runtime.delegate_name, model.runtime.delegate) if model is not None else ("", None)
    check_suitable(manifest, settings.device.hardware, version, name, library)


def source_at(path: Path) -> Source:
    """What is on a stick: a directory as a repository has it, or a bundle in one file.

    Raises:
        UsageError: `bundle`: neither.
    """
    # pathlib's `is_file` raises where one may not look, or where a name is longer than a name can be.
    if os.path.isfile(path / "metadata" / "timestamp.json"):  # noqa: PTH113
        return DirectorySource(path)
    if os.path.isfile(path):  # noqa: PTH113
        return ArchiveSource(path)
    raise UsageError(
        f"{path}: the updater finds no bundle there, neither a file nor a directory with metadata/timestamp.json; "
        "mount the medium where it may read it",
        code="bundle",
    )


def _source(address: str, repository: Repository, allowance: Allowance) -> Source:
    if (place := place_of(address)) is not None:
        return DirectorySource(place)
    return Metered(
        HttpSource(
            address,
            connect_timeout=repository.connect_timeout,
            read_timeout=repository.read_timeout,
            min_rate=repository.min_rate,
            window=repository.min_rate_window,
            ca=repository.ca,
            client=_pair(repository),
            proxy=repository.proxy,
            receive_buffer=_BUFFER if repository.max_rate else 0,
        ),
        allowance,
    )


def _pair(repository: Repository) -> tuple[Path, Path] | None:
    if repository.client_cert is None or repository.client_key is None:
        return None
    return repository.client_cert, repository.client_key


def _root(path: Path) -> bytes:
    """The trusted root. Without it nothing new is trusted, but what is here goes on and can go back."""
    try:
        return path.read_bytes()
    except OSError as error:
        _log.error("%s: the trusted root cannot be read (%s): no release will be trusted", path, error.strerror)
        return b""
