"""Small releases as files in `incoming/`, and the questions a store must answer the same way at any time.

depot = Depot(tmp_path)
one = depot.offer("1.0.0")        # files under incoming/, named by sha256; `one` is the manifest's digest
depot.check()                     # links name complete slots with the right bytes, or nothing
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from modelagent.core.events import DiskFacts
from modelagent.manifest import dump, parse
from modelagent.steps.slots import SlotStore

TENSOR = {"name": "x", "shape": [1, 4], "dtype": "int8", "quantisation": {"scale": 0.5, "zero_point": 0}}


class Depot:
    def __init__(self, state_dir: Path, model: str = "digits") -> None:
        self.state_dir = state_dir
        self.model = model
        self.incoming = state_dir / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True)
        self.store = SlotStore(state_dir, model)
        self.bytes: dict[str, bytes] = {}

    def offer(self, version: str, canary: bytes = b"canary" * 50, number: int | None = None) -> str:
        """Make a release of two files and put it into incoming/."""
        files = {"model": f"model {version} ".encode() * 40, "canary": canary}
        refs = {}
        for role, data in files.items():
            sha = hashlib.sha256(data).hexdigest()
            self.bytes[sha] = data
            refs[role] = {"sha256": sha, "length": len(data)}
        manifest = dump(
            {
                "schema": 1,
                "model": self.model,
                "version": version,
                "number": number or int(version.replace(".", "")),
                "floor": 0,
                "issued": "2026-01-01T00:00:00Z",
                "parent": None,
                "files": refs,
                "runtime": {"min": None, "max": None},
                "delegate": "cpu",
                "hardware": [],
                "stateful": False,
                "inputs": [TENSOR],
                "outputs": [TENSOR],
                "labels": ["no", "yes"],
                "preprocess": {},
                "postprocess": {},
                "canary": {"metric": "accuracy", "margin": 0.05, "confidence": 0.95, "floor": 0.8, "samples": 10},
                "limits": {"latency_ms": 50, "latency_ratio": 2, "memory_mb": 100, "load_s": 5},
                "card": {},
            }
        )
        digest = hashlib.sha256(manifest).hexdigest()
        self.bytes[digest] = manifest
        self.acquire(digest)
        return digest

    def acquire(self, digest: str) -> None:
        """Bring back what incoming/ lacks, as the acquire step would."""
        release = parse(self.bytes[digest])
        work = self.store.slots / f".{digest}.new"
        for sha, name in [(digest, "manifest.json"), *((ref.sha256, ref.name) for ref in release.files)]:
            held = (work / name, self.store.path(digest) / name)
            if not any(path.exists() for path in held) and self.store.locate(sha, len(self.bytes[sha])) is None:
                (self.incoming / sha).write_bytes(self.bytes[sha])

    def install(self, version: str, *, confirmed: bool = True, fallback: str | None = None) -> str:
        digest = self.offer(version)
        self.store.stage(digest, self.incoming, fallback)
        self.store.activate(digest, fallback, None)
        if confirmed:
            self.store.confirm(digest)
        return digest

    def check(self) -> DiskFacts:
        """Every link names a complete slot with exactly the released bytes; facts agree with the links."""
        facts = self.store.facts()
        whole = {slot.release.digest for slot in facts.slots}
        for digest in whole:
            for ref in parse(self.bytes[digest]).files:
                assert (self.store.path(digest) / ref.name).read_bytes() == self.bytes[ref.sha256]
        for name in ("current", "fallback", "shadow"):
            link = self.store.root / name
            if link.is_symlink():
                assert str(link.readlink()).removeprefix("slots/") in whole, f"{name} names an incomplete slot"
        assert facts.current is None or facts.current in whole
        assert facts.fallback is None or facts.fallback in whole
        return facts

    def tree(self) -> dict[str, str]:
        """Everything below the store, with link targets and content, for comparison."""
        return {
            str(path.relative_to(self.state_dir)): (
                f"-> {path.readlink()}" if path.is_symlink() else path.read_bytes().hex() if path.is_file() else "dir"
            )
            for path in sorted(self.state_dir.rglob("*"))
        }


Operation = Callable[[], object]
