"""The manifest: what a release is and what it promises, as signed bytes.

This file knows the format: parse, check, print. It does not know where the bytes come from (TUF does), what the
device can do, or how a file is fetched. It is pure.

    manifest = parse(data)              # data: the exact signed bytes; raises ModelError with key and remedy
    manifest.digest                     # sha256 of those bytes: the name of the release and of its slot
    manifest.release                    # the short form that the state machine carries

Unknown keys are refused within a known schema number: a device that would ignore half of a promise must not claim
to enforce it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from modelagent.errors import ModelError

SCHEMA: Final = 1
MAX_LENGTH: Final = 256 * 1024  # bytes; a manifest is a few kB, and an unbounded one is an attack
DTYPES: Final = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
SHARES: Final = ("accuracy", "top-2", "top-3", "top-5", "top-10", "agreement")  # of right answers
ERRORS: Final = ("mae", "rmse")  # lower is better, `floor` is the largest that is allowed
METRICS: Final = (*SHARES, "balanced-accuracy", "f1", "auc", "anomaly-auc", "mean-iou", *ERRORS)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ROLES: Final = ("model", "canary", "labels", "warmup")


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file of a release: `role` (model, canary, labels, warmup), sha256 in hex, length in bytes."""

    role: str
    sha256: str
    length: int

    @property
    def name(self) -> str:
        """The file's name inside a slot."""
        return {
            "model": "model.tflite",
            "canary": "canary.npz",
            "labels": "labels.json",
            "warmup": "warmup.npz",
        }[self.role]


@dataclass(frozen=True, slots=True)
class Release:
    """The short form of a manifest that the state machine carries."""

    model: str
    version: str
    digest: str  # sha256 of the manifest's bytes, hex
    number: int  # rises with every release of the model
    floor: int  # once this release is confirmed, no release below this number is activated
    model_file: str  # sha256 of the model file
    size: int  # bytes of all files, the manifest included
    issued: float  # Unix seconds, signed


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output: name, shape (None where dynamic), dtype, quantisation (scale, zero point) or None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantisation: tuple[float, int] | None


@dataclass(frozen=True, slots=True)
class Canary:
    """How the device proves the release: metric, allowed loss, one-sided confidence, absolute floor, samples.

    `class_floors`: least recall of a class by its index, "*" for all others. `tolerance`: largest difference from the
    reference outputs that still agrees, for metric `agreement` where there are no classes.
    """

    metric: str
    margin: float
    confidence: float
    floor: float
    samples: int
    class_floors: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the release promises not to exceed on the device."""

    latency_ms: float  # one inference, p95
    latency_ratio: float  # p50 and p95 against the running model
    memory_mb: float  # peak resident memory of the worker
    load_s: float  # construct, allocate, warm up


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release's contract. `digest` is the sha256 of the exact bytes it was parsed from."""

    digest: str
    length: int
    model: str
    version: str
    number: int
    floor: int
    issued: float
    parent: str | None
    files: tuple[FileRef, ...]
    runtime_min: str | None
    runtime_max: str | None
    delegate: str
    hardware: tuple[str, ...]
    stateful: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...]
    preprocess: Mapping[str, Any]
    postprocess: Mapping[str, Any]
    canary: Canary
    limits: Limits
    card: Mapping[str, Any]

    def file(self, role: str) -> FileRef | None:
        """The file of that role, or None."""
        return next((f for f in self.files if f.role == role), None)

    @property
    def model_file(self) -> FileRef:
        """The model itself; every manifest has one."""
        found = self.file("model")
        assert found is not None, "parse refuses a manifest without a model"  # noqa: S101
        return found

    @property
    def release(self) -> Release:
        """The short form."""
        return Release(
            model=self.model,
            version=self.version,
            digest=self.digest,
            number=self.number,
            floor=self.floor,
            model_file=self.model_file.sha256,
            size=self.length + sum(f.length for f in self.files),
            issued=self.issued,
        )


def dump(document: Mapping[str, Any]) -> bytes:
    """Print a manifest document as the bytes to sign; parses them first, so that nothing unreadable is signed."""
    data = (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    parse(data)
    return data


def parse(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Args:
        data: the exact bytes, already verified against signed metadata.

    Raises:
        ModelError: `manifest`; the message names the key, what was found and what is allowed.
    """
    if len(data) > MAX_LENGTH:
        raise _bad("the file", f"{len(data)} bytes", f"at most {MAX_LENGTH}")
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad("the file", "no JSON", str(error)) from error
    top = _Table("", document)
    schema = top.integer("schema", low=1)
    if schema != SCHEMA:
        raise _bad("schema", schema, f"{SCHEMA}; a newer agent is needed for a newer schema")
    files = top.table("files")
    refs = []
    for role in _ROLES:
        if role not in files.values:
            continue
        entry = files.table(role)
        refs.append(FileRef(role, entry.text("sha256", _DIGEST), entry.integer("length", low=1, high=2**40)))
        entry.done()
    files.done()
    if not any(ref.role == "model" for ref in refs):
        raise _bad("files.model", "nothing", "a file with sha256 and length")
    canary = top.table("canary")
    limits = top.table("limits")
    runtime = top.table("runtime")
    manifest = Manifest(
        digest=hashlib.sha256(data).hexdigest(),
        length=len(data),
        model=top.text("model", _NAME),
        version=top.text("version", _VERSION),
        number=top.integer("number", low=1, high=2**53),
        floor=top.integer("floor", low=0, high=2**53),
        issued=top.instant("issued"),
        parent=top.optional_text("parent", _DIGEST),
        files=tuple(refs),
        runtime_min=runtime.optional_text("min", _VERSION),
        runtime_max=runtime.optional_text("max", _VERSION),
        delegate=top.text("delegate", _NAME),
        hardware=top.texts("hardware"),
        stateful=top.boolean("stateful"),
        inputs=top.tensors("inputs"),
        outputs=top.tensors("outputs"),
        labels=top.texts("labels"),
        preprocess=dict(top.table("preprocess").values),
        postprocess=dict(top.table("postprocess").values),
        canary=_canary(canary),
        limits=Limits(
            latency_ms=limits.number("latency_ms", low=0.001, high=1e7),
            latency_ratio=limits.number("latency_ratio", low=1.0, high=1000.0),
            memory_mb=limits.number("memory_mb", low=1.0, high=1e6),
            load_s=limits.number("load_s", low=0.01, high=3600.0),
        ),
        card=dict(top.table("card").values),
    )
    for table in (canary, limits, runtime, top):
        table.done()
    if manifest.floor > manifest.number:
        raise _bad("floor", manifest.floor, f"at most the release's own number, {manifest.number}")
    if manifest.canary.samples and manifest.file("canary") is None:
        raise _bad("canary.samples", manifest.canary.samples, "0, or a files.canary that holds the samples")
    return manifest


def _canary(table: "_Table") -> Canary:
    metric = table.choice("metric", METRICS)
    most = 1e30 if metric in ERRORS else 1.0  # an error has the output's unit
    floors = table.table("class_floors") if "class_floors" in table.values else None
    for key in floors.values if floors is not None else ():
        if not re.fullmatch(r"\*|0|[1-9][0-9]{0,5}", key):
            raise _bad(f"canary.class_floors.{key}", "this name", 'the index of a class, or "*" for all others')
    return Canary(
        metric=metric,
        margin=table.number("margin", low=0.0, high=most),
        confidence=table.number("confidence", low=0.5, high=0.9999),
        floor=table.number("floor", low=0.0, high=most),
        samples=table.integer("samples", low=0, high=10**7),
        class_floors={}
        if floors is None
        else {key: floors.number(key, low=0.0, high=1.0) for key in sorted(floors.values)},
        tolerance=table.number("tolerance", low=0.0, high=1e30) if "tolerance" in table.values else 0.0,
    )


class _Table:
    """One JSON object being read: each key is taken once, what is left over is refused."""

    def __init__(self, path: str, values: object) -> None:
        if not isinstance(values, dict):
            raise _bad(path or "the file", _kind(values), "an object")
        self.path = path
        self.values: dict[str, Any] = values
        self._taken: set[str] = set()

    def _key(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _take(self, key: str) -> Any:
        if key not in self.values:
            raise _bad(self._key(key), "nothing", "this key")
        self._taken.add(key)
        return self.values[key]

    def done(self) -> None:
        unknown = sorted(set(self.values) - self._taken)
        if unknown:
            raise _bad(self._key(unknown[0]), "an unknown key", f"only {', '.join(sorted(self._taken))}")

    def table(self, key: str) -> "_Table":
        return _Table(self._key(key), self._take(key))

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._take(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _bad(self._key(key), repr(value)[:80], f"a string like /{pattern.pattern}/")
        return value

    def optional_text(self, key: str, pattern: re.Pattern[str]) -> str | None:
        if self.values.get(key) is None:
            self._taken.add(key)
            return None
        return self.text(key, pattern)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        value = self._take(key)
        if value not in allowed:
            raise _bad(self._key(key), repr(value)[:80], f"one of {', '.join(allowed)}")
        return str(value)

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise _bad(self._key(key), repr(value)[:80], "true or false")
        return value

    def integer(self, key: str, *, low: int, high: int = 2**53) -> int:
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _bad(self._key(key), repr(value)[:80], f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, *, low: float, high: float) -> float:
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _bad(self._key(key), repr(value)[:80], f"a number from {low} to {high}")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= 256 for item in value):
            raise _bad(self._key(key), repr(value)[:80], "a list of strings of at most 256 characters")
        return tuple(value)

    def instant(self, key: str) -> float:
        value = self._take(key)
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError) as error:
            raise _bad(self._key(key), repr(value)[:80], "a time like 2026-11-01T12:00:00Z") from error
        if moment.tzinfo is None:
            raise _bad(self._key(key), repr(value)[:80], "a time with a zone, like 2026-11-01T12:00:00Z")
        return moment.timestamp()

    def tensors(self, key: str) -> tuple[Tensor, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not 1 <= len(value) <= 64:
            raise _bad(self._key(key), repr(value)[:80], "a list of 1 to 64 tensors")
        tensors = []
        for index, item in enumerate(value):
            entry = _Table(f"{self._key(key)}[{index}]", item)
            tensors.append(
                Tensor(
                    name=entry.text("name", re.compile(r".{1,256}")),
                    shape=entry.shape("shape"),
                    dtype=entry.choice("dtype", DTYPES),
                    quantisation=entry.quantisation("quantisation"),
                )
            )
            entry.done()
        return tuple(tensors)

    def shape(self, key: str) -> tuple[int | None, ...]:
        value = self._take(key)
        good = isinstance(value, list) and len(value) <= 8
        if not good or not all(
            d is None or (isinstance(d, int) and not isinstance(d, bool) and 1 <= d <= 2**31) for d in value
        ):
            raise _bad(self._key(key), repr(value)[:80], "a list of at most 8 sizes, null where dynamic")
        return tuple(value)

    def quantisation(self, key: str) -> tuple[float, int] | None:
        if self.values.get(key) is None:
            self._taken.add(key)
            return None
        entry = self.table(key)
        result = (
            entry.number("scale", low=0.0, high=1e30),
            entry.integer("zero_point", low=-(2**31), high=2**31),
        )
        entry.done()
        return result


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value)[:80])


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _bad(key: str, found: object, allowed: str) -> ModelError:
    return ModelError(
        f"manifest: {key}: found {found}, allowed is {allowed}; the release must be published again",
        code="manifest",
    )
