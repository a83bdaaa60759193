"""`modelagent repo add`: publish a .tflite file that is ready.

This file knows how a release's contract is typed. It does not know how anything is signed, nor what a device does.

    modelagent repo add model.tflite --model digits --version 1.0.0 --canary canary.npz
    modelagent repo add length.tflite --model length --version 1 --canary canary.npz --metric mae ...
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from modelagent.cli import EXIT_CODES, Frame
from modelagent.cli.repo import answer, deltas_option, deltas_told, open_repository, places, warn_of_ended
from modelagent.cli.values import number
from modelagent.errors import UsageError
from modelagent.manifest import ERRORS, METRICS
from modelagent.publish import canaries, contract
from modelagent.publish.repository import Repository

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_MARGIN: Final = 0.05  # of a share


def _contract_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--canary", type=_FILE, help="An .npz: input_0, input_1, ... and labels, or reference outputs."),
        click.option("--labels", type=_FILE, help="Class names: a JSON list, or one a line."),
        click.option("--warmup", type=_FILE, help="An .npz: input_0, ... to warm the model up with."),
        click.option("--softmax", is_flag=True, help="The outputs are logits: devices turn them into probabilities."),
        click.option(
            "--metric",
            type=click.Choice(METRICS),
            default="accuracy",
            show_default=True,
            metavar="NAME",
            help=f"What devices judge by: {', '.join(METRICS)}.",
        ),
        click.option(
            "--margin", type=number, help="Loss that is tolerated, in the metric's unit. [default: 0.05, if a share]"
        ),
        click.option(
            "--tolerance", type=number, help="Largest difference that still agrees, for the metric agreement."
        ),
        click.option(
            "--confidence", type=number, default=0.95, show_default=True, help="One-sided, of the canary's verdict."
        ),
        click.option(
            "--floor-accuracy",
            type=number,
            help="Value below (errors: above) which it never runs. [default: 0, if a share]",
        ),
        click.option(
            "--latency-ms", type=number, default=1000.0, show_default=True, help="p95 of one inference at most."
        ),
        click.option(
            "--latency-ratio", type=number, default=3.0, show_default=True, help="p50 and p95 against the running one."
        ),
        click.option("--memory-mb", type=number, default=1024.0, show_default=True, help="Peak memory at most."),
        click.option(
            "--load-s", type=number, default=30.0, show_default=True, help="Time to load and warm up at most."
        ),
        click.option("--number", type=int, help="Release number; by default one above the highest."),
        click.option("--floor", default=0, show_default=True, help="Once confirmed, nothing below this number runs."),
        click.option("--hardware", multiple=True, metavar="NAME", help="Devices it is for; by default all."),
        click.option("--runtime-min", help="Oldest runtime version it works with."),
        click.option("--runtime-max", help="Newest runtime version it works with."),
        click.option("--stateful", is_flag=True, help="The model keeps state from one frame to the next."),
        click.option("--parent", metavar="VERSION", help="The version it was trained from."),
        click.option("--manifest", type=_FILE, help="JSON of a manifest, whose keys win over all options."),
    )
    for option in reversed(options):  # each is put before those that are there
        command = option(command)
    return command


@click.command(epilog=EXIT_CODES)
@places
@_contract_options
@click.option("--model", required=True, metavar="NAME", help="The model's name.")
@click.option("--version", required=True, help="The version's name; never used twice.")
@click.option("--accept-small-canary", is_flag=True, help="Publish although the canary set is too small; it says so.")
@click.option("--new-model", is_flag=True, help="Let this repository publish this model from now on.")
@deltas_option
@click.argument("tflite", metavar="MODEL.tflite", type=_FILE)
@click.pass_obj
def add(
    frame: Frame,
    /,
    tflite: Path,
    *,
    directory: Path,
    keys_dir: Path,
    passphrase_file: Path | None,
    accept_small_canary: bool,
    new_model: bool,
    deltas_from: int,
    **options: Any,
) -> None:
    """Sign and publish MODEL.tflite as a release. No channel names it yet.

    It is tried first as a device would, in a child process, and what devices would refuse is refused. Where --manifest
    states inputs and outputs, its words alone are checked: so is published what this runtime cannot load. The canary
    set must be large enough for its margin: 248 samples speak for 0.05, 1,546 for 0.02.
    """
    repository = open_repository(directory, keys_dir, passphrase_file)
    document, files = _document(repository, tflite, options)
    release = repository.add(
        document,
        files,
        accept_small_canary=accept_small_canary,
        new_model=new_model,
        deltas_from=deltas_from,
        # A file whose tensors were stated may be one that the runtime here cannot load.
        proof=contract.prove_words if document["card"].get("runtime") is None else contract.prove,
    )
    warn_of_ended(repository)
    deltas, lines = deltas_told(repository, release.model, release.version, release.model_file.length)
    answer(
        frame,
        {
            "model": release.model,
            "version": release.version,
            "number": release.number,
            "digest": release.digest,
            "bytes": release.release.size,
            "card": dict(release.card),
            "deltas": deltas,
        },
        f"{release.model} {release.version}: release {release.number}, {release.release.size} bytes, {release.digest}\n"
        f"{lines}"
        f"next: modelagent repo channel {release.model} stable {release.version}",
    )


def _document(
    repository: Repository, tflite: Path, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Path | bytes]]:
    """The manifest document and files of what was typed."""
    extra = {} if options["manifest"] is None else _json_object(options["manifest"])
    # Tensors that were written down are not read: that is how a file is published that the runtime here cannot load.
    stated = "inputs" in extra and "outputs" in extra
    tensors = {"inputs": [], "outputs": [], "runtime": None} if stated else contract.read(tflite)
    files: dict[str, Path | bytes] = {"model": tflite}
    for role in ("canary", "warmup"):
        if options[role] is not None:
            files[role] = options[role]
    labels = _labels(options["labels"]) if options["labels"] is not None else []
    if labels:
        files["labels"] = (json.dumps(labels, ensure_ascii=False) + "\n").encode()
    parent = None
    if options["parent"] is not None:
        known = {version: digest for version, digest, _ in repository.releases(options["model"])}
        if options["parent"] not in known:
            raise UsageError(
                f"--parent {options['parent']}: no such release; published are {', '.join(known) or 'none'}",
                code="unknown-version",
            )
        parent = known[options["parent"]]
    document: dict[str, Any] = {
        "model": options["model"],
        "version": options["version"],
        "floor": options["floor"],
        "parent": parent,
        "runtime": {"min": options["runtime_min"], "max": options["runtime_max"]},
        "delegate": "cpu",
        "hardware": list(options["hardware"]),
        "stateful": options["stateful"],
        "inputs": tensors["inputs"],
        "outputs": tensors["outputs"],
        "labels": labels,
        "preprocess": {"kind": "none"},
        "postprocess": _postprocess(options),
        "canary": _canary(options, extra),
        "limits": {key: options[key] for key in ("latency_ms", "latency_ratio", "memory_mb", "load_s")},
        "card": {} if stated else {"runtime": tensors["runtime"]},
    }
    if options["number"] is not None:
        document["number"] = options["number"]
    return _merged(document, extra), files


def _canary(options: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """How devices judge. An error has a unit, so its margin and its floor must be stated."""
    stated = extra.get("canary", {})
    found = {"metric": options["metric"], "margin": options["margin"], "floor": options["floor_accuracy"]}
    found |= {key: stated[key] for key in found if isinstance(stated, dict) and key in stated}
    if found["metric"] in ERRORS and None in found.values():
        raise UsageError(
            f"--metric {found['metric']}: found no --margin or no --floor-accuracy; allowed are by how much it may "
            "rise and how large it may be, in its own unit",
            code="bad-option",
        )
    samples = 0 if options["canary"] is None else canaries.count_samples(options["canary"])
    return {
        "metric": found["metric"],
        "margin": _MARGIN if found["margin"] is None else found["margin"],
        "confidence": options["confidence"],
        "floor": found["floor"] or 0.0,
        "samples": samples,
        **({} if options["tolerance"] is None else {"tolerance": options["tolerance"]}),
    }


def _postprocess(options: dict[str, Any]) -> dict[str, Any]:
    """What follows from the metric; without samples or labels nothing is assumed of the outputs."""
    if options["metric"] in ERRORS:
        return {"kind": "regression"}
    if options["metric"] in ("anomaly-auc", "mean-iou", "agreement"):
        return {"kind": "raw"}
    if options["canary"] is None and options["labels"] is None:
        return {"kind": "raw"}
    return {"kind": "classification", "softmax": options["softmax"]}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        # A table with a kind stands for itself: what was assumed of another kind is nonsense in it.
        both = isinstance(value, dict) and isinstance(result.get(key), dict) and "kind" not in value
        result[key] = _merged(result[key], value) if both else value
    return result


def _json_object(path: Path) -> dict[str, Any]:
    document = _json(path)
    if not isinstance(document, dict):
        raise UsageError(f"{path}: found no JSON object; correct the file", code="manifest")
    return document


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file", code="file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON ({error}); correct the file", code="file") from error


def _labels(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file", code="file") from error
    except ValueError as error:
        raise UsageError(f"{path}: no text ({error}); name a file with the class names", code="file") from error
    names = _json(path) if text.lstrip().startswith("[") else [line.strip() for line in text.splitlines()]
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: allowed is a JSON list of strings", code="file")
    found = [name for name in names if name]
    if not found:
        raise UsageError(f"{path}: found no class name; write one a line, or leave --labels out", code="file")
    return found
