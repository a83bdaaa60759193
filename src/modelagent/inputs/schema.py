"""The settings as types: what may stand in modelagent.toml, with defaults, units and limits.

This file knows each key, its default and what is allowed; those of one model are in `model_schema.py`. It does not
know files: `config.py` reads them and puts refusals into words.

    Settings.model_validate({"models": {"digits": {"source": {"kind": "none"}}}}).models["digits"].source.fps   # 30.0

Durations are numbers of seconds or texts such as "250ms", "30s", "1h30m", "1d"; sizes carry their unit in the name.
The `description` of a field is the comment that stands beside it in config/modelagent.toml.
"""

import platform
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from modelagent.inputs.fields import (
    AbsolutePath,
    Duration,
    Identifier,
    Megabytes,
    Name,
    OptionalPath,
    Section,
    Share,
    Url,
    Windows,
    as_tuple,
    check_cron_line,
    check_id,
    check_mode,
    check_proxy,
    check_zone,
    default_id,
)
from modelagent.inputs.model_schema import Model


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

    seconds: Duration = Field(default=120.0, gt=0, le=86400, description="wall clock of each of the two models")
    memory_mb: Megabytes = Field(default=512, description="memory of one canary worker; what needs more waits")


class Limits(Section):
    """[limits]: what the agent may use of the device."""

    disk_reserve_mb: int = Field(default=256, ge=0, description="free space that is never touched")
    keep_slots: int = Field(default=3, ge=2, le=100, description="newest confirmed versions that stay on disk")
    max_store_mb: Megabytes = Field(
        default=2048, description="what nobody needs any more stays for a week, and in all up to this size"
    )
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
