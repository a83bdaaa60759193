"""One model's line, put together: source, queue, serving thread, records, shadow, handover, health.

This file knows which part feeds which, and what health says of them. It does not know the rules of handing over or
what runs in the other lines.

    line = Line(options, loader, boot_id, epoch, wake)
    line.start()
    line.step(now)                  # after every wake-up of the main thread
    line.tick(now)                  # once a second
    line.stop(deadline)
"""

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelagent.durable import write_atomic
from modelagent.errors import SourceError
from modelagent.inference.actions import RuleBook
from modelagent.inference.archive import Archive
from modelagent.inference.buffer import FrameBuffer
from modelagent.inference.frames import Frame, open_source
from modelagent.inference.handover import Handover
from modelagent.inference.labels import Spool
from modelagent.inference.options import ModelOptions
from modelagent.inference.records import Records
from modelagent.inference.results import Outlet
from modelagent.inference.results.courier import Courier
from modelagent.inference.results.jsonl import JsonlSink
from modelagent.inference.results.mqtt import MqttSink
from modelagent.inference.results.sqlite import SqliteSink
from modelagent.inference.serving import Event, Server
from modelagent.inference.shadow import Shadow
from modelagent.inference.starts import Starts
from modelagent.inference.workers import Loader, Worker

if TYPE_CHECKING:
    from modelagent.inference.upload import Upload

_log = logging.getLogger(__name__)

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_SOURCE_PAUSE = 1.0  # seconds before a broken source is tried again, doubling to a minute
_VERSIONS = 16  # whose names are kept; the counters keep fewer
# Seconds of serving before labels are read: the updater counts from the first record it sees. Where there was a run
# before, labels may lie there already that decide something, and the updater may have begun again with us.
_HEARD = 2.0
_HEARD_AGAIN = 10.0
_PATIENCE = 10.0  # seconds beyond the longest inference before a frame counts as overdue


class Line:
    """One model. Made, stepped and stopped by the main thread.

    Args:
        options: of the model.
        loader: the device's.
        boot_id: of this boot.
        epoch: of this run of the process.
        wake: wakes the main thread; any thread may call it.

    Raises:
        OSError: our own directories cannot be made.
        UsageError: the source's settings are impossible.
    """

    def __init__(
        self, options: ModelOptions, loader: Loader, *, boot_id: str, epoch: str, wake: Callable[[], None]
    ) -> None:
        self.options = options
        self._boot_id = boot_id
        self._epoch = epoch
        self._wake = wake
        options.keep_dir.mkdir(parents=True, exist_ok=True)
        options.health.parent.mkdir(parents=True, exist_ok=True)
        self._source = open_source(options.source)
        outlets: list[Outlet | RuleBook] = []
        if options.sqlite:
            sqlite = SqliteSink(
                options.keep_dir / "results.db", max_bytes=options.max_bytes, max_age_s=options.max_age_s
            )
            outlets.append(Outlet(sqlite))
        if options.jsonl:
            outlets.append(Outlet(JsonlSink(options.keep_dir / "results.jsonl", max_bytes=options.max_bytes)))
        self._courier = _courier(options)
        if self._courier is not None and options.mqtt_topic:
            outlets.append(Outlet(MqttSink(self._courier, options.mqtt_topic)))
        self._rules: RuleBook | None = None
        if options.rules:
            publish = self._courier.send if self._courier is not None else None
            self._rules = RuleBook(options.rules, device=options.device, publish=publish)
            outlets.append(self._rules)
        self._archive = Archive(
            options.keep_dir / "results.db", options.keep_dir / "labels.db", horizon=options.label_horizon
        )
        self.records = Records(
            options.name,
            epoch,
            outlets,
            recent=options.recent,
            horizon=options.label_horizon,
            thin_s=options.thin_s,
            archive=self._archive,
        )
        self.buffer = FrameBuffer(options.queue, options.overflow, self._dropped)
        if self._source is not None:
            self._source.lose = self.buffer.lose
        self._events: queue.SimpleQueue[Event | Worker] = queue.SimpleQueue()
        self.shadow = Shadow(
            share=options.shadow_share, ring=options.shadow_ring, died=self._post, thin_s=options.thin_s
        )
        self._upload = _upload(options)
        sample = self._upload.keep if self._upload is not None else None
        self.server = Server(options.name, self.buffer, self.records, self.shadow, self._post, sample=sample)
        self.handover = Handover(
            options,
            loader=loader,
            server=self.server,
            records=self.records,
            starts=Starts(options.keep_dir / "starts.json"),
            shadow=self.shadow,
        )
        self._spool = Spool(options.labels_dir)
        self._served: float | None = None  # since when anything has
        self._heard_s = _HEARD_AGAIN if (options.keep_dir / "labels.db").exists() else _HEARD
        self._halt = threading.Event()
        self.resting = False  # a model runs, and no frame came since the last tick
        self._received = 0
        self._delivered: float | None = None  # when the source last gave a frame; None: it is not being asked
        self._feeder: threading.Thread | None = None
        self._sequence = 0
        self._written: tuple[Any, ...] | None = None
        self._versions: dict[str, str] = {}  # by digest, of what has run

    def start(self) -> None:
        """Begin: links first, so that a worker loads while the source opens."""
        self.handover.look(time.monotonic())
        self.server.start()
        if self._source is not None:
            self._feeder = threading.Thread(target=self._feed, name=f"source-{self.options.name}", daemon=True)
            self._feeder.start()

    def step(self, now: float, *, looked: bool) -> None:
        """Take up what the threads said and, when a directory changed (`looked`), what the links say."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            if isinstance(event, Worker):
                self.handover.shadow_died(event)
            else:
                self.handover.handle(event, now)
        if looked:
            self.handover.look(now)
            self._read_labels()
        self.write_health(only_news=True)

    def tick(self, now: float) -> None:
        """Once a second, at rest every other."""
        self.handover.tick(now)
        self.resting = self.handover.running is not None and self.buffer.received == self._received
        self._received = self.buffer.received
        self._read_labels()
        self.write_health()

    def alive(self, now: float) -> bool:
        """Whether there is progress, or a good reason for none: what systemd's watchdog is fed by.

        Progress is a frame that was finished, or a look at the queue that found none waiting. A frame that waits
        without a worker that could take it is no fault of ours (no model yet, one that is loading or refused); a
        frame that waits before a worker that serves is overdue. So is a source that states a rate and gives nothing.
        """
        worker = self.handover.active
        patience = _PATIENCE + (worker.hang_s if worker is not None else 0.0)
        if now - self.server.beat >= patience:
            return False
        if self.handover.running is not None and now - self.server.progress >= patience:
            return False
        return not self._source_overdue(now)

    def _source_overdue(self, now: float) -> bool:
        source, since = self._source, self._delivered
        if source is None or since is None or len(self.buffer):
            return False
        return now - since >= source.patience

    def describe(self) -> str:
        """What runs, or why nothing does, in a few words."""
        running = self.handover.running
        return self.handover.idle if running is None else f"{running.slot.manifest.version} runs"

    def stop(self, deadline: float) -> None:
        """End everything by `deadline` (seconds since boot): frames that wait are recorded as dropped."""
        self._halt.set()
        for frame in self.buffer.close():
            self._dropped(frame)
        if not self.server.stop(max(0.1, deadline - time.monotonic() - 1.5)):
            for worker in (self.server.worker, self.handover.active):
                if worker is not None:
                    worker.child.kill()  # a hung call: its end wakes the thread
            self.server.stop(1.0)
        self.handover.close()
        if self._feeder is not None:
            self._feeder.join(max(0.1, deadline - time.monotonic() - 0.5))
        self.records.close(max(0.1, deadline - time.monotonic()))
        self._archive.keep(self.shadow.fresh())
        self._archive.close()
        if self._courier is not None:
            self._courier.close(max(0.3, deadline - time.monotonic()))
        if self._upload is not None:
            self._upload.close(0.3)
        self.write_health()

    def _post(self, event: Event | Worker) -> None:
        self._events.put(event)
        self._wake()

    def _feed(self) -> None:
        source = self._source
        assert source is not None  # noqa: S101 - the thread is started only with one
        pause = _SOURCE_PAUSE
        while not self._halt.is_set():
            begun = time.monotonic()
            self._delivered = begun
            try:
                source.run(self._take_in, self._halt)
                self._delivered = None
                return
            except SourceError as error:
                self._delivered = None  # broken, and known to be: no silence to wonder about
                if time.monotonic() - begun > 60.0:
                    pause = _SOURCE_PAUSE
                _log.warning("%s: %s; trying again in %.0f s", self.options.name, error, pause)
            except Exception:  # noqa: BLE001 - a plug-in: no fault of one may leave the line without frames for good
                self._delivered = None
                source.count("failed")
                _log.exception("%s: source %s failed; trying again in %.0f s", self.options.name, source.kind, pause)
            self._halt.wait(pause)
            pause = min(60.0, pause * 2)

    def _take_in(self, frame: Frame) -> None:
        self.buffer.put(frame)
        self._delivered = time.monotonic()

    def _dropped(self, frame: Frame) -> None:
        worker = self.handover.active
        self.records.lost(
            frame,
            worker.digest if worker is not None else "",
            worker.slot.manifest.version if worker is not None else "",
            "dropped",
        )

    def _read_labels(self) -> None:
        self._archive.keep(self.shadow.fresh())
        worker, target = self.handover.active, self.handover.links.current
        running = worker.digest if worker is not None else ""
        if self._served is None and worker is not None and worker.since:
            self._served = worker.since
        heard = self._served is not None and time.monotonic() - self._served >= self._heard_s
        for name, label, right, again in self._spool.news() if heard else ():
            if self.records.label(name, label=label, right=right, running=running, again=again) is None:
                continue
            if not self.shadow.label(name, label, right) and (pair := self._archive.pair(name)) is not None:
                link = target.link if target is not None else None
                self.shadow.recall(pair, label, right, running=running, link=link)
        self._archive.flush()

    @staticmethod
    def _describe(worker: Worker) -> dict[str, Any]:
        facts = worker.facts
        return {
            "rss_kb": worker.child.resident_kb() or 0,
            "invoke_us": round(worker.invoke_us, 1),
            "delegate": facts.get("delegate"),
            "runtime": facts.get("runtime"),
            "load_ms": facts.get("load_ms"),
        }

    def write_health(self, *, only_news: bool = False) -> None:
        """Write health.json; with `only_news` only when what runs, or why not, has changed."""
        handover = self.handover
        running = handover.running
        target = handover.links.current
        news = (
            target,
            running.child.pid if running is not None else None,
            handover.loading,
            handover.refused,
            handover.fell_back,
        )
        if only_news and news == self._written:
            return
        if running is not None:
            self._versions[running.digest] = running.version
            while len(self._versions) > _VERSIONS:
                del self._versions[next(iter(self._versions))]
        self._written = news
        self._sequence += 1
        document = {
            "schema": 1,
            "model": self.options.name,
            "boot_id": self._boot_id,
            "epoch": self._epoch,
            "seq": self._sequence,
            "wall": time.time(),
            "mono": time.monotonic(),
            "pid": os.getpid(),
            "link": None if target is None else target.link._asdict(),
            "running": None
            if running is None
            else {
                "digest": running.digest,
                "version": running.slot.manifest.version,
                "worker_pid": running.child.pid,
                "since_mono": running.since,
            },
            "loading": None if handover.loading is None else {"digest": handover.loading},
            "refused": handover.refused,
            "fell_back": handover.fell_back,
            "idle": handover.idle,
            "counters": self.records.tally.report(),
            "shadow": self.shadow.report(running.digest if running is not None else None),
            "source": {
                "kind": self.options.source.kind,
                "rate_fps": self._source.rate_fps if self._source is not None else 0.0,
                "queue": len(self.buffer),
                "capacity": self.buffer.capacity,
                "dropped": self.buffer.dropped,
                "received": self.buffer.received,
                "also": dict(self._source.counts) if self._source is not None else {},
            },
            "results": {
                "written": sum(outlet.written for outlet in self.records.outlets),
                "lost": sum(outlet.lost for outlet in self.records.outlets),
            },
            "broker": None
            if self._courier is None
            else {
                "connected": self._courier.connected,
                "waiting": self._courier.waiting,
                "lost": self._courier.lost,
                "problem": self._courier.problem,
            },
            "swaps": handover.swaps,
            "versions": self._versions,
            "worker": None if running is None else self._describe(running),
            "rules": {} if self._rules is None else self._rules.report(),
            "samples": None if self._upload is None else self._upload.report(),
            "last_result": None
            if self.records.last is None
            else {"id": self.records.last[0], "wall": self.records.last[1]},
        }
        try:
            write_atomic(self.options.health, _ENCODE(document).encode(), durable=False)
        except OSError as error:
            self._written = None  # try again at the next step
            _log.warning("%s: %s; free space or correct permissions", self.options.health, error)


def _upload(options: ModelOptions) -> "Upload | None":
    if options.samples is None:
        return None
    from modelagent.inference.upload import Upload  # noqa: PLC0415 - its imports are for those who send

    return Upload(options.name, options.samples, options.device, options.keep_dir / "samples.json")


def _courier(options: ModelOptions) -> Courier | None:
    if options.mqtt is None:
        return None
    client = f"modelagent-{options.device}-{options.name}-results"
    return Courier(options.mqtt, client, options.keep_dir / "outbox")
