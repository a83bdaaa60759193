"""Labels: what was right or wrong, or what the true class was, per result id; spooled for inference to join.

This file knows the batch format, its bounds, the spool directory and the drop directory. It does not know results:
whether an id is known, late or a duplicate is inference's to say.

    spool(paths.labels("digits"), parse_labels([{"id": "9f2c-17", "label": 7}]), wall_ns=time.time_ns())

A spooled file `<wall_ns>-<n>.json` is whole from the moment its name appears: {"schema": 1, "labels": [...]}.
"""

import contextlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelagent.durable import make_directory, remove, rename, write_atomic
from modelagent.errors import DeviceError, UsageError

SCHEMA: Final = 1
MAX_LABELS: Final = 5000  # in one batch
MAX_FILES: Final = 1000  # in one spool
MAX_BYTES: Final = 1024 * 1024  # of one dropped file
MAX_CLASS: Final = 2**31 - 1
KEEP_S: Final = 86_400.0  # inference reads every second; a day covers any stop that keeps its results
SETTLE_S: Final = 10.0  # a dropped file that does not parse may still be being written for this long
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_NAME: Final = re.compile(r"(\d{1,20})-(\d{1,6})\.json")


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about one result: its class, or only whether the prediction was right."""

    id: str
    label: int | None = None
    right: bool | None = None

    @property
    def document(self) -> dict[str, Any]:
        """As it stands in a spooled file."""
        return {"id": self.id, "right": self.right} if self.label is None else {"id": self.id, "label": self.label}


def parse_labels(value: object) -> tuple[Label, ...]:
    """Check a list of {"id", "label"} or {"id", "right"}; raises UsageError that names the place."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LABELS:
        raise _bad(f'labels: a list of 1 to {MAX_LABELS} entries such as {{"id": "9f2c-17", "label": 7}} is needed')
    return tuple(_parse_label(entry, f"labels[{place}]") for place, entry in enumerate(value))


def _parse_label(entry: object, where: str) -> Label:
    if not isinstance(entry, dict) or set(entry) not in ({"id", "label"}, {"id", "right"}):
        raise _bad(f"{where}: allowed: an object with id and either label or right")
    found = entry["id"]
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise _bad(f"{where}.id: allowed: the id of a result, 1 to 128 visible ASCII characters")
    if "right" in entry:
        if not isinstance(entry["right"], bool):
            raise _bad(f"{where}.right: allowed: true or false")
        return Label(found, right=entry["right"])
    label = entry["label"]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= MAX_CLASS:
        raise _bad(f"{where}.label: allowed: the index of a class, a whole number from 0")
    return Label(found, label=label)


def spool(directory: Path, labels: tuple[Label, ...], *, wall_ns: int) -> Path:
    """Write one batch durably; after the return it survives a power cut.

    Raises:
        DeviceError: the spool is full or cannot be written; nothing was kept.
    """
    try:
        for place in (directory.parent, directory):
            make_directory(place)
        present = {path.name for path in directory.iterdir() if _NAME.fullmatch(path.name)}
        if len(present) >= MAX_FILES:
            raise DeviceError(
                f"{directory}: {len(present)} batches wait already; start inference, or send fewer", code="spool-full"
            )
        name = next(n for n in (f"{wall_ns}-{i}.json" for i in range(MAX_FILES + 1)) if n not in present)
        document = {"schema": SCHEMA, "labels": [label.document for label in labels]}
        write_atomic(directory / name, json.dumps(document, separators=(",", ":")).encode())
    except OSError as error:
        raise DeviceError(f"{directory}: labels were not kept: {error.strerror}", code="spool") from error
    return directory / name


def sweep(directory: Path, *, wall_ns: int) -> int:
    """Remove batches older than a day, or dated more than a day ahead (a clock that was wrong); returns how many.

    What cannot be read or removed now (a disk that was mounted read-only) stays for the next time.
    """
    removed = 0
    with contextlib.suppress(OSError):
        for path in sorted(directory.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and abs(wall_ns - int(match[1])) > KEEP_S * 1e9:
                remove(path)
                removed += 1
    return removed


def collect(drop: Path, directory: Path, *, wall_ns: int) -> tuple[int, tuple[str, ...]]:
    """Move what people dropped as `drop`/*.json into the spool.

    A dropped file holds a list of labels, or {"labels": [...]}. A bad one is renamed to `.bad` once it has settled.

    Returns:
        How many labels were taken, and one sentence for each file that was refused.
    """
    taken, refusals = 0, []
    try:
        files = sorted(p for p in drop.iterdir() if p.suffix == ".json" and not p.name.startswith("."))
    except OSError:
        return 0, ()  # nobody made the directory: nobody drops anything
    for file in files[:MAX_FILES]:
        try:
            document = json.loads(_read_regular(file))
            labels = parse_labels(document.get("labels") if isinstance(document, dict) else document)
        except (OSError, ValueError, RecursionError, UsageError) as error:
            if _age_s(file, wall_ns) > SETTLE_S:
                refusals.append(f"{file}: {error}; renamed to {file.name}.bad")
                with contextlib.suppress(OSError):
                    rename(file, file.with_name(f"{file.name}.bad"))
            continue
        # The spool first, the removal second: a cut between the two gives duplicates, which inference counts as such.
        batch = spool(directory, labels, wall_ns=wall_ns)
        try:
            remove(file)
        except OSError as error:  # it would be taken again at every look
            with contextlib.suppress(OSError):
                remove(batch)
            why = f"{error.strerror or error}; let the updater's user write in {drop}"
            refusals.append(f"{file}: not taken, since it cannot be removed: {why}")
            continue
        taken += len(labels)
    return taken, tuple(refusals)


def _age_s(file: Path, wall_ns: int) -> float:
    try:
        return abs(wall_ns - file.lstat().st_mtime_ns) / 1e9
    except OSError:
        return 0.0


def _read_regular(file: Path) -> bytes:
    # Others may write in the drop directory: a link or a FIFO there must neither lead us elsewhere nor hold us.
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError("not a regular file", code="bad-label")
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"more than {MAX_BYTES} bytes", code="bad-label")
    return data


def _bad(message: str) -> UsageError:
    return UsageError(message, code="bad-label")
