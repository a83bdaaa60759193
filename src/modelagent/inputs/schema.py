"""The settings as types: what may stand in modelagent.toml, with defaults, units and limits.

This file knows each key, its default and what is allowed. It does not know files: `config.py` reads them and puts
refusals into words.

    Settings.model_validate({"models": {"digits": {"source": {"kind": "none"}}}}).models["digits"].source.fps   # 30.0

Durations are numbers of seconds or texts such as "250ms", "30s", "1h30m", "1d"; sizes carry their unit in the name.
The `description` of a field is the comment that stands beside it in config/modelagent.toml.
"""

import platform
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from modelagent.core.events import ConfigWish
from modelagent.inputs.fields import (
    AbsolutePath,
    Duration,
    Identifier,
    Megabytes,
    Name,
    OptionalPath,
    Probability,
    Share,
    Url,
    Version,
    Windows,
    as_tuple,
    check_cron_line,
    check_id,
    check_mode,
    check_proxy,
    check_url,
    check_zone,
    default_id,
)


class Section(BaseModel):
    """Base of every table: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class Device(Section):
    """[device]: who this is."""

    id: Annotated[Identifier, AfterValidator(check_id)] = Field(
        default_factory=default_id, description="name of this device, also in MQTT topics"
    )
    groups: Annotated[tuple[Identifier, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="groups this device belongs to: commands and waves may name them"
    )
    hardware: Identifier = Field(
        default_factory=lambda: platform.machine() or "unknown",
        description="hardware class; a release may name the classes it is for",
    )


class Paths(Section):
    """[paths]: the four directories, each written by one process."""

    state_dir: AbsolutePath = Field(default=Path("/var/lib/modelagent"), description="the updater's store")
    inference_dir: AbsolutePath = Field(
        default=Path("/var/lib/modelagent-inference"), description="inference's results and start counts"
    )
    run_dir: AbsolutePath = Field(default=Path("/run/modelagent"), description="control socket and lock")
    inference_run_dir: AbsolutePath = Field(default=Path("/run/modelagent-inference"), description="health files")

    @property
    def control_socket(self) -> Path:
        """Where the updater listens."""
        return self.run_dir / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by the updater, or by an offline command in its stead."""
        return self.run_dir / "updater.lock"

    def model_dir(self, model: str) -> Path:
        """The updater's directory of one model: links, slots and state."""
        return self.state_dir / "models" / model

    def health(self, model: str) -> Path:
        """Inference's health file of one model."""
        return self.inference_run_dir / model / "health.json"

    def labels(self, model: str) -> Path:
        """The spool of label batches of one model."""
        return self.state_dir / "labels" / model


class Repository(Section):
    """[repository]: where releases come from. It is trusted with nothing; the root file is what is trusted."""

    url: Url = Field(default="", description="http(s)://..., file:///... or an absolute path; empty: none")
    mirrors: Annotated[tuple[Url, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="further addresses of the same repository, asked in this order when url fails"
    )
    root: AbsolutePath = Field(
        default=Path("/etc/modelagent/root.json"), description="the trusted root metadata, brought by hand"
    )
    connect_timeout: Duration = Field(default=10.0, gt=0, le=300, description="longest time to connect")
    read_timeout: Duration = Field(default=30.0, gt=0, le=3600, description="longest time without a single byte")
    min_rate: int = Field(default=500, ge=0, description="bytes/s over min_rate_window; slower is given up")
    min_rate_window: Duration = Field(default=60.0, gt=0, le=3600, description="over which min_rate is measured")
    max_rate: int = Field(default=0, ge=0, description="bytes/s at most; 0: no cap")
    daily_mb: int = Field(
        default=0, ge=0, le=10_000_000, description="download at most so many megabytes a day; checks go on; 0: any"
    )
    ca: OptionalPath = Field(default=None, description="PEM of the accepted authorities; empty: the system's")
    client_cert: OptionalPath = Field(default=None, description="PEM client certificate for mutual TLS")
    client_key: OptionalPath = Field(default=None, description="PEM key of client_cert")
    proxy: Annotated[str, AfterValidator(check_proxy)] = Field(
        default="", description="http://host:port; empty: as the environment says"
    )
    media: OptionalPath = Field(
        default=None, description="where sticks are mounted; a bundle that appears below it is used; empty: off"
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key: both or neither")
        return self


class Clock(Section):
    """[clock]: how far this device's clock is believed when the end of a signature is judged."""

    trust: Literal["ntp", "rtc", "signed-floor"] = Field(
        default="rtc",
        description="ntp: once synchronised; rtc: when above the newest signed time; signed-floor: never",
    )


class Source(Section):
    """[models.<name>.source]: where frames come from."""

    kind: Literal["none", "replay", "directory", "stdin", "http", "mqtt", "camera"] = Field(
        default="none", description="none: idle; the others are in docs/sources.md"
    )
    path: OptionalPath = Field(
        default=None, description="replay: an .npz; directory: where files come; camera: a video or a device"
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
        default=(), description="of raw frames (stdin, http, mqtt), for instance [480, 640, 3]"
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
    answer: Duration = Field(default=30.0, gt=0, le=3600, description="http: longest time to a result")
    topic: str = Field(
        default="", max_length=512, pattern=r"^[^\x00]*$", description="mqtt: where frames are published"
    )
    stall: Duration = Field(
        default=10.0, ge=0.5, le=600, description="camera: without a frame for so long the decoder is started anew"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in {"replay", "directory"} and self.path is None:
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
    webhook: Annotated[str, Field(pattern=r"^(https?://\S+)?$"), AfterValidator(check_url)] = Field(
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
    hang_s: Duration = Field(default=2.0, gt=0, le=600, description="one inference longer than this is a hang")
    load_timeout: Duration = Field(default=60.0, gt=0, le=3600, description="longest time to load and warm up")
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


class Conditions(Section):
    """[policy.check], [policy.download], [policy.canary], [policy.activate]: what must hold for each, apart."""

    unmetered: bool = Field(default=False, description="only while the link is not metered")
    min_rate_kbps: float = Field(
        default=0.0, ge=0, le=1e9, description="kilobits/s that transfers of the last half hour had; 0: any"
    )
    on_mains: bool = Field(default=False, description="never on battery")
    min_battery_percent: int = Field(default=0, ge=0, le=100, description="charge when not on mains; 0: any")
    max_load: float = Field(default=0.0, ge=0, le=1000, description="load average per CPU; 0: any")
    max_pressure: float = Field(
        default=0.0, ge=0, le=100, description="percent of 10 s in which a task waited for a CPU (PSI); 0: any"
    )
    min_free_memory_mb: int = Field(default=0, ge=0, description="available memory; 0: any")
    max_temperature_c: float = Field(default=0.0, ge=0, le=150, description="of the hottest sensor; 0: any")
    max_queue: Share = Field(default=0.0, description="share of inference's queue that is filled; 0: any")
    max_p95: float = Field(
        default=0.0, ge=0, le=1000, description="inference's p95 as a share of what the version promises; 0: any"
    )
    undisturbed: bool = Field(default=False, description="not while a file lies in inhibit_dir")
    max_wait: Duration = Field(
        default=7 * 86400.0, gt=0, le=366 * 86400, description="after waiting for so long an alarm says so"
    )
    go_ahead: Annotated[
        tuple[Literal["metered", "rate", "load", "pressure", "queue", "latency"], ...], BeforeValidator(as_tuple)
    ] = Field(default=(), description="gates that give way after max_wait; the others protect the device")


class CanaryConditions(Conditions):
    """[policy.canary]: as for the others, with careful defaults."""

    min_free_memory_mb: int = Field(default=64, ge=0, description="available memory; 0: any")
    undisturbed: bool = Field(default=True, description="not while a file lies in inhibit_dir")


class ActivateConditions(Conditions):
    """[policy.activate]: as for the others, with careful defaults."""

    undisturbed: bool = Field(default=True, description="not while a file lies in inhibit_dir")


class Policy(Section):
    """[policy]: when the device looks, downloads and switches."""

    check_interval: Duration = Field(default=6 * 3600.0, ge=0.1, le=31 * 86400, description="between two checks")
    jitter: float = Field(default=0.1, ge=0, le=0.5, description="share of the interval spread over the fleet")
    check_cron: Annotated[str, AfterValidator(check_cron_line)] = Field(
        default="", description='by the calendar instead, such as "30 2 * * mon-fri"; empty: check_interval'
    )
    feedback: bool = Field(default=True, description="drift and falling quality make checks more frequent")
    check_floor: Duration = Field(
        default=900.0, ge=0, le=31 * 86400, description="but never more often than this; 0: check_interval"
    )
    check_ceiling: Duration = Field(
        default=0.0, ge=0, le=31 * 86400, description="calm lengthens the interval up to this; 0: not at all"
    )
    timezone: Annotated[str, AfterValidator(check_zone)] = Field(
        default="UTC", description="zone of windows and check_cron, for instance Europe/Madrid"
    )
    download_windows: Windows = Field(default=(), description="weekly windows for downloads; empty: always")
    activate_windows: Windows = Field(default=(), description="weekly windows for activation; empty: always")
    metered: bool = Field(default=False, description="what to believe of the link where NetworkManager tells nothing")
    inhibit_dir: OptionalPath = Field(
        default=None, description="a file in it means: do not disturb the application now; empty: off"
    )
    check: Conditions = Conditions()
    download: Conditions = Conditions()
    canary: CanaryConditions = CanaryConditions()
    activate: ActivateConditions = ActivateConditions()


class CanaryLimits(Section):
    """[limits.canary]: what a candidate may use before it has proved anything."""

    seconds: Duration = Field(default=120.0, gt=0, le=86400, description="wall clock, both models together")
    memory_mb: Megabytes = Field(default=512, description="memory of one canary worker; what needs more waits")


class Limits(Section):
    """[limits]: what the agent may use of the device."""

    disk_reserve_mb: int = Field(default=256, ge=0, description="free space that is never touched")
    keep_slots: int = Field(default=3, ge=2, le=100, description="versions kept on disk")
    max_store_mb: Megabytes = Field(default=2048, description="size of the store")
    attempts: int = Field(default=5, ge=1, le=1000, description="tries without progress before a longer pause")
    back_off: Duration = Field(default=30.0, ge=0.1, le=86400, description="pause after a failure, doubling up to 6 h")
    postpone: Duration = Field(
        default=3600.0, ge=1, le=7 * 86400, description="the longer pause, doubling up to a week"
    )
    canary: CanaryLimits = CanaryLimits()


class Tls(Section):
    """[mqtt.tls]: encryption of the broker's link."""

    enabled: bool = Field(default=False, description="use TLS; also on when ca or cert is given")
    ca: OptionalPath = Field(default=None, description="PEM of the accepted authorities; empty: the system's")
    cert: OptionalPath = Field(default=None, description="PEM client certificate")
    key: OptionalPath = Field(default=None, description="PEM key of cert")

    @property
    def wanted(self) -> bool:
        """True when the link is to be encrypted."""
        return self.enabled or self.ca is not None or self.cert is not None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key: both or neither")
        return self


class Mqtt(Section):
    """[mqtt]: the broker, trusted with nothing. Off unless `host` is given."""

    host: str = Field(default="", max_length=253, pattern=r"^[^\s/]*$", description="broker; empty: MQTT is off")
    port: int = Field(default=0, ge=0, le=65535, description="0: 1883, or 8883 with TLS")
    username: str = Field(default="", max_length=256, description="empty: none")
    password_file: OptionalPath = Field(default=None, description="file whose first line is the password")
    keepalive: Duration = Field(default=60.0, ge=1, le=65535, description="between signs of life")
    prefix: str = Field(
        default="modelagent",
        pattern=r"^[^/+#\s]+(/[^/+#\s]+)*$",
        max_length=128,
        description="first part of every topic",
    )
    queue: int = Field(default=1000, ge=1, le=100_000, description="reports that may wait for the broker")
    queue_kb: int = Field(default=2048, ge=64, le=1_000_000, description="size of the reports that may wait")
    tls: Tls = Tls()

    @property
    def effective_port(self) -> int:
        """The port to connect to."""
        return self.port or (8883 if self.tls.wanted else 1883)

    @model_validator(mode="after")
    def _password_needs_name(self) -> Self:
        if self.password_file is not None and not self.username:
            raise ValueError("password_file needs username")
        return self


class Control(Section):
    """[control]: who may speak to the updater on this machine."""

    group: str = Field(default="", max_length=32, pattern=r"^[^\s:]*$", description="group of the socket; empty: ours")
    mode: Annotated[int, AfterValidator(check_mode)] = Field(
        default=0o660, description="permission of the socket: ours alone, or with the group"
    )


class Metrics(Section):
    """[metrics]: the page that `modelagent run metrics` serves. Whoever reaches it can read, and nothing else."""

    listen: str = Field(
        default="127.0.0.1:9470",
        pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):\d{1,5}$",
        description="address and port",
    )


class Log(Section):
    """[log]: what is written to the journal or the terminal."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level written")


class Settings(Section):
    """Everything that a person can set."""

    device: Device = Field(default_factory=Device)
    paths: Paths = Paths()
    repository: Repository = Repository()
    clock: Clock = Clock()
    models: dict[Name, Model] = Field(default_factory=dict)
    policy: Policy = Policy()
    limits: Limits = Limits()
    mqtt: Mqtt = Mqtt()
    control: Control = Control()
    metrics: Metrics = Metrics()
    log: Log = Log()
