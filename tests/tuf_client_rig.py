"""The client under test, called as the conformance suite calls it."""

from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata

from modelagent.cli.tuf_client import main
from tuf_repository import Site, TufRepository


class Client:
    """One client with its two directories; each command is what a new process would do."""

    def __init__(self, directory: Path, repository: TufRepository, site: Site) -> None:
        self.metadata = directory / "metadata"
        self.targets = directory / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.repository = repository
        self.site = site
        self.root = directory / "initial_root.json"

    def init(self, data: bytes | None = None) -> int:
        self.root.write_bytes(self.repository.published["root", 1] if data is None else data)
        return main(["--metadata-dir", str(self.metadata), "init", str(self.root)])

    def refresh(self) -> int:
        self.repository.requests.clear()
        return main(["--metadata-url", self.site.metadata_url, "--metadata-dir", str(self.metadata), "refresh"])

    def download(self, *names: str) -> int:
        self.repository.requests.clear()
        self.repository.artifact_requests.clear()
        words = ["--metadata-url", self.site.metadata_url, "--metadata-dir", str(self.metadata)]
        for name in names:
            words += ["--target-name", name]
        return main([*words, "--target-dir", str(self.targets), "--target-base-url", self.site.targets_url, "download"])

    def roles(self) -> dict[str, int]:
        """Every `*.json` directly in the metadata directory, parsed as the suite does."""
        return {
            path.name.removesuffix(".json"): Metadata[Any].from_bytes(path.read_bytes()).signed.version
            for path in self.metadata.glob("*.json")
        }

    def artifacts(self) -> list[bytes]:
        """Every regular file below the target directory, in the order of modification.

        Two written within one tick of the kernel's clock have the same time: these in the order of their bytes.
        """
        found = [path for path in self.targets.rglob("*") if path.is_file()]
        return [data for _, data in sorted((path.stat().st_mtime_ns, path.read_bytes()) for path in found)]


FRESH = [("root", 2), ("timestamp", None), ("snapshot", 1), ("targets", 1)]
