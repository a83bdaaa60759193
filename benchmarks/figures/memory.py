"""What the agent takes of the device's memory, at rest, with one model served at 30 frames a second.

This file knows three figures. The device is a real one: it fetches its first release from a signed repository over
HTTP, proves it, runs it and confirms it; then each process is looked at. PSS counts a page that n processes share as
1/n of a page in each, so the sum is what the device really gives; RSS counts shared pages in full.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.measure import Figure, Group, Measured
from benchmarks.stand import Stand, family

from modelagent.publish.repository import Repository
from modelagent.publish.serve import Server

_ROOT: Final = Path(__file__).resolve().parents[2]
_FORBIDDEN: Final = ("numpy", "ai_edge_litert", "rich", "prometheus_client", "tensorflow")
_SETTLE_S: Final = 8.0
_FIRST_S: Final = 60.0
_DIRECT: Final = re.compile(r"^import time:\s*\d+ \|\s*\d+ \|\s*(\w+)")


def _publish(folder: Path) -> tuple[Path, Path]:
    """A repository with digits 1.1.0 on the channel `stable`: its directory and the devices' root file."""
    examples = _ROOT / "examples/digits"
    catalogue: dict[str, Any] = json.loads((examples / "releases.json").read_text(encoding="utf-8"))
    repository = Repository.init(folder / "repo", folder / "keys", ["digits"])
    keys = ("model", "labels", "inputs", "outputs", "limits", "preprocess", "postprocess")
    document = {key: catalogue[key] for key in keys} | {
        "version": "1.1.0",
        "number": 110,
        "runtime": {},
        "delegate": "cpu",
        "hardware": [],
        "stateful": False,
        "canary": {key: value for key, value in catalogue["canary"].items() if key != "file"},
        "card": {},
    }
    files = {
        "model": examples / "models/digits-1.1.0.tflite",
        "canary": examples / "canary.npz",
        "warmup": examples / "warmup.npz",
    }
    repository.add(document, files)
    repository.channel("digits", "stable", "1.1.0")
    return folder / "repo", folder / "keys" / "root.json"


def _kilobytes(pid: int, file: str, key: str) -> float:
    text = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii")
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def _part(pid: int) -> str:
    """What a process of the agent is, from its command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "modelagent.inference.worker" in words:
        return "worker"
    return next((word for word in words if word in {"updater", "inference"}), "supervisor")


def resting(folder: Path) -> dict[str, Measured]:
    """`memory.agent_pss_mb`, `memory.updater_rss_mb` and `memory.updater_forbidden_imports`."""
    with Stand(folder / "memory") as stand:
        repository, root = _publish(stand.folder)
        server = Server(repository)
        server.start()
        try:
            return _measure(stand, server.url, root)
        finally:
            stand.stop_all()
            server.close()


def _measure(stand: Stand, url: str, root: Path) -> dict[str, Measured]:
    frames = stand.folder / "frames.npz"
    with np.load(_ROOT / "examples/digits/canary.npz", allow_pickle=False) as canary:
        np.savez(frames, input_0=canary["input_0"])
    stand.configure(
        {
            "digits": {
                "source": {"kind": "replay", "path": str(frames), "fps": 30.0},
                "probation": {"frames": 30, "seconds": 1.0},
            }
        },
        repository={"url": url, "root": str(root)},
    )
    process = stand.start()
    stand.wait("digits", lambda health: health["running"], seconds=_FIRST_S, pause=0.2)
    digest = stand.wait("digits", lambda health: health["running"])["running"]["digest"]
    confirmed = stand.paths["state_dir"] / "models/digits/slots" / digest / "confirmed"
    deadline = time.monotonic() + _FIRST_S
    while not confirmed.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not confirmed within {_FIRST_S:g} s; see {stand.folder}/all.log")
        time.sleep(0.2)
    time.sleep(_SETTLE_S)  # the probation's shadow is gone, caches of the update are given back
    pids = list(family(process.pid))
    pss = {pid: _kilobytes(pid, "smaps_rollup", "Pss") / 1024 for pid in pids}
    updater = next(pid for pid in pids if _part(pid) == "updater")
    rss = _kilobytes(updater, "status", "VmRSS") / 1024
    each = ", ".join(f"{_part(pid)} {pss[pid]:.1f}" for pid in pids)
    stand.stop(process)
    imported = sorted(_imports(stand))
    return {
        "memory.agent_pss_mb": Measured(
            sum(pss.values()), f"PSS in MB: {each}; digits at 30 fps, {_SETTLE_S:g} s after its first release"
        ),
        "memory.updater_rss_mb": Measured(rss, "the same moment; RSS, shared libraries in full"),
        "memory.updater_forbidden_imports": Measured(
            len(imported),
            f"of {', '.join(_FORBIDDEN)} the updater's process imported: {', '.join(imported) or 'none'}",
        ),
    }


def _imports(stand: Stand) -> Iterator[str]:
    """The forbidden packages that a start of the updater, with one check, imports: as the interpreter logs them."""
    updater = stand.start("updater", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    time.sleep(4.0)
    stand.stop(updater)
    log = (stand.folder / "updater.log").read_text(encoding="utf-8", errors="replace")
    seen = {match.group(1) for line in log.splitlines() if (match := _DIRECT.match(line))}
    if "modelagent" not in seen:
        raise RuntimeError(f"the interpreter logged no imports; see {stand.folder}/updater.log")
    yield from seen & set(_FORBIDDEN)


GROUPS: Final = (
    Group(
        (
            Figure("memory.agent_pss_mb", "MB", "<= 130"),
            Figure("memory.updater_rss_mb", "MB", "<= 60"),
            Figure("memory.updater_forbidden_imports", "packages", "<= 0"),
        ),
        resting,
    ),
)
