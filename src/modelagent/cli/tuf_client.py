"""`modelagent-tuf-client`: this agent's check and transfer behind the command line of TUF's conformance suite.

This file knows that command line (TUF conformance, CLIENT-CLI). It does not know how metadata is verified or bytes are
fetched: those are the product's own steps, so that the suite judges the product.

    modelagent-tuf-client --metadata-dir D init ROOTFILE
    modelagent-tuf-client --metadata-url U --metadata-dir D refresh
    modelagent-tuf-client --metadata-url U --metadata-dir D ...
        --target-name T --target-dir TD --target-base-url TU download

Exit code 0 when all of it was done and 1 for everything else, a wrong command line included. Switched off here:
splay, policies, waves, mirrors, and the floor under the clock (the suite plays with clocks).
"""

import argparse
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.metadata import TargetFile

from modelagent import durable
from modelagent.errors import AgentError, SourceError, TrustError, UsageError
from modelagent.sources import CHUNK
from modelagent.sources.http import HttpSource
from modelagent.sources.mirrors import Mirrors
from modelagent.steps.metadata import View, target_address
from modelagent.steps.transfer import Item, Transfer

# What can be checked here. A target that lists none of these is refused; what else it lists is passed over.
KNOWN_HASHES: Final = ("sha256", "sha512", "sha384", "sha224", "sha3_256", "sha3_512", "blake2b", "blake2s")
_LONG_NAME: Final = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Nothing gets out as an exception: the suite takes other codes for a crash."""
    try:
        _run(_parser().parse_args(arguments))
    except SystemExit as ended:  # argparse ends so after --help (0) and after a wrong command line (2)
        return 0 if ended.code in (None, 0) else 1
    except AgentError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, this command has failed
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("modelagent-tuf-client", description=__doc__.partition("\n")[0])
    parser.add_argument("--metadata-dir", required=True, type=Path, help="where trusted metadata is kept")
    parser.add_argument("--metadata-url", help="where metadata is served")
    parser.add_argument("--target-name", action="append", default=[], help="a target to download; may be repeated")
    parser.add_argument("--target-dir", type=Path, help="where targets are put")
    parser.add_argument("--target-base-url", help="where targets are served")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="trust a root file").add_argument("root", type=Path)
    commands.add_parser("refresh", help="fetch and verify the top-level metadata")
    commands.add_parser("download", help="refresh, then fetch and verify targets")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.command == "init":
        durable.make_directory(options.metadata_dir)
        durable.write_atomic(options.metadata_dir / "root.json", options.root.read_bytes())
        return
    wanted = ["metadata_url"]
    if options.command == "download":
        wanted += ["target_name", "target_dir", "target_base_url"]
    for name in wanted:
        if not getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is needed to {options.command}")
    with contextlib.closing(HttpSource(options.metadata_url)) as source:
        root = (options.metadata_dir / "root.json").read_bytes()
        view = View(options.metadata_dir, source, root, time.time(), prefix="")
        view.refresh()
        if options.command == "download":
            _download(view, options)


def _download(view: View, options: argparse.Namespace) -> None:
    incoming = options.metadata_dir / "incoming"  # beside the targets, where an unfinished one may never be seen
    durable.make_directory(incoming)
    durable.make_directory(options.target_dir)
    with contextlib.closing(HttpSource(options.target_base_url)) as source:
        transfer = Transfer(incoming, Mirrors([source]), lambda _: None)
        for name in options.target_name:
            info = view.info(name)
            if info is None:
                raise SourceError(f"{name}: no trusted role lists this target", code="not-found")
            _bring(transfer, name, info, options.target_dir / place_of(name), consistent=view.consistent)


def _bring(transfer: Transfer, name: str, info: TargetFile, place: Path, *, consistent: bool) -> None:
    hashes = {kind: value for kind, value in info.hashes.items() if kind in KNOWN_HASHES}
    if not hashes:
        raise TrustError(
            f"{name}: signed are {', '.join(info.hashes) or 'no hashes'}, known are {', '.join(KNOWN_HASHES)}; the "
            "target must be published again",
            code="malformed",
        )
    if is_whole(place, info.length, hashes):
        return
    digest = next(iter(info.hashes.values())) if consistent else ""
    key = hashlib.sha256(f"{name} {sorted(hashes.items())}".encode()).hexdigest()
    item = Item(target_address(name, digest, ""), key, info.length, hashes)
    transfer.bring(item, progress=lambda _: None, abandoned=lambda: False)
    _move(transfer.incoming / key, place)


def _move(whole: Path, place: Path) -> None:
    """Put a verified file in its place by one rename, also where that is another file system."""
    try:
        durable.rename(whole, place)
    except OSError:
        durable.write_atomic(place, whole.read_bytes())
        durable.remove(whole)


def place_of(name: str) -> str:
    """A target's file name: its whole path as one part, so that no name leads anywhere else."""
    encoded = quote(name, safe="")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _LONG_NAME:
        encoded = hashlib.sha256(name.encode()).hexdigest()
    return encoded


def is_whole(path: Path, length: int, hashes: dict[str, str]) -> bool:
    """Whether a plain file with this length and these hashes is there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    digests = {kind: hashlib.new(kind) for kind in hashes}
    with open(fd, "rb") as stream:
        if os.fstat(fd).st_size != length:
            return False
        while chunk := stream.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    return all(digest.hexdigest() == hashes[kind] for kind, digest in digests.items())


if __name__ == "__main__":
    sys.exit(main())
