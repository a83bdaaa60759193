"""The device's view as Prometheus's numbers.

This file knows names, labels and units (prometheus.io/docs/practices/naming). It does not know where a number is read.

    text = expose(reader.read())            # the exposition format, as bytes

Counters begin anew with each start of inference, as Prometheus expects. What a damaged health file says is left out,
number by number: a scrape never fails for it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from modelagent import __version__
from modelagent.metrics.reading import ModelView, View

_OUTCOMES: Final = ("done", "dropped", "refused", "faulted")
_GATES: Final = ("check", "download", "canary", "activate")


def expose(view: View) -> bytes:
    """The whole page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(view))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        page = _Page()
        page.device(self._view)
        for name, model in self._view.models.items():
            page.model(name, model)
        yield from page.families.values()


class _Page:
    """Families by name, filled model by model."""

    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}

    def gauge(self, name: str, text: str, value: object, **labels: str) -> None:
        number = _number(value)
        if number is not None:
            family = self.families.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
            family.add_metric(_clean(labels), number)  # type: ignore[attr-defined]

    def counter(self, name: str, text: str, value: object, **labels: str) -> None:
        number = _number(value)
        if number is not None:
            family = self.families.setdefault(name, CounterMetricFamily(name, text, labels=list(labels)))
            family.add_metric(_clean(labels), number)  # type: ignore[attr-defined]

    def histogram(self, name: str, text: str, document: object, scale: float, **labels: str) -> None:
        """From {"bounds", "counts", "sum"}, whose values are multiplied by `scale`."""
        table = _table(document)
        bounds, counts = table.get("bounds"), table.get("counts")
        if not isinstance(bounds, list) or not isinstance(counts, list) or len(counts) != len(bounds) + 1:
            return
        numbers = [_number(value) for value in (*bounds, *counts)]
        if any(number is None for number in numbers):
            return
        buckets: list[tuple[str, float]] = []
        total = 0.0
        for bound, count in zip((*bounds, None), counts, strict=True):
            total += float(count)
            buckets.append(("+Inf" if bound is None else f"{float(bound) * scale:.10g}", total))
        family = self.families.setdefault(name, HistogramMetricFamily(name, text, labels=list(labels)))
        # A sum of negative values is no counter, and then there must be none.
        sum_value = _number(table.get("sum"))
        sum_value = None if sum_value is None or sum_value < 0 else sum_value * scale
        family.add_metric(_clean(labels), buckets=buckets, sum_value=sum_value)  # type: ignore[attr-defined]

    # -- the device ------------------------------------------------------------------------------------------------

    def device(self, view: View) -> None:
        self.gauge("modelagent_info", "What runs here.", 1, device=view.device, version=__version__)
        self.gauge("modelagent_updater_up", "Whether the updater answers.", not view.updater)
        self.gauge("modelagent_ready", "Whether everything that should run does.", not view.ready)
        repository = _table(view.status.get("repository"))
        self.gauge("modelagent_download_budget_left_bytes", "Left of today's bytes.", repository.get("budget_left"))
        clock = _table(repository.get("clock"))
        self.gauge("modelagent_clock_believed", "Whether the clock is believed.", clock.get("believed"))
        broker = _table(view.status.get("broker"))
        self.gauge("modelagent_broker_connected", "Whether the updater's broker is there.", broker.get("connected"))
        self.gauge("modelagent_broker_waiting", "Reports that wait for the broker.", broker.get("queued"))

    # -- one model -------------------------------------------------------------------------------------------------

    def model(self, name: str, view: ModelView) -> None:
        self.gauge("modelagent_inference_up", "Whether inference gives signs of life.", not view.silence, model=name)
        if view.age_s is not None:
            self.gauge("modelagent_health_age_seconds", "Age of the newest health record.", view.age_s, model=name)
        if view.health is not None:
            self._health(name, view.health)
        self._state(name, view.state)
        for gate in _GATES:
            answer = _table(view.gates.get(gate)).get("answer")
            if isinstance(answer, str):
                self.gauge("modelagent_gate", "Each gate's present answer.", 1, model=name, gate=gate, answer=answer)

    def _health(self, name: str, health: Mapping[str, Any]) -> None:
        running = _table(health.get("running"))
        versions = {**_table(health.get("versions"))}
        if running:
            versions[str(running.get("digest"))] = running.get("version")
            labels = {"version": str(running.get("version")), "digest": str(running.get("digest"))[:12]}
            self.gauge("modelagent_running", "The version that serves.", 1, model=name, **labels)
        for digest, counts in _table(health.get("counters")).items():
            labels = {"model": name, "version": str(versions.get(digest) or ""), "digest": str(digest)[:12]}
            self._version(_table(counts), labels)
        source = _table(health.get("source"))
        kind = str(source.get("kind", ""))
        for key in ("received", "dropped"):
            text = f"Frames {key} by the source's queue."
            self.counter(f"modelagent_source_{key}", text, source.get(key), model=name, kind=kind)
        for key, text in (("queue", "Frames that wait."), ("capacity", "Frames that may wait.")):
            self.gauge(f"modelagent_source_{key}", text, source.get(key), model=name, kind=kind)
        for event, count in _table(source.get("also")).items():
            self.counter("modelagent_source_events", "What else the source met.", count, model=name, event=str(event))
        results = _table(health.get("results"))
        for key in ("written", "lost"):
            self.counter(f"modelagent_results_{key}", f"Results {key}, over all sinks.", results.get(key), model=name)
        broker = _table(health.get("broker"))
        self.gauge("modelagent_results_waiting", "Results that wait for the broker.", broker.get("waiting"), model=name)
        for rule, entry in _table(health.get("rules")).items():
            self._rule(name, str(rule), _table(entry))
        samples = _table(health.get("samples"))
        for key in ("sent", "lost", "refused", "over_budget"):
            text = "Frames to be sent, by what became of them."
            self.counter("modelagent_samples", text, samples.get(key), model=name, outcome=key)
        self._swaps(name, health)
        shadow = _table(health.get("shadow"))
        for key in ("both_right", "only_new", "only_old", "both_wrong", "agree"):
            text = "Frames that the running version and its shadow both saw."
            self.counter("modelagent_shadow_pairs", text, shadow.get(key), model=name, outcome=key)
        pids = {"inference": health.get("pid"), "worker": running.get("worker_pid")}
        for process, pid in pids.items():
            self._process(name, process, pid)

    def _version(self, counts: Mapping[str, Any], labels: dict[str, str]) -> None:
        for outcome in _OUTCOMES:
            text = "Frames by how they ended."
            self.counter("modelagent_frames", text, counts.get(outcome), **labels, outcome=outcome)
        for code, count in _table(counts.get("faults")).items():
            self.counter("modelagent_faults", "Faults of the model.", count, **labels, code=str(code))
        for outcome, count in _table(counts.get("labels")).items():
            self.counter("modelagent_labels", "Labels by what they proved.", count, **labels, outcome=str(outcome))
        for number, count in _table(counts.get("classes")).items():
            self.counter("modelagent_class", "Results by class.", count, **labels, **{"class": str(number)})
        text = "Time from a frame in hand to its decision."
        self.histogram("modelagent_latency_seconds", text, counts.get("latency_us"), 1e-6, **labels)
        text = "Score of the best class."
        self.histogram("modelagent_confidence", text, counts.get("confidence"), 1.0, **labels)

    def _rule(self, name: str, rule: str, entry: Mapping[str, Any]) -> None:
        self.counter("modelagent_rule_fired", "Times that a rule acted.", entry.get("fired"), model=name, rule=rule)
        self.gauge("modelagent_rule_met", "Whether a rule is met now.", entry.get("met"), model=name, rule=rule)
        for action, done in entry.items():
            if isinstance(done, Mapping):
                for outcome, count in done.items():
                    self.counter(
                        "modelagent_rule_actions",
                        "What became of a rule's actions.",
                        count,
                        model=name,
                        rule=rule,
                        action=str(action),
                        outcome=str(outcome),
                    )

    def _swaps(self, name: str, health: Mapping[str, Any]) -> None:
        swaps = _table(health.get("swaps"))
        self.counter("modelagent_swaps", "Times that another version took over.", swaps.get("count"), model=name)
        last = _table(swaps.get("last"))
        gap = _number(last.get("gap_s"))
        self.gauge("modelagent_swap_gap_seconds", "Between the results around the last swap.", gap, model=name)
        self.gauge("modelagent_swap_overlap", "Whether both were in memory.", last.get("overlap"), model=name)
        peak = _number(last.get("peak_kb"))
        if peak is not None:
            text = "Of both workers, at the last swap."
            self.gauge("modelagent_swap_peak_bytes", text, peak * 1024, model=name)

    def _state(self, name: str, state: Mapping[str, Any]) -> None:
        phase = state.get("phase")
        if isinstance(phase, str):
            self.gauge("modelagent_phase", "Phase of the deployment.", 1, model=name, phase=phase)
        for key in ("blocks", "alarms", "slots"):
            entries = state.get(key)
            if isinstance(entries, list):
                self.gauge(f"modelagent_{key}", f"How many {key} there are.", len(entries), model=name)
        for key, value in _table(state.get("evidence")).items():
            self.gauge("modelagent_probation_evidence", "What probation has seen.", value, model=name, kind=str(key))
        check = _table(state.get("check"))
        self.gauge(
            "modelagent_last_check_timestamp_seconds",
            "When the repository was last reached.",
            check.get("last_ok"),
            model=name,
        )

    def _process(self, name: str, process: str, pid: object) -> None:
        if not isinstance(pid, int) or isinstance(pid, bool):
            return
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                pages = int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            return
        text = "Resident memory."
        self.gauge("modelagent_process_resident_bytes", text, pages * 4096, model=name, process=process)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    with contextlib.suppress(OverflowError):  # JSON knows integers of any length
        return float(value) if isinstance(value, bool | int | float) else None
    return None


def _clean(labels: Mapping[str, str]) -> list[str]:
    """The labels' values as UTF-8 can carry them: what others wrote may hold half a character."""
    return [str(value).encode("utf-8", "replace").decode() for value in labels.values()]
