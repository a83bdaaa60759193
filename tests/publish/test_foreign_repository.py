"""A repository made with python-tuf's own API, our manifest in it, and no code of ours: devices can use it."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from modelagent import manifest
from modelagent.sources.directory import DirectorySource
from modelagent.steps.acquire import Acquirer
from repository_simulator import fake_model, make_canary, make_manifest

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_a_device_takes_a_release_from_it(tmp_path: Path) -> None:
    signer = CryptoSigner.generate_ecdsa()  # another kind of key than ours
    for part in ("metadata", "files", "device"):
        (tmp_path / part).mkdir()
    expires = NOW + timedelta(days=1)

    files = {"model": fake_model("9"), "canary": make_canary()}
    names = {role: {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)} for role, data in files.items()}
    for role, data in files.items():
        (tmp_path / "files" / str(names[role]["sha256"])).write_bytes(data)
    release = manifest.dump(make_manifest(version="9", files=names))
    digest = hashlib.sha256(release).hexdigest()
    channel = {
        "schema": 1,
        "model": "digits",
        "channel": "stable",
        "issued": "2026-11-01T12:00:00Z",
        "release": {"version": "9", "digest": digest},
        "waves": [],
        "withdrawn": [],
    }

    def publish(path: str, data: bytes) -> Targets:
        entry = TargetFile.from_data(path, data, ["sha256"])
        entry.unrecognized_fields["custom"] = {"number": 1, "floor": 0}
        place = tmp_path / "targets" / path
        place.parent.mkdir(parents=True)
        place.with_name(f"{entry.hashes['sha256']}.{place.name}").write_bytes(data)
        return Targets(expires=expires, targets={path: entry})

    roles = {
        "models-digits": publish("models/digits/9/manifest.json", release),
        "channels": publish("channels/digits/stable.json", json.dumps(channel).encode()),
    }
    paths = {"models-digits": ["models/digits/*/*"], "channels": ["channels/*/*"]}
    delegations = Delegations({}, {name: DelegatedRole(name, [], 1, True, paths=paths[name]) for name in roles})
    top = Targets(expires=expires, delegations=delegations)
    for name in roles:
        top.add_key(signer.public_key, name)
    root = Root(expires=expires, consistent_snapshot=True)
    for name in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(signer.public_key, name)

    def write(name: str, signed: Any) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(signer)
        metadata.to_file(str(tmp_path / "metadata" / name))
        return metadata.to_bytes()

    write("1.root.json", root)
    written = {"targets": top, **roles}
    for name, signed in written.items():
        write(f"1.{name}.json", signed)
    write("1.snapshot.json", Snapshot(expires=expires, meta={f"{name}.json": MetaFile(1) for name in written}))
    write("timestamp.json", Timestamp(expires=expires, snapshot_meta=MetaFile(1)))

    root_bytes = (tmp_path / "metadata" / "1.root.json").read_bytes()
    acquirer = Acquirer(tmp_path / "device", DirectorySource(tmp_path), root_bytes, NOW.timestamp)
    offer = acquirer.check("digits", "stable").offer
    assert offer is not None
    assert (offer.version, offer.digest) == ("9", digest)
    acquirer.acquire(offer)
    assert (tmp_path / "device" / "incoming" / digest).read_bytes() == release
