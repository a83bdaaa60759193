"""Letting old releases go: first from the metadata, then, after a time of grace, from the disk.

This file knows which releases must stay and when a file that nothing names may be removed. It does not know TUF's
files (`ledger.py` does).

    gone = prune(repository, "digits", keep=5)          # versions that are listed no longer; takes the release key
    removed = sweep(repository, grace=86400, now=...)   # files that nothing has named for a day; takes no key

A device that read the old metadata a minute ago may still be fetching what it named: the grace is for it. A release
that a channel names always stays.
"""

import json
from pathlib import Path
from typing import Any, Final

from modelagent import durable
from modelagent.errors import UsageError
from modelagent.publish.inspection import strangers
from modelagent.publish.ledger import model_role
from modelagent.publish.repository import Repository
from modelagent.steps import channel as form

MARKS: Final = ".unnamed.json"  # file -> since when nothing names it, Unix seconds


def prune(repository: Repository, model: str, *, keep: int, dry_run: bool = False) -> list[str]:
    """Take all but the newest `keep` releases from the metadata, apart from those that channels name.

    Returns:
        The versions taken away, oldest first.

    Raises:
        UsageError: `keep`, or as the ledger's.
    """
    if keep < 1:
        raise UsageError(f"--keep {keep}: allowed is at least 1", code="keep")
    ledger = repository.ledger
    with ledger.locked():
        targets = ledger.load_targets(model_role(model))
        named = {
            str(document["release"]["version"])
            for document in repository.channels()
            if document["model"] == model and document["release"] is not None
        }
        releases = repository.releases(model)
        gone = [version for version, _, _ in releases[:-keep] if version not in named]
        if gone and not dry_run:
            for version in gone:
                del targets.signed.targets[form.manifest_path(model, version)]
            ledger.publish({model_role(model): targets})
    return gone


def sweep(repository: Repository, *, grace: float, now: float, dry_run: bool = False) -> list[str]:
    """Remove files that nothing has named for `grace` seconds; the first time a file is seen so, it is only noted.

    Returns:
        The files removed, relative to the repository.
    """
    place = repository.directory / MARKS
    with repository.ledger.locked():
        marks = _marks(place)
        found = strangers(repository)
        # Anything that was named again in between begins anew.
        since = {name: float(marks.get(name, now)) for name in found}
        gone = [name for name, start in since.items() if now - start >= grace]
        if dry_run:
            return gone
        for name in gone:
            durable.unlink(repository.directory / name)
            del since[name]
        durable.write_atomic(place, (json.dumps(since, indent=1, sort_keys=True) + "\n").encode(), mode=0o600)
    return gone


def _marks(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}  # lost marks only make files stay longer
