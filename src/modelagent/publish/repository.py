"""A TUF repository in a plain directory, as the publisher uses it: any static web server can serve it.

This file knows the publisher's verbs. It does not know what a model is good for, nor how devices fetch; `ledger.py`
reads, signs and writes.

    repository = Repository.init(Path("repo"), Path("keys"), models=["digits"])
    release = repository.add(document, {"model": Path("digits.tflite"), "canary": Path("canary.npz")})
    repository.channel("digits", "stable", release.version)

Layout: `metadata/` (N.root.json, N.targets.json, ..., timestamp.json), `targets/` (manifests and channels, each named
by its hash as consistent snapshots ask) and `files/<sha256>` (models, canary sets, labels, warm-up inputs).
Roles: root and targets offline; `models-<model>` (release key) may name `models/<model>/*/*` alone, `channels`
(operations key) `channels/*/*` alone, both terminating; snapshot and timestamp online.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Delegations, Metadata, MetaFile, Root, Targets

from modelagent import durable, manifest
from modelagent.errors import UsageError
from modelagent.publish import channels, deltas, rotation
from modelagent.publish.drafts import Content, complete, json_object
from modelagent.publish.keys import ROLES, KeyRing, Passphrase, close_directory, no_passphrase
from modelagent.publish.ledger import CHANNELS, EMPTY, SETTINGS, Ledger, Lifetimes, delegated, model_role, readable
from modelagent.publish.serve import Server
from modelagent.steps import channel as form
from modelagent.steps.delta import Listed, listed

__all__ = ["KeyRing", "Lifetimes", "Repository"]

Proof = Callable[[bytes, Mapping[str, Path | bytes]], None]  # (manifest, files); raises UsageError

# A wave that no device reaches: how a channel says "not now" in words that every agent understands.
PAUSED: Final = datetime(2100, 1, 1, tzinfo=UTC)


class Repository:
    """One repository and the keys at hand. Methods that publish take the publisher's lock.

    Args:
        directory: the repository.
        keys: the key ring; a method that needs a key that is not there says which.
        now: the publisher's clock.

    Raises:
        UsageError: `no-repository`, `no-root`, or `untrusted` when the repository is not what the keys signed.
    """

    def __init__(self, directory: Path, keys: KeyRing, *, now: Callable[[], datetime] | None = None) -> None:
        self.directory = directory
        self.keys = keys
        self.ledger = Ledger(directory, keys, now=now or _utc_now)

    @classmethod
    def init(
        cls,
        directory: Path,
        keys_dir: Path,
        models: Sequence[str],
        lifetimes: Lifetimes | None = None,
        *,
        passphrase: Passphrase = no_passphrase,
        root_keys: int = 1,
        root_threshold: int = 1,
        now: Callable[[], datetime] | None = None,
    ) -> "Repository":
        """Make keys and an empty repository. `keys_dir` also gets `root.json`, which devices need.

        Raises:
            UsageError: a bad name, an impossible threshold, or something there already; nothing was changed.
        """
        for model in models:
            _check_name("model", model)
        if not 1 <= root_threshold <= root_keys:
            raise UsageError(
                f"root threshold {root_threshold}: allowed is 1 to the number of root keys, {root_keys}",
                code="threshold",
            )
        if (directory / SETTINGS).exists() or (directory / "metadata").exists():
            if not (directory / "metadata" / "timestamp.json").exists():
                raise UsageError(
                    f"{directory}: an unfinished repository is here, which nobody can have read (it has no "
                    f"timestamp.json); remove {directory} and the keys in {keys_dir} that were made for it, and run "
                    "the command again",
                    code="unfinished",
                )
            raise UsageError(f"{directory}: a repository is here already; name another directory", code="exists")
        names = ["root", *(f"root-{index}" for index in range(2, root_keys + 1)), *ROLES[1:]]
        directory.mkdir(parents=True, exist_ok=True)  # before the keys, which a second try would find in its way
        ring = KeyRing.generate(keys_dir, names, passphrase)
        close_directory(keys_dir)
        with readable():
            for part in ("metadata", "targets", "files"):
                (directory / part).mkdir(parents=True)
            durable.write_atomic(directory / SETTINGS, (lifetimes or Lifetimes()).dump(), mode=0o644)
        repository = cls(directory, ring, now=now)
        with repository.ledger.locked():
            repository._found(models, names[:root_keys], root_threshold)
        return repository

    def _found(self, models: Sequence[str], root_names: Sequence[str], root_threshold: int) -> None:
        root = Root(consistent_snapshot=True)
        for name in root_names:
            root.add_key(self.keys.signer(name).public_key, "root")
        root.roles["root"].threshold = root_threshold
        root.add_key(self.keys.signer("targets").public_key, "targets")
        for role in ("snapshot", "timestamp"):
            root.add_key(self.keys.signer("online").public_key, role)
        signed_root = Metadata(root)
        self.ledger.stamp(signed_root, "root", 1)
        self.ledger.write_root(signed_root, [self.keys.signer(name) for name in root_names])
        targets = Metadata(Targets(delegations=Delegations({}, {})))
        self.ledger.delegate(targets.signed, CHANNELS, "operations", ["channels/*/*"])
        for model in models:
            self.ledger.delegate(targets.signed, model_role(model), "release", [f"models/{model}/*/*"])
        empty = {role: Metadata(Targets()) for role in delegated(targets.signed)}
        self.ledger.publish({"targets": targets, **empty}, base=EMPTY)

    # --- publishing --------------------------------------------------------------------------------------------

    def add(
        self,
        document: Mapping[str, Any] | bytes,
        files: Mapping[str, Path | bytes],
        *,
        accept_small_canary: bool = False,
        new_model: bool = False,
        deltas_from: int = 0,
        proof: Proof | None = None,
    ) -> manifest.Manifest:
        """Sign and publish a release. No channel names it yet.

        Args:
            document: the manifest; `files`, and where absent `schema`, `issued`, `number` and `floor`, are filled in.
            files: role -> the file or its bytes; `model` at least.
            accept_small_canary: publish although the canary set cannot speak for its margin; the card says so.
            new_model: delegate to a model that the repository does not know yet (takes the targets key).
            deltas_from: how many of the releases before it get a delta to it.
            proof: as for `release`.

        Returns:
            The manifest as signed.

        Raises:
            UsageError: `unknown-model`, `duplicate-version`, `number`, `small-canary`, `canary-file`, `manifest`, ...
                No release was published.
        """
        return self.release(
            document,
            files,
            accept_small_canary=accept_small_canary,
            new_model=new_model,
            deltas_from=deltas_from,
            proof=proof,
        )

    def release(
        self,
        document: Mapping[str, Any] | bytes,
        files: Mapping[str, Path | bytes],
        *,
        channel: str | None = None,
        waves: Sequence[channels.Planned] = (),
        accept_small_canary: bool = False,
        new_model: bool = False,
        deltas_from: int = 0,
        dry_run: bool = False,
        proof: Proof | None = None,
    ) -> manifest.Manifest:
        """Publish a release and let a channel name it, in one step: readers see both or neither.

        Args:
            document: as for `add`.
            files: as for `add`.
            channel: what names the release from now on; None: nothing does yet.
            waves: as for `channel`.
            accept_small_canary: as for `add`.
            new_model: as for `add`.
            deltas_from: as for `add`.
            dry_run: check everything, keys included, and write nothing.
            proof: asked last, before anything is written, whether devices would take the release.

        Returns:
            The manifest as signed, or as it would be.

        Raises:
            UsageError: as `add` and `channel`. Nothing was published.
        """
        draft = dict(json_object(document) if isinstance(document, bytes) else document)
        model = _check_name("model", draft.get("model"))
        role = model_role(model)
        with self.ledger.locked():
            if new_model and not dry_run:
                self._add_model(model)
            fresh = new_model and role not in delegated(self.ledger.load_targets("targets").signed)
            targets = Metadata(Targets()) if fresh else self.ledger.load_targets(role)
            contents = {name: Content(name, content) for name, content in files.items()}
            data = complete(
                draft,
                contents,
                targets.signed.targets,
                now=self.ledger.now(),
                accept_small_canary=accept_small_canary,
            )
            made = manifest.parse(data)
            changed = {role: targets}
            path = form.manifest_path(model, made.version)
            said: dict[str, bytes] = {}
            if channel is not None:
                changed[CHANNELS] = self.ledger.load_targets(CHANNELS)
                said[form.target_path(model, channel)] = channels.compose(
                    model,
                    channel,
                    self._channel_documents(changed[CHANNELS]).get(form.target_path(model, channel)),
                    now=self.ledger.now(),
                    release=(made.version, made.digest),
                    waves=waves,
                )
            for key in ("release", "online", *(["operations"] if said else []), *(["targets"] if fresh else [])):
                self.keys.signer(key)  # refuses before anything is written
            if proof is not None:
                proof(data, files)
            if dry_run:
                return made
            # Object stores keep no empty directories, so a copy of a new repository has none.
            (self.directory / "files").mkdir(exist_ok=True)
            for item in contents.values():
                item.store(self.directory / "files")
            offers = []
            if deltas_from:
                offers = deltas.make(self._bases(model, targets.signed, deltas_from), contents["model"].read())
            for offer in offers:
                durable.write_atomic(self.directory / "files" / str(offer.entry["sha256"]), offer.data, mode=0o644)
            entry = self.ledger.store_target(path, data)
            custom: dict[str, Any] = {"number": made.number, "floor": made.floor}
            if offers:
                custom["deltas"] = [dict(offer.entry) for offer in offers]
            entry.unrecognized_fields["custom"] = custom
            targets.signed.targets[path] = entry
            deltas.forget(targets.signed, self._named_paths(model))
            for place, text in said.items():
                changed[CHANNELS].signed.targets[place] = self.ledger.store_target(place, text)
            self.ledger.publish(changed)
            return made

    def _named_paths(self, model: str) -> set[str]:
        """The target paths of the releases that channels name."""
        return {
            form.manifest_path(model, str(document["release"]["version"]))
            for document in self.channels()
            if document["model"] == model and document["release"] is not None
        }

    def _bases(self, model: str, targets: Targets, count: int) -> list[tuple[str, Path]]:
        """Version and model file of the newest `count` releases."""
        # By the numbers that the metadata list: opening every manifest would make the ten-thousandth release slow.
        known = [
            (int((entry.custom or {}).get("number", 0)), path, entry.hashes["sha256"])
            for path, entry in targets.targets.items()
            if path.startswith(f"models/{model}/")
        ]
        releases = [
            manifest.parse(self.ledger.target_file(path, digest).read_bytes())
            for _, path, digest in sorted(known)[-count:]
        ]
        return [(found.version, self.directory / "files" / found.model_file.sha256) for found in releases]

    def channel(
        self,
        model: str,
        channel: str,
        version: str | None,
        waves: Sequence[channels.Planned] = (),
        withdrawn: Sequence[tuple[str, str]] = (),
    ) -> form.Channel:
        """Say what a channel's devices should run.

        Args:
            model: its name.
            channel: its name; a new one is made.
            version: a published version, or None for nothing.
            waves: (from when, which share of devices); empty means all at once.
            withdrawn: further (version, reason) to take back.

        Raises:
            UsageError: unknown model or version, withdrawn version, bad wave. Nothing was published.
        """
        with self.ledger.locked():
            roles = self.ledger.load_targets(CHANNELS)
            data = self._compose(model, channel, version, waves=waves, withdrawn=withdrawn, roles=roles)
            self._set_channels(roles, {form.target_path(model, channel): data})
            return form.parse(data)

    def withdraw(self, model: str, version: str, reason: str, *, instead: str | None = None) -> list[form.Channel]:
        """Take a version back in every channel of the model; a channel that names it names `instead` afterwards.

        Devices that run it leave it within one check; without `instead` they go back to what they have.

        Raises:
            UsageError: unknown model or version, or the model has no channel yet. Nothing was published.
        """
        if not reason.strip():
            raise UsageError("--reason: found nothing; say why, for devices show it", code="no-reason")
        with self.ledger.locked():
            roles = self.ledger.load_targets(CHANNELS)
            digest = self._digest(model, version)
            if instead is not None:
                self._digest(model, instead)  # also where no channel needs it now
            documents = {}
            for path, document in self._channel_documents(roles).items():
                if document["model"] != model:
                    continue
                release = document["release"]
                named = None if release is None else str(release["version"])
                hit = release is not None and release["digest"] == digest
                waves = [channels.plan_of(wave) for wave in document["waves"]]
                documents[path] = self._compose(
                    model,
                    str(document["channel"]),
                    instead if hit else named,
                    waves=() if hit else waves,
                    withdrawn=[(version, reason)],
                    roles=roles,
                )
            if not documents:
                raise UsageError(
                    f"{model}: no channel names this model, so no device could learn of the withdrawal; "
                    f"make one with `modelagent repo channel {model} stable VERSION`",
                    code="no-channel",
                )
            self._set_channels(roles, documents)
            return [form.parse(data) for data in documents.values()]

    def promote(self, model: str, source: str, target: str, waves: Sequence[channels.Planned] = ()) -> form.Channel:
        """Let the channel `target` name what the channel `source` names now (beta to stable, for instance).

        Raises:
            UsageError: `no-channel`, or as `channel`. Nothing was published.
        """
        with self.ledger.locked():
            roles = self.ledger.load_targets(CHANNELS)
            version = self._named(roles, model, source)
            if source == target:
                raise UsageError(
                    f"{model} {source}: a channel is not promoted to itself; name two channels", code="same-channel"
                )
            data = self._compose(model, target, version, waves=waves, withdrawn=(), roles=roles)
            self._set_channels(roles, {form.target_path(model, target): data})
            return form.parse(data)

    def pause(self, model: str, channel: str) -> form.Channel:
        """Let no further device begin with what the channel names; those that run it go on.

        Naming the version again (`channel`, with or without waves) goes on. Nothing is taken back: that is
        `withdraw`.

        Raises:
            UsageError: `no-channel`. Nothing was published.
        """
        with self.ledger.locked():
            roles = self.ledger.load_targets(CHANNELS)
            version = self._named(roles, model, channel)
            data = self._compose(model, channel, version, waves=[(PAUSED, 1.0)], withdrawn=(), roles=roles)
            self._set_channels(roles, {form.target_path(model, channel): data})
            return form.parse(data)

    def _named(self, roles: Metadata[Targets], model: str, channel: str) -> str:
        document = self._channel_documents(roles).get(form.target_path(model, channel))
        if document is None or document["release"] is None:
            raise UsageError(
                f"{model} {channel}: this channel names no release; see `modelagent repo status`", code="no-channel"
            )
        return str(document["release"]["version"])

    def refresh(self) -> None:
        """Sign the timestamp again, and the snapshot once half its life is over. Takes the online key alone."""
        with self.ledger.locked():
            timestamp = self.ledger.load_timestamp().signed
            snapshot = self.ledger.load_snapshot().signed
            if snapshot.expires - self.ledger.now() < self.ledger.lifetimes.snapshot / 2:
                self.ledger.publish({})
            else:
                meta: MetaFile = timestamp.snapshot_meta
                self.ledger.publish_timestamp(meta, timestamp.version + 1)

    def rotate(self, name: str) -> None:
        """Replace a key and have what it signed signed by the new one; `rotation.py` says how."""
        with self.ledger.locked():
            rotation.rotate(self.ledger, name)

    def add_model(self, model: str) -> None:
        """Delegate `models/<model>/` to the release key. Takes the targets and release keys."""
        with self.ledger.locked():
            self._add_model(_check_name("model", model))

    def _add_model(self, model: str) -> None:
        targets = self.ledger.load_targets("targets")
        role = model_role(model)
        if role not in delegated(targets.signed):
            for other in self.ledger.models()[:1]:
                self.ledger.check_hands(model_role(other), [self.keys.signer("release")], targets)
            self.ledger.delegate(targets.signed, role, "release", [f"models/{model}/*/*"])
            self.ledger.publish({"targets": targets, role: Metadata(Targets())})

    def _compose(
        self,
        model: str,
        channel: str,
        version: str | None,
        *,
        waves: Sequence[channels.Planned],
        withdrawn: Sequence[tuple[str, str]],
        roles: Metadata[Targets],
    ) -> bytes:
        self.ledger.load_targets(model_role(model))  # refuses an unknown model
        return channels.compose(
            model,
            channel,
            self._channel_documents(roles).get(form.target_path(model, channel)),
            now=self.ledger.now(),
            release=None if version is None else (version, self._digest(model, version)),
            waves=waves,
            withdrawn=[((taken, self._digest(model, taken)), reason) for taken, reason in withdrawn],
        )

    def _set_channels(self, roles: Metadata[Targets], documents: Mapping[str, bytes]) -> None:
        self.keys.signer("operations")  # refuses before anything is written
        for path, data in documents.items():
            roles.signed.targets[path] = self.ledger.store_target(path, data)
        self.ledger.publish({CHANNELS: roles})

    # --- reading -----------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """The models that the repository knows."""
        return self.ledger.models()

    def releases(self, model: str) -> list[tuple[str, str, int]]:
        """Published (version, digest, number) of a model, lowest number first."""
        found = []
        for path, entry in self.ledger.load_targets(model_role(model)).signed.targets.items():
            found.append((path.split("/")[2], entry.hashes["sha256"], int((entry.custom or {})["number"])))
        return sorted(found, key=lambda item: item[2])

    def channels(self) -> list[dict[str, Any]]:
        """Every channel document as published."""
        return list(self._channel_documents(self.ledger.load_targets(CHANNELS)).values())

    def manifest_bytes(self, model: str, version: str) -> bytes:
        """The signed manifest of a published release.

        Raises:
            UsageError: `unknown-version`, or `untrusted` when the file is not what was signed.
        """
        digest, path = self._digest(model, version), form.manifest_path(model, version)
        data = self.ledger.target_file(path, digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise UsageError(
                f"{path}: its bytes are not the signed ones; restore the repository from its backup", code="untrusted"
            )
        return data

    def deltas(self, model: str, version: str) -> list[Listed]:
        """The deltas that a published release lists, smallest first."""
        entry = self.ledger.load_targets(model_role(model)).signed.targets.get(form.manifest_path(model, version))
        return [] if entry is None else listed(entry.custom or {})

    def expiries(self) -> dict[str, tuple[datetime, bool]]:
        """Role -> (when its signature ends, whether less than a quarter of its life is left)."""
        snapshot = self.ledger.load_snapshot().signed
        ends = {
            "root": self.ledger.load_root().signed.expires,
            "timestamp": self.ledger.load_timestamp().signed.expires,
            "snapshot": snapshot.expires,
        }
        for role in (name.removesuffix(".json") for name in snapshot.meta):
            ends[role] = self.ledger.load_targets(role).signed.expires
        now = self.ledger.now()
        return {role: (end, end - now < self.ledger.lifetimes.of(role) / 4) for role, end in ends.items()}

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> Server:
        """A web server over this directory, for development; the caller starts and closes it."""
        return Server(self.directory, host, port)

    def _digest(self, model: str, version: str) -> str:
        targets = self.ledger.load_targets(model_role(model)).signed.targets
        entry = targets.get(form.manifest_path(model, version))
        if entry is None:
            known = ", ".join(found for found, _, _ in self.releases(model)) or "none"
            raise UsageError(f"{model} {version}: no such release; published are {known}", code="unknown-version")
        return entry.hashes["sha256"]

    def _channel_documents(self, roles: Metadata[Targets]) -> dict[str, dict[str, Any]]:
        found = {}
        for path, entry in sorted(roles.signed.targets.items()):
            data = self.ledger.target_file(path, entry.hashes["sha256"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.hashes["sha256"]:
                raise UsageError(
                    f"{path}: its bytes are not the signed ones; restore the repository from its backup",
                    code="untrusted",
                )
            found[path] = json_object(data)
        return found


def _check_name(what: str, name: object) -> str:
    if not isinstance(name, str) or not form.NAME.fullmatch(name):
        raise UsageError(f"{what} name {name!r}: allowed are names like /{form.NAME.pattern}/", code="bad-name")
    return name


def _utc_now() -> datetime:
    return datetime.now(UTC)
