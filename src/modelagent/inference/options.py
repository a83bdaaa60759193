"""What the loop is told: plain values, so that it can be started without a settings file.

This file knows how settings become options. It does not know how options are used.

    options = LoopOptions.from_settings(settings)
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from modelagent.inference.frames import SourceOptions
from modelagent.inference.rules import Rule
from modelagent.inputs.model_schema import Model, Samples, Source
from modelagent.inputs.model_schema import Rule as RuleSettings
from modelagent.inputs.schema import Mqtt, Settings

WORKER = (sys.executable, "-m", "modelagent.inference.worker")


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Which frames leave the device, and where to: an http(s) `url`, or a directory at `path`."""

    url: str = ""
    path: Path | None = None
    below_confidence: float = 0.6
    share: float = 0.0  # of the other frames
    per_hour: float = 20.0
    daily_bytes: int = 20 << 20
    queue: int = 8  # frames that may wait


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """One model. Times are seconds, sizes bytes; the names are those of the settings where they have one."""

    name: str
    model_dir: Path  # the updater's: links and slots
    labels_dir: Path  # the updater's: batches of labels
    keep_dir: Path  # ours, durable: starts.json, results
    health: Path  # ours: health.json
    source: SourceOptions = field(default_factory=SourceOptions)
    queue: int = 64
    overflow: str = "drop-oldest"
    sqlite: bool = True
    jsonl: bool = False
    max_bytes: int = 64 << 20
    threads: int = 1
    hang_s: float = 2.0  # an inference is hung after the larger of this and 20 times the promised latency
    load_timeout: float = 60.0
    starts: int = 3  # starts without progress before an unconfirmed slot is left
    healthy_after: int = 200  # inferences after which old faults are forgotten
    label_horizon: float = 7 * 86400.0
    recent: int = 20_000  # results kept in memory for labels that come later
    shadow_share: float = 0.2
    shadow_ring: int = 256
    thin_s: float = 0.0  # seconds between two samples for the judges
    worker_argv: tuple[str, ...] = WORKER
    cpus: tuple[int, ...] = ()  # processors of the worker; empty: any
    nice: int = 0  # its priority while it serves
    delegate: str = ""  # path of a delegate's library, for releases that ask for one
    memory_reserve_kb: int = 32 * 1024  # memory that a swap with both workers must leave
    max_age_s: float = 0.0  # of results in the database; 0: any
    device: str = "device"
    mqtt: Mqtt | None = None  # the broker, where results or rules need it
    mqtt_topic: str = ""  # of results; empty: they stay here
    rules: tuple[Rule, ...] = ()
    samples: SampleOptions | None = None  # None: no frame leaves the device


def _speaks(model: Model) -> bool:
    """Whether results or rules of this model go to the broker."""
    return model.results.mqtt or any(rule.topic for rule in model.rules.values())


def _rule(name: str, rule: RuleSettings) -> Rule:
    return Rule(
        name=name,
        labels=rule.labels,
        min_score=rule.min_score,
        release_score=rule.release_score,
        hits=rule.hits,
        of=rule.of,
        hold=rule.hold,
        repeat=rule.repeat,
        pause=rule.pause,
        log=rule.log,
        topic=rule.topic,
        webhook=rule.webhook,
        command=rule.command,
    )


def _sample_options(samples: Samples) -> SampleOptions | None:
    if not samples.url and samples.path is None:
        return None
    return SampleOptions(
        url=samples.url,
        path=samples.path,
        below_confidence=samples.below_confidence,
        share=samples.share,
        per_hour=samples.per_hour,
        daily_bytes=samples.daily_mb << 20,
        queue=samples.queue,
    )


def _source_options(settings: Settings, name: str, source: Source) -> SourceOptions:
    return SourceOptions(
        kind=source.kind,
        path=source.path,
        url=source.url,
        fps=source.fps,
        loop=source.loop,
        queue=source.queue,
        overflow=source.overflow,
        shape=source.shape,
        dtype=source.dtype,
        max_bytes=source.max_mb << 20,
        after=source.after,
        done_dir=source.done_dir,
        listen=source.listen,
        answer_s=source.answer,
        mode=source.mode,
        group=source.group,
        topic=source.topic,
        stall_s=source.stall,
        mqtt=settings.mqtt if source.kind == "mqtt" else None,
        client=f"modelagent-{settings.device.id}-{name}-frames",
    )


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """The whole process. `lock` is held while it runs: two loops would fight over one health file."""

    lock: Path
    models: tuple[ModelOptions, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> "LoopOptions":
        """The options that the settings file asks for."""
        paths = settings.paths
        models = tuple(
            ModelOptions(
                name=name,
                model_dir=paths.model_dir(name),
                labels_dir=paths.labels(name),
                keep_dir=paths.inference_dir / name,
                health=paths.health(name),
                source=_source_options(settings, name, model.source),
                queue=model.source.queue,
                overflow=model.source.overflow,
                sqlite=model.results.sqlite,
                jsonl=model.results.jsonl,
                max_bytes=model.results.max_mb << 20,
                threads=model.runtime.threads,
                hang_s=model.runtime.hang_s,
                load_timeout=model.runtime.load_timeout,
                starts=model.runtime.starts,
                healthy_after=model.runtime.healthy_after,
                label_horizon=model.label_horizon,
                shadow_share=model.shadow.rate,
                shadow_ring=model.shadow.ring,
                thin_s=model.probation.thin,
                cpus=model.runtime.cpus,
                nice=model.runtime.nice,
                delegate=str(model.runtime.delegate or ""),
                memory_reserve_kb=model.runtime.memory_reserve_mb << 10,
                max_age_s=model.results.max_days * 86400.0,
                device=settings.device.id,
                mqtt=settings.mqtt if settings.mqtt.host and _speaks(model) else None,
                mqtt_topic=f"{settings.mqtt.prefix}/{settings.device.id}/result/{name}" if model.results.mqtt else "",
                rules=tuple(_rule(rule_name, rule) for rule_name, rule in model.rules.items()),
                samples=_sample_options(model.samples),
            )
            for name, model in settings.models.items()
        )
        return cls(paths.inference_dir / "inference.lock", models)
