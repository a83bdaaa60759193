"""The settings of one model as types: [models.<name>] with its source, results, rules, runtime, probation and samples.

This file knows each key, its default and what is allowed. It does not know the rest of the settings; `schema.py` puts
them together.

    Model.model_validate({"source": {"kind": "none"}}).source.fps       # 30.0

The `description` of a field is the comment that stands beside it in config/modelagent.toml.
"""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from modelagent.core.events import ConfigWish
from modelagent.inputs.fields import (
    Duration,
    Megabytes,
    Name,
    OptionalPath,
    Probability,
    Section,
    Share,
    Version,
    as_tuple,
    check_frames_mode,
    check_server,
)


class Source(Section):
    """[models.<name>.source]: where frames come from."""

    kind: Literal["none", "replay", "directory", "stdin", "http", "unix", "mqtt", "camera"] = Field(
        default="none", description="none: idle; the others are in docs/sources.md"
    )
    path: OptionalPath = Field(
        default=None,
        description="replay: an .npz; directory: where files come; unix: the socket; camera: a video or a device",
    )
    url: str = Field(
        default="", max_length=2000, pattern=r"^((rtsps?|https?)://\S+)?$", description="camera: rtsp:// or http://"
    )
    fps: float = Field(
        default=30.0, ge=0, le=100_000, description="replay: frames a second; camera: at most so many; 0: all there are"
    )
    loop: bool = Field(default=True, description="replay and video files: begin again at the end")
    queue: int = Field(default=64, ge=1, le=100_000, description="frames that may wait")
    overflow: Literal["drop-oldest", "block"] = Field(
        default="drop-oldest", description="when the queue is full: lose the oldest frame, counted, or hold the source"
    )
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="of raw frames (stdin, http, unix, mqtt), for instance [480, 640, 3]"
    )
    dtype: Literal["float32", "float16", "int8", "uint8", "int16", "int32", "int64"] = Field(
        default="float32", description="of raw frames and of numbers in JSON"
    )
    max_mb: int = Field(default=16, ge=1, le=1024, description="largest single frame taken (all but replay, camera)")
    after: Literal["delete", "move"] = Field(default="delete", description="directory: what becomes of a used file")
    done_dir: OptionalPath = Field(default=None, description='directory: where files go with after = "move"')
    listen: str = Field(
        default="127.0.0.1:8970",
        pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):\d{1,5}$",
        description="http: address and port; whoever reaches it is believed",
    )
    answer: Duration = Field(default=30.0, gt=0, le=3600, description="http, unix: longest time to a result")
    mode: Annotated[int, AfterValidator(check_frames_mode)] = Field(
        default=0o660, description="unix: permission of the socket"
    )
    group: str = Field(
        default="", max_length=32, pattern=r"^[^\s:]*$", description="unix: group of the socket; empty: ours"
    )
    topic: str = Field(
        default="", max_length=512, pattern=r"^[^\x00]*$", description="mqtt: where frames are published"
    )
    stall: Duration = Field(
        default=10.0, ge=0.5, le=600, description="camera: without a frame for so long the decoder is started anew"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in {"replay", "directory", "unix"} and self.path is None:
            raise ValueError(f'kind = "{self.kind}" needs path')
        if self.kind == "camera" and (self.path is None) == (not self.url):
            raise ValueError('kind = "camera" needs path or url, and not both')
        if self.kind == "mqtt" and not self.topic:
            raise ValueError('kind = "mqtt" needs topic')
        if self.after == "move" and self.done_dir is None:
            raise ValueError('after = "move" needs done_dir')
        return self


class Results(Section):
    """[models.<name>.results]: where results go."""

    sqlite: bool = Field(default=True, description="results.db; labels are joined to it")
    jsonl: bool = Field(default=False, description="results.jsonl, one line a result")
    max_mb: Megabytes = Field(default=64, description="size of each file; the oldest results go first")
    mqtt: bool = Field(default=False, description="to <prefix>/<device>/result/<model>, kept until the broker has them")
    max_days: int = Field(default=0, ge=0, le=36_500, description="age at which results go from results.db; 0: any")


class Rule(Section):
    """[models.<name>.rules.<rule>]: what is done when results say so; docs/rules.md explains."""

    labels: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="classes, by name or number; empty: any"
    )
    min_score: float = Field(default=0.5, description="a frame is a hit from this score on")
    release_score: float = Field(default=0.0, description="enough once the rule is met; 0: as min_score")
    hits: int = Field(default=1, ge=1, le=100_000, description="so many hits")
    of: int = Field(default=1, ge=1, le=100_000, description="among the last so many frames")
    hold: Duration = Field(default=0.0, description="met for so long before it acts")
    repeat: Duration = Field(default=0.0, description="acts again so often while it lasts; 0: once")
    pause: Duration = Field(default=0.0, description="least time between two actions")
    log: bool = Field(default=False, description="a line in the log")
    topic: str = Field(default="", max_length=512, pattern=r"^[^+#\x00]*$", description="a message on this topic")
    webhook: Annotated[str, Field(pattern=r"^(https?://\S+)?$"), AfterValidator(check_server)] = Field(
        default="", description="a POST to this URL"
    )
    command: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a program and its arguments, without a shell"
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.hits > self.of:
            raise ValueError(f"hits ({self.hits}) of at most of ({self.of}) frames")
        if self.release_score > self.min_score:
            raise ValueError(f"release_score ({self.release_score}) at most min_score ({self.min_score})")
        if not (self.log or self.topic or self.webhook or self.command):
            raise ValueError("something to do: log, topic, webhook or command")
        if self.command and not self.command[0].startswith("/"):
            raise ValueError("a command that begins with an absolute path")
        return self


class Runtime(Section):
    """[models.<name>.runtime]: how the worker is run."""

    threads: int = Field(default=1, ge=1, le=64, description="threads of the interpreter")
    hang_s: Duration = Field(
        default=2.0,
        gt=0,
        le=600,
        description="one inference longer than this, and than 20 times what is promised, is a hang",
    )
    load_timeout: Duration = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="longest time to load and warm up; what the release promises, if longer",
    )
    cpus: Annotated[tuple[Annotated[int, Field(ge=0, le=4095)], ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="processors of the worker, by number; empty: any"
    )
    nice: int = Field(default=0, ge=0, le=19, description="priority while it serves; 19 is the lowest")
    delegate: OptionalPath = Field(
        default=None, description="library of an external delegate, for releases that ask for one; empty: the processor"
    )
    delegate_name: str = Field(
        default="", max_length=64, description="what releases call that delegate; empty: whatever they ask for"
    )
    delegate_shared: bool = Field(
        default=False, description="it can be opened twice: the canary uses it too, and not the processor"
    )
    memory_reserve_mb: int = Field(
        default=32,
        ge=0,
        le=1_000_000,
        description="to be left by a swap with both in memory; else one stops first",
    )
    starts: int = Field(default=3, ge=1, le=100, description="starts without progress before the fallback is taken")
    healthy_after: int = Field(
        default=200, ge=1, le=1_000_000, description="inferences after which old faults are forgotten"
    )


class Probation(Section):
    """[models.<name>.probation]: how a new version proves itself on live input."""

    enabled: bool = Field(default=True, description="false: a version is confirmed as soon as it runs")
    frames: int = Field(default=500, ge=1, description="healthy inferences wanted")
    seconds: Duration = Field(default=60.0, description="seconds with frames wanted")
    labels: int = Field(default=0, ge=0, description="labelled results wanted; 0: none, but they count if they come")
    limit_frames: int = Field(default=50_000, ge=1, description="healthy inferences after which undecided ends too")
    limit_seconds: Duration = Field(default=86_400.0, description="seconds with frames after which it does; both count")
    undecided: Literal["confirm", "revert"] = Field(default="confirm", description="what follows from undecided")
    thin: Duration = Field(
        default=1.0,
        le=86400,
        description="of labelled results within so long one counts: neighbours are no news; 0: all",
    )
    error_p0: Probability = Field(default=0.05, description="error rate that is surely fine")
    error_p1: Probability = Field(default=0.15, description="error rate that is surely bad")
    fault_p0: Probability = Field(
        default=0.005,
        description="share of seconds in which a frame fails and succeeds when run again that is fine; more, where the "
        "confirmed version has had more itself",
    )
    fault_p1: Probability = Field(default=0.05, description="share of such seconds that is surely bad")
    alpha: Probability = Field(default=0.01, description="chance to revert a good version, all tests together")
    beta: Probability = Field(default=0.05, description="chance to overlook a bad one")
    timeout_s: Duration = Field(
        default=120.0,
        gt=0,
        description="for inference to run an activated version; time with inference down is not counted",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.error_p0 >= self.error_p1:
            raise ValueError(f"error_p0 ({self.error_p0}) must be below error_p1 ({self.error_p1})")
        if self.fault_p0 >= self.fault_p1:
            raise ValueError(f"fault_p0 ({self.fault_p0}) must be below fault_p1 ({self.fault_p1})")
        return self


class Drift(Section):
    """[models.<name>.drift]: watching a confirmed version for a change of its input."""

    enabled: bool = Field(default=True, description="watch labelled errors")
    baseline: int = Field(default=200, ge=100, le=100_000, description="labelled results that say what is normal")
    factor: float = Field(
        default=2.0, gt=1, le=100, description="error rate to be found, in multiples of the normal one"
    )
    run_length: int = Field(
        default=10_000, ge=100, le=10**9, description="labelled results from one false alarm to the next, at least"
    )
    confidence: bool = Field(default=True, description="watch the mean confidence too")
    block: Duration = Field(default=10.0, gt=0, le=86400, description="frames of so long give one mean confidence")
    revert: bool = Field(
        default=False, description="true: after an alarm run the previous version beside, and go back if it is better"
    )


class Shadow(Section):
    """[models.<name>.shadow]: the previous version on the same frames, during probation."""

    rate: Share = Field(default=0.2, description="share of frames that both versions see; 0: none")
    ring: int = Field(default=256, ge=1, le=100_000, description="frames kept, in memory only")


class Samples(Section):
    """[models.<name>.samples]: single frames that leave the device; docs/sources.md explains."""

    url: Annotated[str, Field(max_length=2000, pattern=r"^(https?://[!-~]+)?$"), AfterValidator(check_server)] = Field(
        default="", description="each one is a POST to this URL; empty: no frame leaves the device"
    )
    path: OptionalPath = Field(default=None, description="instead of url: a directory, which somebody else empties")
    below_confidence: Share = Field(default=0.6, description="frames whose result scores below it are sent")
    share: Share = Field(default=0.0, description="share of the other frames that are sent too")
    per_hour: int = Field(default=20, ge=1, le=100_000, description="at most so many, spread evenly")
    daily_mb: Megabytes = Field(
        default=20, description="at most so much from one midnight UTC to the next; a directory never holds more either"
    )
    queue: int = Field(default=8, ge=1, le=10_000, description="frames that may wait, in memory only")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.url and self.path is not None:
            raise ValueError("url or path, and not both")
        if self.url:
            _ = urlsplit(self.url).port  # raises ValueError for a port that cannot be
        if (self.url or self.path is not None) and not (self.below_confidence or self.share):
            raise ValueError("something to send: below_confidence or share above 0")
        return self


class Model(Section):
    """[models.<name>]: one model and what should hold for it."""

    channel: Name = Field(default="stable", description="the channel to follow")
    pin: Version = Field(default="", description="this version and no other; empty: none")
    hold: bool = Field(default=False, description="true: no new activation (a revert still happens)")
    updates: bool = Field(default=True, description="false: settings forbid every new activation")
    forbid: Annotated[tuple[Version, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="versions that are never activated here"
    )
    safe_action: Literal["keep-and-alarm", "stop"] = Field(
        default="keep-and-alarm", description="when a version is bad and nothing is left to go back to"
    )
    labels_dir: OptionalPath = Field(
        default=None, description="label files (*.json) that are dropped here are taken up within a minute; empty: off"
    )
    label_horizon: Duration = Field(default=7 * 86400.0, gt=0, description="how late a label may still come")
    source: Source = Source()
    results: Results = Results()
    runtime: Runtime = Runtime()
    probation: Probation = Probation()
    drift: Drift = Drift()
    shadow: Shadow = Shadow()
    samples: Samples = Samples()
    rules: dict[Name, Rule] = Field(default_factory=dict, description="named tables: what to do when (docs/rules.md)")

    @property
    def wish(self) -> ConfigWish:
        """The part that steers the machine."""
        return ConfigWish(
            channel=self.channel,
            pin=self.pin,
            hold=self.hold,
            updates=self.updates,
            forbid=self.forbid,
            safe_action=self.safe_action,
            probation=self.probation.enabled,
        )
