"""Does this repository follow from this root file? Asked before a device relies on it.

This file knows how to look at a repository as the updater would, with the same verification, and forget all of it
again. It does not know where the two come from, and changes nothing on the device.

    relation(Path("root.json"), settings.repository)     # ("ok", "the repository is the one ... vouches for", "")

A root file of another publisher is valid in itself: without this look a device would start with it, refuse everything
it is offered, and say so only in its journal.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Final

from modelagent.errors import DeviceError, SourceError, TrustError, UsageError
from modelagent.inputs.config import Repository

_NET_S: Final = 5.0  # seconds for each answer
FOREIGN: Final = "this root file is not of this repository"
_REMEDY: Final = (
    "copy root.json from the publisher of this repository, by a way that you trust (`modelagent repo init` made it "
    "beside the keys), or correct repository.url"
)
_EXPIRED: Final = ("freeze-attack", "wrong-clock")


def relation(root: Path, repository: Repository) -> tuple[str, str, str]:
    """Follow the chain of roots from this file to the repository's timestamp.

    Returns:
        Status (`ok`, `warn`: could not be found out, or what was found has expired; `fail`), what was found, and the
        remedy.
    """
    if not repository.url:
        return "warn", "no repository to compare the root file with", "name one, or bring releases on a stick"
    try:
        with tempfile.TemporaryDirectory(prefix="modelagent-doctor-") as folder:
            _follow(Path(folder), root.read_bytes(), repository)
    except FileNotFoundError:
        return "warn", f"{root}: not there, so nothing can be compared with it", _REMEDY
    except UsageError as error:
        return "fail", f"{root}: {error.message}", _REMEDY
    except TrustError as error:
        if error.code == "arbitrary-software":
            return "fail", f"{root}: {FOREIGN} ({repository.url}): {error.message}", _REMEDY
        if error.code in _EXPIRED:
            return (
                "warn",
                error.message,
                "see the clock above; else the publisher must sign anew: modelagent repo refresh",
            )
        return "fail", error.message, "tell the publisher; nothing of this repository is used until it is mended"
    except SourceError as error:
        return "warn", f"not compared with the root file: {error.message}", "see the repository above; try again then"
    except DeviceError as error:
        return "warn", f"not compared with the root file: {error.message}", "free some space, then try again"
    return "ok", f"{repository.url}: signed by the keys that {root} vouches for", ""


def _follow(folder: Path, root: bytes, repository: Repository) -> None:
    from modelagent.sources import Source  # noqa: PLC0415 - heavy, and doctor is not the only user here
    from modelagent.sources.directory import DirectorySource, place_of  # noqa: PLC0415 - the same
    from modelagent.sources.http import HttpSource  # noqa: PLC0415 - the same
    from modelagent.steps.metadata import View  # noqa: PLC0415 - the same

    source: Source
    with contextlib.ExitStack() as stack:
        if (place := place_of(repository.url)) is None:
            cert, key = repository.client_cert, repository.client_key
            source = stack.enter_context(
                contextlib.closing(
                    HttpSource(
                        repository.url,
                        connect_timeout=min(_NET_S, repository.connect_timeout),
                        read_timeout=min(_NET_S, repository.read_timeout),
                        ca=repository.ca,
                        client=(cert, key) if cert is not None and key is not None else None,
                        proxy=repository.proxy,
                    )
                )
            )
        else:
            source = DirectorySource(place)
        View(folder, source, root, time.time()).refresh_top()
