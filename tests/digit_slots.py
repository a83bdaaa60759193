"""Slots around the example's digit readers, as the updater would have staged them.

manifest = write_slot(tmp_path / "1.1.0", "digits-1.1.0.tflite")
manifest = write_slot(tmp_path / "bad", "hostile/crash_on_load.tflite", change={"canary.margin": 0.1})
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from modelagent import manifest

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "digits"


def write_slot(
    slot: Path,
    model: str,
    *,
    change: dict[str, Any] | None = None,
    canary: Path = EXAMPLE / "canary.npz",
) -> manifest.Manifest:
    """Write a slot around `examples/digits/models/<model>`; `change` overrides keys such as `canary.margin`."""
    shared = json.loads((EXAMPLE / "releases.json").read_text())
    sources = {
        "model": ("model.tflite", EXAMPLE / "models" / model),
        "canary": ("canary.npz", canary),
        "warmup": ("warmup.npz", EXAMPLE / "warmup.npz"),
    }
    slot.mkdir(parents=True)
    files = {}
    for role, (name, source) in sources.items():
        data = source.read_bytes()
        (slot / name).write_bytes(data)
        files[role] = {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}
    document: dict[str, Any] = {
        "schema": 1,
        "model": "digits",
        "version": slot.name,
        "number": 1,
        "floor": 0,
        "issued": "2026-01-01T00:00:00Z",
        "parent": None,
        "files": files,
        "runtime": {"min": None, "max": None},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "inputs": shared["inputs"],
        "outputs": shared["outputs"],
        "labels": shared["labels"],
        "preprocess": {"kind": "none"},
        "postprocess": {"kind": "classification", "softmax": False},
        "canary": {key: value for key, value in shared["canary"].items() if key != "file"},
        "limits": shared["limits"],
        "card": {},
    }
    for path, value in (change or {}).items():
        *parents, last = path.split(".")
        table: Any = document
        for parent in parents:
            table = table[int(parent) if parent.isdigit() else parent]
        table[last] = value
    data = manifest.dump(document)
    (slot / "manifest.json").write_bytes(data)
    return manifest.parse(data)
