"""`modelagent label`: say what a result should have been, so that probation and drift have ground truth.

This file knows how a person names a result and its truth. It does not know results: inference joins them.

    modelagent label 9f2c-17 7            # result 9f2c-17 was class 7
    modelagent label 9f2c-18 --wrong      # whatever it was, not what the model said
    modelagent label --file labels.json   # [{"id": "9f2c-17", "label": 7}, ...]
"""

import json
from pathlib import Path
from typing import NoReturn

import click

from modelagent.cli import Frame
from modelagent.cli.talk import Command, steer, steering
from modelagent.errors import UsageError
from modelagent.inputs.labels import MAX_BYTES, parse_labels


@steering
@click.argument("result", default="")
@click.argument("truth", type=int, required=False)
@click.option("--right/--wrong", "right", default=None, help="Only whether the prediction was right.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='A JSON list of {"id", "label"} or {"id", "right"}.',
)
def label(
    frame: Frame, command: Command, *, result: str, truth: int | None, right: bool | None, file: Path | None
) -> NoReturn:
    """Say what a result should have been.

    RESULT is the id of a result, TRUTH the index of its true class.
    """
    found = _read(file) if file is not None else []
    if result:
        if (truth is None) == (right is None):
            raise UsageError("label: give the true class after RESULT, or --right, or --wrong", code="bad-label")
        found.append({"id": result, "label": truth} if truth is not None else {"id": result, "right": right})
    labels = [entry.document for entry in parse_labels(found)]
    steer(frame, command, "label", labels=labels)


def _read(file: Path) -> list[object]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{file}: more than {MAX_BYTES} bytes; send it in parts", code="bad-label")
        document = json.loads(data)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}", code="bad-label") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON: {error}", code="bad-label") from error
    listed = document.get("labels") if isinstance(document, dict) else document
    if not isinstance(listed, list):
        raise UsageError(f'{file}: a list such as [{{"id": "9f2c-17", "label": 7}}] is needed', code="bad-label")
    return listed
